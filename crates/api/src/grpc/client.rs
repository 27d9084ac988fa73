//! The client of a build: what it sends through its session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use tokio::net::UnixStream;
use whelk_build::{Client, Directory, Error, OutgoingBlob, Pieces, Result, Work};
use whelk_buildkit::content;
use whelk_buildkit::grpc::Status;
use whelk_buildkit::pb::BytesMessage;
use whelk_buildkit::pb::content::ReadContentResponse;
use whelk_buildkit::session::{FilesRequest, Sessions};
use whelk_llb::pb::SourceOp;
use whelk_registry::Credentials;
use whelk_sys::sync::IgnorePoison as _;

use super::contexts::Contexts;

/// The attributes of sources that are directories. With `local.unique`, BuildKit's cache tells directories apart;
/// here their content does.
const KNOWN: [&str; 9] = [
    "local.session",
    "local.unique",
    "local.includepattern",
    "local.excludepatterns",
    "local.followpaths",
    "local.sharedkeyhint",
    "local.differ",
    METADATA,
    CONTENTS,
];

/// The attribute of a directory that asks for a list of its files without their content, and the one with the patterns of
/// files whose content is sent nevertheless.
const METADATA: &str = "local.metadatatransfer";
const CONTENTS: &str = "local.metadatatransferexclude";

/// The body of a request, which is a context that can be read once.
pub(super) struct Sent(Mutex<Option<Pieces>>);

/// The prefix of the names of request bodies among the uploads, each of which can be read once.
pub(super) const BODY: &str = "body-";

impl Sent {
    pub fn new(body: Option<Pieces>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(body)))
    }

    fn take(&self) -> Option<Pieces> {
        self.0.lock().ignore_poison().take()
    }
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Sent(…)")
    }
}

/// A client with a session.
#[derive(Debug)]
pub(super) struct SessionClient {
    /// The body of the request, which may be a context.
    pub sent: Arc<Sent>,
    pub sessions: Arc<Sessions>,
    /// The session of the build.
    pub session: String,
    pub contexts: Arc<Contexts>,
}

impl SessionClient {
    /// Receives files of a directory.
    pub async fn receive(
        &self,
        session: &str,
        wanted: &FilesRequest,
        shared_key: &str,
        work: &Work,
    ) -> Result<Directory> {
        let id = match session {
            "" => &self.session,
            id => id,
        };
        let session = self.sessions.get(id).await.map_err(failed)?;
        self.contexts
            .receive(id, &session, wanted, shared_key, work)
            .await
    }
}

/// Returns the error of a call.
fn failed(status: Status) -> Error {
    Error::invalid(status.message)
}

impl Client for SessionClient {
    fn session(&self) -> &str {
        &self.session
    }

    fn directory<'a>(
        &'a self,
        source: &'a SourceOp,
        work: &'a Work,
    ) -> BoxFuture<'a, Result<Directory>> {
        Box::pin(async move {
            let unknown = source
                .attrs
                .keys()
                .find(|name| !KNOWN.contains(&name.as_str()));
            if let Some(name) = unknown {
                let text = format!("the attribute {name} of {}", source.identifier);
                return Err(Error::Unsupported(text));
            }
            let get = |name: &str| source.attrs.get(name).map_or("", String::as_str);
            let list = |name: &str| list(&source.attrs, name);
            let name = source.identifier.trim_start_matches("local://");
            let wanted = FilesRequest {
                name: name.to_owned(),
                include: list("local.includepattern")?,
                exclude: list("local.excludepatterns")?,
                follow: list("local.followpaths")?,
                in_full: get("local.differ") == "none",
                contents: contents(&source.attrs)?,
            };
            let (session, key) = (get("local.session"), get("local.sharedkeyhint"));
            self.receive(session, &wanted, key, work).await
        })
    }

    fn ignore_file<'a>(
        &'a self,
        local: &'a str,
        session: &'a str,
        work: &'a Work,
    ) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(async move {
            let name = ".dockerignore";
            let wanted = FilesRequest {
                name: local.trim_start_matches("local://").to_owned(),
                follow: vec![name.to_owned()],
                in_full: true,
                ..FilesRequest::default()
            };
            let directory = self.receive(session, &wanted, "", work).await?;
            whelk_build::blocking(move || directory.read(name)).await
        })
    }

    fn credentials<'a>(&'a self, registry: &'a str) -> BoxFuture<'a, Result<Credentials>> {
        Box::pin(async move {
            // Without a session, what is public can be pulled.
            if self.session.is_empty() {
                return Ok(Credentials::Anonymous);
            }
            let session = self.sessions.get(&self.session).await.map_err(failed)?;
            // By the name that clients have it in their configuration.
            let host = match registry {
                "docker.io" => "registry-1.docker.io",
                host => host,
            };
            let (user, password) = session.credentials(host).await.map_err(failed)?;
            Ok(match (user.as_str(), password.as_str()) {
                (_, "") => Credentials::Anonymous,
                ("", _) => Credentials::IdentityToken(password),
                _ => Credentials::Password { user, password },
            })
        })
    }

    fn secret<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move {
            if self.session.is_empty() {
                return Ok(None);
            }
            let session = self.sessions.get(&self.session).await.map_err(failed)?;
            session.secret(id).await.map_err(failed)
        })
    }

    fn blob<'a>(&'a self, layout: &'a str, digest: &'a str) -> BoxFuture<'a, Result<Pieces>> {
        Box::pin(async move {
            let store = format!("oci:{layout}");
            self.stored(&store, digest).await
        })
    }

    fn stored<'a>(&'a self, store: &'a str, digest: &'a str) -> BoxFuture<'a, Result<Pieces>> {
        Box::pin(async move {
            let session = self.sessions.get(&self.session).await.map_err(failed)?;
            let calls = session.blob(store, digest).await.map_err(failed)?;
            let pieces = stream::try_unfold(calls, |mut calls| async move {
                let message: Option<ReadContentResponse> = calls.next().await.map_err(failed)?;
                Ok(message.map(|message| (message.data, calls)))
            });
            Ok(pieces.boxed())
        })
    }

    fn put<'a>(&'a self, store: &'a str, blob: OutgoingBlob) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let session = self.sessions.get(&self.session).await.map_err(failed)?;
            let wanted = content::NewBlob {
                digest: blob.digest.to_string(),
                size: blob.size,
            };
            let write = blob.write;
            let put = session.put(store, &wanted, move |pieces| write(pieces));
            put.await.map(drop).map_err(failed)
        })
    }

    fn check_agent<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let session = self.sessions.get(&self.session).await.map_err(failed)?;
            match session.has_agent(id).await.map_err(failed)? {
                true => Ok(()),
                false => Err(Error::invalid(format!(
                    "no SSH key {id:?} forwarded from the client"
                ))),
            }
        })
    }

    fn agent<'a>(&'a self, id: &'a str, stream: UnixStream) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let session = self.sessions.get(&self.session).await.map_err(failed)?;
            session.agent(id, stream).await.map_err(failed)
        })
    }

    fn upload<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Pieces>> {
        Box::pin(async move {
            if name.starts_with(BODY)
                && let Some(body) = self.sent.take()
            {
                return Ok(body);
            }
            let session = self.sessions.get(&self.session).await.map_err(failed)?;
            let path = format!("/{name}");
            let calls = session.upload("buildkit-session", &path).map_err(failed)?;
            let pieces = stream::try_unfold(calls, |mut calls| async move {
                let message: Option<BytesMessage> = calls.next().await.map_err(failed)?;
                Ok(message.map(|message| (message.data, calls)))
            });
            Ok(pieces.boxed())
        })
    }
}

/// Returns the patterns of the files whose content is wanted, if not that of all.
fn contents(attributes: &BTreeMap<String, String>) -> Result<Option<Vec<String>>> {
    let is_list = match attributes.get(METADATA) {
        None => false,
        Some(value) => whelk_text::parse_bool(value)
            .ok_or_else(|| Error::invalid(format!("invalid value for {METADATA} {value:?}")))?,
    };
    is_list.then(|| list(attributes, CONTENTS)).transpose()
}

/// Reads an attribute that is a list in JSON.
fn list(attributes: &BTreeMap<String, String>, name: &str) -> Result<Vec<String>> {
    match attributes.get(name).map_or("", String::as_str) {
        "" => Ok(Vec::new()),
        text => serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("attribute {name} of a source: {error}"))),
    }
}
