//! Answering a container's questions for names: what is in its networks from here, the rest from
//! resolvers outside, which are asked through the container's own network.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use whelk_network::dns::{self, Known, Question, Verdict};
use whelk_network::names::{NameSockets, RESOLVER};
use whelk_sys::fs;

use super::resolv_conf::{NameServer, ResolvConf};
use super::{Networks, endpoints};
use crate::error::{Error, Result};
use crate::model::ContainerRecord;

/// How long one resolver of the host may take, before the next is asked: as with Docker.
const PATIENCE: Duration = Duration::from_secs(4);
/// How many questions of one container may be on their way to the host's resolvers: a flood stays
/// its own problem.
const IN_FLIGHT: usize = 256;
/// How many connections (questions over TCP) one container may have. Each may hold a message of the
/// largest size.
const CONNECTIONS: usize = 32;
/// The largest answer: what a datagram can hold.
const LARGEST: usize = 65_535;
/// The largest question that comes in a datagram.
const LARGEST_QUESTION: usize = 4096;
const PORT: u16 = 53;
const LARGEST_FILE: u64 = 1 << 20;

impl Networks {
    /// Starts answering for a container, unless it is on the default network alone: there the
    /// host's own resolvers are asked, as with Docker.
    pub(super) fn start_resolver(
        &self,
        record: &ContainerRecord,
        namespace: BorrowedFd<'_>,
        sockets: Option<NameSockets>,
    ) -> Result<()> {
        let Some(networks) = self.this.upgrade() else {
            return Ok(());
        };
        let mut resolvers = self
            .resolvers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !uses_resolver(record) || resolvers.contains_key(&record.id) {
            return Ok(());
        }
        let failed = |error: std::io::Error| Error::internal(format!("answer names: {error}"));
        let sockets = match sockets {
            Some(sockets) => sockets,
            None => whelk_network::names::open(namespace)?,
        };
        // Entering these into the runtime needs its context, which a blocking thread of it has.
        let udp = UdpSocket::from_std(sockets.udp).map_err(failed)?;
        let tcp = TcpListener::from_std(sockets.tcp).map_err(failed)?;
        let resolver = Arc::new(Resolver {
            networks: Arc::downgrade(&networks),
            container: record.id.clone(),
            servers: servers(record, &self.instance.networks.servers),
            namespace: Arc::new(namespace.try_clone_to_owned().map_err(failed)?),
            permits: Arc::new(Semaphore::new(IN_FLIGHT)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        });
        let task = tokio::spawn(async move {
            tokio::join!(
                serve_udp(resolver.clone(), Arc::new(udp)),
                serve_tcp(resolver, tcp)
            );
        });
        resolvers.insert(record.id.clone(), task);
        Ok(())
    }

    /// What a container may know of a name: what is in the networks that it is in itself.
    pub fn look_up(&self, container: &str, question: &Question) -> Known {
        let state = self.state();
        let own = || {
            state
                .values()
                .filter(|network| network.record.name != "bridge")
                .filter_map(|network| Some((network, network.members.get(container)?)))
        };
        match question {
            Question::Address(name) => {
                let mut found: Vec<IpAddr> = Vec::new();
                let mut known = false;
                for (network, me) in own() {
                    // `web.net` names a container in one network.
                    let suffix = format!(".{}", network.record.name.to_ascii_lowercase());
                    let plain = name.strip_suffix(&suffix).unwrap_or(name);
                    let linked = me
                        .links
                        .iter()
                        .find(|(_, alias)| alias == plain)
                        .map(|(target, _)| target.as_str());
                    for (id, member) in &network.members {
                        let matches = match linked {
                            Some(target) => member.name == target || id.starts_with(target),
                            None => member.names.iter().any(|other| other == plain),
                        };
                        if matches {
                            known = true;
                            found.extend(member.addresses.iter().map(ipnet::IpNet::addr));
                        }
                    }
                }
                // Another one first each time: whoever takes the first address spreads the load.
                if found.len() > 1 {
                    // Scattered, or the two questions of a client that wants both families would go
                    // hand in hand.
                    const GOLDEN: usize = 0x9E37_79B9;
                    let turn = self
                        .turn
                        .fetch_add(1, Ordering::Relaxed)
                        .wrapping_mul(GOLDEN)
                        >> 16;
                    found.sort_by_key(IpAddr::is_ipv6);
                    let ipv4 = found.partition_point(IpAddr::is_ipv4);
                    let (four, six) = found.split_at_mut(ipv4);
                    for family in [four, six].into_iter().filter(|family| !family.is_empty()) {
                        family.rotate_left(turn % family.len());
                    }
                }
                if known {
                    Known::Addresses(found)
                } else {
                    Known::Nothing
                }
            }
            Question::Name(address) => own()
                .find_map(|(network, _)| {
                    let member = network.members.values().find(|member| {
                        member
                            .addresses
                            .iter()
                            .any(|known| known.addr() == *address)
                    })?;
                    Some(Known::Name(format!(
                        "{}.{}",
                        member.name, network.record.name
                    )))
                })
                .unwrap_or(Known::Nothing),
        }
    }

    /// Whether a container may ask the outside for names: not from internal networks alone
    /// (CVE-2024-29018).
    fn may_ask_outside(&self, container: &str) -> bool {
        self.state()
            .values()
            .any(|network| !network.record.internal && network.members.contains_key(container))
    }
}

/// Whether a container asks us for names.
pub(crate) fn uses_resolver(record: &ContainerRecord) -> bool {
    endpoints::has_own_networks(&record.host.network_mode)
        && record
            .networks
            .keys()
            .any(|name| !matches!(name.as_str(), "bridge" | "none"))
}

/// A resolver that questions are passed on to.
#[derive(Clone, Copy, Debug)]
struct Server {
    address: SocketAddr,
    /// Asked from the host: the container's own network does not lead there.
    from_host: bool,
}

/// The servers that questions are passed on to: the container's own (`--dns`), those set for all,
/// or the host's.
fn servers(record: &ContainerRecord, set: &[IpAddr]) -> Vec<Server> {
    let given: Vec<IpAddr> = record
        .host
        .dns
        .iter()
        .flatten()
        .filter_map(|text| text.parse().ok())
        .collect();
    let has_ipv6 = record
        .networks
        .values()
        .any(|endpoint| !endpoint.global_ipv6_address.is_empty());
    let server = |address: IpAddr, from_host: bool| Server {
        address: SocketAddr::new(address, PORT),
        from_host,
    };
    let servers: Vec<Server> = if !given.is_empty() {
        given
            .into_iter()
            .map(|address| server(address, false))
            .collect()
    } else if !set.is_empty() {
        set.iter().map(|address| server(*address, false)).collect()
    } else {
        let from_host = |found: &NameServer| {
            found.address.is_loopback()
                || !found.zone.is_empty()
                || found.address.is_ipv6() && !has_ipv6
        };
        let reached = |found: NameServer| {
            Some(Server {
                address: socket_address(&found)?,
                from_host: from_host(&found),
            })
        };
        host_resolver()
            .servers
            .into_iter()
            .filter_map(reached)
            .collect()
    };
    servers
        .into_iter()
        .filter(|server| server.address.ip() != IpAddr::V4(RESOLVER))
        .collect()
}

/// Where a server of the host's listens; `None` for one on an interface that is gone.
fn socket_address(server: &NameServer) -> Option<SocketAddr> {
    match server.address {
        IpAddr::V6(address) if !server.zone.is_empty() => {
            let index = || {
                fs::read_to_string(format!("/sys/class/net/{}/ifindex", server.zone))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            // By number, or by the interface's name.
            let scope = server.zone.parse().ok().or_else(|| {
                if server.zone.contains('/') {
                    None
                } else {
                    index()
                }
            })?;
            Some(SocketAddrV6::new(address, PORT, 0, scope).into())
        }
        address => Some(SocketAddr::new(address, PORT)),
    }
}

/// How the host asks for names.
pub(crate) fn host_resolver() -> ResolvConf {
    read("/etc/resolv.conf")
}

/// The servers that systemd-resolved asks. Where the host asks nobody else, these are reached from
/// containers, and it is not.
pub(crate) fn resolved_servers() -> Vec<NameServer> {
    read("/run/systemd/resolve/resolv.conf").servers
}

fn read(path: &str) -> ResolvConf {
    let text = fs::read_at_most(path, LARGEST_FILE).unwrap_or_default();
    ResolvConf::parse(&String::from_utf8_lossy(&text))
}

#[derive(Debug)]
struct Resolver {
    networks: Weak<Networks>,
    container: String,
    servers: Vec<Server>,
    /// The container's network.
    namespace: Arc<OwnedFd>,
    permits: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Resolver {
    fn answer(&self, packet: &[u8], stream: bool) -> Verdict {
        let Some(networks) = self.networks.upgrade() else {
            return Verdict::Ignore;
        };
        let verdict = dns::answer(packet, stream, |question| {
            networks.look_up(&self.container, question)
        });
        match verdict {
            Verdict::Forward
                if self.servers.is_empty() || !networks.may_ask_outside(&self.container) =>
            {
                refuse(packet)
            }
            verdict => verdict,
        }
    }

    /// Asks the servers in their order. What one says is passed on as it is; where it says that it
    /// cannot tell, the next one is asked.
    async fn forward(&self, packet: &[u8], stream: bool) -> Option<Vec<u8>> {
        let mut refused = None;
        for server in &self.servers {
            let asking = async {
                if stream {
                    self.ask_stream(*server, packet).await
                } else {
                    self.ask(*server, packet).await
                }
            };
            match tokio::time::timeout(PATIENCE, asking).await {
                Ok(Ok(reply)) if dns::is_refusal(&reply) => refused = refused.or(Some(reply)),
                Ok(Ok(reply)) => return Some(reply),
                _ => {}
            }
        }
        refused.or_else(|| dns::failure(packet))
    }

    async fn ask(&self, server: Server, packet: &[u8]) -> std::io::Result<Vec<u8>> {
        let any: SocketAddr = if server.address.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = self
            .open(server, move || {
                let socket = std::net::UdpSocket::bind(any)?;
                socket.set_nonblocking(true).map(|()| socket)
            })
            .await?;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(server.address).await?;
        socket.send(packet).await?;
        let mut reply = vec![0; LARGEST];
        loop {
            let length = socket.recv(&mut reply).await?;
            // The id is what ties an answer to a question.
            if length >= 2 && reply[..2] == packet[..2] {
                reply.truncate(length);
                return Ok(reply);
            }
        }
    }

    async fn ask_stream(&self, server: Server, packet: &[u8]) -> std::io::Result<Vec<u8>> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        let family = if server.address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = self
            .open(server, move || {
                Ok(socket_with(family, SocketType::STREAM, flags, None)?)
            })
            .await?;
        let mut stream = TcpSocket::from_std_stream(socket.into())
            .connect(server.address)
            .await?;
        write_framed(&mut stream, packet).await?;
        read_framed(&mut stream).await
    }

    /// A socket in the container's own network: what it asks takes the container's ways, and meets
    /// the rules about it.
    async fn open<T: Send + 'static>(
        &self,
        server: Server,
        make: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        if server.from_host {
            return make();
        }
        let namespace = self.namespace.clone();
        let opened = tokio::task::spawn_blocking(move || {
            whelk_sys::net::within(namespace.as_fd(), make).flatten()
        });
        opened.await.map_err(std::io::Error::other)?
    }
}

fn refuse(packet: &[u8]) -> Verdict {
    dns::failure(packet).map_or(Verdict::Ignore, Verdict::Reply)
}

/// Over TCP each message has its length in front (RFC 1035 4.2.2).
async fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

async fn write_framed(stream: &mut TcpStream, packet: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await
}

async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; LARGEST_QUESTION];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            // An error that an earlier answer left on the socket; one that stays must not spin.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        match resolver.answer(&buffer[..length], false) {
            Verdict::Reply(reply) => drop(socket.send_to(&reply, client).await),
            Verdict::Ignore => {}
            Verdict::Forward => {
                // With too many on their way the client asks again, later.
                let Ok(permit) = resolver.permits.clone().try_acquire_owned() else {
                    continue;
                };
                let (resolver, socket, packet) =
                    (resolver.clone(), socket.clone(), buffer[..length].to_vec());
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Some(reply) = resolver.forward(&packet, false).await {
                        let _ = socket.send_to(&reply, client).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    /// A connection without a question for this long is ended.
    const IDLE: Duration = Duration::from_secs(10);
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Ok(permit) = resolver.connections.clone().try_acquire_owned() else {
            continue;
        };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            let _permit = permit;
            while let Ok(Ok(packet)) = tokio::time::timeout(IDLE, read_framed(&mut stream)).await {
                let reply = match resolver.answer(&packet, true) {
                    Verdict::Reply(reply) => Some(reply),
                    Verdict::Ignore => None,
                    Verdict::Forward => resolver.forward(&packet, true).await,
                };
                let Some(reply) = reply else { return };
                // Who asks and does not read is not waited for.
                if !matches!(
                    tokio::time::timeout(IDLE, write_framed(&mut stream, &reply)).await,
                    Ok(Ok(()))
                ) {
                    return;
                }
            }
        });
    }
}
