//! Pushes: uploads of blobs and manifests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::{Behaviour, Registry, begin};
use crate::images::sha256;

type Header<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Registry {
    /// Makes a blob part of a repository.
    pub(super) fn link(&self, repository: &str, digest: &str) {
        let link = (repository.to_owned(), digest.to_owned());
        self.state().linked.insert(link);
    }

    /// Returns whether a repository has a blob.
    #[must_use]
    pub fn has(&self, repository: &str, digest: &str) -> bool {
        let link = (repository.to_owned(), digest.to_owned());
        self.state().linked.contains(&link)
    }

    /// Removes a blob from a repository.
    pub fn unlink(&self, repository: &str, digest: &str) {
        let link = (repository.to_owned(), digest.to_owned());
        self.state().linked.remove(&link);
    }

    /// Returns the manifest of a tag, and its digest.
    #[must_use]
    pub fn manifest_of(&self, repository: &str, tag: &str) -> Option<(Value, String)> {
        let state = self.state();
        let (_, content) = state.manifests.get(&format!("{repository}/{tag}"))?;
        let digest = format!("sha256:{}", sha256(content));
        Some((serde_json::from_slice(content).ok()?, digest))
    }

    /// Returns the content of a blob.
    #[must_use]
    pub fn content(&self, digest: &str) -> Option<Vec<u8>> {
        self.state().blobs.get(digest).cloned()
    }

    /// Answers a request that is not a GET.
    pub(super) fn change(
        &self,
        stream: &mut TcpStream,
        method: &str,
        path: &str,
        header: Header<'_>,
        behaviour: &Behaviour,
    ) -> Option<()> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let value = pairs.find(|(key, _)| *key == name)?.1;
            Some(value.replace("%3A", ":").replace("%2F", "/"))
        };
        if let Some((repository, tag)) = path.split_once("/manifests/") {
            let content = body(stream, header, usize::MAX).ok()?;
            return self.put_manifest(stream, repository, tag, &content, header);
        }
        let (repository, rest) = path.split_once("/blobs/")?;
        if method == "HEAD" {
            let is_there = self.has(repository, rest);
            let status = if is_there { "200 OK" } else { "404 Not Found" };
            let length = self.content(rest).filter(|_| is_there);
            return begin(
                stream,
                status,
                "",
                length.map_or(0, |content| content.len()),
            );
        }
        let has_length = header("content-length").or_else(|| header("transfer-encoding"));
        if !matches!(method, "DELETE" | "GET") && has_length.is_none() {
            return begin(stream, "411 Length Required", "", 0);
        }
        if behaviour.is_read_only {
            return refuse(stream, "403 Forbidden", "DENIED", "no pushes");
        }
        let upload = rest.strip_prefix("uploads/")?;
        if method == "POST" {
            let (mount, from) = (parameter("mount"), parameter("from"));
            if let (Some(mount), Some(from)) = (mount, from)
                && self.has(&from, &mount)
            {
                self.link(repository, &mount);
                return begin(stream, "201 Created", "", 0);
            }
            let id = {
                let mut state = self.state();
                let id = state.uploads.len();
                state.uploads.insert(id, (Vec::new(), 0));
                id
            };
            return self.accept(stream, repository, id);
        }
        let id: usize = upload.parse().ok()?;
        let state = parameter("state")?.parse::<usize>().ok()?;
        if self.state().uploads.get(&id)?.1 != state {
            return refuse(stream, "404 Not Found", "BLOB_UPLOAD_UNKNOWN", "state");
        }
        if method == "GET" {
            let last = self.state().uploads.get(&id)?.0.len().saturating_sub(1);
            return begin(stream, "204 No Content", &format!("range: 0-{last}\r\n"), 0);
        }
        let limit = behaviour.cut_uploads_after.unwrap_or(usize::MAX);
        let received = self.receive(stream, header, limit, behaviour);
        let content = match received {
            Ok(content) => content,
            Err(part) => {
                self.state().uploads.get_mut(&id)?.0.extend(part);
                return None;
            }
        };
        let mut received = {
            let mut state = self.state();
            let upload = state.uploads.get_mut(&id)?;
            upload.0.extend(content);
            upload.1 += 1;
            upload.0.clone()
        };
        match method {
            "PATCH" => self.accept(stream, repository, id),
            "PUT" => {
                let digest = format!("sha256:{}", sha256(&received));
                if parameter("digest")? != digest {
                    return refuse(stream, "400 Bad Request", "DIGEST_INVALID", "digest");
                }
                self.state()
                    .blobs
                    .insert(digest.clone(), std::mem::take(&mut received));
                self.link(repository, &digest);
                begin(stream, "201 Created", "", 0)
            }
            _ => begin(stream, "204 No Content", "", 0),
        }
    }

    /// Reads content of an upload.
    fn receive(
        &self,
        stream: &mut TcpStream,
        header: Header<'_>,
        limit: usize,
        behaviour: &Behaviour,
    ) -> Result<Vec<u8>, Vec<u8>> {
        {
            let mut state = self.state();
            let (now, most) = state.receiving;
            state.receiving = (now + 1, most.max(now + 1));
        }
        let content = body(stream, header, limit);
        std::thread::sleep(behaviour.upload_pause.unwrap_or_default());
        self.state().receiving.0 -= 1;
        content
    }

    /// Returns the maximum number of parallel requests with content of an upload.
    #[must_use]
    pub fn most_uploads(&self) -> usize {
        self.state().receiving.1
    }

    /// Responds with the location of an upload: a path or a URL, alternating, as both are allowed.
    fn accept(&self, stream: &mut TcpStream, repository: &str, id: usize) -> Option<()> {
        let base = if id.is_multiple_of(2) {
            String::new()
        } else {
            format!("http://{}", self.host)
        };
        let state = self.state().uploads.get(&id)?.1;
        let location =
            format!("location: {base}/v2/{repository}/blobs/uploads/{id}?state={state}\r\n");
        begin(stream, "202 Accepted", &location, 0)
    }

    fn put_manifest(
        &self,
        stream: &mut TcpStream,
        repository: &str,
        tag: &str,
        content: &[u8],
        header: Header<'_>,
    ) -> Option<()> {
        let manifest: Value = serde_json::from_slice(content).ok()?;
        for entry in manifest["manifests"].as_array().into_iter().flatten() {
            let name = format!("{repository}/{}", entry["digest"].as_str()?);
            if !self.state().manifests.contains_key(&name) {
                let (status, code) = ("400 Bad Request", "MANIFEST_UNKNOWN");
                return refuse(stream, status, code, "manifest unknown");
            }
        }
        let blobs = manifest["layers"].as_array().into_iter().flatten();
        for blob in blobs.chain(manifest.get("config")) {
            let is_elsewhere = blob["urls"].is_array();
            if !is_elsewhere && !self.has(repository, blob["digest"].as_str()?) {
                let (status, code) = ("400 Bad Request", "MANIFEST_BLOB_UNKNOWN");
                return refuse(stream, status, code, "blob unknown to registry");
            }
        }
        let document = (header("content-type")?, content.to_vec());
        let digest = format!("sha256:{}", sha256(content));
        for version in [tag, digest.as_str()] {
            let name = format!("{repository}/{version}");
            self.state().manifests.insert(name, document.clone());
        }
        let header = format!("docker-content-digest: {digest}\r\n");
        begin(stream, "201 Created", &header, 0)
    }
}

fn refuse(stream: &mut TcpStream, status: &str, code: &str, message: &str) -> Option<()> {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
    begin(stream, status, "", body.len())?;
    stream.write_all(body.as_bytes()).ok()
}

/// Reads the body of a request. On an error the content so far is returned: the client has gone, or there
/// are more than `limit` bytes.
fn body(stream: &mut TcpStream, header: Header<'_>, limit: usize) -> Result<Vec<u8>, Vec<u8>> {
    let mut content = Vec::new();
    match read_body(stream, header, limit, &mut content) {
        Some(()) => Ok(content),
        None => Err(content),
    }
}

fn read_body(
    stream: &mut TcpStream,
    header: Header<'_>,
    limit: usize,
    content: &mut Vec<u8>,
) -> Option<()> {
    let mut input = BufReader::new(stream);
    if let Some(length) = header("content-length") {
        let length: u64 = length.parse().ok()?;
        let read = input.take(length).read_to_end(content).ok()?;
        return (read as u64 == length).then_some(());
    }
    if header("transfer-encoding").is_none() {
        return Some(());
    }
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; length + 2];
        input.read_exact(&mut chunk).ok()?;
        content.extend_from_slice(&chunk[..length]);
        if length == 0 {
            return Some(());
        }
        if content.len() > limit {
            return None;
        }
    }
}
