//! What every network driver must do. Each test runs for each driver, in a network namespace of its
//! own that plays the host.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::PathBuf;

use whelk_network::Links;
use whelk_network::namespace::Namespace;
use whelk_sys::process::CloneFlags;

use super::{Gateway, Inner, Joining, NetworkDriver, NetworkDriverKind};
use crate::error::Error;
use crate::instance::Instance;
use crate::networks::create::blocks;
use crate::networks::model::{Assigned, AssignedAddress, Ipam, IpamConfig, NetworkRecord, option};
use crate::networks::stack::HostStack;
use crate::random_names::random_id;

/// A driver, and a host with no networks but an interface of its own, `base`.
struct Host {
    kind: NetworkDriverKind,
    stack: HostStack,
    /// Whether this kernel has VLANs, which the engine makes as parents.
    has_vlans: bool,
}

/// Runs `test` for each driver.
fn with_each_driver(test: impl Fn(Host) + Sync) {
    for kind in NetworkDriverKind::ALL {
        with_driver(kind, &test);
    }
}

fn with_driver(kind: NetworkDriverKind, test: impl FnOnce(Host) + Send) {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            whelk_sys::process::unshare(CloneFlags::NEWNET).unwrap();
            test(Host::new(kind));
        });
        assert!(run.join().is_ok(), "driver {kind}");
    });
}

impl Host {
    fn new(kind: NetworkDriverKind) -> Self {
        let path = |name: &str| PathBuf::from("/nonexistent").join(name);
        let instance = Instance::new(path("root"), path("run"), "contract".into()).unwrap();
        let stack = HostStack::open(&instance).unwrap();
        stack.firewall.restore().unwrap();
        let has_vlans = {
            let mut links = stack.links();
            let base = match links.find("base").unwrap() {
                Some(base) => base.index,
                None => create_interface(&mut links, "base"),
            };
            let is_created = links.create_vlan("base.99", base, 99).is_ok();
            links.delete("base.99").unwrap();
            is_created
        };
        Self {
            kind,
            stack,
            has_vlans,
        }
    }

    /// The host with a new engine, after the old one was killed.
    fn with_new_engine(&self) -> Self {
        Self::new(self.kind)
    }

    fn driver(&self) -> &'static dyn NetworkDriver {
        self.kind.driver()
    }

    /// A new network, planned but not created. `number` distinguishes subnets.
    fn network(&self, number: u8) -> NetworkRecord {
        let config = IpamConfig {
            subnet: format!("10.99.{number}.0/24"),
            gateway: format!("10.99.{number}.1"),
            ..IpamConfig::default()
        };
        let mut network = NetworkRecord {
            name: format!("net{number}"),
            id: random_id(),
            driver: self.kind,
            enable_ipv4: true,
            ipam: Ipam {
                config: vec![config],
                ..Ipam::default()
            },
            ..NetworkRecord::default()
        };
        if self.driver().check_option(option::PARENT, "base").unwrap() {
            let parent = if self.has_vlans {
                format!("base.{number}")
            } else {
                "base".to_owned()
            };
            network.options.insert(option::PARENT.into(), parent);
        }
        self.driver().plan(&self.stack, &mut network, &[]).unwrap();
        network
    }

    fn create(&self, network: &NetworkRecord) {
        self.driver().create(&self.stack, network).unwrap();
    }

    fn remove(&self, network: &NetworkRecord, others: &[NetworkRecord]) {
        self.driver().remove(&self.stack, network, others).unwrap();
    }

    /// The names and indices of the host's interfaces: one that was created again has another index.
    fn interfaces(&self) -> BTreeSet<(String, u32)> {
        let links = self.stack.links().list().unwrap();
        links
            .into_iter()
            .map(|link| (link.name, link.index))
            .collect()
    }

    /// Attaches an endpoint. Returns `false` if this kernel lacks the driver's interfaces.
    fn attach(&self, network: &NetworkRecord, endpoint: &mut Assigned, to: &Namespace) -> bool {
        let inner = Inner::New(to.as_fd());
        match self.driver().attach(&self.stack, network, endpoint, inner) {
            Err(Error::Unsupported(_)) => false,
            outcome => {
                outcome.unwrap();
                self.kind.facts().joining == Joining::Interface
            }
        }
    }

    /// Detaches an endpoint of a container that keeps running.
    fn detach(&self, endpoint: &Assigned, from: &Namespace) {
        let mut links = Links::open_in(from.as_fd()).unwrap();
        links.delete(&endpoint.interface).unwrap();
        self.driver().detach(&self.stack, endpoint);
        self.stack.delete_pending_interfaces();
    }
}

/// Creates an interface that is not the engine's.
fn create_interface(links: &mut Links, name: &str) -> u32 {
    let mac = [2, 0, 0, 0, 0, 8];
    let index = links.create_bridge(name, 0, mac, "of a test").unwrap();
    links.set_up(index).unwrap();
    index
}

/// An endpoint as the engine prepares it before attaching it.
fn endpoint(network: &NetworkRecord, number: u8) -> Assigned {
    let subnet = blocks(network).unwrap()[0].subnet.to_string();
    Assigned {
        endpoint_id: random_id(),
        interface: "eth0".into(),
        ipv4: Some(AssignedAddress {
            net: subnet
                .replace("0/24", &format!("{number}/24"))
                .parse()
                .unwrap(),
            gateway: None,
        }),
        mac_address: format!("02:42:0a:63:00:{number:02x}"),
        ..Assigned::default()
    }
}

fn has_interface(namespace: &Namespace, name: &str) -> bool {
    let mut links = Links::open_in(namespace.as_fd()).unwrap();
    links.find(name).unwrap().is_some()
}

#[test]
fn networks_can_be_created_and_removed_again_and_again() {
    with_each_driver(|host| {
        let before = host.interfaces();
        let (network, other) = (host.network(1), host.network(2));
        // Removing what was never created, as after a crash between the record and the objects.
        host.remove(&network, &[]);
        host.create(&other);
        let with_other = host.interfaces();
        for _ in 0..2 {
            host.create(&network);
            let created = host.interfaces();
            assert!(created.is_superset(&with_other));
            host.create(&network);
            assert_eq!(
                host.interfaces(),
                created,
                "a second creation changes nothing"
            );
            host.remove(&network, std::slice::from_ref(&other));
            host.remove(&network, std::slice::from_ref(&other));
            assert_eq!(
                host.interfaces(),
                with_other,
                "only the network's own are removed"
            );
        }
        host.remove(&other, &[]);
        assert_eq!(host.interfaces(), before);
    });
}

#[test]
fn interfaces_deleted_by_others_are_created_again_and_do_not_prevent_removal() {
    with_each_driver(|host| {
        let before = host.interfaces();
        let network = host.network(1);
        host.create(&network);
        let names = |host: &Host| -> BTreeSet<String> {
            host.interfaces()
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        let complete = names(&host);
        let own = complete
            .iter()
            .filter(|name| !before.iter().any(|(old, _)| old == *name));
        for name in own {
            host.stack.links().delete(name).unwrap();
            host.create(&network);
            assert_eq!(names(&host), complete, "{name}");
            // An endpoint needs its network's objects, whoever deleted them.
            host.stack.links().delete(name).unwrap();
            let (namespace, mut one) = (Namespace::create().unwrap(), endpoint(&network, 2));
            if host.attach(&network, &mut one, &namespace) {
                assert!(complete.is_subset(&names(&host)), "{name}");
            }
            host.detach(&one, &namespace);
            host.stack.links().delete(name).unwrap();
            host.remove(&network, &[]);
            assert_eq!(host.interfaces(), before, "{name}");
            host.create(&network);
        }
    });
}

#[test]
fn endpoints_can_be_attached_and_detached_repeatedly() {
    with_each_driver(|host| {
        let network = host.network(1);
        host.create(&network);
        let before = host.interfaces();
        let namespace = Namespace::create().unwrap();
        let planned = endpoint(&network, 2);
        for _ in 0..2 {
            let mut one = planned.clone();
            if !host.attach(&network, &mut one, &namespace) {
                // Nothing was created; detaching it is harmless, as in the engine's undo.
                assert!(!has_interface(&namespace, "eth0"));
                host.detach(&one, &namespace);
                assert_eq!(host.interfaces(), before);
                continue;
            }
            assert!(has_interface(&namespace, "eth0"));
            assert_eq!(one.mac_address.is_empty(), host.kind.facts().parents_mac);
            // The name is in use, so a second endpoint fails and leaves nothing.
            let mut second = endpoint(&network, 3);
            let inner = Inner::New(namespace.as_fd());
            let attached = host.interfaces();
            host.driver()
                .attach(&host.stack, &network, &mut second, inner)
                .unwrap_err();
            host.driver().detach(&host.stack, &second);
            host.stack.delete_pending_interfaces();
            assert_eq!(host.interfaces(), attached);
            host.detach(&one, &namespace);
            assert!(!has_interface(&namespace, "eth0"));
            assert_eq!(host.interfaces(), before);
            host.detach(&one, &namespace);
            assert_eq!(host.interfaces(), before, "a second time changes nothing");
        }
        host.remove(&network, &[]);
    });
}

#[test]
fn warm_interfaces_are_for_drivers_that_say_so() {
    with_each_driver(|host| {
        let network = host.network(1);
        host.create(&network);
        let mut one = endpoint(&network, 2);
        let outer = host.stack.endpoint_interface(&one.endpoint_id);
        let warm = Namespace::create_with_interface("eth0", &outer).unwrap();
        let attached = host
            .driver()
            .attach(&host.stack, &network, &mut one, Inner::Warm);
        if host.kind.facts().joining == Joining::Interface {
            assert_eq!(attached.is_ok(), host.kind.facts().warm);
        }
        if host.kind.facts().warm {
            host.detach(&one, &warm.0);
            assert!(host.stack.links().find(&outer).unwrap().is_none());
        }
    });
}

#[test]
fn a_new_engine_takes_over_what_a_killed_one_left() {
    with_each_driver(|host| {
        let network = host.network(1);
        host.create(&network);
        let namespace = Namespace::create().unwrap();
        let mut one = endpoint(&network, 2);
        let is_attached = host.attach(&network, &mut one, &namespace);
        let left = host.interfaces();

        let host = host.with_new_engine();
        host.create(&network);
        assert_eq!(host.interfaces(), left, "networks stay as they are");
        if is_attached {
            for _ in 0..2 {
                assert!(host.driver().adopt(&host.stack, &one).unwrap());
            }
            assert!(has_interface(&namespace, "eth0"));
            assert_eq!(host.interfaces(), left);
            host.detach(&one, &namespace);
            // The engine was killed while it disconnected the container.
            let host = host.with_new_engine();
            let is_there = host.driver().adopt(&host.stack, &one).unwrap();
            assert_eq!(
                is_there,
                !host.kind.facts().warm,
                "seen on the host only for veth pairs"
            );
            host.detach(&one, &namespace);
        }
        host.remove(&network, &[]);
    });
}

/// Every option that a driver has, with a value that it takes and one that it refuses.
const OPTIONS: &[(&str, &str, &str)] = &[
    (option::BRIDGE_NAME, "br7", "a/b"),
    (option::DEFAULT_BRIDGE, "false", "maybe"),
    (option::MASQUERADE, "true", "maybe"),
    (option::ICC, "false", "maybe"),
    (option::HOST_IPV4, "192.0.2.7", "fd00::7"),
    (option::HOST_IPV6, "fd00::7", "192.0.2.7"),
    (option::INHIBIT_IPV4, "true", "maybe"),
    (option::HOST_BINDING, "127.0.0.1", "localhost"),
    (option::GATEWAY_MODE_4, "routed", "bridge"),
    (option::GATEWAY_MODE_6, "nat-unprotected", "bridge"),
    (option::PARENT, "eth7.10", ".."),
    (option::MACVLAN_MODE, "vepa", "l2"),
    (option::IPVLAN_MODE, "l3s", "vepa"),
    (option::IPVLAN_FLAG, "private", "l2"),
];

#[test]
fn options_are_taken_or_refused_by_name() {
    let check = |kind: NetworkDriverKind, key: &str, value: &str| {
        kind.check_options(&[(key.to_owned(), value.to_owned())].into())
    };
    let mut had = BTreeSet::new();
    for kind in NetworkDriverKind::ALL {
        for (key, good, bad) in OPTIONS {
            match check(kind, key, good) {
                Ok(()) => {
                    had.insert(*key);
                    let refused = check(kind, key, bad).unwrap_err();
                    assert!(
                        matches!(refused, Error::Invalid(_)),
                        "{kind} {key}: {refused}"
                    );
                }
                Err(Error::Unsupported(text)) => assert_eq!(
                    text,
                    format!(
                        "network option {key}: not available with driver {kind} in this version of whelk"
                    )
                ),
                Err(other) => panic!("{kind} {key}: {other}"),
            }
        }
        // Those of every driver.
        check(kind, option::MTU, "9000").unwrap();
        let refused = |key: &str, value: &str| check(kind, key, value).unwrap_err().to_string();
        assert_eq!(
            refused(option::MTU, "big"),
            "failed to parse com.docker.network.driver.mtu value: big (strconv.Atoi: parsing \"big\": invalid syntax)"
        );
        check(kind, option::CONTAINER_PREFIX, "net").unwrap();
        assert_eq!(
            refused(option::CONTAINER_PREFIX, "a b"),
            "invalid interface name \"a b\": up to 15 of a-z, A-Z, 0-9, _, . and -"
        );
        assert_eq!(
            refused("com.example.unknown", ""),
            format!(
                "network option com.example.unknown: not available with driver {kind} in this version of whelk"
            )
        );
    }
    assert_eq!(had.len(), OPTIONS.len(), "each option has a driver");
}

#[test]
fn properties_of_drivers_are_consistent() {
    for kind in NetworkDriverKind::ALL {
        let facts = kind.facts();
        let network = NetworkRecord {
            driver: kind,
            ..NetworkRecord::default()
        };
        let internal = NetworkRecord {
            internal: true,
            ..network.clone()
        };
        for ipv4 in [true, false] {
            assert_eq!(internal.gateway(ipv4), Gateway::None, "{kind}");
        }
        let joins = facts.joining == Joining::Interface;
        assert_eq!(network.gateway(true) == Gateway::Address, joins, "{kind}");
        assert_eq!(facts.only.is_none(), joins, "{kind}");
        assert!(
            joins || !(facts.host_routes || facts.parents_mac || facts.warm),
            "{kind}"
        );
    }
}

#[test]
fn a_bridge_of_others_is_neither_changed_nor_removed() {
    with_driver(NetworkDriverKind::Bridge, |host| {
        let network = host.network(1);
        let name = host.stack.network_interface(&network);
        let mut links = host.stack.links();
        links
            .create_bridge(&name, 0, [2, 0, 0, 0, 0, 9], "of others")
            .unwrap();
        drop(links);
        let before = host.interfaces();
        let refused = host.driver().create(&host.stack, &network).unwrap_err();
        assert!(matches!(refused, Error::Conflict(_)), "{refused}");
        host.remove(&network, &[]);
        assert_eq!(host.interfaces(), before);
    });
}

#[test]
fn a_parent_is_removed_with_the_last_network_on_it_if_the_engine_made_it() {
    for kind in [NetworkDriverKind::Macvlan, NetworkDriverKind::Ipvlan] {
        with_driver(kind, |host| {
            let on = |parent: &str, number: u8, others: &[NetworkRecord]| {
                let mut network = host.network(number);
                network.options.insert(option::PARENT.into(), parent.into());
                let planned = host.driver().plan(&host.stack, &mut network, others);
                planned.map(|()| network)
            };
            let names = || -> Vec<String> {
                let links = host.stack.links().list().unwrap();
                links.into_iter().map(|link| link.name).collect()
            };
            let whole = on("base", 3, &[]).unwrap();
            assert!(!whole.made_parent);
            host.create(&whole);
            host.remove(&whole, &[]);
            assert!(names().contains(&"base".to_owned()), "the host's own");
            let absent = "the parent interface nosuch0 was not found on the host";
            for (missing, cause) in [
                ("nosuch0", "invalid subinterface vlan name nosuch0"),
                ("nosuch0.7", absent),
                ("base.x", "invalid subinterface vlan name base.x"),
                ("base.4095", "invalid subinterface vlan name base.4095"),
            ] {
                let network = on(missing, 4, &[]).unwrap();
                assert!(network.made_parent);
                let error = host.driver().create(&host.stack, &network).unwrap_err();
                assert!(error.to_string().contains(cause), "{error}");
                host.remove(&network, &[]);
            }
            // Any interface will do, because not every kernel has VLANs.
            let first = on("made.7", 1, &[]).unwrap();
            create_interface(&mut host.stack.links(), "made.7");
            host.create(&first);
            let second = on("made.7", 2, std::slice::from_ref(&first)).unwrap();
            assert!(second.made_parent, "the engine made it for the first");
            host.create(&second);
            host.remove(&first, std::slice::from_ref(&second));
            assert!(names().contains(&"made.7".to_owned()), "in use");
            host.remove(&second, &[]);
            assert!(!names().contains(&"made.7".to_owned()));
        });
    }
}
