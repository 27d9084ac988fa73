//! Commands on a server.
//!
//! ```text
//! TCP ─► key exchange ─► the server's key is checked ─► keys of the agent, one after the other ─► commands
//! ```
//! Nothing but keys of an agent authenticates: no passwords, and no files of the host. Nothing is forwarded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::client::{Config, Handle, Handler};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, Preferred};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{Error, KnownHosts, Result};

/// Time limit for a connection, and for all until the server has accepted a key. An agent may ask its user.
const CONNECT: Duration = Duration::from_secs(30);
const LOGIN: Duration = Duration::from_secs(180);

/// Time limit for the start of a command, and for a server to take what is sent to it.
const ANSWER: Duration = Duration::from_secs(60);

/// A server that says nothing is asked after this time, and counts as gone after three more of it.
const SILENCE: Duration = Duration::from_secs(30);

/// Maximum number of keys that are tried. Servers accept a few failures, OpenSSH's by default six.
const MAX_KEYS: usize = 32;

/// Maximum number of bytes that are kept of what a command writes to its standard error.
const MAX_ERRORS: usize = 4 << 10;

/// Where a user is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub user: String,
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, host, port } = self;
        match port {
            22 => write!(formatter, "{user}@{host}"),
            port => write!(formatter, "{user}@{host}:{port}"),
        }
    }
}

/// The key that a server has shown.
#[derive(Clone, Debug)]
pub struct HostKey {
    /// `SHA256:…`
    pub fingerprint: String,
    /// Whether the server is known by it.
    pub is_known: bool,
}

/// A connection to a server that has accepted a key.
pub struct Connection {
    handle: Handle<Checker>,
    pub host_key: HostKey,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Connection")
    }
}

/// Checks the server's key.
struct Checker {
    address: Address,
    known: KnownHosts,
    found: Arc<Mutex<Option<HostKey>>>,
}

impl Handler for Checker {
    type Error = Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool> {
        // Certificates are not asked for.
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else {
            return Err(Error::HostKey(
                "it has a certificate instead of a key".into(),
            ));
        };
        let is_known = self.known.check(&self.address, key)?;
        let found = HostKey {
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
            is_known,
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Ok(true)
    }
}

impl Connection {
    /// Logs in with a key of the agent at the other end of a stream.
    ///
    /// # Errors
    /// Returns an error if the server cannot be reached, is not the one that is known, or accepts no key.
    pub async fn open<S: AsyncRead + AsyncWrite + Send + Unpin>(
        address: &Address,
        known: KnownHosts,
        agent: S,
    ) -> Result<Self> {
        let place = (address.host.as_str(), address.port);
        let stream = match timeout(CONNECT, TcpStream::connect(place)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Error::Connection(format!("connect: {error}"))),
            Err(_) => return Err(Error::Connection("connect: it does not answer".into())),
        };
        // Latency is what small requests cost.
        let _ = stream.set_nodelay(true);
        match timeout(LOGIN, Self::log_in(address, known, stream, agent)).await {
            Ok(connection) => connection,
            Err(_) => Err(silent()),
        }
    }

    async fn log_in<S: AsyncRead + AsyncWrite + Send + Unpin>(
        address: &Address,
        known: KnownHosts,
        stream: TcpStream,
        agent: S,
    ) -> Result<Self> {
        let mut preferred = known.algorithms(address);
        preferred.extend(Preferred::DEFAULT.key.iter().cloned());
        let config = Config {
            preferred: Preferred {
                key: preferred.into(),
                ..Preferred::DEFAULT
            },
            keepalive_interval: Some(SILENCE),
            ..Config::default()
        };
        let found = Arc::new(Mutex::new(None));
        let checker = Checker {
            address: address.clone(),
            known,
            found: found.clone(),
        };
        let mut handle = russh::client::connect_stream(Arc::new(config), stream, checker).await?;
        authenticate(&mut handle, &address.user, agent).await?;
        let host_key = found.lock().unwrap_or_else(PoisonError::into_inner).take();
        let host_key = host_key.ok_or_else(|| Error::HostKey("it has shown no key".into()))?;
        Ok(Self { handle, host_key })
    }

    /// Starts a command, with variables if the server allows it to have them.
    ///
    /// # Errors
    /// Returns an error if the server does not, or does not answer in time.
    pub async fn execute(self, command: &str, variables: &[(&str, &str)]) -> Result<Command> {
        let starting = async {
            let channel = self.handle.channel_open_session().await?;
            for (name, value) in variables {
                // Whether it has the variable shows in what the command says.
                channel.set_env(false, *name, *value).await?;
            }
            channel.exec(true, command).await?;
            Ok::<_, Error>(channel)
        };
        let channel = timeout(ANSWER, starting).await.map_err(|_| silent())??;
        Ok(Command {
            channel,
            errors: Vec::new(),
            _connection: self,
        })
    }
}

fn silent() -> Error {
    Error::Connection("it does not answer".into())
}

/// Tries the keys of an agent.
async fn authenticate<S: AsyncRead + AsyncWrite + Send + Unpin>(
    handle: &mut Handle<Checker>,
    user: &str,
    agent: S,
) -> Result<()> {
    let failed = |error: &dyn fmt::Display| Error::Denied(format!("ask the ssh agent: {error}"));
    let mut agent = AgentClient::connect(agent);
    // Keys that are only for some servers need it. Agents that have no such keys need not know it.
    if let Some(binding) = handle.agent_session_binding().cloned() {
        let _ = agent.bind_session(&binding, false).await;
    }
    let identities = agent.request_identities().await;
    let identities = identities.map_err(|error| failed(&error))?;
    if identities.is_empty() {
        return Err(Error::Denied("the ssh agent has no keys".into()));
    }
    let count = identities.len();
    for identity in identities.into_iter().take(MAX_KEYS) {
        let tried = match identity {
            AgentIdentity::PublicKey { key, .. } => {
                let hash = match key.algorithm() {
                    Algorithm::Rsa { .. } => rsa_hash(handle).await,
                    _ => None,
                };
                handle
                    .authenticate_publickey_with(user, key, hash, &mut agent)
                    .await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                let hash = match certificate.algorithm() {
                    Algorithm::Rsa { .. } => rsa_hash(handle).await,
                    _ => None,
                };
                handle
                    .authenticate_certificate_with(user, certificate, hash, &mut agent)
                    .await
            }
        };
        match tried {
            Ok(result) if result.success() => return Ok(()),
            // The next one may be accepted.
            Ok(_) => {}
            Err(error) if handle.is_closed() => return Err(failed(&error)),
            Err(_) => {}
        }
        if handle.is_closed() {
            break;
        }
    }
    Err(Error::Denied(format!(
        "permission denied (publickey): the server accepts none of the {count} keys of the ssh agent"
    )))
}

/// Returns the hash for signatures of RSA keys. SHA-1 is not used.
async fn rsa_hash(handle: &Handle<Checker>) -> Option<HashAlg> {
    let supported = handle.best_supported_rsa_hash().await;
    supported.ok().flatten().flatten().or(Some(HashAlg::Sha512))
}

/// A command that runs. It is ended when this is dropped.
pub struct Command {
    channel: Channel<russh::client::Msg>,
    errors: Vec<u8>,
    _connection: Connection,
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Command")
    }
}

impl Command {
    /// The key that the server has shown.
    #[must_use]
    pub fn host_key(&self) -> &HostKey {
        &self._connection.host_key
    }

    /// Writes to the command's standard input.
    ///
    /// # Errors
    /// Returns an error if the connection has ended, or if the server does not take it.
    pub async fn send(&self, bytes: Bytes) -> Result<()> {
        let sent = timeout(ANSWER, self.channel.data_bytes(bytes)).await;
        Ok(sent.map_err(|_| silent())??)
    }

    /// Returns the next bytes of the command's standard output; `None` at its end.
    ///
    /// # Errors
    /// Returns an error if the server does not execute the command.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) if data.is_empty() => {}
                Some(ChannelMsg::Data { data }) => return Ok(Some(data)),
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    let room = MAX_ERRORS - self.errors.len().min(MAX_ERRORS);
                    self.errors.extend_from_slice(&data[..data.len().min(room)]);
                }
                Some(ChannelMsg::Failure) => {
                    return Err(Error::Connection("it does not execute commands".into()));
                }
                // What the command writes to its standard error may come after the end of its output.
                Some(ChannelMsg::Close) | None => return Ok(None),
                Some(_) => {}
            }
        }
    }

    /// Returns what the command has written to its standard error until now.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.errors).trim().to_owned()
    }
}
