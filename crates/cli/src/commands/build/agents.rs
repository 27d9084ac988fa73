//! The ssh agents that a build may use (`--ssh`): sockets of this machine.
//!
//! A step gets no more of an agent than its keys' public parts and signatures: other requests, such as those that add or
//! remove keys, are answered with a failure, as by BuildKit's client.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use whelk_buildkit::grpc::{Call, Result, Status};
use whelk_buildkit::pb::BytesMessage;

use crate::{Failure, Outcome, plain};

/// The id of an agent that a step means without one.
const DEFAULT: &str = "default";

/// Maximum size of a message; that of OpenSSH's agent.
const MAX: usize = 256 << 10;

// The numbers of messages (draft-ietf-sshm-ssh-agent).
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
const EXTENSION: u8 = 27;

/// The answer to a request that is not passed on.
const FAILURE: &[u8] = &[0, 0, 0, 1, 5];

/// The extension by which an agent learns for which server it signs.
const SESSION_BIND: &[u8] = b"session-bind@openssh.com";

/// Sockets of agents by their ids.
#[derive(Debug, Default)]
pub(super) struct Agents(BTreeMap<String, PathBuf>);

impl Agents {
    /// Reads `default` or `ID[=SOCKET]`.
    ///
    /// # Errors
    /// Returns an error for what is no socket.
    pub fn new(given: &[String]) -> Outcome<Self> {
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
            if let Some(failure) = wrong(&path) {
                return Err(failure);
            }
            let id = if id.is_empty() { DEFAULT } else { id };
            if agents.insert(id.to_owned(), path.into()).is_some() {
                return Err(Failure::new(format!("invalid duplicate ID {id}")));
            }
        }
        Ok(Self(agents))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the socket of an agent.
    ///
    /// # Errors
    /// Returns an error if there is none of this id.
    pub fn find(&self, id: &str) -> Result<&PathBuf> {
        let id = if id.is_empty() { DEFAULT } else { id };
        let missing = || Status::unknown(format!("unset ssh forward key {id}"));
        self.0.get(id).ok_or_else(missing)
    }

    /// Connects a call to an agent until it ends.
    ///
    /// # Errors
    /// Returns an error if the agent does not answer, and if a message is too large.
    pub async fn forward(&self, mut call: Call) -> Result<()> {
        let path = self.find(call.entry("buildkit.ssh.id").unwrap_or_default())?;
        let failed = |error: std::io::Error| {
            let path = path.display();
            Status::unknown(format!("ask the ssh agent {path}: {}", plain(&error)))
        };
        let mut agent = UnixStream::connect(path).await.map_err(failed)?;
        let mut received = BytesMut::new();
        while let Some(BytesMessage { data }) = call.requests.next().await? {
            received.extend_from_slice(&data);
            while let Some(request) = message(&mut received)? {
                let data = match is_allowed(&request) {
                    true => ask(&mut agent, &request).await.map_err(failed)?,
                    false => Bytes::from_static(FAILURE),
                };
                call.responses.send(&BytesMessage { data }).await?;
            }
        }
        Ok(())
    }
}

/// Returns why a path is of no use.
fn wrong(path: &str) -> Option<Failure> {
    match std::fs::metadata(path) {
        Err(error) => Some(Failure::new(format!(
            "failed to stat {path}: {}",
            plain(&error)
        ))),
        Ok(found) if found.file_type().is_socket() => None,
        Ok(_) => Some(Failure::new(format!(
            "--ssh: {path} is not the socket of an agent: keys from files not available in this version of whelk, add them with ssh-add"
        ))),
    }
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

    #[test]
    fn agents_are_sockets() {
        let scratch = whelk_sys::Scratch::temporary("agents").unwrap();
        let path = scratch.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let one = |text: &str| Agents::new(&[text.to_owned()]);
        let agents = one(&format!("mine={}", path.display())).unwrap();
        assert_eq!(agents.find("mine").unwrap(), &path);
        assert!(agents.find("").is_err());
        let twice = format!("default={}", path.display());
        let twice = Agents::new(&[twice.clone(), twice]).unwrap_err();
        assert_eq!(twice.text, "invalid duplicate ID default");
        for (text, expected) in [
            ("x=/nonexistent", "failed to stat /nonexistent"),
            ("x=/etc/passwd", "keys from files not available"),
        ] {
            let failed = one(text).unwrap_err();
            assert!(failed.text.contains(expected), "{}", failed.text);
        }
    }
}
