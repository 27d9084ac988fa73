//! The ssh agents that a build may use (`--ssh`): sockets of this machine, and keys in files, whose agent is this program.
//!
//! A step gets no more of an agent than its keys' public parts and signatures: other requests, such as those that add or
//! remove keys, are answered with a failure, as by BuildKit's client.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use whelk_buildkit::grpc::{Call, Result, Status};
use whelk_buildkit::pb::BytesMessage;
use whelk_ssh::Keys;

use crate::{Failure, Outcome, files, plain, terminal};

/// The id of an agent that a step means without one.
const DEFAULT: &str = "default";

/// Maximum size of a message; that of OpenSSH's agent.
const MAX: usize = 256 << 10;

/// Maximum size of a file with a key in bytes.
const MAX_KEY: u64 = 1 << 20;

// The numbers of messages (draft-ietf-sshm-ssh-agent).
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
const EXTENSION: u8 = 27;

/// The answer to a request that is not passed on.
const FAILURE: &[u8] = &[0, 0, 0, 1, 5];

/// The extension by which an agent learns for which server it signs.
const SESSION_BIND: &[u8] = b"session-bind@openssh.com";

/// Agents by their ids.
#[derive(Debug, Default)]
pub(super) struct Agents(BTreeMap<String, Arc<Agent>>);

/// Agents by their sockets or files, so that several builds of one command ask for a passphrase once.
#[derive(Debug, Default)]
pub(crate) struct KnownAgents(BTreeMap<String, Arc<Agent>>);

#[derive(Debug)]
pub(super) enum Agent {
    Socket(PathBuf),
    Keys(Keys),
}

impl Agents {
    /// Reads `default` or `ID[=SOCKET|KEYFILE[,KEYFILE]]`. Asks for the passphrases of keys, if there is a terminal whose input is
    /// not read by something else.
    ///
    /// # Errors
    /// Returns an error for what is neither a socket nor a private key.
    pub async fn new(given: &[String], may_ask: bool, known: &mut KnownAgents) -> Outcome<Self> {
        let may_ask = may_ask && terminal::stdin_is_terminal();
        let mut agents = BTreeMap::new();
        for text in given {
            let (id, path) = match text.split_once('=') {
                Some((id, path)) => (id, path.to_owned()),
                None => (text.as_str(), String::new()),
            };
            let path = match path.is_empty() {
                true => std::env::var("SSH_AUTH_SOCK").unwrap_or_default(),
                false => path,
            };
            if path.is_empty() {
                return Err(Failure::new(
                    "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set",
                ));
            }
            let id = if id.is_empty() { DEFAULT } else { id };
            let agent = match known.0.get(&path) {
                Some(agent) => agent.clone(),
                None => Arc::new(Agent::of(&path, may_ask).await?),
            };
            known.0.insert(path, agent.clone());
            if agents.insert(id.to_owned(), agent).is_some() {
                return Err(Failure::new(format!("invalid duplicate ID {id}")));
            }
        }
        Ok(Self(agents))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns an agent.
    ///
    /// # Errors
    /// Returns an error if there is none of this id.
    pub fn find(&self, id: &str) -> Result<&Agent> {
        let id = if id.is_empty() { DEFAULT } else { id };
        let missing = || Status::unknown(format!("unset ssh forward key {id}"));
        self.0.get(id).map(|agent| &**agent).ok_or_else(missing)
    }

    /// Connects a call to an agent until it ends.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer, and if a message is too large.
    pub async fn forward(&self, mut call: Call) -> Result<()> {
        let agent = self.find(call.entry("buildkit.ssh.id").unwrap_or_default())?;
        let failed = |error: std::io::Error| match agent {
            Agent::Socket(path) => {
                let path = path.display();
                Status::unknown(format!("ask the ssh agent {path}: {}", plain(&error)))
            }
            Agent::Keys(_) => Status::unknown(plain(&error)),
        };
        let mut socket = match agent {
            Agent::Socket(path) => Some(UnixStream::connect(path).await.map_err(failed)?),
            Agent::Keys(_) => None,
        };
        let mut received = BytesMut::new();
        while let Some(BytesMessage { data }) = call.requests.next().await? {
            received.extend_from_slice(&data);
            while let Some(request) = message(&mut received)? {
                let data = match (agent, &mut socket) {
                    (Agent::Keys(keys), _) => framed(&keys.answer(&request[4..])),
                    (_, Some(socket)) if is_allowed(&request) => {
                        ask(socket, &request).await.map_err(failed)?
                    }
                    _ => Bytes::from_static(FAILURE),
                };
                call.responses.send(&BytesMessage { data }).await?;
            }
        }
        Ok(())
    }
}

impl Agent {
    /// Returns the agent of a socket, or of keys in files.
    async fn of(paths: &str, may_ask: bool) -> Outcome<Self> {
        let mut keys = Keys::default();
        for path in paths.split(',') {
            let found = std::fs::metadata(path).map_err(|error| {
                Failure::new(format!("failed to stat {path}: {}", plain(&error)))
            })?;
            if found.file_type().is_socket() {
                return match path == paths {
                    true => Ok(Self::Socket(path.into())),
                    false => Err(Failure::new(format!(
                        "--ssh: the socket of an agent and other paths in {paths:?}: want one socket, or keys"
                    ))),
                };
            }
            add(&mut keys, path, may_ask).await?;
        }
        Ok(Self::Keys(keys))
    }
}

/// Adds the key in a file.
async fn add(keys: &mut Keys, path: &str, may_ask: bool) -> Outcome<()> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(format!("--ssh: {path}: {error}"));
    let bytes = files::read_at_most(path.as_ref(), MAX_KEY);
    let bytes = bytes.map_err(|error| wrong(&plain(&error)))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong(&"not a private key"))?;
    match keys.add(&text, None) {
        Err(whelk_ssh::Error::Encrypted(_)) if may_ask => {
            let passphrase =
                terminal::ask_hidden(&format!("Enter passphrase for {path}: ")).await?;
            keys.add(&text, Some(&passphrase))
                .map_err(|error| wrong(&error))
        }
        Err(error @ whelk_ssh::Error::Encrypted(_)) => Err(wrong(&format_args!(
            "{error}: add it to an agent with ssh-add, or build where you can be asked for its passphrase"
        ))),
        added => added.map_err(|error| wrong(&error)),
    }
}

/// Returns a message with its length.
fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(4 + message.len());
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// Takes a message off what was received; `None` if it is not complete.
fn message(received: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(head) = received.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if length > MAX {
        return Err(Status::invalid("a message to the ssh agent is too large"));
    }
    let complete = received.len() >= 4 + length;
    Ok(complete.then(|| received.split_to(4 + length).freeze()))
}

/// Returns whether a step may make a request of an agent.
fn is_allowed(request: &Bytes) -> bool {
    let mut rest = request.slice(4..);
    if rest.is_empty() {
        return false;
    }
    match rest.get_u8() {
        REQUEST_IDENTITIES | SIGN_REQUEST => true,
        EXTENSION if rest.len() >= 4 => {
            let length = usize::try_from(rest.get_u32()).unwrap_or(usize::MAX);
            rest.get(..length) == Some(SESSION_BIND)
        }
        _ => false,
    }
}

/// Sends a request to an agent, and returns its answer.
async fn ask(agent: &mut UnixStream, request: &[u8]) -> std::io::Result<Bytes> {
    agent.write_all(request).await?;
    let mut answer = vec![0; 4];
    agent.read_exact(&mut answer).await?;
    let length = u32::from_be_bytes([answer[0], answer[1], answer[2], answer[3]]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX {
        return Err(std::io::Error::other("its answer is too large"));
    }
    answer.resize(4 + length, 0);
    agent.read_exact(&mut answer[4..]).await?;
    Ok(answer.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_and_signatures_are_asked_for() {
        let bound = [&[27, 0, 0, 0, 24][..], SESSION_BIND, b"rest"].concat();
        for (body, expected) in [
            (&[11][..], true),
            (&[13, 1, 2], true),
            (&bound, true),
            (&[27, 0, 0, 0, 1, b'x'], false),
            (&[27, 255, 255, 255, 255], false),
            // Add, remove, lock.
            (&[17, 1], false),
            (&[19], false),
            (&[22], false),
            (&[], false),
        ] {
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            let sent = [&length[..], body].concat();
            let mut received = BytesMut::new();
            // It comes in two parts.
            received.extend_from_slice(&sent[..3]);
            assert_eq!(message(&mut received).unwrap(), None);
            received.extend_from_slice(&sent[3..]);
            let request = message(&mut received).unwrap().unwrap();
            assert_eq!(is_allowed(&request), expected, "{body:?}");
            assert!(received.is_empty());
        }
        assert!(message(&mut BytesMut::from(&[1, 0, 0, 0][..])).is_err());
    }

    #[tokio::test]
    async fn agents_are_sockets_or_keys() {
        let scratch = whelk_sys::Scratch::temporary("agents").unwrap();
        let path = scratch.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let new =
            async |texts: &[String]| Agents::new(texts, false, &mut KnownAgents::default()).await;
        let socket = format!("mine={}", path.display());
        let agents = new(std::slice::from_ref(&socket)).await.unwrap();
        assert!(matches!(agents.find("mine").unwrap(), Agent::Socket(found) if *found == path));
        assert!(agents.find("").is_err());
        let twice = format!("default={}", path.display());
        let twice = new(&[twice.clone(), twice]).await.unwrap_err();
        assert_eq!(twice.text, "invalid duplicate ID default");
        for (text, expected) in [
            ("x=/nonexistent".to_owned(), "failed to stat /nonexistent"),
            ("x=/etc/passwd".to_owned(), "/etc/passwd: not a private key"),
            (format!("{socket},/etc/passwd"), "want one socket, or keys"),
        ] {
            let failed = new(&[text]).await.unwrap_err();
            assert!(failed.text.contains(expected), "{}", failed.text);
        }
    }
}
