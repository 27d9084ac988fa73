//! Directories with build caches and images, which the engine reads and writes during a build: OCI layouts.
//!
//! The index of a layout says which cache or image has which tag. It is read before the build, and written after it, when all
//! blobs are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use whelk_buildkit::content::{READ, WRITE};
use whelk_buildkit::grpc::{Call, Code, Result, Status};
use whelk_buildkit::pb::content::{
    ReadContentRequest, ReadContentResponse, WriteAction, WriteContentRequest, WriteContentResponse,
};
use whelk_buildkit::pb::control::{CacheOptions, CacheOptionsEntry, SolveResponse};
use whelk_image::Digest;
use whelk_image::descriptor::{Descriptor, Index};
use whelk_image::digest::Hashing;

use crate::output::warn_line;
use crate::terminal::harmless;
use crate::{Failure, Outcome, files, plain};

/// The annotation of an index's entry with its tag.
const TAG: &str = "org.opencontainers.image.ref.name";

/// The one with the full name of an image.
const NAME: &str = "io.containerd.image.name";

/// The store that the engine puts an image into.
const EXPORTED: &str = "export";

/// The mode of files.
const SHARED: u32 = 0o644;

/// Size of the pieces of a blob in bytes.
const PIECE: usize = 1 << 20;

/// The directories of a build. The engine knows them as `local:DIRECTORY`.
#[derive(Clone, Debug, Default)]
pub(super) struct Stores {
    read: BTreeSet<String>,
    /// With the tags that the cache gets.
    written: BTreeMap<String, BTreeSet<String>>,
    /// Those of named contexts, of which only their names are known to the engine (`oci:NAME`).
    pub layouts: BTreeMap<String, PathBuf>,
    /// That of the result.
    pub exported: Option<PathBuf>,
}

impl Stores {
    /// Returns the directories that the options of a build name, and adds to them what the engine needs to know. A directory without
    /// a cache is not imported, of which the user is told.
    pub fn of(options: &mut CacheOptions) -> Outcome<Self> {
        let mut stores = Self::default();
        for export in options.exports.iter().filter(|one| one.kind == "local") {
            let directory = attribute(export, "dest").to_owned();
            create(Path::new(&directory))?;
            let tags = stores.written.entry(directory).or_default();
            tags.insert(tag(export));
        }
        options.imports.retain_mut(|import| {
            if import.kind != "local" {
                return true;
            }
            let directory = attribute(import, "src").to_owned();
            if attribute(import, "digest").is_empty() {
                match find(Path::new(&directory), &tag(import)) {
                    Ok(digest) => drop(import.attrs.insert("digest".into(), digest)),
                    Err(why) => {
                        let text = format!("local cache import at {directory} not found: {why}");
                        warn_line!("WARNING: {}", harmless(&text));
                        return false;
                    }
                }
            }
            stores.read.insert(directory);
            true
        });
        Ok(stores)
    }

    /// Answers a call of the engine.
    pub async fn answer(&self, call: Call) -> Result<()> {
        let store = call.entry("buildkit-attachable-store-id").unwrap_or("");
        if let Some(name) = store.strip_prefix("oci:")
            && let Some(directory) = self.layouts.get(name)
            && call.method == READ
        {
            let directory = directory.clone();
            return send(call, &directory).await;
        }
        if store == EXPORTED
            && let Some(directory) = &self.exported
            && call.method == WRITE
        {
            return receive(call, directory).await;
        }
        let directory = store.strip_prefix("local:").unwrap_or("").to_owned();
        let is_written = self.written.contains_key(&directory);
        if call.method == WRITE && is_written {
            return receive(call, Path::new(&directory)).await;
        }
        if call.method == READ && (is_written || self.read.contains(&directory)) {
            return send(call, Path::new(&directory)).await;
        }
        Err(Status::not_found(format!("no such store: {store}")))
    }

    /// Writes what was exported into the indexes.
    pub fn finish(&self, response: &SolveResponse) -> Outcome<()> {
        if let Some(directory) = &self.exported {
            finish_image(directory, response)?;
        }
        let Some(text) = response.exporter_response.get("cache.manifest") else {
            return Ok(());
        };
        let manifest: Descriptor = serde_json::from_str(text)
            .map_err(|error| Failure::new(format!("the engine's cache manifest: {error}")))?;
        for (directory, tags) in &self.written {
            let directory = Path::new(directory);
            for tag in tags {
                name(directory, &manifest, &[(TAG, tag)])?;
            }
        }
        Ok(())
    }
}

fn attribute<'a>(entry: &'a CacheOptionsEntry, name: &str) -> &'a str {
    entry.attrs.get(name).map_or("", String::as_str)
}

fn tag(entry: &CacheOptionsEntry) -> String {
    match attribute(entry, "tag") {
        "" => "latest".to_owned(),
        tag => tag.to_owned(),
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{what} {}: {}", path.display(), plain(error)))
}

/// Writes a file that others may read, as those that other builders make.
fn write(path: &Path, content: &[u8]) -> Outcome<()> {
    let is_new = !path.exists();
    let mut written = files::replace(path, content);
    if is_new {
        written =
            written.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(SHARED)));
    }
    written.map_err(|error| failed("write", path, &error))
}

/// Creates a layout without blobs, if there is none.
fn create(directory: &Path) -> Outcome<()> {
    let create = |path: &Path| {
        let created = std::fs::create_dir_all(path);
        created.map_err(|error| failed("create", path, &error))
    };
    create(&directory.join("blobs/sha256"))?;
    create(&directory.join("ingest"))?;
    let path = directory.join("oci-layout");
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    write(&path, layout)
}

fn index(directory: &Path) -> std::result::Result<Index, String> {
    let path = directory.join("index.json");
    let read = files::read(&path);
    let bytes = read.map_err(|error| format!("read {}: {}", path.display(), plain(&error)))?;
    Index::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns the digest of the image with a tag in a layout, or of the only one there.
pub(super) fn find_image(directory: &Path, tag: &str) -> std::result::Result<String, String> {
    let index = index(directory)?;
    match (find_in(&index, tag), index.manifests.as_slice()) {
        (Some(digest), _) => Ok(digest),
        (None, [only]) => Ok(only.digest.to_string()),
        (None, all) => Err(format!(
            "no tag {tag} among the {} images of the layout",
            all.len()
        )),
    }
}

/// Returns the digest that the index of a layout has for a tag.
fn find(directory: &Path, tag: &str) -> std::result::Result<String, String> {
    let found = find_in(&index(directory)?, tag);
    found.ok_or_else(|| format!("no tag {tag} in {}/index.json", directory.display()))
}

fn find_in(index: &Index, tag: &str) -> Option<String> {
    let mut entries = index.manifests.iter();
    let entry = entries.find(|entry| entry.annotations.get(TAG).is_some_and(|own| own == tag));
    entry.map(|entry| entry.digest.to_string())
}

/// Makes a layout of the blobs of an image, with its names. Of several outputs, the engine's answer is about this one.
fn finish_image(directory: &Path, response: &SolveResponse) -> Outcome<()> {
    let told = |name: &str| response.exporter_response.get(name);
    let Some(text) = told("containerimage.descriptor") else {
        return Ok(());
    };
    let invalid = |error: String| Failure::new(format!("the engine's image descriptor: {error}"));
    let decoded = STANDARD.decode(text);
    let decoded = decoded.map_err(|error| invalid(error.to_string()))?;
    let manifest: Descriptor =
        serde_json::from_slice(&decoded).map_err(|error| invalid(error.to_string()))?;
    let (path, _) =
        blob(directory, manifest.digest.as_str()).map_err(|status| invalid(status.message))?;
    if !path.is_file() {
        let text = format!(
            "the engine has not sent the image {} for {}",
            manifest.digest,
            directory.display()
        );
        return Err(Failure::new(text));
    }
    create(directory)?;
    let Some(names) = told("image.name") else {
        return name(directory, &manifest, &[(TAG, "latest")]);
    };
    for full in names.split(',') {
        let tag = full.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        name(directory, &manifest, &[(NAME, full), (TAG, tag)])?;
    }
    Ok(())
}

/// Adds a manifest to the index of a layout with annotations, instead of the one that has the first of them.
fn name(directory: &Path, manifest: &Descriptor, annotations: &[(&str, &str)]) -> Outcome<()> {
    let path = directory.join("index.json");
    let mut index = match files::read(&path) {
        Ok(bytes) => Index::parse(&bytes)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Index::new(Vec::new()),
        Err(error) => return Err(failed("read", &path, &error)),
    };
    let has = |entry: &Descriptor, name: &str, value: &str| {
        entry.annotations.get(name).is_some_and(|own| own == value)
    };
    if let Some((name, value)) = annotations.first() {
        index.manifests.retain(|entry| !has(entry, name, value));
    }
    let mut entry = manifest.clone();
    let annotations = annotations.iter();
    let annotations = annotations.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    entry.annotations.extend(annotations);
    index.manifests.push(entry);
    let text = serde_json::to_vec(&index)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    write(&path, &text)
}

fn blob(directory: &Path, digest: &str) -> Result<(PathBuf, Digest)> {
    let parsed: Digest = digest
        .parse()
        .map_err(|error| Status::invalid(format!("digest {digest:?}: {error}")))?;
    let algorithm = parsed.algorithm().name();
    let path = directory.join("blobs").join(algorithm).join(parsed.hex());
    Ok((path, parsed))
}

fn status(what: &str, path: &Path, error: &std::io::Error) -> Status {
    Status::unknown(format!("{what} {}: {}", path.display(), plain(error)))
}

/// Sends a blob of a layout.
async fn send(mut call: Call, directory: &Path) -> Result<()> {
    let request: ReadContentRequest = call.request().await?;
    let (path, digest) = blob(directory, &request.digest)?;
    if !path.is_file() {
        return Err(Status::not_found(format!("content {digest}: not found")));
    }
    let failed = |error: std::io::Error| status("read", &path, &error);
    let mut file = File::open(&path).map_err(failed)?;
    let mut offset = u64::try_from(request.offset).unwrap_or(0);
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut left = match u64::try_from(request.size) {
        Ok(0) | Err(_) => u64::MAX,
        Ok(size) => size,
    };
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let count = file.read(&mut buffer[..most]).map_err(failed)?;
        if count == 0 {
            break;
        }
        let response = ReadContentResponse {
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            data: bytes::Bytes::copy_from_slice(&buffer[..count]),
        };
        call.responses.send(&response).await?;
        offset += count as u64;
        left -= count as u64;
    }
    Ok(())
}

/// Receives a blob into a layout.
async fn receive(call: Call, directory: &Path) -> Result<()> {
    let Call {
        mut requests,
        responses,
        ..
    } = call;
    let mut incoming: Option<Incoming> = None;
    while let Some(request) = requests.next::<WriteContentRequest>().await? {
        let mut response = WriteContentResponse {
            action: request.action,
            total: request.total,
            ..WriteContentResponse::default()
        };
        let (path, digest) = match &incoming {
            Some(incoming) => (incoming.path.clone(), incoming.digest.clone()),
            None => blob(directory, &request.expected)?,
        };
        if incoming.is_none() && path.is_file() {
            let text = format!("content {digest}: already exists");
            return Err(Status::new(Code::AlreadyExists, text));
        }
        let current = match &mut incoming {
            Some(current) => current,
            None => incoming.insert(Incoming::create(path, digest)?),
        };
        match WriteAction::try_from(request.action) {
            Ok(WriteAction::Stat) => {}
            Ok(WriteAction::Write) => current.write(&request)?,
            Ok(WriteAction::Commit) => {
                if !request.data.is_empty() {
                    current.write(&request)?;
                }
                let offset = current.output.count();
                let digest = incoming.take().map(Incoming::commit).transpose()?;
                response.digest = digest.unwrap_or_default();
                response.offset = i64::try_from(offset).unwrap_or(i64::MAX);
                responses.send(&response).await?;
                continue;
            }
            Err(_) => return Err(Status::invalid("an unknown action")),
        }
        let offset = current.output.count();
        response.offset = i64::try_from(offset).unwrap_or(i64::MAX);
        responses.send(&response).await?;
    }
    Ok(())
}

/// A blob that is being received, in a file beside its place.
struct Incoming {
    path: PathBuf,
    digest: Digest,
    staged: Staged,
    output: Hashing<File>,
}

/// An incomplete file, which is removed unless it was renamed.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Incoming {
    fn create(path: PathBuf, digest: Digest) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| status("create", parent, &error))?;
        }
        let (file, staged) = files::stage(&path).map_err(|error| status("write", &path, &error))?;
        let output = Hashing::with(digest.algorithm(), file);
        Ok(Self {
            path,
            digest,
            staged: Staged(staged),
            output,
        })
    }

    fn write(&mut self, request: &WriteContentRequest) -> Result<()> {
        let count = self.output.count();
        if u64::try_from(request.offset).ok() != Some(count) {
            let text = format!("the blob continues at {count}, not at {}", request.offset);
            return Err(Status::invalid(text));
        }
        let written = self.output.write_all(&request.data);
        written.map_err(|error| status("write", &self.path, &error))
    }

    /// Verifies the blob, and moves it to its place. Returns its digest.
    fn commit(self) -> Result<String> {
        let (found, _, file) = self.output.finish();
        if found != self.digest {
            let text = format!("another content than {}: {found}", self.digest);
            return Err(Status::invalid(text));
        }
        let moved = file
            .set_permissions(Permissions::from_mode(SHARED))
            .and_then(|()| file.sync_data())
            .and_then(|()| std::fs::rename(&self.staged.0, &self.path));
        moved.map_err(|error| status("write", &self.path, &error))?;
        Ok(found.to_string())
    }
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    fn entry(kind: &str, attributes: &[(&str, &str)]) -> CacheOptionsEntry {
        let attributes = attributes.iter();
        let attrs = attributes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        CacheOptionsEntry {
            kind: kind.into(),
            attrs: attrs.collect(),
        }
    }

    #[test]
    fn tags_are_found_in_the_index() {
        let scratch = Scratch::temporary("stores").unwrap();
        let place = scratch.path().join("cache");
        let place = place.to_str().unwrap();
        let mut options = CacheOptions {
            imports: vec![entry("local", &[("src", place)]), entry("registry", &[])],
            exports: vec![entry("local", &[("dest", place), ("tag", "main")])],
            ..CacheOptions::default()
        };
        let stores = Stores::of(&mut options).unwrap();
        // There is no cache yet.
        assert_eq!(options.imports.len(), 1);
        let digest = Digest::of(b"manifest");
        let descriptor = Descriptor::new("x", digest.clone(), 8);
        let text = serde_json::to_string(&descriptor).unwrap();
        let response = SolveResponse {
            exporter_response: [("cache.manifest".to_owned(), text)].into(),
        };
        stores.finish(&response).unwrap();
        stores.finish(&response).unwrap();
        let found = |attributes: &[(&str, &str)]| {
            let mut options = CacheOptions {
                imports: vec![entry("local", &[&[("src", place)], attributes].concat())],
                ..CacheOptions::default()
            };
            Stores::of(&mut options).unwrap();
            let import = options.imports.pop();
            import.and_then(|import| import.attrs.get("digest").cloned())
        };
        assert_eq!(found(&[("tag", "main")]), Some(digest.to_string()));
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("digest", "sha256:x")]), Some("sha256:x".into()));
    }

    #[test]
    fn images_have_their_names_in_the_index() {
        let scratch = Scratch::temporary("layout").unwrap();
        let place = scratch.path().join("new/layout");
        let stores = Stores {
            exported: Some(place.clone()),
            ..Stores::default()
        };
        let digest = Digest::of(b"manifest");
        let descriptor = Descriptor::new("x", digest.clone(), 8);
        let text = STANDARD.encode(serde_json::to_vec(&descriptor).unwrap());
        let mut response = SolveResponse {
            exporter_response: [("containerimage.descriptor".to_owned(), text)].into(),
        };
        // Not without the blob.
        assert!(stores.finish(&response).is_err());
        let (path, _) = blob(&place, digest.as_str()).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"manifest").unwrap();
        stores.finish(&response).unwrap();
        let names = "docker.io/library/a:1,docker.io/library/b:2".to_owned();
        response
            .exporter_response
            .insert("image.name".into(), names);
        stores.finish(&response).unwrap();
        stores.finish(&response).unwrap();
        assert_eq!(index(&place).unwrap().manifests.len(), 3);
        for tag in ["latest", "1", "2"] {
            assert_eq!(find(&place, tag), Ok(digest.to_string()));
        }
    }

    #[test]
    fn blobs_are_within_the_layout() {
        let root = Path::new("/cache");
        let digest = Digest::of(b"");
        let (path, _) = blob(root, digest.as_str()).unwrap();
        assert!(path.starts_with("/cache/blobs/sha256"));
        for digest in ["", "sha256:../../x", "sha256:", "../x:00"] {
            assert!(blob(root, digest).is_err(), "{digest}");
        }
    }
}
