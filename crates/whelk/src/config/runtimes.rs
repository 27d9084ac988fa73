//! The OCI runtimes besides the engine's own: the keys `runtimes` and `default-runtime`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;
use whelk_engine::OciRuntime;
use whelk_engine::instance::Runtimes;

/// An OCI runtime.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RuntimeSettings {
    path: PathBuf,
    runtime_args: Vec<String>,
    /// Of old versions of Docker; NVIDIA's toolkit still writes an empty list.
    args: Vec<String>,
    /// The type of a containerd shim, which is refused.
    runtime_type: String,
    options: Option<Value>,
}

/// Returns the runtimes that the keys describe.
///
/// # Errors
/// Returns an error that names the key.
pub(super) fn read(
    others: &BTreeMap<String, RuntimeSettings>,
    default: Option<&str>,
) -> anyhow::Result<Runtimes> {
    let mut runtimes = Runtimes::default();
    for (name, settings) in others {
        if !settings.runtime_type.is_empty() || settings.options.is_some() {
            bail!(
                "runtimes: {name}: runtimeType and options are not supported: give the path of an OCI runtime"
            );
        }
        if !settings.args.is_empty() {
            bail!("runtimes: {name}: args is not supported: use runtimeArgs");
        }
        let runtime = OciRuntime {
            path: settings.path.clone(),
            args: settings.runtime_args.clone(),
            ..OciRuntime::default()
        };
        let added = runtimes.add(name, runtime);
        added.map_err(|error| anyhow::anyhow!("runtimes: {error}"))?;
    }
    if let Some(default) = default.filter(|name| !name.is_empty()) {
        default.clone_into(&mut runtimes.default);
    }
    runtimes
        .check()
        .map_err(|error| anyhow::anyhow!("default-runtime: {error}"))?;
    Ok(runtimes)
}
