//! Tests of the firewall rules with real packets between network namespaces, one of which plays the
//! host.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use whelk_network::namespace::Namespace;
use whelk_network::port::{PortMapping, Protocol};
use whelk_network::{BridgeRules, Firewall, Links, Peer, Port, SenderRules};

/// A namespace that plays the host, with bridges of ours and a neighbour on its outer link.
struct Host {
    namespace: OwnedFd,
    outside: OwnedFd,
    firewall: Firewall,
}

struct Container {
    namespace: OwnedFd,
    address: IpAddr,
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn inside<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    whelk_sys::net::within(namespace.as_fd(), work).unwrap()
}

fn sysctl(namespace: &OwnedFd, key: &str, value: &str) {
    inside(namespace, || {
        std::fs::write(format!("/proc/sys/net/{}", key.replace('.', "/")), value)
    })
    .unwrap();
}

const MAC: [u8; 6] = [2, 0x42, 0, 0, 0, 1];

impl Host {
    fn new() -> Self {
        let namespace = OwnedFd::from(Namespace::create().unwrap());
        let outside = OwnedFd::from(Namespace::create().unwrap());
        sysctl(&namespace, "ipv4.ip_forward", "1");
        let firewall = inside(&namespace, || {
            let mut links = Links::open().unwrap();
            // The outer link is a bridge too, created by the same code, but unknown to the rules.
            let outer = links
                .create_bridge("outer", 0, [2, 0, 0, 0, 0, 1], "of a test")
                .unwrap();
            links.add_address(outer, net("198.51.100.1/24")).unwrap();
            let peer = Peer {
                name: "eth0",
                mac: [2, 0, 0, 0, 0, 2],
                namespace: outside.as_fd(),
            };
            links
                .create_veth("vouter", outer, 0, peer, Port::default())
                .unwrap();
            let firewall = Firewall::new("whelktest").unwrap();
            firewall.restore().unwrap();
            firewall
        });
        give(&outside, "198.51.100.2/24", "198.51.100.1");
        Self {
            namespace,
            outside,
            firewall,
        }
    }

    fn bridge(&self, name: &str, address: &str, internal: bool) {
        self.bridge_with(name, address, |rules| rules.internal = internal);
    }

    fn bridge_with(&self, name: &str, address: &str, change: impl FnOnce(&mut BridgeRules)) {
        inside(&self.namespace, || {
            let mut links = Links::open().unwrap();
            let index = links
                .create_bridge(name, 0, [2, 0x42, 0, 0, 0, 0xff], "of a test")
                .unwrap();
            links.add_address(index, net(address)).unwrap();
        });
        sysctl(
            &self.namespace,
            &format!("ipv4.conf.{name}.route_localnet"),
            "1",
        );
        let mut rules = BridgeRules {
            name: name.into(),
            subnets: vec![net(address).trunc()],
            internal: false,
            masquerade_v4: true,
            masquerade_v6: true,
            host_v4: None,
            host_v6: None,
            icc: true,
            unprotected_v4: false,
            unprotected_v6: false,
            routed_v4: false,
            routed_v6: false,
        };
        change(&mut rules);
        self.firewall.add_bridge(&rules).unwrap();
    }

    fn container(&self, bridge: &str, number: u8, address: &str, gateway: &str) -> Container {
        let namespace = OwnedFd::from(Namespace::create().unwrap());
        let mut mac = MAC;
        mac[5] = number;
        let interface = format!("v{number}");
        inside(&self.namespace, || {
            let mut links = Links::open().unwrap();
            let master = links.find(bridge).unwrap().unwrap().index;
            let peer = Peer {
                name: "eth0",
                mac,
                namespace: namespace.as_fd(),
            };
            links
                .create_veth(
                    &interface,
                    master,
                    0,
                    peer,
                    Port {
                        hairpin: true,
                        isolated: false,
                    },
                )
                .unwrap();
        });
        let address_only = net(address).addr();
        self.firewall
            .add_sender(&SenderRules {
                interface,
                mac,
                addresses: vec![address_only],
            })
            .unwrap();
        give(&namespace, address, gateway);
        Container {
            namespace,
            address: address_only,
        }
    }

    fn publish(&self, protocol: Protocol, host: &str, to: &str) -> PortMapping {
        let mapping = PortMapping {
            protocol,
            host: at(host),
            to: at(to),
        };
        // In the host's namespace, because the host's own addresses are checked.
        inside(&self.namespace, || {
            self.firewall.publish(&[mapping]).unwrap()
        });
        mapping
    }
}

fn give(namespace: &OwnedFd, address: &str, gateway: &str) {
    inside(namespace, || {
        let mut links = Links::open().unwrap();
        let index = links.find("eth0").unwrap().unwrap().index;
        links.add_address(index, net(address)).unwrap();
        links.set_up(index).unwrap();
        let everywhere = if net(address).addr().is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        links
            .add_route(index, net(everywhere), Some(gateway.parse().unwrap()), 0)
            .unwrap();
    });
}

/// Serves connections in a namespace: answers with the client's address.
fn serve(namespace: &OwnedFd, port: u16) {
    // A dual-stack socket.
    let listener = inside(namespace, || TcpListener::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = write!(
                stream,
                "{}",
                stream.peer_addr().unwrap().ip().to_canonical()
            );
        }
    });
}

/// Connects and returns the client address that the server saw, or `None` if nothing answers.
fn ask(namespace: &OwnedFd, server: &str) -> Option<String> {
    const LIMIT: Duration = Duration::from_secs(1);
    let stream = inside(namespace, || TcpStream::connect_timeout(&at(server), LIMIT)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = String::new();
    { stream }.read_to_string(&mut text).ok()?;
    Some(text)
}

/// How long an expected packet may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Like `ask`, with retries: a first packet may be lost while the kernel resolves neighbours.
fn answer(namespace: &OwnedFd, server: &str) -> Option<String> {
    let begin = Instant::now();
    loop {
        match ask(namespace, server) {
            None if begin.elapsed() < PATIENCE => {}
            said => return said,
        }
    }
}

#[test]
fn published_ports_are_reachable_from_host_neighbours_and_outside() {
    let host = Host::new();
    host.bridge("br1", "10.77.1.1/24", false);
    let server = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    let neighbour = host.container("br1", 3, "10.77.1.3/24", "10.77.1.1");
    serve(&server.namespace, 80);
    assert_eq!(
        ask(&host.outside, "198.51.100.1:8080"),
        None,
        "not published yet"
    );
    host.publish(Protocol::Tcp, "0.0.0.0:8080", "10.77.1.2:80");
    assert_eq!(
        answer(&host.outside, "198.51.100.1:8080").as_deref(),
        Some("198.51.100.2"),
        "the client's own address"
    );
    assert_eq!(
        answer(&host.namespace, "127.0.0.1:8080").as_deref(),
        Some("10.77.1.1"),
        "from the host's loopback"
    );
    assert!(
        answer(&host.namespace, "198.51.100.1:8080").is_some(),
        "from the host by its address"
    );
    assert_eq!(
        answer(&neighbour.namespace, "198.51.100.1:8080").as_deref(),
        Some("10.77.1.1"),
        "from a neighbour, back to its own bridge"
    );
    assert_eq!(
        answer(&server.namespace, "198.51.100.1:8080").as_deref(),
        Some("10.77.1.1"),
        "from itself"
    );
    assert_eq!(
        answer(&host.namespace, "10.77.1.2:80").as_deref(),
        Some("10.77.1.1")
    );
    assert_eq!(
        answer(&neighbour.namespace, "10.77.1.2:80").as_deref(),
        Some("10.77.1.3")
    );
}

#[test]
fn routed_containers_are_reached_by_their_own_addresses() {
    let host = Host::new();
    host.bridge_with("br1", "10.77.1.1/24", |rules| {
        (rules.routed_v4, rules.masquerade_v4) = (true, false)
    });
    host.bridge("br2", "10.77.2.1/24", false);
    host.bridge("br3", "10.77.3.1/24", true);
    let server = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    let other = host.container("br2", 3, "10.77.2.2/24", "10.77.2.1");
    let closed = host.container("br3", 4, "10.77.3.2/24", "10.77.3.1");
    serve(&server.namespace, 80);
    serve(&server.namespace, 81);
    serve(&other.namespace, 80);
    serve(&host.outside, 80);
    assert_eq!(
        ask(&host.outside, "10.77.1.2:80"),
        None,
        "not published yet"
    );
    let mapping = host.publish(Protocol::Tcp, "0.0.0.0:0", "10.77.1.2:80");
    assert_eq!(
        answer(&host.outside, "10.77.1.2:80").as_deref(),
        Some("198.51.100.2")
    );
    assert_eq!(
        answer(&other.namespace, "10.77.1.2:80").as_deref(),
        Some("10.77.2.2"),
        "from another network, as itself"
    );
    assert_eq!(ask(&host.outside, "10.77.1.2:81"), None);
    assert_eq!(ask(&other.namespace, "10.77.1.2:81"), None);
    assert_eq!(ask(&closed.namespace, "10.77.1.2:80"), None);
    // Outgoing traffic is not masqueraded either, and a published port does not open other
    // networks.
    assert_eq!(
        answer(&server.namespace, "198.51.100.2:80").as_deref(),
        Some("10.77.1.2")
    );
    assert_eq!(ask(&server.namespace, "10.77.2.2:80"), None);
    inside(&host.namespace, || {
        host.firewall.withdraw(&[mapping]).unwrap()
    });
    assert_eq!(ask(&host.outside, "10.77.1.2:80"), None);
}

#[test]
fn a_port_on_loopback_is_reachable_from_the_host_only() {
    let host = Host::new();
    host.bridge("br1", "10.77.1.1/24", false);
    let server = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    let neighbour = host.container("br1", 3, "10.77.1.3/24", "10.77.1.1");
    serve(&server.namespace, 80);
    let mapping = host.publish(Protocol::Tcp, "127.0.0.1:8080", "10.77.1.2:80");
    assert!(answer(&host.namespace, "127.0.0.1:8080").is_some());
    for from in [&host.outside, &neighbour.namespace] {
        assert_eq!(ask(from, "198.51.100.1:8080"), None);
    }
    // A neighbour that routes 127.0.0.1 to the host.
    sysctl(&neighbour.namespace, "ipv4.conf.all.route_localnet", "1");
    inside(&neighbour.namespace, || {
        let mut links = Links::open().unwrap();
        let index = links.find("eth0").unwrap().unwrap().index;
        links
            .add_route(
                index,
                net("127.0.0.1/32"),
                Some("10.77.1.1".parse().unwrap()),
                0,
            )
            .unwrap();
    });
    assert_eq!(ask(&neighbour.namespace, "127.0.0.1:8080"), None);
    // A machine on the host's network that routes 127.0.0.1 to the host.
    sysctl(&host.outside, "ipv4.conf.all.route_localnet", "1");
    sysctl(&host.namespace, "ipv4.conf.all.route_localnet", "1");
    inside(&host.outside, || {
        let mut links = Links::open().unwrap();
        let (loopback, index) = (
            links.find("lo").unwrap().unwrap().index,
            links.find("eth0").unwrap().unwrap().index,
        );
        links.remove_address(loopback, net("127.0.0.1/8")).unwrap();
        links
            .add_route(
                index,
                net("127.0.0.1/32"),
                Some("198.51.100.1".parse().unwrap()),
                0,
            )
            .unwrap();
    });
    assert_eq!(ask(&host.outside, "127.0.0.1:8080"), None);
    host.firewall.withdraw(&[mapping]).unwrap();
    assert_eq!(ask(&host.namespace, "127.0.0.1:8080"), None, "withdrawn");
}

#[test]
fn host_connections_to_ipv6_loopback_are_redirected_to_containers() {
    const FILTER: &str = "bridge.bridge-nf-call-ip6tables";
    let host = Host::new();
    sysctl(&host.namespace, "ipv6.conf.all.forwarding", "1");
    host.bridge("br1", "fd77:1::1/64", false);
    host.bridge("br2", "fd77:2::1/64", false);
    inside(&host.namespace, || {
        let mut links = Links::open().unwrap();
        // The second time for br1, as when an engine restarts.
        for bridge in ["br1", "br2", "br1"] {
            let index = links.find(bridge).unwrap().unwrap().index;
            links.add_ipv6_loopback_route(index).unwrap();
        }
    });
    let server = host.container("br1", 2, "fd77:1::2/64", "fd77:1::1");
    let other = host.container("br2", 4, "fd77:2::2/64", "fd77:2::1");
    let neighbour = host.container("br1", 3, "fd77:1::3/64", "fd77:1::1");
    serve(&server.namespace, 80);
    serve(&other.namespace, 80);
    host.publish(Protocol::Tcp, "[::1]:8080", "[fd77:1::2]:80");
    host.publish(Protocol::Tcp, "[::]:8081", "[fd77:1::2]:80");
    host.publish(Protocol::Tcp, "[::1]:8082", "[fd77:2::2]:80");
    let filters = inside(&host.namespace, || {
        std::fs::exists("/proc/sys/net/bridge").unwrap()
    });
    if filters {
        sysctl(&host.namespace, FILTER, "1");
        assert!(!inside(&host.namespace, || host
            .firewall
            .redirect_ipv6_loopback()
            .unwrap()));
        for port in ["[::1]:8080", "[::1]:8081"] {
            // What is lost takes a second each time; a machine may be busy once.
            let is_refused = |_| {
                let asked = Instant::now();
                assert_eq!(ask(&host.namespace, port), None);
                asked.elapsed() < Duration::from_millis(900)
            };
            assert!((0..5).any(is_refused), "not refused, but lost");
        }
        sysctl(&host.namespace, FILTER, "0");
    }
    assert!(inside(&host.namespace, || host
        .firewall
        .redirect_ipv6_loopback()
        .unwrap()));
    for port in ["[::1]:8080", "[::1]:8081"] {
        assert_eq!(answer(&host.namespace, port).as_deref(), Some("fd77:1::1"));
    }
    assert_eq!(
        answer(&host.namespace, "[::1]:8082").as_deref(),
        Some("fd77:2::1"),
        "behind another bridge"
    );
    assert!(answer(&neighbour.namespace, "[fd77:1::1]:8081").is_some());
    assert_eq!(
        ask(&neighbour.namespace, "[fd77:1::1]:8080"),
        None,
        "on ::1 only"
    );
    // A neighbour that routes ::1 to the host, whether or not the host filters bridged packets.
    inside(&neighbour.namespace, || {
        let mut links = Links::open().unwrap();
        let index = links.find("eth0").unwrap().unwrap().index;
        let loopback = links.find("lo").unwrap().unwrap().index;
        links.remove_address(loopback, net("::1/128")).unwrap();
        links
            .add_route(index, net("::1/128"), Some("fd77:1::1".parse().unwrap()), 0)
            .unwrap();
    });
    // It reaches the host's own servers, but not by ::1.
    serve(&host.namespace, 8090);
    for filter in ["0", "1"] {
        if filters {
            sysctl(&host.namespace, FILTER, filter);
        }
        assert!(answer(&neighbour.namespace, "[fd77:1::1]:8090").is_some());
        for port in ["[::1]:8080", "[::1]:8081", "[::1]:8090"] {
            assert_eq!(ask(&neighbour.namespace, port), None);
        }
    }
}

#[test]
fn isolated_containers_are_unreachable() {
    let host = Host::new();
    host.bridge("br1", "10.77.1.1/24", false);
    host.bridge("br2", "10.77.2.1/24", false);
    host.bridge("shut", "10.77.3.1/24", true);
    let one = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    let two = host.container("br2", 3, "10.77.2.2/24", "10.77.2.1");
    let shut = host.container("shut", 4, "10.77.3.2/24", "10.77.3.1");
    let shut_too = host.container("shut", 5, "10.77.3.3/24", "10.77.3.1");
    for container in [&one, &two, &shut, &shut_too] {
        serve(&container.namespace, 80);
    }
    serve(&host.outside, 80);
    // From the outside by routing to the containers' addresses.
    assert_eq!(ask(&host.outside, "10.77.1.2:80"), None);
    assert_eq!(ask(&host.outside, "10.77.3.2:80"), None);
    // From one network to another.
    assert_eq!(ask(&one.namespace, "10.77.2.2:80"), None);
    assert_eq!(ask(&one.namespace, "10.77.3.2:80"), None);
    assert_eq!(ask(&shut.namespace, "10.77.1.2:80"), None);
    // To the outside: masqueraded, or blocked.
    assert_eq!(
        answer(&one.namespace, "198.51.100.2:80").as_deref(),
        Some("198.51.100.1")
    );
    assert_eq!(ask(&shut.namespace, "198.51.100.2:80"), None);
    assert_eq!(
        answer(&shut.namespace, "10.77.3.3:80").as_deref(),
        Some("10.77.3.2"),
        "inside it talks"
    );
    // A port published on another network can be used, but not from an internal one.
    host.publish(Protocol::Tcp, "0.0.0.0:8080", "10.77.2.2:80");
    assert_eq!(
        answer(&one.namespace, "198.51.100.1:8080").as_deref(),
        Some("10.77.1.2")
    );
    assert_eq!(ask(&shut.namespace, "10.77.3.1:8080"), None);
}

#[test]
fn outgoing_packets_have_the_address_of_the_network() {
    let host = Host::new();
    inside(&host.namespace, || {
        let mut links = Links::open().unwrap();
        let outer = links.find("outer").unwrap().unwrap().index;
        links.add_address(outer, net("198.51.100.7/24")).unwrap();
        links.add_address(outer, net("fd99::1/64")).unwrap();
        links.add_address(outer, net("fd99::7/64")).unwrap();
    });
    give(&host.outside, "fd99::2/64", "fd99::1");
    sysctl(&host.namespace, "ipv6.conf.all.forwarding", "1");
    serve(&host.outside, 80);
    for (bridge, address, gateway, target, source) in [
        (
            "br1",
            "10.77.1.2/24",
            "10.77.1.1",
            "198.51.100.2:80",
            "198.51.100.7",
        ),
        (
            "br2",
            "fd77:1::2/64",
            "fd77:1::1",
            "[fd99::2]:80",
            "fd99::7",
        ),
    ] {
        let own = format!("{gateway}/{}", net(address).prefix_len());
        host.bridge_with(bridge, &own, |rules| {
            rules.host_v4 = Some("198.51.100.7".parse().unwrap());
            rules.host_v6 = Some("fd99::7".parse().unwrap());
        });
        let number = bridge.as_bytes()[2] - b'0' + 1;
        let one = host.container(bridge, number, address, gateway);
        let seen = Some(source);
        assert_eq!(answer(&one.namespace, target).as_deref(), seen);
        // Also after all rules were written again.
        inside(&host.namespace, || host.firewall.restore()).unwrap();
        assert_eq!(answer(&one.namespace, target).as_deref(), seen);
    }
}

#[test]
fn spoofed_source_addresses_are_dropped() {
    const SILENCE: Duration = Duration::from_secs(1);
    let host = Host::new();
    host.bridge("br1", "10.77.1.1/24", false);
    let liar = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    let victim = host.container("br1", 3, "10.77.1.3/24", "10.77.1.1");
    let listener = inside(&victim.namespace, || {
        UdpSocket::bind((victim.address, 5000)).unwrap()
    });
    let say = |text: &str, source: &str| {
        inside(&liar.namespace, || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.send_to(text.as_bytes(), "10.77.1.3:5000").unwrap();
        });
    };
    // Waits longer for what is expected.
    let heard = |limit: Duration| {
        let mut buffer = [0; 16];
        listener.set_read_timeout(Some(limit)).unwrap();
        listener
            .recv_from(&mut buffer)
            .ok()
            .map(|(length, _)| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    say("honest", "10.77.1.2");
    assert_eq!(heard(PATIENCE).as_deref(), Some("honest"));
    inside(&liar.namespace, || {
        let mut links = Links::open().unwrap();
        let index = links.find("eth0").unwrap().unwrap().index;
        links.add_address(index, net("10.77.1.9/24")).unwrap();
        links.add_address(index, net("192.0.2.7/32")).unwrap();
    });
    say("neighbour", "10.77.1.9");
    assert_eq!(
        heard(SILENCE),
        None,
        "an address of the network that is not its own"
    );
    say("stranger", "192.0.2.7");
    assert_eq!(heard(SILENCE), None, "an address from elsewhere");
    say("honest", "10.77.1.2");
    assert_eq!(heard(PATIENCE).as_deref(), Some("honest"));
}

#[test]
fn deleted_rules_are_restored() {
    let host = Host::new();
    host.bridge("br1", "10.77.1.1/24", false);
    let server = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    serve(&server.namespace, 80);
    host.publish(Protocol::Tcp, "0.0.0.0:8080", "10.77.1.2:80");
    assert!(host.firewall.is_complete());
    inside(&host.namespace, || {
        Firewall::new("whelktest").unwrap().remove().unwrap()
    });
    assert!(!host.firewall.is_complete());
    assert_eq!(ask(&host.outside, "198.51.100.1:8080"), None);
    host.firewall.restore().unwrap();
    assert!(answer(&host.outside, "198.51.100.1:8080").is_some());
    // A second restore changes the ruleset, which stays complete.
    let generation = host.firewall.generation().unwrap();
    host.firewall.restore().unwrap();
    assert!(host.firewall.generation().unwrap() > generation);
    assert!(host.firewall.is_complete());
    // The next change notices missing tables too.
    inside(&host.namespace, || {
        Firewall::new("whelktest").unwrap().remove().unwrap()
    });
    host.publish(Protocol::Tcp, "0.0.0.0:8081", "10.77.1.2:80");
    for port in ["198.51.100.1:8080", "198.51.100.1:8081"] {
        assert!(answer(&host.outside, port).is_some(), "{port}");
    }
}

#[test]
fn a_steady_udp_sender_reaches_a_port_that_is_published_later() {
    let host = Host::new();
    host.bridge("br1", "10.77.1.1/24", false);
    let server = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    let listener = inside(&server.namespace, || {
        UdpSocket::bind("0.0.0.0:9000").unwrap()
    });
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    // A socket on the host receives first, so that the kernel creates a conntrack entry.
    let other = inside(&host.namespace, || UdpSocket::bind("0.0.0.0:9000").unwrap());
    let sender = inside(&host.outside, || UdpSocket::bind("0.0.0.0:7000").unwrap());
    let mut buffer = [0; 16];
    sender.send_to(b"early", "198.51.100.1:9000").unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    other.recv_from(&mut buffer).unwrap();
    host.publish(Protocol::Udp, "0.0.0.0:9000", "10.77.1.2:9000");
    sender.send_to(b"late", "198.51.100.1:9000").unwrap();
    let (length, _) = listener
        .recv_from(&mut buffer)
        .expect("what is sent later arrives at the container");
    assert_eq!(&buffer[..length], b"late");
}

/// One container creates more connections than the conntrack table holds; others can still connect.
#[test]
fn a_flood_of_connections_affects_only_its_sender() {
    /// Larger tables take longer to fill than a test may take.
    const MOST: usize = 300_000;
    let most: usize = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if most > MOST {
        return whelk_tests::skipped!("the table of connections is too large to be filled");
    }
    let host = Host::new();
    host.bridge("br1", "10.77.1.1/24", false);
    let flood = host.container("br1", 2, "10.77.1.2/24", "10.77.1.1");
    let other = host.container("br1", 3, "10.77.1.3/24", "10.77.1.1");
    serve(&other.namespace, 80);
    serve(&host.outside, 80);
    host.publish(Protocol::Tcp, "0.0.0.0:8080", "10.77.1.3:80");
    let mut sent = 0;
    while sent < most + most / 10 {
        let socket = inside(&flood.namespace, || UdpSocket::bind("0.0.0.0:0").unwrap());
        for port in 1..u16::MAX {
            // Some are lost or refused, which does not matter.
            sent += usize::from(socket.send_to(b"x", ("198.51.100.2", port)).is_ok());
        }
    }
    let remembered = inside(&host.namespace, || {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap()
    });
    assert!(
        remembered.trim().parse::<usize>().unwrap() > most * 9 / 10,
        "{remembered} of {most}: that was no flood"
    );
    for _ in 0..50 {
        assert!(answer(&other.namespace, "198.51.100.2:80").is_some());
        assert!(answer(&host.outside, "198.51.100.1:8080").is_some());
    }
}
