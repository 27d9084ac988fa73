//! Sessions: connections on which clients serve the engine with their files, secrets and credentials.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use tokio::sync::watch;

use crate::cut::beginning;
use crate::grpc::{self, Channel, Code, Io, Result, Status, Stream};
use crate::pb::control::Exporter;
use crate::pb::session::{
    CredentialsRequest, CredentialsResponse, FindExportersRequest, FindExportersResponse,
    GetSecretRequest, GetSecretResponse,
};
use crate::pb::{HealthCheckResponse, Unused};

const ID: &str = "x-docker-expose-session-uuid";
const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
const METHOD: &str = "x-docker-expose-session-grpc-method";

/// How long a session that a request names may take to be there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Maximum length in bytes of a value that a client is told of an output before it is sent.
const MAX_TOLD: usize = 2 << 10;

/// The methods of clients that are called.
pub const DIFF_COPY: &str = "moby.filesync.v1.FileSync/DiffCopy";
pub const SEND: &str = "moby.filesync.v1.FileSend/DiffCopy";
pub const SECRET: &str = "moby.buildkit.secrets.v1.Secrets/GetSecret";
pub const CREDENTIALS: &str = "moby.filesync.v1.Auth/Credentials";
pub const EXPORTERS: &str = "moby.exporter.v1.Exporter/FindExporters";
const HEALTH: &str = "grpc.health.v1.Health/Check";
const UPLOAD: &str = "moby.upload.v1.Upload/Pull";

/// A client's session.
#[derive(Debug)]
pub struct Session {
    pub id: String,
    /// Tells directories of the same name apart.
    pub shared_key: String,
    /// The methods that the client has, in lower case.
    methods: HashSet<String>,
    channel: Channel,
    patience: Duration,
}

/// What is wanted of a directory of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FilesRequest {
    /// The directory's name in the session, such as `context`.
    pub name: String,
    /// Patterns; everything if there are none.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Paths whose symbolic links are followed: what they lead to is wanted too.
    pub follow: Vec<String>,
    /// Whether all files are to be sent, also those that look like those of the last time: a file may be another one
    /// with the same size and time.
    pub in_full: bool,
    /// Patterns of the files whose content is wanted, if only a list of the others is ([`crate::files::Chosen`]). The client is not
    /// told of them.
    pub contents: Option<Vec<String>>,
}

/// Returns the error of a client without directories.
fn no_directory(name: &str) -> String {
    /// Maximum length of the name that is told, in bytes.
    const MAX: usize = 256;
    let hint = match name {
        // Docker's client offers none if its standard input is the context, and is empty.
        "context" | "dockerfile" => {
            "; an archive or a Dockerfile from its standard input must not be empty"
        }
        _ => "",
    };
    let name = beginning(name, MAX);
    format!("no local sources enabled: the client has no directory {name:?}{hint}")
}

/// Returns the headers with which a client opens a session.
pub fn headers<'a>(
    id: &'a str,
    shared_key: &'a str,
    methods: &[&'a str],
) -> Vec<(&'static str, String)> {
    let mut headers = vec![(ID, id.to_owned()), (SHARED_KEY, shared_key.to_owned())];
    headers.extend(methods.iter().map(|method| (METHOD, format!("/{method}"))));
    headers
}

impl FilesRequest {
    /// Reads the metadata of a call of [`DIFF_COPY`]: the opposite of [`Session::files`].
    pub fn of_call(metadata: &HeaderMap) -> Self {
        let list = |key: &str| {
            let encoded = metadata.contains_key(format!("{key}-encoded"));
            let values = metadata.get_all(key).iter();
            let values = values.map(|value| match encoded {
                true => percent_decode(value.as_bytes()).decode_utf8_lossy().into(),
                false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            });
            values.collect::<Vec<String>>()
        };
        Self {
            name: list("dir-name").pop().unwrap_or_default(),
            include: list("include-patterns"),
            exclude: list("exclude-patterns"),
            follow: list("followpaths"),
            in_full: false,
            contents: None,
        }
    }
}

impl Session {
    /// Calls for the files of a directory.
    ///
    /// # Errors
    /// Returns an error if the client has no files.
    pub fn files(&self, wanted: &FilesRequest) -> Result<Stream> {
        if !self.has(DIFF_COPY) {
            return Err(Status::unknown(no_directory(&wanted.name)));
        }
        let mut metadata = HeaderMap::new();
        let name = std::slice::from_ref(&wanted.name);
        append(&mut metadata, "dir-name", name);
        append(&mut metadata, "include-patterns", &wanted.include);
        append(&mut metadata, "exclude-patterns", &wanted.exclude);
        append(&mut metadata, "followpaths", &wanted.follow);
        self.channel.stream(DIFF_COPY, metadata)
    }

    /// Calls for the files of an exporter to be taken. `exporter` is its position in the request, and `told` what the client is
    /// told of the result, by which it may decide where they go.
    ///
    /// # Errors
    /// Returns an error if the client takes no files.
    pub fn export(&self, exporter: usize, told: &BTreeMap<String, String>) -> Result<Stream> {
        let mut metadata = HeaderMap::new();
        // Clients accept headers of a few KiB, and a descriptor may have many annotations.
        for (name, value) in told.iter().filter(|(_, value)| value.len() <= MAX_TOLD) {
            let name = HeaderName::try_from(format!("exporter-md-{name}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                metadata.insert(name, value);
            }
        }
        let name = HeaderName::from_static("buildkit-attachable-exporter-id");
        metadata.insert(name, HeaderValue::from(exporter));
        self.call(SEND, metadata)
    }

    /// Begins a call of a method, if the client has it.
    ///
    /// # Errors
    /// Returns an error if it does not.
    pub(crate) fn call(&self, method: &str, metadata: HeaderMap) -> Result<Stream> {
        self.needs(method)?;
        self.channel.stream(method, metadata)
    }

    /// Calls for a file that the client gives under a URL of this host and path. It gives each once.
    ///
    /// # Errors
    /// Returns an error if the client gives no files in this way.
    pub fn upload(&self, host: &str, path: &str) -> Result<Stream> {
        self.needs(UPLOAD)?;
        let mut metadata = HeaderMap::new();
        append(&mut metadata, "urlhost", &[host.to_owned()]);
        append(&mut metadata, "urlpath", &[path.to_owned()]);
        self.channel.stream(UPLOAD, metadata)
    }

    /// Returns the outputs that the client wants of a result, besides those of its request. It may look at the result meanwhile.
    ///
    /// # Errors
    /// Returns the client's error.
    pub async fn exporters(&self, request: &FindExportersRequest) -> Result<Vec<Exporter>> {
        if !self.has(EXPORTERS) {
            return Ok(Vec::new());
        }
        let found: Result<FindExportersResponse> = self.channel.unary(EXPORTERS, request).await;
        match found {
            Ok(found) => Ok(found.exporters),
            Err(status) if status.code == Code::Unimplemented => Ok(Vec::new()),
            Err(status) => Err(status.context("outputs of the session")),
        }
    }

    /// Returns a secret; `None` if the client does not have it.
    ///
    /// # Errors
    /// Returns an error if the client cannot be asked, does not answer in time, or cannot read the secret.
    pub async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>> {
        if !self.has(SECRET) {
            return Ok(None);
        }
        let request = GetSecretRequest { id: id.to_owned() };
        let asked = self.channel.unary(SECRET, &request);
        let answer = match tokio::time::timeout(self.patience, asked).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("no answer for {} s", self.patience.as_secs());
                Err(Status::new(Code::DeadlineExceeded, text))
            }
        };
        match answer {
            Ok(GetSecretResponse { data }) => Ok(Some(data)),
            Err(status) if matches!(status.code, Code::NotFound | Code::Unimplemented) => Ok(None),
            Err(status) => Err(status.context(format_args!("secret {id}"))),
        }
    }

    /// Returns the name and the password, or the token if there is no name, for a registry; both are empty if the client has
    /// none.
    ///
    /// # Errors
    /// Returns an error if the client cannot be asked.
    pub async fn credentials(&self, host: &str) -> Result<(String, String)> {
        if !self.has(CREDENTIALS) {
            return Ok(Default::default());
        }
        let request = CredentialsRequest {
            host: host.to_owned(),
        };
        let found: Result<CredentialsResponse> = self.channel.unary(CREDENTIALS, &request).await;
        match found {
            Ok(found) => Ok((found.username, found.secret)),
            Err(status) if status.code == Code::Unimplemented => Ok(Default::default()),
            Err(status) => Err(status.context(format_args!("credentials for {host}"))),
        }
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(crate) fn has(&self, method: &str) -> bool {
        self.methods.contains(&method.to_lowercase())
    }

    pub(crate) fn needs(&self, method: &str) -> Result<()> {
        if self.has(method) {
            return Ok(());
        }
        Err(Status::unknown(format!(
            "method /{method} not supported by the client"
        )))
    }
}

/// Adds values of a key, in a form that headers can have.
pub(crate) fn append(metadata: &mut HeaderMap, key: &'static str, values: &[String]) {
    let is_plain = |text: &String| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let encoded = !values.iter().all(is_plain);
    for value in values {
        let value = match encoded {
            true => {
                HeaderValue::from_str(&utf8_percent_encode(value, NON_ALPHANUMERIC).to_string())
            }
            false => HeaderValue::from_str(value),
        };
        // Both forms are printable.
        if let Ok(value) = value {
            metadata.append(HeaderName::from_static(key), value);
        }
    }
    if encoded && let Ok(name) = HeaderName::try_from(format!("{key}-encoded")) {
        metadata.insert(name, HeaderValue::from_static("1"));
    }
}

/// The sessions that are open.
#[derive(Debug)]
pub struct Sessions {
    known: watch::Sender<HashMap<String, Arc<Session>>>,
    ping: Duration,
    patience: Duration,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(grpc::PING, grpc::PATIENCE)
    }
}

impl Sessions {
    /// Asks clients after each `ping` whether they are still there: one that does not answer for `patience` is gone.
    pub fn new(ping: Duration, patience: Duration) -> Self {
        Self {
            known: watch::Sender::default(),
            ping,
            patience,
        }
    }

    /// Opens a session on a client's connection, which is named in the headers of its request, and serves until the
    /// connection has ended.
    ///
    /// # Errors
    /// Returns an error if the session has no id, or one that is in use.
    pub async fn serve(&self, headers: &HeaderMap, stream: impl Io) -> Result<()> {
        let get = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let id = get(ID).unwrap_or_default().to_owned();
        if id.is_empty() {
            return Err(Status::invalid("the session has no id"));
        }
        let methods = headers.get_all(METHOD).iter();
        let methods = methods.filter_map(|method| method.to_str().ok());
        let (channel, driver) = Channel::open(stream).await?;
        let alive = self.watch(channel.clone());
        let session = Arc::new(Session {
            id: id.clone(),
            shared_key: get(SHARED_KEY).unwrap_or_default().to_owned(),
            methods: methods
                .map(|method| method.trim_start_matches('/').to_lowercase())
                .collect(),
            channel,
            patience: self.patience,
        });
        let is_new = self.known.send_if_modified(|known| {
            let is_new = !known.contains_key(&id);
            if is_new {
                known.insert(id.clone(), session);
            }
            is_new
        });
        if !is_new {
            let text = format!("session {id} already exists");
            return Err(Status::new(Code::AlreadyExists, text));
        }
        let _open = Open { sessions: self, id };
        // How it ends does not matter: what waits for an answer gets an error.
        tokio::select! {
            _ = driver => {}
            () = alive => {}
        }
        Ok(())
    }

    /// Calls a client again and again, until it does not answer. HTTP/2's own pings are no means for that: Go's servers
    /// end a connection on which nothing else happens for them.
    async fn watch(&self, channel: Channel) {
        loop {
            tokio::time::sleep(self.ping).await;
            let asked = channel.unary::<HealthCheckResponse>(HEALTH, &Unused {});
            match tokio::time::timeout(self.patience, asked).await {
                Ok(Err(status)) if status.code == Code::Unavailable => return,
                // That it knows no such call is an answer, too.
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Returns a session, and waits for a short time until it is there.
    ///
    /// # Errors
    /// Returns an error if there is no such session.
    pub async fn get(&self, id: &str) -> Result<Arc<Session>> {
        let id = without_prefix(id);
        let mut known = self.known.subscribe();
        let found = known.wait_for(|known| known.contains_key(id));
        let found = match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(known)) => known.get(id).cloned(),
            _ => None,
        };
        found.ok_or_else(|| {
            Status::unknown(format!(
                "no active session for {id}: context deadline exceeded"
            ))
        })
    }

    /// Waits for a short time until HTTP/2 has begun on both sides of a session, so that its client receives nothing more
    /// unless it is called.
    ///
    /// Clients of BuildKit's own library whose session is a stream of messages (`Control.Session`) misread what they
    /// receive while they close it, and show that as a protocol error.
    pub async fn settled(&self, id: &str) {
        /// Limit of the time for both calls.
        const PATIENCE: Duration = Duration::from_secs(1);
        if id.is_empty() {
            return;
        }
        let calls = async {
            let session = self.get(id).await?;
            // The second answer tells that the client has received what follows from its settings, which came before
            // the first.
            for _ in 0..2 {
                let asked = session
                    .channel
                    .unary::<HealthCheckResponse>(HEALTH, &Unused {});
                // That it knows no such call is an answer, too.
                if let Err(status) = asked.await
                    && status.code == Code::Unavailable
                {
                    return Err(status);
                }
            }
            Ok(())
        };
        // A client that is gone, or does not answer, is not waited for.
        let _ = tokio::time::timeout(PATIENCE, calls).await;
    }

    /// Waits until a session has ended.
    pub async fn ended(&self, id: &str) {
        let id = without_prefix(id);
        let mut known = self.known.subscribe();
        // An error: there are no sessions any more.
        let _ = known.wait_for(|known| !known.contains_key(id)).await;
    }
}

/// Returns the id of a session. A prefix tells builds that share one apart.
fn without_prefix(id: &str) -> &str {
    match id.split_once(':') {
        Some((_, id)) if !id.is_empty() => id,
        _ => id,
    }
}

/// Removes a session when it has ended, also if that is because its task was dropped.
struct Open<'a> {
    sessions: &'a Sessions,
    id: String,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.sessions.known.send_modify(|known| {
            known.remove(&self.id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = no_directory("nosuch");
        let expected = "no local sources enabled: the client has no directory \"nosuch\"";
        assert_eq!(error, expected);
        let error = no_directory("context");
        assert!(error.contains("\"context\"; an archive"), "{error}");
        assert!(no_directory(&"x".repeat(1000)).len() < 400);
    }
}
