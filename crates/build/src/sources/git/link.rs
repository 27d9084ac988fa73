//! Connections to `git-upload-pack` over ssh.

use std::fmt::Write as _;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use tokio::net::UnixStream;
use whelk_ssh::{Command, Connection, KnownHosts};

use super::Access;
use super::remote::Ssh;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::progress::{EventKind, Work};

/// The secret with known hosts, in OpenSSH's format.
const KNOWN_HOSTS: &str = "GIT_KNOWN_HOSTS";

/// The known hosts of all users of the engine's machine.
const OF_MACHINE: &str = "/etc/ssh/ssh_known_hosts";

/// A connection, with what was received and is not used yet.
pub(super) struct Link {
    command: Command,
    pub buffer: BytesMut,
}

impl Link {
    /// Logs in with a key of the client's agent, and starts git.
    ///
    /// # Errors
    /// Returns an error if the client has no agent, if the server is not the one that is known, or if it accepts no key.
    pub async fn open(
        client: &dyn Client,
        ssh: &Ssh,
        access: &Access,
        work: &Work,
    ) -> Result<Self> {
        if access.agent.is_empty() {
            return Err(Error::invalid(
                "a repository over ssh that belongs to one over HTTP gets no ssh agent",
            ));
        }
        client.check_agent(&access.agent).await?;
        let known = known_hosts(client, access).await?;
        let (ours, theirs) = UnixStream::pair()
            .map_err(|error| Error::internal(format!("make a socket pair: {error}")))?;
        let opening = async {
            let connection = Connection::open(&ssh.address, known, ours).await?;
            let command = format!("git-upload-pack {}", quoted(&ssh.path));
            connection
                .execute(&command, &[("GIT_PROTOCOL", "version=2")])
                .await
        };
        let forwarding = client.agent(&access.agent, theirs);
        tokio::pin!(opening, forwarding);
        let (opened, forwarded) = tokio::select! {
            opened = &mut opening => (opened, Ok(())),
            forwarded = &mut forwarding => (opening.await, forwarded),
        };
        let command = match (opened, forwarded) {
            (Ok(command), _) => command,
            // The agent has failed, so that no key was accepted.
            (Err(whelk_ssh::Error::Denied(_)), Err(error)) => return Err(error),
            (Err(error), _) => return Err(Error::invalid(format!("{}: {error}", ssh.address))),
        };
        let key = command.host_key();
        if !key.is_known {
            let name = format!(
                "warning: {} is not among the known hosts; its key {} was not verified",
                ssh.address, key.fingerprint
            );
            for is_done in [false, true] {
                let name = name.clone();
                work.add(EventKind::Part { name, is_done });
            }
        }
        Ok(Self {
            command,
            buffer: BytesMut::new(),
        })
    }

    pub async fn send(&self, bytes: Bytes) -> std::result::Result<(), String> {
        let sent = self.command.send(bytes).await;
        sent.map_err(|error| self.wrong(&error.to_string()))
    }

    /// Returns further bytes. The connection does not end before it is dropped.
    pub async fn piece(&mut self) -> std::result::Result<Option<Bytes>, String> {
        match self.command.piece().await {
            Ok(Some(piece)) => Ok(Some(piece)),
            Ok(None) => Err(self.wrong("the connection has ended")),
            Err(error) => Err(self.wrong(&error.to_string())),
        }
    }

    /// Returns what git has said instead of an answer.
    fn wrong(&self, problem: &str) -> String {
        let mut text = problem.to_owned();
        let errors = self.command.errors();
        if !errors.is_empty() {
            let _ = write!(text, ": {}", errors.replace('\n', "; "));
        }
        text
    }
}

/// Returns the servers that are known: those of the client, of the source, or of this machine. Frontends ask the network for those
/// of a source, so that the client's own list counts if there is one.
async fn known_hosts(client: &dyn Client, access: &Access) -> Result<KnownHosts> {
    let invalid = |error: whelk_ssh::Error| Error::invalid(error.to_string());
    if let Some(secret) = client.secret(KNOWN_HOSTS).await? {
        let text = String::from_utf8_lossy(&secret);
        return KnownHosts::parse(&text, true).map_err(invalid);
    }
    if !access.known_hosts.is_empty() {
        return KnownHosts::parse(&access.known_hosts, true).map_err(invalid);
    }
    let read = crate::blocking(|| {
        let path = Path::new(OF_MACHINE);
        Ok(match whelk_sys::fs::exists(path) {
            true => whelk_sys::fs::read_to_string(path)?,
            false => String::new(),
        })
    });
    KnownHosts::parse(&read.await?, false).map_err(invalid)
}

/// Returns a word for a shell.
fn quoted(text: &str) -> String {
    let text = text.replace('\'', "'\\''").replace('!', "'\\!'");
    format!("'{text}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_a_shell() {
        for (path, expected) in [
            ("/a/b.git", "'/a/b.git'"),
            ("a b;$(x)", "'a b;$(x)'"),
            ("it's!", "'it'\\''s'\\!''"),
        ] {
            assert_eq!(quoted(path), expected);
        }
    }
}
