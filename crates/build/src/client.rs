//! What a build asks its client for.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::net::UnixStream;
use whelk_llb::pb::SourceOp;
use whelk_registry::Credentials;

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::progress::Work;

/// The bytes of a file, as they come.
pub type Pieces = BoxStream<'static, Result<Bytes>>;

/// A client of a build. The calls are made while the build runs, also at the same time.
pub trait Client: fmt::Debug + Send + Sync {
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
