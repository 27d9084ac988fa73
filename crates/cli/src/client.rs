//! The Engine API client: requests over a unix socket, TCP, TLS or SSH, one connection per request.

use std::path::{Path, PathBuf};

use http_body_util::BodyExt;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use whelk_api_types::{ErrorResponse, ExecStartConfig};
use whelk_client::{Address, Connection, Error, RawStream, Tls, program_ended, tls_reason};
pub(crate) use whelk_client::{Body, no_body};
use whelk_text::url;

use crate::config_file;
use crate::endpoint::Host;
use crate::headers::Headers;
use crate::output::warn_line;
use crate::ssh::REMOTE_PROGRAMS;
use crate::{Failure, Outcome, plain};

/// The newest API version that this client requests, and the default.
pub(crate) const API_VERSION: &str = "1.51";

/// An error response of the engine, or a failure to reach it.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// Whether the engine could not be reached, or did not complete its response.
    pub lost: bool,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::new(error.to_string())
    }
}

impl ApiError {
    /// An error that is no response of the engine. It is marked by the status 421 Misdirected
    /// Request, which the engine never sends.
    fn local(message: String) -> Self {
        Self {
            status: StatusCode::MISDIRECTED_REQUEST,
            message,
            lost: false,
        }
    }

    fn lost(message: String) -> Self {
        Self {
            lost: true,
            ..Self::local(message)
        }
    }

    /// Returns whether the error is no response of the engine.
    fn is_local(&self) -> bool {
        self.status == StatusCode::MISDIRECTED_REQUEST
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_local() {
            f.write_str(&self.message)
        } else {
            write!(f, "Error response from daemon: {}", self.message)
        }
    }
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

#[derive(Clone, Debug)]
pub(crate) struct Client {
    host: Host,
    /// Set for connections over TLS.
    tls: Option<Tls>,
    /// The name of the context that `host` comes from.
    context: String,
    /// The API version that `DOCKER_API_VERSION` sets.
    version: Option<String>,
    /// The directory of the client's configuration.
    config: Option<PathBuf>,
    /// The headers of all requests that the user has set.
    headers: Headers,
    /// The program of an `ssh://` host that connects to its engine.
    remote_program: &'static str,
    /// Whether to log requests to standard error.
    debug: bool,
}

impl Client {
    /// Sets the directory of the client's configuration.
    ///
    /// # Errors
    /// Returns an error if the headers in the environment cannot be parsed.
    pub(crate) fn with_config(mut self, config: Option<PathBuf>) -> Outcome<Self> {
        self.headers = Headers::of(config.as_deref())?;
        self.config = config;
        Ok(self)
    }

    pub(crate) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Returns the format of a list: the given one or, unless only ids are wanted, that of the user's
    /// configuration file.
    pub(crate) fn format(&self, given: String, quiet: bool, key: &str) -> String {
        if !given.is_empty() || quiet {
            return given;
        }
        let format = self
            .config()
            .and_then(|config| config_file::format(config, key));
        format.unwrap_or_default()
    }

    /// Returns the variables of proxies that containers and builds get by the user's configuration file.
    pub(crate) fn proxies(&self) -> Vec<(String, String)> {
        let host = self.host.to_string();
        let proxies = |config: &Path| config_file::proxies(config, &host);
        self.config().map(proxies).unwrap_or_default()
    }

    pub(crate) fn new(host: Host, tls: Option<Tls>, context: String, debug: bool) -> Self {
        let version = std::env::var("DOCKER_API_VERSION").unwrap_or_default();
        let version = version.trim_start_matches('v');
        Self {
            host,
            tls,
            context,
            version: Some(version.to_owned()).filter(|version| !version.is_empty()),
            config: None,
            headers: Headers::default(),
            remote_program: REMOTE_PROGRAMS[0],
            debug,
        }
    }

    /// Finds the program of an `ssh://` host that connects to its engine, by a request that Docker's
    /// CLI also sends before all others. Of other hosts nothing is asked.
    pub(crate) async fn find_remote_program(&mut self) -> ApiResult<()> {
        /// The exit code of shells for a missing command.
        const NOT_FOUND: i32 = 127;
        let Host::Ssh(_) = self.host else {
            return Ok(());
        };
        let mut missing = None;
        for program in REMOTE_PROGRAMS {
            self.remote_program = program;
            let Err(error) = self.ping().await else {
                return Ok(());
            };
            let is_missing = cause_of(&error)
                .and_then(program_ended)
                .is_some_and(|ended| ended.code() == Some(NOT_FOUND));
            let error = self.no_response(&error);
            if !is_missing {
                return Err(error);
            }
            missing.get_or_insert(error);
        }
        missing.map_or(Ok(()), Err)
    }

    /// Sends a request without effects, and waits for the head of its response.
    pub(crate) async fn ping(&self) -> whelk_client::Result<()> {
        let mut request = Request::new(no_body());
        *request.uri_mut() = hyper::Uri::from_static("/_ping");
        // An invalid header is the error of the requests that follow.
        let _ = self.headers.add_to(&mut request);
        let host = HeaderValue::from_static("whelk");
        request.headers_mut().insert(header::HOST, host);
        let answered = whelk_client::send(&self.address(), request).await;
        answered.map(|_| ())
    }

    /// Returns the API version of this client's requests, if the environment sets it.
    pub(crate) fn fixed_version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Returns the path of the engine's unix socket.
    ///
    /// # Errors
    /// Returns the host if it is not a unix socket.
    pub(crate) fn socket(&self) -> Result<&str, &Host> {
        match &self.host {
            Host::Unix(path) => Ok(path),
            Host::Tcp(_) | Host::Ssh(_) => Err(&self.host),
        }
    }

    pub(crate) fn context(&self) -> &str {
        &self.context
    }

    pub(crate) fn debug(&self) -> bool {
        self.debug
    }

    /// Describes a connection error with Docker's texts. Without permission to connect, it is
    /// unknown whether an engine listens.
    pub(crate) fn unreachable(&self, error: &std::io::Error) -> String {
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                format!(
                    "permission denied while trying to connect to the docker API at {}",
                    self.host
                )
            }
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                let hint = match self.host {
                    Host::Unix(_) => {
                        "\nAn engine is started by `whelk daemon`, at another socket with --host."
                    }
                    Host::Tcp(_) | Host::Ssh(_) => "",
                };
                format!(
                    "Cannot connect to the Docker daemon at {}. Is the docker daemon running?{hint}",
                    self.host
                )
            }
            _ => {
                let reason = tls_reason(error).unwrap_or_else(|| plain(error));
                format!("error during connect: {}: {reason}", self.host)
            }
        }
    }

    fn address(&self) -> Address {
        match (&self.host, &self.tls) {
            (Host::Unix(path), _) => Address::Unix(path.into()),
            (Host::Tcp(address), Some(tls)) => Address::Tls(address.clone(), tls.clone()),
            (Host::Tcp(address), None) => Address::Tcp(address.clone()),
            (Host::Ssh(ssh), _) => Address::Program(ssh.program(self.remote_program)),
        }
    }

    pub(crate) async fn connect(&self) -> std::io::Result<Connection> {
        self.address().connect().await
    }

    /// Sends a request. Responses with status 400 or above become errors with the engine's message.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> ApiResult<Response<hyper::body::Incoming>> {
        check_named(path)?;
        let failed = ApiError::local;
        let version = self.fixed_version().map(url::escape);
        let uri = format!("/v{}{path}", version.as_deref().unwrap_or(API_VERSION));
        if self.debug {
            warn_line!("DEBU[0000] {method} {uri} at {}", self.host);
        }
        let unsendable = |reason: String| failed(format!("the request cannot be sent: {reason}"));
        let request = Request::builder().method(method).uri(uri).body(body);
        let mut request = request.map_err(|error| unsendable(error.to_string()))?;
        self.headers.add_to(&mut request).map_err(unsendable)?;
        let mut own = HeaderMap::new();
        for (name, value) in [("host", "whelk")].iter().chain(headers) {
            let name = HeaderName::try_from(*name);
            let name = name.map_err(|error| unsendable(error.to_string()))?;
            let value = HeaderValue::try_from(*value);
            let value = value.map_err(|error| unsendable(error.to_string()))?;
            // A session has several headers of one name.
            own.append(name, value);
        }
        // Replaces those of the user's configuration.
        request.headers_mut().extend(own);
        let response = whelk_client::send(&self.address(), request)
            .await
            .map_err(|error| self.no_response(&error))?;
        if response.status().is_client_error() || response.status().is_server_error() {
            let status = response.status();
            let text = response
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            let message = serde_json::from_slice(&text)
                .and_then(whelk_api_types::read::<ErrorResponse>)
                .map(|response| response.message)
                .ok()
                .filter(|message| !message.is_empty())
                .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
            return Err(ApiError {
                status,
                message: message.trim().to_owned(),
                lost: false,
            });
        }
        Ok(response)
    }

    /// Describes why there is no response.
    fn no_response(&self, error: &Error) -> ApiError {
        let what = match error {
            Error::Connect(error) => return ApiError::lost(self.unreachable(error)),
            lost if lost.is_lost() => "connection to the engine lost",
            _ => "error during connect",
        };
        // The cause is an I/O error of the request body (a file), not of the connection.
        let cause = match error {
            Error::Exchange(error) => std::error::Error::source(error),
            _ => None,
        };
        let io_error = cause_of(error);
        let reason = io_error.and_then(|error| {
            tls_reason(error).or_else(|| program_ended(error).map(ToString::to_string))
        });
        if let Some(reason) = reason {
            let text = format!("error during connect: {}: {reason}", self.host);
            return ApiError {
                lost: error.is_lost(),
                ..ApiError::local(text)
            };
        }
        let cause = cause.map(|cause| match cause.downcast_ref::<std::io::Error>() {
            Some(error) => format!(": {}", plain(error)),
            None => format!(": {cause}"),
        });
        let message = format!(
            "{what}: {}: {error}{}",
            self.host,
            cause.unwrap_or_default()
        );
        ApiError {
            lost: error.is_lost(),
            ..ApiError::local(message)
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> ApiResult<T> {
        read(self.send(Method::GET, path, &[], no_body()).await?).await
    }

    /// Sends a request without a body.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str) -> ApiResult<T> {
        read(self.send(Method::POST, path, &[], no_body()).await?).await
    }

    pub(crate) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> ApiResult<T> {
        let body = json_body(body)?;
        read(self.send(Method::POST, path, &[JSON], body).await?).await
    }

    /// Sends a request without a body, whose response has no content.
    pub(crate) async fn post_no_content(&self, path: &str) -> ApiResult<()> {
        ignore(self.send(Method::POST, path, &[], no_body()).await?).await
    }

    /// Sends an object with a request whose response has no content.
    pub(crate) async fn post_json_no_content(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> ApiResult<()> {
        let body = json_body(body)?;
        ignore(self.send(Method::POST, path, &[JSON], body).await?).await
    }

    /// Sends a request to delete an object, whose response has no content.
    pub(crate) async fn delete_no_content(&self, path: &str) -> ApiResult<()> {
        ignore(self.send(Method::DELETE, path, &[], no_body()).await?).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> ApiResult<T> {
        read(self.send(Method::DELETE, path, &[], no_body()).await?).await
    }

    /// Sends a request that turns the connection into one of HTTP/2.
    pub(crate) async fn h2c(&self, path: &str, headers: &[(&str, &str)]) -> ApiResult<RawStream> {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "h2c")];
        let headers = [&upgrade, headers].concat();
        let response = self.send(Method::POST, path, &headers, no_body()).await?;
        upgraded(response).await
    }

    /// Sends a request that upgrades the connection, and returns the raw byte stream. Only the start
    /// of an exec has a body.
    pub(crate) async fn hijack(
        &self,
        path: &str,
        body: Option<&ExecStartConfig>,
    ) -> ApiResult<RawStream> {
        let mut headers = vec![("connection", "Upgrade"), ("upgrade", "tcp")];
        headers.extend(body.map(|_| JSON));
        let body = body.map_or_else(|| Ok(no_body()), json_body)?;
        let response = self.send(Method::POST, path, &headers, body).await?;
        upgraded(response).await
    }
}

async fn upgraded(response: Response<hyper::body::Incoming>) -> ApiResult<RawStream> {
    whelk_client::upgrade(response)
        .await
        .map_err(|error| ApiError::local(format!("the connection was not upgraded: {error}")))
}

/// Returns the I/O error that an exchange failed with.
fn cause_of(error: &Error) -> Option<&std::io::Error> {
    match error {
        Error::Exchange(error) => std::error::Error::source(error)?.downcast_ref(),
        _ => None,
    }
}

/// Checks that a path contains the name of its object.
///
/// # Errors
/// Returns an error if the name is empty: the engine would route the path to another handler.
fn check_named(path: &str) -> ApiResult<()> {
    let mut parts = path
        .split('?')
        .next()
        .unwrap_or_default()
        .split('/')
        .skip(1);
    let (kind, name, rest) = (parts.next(), parts.next(), parts.next());
    let is_empty = name.is_some_and(|name| name.replace("%20", "").is_empty());
    match kind {
        Some(kind @ ("containers" | "networks" | "volumes")) if is_empty => {
            Err(ApiError::local(format!(
                "invalid {} name or ID: value is empty",
                kind.trim_end_matches('s')
            )))
        }
        Some("images") if is_empty && rest.is_some() => Err(ApiError {
            status: StatusCode::NOT_FOUND,
            message: "page not found".into(),
            lost: false,
        }),
        _ => Ok(()),
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");

fn json_body(body: &impl Serialize) -> ApiResult<Body> {
    serde_json::to_string(body)
        .map(whelk_client::full_body)
        .map_err(|error| ApiError::local(format!("the request cannot be sent: {error}")))
}

/// Reads and discards the body of a response.
async fn ignore(response: Response<hyper::body::Incoming>) -> ApiResult<()> {
    let body = response.into_body().collect().await;
    body.map(drop).map_err(|error| lost(&error))
}

/// Reads the JSON body of a response.
///
/// # Errors
/// Returns an error if the body is empty: an engine that exits while it answers ends its responses
/// properly.
pub(crate) async fn read<T: DeserializeOwned>(
    response: Response<hyper::body::Incoming>,
) -> ApiResult<T> {
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| lost(&error))?.to_bytes();
    if body.is_empty() {
        return Err(ApiError::lost(
            "read the engine's response: it is empty".into(),
        ));
    }
    serde_json::from_slice(&body)
        .and_then(whelk_api_types::read)
        .map_err(unreadable)
}

/// Returns the error for a response that does not have the API's format.
pub(crate) fn unreadable(error: serde_json::Error) -> ApiError {
    ApiError::local(format!("read the engine's response: {error}"))
}

/// Returns the error for a response that is cut short.
pub(crate) fn lost(error: &hyper::Error) -> ApiError {
    ApiError::lost(format!(
        "connection to the engine lost before its response was complete, so its outcome is unknown ({error}); check the engine, then the command's result"
    ))
}

/// Percent-encodes an image name in a path; `/`, `:` and `@` are kept.
pub(crate) fn escape_name(text: &str) -> String {
    url::escape(text.trim_start_matches('/'))
        .replace("%2F", "/")
        .replace("%3A", ":")
        .replace("%40", "@")
}

/// Encodes a query string. Pairs with empty values are omitted.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let list: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={}", url::escape(value)))
        .collect();
    if list.is_empty() {
        String::new()
    } else {
        format!("?{}", list.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(query(&[("a", "x y&z"), ("b", "")]), "?a=x%20y%26z");
        assert_eq!(escape_name("a/b:c@d e"), "a/b:c@d%20e");
    }

    #[tokio::test]
    async fn rejects_an_empty_body_where_an_object_is_expected() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use whelk_api_types::ContainerWaitResponse;

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Host::Tcp(listener.local_addr().unwrap().to_string());
        let client = Client::new(host, None, "default".into(), false);
        let answers = async {
            for body in ["", "", "12\r\n{\"StatusCode\":137}\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let answer =
                    format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let requests = async {
            let error = client
                .post::<ContainerWaitResponse>("/a")
                .await
                .unwrap_err();
            assert!(error.lost, "{error}");
            client.post_no_content("/b").await.unwrap();
            let status: ContainerWaitResponse = client.post("/c").await.unwrap();
            assert_eq!(status.status_code, 137);
        };
        tokio::join!(answers, requests);
    }

    #[test]
    fn reports_an_empty_name_in_a_path() {
        let checked = |path: &str| check_named(path).map_err(|error| error.to_string());
        assert_eq!(
            checked("/volumes/?force=1"),
            Err("invalid volume name or ID: value is empty".into())
        );
        assert_eq!(
            checked("/containers//start"),
            Err("invalid container name or ID: value is empty".into())
        );
        assert_eq!(
            checked("/containers/%20?force=1"),
            Err("invalid container name or ID: value is empty".into())
        );
        assert_eq!(
            checked("/images//history"),
            Err("Error response from daemon: page not found".into())
        );
        for path in ["/volumes", "/volumes?a=b/", "/volumes/x", "/images/json"] {
            assert_eq!(checked(path), Ok(()), "{path}");
        }
    }
}
