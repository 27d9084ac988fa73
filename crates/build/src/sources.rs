//! What the sources of a graph refer to: images, and directories of the client.

mod attributes;
pub(crate) mod fetched;
pub(crate) mod git;
pub(crate) mod http;
mod layout;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use whelk_dockerfile::convert::ResolveMode;
use whelk_engine::images::{Image, PullRequest};
use whelk_image::progress::{State, Update};
use whelk_image::{
    Digest as LayerDigest, Lease, Platform, Progress as PullProgress, Reference, Store,
};
use whelk_llb::key::{self, Selector};
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{self, SourceOp};
use whelk_llb::{CUSTOM_NAME, Digest, Graph, Node};
use whelk_sys::sync::IgnorePoison as _;

pub(crate) use self::attributes::{check, image_of};
use crate::Builder;
use crate::client::Client;
use crate::directory::Directory;
use crate::emulation::host;
use crate::error::{Error, Result};
use crate::layers::{Layer, Stack};
use crate::listing::{self, Listed};
use crate::progress::{EventKind, Progress, Work};
use crate::request::Request;

/// Number of sources of a build that are fetched at the same time.
pub(crate) const AT_ONCE: usize = 16;

/// An image that a build uses.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub image: Arc<Image>,
    /// Holds its layers: the image itself may be removed.
    _lease: Arc<Lease>,
}

impl Base {
    /// Holds the layers of an image, which is pinned meanwhile.
    pub fn of(store: &Store, image: Arc<Image>) -> Self {
        let lease = store.leases.take();
        for layer in &image.config.rootfs.diff_ids {
            lease.hold(layer);
        }
        Self {
            image,
            _lease: Arc::new(lease),
        }
    }
}

/// Images by name and platform.
#[derive(Clone, Debug, Default)]
pub struct Images(BTreeMap<(String, String), Base>);

impl Images {
    /// Platforms are in their normal form: `arm64` is `arm64/v8`. Without one, it is the host's.
    fn key(reference: &str, platform: Option<&pb::Platform>) -> (String, String) {
        let platform = platform.map_or_else(host, pb::Platform::clone);
        (reference.to_owned(), platform.normalized().specifier())
    }

    pub(crate) fn insert(&mut self, reference: &str, platform: Option<&pb::Platform>, image: Base) {
        self.0.insert(Self::key(reference, platform), image);
    }

    pub(crate) fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    fn get(&self, reference: &str, platform: Option<&pb::Platform>) -> Option<&Base> {
        self.0.get(&Self::key(reference, platform))
    }

    /// Finds an image, and pulls it if it is not here.
    pub(crate) async fn load(
        &self,
        builder: &Arc<Builder>,
        request: &Request,
        reference: &str,
        platform: &pb::Platform,
        work: &Work,
    ) -> Result<Base> {
        if let Some(base) = self.0.get(&Self::key(reference, Some(platform))) {
            return Ok(base.clone());
        }
        let images = &builder.engine.images;
        let wanted = platform_of(platform);
        let hold = |name: &str, platform: Option<&Platform>| -> Result<Base> {
            let (image, _pin) = images.pin(name, platform)?;
            Ok(Base::of(builder.store(), image))
        };
        if request.resolve != ResolveMode::Pull {
            let names = [Some(reference), id_of(reference)];
            let mut names = names.into_iter().flatten();
            if let Some(base) = names.find_map(|name| hold(name, Some(&wanted)).ok()) {
                return Ok(base);
            }
        }
        let name: Reference = reference
            .parse()
            .map_err(|error: whelk_image::Error| Error::invalid(error.to_string()))?;
        let credentials = request.client.credentials(&name.domain).await?;
        let pull = PullRequest {
            reference: name,
            platform: Some(wanted.clone()),
            credentials,
            policy: None,
        };
        let reports = reports(&request.progress, work.vertex);
        let pulled = images.pull(&pull, &reports, || ()).await;
        pulled.map_err(|error| match images.find(reference) {
            // The platform may be a typing error.
            Ok(image) if request.resolve != ResolveMode::Pull => {
                let (os, architecture) = (&image.config.os, &image.config.architecture);
                error.prefixed(&format!("the image here is for {os}/{architecture}"))
            }
            _ => error,
        })?;
        builder.engine.durability.wait().await?;
        // An image without an index is used although it is for another platform, as Docker does; the frontend warns.
        hold(reference, Some(&wanted)).or_else(|_| hold(reference, None))
    }
}

/// Returns the digits of an id, if the name of an image looks like one: all of them, or the first 12, which are shown, and more.
fn id_of(reference: &str) -> Option<&str> {
    const SHOWN: usize = 12;
    let name = reference.strip_prefix("docker.io/library/")?;
    let digits = name.strip_prefix("sha256:");
    let digits = digits.or_else(|| name.strip_suffix(":latest"))?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (digits.len() >= SHOWN && digits.bytes().all(is_digit)).then_some(digits)
}

/// Returns what tells clients of the progress of layers, as parts of a vertex.
pub(crate) fn reports(progress: &Progress, vertex: Digest) -> PullProgress {
    let progress = progress.clone();
    let told = Mutex::new(HashMap::new());
    PullProgress::to(move |update: Update| {
        if is_news(&mut told.lock().ignore_poison(), &update) {
            progress.add(vertex, EventKind::Pull(update));
        }
    })
}

/// Returns whether clients are told of the progress of a layer: of each state, and otherwise not too often, because the
/// events of a build are kept to its end.
fn is_news(told: &mut HashMap<String, (State, Instant)>, update: &Update) -> bool {
    const INTERVAL: Duration = Duration::from_millis(200);
    let now = Instant::now();
    let known = told.get(&update.id);
    let is_news = known.is_none_or(|(state, at)| *state != update.state || now - *at >= INTERVAL);
    if is_news {
        told.insert(update.id.clone(), (update.state, now));
    }
    is_news
}

fn platform_of(platform: &pb::Platform) -> Platform {
    Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
    }
}

/// What the sources of a graph refer to.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    images: Images,
    /// By the digest of the source.
    directories: HashMap<Digest, Directory>,
    /// Directories and selectors, by the digest of what is selected.
    selected: Mutex<HashMap<Digest, (Digest, Vec<Selector>)>>,
}

impl Sources {
    /// Pulls images and receives directories, beside each other.
    pub async fn gather(
        builder: &Arc<Builder>,
        request: &Request,
        graph: &Graph,
        images: Images,
    ) -> Result<Self> {
        let needed = graph.needed();
        let nodes = graph.nodes.iter().zip(needed);
        let nodes = nodes.filter_map(|(node, is_needed)| match &node.op.kind {
            Some(Kind::Source(source)) if is_needed => Some((node, source)),
            _ => None,
        });
        let (turns, known) = (&Semaphore::new(AT_ONCE), &images);
        let gathered = nodes.map(|(node, source)| async move {
            // It fails only for a semaphore that is closed, which this one never is.
            let _turn = turns.acquire().await;
            gather(builder, request, node, source, known).await
        });
        let gathered = futures_util::future::try_join_all(gathered).await?;
        let mut sources = Self {
            images: images.clone(),
            ..Self::default()
        };
        for one in gathered {
            sources.images.add(one.images);
            sources.directories.extend(one.directories);
        }
        Ok(sources)
    }

    pub fn all_images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.0.values().map(|base| &base.image)
    }

    /// Returns the layers of all images.
    pub fn base_layers(&self) -> HashSet<LayerDigest> {
        let layers = self
            .all_images()
            .flat_map(|image| &image.config.rootfs.diff_ids);
        layers.cloned().collect()
    }

    pub fn image(&self, node: &Node) -> Option<&Arc<Image>> {
        let Some(Kind::Source(source)) = &node.op.kind else {
            return None;
        };
        let known = attributes::known_as(source)?;
        let base = self.images.get(&known, node.op.platform.as_ref());
        base.map(|base| &base.image)
    }

    /// Returns the identity of a source. `is_whole`: something stands on it, instead of only reading from it.
    pub fn identity(&self, node: &Node, is_whole: bool) -> Result<Digest> {
        let Some(Kind::Source(source)) = &node.op.kind else {
            return Err(Error::internal("an operation that is no source"));
        };
        if let Some(image) = self.image(node) {
            return Ok(key::source(source, image.id.as_str()));
        }
        let Some(directory) = self.directories.get(&node.digest) else {
            return Err(unknown(source));
        };
        // Operations have the digest of what they select of it in their keys.
        let identity = match is_whole {
            true => {
                let all = Selector {
                    path: "/".into(),
                    ..Selector::default()
                };
                crate::select::digest(&directory.open()?, &[all], directory.index())?.to_string()
            }
            false => directory.identity(),
        };
        Ok(key::source(source, &identity))
    }

    /// Returns the name by which a source's content is known elsewhere: the digest of an image's manifest or index, or of a file,
    /// or a commit with its algorithm.
    pub fn content_name(&self, node: &Node, source: &SourceOp) -> Option<String> {
        if let Some(image) = self.image(node) {
            let reference: Reference = image_of(source)?.parse().ok()?;
            return Some(attributes::digest(image, &reference).to_string());
        }
        let identity = self.directories.get(&node.digest)?.identity();
        match identity.strip_prefix("git ") {
            Some(rest) => {
                let commit = rest.split(' ').next().unwrap_or_default();
                let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
                Some(format!("{algorithm}:{commit}"))
            }
            None => Some(identity).filter(|identity| identity.starts_with("sha256:")),
        }
    }

    /// Returns the digest of what is selected of a directory.
    pub fn content(&self, node: &Node, selectors: &[Selector]) -> Result<Option<Digest>> {
        let Some(directory) = self.directories.get(&node.digest) else {
            return Ok(None);
        };
        let content = crate::select::digest(&directory.open()?, selectors, directory.index())?;
        let selected = (node.digest, selectors.to_vec());
        self.selected
            .lock()
            .ignore_poison()
            .insert(content, selected);
        Ok(Some(content))
    }

    /// Returns the files that a content is of; `None` if they are not known. Blocking.
    pub fn listed(&self, content: &Digest) -> Option<Listed> {
        let (directory, selectors) = self.selected.lock().ignore_poison().get(content)?.clone();
        let root = self.directories.get(&directory)?.open().ok()?;
        listing::list(&root, &selectors).ok()
    }

    /// Returns the layers of a source. `lease` holds one that a directory becomes.
    pub fn stack(
        &self,
        store: &Store,
        lease: &Arc<Lease>,
        node: &Node,
        source: &SourceOp,
    ) -> Result<Stack> {
        if let Some(image) = self.image(node) {
            let layers = image.config.rootfs.diff_ids.iter();
            let layers = layers.take(attributes::layer_limit(source)?);
            return Ok(Stack::of(layers.map(|layer| (layer.clone(), 0))));
        }
        match self.directories.get(&node.digest) {
            Some(directory) => {
                let layer = Layer::directory(store, directory.workspace(), lease);
                Ok(Stack(vec![layer]))
            }
            None => Err(unknown(source)),
        }
    }
}

/// Returns whether a source is a directory that is received before the build is planned.
pub(crate) fn is_directory(source: &SourceOp) -> bool {
    source.identifier.starts_with("local://") || http::is_url(source) || git::is_repository(source)
}

/// Returns whether a server is asked for what a source is now.
pub fn has_metadata(source: &SourceOp) -> bool {
    http::is_url(source) || git::is_repository(source)
}

async fn gather(
    builder: &Arc<Builder>,
    request: &Request,
    node: &Node,
    source: &SourceOp,
    known: &Images,
) -> Result<Sources> {
    let mut sources = Sources::default();
    if is_directory(source) {
        let name = node.metadata.description.get(CUSTOM_NAME);
        let name = name
            .cloned()
            .unwrap_or_else(|| http::redacted(&source.identifier));
        let work = request.progress.begin_as(node.digest, name);
        let directory = match source.identifier.starts_with("local://") {
            true => request.client.directory(source, &work).await,
            false => {
                let found = builder.fetch(request.client.as_ref(), source, &work).await;
                let found = found.map(|(directory, _)| directory);
                found.map_err(|cause| Error::Step {
                    op: node.digest,
                    cause: Box::new(cause),
                })
            }
        };
        let directory = work.end(directory)?;
        sources.directories.insert(node.digest, directory);
    } else if let Some(reference) = image_of(source) {
        let known_as = attributes::known_as(source).unwrap_or_default();
        let platform = node.op.platform.as_ref();
        if known.get(&known_as, platform).is_none() {
            let base = image(builder, request, node, source, reference, known).await?;
            sources.images.insert(&known_as, platform, base);
        }
    } else {
        return Err(unknown(source));
    }
    Ok(sources)
}

/// Finds the image of a source, or pulls it.
async fn image(
    builder: &Arc<Builder>,
    request: &Request,
    node: &Node,
    source: &SourceOp,
    reference: &str,
    known: &Images,
) -> Result<Base> {
    let wanted = node.op.platform.clone().unwrap_or_else(host);
    let mode = source.attrs.get("image.resolvemode");
    let mut request = Request {
        resolve: match mode.map_or("", String::as_str) {
            "" | "default" => request.resolve,
            mode => mode.parse().map_err(Error::Invalid)?,
        },
        ..request.clone()
    };
    let name = node.metadata.description.get(CUSTOM_NAME);
    let work = request.progress.begin(name.map_or(reference, |name| name));
    let store = source.attrs.get("oci.store");
    // A policy may have made an image of a registry of it.
    let store = store.filter(|_| source.identifier.starts_with("oci-layout://"));
    let finding = async {
        if let Some(store) = store {
            let client = request.client.as_ref();
            return builder.layout(client, store, reference, &wanted).await;
        }
        let base = known.load(builder, &request, reference, &wanted, &work);
        let base = base.await?;
        match attributes::verify(&base.image, source) {
            Ok(()) => Ok(base),
            Err(error) if request.resolve == ResolveMode::Pull => Err(error),
            // The one that is here may be an older one.
            Err(_) => {
                request.resolve = ResolveMode::Pull;
                let none = Images::default();
                let base = none.load(builder, &request, reference, &wanted, &work);
                let base = base.await?;
                attributes::verify(&base.image, source)?;
                Ok(base)
            }
        }
    };
    let base = finding.await.map_err(|cause| Error::Step {
        op: node.digest,
        cause: Box::new(cause),
    });
    work.end(base)
}

/// The present version of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// A reference of a git repository. `checksum` is that of the commit or, if it is an annotated tag, of the tag; then `commit` is
    /// the commit.
    Git {
        reference: String,
        checksum: String,
        commit: String,
    },
    /// The file of a URL, with its time in seconds since 1970.
    File {
        checksum: String,
        name: String,
        time: Option<i64>,
    },
}

impl Builder {
    /// Returns what a file of a server, or a reference of a git repository, is now. A file is fetched for that. The source becomes
    /// the one that a policy replaces it by.
    ///
    /// # Errors
    /// Returns an error if the server cannot be asked, and for other sources.
    pub async fn resolve_source(
        self: &Arc<Self>,
        request: &Request,
        source: &mut SourceOp,
        name: &str,
    ) -> Result<Resolved> {
        request.policies.evaluate(source)?;
        let source = &*source;
        let work = request.progress.begin(name);
        let client = request.client.as_ref();
        let resolving = async {
            if git::is_repository(source) {
                return self.resolve_repository(client, source, &work).await;
            }
            if !http::is_url(source) {
                let shown = http::redacted(&source.identifier);
                let text = format!("metadata of the source {shown}");
                return Err(Error::Unsupported(text));
            }
            let (directory, time) = self.web_file(client, source, &work).await?;
            let checksum = directory.identity();
            let names = crate::blocking(move || directory.names()).await?;
            Ok(Resolved::File {
                checksum,
                name: names.into_iter().next().unwrap_or_default(),
                time,
            })
        };
        let resolved = resolving.await;
        work.end(resolved)
    }

    /// Fetches a source from a server. Returns its files, and its time in seconds since 1970.
    pub(crate) async fn fetch(
        self: &Arc<Self>,
        client: &dyn Client,
        source: &SourceOp,
        work: &Work,
    ) -> Result<(Directory, Option<i64>)> {
        if http::is_url(source) {
            self.web_file(client, source, work).await
        } else if git::is_repository(source) {
            self.repository(client, source, work).await
        } else {
            Err(unknown(source))
        }
    }

    /// Fetches the only source of a graph.
    pub(crate) async fn fetch_context(
        self: &Arc<Self>,
        client: &dyn Client,
        graph: &Graph,
        work: &Work,
    ) -> Result<Directory> {
        match graph.nodes.first().and_then(|node| node.op.kind.as_ref()) {
            Some(Kind::Source(source)) => Ok(self.fetch(client, source, work).await?.0),
            _ => Err(Error::internal("a context without a source")),
        }
    }
}

fn unknown(source: &SourceOp) -> Error {
    let identifier = crate::provenance::without_credentials(&source.identifier);
    Error::invalid(match identifier.split_once("://") {
        Some((scheme, _)) => format!("the source {identifier}: unknown scheme {scheme}"),
        None => format!("the source {identifier}: it has no scheme"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_the_normal_form_of_their_platform() {
        let key = |architecture: &str, variant: &str| {
            Images::key(
                "a",
                Some(&pb::Platform::new("linux", architecture, variant)),
            )
        };
        assert_eq!(key("arm64", ""), key("arm64", "v8"));
        assert_eq!(key("aarch64", ""), key("arm64", "v8"));
        assert_ne!(key("arm", "v6"), key("arm", "v7"));
        assert_ne!(key("arm64", ""), key("amd64", ""));
        assert_eq!(Images::key("a", None), Images::key("a", Some(&host())));
    }

    #[test]
    fn sources_of_an_unknown_scheme_are_named_without_credentials() {
        for (identifier, expected) in [
            ("foo://u:secret@bar", "bar: unknown scheme foo"),
            ("bar", "the source bar: it has no scheme"),
        ] {
            let source = SourceOp {
                identifier: identifier.into(),
                ..SourceOp::default()
            };
            let error = unknown(&source).to_string();
            assert!(error.ends_with(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn names_may_be_ids() {
        let whole = "0123456789abcdef".repeat(4);
        for (name, expected) in [
            (format!("docker.io/library/sha256:{whole}"), Some(&*whole)),
            (
                format!("docker.io/library/{}:latest", &whole[..12]),
                Some(&whole[..12]),
            ),
            (format!("docker.io/library/{}:latest", &whole[..11]), None),
            (format!("docker.io/library/{}:1", &whole[..12]), None),
            (format!("example.com/{}:latest", &whole[..12]), None),
            ("docker.io/library/busybox:latest".into(), None),
        ] {
            assert_eq!(id_of(&name), expected, "{name}");
        }
    }
}
