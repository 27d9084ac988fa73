//! Servers of git repositories: version 2 of git's protocol over HTTP and ssh (gitprotocol-v2, gitprotocol-http), version 0
//! (gitprotocol-pack) for servers that do not let clients set `GIT_PROTOCOL`, as OpenSSH's and many web servers do not by default,
//! and plain files over HTTP.

use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use gix_hash::Kind as Hash;
use tokio::sync::{Mutex, mpsc};
use whelk_registry::{Client as Web, WebRequest, WebResponse};

use super::files::Files;
use super::link::Link;
use super::packets::{Packet, Packets, put};
use super::remote::Remote;
use super::{Access, Secrets};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::progress::Work;
use crate::sources::http::{header, redacted};

/// Maximum number of bytes of an answer with a list of references or of capabilities, and of one with a pack.
pub(super) const MAX_LIST: u64 = 64 << 20;
pub(super) const MAX_PACK: u64 = 16 << 30;

/// The type of the first answer of a server that speaks git's protocol over HTTP. Others are taken for servers of files, as by git.
const ADVERTISEMENT: &str = "application/x-git-upload-pack-advertisement";

/// Progress is told each time after so many bytes.
pub(super) const STEP: u64 = 1 << 20;

/// A reference that was found.
#[derive(Clone, Debug, Default)]
pub(super) struct ResolvedReference {
    /// The full name; that of the branch, if it is the default one and the server tells. Empty if the commit itself was asked for.
    pub reference: String,
    pub commit: String,
    /// The annotated tag that names the commit; empty without one.
    pub tag: String,
}

impl ResolvedReference {
    /// Returns a commit that has no name.
    pub fn commit(id: &str) -> Self {
        Self {
            commit: id.to_owned(),
            ..Self::default()
        }
    }
}

/// A server that has told what it can.
pub(super) struct Server {
    remote: Remote,
    transport: Transport,
    /// What the server says of its objects' ids; `None` if it says nothing.
    object_format: Option<Hash>,
    /// What is known of its references without asking; `None` in version 2.
    listed: Option<Listed>,
}

/// The references of a server that lists them all.
#[derive(Default)]
pub(super) struct Listed {
    /// Names with their ids. What annotated tags stand for is called `NAME^{}`.
    pub references: Vec<(String, String)>,
    /// The branch that `HEAD` stands for.
    pub head: Option<String>,
}

impl Listed {
    fn find(&self, name: &str) -> Option<&str> {
        let found = self.references.iter().find(|(known, _)| known == name);
        found.map(|(_, id)| id.as_str())
    }

    /// Adds `HEAD`, from the text of that file.
    pub fn set_head(&mut self, text: &str) {
        let id = match text.strip_prefix("ref: ") {
            Some(branch) => {
                let id = self.find(branch).map(str::to_owned);
                self.head = id.is_some().then(|| branch.to_owned());
                id
            }
            None => Some(text.to_owned()).filter(|id| super::is_commit(id)),
        };
        self.references.extend(id.map(|id| ("HEAD".to_owned(), id)));
    }
}

enum Transport {
    Http {
        web: Arc<Web>,
        /// Perhaps another one than asked for, after a redirect.
        base: String,
        /// The header `Authorization`; empty for none.
        authorization: String,
    },
    Ssh(Box<Mutex<Link>>),
    Files(Box<Files>),
}

/// Returns the error of a request to a repository, whose URL is in all texts but that of a server that cannot be reached.
pub(super) fn failed(remote: &Remote, error: &whelk_registry::Error) -> Error {
    match error {
        whelk_registry::Error::Unreachable { .. } => wrong(remote, &error.to_string()),
        _ => Error::invalid(error.to_string()),
    }
}

impl Server {
    /// Asks a server for its capabilities.
    pub async fn open(
        web: Arc<Web>,
        client: &dyn Client,
        remote: &Remote,
        access: &Access,
        work: &Work,
    ) -> Result<Self> {
        match remote.ssh() {
            None => Self::open_http(web, client, remote, &access.secrets).await,
            Some(ssh) => {
                let link = Link::open(client, ssh, access, work).await;
                let link = link.map_err(|error| wrong(remote, &error.to_string()))?;
                Self::open_ssh(link, remote).await
            }
        }
    }

    async fn open_http(
        web: Arc<Web>,
        client: &dyn Client,
        remote: &Remote,
        secrets: &Secrets,
    ) -> Result<Self> {
        const QUERY: &str = "/info/refs?service=git-upload-pack";
        let host = remote.url().split_once("://").map_or("", |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        let mut base = remote.url().to_owned();
        let mut authorization = authorization(client, secrets, host).await?;
        let request = request(remote, &base, &authorization, QUERY)?;
        let response = web.web(&request).await;
        let response = response.map_err(|error| failed(remote, &error))?;
        if matches!(response.status(), 404 | 410) {
            let text = format!(
                "{}: there is no repository, or it has no list of its references (git update-server-info)",
                response.status_text()
            );
            return Err(wrong(remote, &text));
        }
        check(remote, &authorization, &response)?;
        let url = response.url();
        let moved = url.strip_suffix(QUERY);
        let moved = moved.ok_or_else(|| wrong(remote, "it redirects to another path"))?;
        // Without a redirect, the response has the same URL without its credentials, which `base` keeps.
        if moved != redacted(&base) {
            if !redacted(moved).starts_with(&origin(&redacted(&base))) {
                authorization.clear();
            }
            base = moved.to_owned();
        }
        let kind = response.header("content-type").unwrap_or_default();
        let is_smart = kind.starts_with(ADVERTISEMENT);
        if !is_smart {
            let files = Files {
                web,
                remote: remote.clone(),
                base,
                authorization,
            };
            let (listed, hash) = files.list(response).await?;
            return Ok(Self {
                remote: remote.clone(),
                transport: Transport::Files(Box::new(files)),
                object_format: Some(hash),
                listed: Some(listed),
            });
        }
        let mut packets = Packets::of_response(response, MAX_LIST);
        let mut advertised = Advertisement::default();
        while let Some(packet) = packets.next().await.map_err(|text| wrong(remote, &text))? {
            if let Packet::Data(line) = packet {
                advertised.add(remote, &line)?;
            }
        }
        let transport = Transport::Http {
            web,
            base,
            authorization,
        };
        Self::of(remote, transport, advertised)
    }

    async fn open_ssh(link: Link, remote: &Remote) -> Result<Self> {
        let link = Mutex::new(link);
        let mut advertised = Advertisement::default();
        let mut packets = Packets::of_link(link.lock().await, MAX_LIST);
        while let Some(packet) = packets.next().await.map_err(|text| wrong(remote, &text))? {
            match packet {
                Packet::Data(line) => advertised.add(remote, &line)?,
                _ => break,
            }
        }
        drop(packets);
        Self::of(remote, Transport::Ssh(Box::new(link)), advertised)
    }

    /// Returns a server of git's protocol.
    fn of(remote: &Remote, transport: Transport, advertised: Advertisement) -> Result<Self> {
        if !advertised.is_version_2 && !advertised.has_side_band {
            let text =
                "it speaks neither version 2 of git's protocol nor version 0 with side-band-64k";
            return Err(wrong(remote, text));
        }
        Ok(Self {
            remote: remote.clone(),
            object_format: advertised.object_format,
            transport,
            listed: (!advertised.is_version_2).then_some(advertised.listed),
        })
    }

    /// Returns whether [`Server::fetch`] can leave out what a known commit has.
    pub fn knows_haves(&self) -> bool {
        self.listed.is_none()
    }

    /// Returns the kind of its objects' ids.
    pub fn hash(&self) -> Hash {
        self.object_format.unwrap_or(Hash::Sha1)
    }

    fn wrong(&self, problem: &str) -> Error {
        wrong(&self.remote, problem)
    }

    /// Sends a command of version 2, and returns the answer, which has at most so many bytes.
    async fn command(&self, name: &str, arguments: &[String], most: u64) -> Result<Packets<'_>> {
        let mut body = BytesMut::new();
        put(&mut body, &format!("command={name}\n"));
        put(&mut body, "agent=whelk\n");
        if let Some(format) = self.object_format {
            put(&mut body, &format!("object-format={format}\n"));
        }
        body.extend_from_slice(b"0001");
        for argument in arguments {
            put(&mut body, &format!("{argument}\n"));
        }
        body.extend_from_slice(b"0000");
        self.send(body, most).await
    }

    /// Sends a request, and returns the answer, which has at most so many bytes.
    async fn send(&self, body: BytesMut, most: u64) -> Result<Packets<'_>> {
        match &self.transport {
            Transport::Http {
                web,
                base,
                authorization,
            } => {
                let request = request(&self.remote, base, authorization, "/git-upload-pack")?
                    .header("content-type", "application/x-git-upload-pack-request")
                    .header("accept", "application/x-git-upload-pack-result")
                    .body(body.freeze());
                let response = web.web(&request).await;
                let response = response.map_err(|error| failed(&self.remote, &error))?;
                check(&self.remote, authorization, &response)?;
                Ok(Packets::of_response(response, most))
            }
            Transport::Ssh(link) => {
                let link = link.lock().await;
                let sent = link.send(body.freeze()).await;
                sent.map_err(|text| self.wrong(&text))?;
                Ok(Packets::of_link(link, most))
            }
            Transport::Files(_) => Err(Error::internal("a request for a server of files")),
        }
    }

    /// Finds the commit of a name: a full one, a branch or a tag, in this order; without a name, that of the default branch.
    pub async fn resolve(&self, name: &str) -> Result<ResolvedReference> {
        let full = format!("refs/{}", name.trim_start_matches("refs/"));
        let names = match name {
            "" => vec!["HEAD".to_owned()],
            name => vec![
                full,
                format!("refs/heads/{}", name.trim_start_matches("refs/heads/")),
                format!("refs/tags/{}", name.trim_start_matches("refs/tags/")),
            ],
        };
        let mut found: Vec<Option<ResolvedReference>> = names.iter().map(|_| None).collect();
        let mut note = |reference: &str, id: &str, peeled: Option<&str>, target: Option<&str>| {
            let place = names.iter().position(|name| name == reference);
            let Some(place) = place.filter(|_| super::is_commit(id)) else {
                return;
            };
            let peeled = peeled.filter(|id| super::is_commit(id));
            found[place] = Some(ResolvedReference {
                reference: target.unwrap_or(reference).to_owned(),
                commit: peeled.unwrap_or(id).to_owned(),
                tag: peeled.map(|_| id.to_owned()).unwrap_or_default(),
            });
        };
        if let Some(listed) = &self.listed {
            for name in &names {
                if let Some(id) = listed.find(name) {
                    let target = listed.head.as_deref().filter(|_| name == "HEAD");
                    note(name, id, listed.find(&format!("{name}^{{}}")), target);
                }
            }
        } else {
            let prefixes = names.iter().map(|name| format!("ref-prefix {name}"));
            let arguments: Vec<String> = ["peel", "symrefs"]
                .map(str::to_owned)
                .into_iter()
                .chain(prefixes)
                .collect();
            let mut packets = self.command("ls-refs", &arguments, MAX_LIST).await?;
            while let Some(packet) = packets.next().await.map_err(|text| self.wrong(&text))? {
                let Packet::Data(line) = packet else { break };
                let line = String::from_utf8_lossy(&line);
                let mut words = line.trim_end().split(' ');
                let (id, reference) = (words.next().unwrap_or_default(), words.next());
                let attributes: Vec<&str> = words.collect();
                let attribute = |name| attributes.iter().find_map(|word| word.strip_prefix(name));
                let (peeled, target) = (attribute("peeled:"), attribute("symref-target:"));
                note(reference.unwrap_or_default(), id, peeled, target);
            }
        }
        let found = found.into_iter().flatten().next();
        found.ok_or_else(|| match name {
            "" => self.wrong("it has no default branch"),
            name => self.wrong(&format!("repository does not contain ref {name}")),
        })
    }

    /// Fetches the pack of a commit, or of an annotated tag and its commit, without its history, and without what the commit `known`
    /// has, if there is one. Its last piece is `None`. `place` is where nothing is yet.
    pub async fn fetch(
        &self,
        commit: &str,
        known: Option<&str>,
        place: &Path,
        pieces: mpsc::Sender<Option<Bytes>>,
        report: impl Fn(u64, bool),
    ) -> Result<()> {
        if let Transport::Files(files) = &self.transport {
            return files.fetch(commit, place, pieces, report).await;
        }
        let mut arguments = vec![
            "no-progress".to_owned(),
            "ofs-delta".to_owned(),
            "deepen 1".to_owned(),
            format!("want {commit}"),
        ];
        if let Some(known) = known {
            // Its parents are not here, which the server has to know.
            arguments.extend([format!("shallow {known}"), format!("have {known}")]);
        }
        arguments.push("done".to_owned());
        let is_old = self.listed.is_some();
        let mut packets = match &self.listed {
            Some(listed) => {
                let mut body = BytesMut::new();
                let mut capabilities = "side-band-64k ofs-delta no-progress agent=whelk".to_owned();
                if let Some(format) = self.object_format {
                    capabilities = format!("{capabilities} object-format={format}");
                }
                let wanted = tip(&listed.references, commit);
                put(&mut body, &format!("want {wanted} {capabilities}\n"));
                put(&mut body, "deepen 1\n");
                body.extend_from_slice(b"0000");
                put(&mut body, "done\n");
                self.send(body, MAX_PACK).await?
            }
            None => self.command("fetch", &arguments, MAX_PACK).await?,
        };
        let (mut is_pack, mut size, mut reported) = (false, 0, 0);
        while let Some(packet) = packets.next().await.map_err(|text| self.wrong(&text))? {
            let Packet::Data(mut data) = packet else {
                match packet {
                    // The end of a section before the pack.
                    Packet::Delimiter if !is_pack => continue,
                    Packet::End if is_old && !is_pack => continue,
                    _ => break,
                }
            };
            if !is_pack {
                let line = String::from_utf8_lossy(&data);
                if let Some(text) = line.strip_prefix("ERR ") {
                    return Err(self.wrong(text));
                }
                // In version 0, it follows this answer to `done`.
                is_pack = match is_old {
                    true => line.trim_end() == "NAK",
                    false => line.trim_end() == "packfile",
                };
                continue;
            }
            if data.is_empty() {
                continue;
            }
            match data.split_to(1)[0] {
                1 => {
                    size += data.len() as u64;
                    if size - reported >= STEP {
                        reported = size;
                        report(size, false);
                    }
                    // The receiver has failed, and its error is the result.
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

/// What a server tells before it is asked anything: its capabilities and, in version 0, its references.
#[derive(Default)]
struct Advertisement {
    is_version_2: bool,
    object_format: Option<Hash>,
    has_side_band: bool,
    /// Of version 0.
    listed: Listed,
}

impl Advertisement {
    fn add(&mut self, remote: &Remote, line: &[u8]) -> Result<()> {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if let Some(text) = line.strip_prefix("ERR ") {
            return Err(wrong(remote, text));
        }
        if line == "version 2" {
            self.is_version_2 = true;
        }
        // Version 0: ID NAME, and in the first line NUL and all capabilities.
        let (reference, capabilities) = line.split_once('\0').unwrap_or((line, line));
        for capability in capabilities.split(' ') {
            self.has_side_band |= capability == "side-band-64k";
            if let Some(name) = capability.strip_prefix("symref=HEAD:") {
                self.listed.head = Some(name.to_owned());
            }
            if let Some(format) = capability.strip_prefix("object-format=") {
                let format = format.parse::<Hash>().map_err(|_| {
                    let text = format!("git repositories with {capability} ({})", remote.shown());
                    Error::Unsupported(text)
                })?;
                // In version 0, there may be more than one; the first is that of the references.
                self.object_format.get_or_insert(format);
            }
        }
        if let Some((id, name)) = reference.split_once(' ')
            && super::is_commit(id)
        {
            let known = (name.to_owned(), id.to_owned());
            self.listed.references.push(known);
        }
        Ok(())
    }
}

/// Returns what to ask for to get a commit: servers of version 0 give only what they have listed, and of annotated tags the
/// tags.
fn tip<'a>(references: &'a [(String, String)], commit: &'a str) -> &'a str {
    let mut tag = None;
    for (name, id) in references {
        if id != commit {
            continue;
        }
        match name.strip_suffix("^{}") {
            Some(name) => tag = Some(name),
            None => return commit,
        }
    }
    let mut tags = references.iter();
    let tag = tags.find(|(name, _)| tag.is_some_and(|tag| tag == name));
    tag.map_or(commit, |(_, id)| id.as_str())
}

pub(super) fn request(
    remote: &Remote,
    base: &str,
    authorization: &str,
    path: &str,
) -> Result<WebRequest> {
    let request = WebRequest::new(&format!("{base}{path}"));
    let request = request.map_err(|error| failed(remote, &error))?;
    let request = request.header("git-protocol", "version=2");
    Ok(match authorization {
        "" => request,
        value => request.header("authorization", value),
    })
}

pub(super) fn check(remote: &Remote, authorization: &str, response: &WebResponse) -> Result<()> {
    match response.status() {
        200 => Ok(()),
        401 | 403 if authorization.is_empty() => Err(wrong(
            remote,
            &format!(
                "{}: it needs a token (--secret id=GIT_AUTH_TOKEN,…)",
                response.status_text()
            ),
        )),
        _ => Err(wrong(remote, &response.status_text())),
    }
}

pub(super) fn wrong(remote: &Remote, problem: &str) -> Error {
    let problem: String = problem
        .chars()
        .filter(|char| !char.is_control())
        .take(1024)
        .collect();
    Error::invalid(format!(
        "failed to fetch remote {}: {problem}",
        remote.shown()
    ))
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
pub(super) fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let host = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{host}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_annotated_tags_are_asked_for_by_the_tags() {
        let listed = [
            ("HEAD", "two"),
            ("refs/heads/main", "two"),
            ("refs/tags/v1", "tag-one"),
            ("refs/tags/v1^{}", "one"),
            ("refs/tags/v2", "tag-two"),
            ("refs/tags/v2^{}", "two"),
        ];
        let listed = listed.map(|(name, id)| (name.to_owned(), id.to_owned()));
        for (commit, expected) in [("two", "two"), ("one", "tag-one"), ("other", "other")] {
            assert_eq!(tip(&listed, commit), expected);
        }
    }
}
