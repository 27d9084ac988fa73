//! Sandboxes that belong to no container.

use std::collections::BTreeMap;

use super::on_fake_host;
use crate::model::NetworkMode;
use crate::networks::{Endpoint, EndpointRequest, Sandbox, SandboxConfig};

/// Describes a sandbox without a namespace of its own, unless the mode is changed.
fn pod() -> SandboxConfig {
    SandboxConfig {
        id: "pod".into(),
        name: "web".into(),
        mode: NetworkMode::Host,
        ..SandboxConfig::default()
    }
}

fn endpoints(networks: &[&str]) -> BTreeMap<String, Endpoint> {
    networks
        .iter()
        .map(|&network| (network.to_owned(), Endpoint::default()))
        .collect()
}

#[test]
fn a_sandbox_is_a_member_of_its_networks_until_it_is_detached() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let networks = &engine.networks;
        let bridge = networks.find("bridge").unwrap().id;
        let names = || -> Vec<String> {
            let members = networks.members(&bridge);
            members.into_values().map(|member| member.name).collect()
        };
        let mut config = pod();
        let (mut sandbox, namespace) = engine
            .sandboxes
            .attach(&config, &endpoints(&["bridge"]))
            .unwrap();
        assert!(namespace.is_none());
        assert_eq!(sandbox.endpoints["bridge"].network_id, bridge);
        assert_eq!(names(), ["web"]);
        config.name = "shop".into();
        engine.sandboxes.rename(&config, &mut sandbox);
        assert_eq!(names(), ["shop"]);
        let left = engine.sandboxes.detach(&config.id, &mut sandbox);
        assert_eq!(left.len(), 1);
        assert_eq!(sandbox.endpoints["bridge"].assigned, None);
        assert!(names().is_empty());
    });
}

#[test]
fn a_sandbox_that_lacks_one_network_is_in_none() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let networks = &engine.networks;
        let error = engine
            .sandboxes
            .attach(&pod(), &endpoints(&["bridge", "missing"]));
        assert_eq!(error.unwrap_err().to_string(), "network missing not found");
        let bridge = networks.find("bridge").unwrap().id;
        assert!(networks.members(&bridge).is_empty());
    });
}

#[test]
fn without_a_process_only_the_state_is_changed() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let networks = &engine.networks;
        let config = SandboxConfig {
            mode: NetworkMode::Bridge,
            ..pod()
        };
        let mut sandbox = Sandbox::default();
        let connect = |sandbox: &mut Sandbox| {
            engine
                .sandboxes
                .connect(&config, None, sandbox, "bridge", EndpointRequest::default())
        };
        connect(&mut sandbox).unwrap();
        let bridge = networks.find("bridge").unwrap().id;
        assert_eq!(sandbox.endpoints["bridge"].network_id, bridge);
        assert!(networks.members(&bridge).is_empty());
        assert_eq!(
            connect(&mut sandbox).unwrap_err().to_string(),
            "endpoint with name web already exists in network bridge"
        );
        let disconnect = |sandbox: &mut Sandbox| {
            engine
                .sandboxes
                .disconnect(&config, None, sandbox, "bridge")
        };
        disconnect(&mut sandbox).unwrap();
        assert_eq!(sandbox, Sandbox::default());
        assert_eq!(
            disconnect(&mut sandbox).unwrap_err().to_string(),
            "container pod is not connected to the network bridge"
        );
    });
}
