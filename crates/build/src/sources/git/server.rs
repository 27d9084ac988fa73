//! Servers of git repositories: version 2 of git's protocol over HTTP (gitprotocol-v2, gitprotocol-http).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use whelk_registry::{Client as Web, WebRequest, WebResponse};

use super::Secrets;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::sources::http::{header, redacted};

/// Maximum number of bytes of a list of references, and of a pack.
const MAX_LIST: usize = 64 << 20;
const MAX_PACK: u64 = 16 << 30;

/// Progress is told each time after so many bytes.
const STEP: u64 = 1 << 20;

/// The URL of a repository.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    url: String,
    /// Without credentials.
    shown: String,
}

impl Remote {
    /// # Errors
    /// Returns an error that names the protocol if it is not HTTP.
    pub fn new(url: &str) -> Result<Self> {
        let shown = redacted(url);
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("https" | "http") => Ok(Self {
                url: url.trim_end_matches('/').to_owned(),
                shown,
            }),
            Some("ssh") => Err(Error::Unsupported(format!("git over ssh ({shown})"))),
            None if super::is_scp(url) => {
                Err(Error::Unsupported(format!("git over ssh ({shown})")))
            }
            Some("git") => Err(Error::Unsupported(format!(
                "git's own protocol, which is not encrypted ({shown})"
            ))),
            _ => Err(Error::invalid(format!(
                "{shown:?} is not allowed as a git repository: want https:// or http://"
            ))),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the URL without credentials.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Returns the repository of a submodule, whose URL may be relative to this one.
    pub fn submodule(&self, path: &str, url: &str) -> Result<Self> {
        let named = |error: Error| Error::invalid(format!("submodule {path}: {error}"));
        if !url.starts_with("./") && !url.starts_with("../") {
            return Self::new(url).map_err(named);
        }
        // Never above the host.
        let (scheme, rest) = self.url.split_once("://").unwrap_or_default();
        let (host, own) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parts: Vec<&str> = own.split('/').filter(|part| !part.is_empty()).collect();
        for part in url.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() => {
                    let text = format!("submodule {path}: {url:?} leads above its server");
                    return Err(Error::invalid(text));
                }
                ".." => {}
                part => parts.push(part),
            }
        }
        Self::new(&format!("{scheme}://{host}/{}", parts.join("/"))).map_err(named)
    }
}

/// A reference that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub commit: String,
    /// The annotated tag that names the commit; empty without one.
    pub tag: String,
}

/// A server that has told what it can.
pub(super) struct Server {
    web: Arc<Web>,
    /// Perhaps another one than asked for, after a redirect.
    base: String,
    remote: Remote,
    /// The header `Authorization`; empty for none.
    authorization: String,
    has_object_format: bool,
}

fn failed(error: whelk_registry::Error) -> Error {
    Error::invalid(error.to_string())
}

impl Server {
    /// Asks a server for its capabilities.
    pub async fn open(
        web: Arc<Web>,
        client: &dyn Client,
        remote: &Remote,
        secrets: &Secrets,
    ) -> Result<Self> {
        const QUERY: &str = "/info/refs?service=git-upload-pack";
        let host = remote.url.split_once("://").map_or("", |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        let mut server = Self {
            web,
            base: remote.url.clone(),
            remote: remote.clone(),
            authorization: authorization(client, secrets, host).await?,
            has_object_format: false,
        };
        let request = server.request(QUERY)?;
        let response = server.web.web(&request).await.map_err(failed)?;
        server.check(&response)?;
        let url = response.url();
        let moved = url.strip_suffix(QUERY);
        let moved = moved.ok_or_else(|| server.wrong("it redirects to another path"))?;
        // The same server, without the credentials of the URL, which stay then.
        if moved != redacted(&server.base) {
            if !redacted(moved).starts_with(&origin(&redacted(&server.base))) {
                server.authorization.clear();
            }
            server.base = moved.to_owned();
        }
        let mut packets = Packets::new(response);
        let mut size = 0;
        let mut is_version_2 = false;
        while let Some(packet) = packets.next().await.map_err(|text| server.wrong(&text))? {
            let Packet::Data(line) = packet else { continue };
            size += line.len();
            if size > MAX_LIST {
                return Err(server.wrong("the list of capabilities is too long"));
            }
            let line = String::from_utf8_lossy(&line);
            match line.trim_end() {
                "version 2" => is_version_2 = true,
                "object-format=sha1" => server.has_object_format = true,
                line if line.starts_with("object-format=") => {
                    let text = format!("git repositories with {line} ({})", remote.shown);
                    return Err(Error::Unsupported(text));
                }
                line => {
                    if let Some(text) = line.strip_prefix("ERR ") {
                        return Err(server.wrong(text));
                    }
                }
            }
        }
        match is_version_2 {
            true => Ok(server),
            false => Err(server.wrong("it does not speak version 2 of git's protocol over HTTP")),
        }
    }

    fn request(&self, path: &str) -> Result<WebRequest> {
        let request = WebRequest::new(&format!("{}{path}", self.base)).map_err(failed)?;
        let request = request.header("git-protocol", "version=2");
        Ok(match self.authorization.as_str() {
            "" => request,
            value => request.header("authorization", value),
        })
    }

    fn wrong(&self, problem: &str) -> Error {
        let problem: String = problem
            .chars()
            .filter(|char| !char.is_control())
            .take(1024)
            .collect();
        Error::invalid(format!(
            "failed to fetch remote {}: {problem}",
            self.remote.shown
        ))
    }

    fn check(&self, response: &WebResponse) -> Result<()> {
        match response.status() {
            200 => Ok(()),
            401 | 403 if self.authorization.is_empty() => Err(self.wrong(&format!(
                "{}: it needs a token (--secret id=GIT_AUTH_TOKEN,…)",
                response.status_text()
            ))),
            _ => Err(self.wrong(&response.status_text())),
        }
    }

    /// Sends a command, and returns the answer.
    async fn command(&self, name: &str, arguments: &[String]) -> Result<Packets> {
        let mut body = BytesMut::new();
        packet(&mut body, &format!("command={name}\n"));
        packet(&mut body, "agent=whelk\n");
        if self.has_object_format {
            packet(&mut body, "object-format=sha1\n");
        }
        body.extend_from_slice(b"0001");
        for argument in arguments {
            packet(&mut body, &format!("{argument}\n"));
        }
        body.extend_from_slice(b"0000");
        let request = self
            .request("/git-upload-pack")?
            .header("content-type", "application/x-git-upload-pack-request")
            .header("accept", "application/x-git-upload-pack-result")
            .body(body.freeze());
        let response = self.web.web(&request).await.map_err(failed)?;
        self.check(&response)?;
        Ok(Packets::new(response))
    }

    /// Finds the commit of a name: a full one, a branch or a tag, in this order; without a name, that of the default branch.
    pub async fn resolve(&self, name: &str) -> Result<Found> {
        let full = format!("refs/{}", name.trim_start_matches("refs/"));
        let names = match name {
            "" => vec!["HEAD".to_owned()],
            name => vec![
                full,
                format!("refs/heads/{}", name.trim_start_matches("refs/heads/")),
                format!("refs/tags/{}", name.trim_start_matches("refs/tags/")),
            ],
        };
        let prefixes = names.iter().map(|name| format!("ref-prefix {name}"));
        let arguments: Vec<String> = std::iter::once("peel".to_owned()).chain(prefixes).collect();
        let mut packets = self.command("ls-refs", &arguments).await?;
        let mut found: Vec<Option<Found>> = names.iter().map(|_| None).collect();
        let mut size = 0;
        while let Some(packet) = packets.next().await.map_err(|text| self.wrong(&text))? {
            let Packet::Data(line) = packet else { break };
            size += line.len();
            if size > MAX_LIST {
                return Err(self.wrong("the list of references is too long"));
            }
            let line = String::from_utf8_lossy(&line);
            let mut words = line.trim_end().split(' ');
            let (id, reference) = (words.next().unwrap_or_default(), words.next());
            let place = names
                .iter()
                .position(|name| Some(name.as_str()) == reference);
            let Some(place) = place.filter(|_| super::is_commit(id)) else {
                continue;
            };
            let peeled = words.find_map(|word| word.strip_prefix("peeled:"));
            let peeled = peeled.filter(|id| super::is_commit(id));
            found[place] = Some(Found {
                commit: peeled.unwrap_or(id).to_owned(),
                tag: peeled.map(|_| id.to_owned()).unwrap_or_default(),
            });
        }
        let found = found.into_iter().flatten().next();
        found.ok_or_else(|| match name {
            "" => self.wrong("it has no default branch"),
            name => self.wrong(&format!("repository does not contain ref {name}")),
        })
    }

    /// Fetches the pack of a commit, without its history. Its last piece is `None`.
    pub async fn fetch(
        &self,
        commit: &str,
        pieces: mpsc::Sender<Option<Bytes>>,
        report: impl Fn(u64, bool),
    ) -> Result<()> {
        let arguments = [
            "no-progress".to_owned(),
            "ofs-delta".to_owned(),
            "deepen 1".to_owned(),
            format!("want {commit}"),
            "done".to_owned(),
        ];
        let mut packets = self.command("fetch", &arguments).await?;
        let (mut is_pack, mut size, mut told) = (false, 0, 0);
        while let Some(packet) = packets.next().await.map_err(|text| self.wrong(&text))? {
            let Packet::Data(mut data) = packet else {
                match packet {
                    // The end of a section before the pack.
                    Packet::Delimiter if !is_pack => continue,
                    _ => break,
                }
            };
            if !is_pack {
                let line = String::from_utf8_lossy(&data);
                if let Some(text) = line.strip_prefix("ERR ") {
                    return Err(self.wrong(text));
                }
                is_pack = line.trim_end() == "packfile";
                continue;
            }
            if data.is_empty() {
                continue;
            }
            match data.split_to(1)[0] {
                1 => {
                    size += data.len() as u64;
                    if size > MAX_PACK {
                        return Err(self.wrong(&format!("more than {MAX_PACK} bytes")));
                    }
                    if size - told >= STEP {
                        told = size;
                        report(size, false);
                    }
                    // It has ended with an error, which is the result.
                    if pieces.send(Some(data)).await.is_err() {
                        return Ok(());
                    }
                }
                2 => {}
                _ => return Err(self.wrong(&String::from_utf8_lossy(&data))),
            }
        }
        if !is_pack {
            return Err(self.wrong("no pack has come"));
        }
        report(size, true);
        let _ = pieces.send(None).await;
        Ok(())
    }
}

/// Returns the header with what the client has for a server.
async fn authorization(client: &dyn Client, secrets: &Secrets, host: &str) -> Result<String> {
    use base64::Engine as _;
    for (name, is_token) in secrets.names(host) {
        let Some(value) = client.secret(&name).await? else {
            continue;
        };
        let value = header(&name, value)?;
        return Ok(match is_token {
            false => value,
            true => {
                let both = format!("x-access-token:{value}");
                let both = base64::engine::general_purpose::STANDARD.encode(both);
                format!("Basic {both}")
            }
        });
    }
    Ok(String::new())
}

/// Returns the scheme and the host of a URL, with a slash.
fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let host = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{host}/")
}

fn packet(buffer: &mut BytesMut, text: &str) {
    buffer.extend_from_slice(format!("{:04x}{text}", text.len() + 4).as_bytes());
}

#[derive(Debug, PartialEq, Eq)]
enum Packet {
    Data(Bytes),
    Delimiter,
    End,
}

/// The packets of an answer.
struct Packets {
    response: WebResponse,
    buffer: BytesMut,
}

impl Packets {
    fn new(response: WebResponse) -> Self {
        Self {
            response,
            buffer: BytesMut::new(),
        }
    }

    /// Returns the next packet; `None` at the end of the answer.
    async fn next(&mut self) -> std::result::Result<Option<Packet>, String> {
        loop {
            if let Some(packet) = take(&mut self.buffer)? {
                return Ok(Some(packet));
            }
            match self.response.piece().await {
                Ok(Some(piece)) => self.buffer.extend_from_slice(&piece),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err("the answer ends within a packet".into()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Takes a packet out of a buffer; `None` if it is not complete.
fn take(buffer: &mut BytesMut) -> std::result::Result<Option<Packet>, String> {
    let Some(digits) = buffer.get(..4) else {
        return Ok(None);
    };
    let length = std::str::from_utf8(digits).ok();
    let length = length.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let length = length.and_then(|digits| usize::from_str_radix(digits, 16).ok());
    match length {
        Some(0 | 2) => {
            drop(buffer.split_to(4));
            Ok(Some(Packet::End))
        }
        Some(1) => {
            drop(buffer.split_to(4));
            Ok(Some(Packet::Delimiter))
        }
        Some(length @ 4..) if buffer.len() >= length => {
            let mut packet = buffer.split_to(length);
            Ok(Some(Packet::Data(packet.split_off(4).freeze())))
        }
        Some(4..) => Ok(None),
        _ => Err("the answer is not of git's protocol".into()),
    }
}

/// Takes all packets out of bytes.
pub(super) fn decode(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(_)) = take(&mut buffer) {}
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_taken_as_they_come() {
        let mut buffer = BytesMut::from(&b"0006a\n00010000"[..]);
        let mut next = || take(&mut buffer).unwrap();
        assert_eq!(next(), Some(Packet::Data(Bytes::from_static(b"a\n"))));
        assert_eq!(next(), Some(Packet::Delimiter));
        assert_eq!(next(), Some(Packet::End));
        assert_eq!(next(), None);
        assert_eq!(take(&mut BytesMut::from(&b"0009ab"[..])).unwrap(), None);
        for text in ["<html", "0003", "+00a", "00é"] {
            assert!(
                take(&mut BytesMut::from(text.as_bytes())).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn other_protocols_are_refused_by_name() {
        for (url, error) in [
            ("ssh://git@h/r.git", "git over ssh (ssh://h/r.git)"),
            ("git@h:r.git", "git over ssh (git@h:r.git)"),
            ("git://h/r.git", "git's own protocol"),
            ("file:///etc", "\"file:///etc\" is not allowed"),
            ("ext::sh -c x", "\"ext::sh -c x\" is not allowed"),
            ("/etc", "\"/etc\" is not allowed"),
            ("--upload-pack=x", "is not allowed"),
        ] {
            let found = Remote::new(url).unwrap_err().to_string();
            assert!(found.contains(error), "{url}: {found}");
        }
        let remote = Remote::new("https://user:secret@h/r.git").unwrap();
        assert_eq!(remote.shown(), "https://h/r.git");
    }

    #[test]
    fn submodules_have_urls_on_the_same_server_or_of_their_own() {
        let remote = Remote::new("https://u:p@h/group/r.git").unwrap();
        for (url, expected) in [
            ("../other.git", "https://u:p@h/group/other.git"),
            ("./below", "https://u:p@h/group/r.git/below"),
            ("../../x", "https://u:p@h/x"),
            ("https://x/y.git", "https://x/y.git"),
        ] {
            assert_eq!(remote.submodule("m", url).unwrap().url(), expected);
        }
        for url in [
            "../../../x",
            "file:///x",
            "ext::x",
            "-x",
            "/x",
            "x",
            "git@h:x",
        ] {
            let error = remote.submodule("m", url).unwrap_err().to_string();
            assert!(error.starts_with("submodule m: "), "{url}: {error}");
        }
    }
}
