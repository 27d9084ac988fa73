//! The embedded DNS server of a sandbox: answers queries about containers in its networks, and
//! forwards others to upstream servers, from the container's own network namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use whelk_network::dns::{self, Verdict};
use whelk_network::dns_sockets::{DnsSockets, RESOLVER};
use whelk_sys::fs;

use super::{Held, Sandbox, SandboxConfig, Sandboxes};
use crate::error::{Error, Result};
use crate::model::NetworkMode;
use crate::networks::resolv_conf::{NameServer, ResolvConf};
use crate::networks::{Endpoint, Networks};

/// How long to wait for an upstream server before the next is tried, as in Docker.
const SERVER_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of forwarded UDP queries of one container at a time, so that a flood affects only
/// its sender.
const MAX_FORWARDED: usize = 256;
/// Maximum number of TCP connections of one container. Each may buffer a message of the maximum
/// size.
const MAX_CONNECTIONS: usize = 32;
/// Maximum size in bytes of an answer: what a datagram can hold.
const MAX_ANSWER: usize = 65_535;
/// Maximum size in bytes of a UDP query.
const MAX_QUERY: usize = 4096;
const PORT: u16 = 53;
const MAX_RESOLV_CONF: u64 = 1 << 20;

/// The task of a DNS server, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct ResolverTask(tokio::task::JoinHandle<()>);

impl Drop for ResolverTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sandboxes {
    /// Starts a sandbox's DNS server, unless it is on the default network only: such containers
    /// query the host's servers directly, as in Docker.
    pub(super) fn start_resolver(
        &self,
        config: &SandboxConfig,
        sandbox: &Sandbox,
        sockets: Option<DnsSockets>,
    ) -> Result<()> {
        if !uses_resolver(&config.mode, &sandbox.endpoints) {
            return Ok(());
        }
        let mut held = self.held.lock().ignore_poison();
        let Some(Held {
            namespace,
            resolver: resolver @ None,
        }) = held.get_mut(&config.id)
        else {
            return Ok(());
        };
        let failed =
            |error: std::io::Error| Error::internal(format!("start the DNS server: {error}"));
        let sockets = match sockets {
            Some(sockets) => sockets,
            None => whelk_network::dns_sockets::open(namespace.as_fd())?,
        };
        // Registering sockets needs the runtime's context, which its blocking threads have.
        let udp = UdpSocket::from_std(sockets.udp).map_err(failed)?;
        let tcp = TcpListener::from_std(sockets.tcp).map_err(failed)?;
        let server = Arc::new(Resolver {
            networks: self.networks.clone(),
            container: config.id.clone(),
            servers: servers(
                config,
                sandbox,
                &self.networks.stack.instance.networks.servers,
            ),
            namespace: namespace.clone(),
            permits: Arc::new(Semaphore::new(MAX_FORWARDED)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        });
        let task = tokio::spawn(async move {
            tokio::join!(
                serve_udp(server.clone(), Arc::new(udp)),
                serve_tcp(server, tcp)
            );
        });
        *resolver = Some(ResolverTask(task));
        Ok(())
    }
}

/// Returns whether a sandbox with this network mode and these endpoints uses the embedded DNS
/// server.
pub(crate) fn uses_resolver(mode: &NetworkMode, endpoints: &BTreeMap<String, Endpoint>) -> bool {
    mode.has_own_networks()
        && endpoints
            .keys()
            .any(|name| !matches!(name.as_str(), "bridge" | "none"))
}

/// An upstream DNS server.
#[derive(Clone, Copy, Debug)]
struct Server {
    address: SocketAddr,
    /// Queried from the host's network namespace: it cannot be reached from the container's.
    from_host: bool,
}

/// Returns the upstream servers: the sandbox's own (`--dns`), those of the configuration, or the
/// host's.
fn servers(config: &SandboxConfig, sandbox: &Sandbox, set: &[IpAddr]) -> Vec<Server> {
    let given = &config.dns;
    let has_ipv6 = sandbox
        .endpoints
        .values()
        .any(|endpoint| matches!(&endpoint.assigned, Some(assigned) if assigned.ipv6.is_some()));
    let server = |address: IpAddr, from_host: bool| Server {
        address: SocketAddr::new(address, PORT),
        from_host,
    };
    let servers: Vec<Server> = if !given.is_empty() {
        given
            .iter()
            .map(|address| server(*address, false))
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

/// Returns a host's server's socket address, or `None` if its interface does not exist.
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
            // The zone is an interface's index or name.
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

/// Returns the host's resolver configuration.
pub(crate) fn host_resolver() -> ResolvConf {
    read("/etc/resolv.conf")
}

/// Returns the upstream servers of systemd-resolved. Containers can reach these, but not
/// systemd-resolved itself, which listens on the host's loopback.
pub(crate) fn resolved_servers() -> Vec<NameServer> {
    read("/run/systemd/resolve/resolv.conf").servers
}

fn read(path: &str) -> ResolvConf {
    let text = fs::read_at_most(path, MAX_RESOLV_CONF).unwrap_or_default();
    ResolvConf::parse(&String::from_utf8_lossy(&text))
}

#[derive(Debug)]
struct Resolver {
    networks: Arc<Networks>,
    container: String,
    servers: Vec<Server>,
    /// The container's network namespace.
    namespace: Arc<OwnedFd>,
    permits: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Resolver {
    fn answer(&self, packet: &[u8], stream: bool) -> Verdict {
        let networks = &self.networks;
        let verdict = dns::answer(packet, stream, |question| {
            networks.look_up(&self.container, question)
        });
        match verdict {
            Verdict::Forward
                if self.servers.is_empty() || !networks.may_forward(&self.container) =>
            {
                servfail(packet)
            }
            verdict => verdict,
        }
    }

    /// Queries the servers in order and returns the first reply unchanged. A refusal is returned
    /// only if no server gives another reply.
    async fn forward(&self, packet: &[u8], stream: bool) -> Option<Vec<u8>> {
        let mut refused = None;
        for server in &self.servers {
            let asking = async {
                if stream {
                    self.query_tcp(*server, packet).await
                } else {
                    self.query_udp(*server, packet).await
                }
            };
            match tokio::time::timeout(SERVER_TIMEOUT, asking).await {
                Ok(Ok(reply)) if dns::is_refusal(&reply) => refused = refused.or(Some(reply)),
                Ok(Ok(reply)) => return Some(reply),
                _ => {}
            }
        }
        refused.or_else(|| dns::failure(packet))
    }

    async fn query_udp(&self, server: Server, packet: &[u8]) -> std::io::Result<Vec<u8>> {
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
        let mut reply = vec![0; MAX_ANSWER];
        loop {
            let length = socket.recv(&mut reply).await?;
            // The message id associates a reply with a query.
            if length >= 2 && reply[..2] == packet[..2] {
                reply.truncate(length);
                return Ok(reply);
            }
        }
    }

    async fn query_tcp(&self, server: Server, packet: &[u8]) -> std::io::Result<Vec<u8>> {
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

    /// Creates a socket in the container's network namespace, where its routes and firewall rules
    /// apply.
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

fn servfail(packet: &[u8]) -> Verdict {
    dns::failure(packet).map_or(Verdict::Ignore, Verdict::Reply)
}

/// Reads a message with its length in front, as over TCP (RFC 1035 section 4.2.2).
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
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            // Either an error of an earlier answer (ICMP), or a persistent one, which must not
            // cause a busy loop.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        match resolver.answer(&buffer[..length], false) {
            Verdict::Reply(reply) => drop(socket.send_to(&reply, client).await),
            Verdict::Ignore => {}
            Verdict::Forward => {
                // Too many are pending: the query is dropped, and the client retries.
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
    /// A connection is closed if no query arrives for this long.
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
                // A client that does not read its answer must not block the connection's task.
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
