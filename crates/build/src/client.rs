//! What a build asks its client for.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::net::UnixStream;
use whelk_llb::pb::SourceOp;
use whelk_registry::Credentials;
use whelk_sys::sync::IgnorePoison as _;

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::progress::Work;
use crate::transfer::OutgoingBlob;

/// The bytes of a file, as they come.
pub type Pieces = BoxStream<'static, Result<Bytes>>;

/// A client of a build. The calls are made while the build runs, also at the same time.
pub trait Client: fmt::Debug + Send + Sync {
    /// Returns what tells the files that this client gives only once ([`Client::upload`]) apart from those of others.
    fn session(&self) -> &str {
        ""
    }

    /// Receives a directory (`local://NAME`), as the attributes of the source say: only what some patterns select.
    /// Its files stay as they are as long as the returned value exists. Clients are told by `work`.
    ///
    /// # Errors
    /// Returns an error if there is no such directory, or if the client has left.
    fn directory<'a>(
        &'a self,
        source: &'a SourceOp,
        work: &'a Work,
    ) -> BoxFuture<'a, Result<Directory>>;

    /// Receives the `.dockerignore` of a directory that is a named context. The client has none by default.
    ///
    /// # Errors
    /// As [`Client::directory`].
    fn ignore_file<'a>(
        &'a self,
        local: &'a str,
        session: &'a str,
        work: &'a Work,
    ) -> BoxFuture<'a, Result<Option<String>>> {
        let _ = (session, work);
        Box::pin(async move { Err(Error::Unsupported(format!("the named context {local}"))) })
    }

    /// Returns the credentials for a registry, by its name: `docker.io`, `HOST:PORT`.
    ///
    /// # Errors
    /// Returns an error if the client has left.
    fn credentials<'a>(&'a self, registry: &'a str) -> BoxFuture<'a, Result<Credentials>>;

    /// Returns a secret; `None` if the client does not have it. It has none by default.
    ///
    /// # Errors
    /// Returns an error if the client has left, or cannot read the secret.
    fn secret<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        let _ = id;
        Box::pin(async { Ok(None) })
    }

    /// Receives a blob of an OCI layout of the client. It has no layouts by default.
    ///
    /// # Errors
    /// Returns an error if the client has left, or has no such layout.
    fn blob<'a>(&'a self, layout: &'a str, digest: &'a str) -> BoxFuture<'a, Result<Pieces>> {
        let _ = digest;
        Box::pin(async move { Err(Error::Unsupported(format!("the OCI layout {layout}"))) })
    }

    /// Receives a blob of a store of the client, such as the directory of a build cache. It has no stores by default.
    ///
    /// # Errors
    /// Returns an error if the client has left, or has no such store or blob.
    fn stored<'a>(&'a self, store: &'a str, digest: &'a str) -> BoxFuture<'a, Result<Pieces>> {
        let _ = digest;
        Box::pin(async move { Err(Error::Unsupported(format!("the store {store}"))) })
    }

    /// Puts a blob into a store of the client, unless it is there. It has no stores by default.
    ///
    /// # Errors
    /// Returns an error if the client has left, or has no such store, and the error of what is sent.
    fn put<'a>(&'a self, store: &'a str, blob: OutgoingBlob) -> BoxFuture<'a, Result<()>> {
        drop(blob);
        Box::pin(async move { Err(Error::Unsupported(format!("the store {store}"))) })
    }

    /// Checks that the client has an agent with ssh keys of this id. It has none by default.
    ///
    /// # Errors
    /// Returns an error if it has not, or has left.
    fn check_agent<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Err(crate::ops::missing_agent(id)) })
    }

    /// Connects a stream to an agent, until either side ends.
    ///
    /// # Errors
    /// Returns an error if the client has left, or has no such agent.
    fn agent<'a>(&'a self, id: &'a str, stream: UnixStream) -> BoxFuture<'a, Result<()>> {
        let _ = stream;
        Box::pin(async move { Err(crate::ops::missing_agent(id)) })
    }

    /// Receives a file that the client gives under a name, such as a context that it reads from its standard input. It
    /// gives each once. The client has none by default.
    ///
    /// # Errors
    /// Returns an error if the client has left, or has no such file.
    fn upload<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Pieces>> {
        Box::pin(async move { Err(Error::invalid(format!("the client has no file {name}"))) })
    }
}

/// Time limit for an answer of a client that is one of several.
const PATIENCE: Duration = Duration::from_secs(30);

/// The clients of the builds that wait for the same operation: what one of them has is enough.
#[derive(Debug)]
pub(crate) struct Clients {
    list: Mutex<Vec<Arc<dyn Client>>>,
    patience: Duration,
}

impl Clients {
    pub fn of(client: Arc<dyn Client>) -> Self {
        Self {
            list: Mutex::new(vec![client]),
            patience: PATIENCE,
        }
    }

    /// Adds the client of a build that joins.
    pub fn add(&self, client: Arc<dyn Client>) {
        self.list.lock().ignore_poison().push(client);
    }

    /// Asks one client after the other for a secret, also those that join meanwhile. Returns `None` if none has it.
    ///
    /// # Errors
    /// Returns an error if no client has answered.
    pub async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>> {
        let mut failure = None;
        let mut is_unknown = false;
        for number in 0.. {
            let client = self.list.lock().ignore_poison().get(number).cloned();
            let Some(client) = client else { break };
            match tokio::time::timeout(self.patience, client.secret(id)).await {
                Ok(Ok(Some(secret))) => return Ok(Some(secret)),
                Ok(Ok(None)) => is_unknown = true,
                Ok(Err(error)) => failure = Some(error),
                Err(_) => {
                    let seconds = self.patience.as_secs();
                    let text = format!("secret {id}: the client has not answered for {seconds} s");
                    failure = Some(Error::invalid(text));
                }
            }
        }
        match failure {
            Some(error) if !is_unknown => Err(error),
            _ => Ok(None),
        }
    }

    /// Returns the first client that has an agent with ssh keys of this id.
    ///
    /// # Errors
    /// Returns the error of the last client if none has it.
    pub async fn agent(&self, id: &str) -> Result<Arc<dyn Client>> {
        let mut failure = crate::ops::missing_agent(id);
        for number in 0.. {
            let client = self.list.lock().ignore_poison().get(number).cloned();
            let Some(client) = client else { break };
            match tokio::time::timeout(self.patience, client.check_agent(id)).await {
                Ok(Ok(())) => return Ok(client),
                Ok(Err(error)) => failure = error,
                Err(_) => {}
            }
        }
        Err(failure)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum Fake {
        Has(&'static str),
        HasNot,
        HasLeft,
        Hangs,
    }

    impl Client for Fake {
        fn directory<'a>(
            &'a self,
            _source: &'a SourceOp,
            _work: &'a Work,
        ) -> BoxFuture<'a, Result<Directory>> {
            Box::pin(async { Err(Error::invalid("no directories")) })
        }

        fn credentials<'a>(&'a self, _registry: &'a str) -> BoxFuture<'a, Result<Credentials>> {
            Box::pin(async { Ok(Credentials::Anonymous) })
        }

        fn secret<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
            Box::pin(async move {
                match self {
                    Self::Has(secret) => Ok(Some(secret.as_bytes().to_vec())),
                    Self::HasNot => Ok(None),
                    Self::HasLeft => Err(Error::invalid("no active session")),
                    Self::Hangs => std::future::pending().await,
                }
            })
        }
    }

    #[tokio::test]
    async fn a_secret_of_one_client_is_enough() {
        let ask = async |fakes: Vec<Fake>| {
            let list: Vec<Arc<dyn Client>> = fakes
                .into_iter()
                .map(|fake| Arc::new(fake) as Arc<dyn Client>)
                .collect();
            let clients = Clients {
                list: Mutex::new(list),
                patience: Duration::from_millis(20),
            };
            clients
                .secret("key")
                .await
                .map_err(|error| error.to_string())
        };
        let found = Ok(Some(b"x".to_vec()));
        for first in [Fake::HasNot, Fake::HasLeft, Fake::Hangs] {
            assert_eq!(ask(vec![first, Fake::Has("x")]).await, found);
        }
        assert_eq!(ask(vec![Fake::HasLeft, Fake::HasNot]).await, Ok(None));
        assert!(ask(vec![Fake::HasLeft]).await.is_err());
        assert!(ask(vec![Fake::Hangs]).await.unwrap_err().contains("key"));
    }
}
