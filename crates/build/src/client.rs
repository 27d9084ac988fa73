//! What a build asks its client for.

use std::fmt;

use futures_util::future::BoxFuture;
use whelk_llb::pb::SourceOp;
use whelk_registry::Credentials;

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::progress::Work;

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
}
