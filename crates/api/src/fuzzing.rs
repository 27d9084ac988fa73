//! Entry point for the fuzz targets: the decoder of request bodies, which is private.

use whelk_api_types::{
    ExecConfig, NetworkConnectRequest, NetworkCreateRequest, UpdateConfig, VolumeCreateRequest,
};
use whelk_engine::containers::CreateRequest;

use crate::json::{decode, parse};
use crate::routes::containers::decode_create;
use crate::version::{ApiVersion, upgrade_container};
use crate::wire::{Convert as _, Parse as _};

/// Decodes a body as each kind of request, and upgrades a request to create a container from the
/// oldest and the newest version. Returns whether the body is valid JSON.
pub fn body(bytes: &[u8]) -> bool {
    let Ok((value, _)) = parse(bytes) else {
        return false;
    };
    let _ = decode::<ExecConfig>(value, "container.ExecOptions");
    let _ = decode::<NetworkConnectRequest>(value, "network.ConnectOptions");
    let _ = decode::<NetworkCreateRequest>(value, "network.CreateRequest");
    let _ = decode::<UpdateConfig>(value, "container.UpdateConfig");
    let _ = decode::<VolumeCreateRequest>(value, "volume.CreateOptions");
    let Ok((config, host, networking)) = decode_create(value) else {
        return true;
    };
    let (Ok(config), Ok(host)) = (config.unwrap_or_default().parse(), host.parse()) else {
        return true;
    };
    let request = CreateRequest {
        name: String::new(),
        platform: String::new(),
        config,
        host,
        networks: networking.endpoints_config.convert(),
    };
    for version in [crate::OLDEST, crate::NEWEST] {
        let _ = upgrade_container(
            ApiVersion(version.0, version.1),
            false,
            &mut request.clone(),
        );
    }
    true
}
