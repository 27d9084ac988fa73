//! The engine's listeners: reads `--host`, `--buildkit-host` and the TLS settings, and binds all sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use whelk_api::{Inherited, Listener, Tls, TlsFiles};
use whelk_sys::fs;

use crate::{daemon, systemd};

/// The TLS settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsSettings {
    pub tls: Option<bool>,
    pub tlsverify: Option<bool>,
    pub tlscacert: Option<PathBuf>,
    pub tlscert: Option<PathBuf>,
    pub tlskey: Option<PathBuf>,
}

impl TlsSettings {
    /// As with Docker, `tlsverify` enables TLS even if it is false, and TLS verifies clients by
    /// default.
    fn mode(&self) -> Mode {
        match (self.tls, self.tlsverify) {
            (_, Some(true)) | (Some(true), None) => Mode::Verified,
            (_, Some(false)) => Mode::Unverified,
            (Some(false), None) => Mode::Plain,
            (None, None) => Mode::Unset,
        }
    }

    /// Checks that files are given only for TLS. Docker ignores them without it, and serves everybody.
    fn check_files(&self, mode: Mode) -> anyhow::Result<()> {
        let files = [
            ("tlscacert", &self.tlscacert),
            ("tlscert", &self.tlscert),
            ("tlskey", &self.tlskey),
        ];
        let given = files.iter().find(|(_, path)| path.is_some());
        match (mode, given) {
            (Mode::Plain, Some((name, _))) => {
                bail!(
                    "{name}: without TLS, the file is not used: use --tlsverify, or omit the file"
                )
            }
            // Without TCP hosts: those are rejected.
            (Mode::Unset, Some((name, _))) => {
                tracing::warn!("{name}: the file is not used without --tlsverify");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Reads the certificates.
    fn load(&self, is_verified: bool) -> anyhow::Result<Arc<Tls>> {
        let given = ["DOCKER_CERT_PATH", "DOCKER_CONFIG"]
            .iter()
            .find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
        let default = given.map_or_else(
            || {
                let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
                Path::new(&home).join(".docker")
            },
            PathBuf::from,
        );
        let file = |given: &Option<PathBuf>, name: &str| {
            // Read again on SIGHUP, when the working directory is another one.
            let path = given.clone().unwrap_or_else(|| default.join(name));
            std::path::absolute(&path).with_context(|| format!("TLS: find {}", path.display()))
        };
        Ok(Tls::load(TlsFiles {
            clients: is_verified
                .then(|| file(&self.tlscacert, "ca.pem"))
                .transpose()?,
            certificate: file(&self.tlscert, "cert.pem")?,
            key: file(&self.tlskey, "key.pem")?,
        })?)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Unset,
    /// TCP without TLS was asked for.
    Plain,
    /// TLS without certificates of clients was asked for.
    Unverified,
    Verified,
}

impl Mode {
    /// Returns whether a listener on this TCP address uses TLS.
    ///
    /// # Errors
    /// Returns an error if clients without a certificate could connect to an address that is not a
    /// loopback address, or if that was not asked for: they would have root's privileges.
    fn permits(self, address: SocketAddr) -> anyhow::Result<bool> {
        let is_loopback = address.ip().to_canonical().is_loopback();
        match self {
            Self::Verified => Ok(true),
            Self::Plain | Self::Unverified if is_loopback => Ok(self == Self::Unverified),
            Self::Plain | Self::Unverified => bail!(
                "host tcp://{address}: refused without verifying clients: everyone who can reach this address would have root's privileges; use --tlsverify with --tlscacert, --tlscert and --tlskey, or listen on a unix socket or a loopback address"
            ),
            Self::Unset => bail!(
                "host tcp://{address}: TCP needs certificates: use --tlsverify with --tlscacert, --tlscert and --tlskey{}",
                if is_loopback {
                    ", or --tls=false to let every process of this host connect"
                } else {
                    ""
                }
            ),
        }
    }
}

/// The hosts of an engine as they are configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    pub api: Vec<String>,
    /// Where BuildKit's protocol is served without the API.
    pub buildkit: Vec<String>,
}

impl Hosts {
    fn all(&self) -> impl Iterator<Item = &String> {
        self.api.iter().chain(&self.buildkit)
    }
}

/// The listeners, and what is needed to read their certificates again.
pub(crate) struct Listeners {
    pub api: Vec<Listener>,
    pub buildkit: Vec<Listener>,
    tls: Option<Arc<Tls>>,
}

impl Listeners {
    /// Reads the certificates again, on a thread that may block: connections are accepted meanwhile.
    pub(crate) async fn reload(&self) {
        let Some(tls) = self.tls.clone() else {
            return;
        };
        let read = tokio::task::spawn_blocking(move || tls.reload()).await;
        match read.map_err(std::io::Error::other).flatten() {
            Ok(()) => tracing::info!("SIGHUP: the certificates were read again"),
            Err(error) => tracing::error!("SIGHUP: {error}; the previous certificates stay in use"),
        }
    }
}

/// The hosts of an engine, before their sockets are bound.
struct Plan {
    mode: Mode,
    tls: Option<Arc<Tls>>,
    /// In the order of [`Hosts::all`].
    hosts: Vec<Host>,
}

/// Reads the hosts and the certificates.
fn plan(hosts: &Hosts, settings: &TlsSettings) -> anyhow::Result<Plan> {
    let mode = settings.mode();
    settings.check_files(mode)?;
    let tls = match mode {
        Mode::Verified | Mode::Unverified => Some(settings.load(mode == Mode::Verified)?),
        Mode::Plain | Mode::Unset => None,
    };
    let port = if tls.is_some() { 2376 } else { 2375 };
    let api = hosts.api.iter().map(|host| Host::parse(host, port));
    let buildkit = hosts.buildkit.iter();
    let buildkit = buildkit.map(|host| Host::parse_buildkit(host));
    Ok(Plan {
        mode,
        tls,
        hosts: api.chain(buildkit).collect::<anyhow::Result<_>>()?,
    })
}

/// Checks the hosts and certificates without binding anything. Addresses that are names, and the sockets that
/// systemd passes, are only known when the engine starts.
pub(crate) fn check(hosts: &Hosts, settings: &TlsSettings) -> anyhow::Result<()> {
    let plan = plan(hosts, settings)?;
    for (index, (host, text)) in plan.hosts.iter().zip(hosts.all()).enumerate() {
        if let Host::Tcp(name, port) = host
            && let Some(address) = known_address(name)
        {
            plan.mode.permits(SocketAddr::new(address, *port))?;
        }
        let is_unique = matches!(host, Host::Tcp(_, 0) | Host::Passed(_));
        ensure!(
            is_unique || !plan.hosts[..index].contains(host),
            "host {text} is given twice"
        );
    }
    Ok(())
}

/// Returns the address that a name stands for without a resolver.
fn known_address(name: &str) -> Option<IpAddr> {
    match name {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        name => name.parse().ok(),
    }
}

/// Binds the sockets of all hosts. If one of them fails, none stays open.
pub(crate) async fn listen(
    hosts: &Hosts,
    inherited: anyhow::Result<Vec<systemd::Socket>>,
    settings: &TlsSettings,
    group: Option<u32>,
) -> anyhow::Result<Listeners> {
    let Plan {
        mode,
        tls,
        hosts: parsed,
    } = plan(hosts, settings)?;
    // An error of the passed sockets matters only if they are used.
    let mut passed = match parsed.iter().any(|host| matches!(host, Host::Passed(_))) {
        true => inherited?,
        false => Vec::new(),
    };
    let mut places = Vec::new();
    let mut api = 0;
    for (index, (host, parsed)) in hosts.all().zip(parsed).enumerate() {
        match parsed {
            Host::Unix(path) => places.push(Endpoint::Path(path)),
            Host::Tcp(name, port) => places.push(Endpoint::Port(resolve(host, &name, port).await?)),
            Host::Passed(selector) => {
                for socket in systemd::select(&mut passed, &selector)? {
                    let socket = Inherited::try_from(socket);
                    places.push(Endpoint::Inherited(
                        socket.with_context(|| format!("host {host}"))?,
                    ));
                }
            }
        }
        if index < hosts.api.len() {
            api = places.len();
        }
    }
    for (index, place) in places.iter().enumerate() {
        ensure!(
            !places[..index].iter().any(|other| place.is_same(other)),
            "host {place} is given twice"
        );
    }
    let mut sockets = Vec::new();
    for place in places {
        sockets.push(place.bind(mode, tls.as_ref(), group).await?);
    }
    let buildkit = sockets.split_off(api);
    Ok(Listeners {
        api: sockets,
        buildkit,
        tls,
    })
}

/// What a host's text means.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    Unix(PathBuf),
    /// A host's name or address, and a port.
    Tcp(String, u16),
    /// Sockets that were passed by systemd.
    Passed(String),
}

impl Host {
    fn parse(host: &str, default_port: u16) -> anyhow::Result<Self> {
        if host.strip_prefix("unix://") == Some("") {
            return Ok(Self::Unix(daemon::DEFAULT_SOCKET.into()));
        }
        match host.split_once("://") {
            Some(("unix", path)) => Ok(Self::Unix(std::path::absolute(path)?)),
            Some(("fd", selector)) => Ok(Self::Passed(selector.to_owned())),
            Some(("tcp", address)) => {
                let (name, port) = split(address, default_port).with_context(|| {
                    format!("invalid host {host:?}: expected tcp://[ADDRESS][:PORT]")
                })?;
                // As with Docker; all addresses are 0.0.0.0 or [::].
                let name = if name.is_empty() { "localhost" } else { name };
                Ok(Self::Tcp(name.to_owned(), port))
            }
            _ => bail!(
                "unsupported host {host:?}: expected unix:///PATH, tcp://[ADDRESS][:PORT] or fd://"
            ),
        }
    }

    /// Parses a host for BuildKit's protocol alone.
    fn parse_buildkit(host: &str) -> anyhow::Result<Self> {
        /// The port of BuildKit's own examples.
        const PORT: u16 = 1234;
        let parsed = match host {
            // The API's own default is no socket of BuildKit's.
            "unix://" => None,
            host => Self::parse(host, PORT).ok(),
        };
        match parsed {
            Some(parsed @ (Self::Unix(_) | Self::Tcp(..))) => Ok(parsed),
            _ => bail!(
                "unsupported host {host:?} of BuildKit's protocol: expected unix:///PATH or tcp://[ADDRESS][:PORT]"
            ),
        }
    }
}

/// Splits `[ADDRESS][:PORT]`, where IPv6 addresses are in brackets.
fn split(text: &str, default_port: u16) -> Option<(&str, u16)> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (name, rest) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (address, rest)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_name = !name.contains(['/', '?', '#', '@']);
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if rest.is_empty() => default_port,
        None => return None,
    };
    is_name.then_some((name, port))
}

/// Returns the address to bind: the IPv4 address of a name that has several, as Go does.
async fn resolve(host: &str, name: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host((name, port))
        .await
        .with_context(|| format!("host {host}: resolve {name}"))?
        .collect();
    let first = found.iter().find(|address| address.is_ipv4());
    first
        .or(found.first())
        .copied()
        .with_context(|| format!("host {host}: {name} has no address"))
}

/// Where to listen for requests.
#[derive(Debug)]
enum Endpoint {
    Path(PathBuf),
    Port(SocketAddr),
    Inherited(Inherited),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix://{}", path.display()),
            Self::Port(address) => write!(f, "tcp://{address}"),
            Self::Inherited(socket) => match socket.name() {
                Some(name) => f.write_str(&name),
                None => f.write_str("fd://"),
            },
        }
    }
}

impl Endpoint {
    fn is_same(&self, other: &Self) -> bool {
        // A port that is chosen later, or a passed socket without a path: each is another one.
        let is_unique = match self {
            Self::Path(_) => false,
            Self::Port(address) => address.port() == 0,
            Self::Inherited(socket) => socket.name().is_none(),
        };
        !is_unique && self.to_string() == other.to_string()
    }

    async fn bind(
        self,
        mode: Mode,
        tls: Option<&Arc<Tls>>,
        group: Option<u32>,
    ) -> anyhow::Result<Listener> {
        let permitted = |address: SocketAddr| {
            let with_tls = mode.permits(address)?;
            if mode != Mode::Verified {
                tracing::warn!(
                    "host tcp://{address}: every process of this host, and possibly a script in a browser, can connect and has root's privileges"
                );
            }
            Ok::<_, anyhow::Error>(tls.filter(|_| with_tls).cloned())
        };
        let name = self.to_string();
        match self {
            Self::Path(path) => bind_path(&path, group),
            Self::Port(address) => Ok(Listener::bind_tcp(address, permitted(address)?).await?),
            Self::Inherited(Inherited::Unix(socket)) => {
                Listener::inherit_unix(socket, group).with_context(|| format!("host {name}"))
            }
            Self::Inherited(Inherited::Tcp(socket)) => {
                let tls = permitted(socket.local_addr()?)?;
                Ok(Listener::inherit_tcp(socket, tls)?)
            }
        }
    }
}

fn bind_path(path: &Path, group: Option<u32>) -> anyhow::Result<Listener> {
    Listener::bind(path, group).or_else(|error| {
        if error.kind() == std::io::ErrorKind::ResourceBusy {
            let lock = fs::append(Listener::lock_path(path), 0o600)?;
            let holder = daemon::describe_holder(&lock);
            bail!("{error}{holder}; or listen elsewhere: `--host unix:///PATH`");
        }
        Err(error.into())
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn parses_hosts() {
        let tcp = |name: &str, port| Host::Tcp(name.to_owned(), port);
        for (text, expected) in [
            ("unix:///a/b", Host::Unix("/a/b".into())),
            ("unix://", Host::Unix(daemon::DEFAULT_SOCKET.into())),
            ("fd://", Host::Passed(String::new())),
            ("fd://api", Host::Passed("api".into())),
            ("tcp://", tcp("localhost", 2376)),
            ("tcp://:99", tcp("localhost", 99)),
            ("tcp://0.0.0.0:99", tcp("0.0.0.0", 99)),
            ("tcp://h", tcp("h", 2376)),
            ("tcp://10.0.0.1:0", tcp("10.0.0.1", 0)),
            ("tcp://[::1]", tcp("::1", 2376)),
            ("tcp://[::1]:5/", tcp("::1", 5)),
        ] {
            assert_eq!(Host::parse(text, 2376).unwrap(), expected, "{text}");
        }
        for text in [
            "tcp://h:x",
            "tcp://h:70000",
            "tcp://::1",
            "tcp://[::1]5",
            "tcp://[x]:5",
            "tcp://h:5/path",
            "tcp://a@h:5",
            "http://h",
            "h:5",
            "",
        ] {
            let error = Host::parse(text, 2376).unwrap_err().to_string();
            assert!(error.contains("host"), "{text}: {error}");
        }
    }

    #[test]
    fn detects_endpoints_that_are_given_twice() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener};
        let abstract_name = |name: String| {
            let address = SocketAddr::from_abstract_name(name).unwrap();
            Endpoint::Inherited(Inherited::Unix(UnixListener::bind_addr(&address).unwrap()))
        };
        let [one, other] = ["one", "other"]
            .map(|name| abstract_name(format!("whelk-{name}-{}", std::process::id())));
        let port = |port: u16| Endpoint::Port(([127, 0, 0, 1], port).into());
        let path = |path: &str| Endpoint::Path(path.into());
        for (first, second, is_same) in [
            (&one, &other, false),
            (&port(0), &port(0), false),
            (&port(1), &port(1), true),
            (&path("/a"), &path("/a"), true),
            (&path("/a"), &path("/b"), false),
        ] {
            assert_eq!(first.is_same(second), is_same, "{first:?} {second:?}");
        }
    }

    #[tokio::test]
    async fn a_passed_descriptor_that_is_no_socket_is_named_by_its_host() {
        let file = fs::append("/dev/null", 0o600).unwrap();
        let passed = vec![systemd::Socket::new("api", file.into())];
        let settings = TlsSettings::default();
        let hosts = Hosts {
            api: vec!["fd://api".to_owned()],
            ..Hosts::default()
        };
        let error = listen(&hosts, Ok(passed), &settings, None).await.err();
        let error = format!("{:#}", error.unwrap());
        assert!(error.starts_with("host fd://api: the inherited"), "{error}");
    }

    #[test]
    fn files_of_certificates_require_tls() {
        let settings = |tls, tlsverify| TlsSettings {
            tls,
            tlsverify,
            tlscert: Some("cert.pem".into()),
            ..TlsSettings::default()
        };
        for (tls, tlsverify, is_accepted) in [
            (None, None, true),
            (Some(true), None, true),
            (Some(false), Some(false), true),
            (Some(false), None, false),
        ] {
            let settings = settings(tls, tlsverify);
            let checked = settings.check_files(settings.mode());
            assert_eq!(checked.is_ok(), is_accepted, "{settings:?}");
        }
    }

    #[test]
    fn tcp_without_certificates_is_for_loopback_addresses_only() {
        use Mode::{Plain, Unset, Unverified, Verified};
        let modes = [
            (None, None, Unset),
            (Some(false), None, Plain),
            (Some(true), None, Verified),
            (None, Some(true), Verified),
            (Some(false), Some(true), Verified),
            (None, Some(false), Unverified),
            (Some(true), Some(false), Unverified),
        ];
        for (tls, tlsverify, expected) in modes {
            let settings = TlsSettings {
                tls,
                tlsverify,
                ..TlsSettings::default()
            };
            assert_eq!(settings.mode(), expected, "{settings:?}");
        }
        let permitted = |mode: Mode, address: &str| {
            mode.permits(address.parse().unwrap())
                .map_err(|error| error.to_string())
        };
        for loopback in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert_eq!(permitted(Plain, loopback), Ok(false));
            assert_eq!(permitted(Unverified, loopback), Ok(true));
            assert_eq!(permitted(Verified, loopback), Ok(true));
            assert!(
                permitted(Unset, loopback)
                    .unwrap_err()
                    .contains("--tls=false")
            );
        }
        for reachable in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert_eq!(permitted(Verified, reachable), Ok(true));
            for mode in [Plain, Unverified] {
                assert!(
                    permitted(mode, reachable)
                        .unwrap_err()
                        .contains("root's privileges")
                );
            }
            assert!(
                !permitted(Unset, reachable)
                    .unwrap_err()
                    .contains("--tls=false")
            );
        }
    }
}
