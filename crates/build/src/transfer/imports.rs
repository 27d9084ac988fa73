//! Caches that a build imports: their records, by the keys of steps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::OnceCell;
use whelk_image::content::MAX_CONFIG_SIZE;
use whelk_image::descriptor::Descriptor;
use whelk_image::{Digest as LayerDigest, ImageConfig, Reference};
use whelk_llb::Digest;
use whelk_registry::{Kind, Version};
use whelk_sys::sync::IgnorePoison as _;

use super::config::{self, CANONICAL, Config, Document, MAX_CONFIG};
use super::inline;
use super::records::Place;
use super::source::{self, Source};
use crate::error::{Error, Result};
use crate::progress::{EventKind, Work};
use crate::request::Request;
use crate::sources::Base;
use crate::{Builder, blocking};

/// Maximum number of layers of a result: the limit of overlayfs.
const MAX_STACK: usize = 500;

/// Maximum number of images of an index whose inline caches are read.
const MAX_IMAGES: usize = 16;

/// Maximum number of caches that a build imports.
const MAX_IMPORTS: usize = 100;

/// Number of caches that are read at the same time. Each may take some ten times the size of its records in memory.
const PARALLEL: usize = 4;

/// A cache to import.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Import {
    /// A directory of the client with an OCI layout.
    Local {
        source: String,
        digest: String,
    },
    /// A cache, or an image with an inline cache.
    Registry {
        reference: String,
    },
    Unsupported {
        kind: String,
        what: String,
    },
}

impl Import {
    /// Reads what a client has asked for. What is not supported fails when it is imported, which does no harm to the build.
    pub fn parse(kind: &str, attributes: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| attributes.get(name).cloned().unwrap_or_default();
        let known: &[&str] = match kind {
            "local" => &["src", "digest", "tag"],
            "registry" => &["ref"],
            _ => {
                return Self::Unsupported {
                    kind: kind.to_owned(),
                    what: format!("cache import from {kind}"),
                };
            }
        };
        let is_off = |value: &str| matches!(value, "" | "0" | "false");
        let unknown = attributes
            .iter()
            .find(|(name, value)| !known.contains(&name.as_str()) && !is_off(value));
        if let Some((name, _)) = unknown {
            return Self::Unsupported {
                kind: kind.to_owned(),
                what: format!("{name} of a cache import from {kind}"),
            };
        }
        match kind {
            "local" => Self::Local {
                source: get("src"),
                digest: get("digest"),
            },
            _ => Self::Registry {
                reference: get("ref"),
            },
        }
    }

    /// Returns what clients show of it.
    fn name(&self) -> String {
        match self {
            Self::Local { source, .. } => format!("local:{source}"),
            Self::Registry { reference } => reference.clone(),
            Self::Unsupported { kind, .. } => kind.clone(),
        }
    }
}

/// The caches that a build imports. They are read once, when the first step is looked up.
#[derive(Debug, Default)]
pub struct Imports {
    /// In the client's order: the first one that has a result gives it.
    wanted: Vec<Import>,
    loaded: OnceCell<Loaded>,
    /// Results that could not be fetched, by the position of their cache.
    forgotten: Mutex<HashSet<(usize, Digest)>>,
    /// Blobs that could not be fetched, by the position of their cache.
    failed: Mutex<HashSet<(usize, LayerDigest)>>,
}

#[derive(Debug, Default)]
struct Loaded {
    caches: Vec<Cache>,
    failures: Vec<String>,
}

/// A cache whose records were read.
#[derive(Debug)]
struct Cache {
    name: String,
    source: Source,
    layers: Vec<Layer>,
    records: HashMap<Digest, Record>,
    /// The image that it is part of, if that is here.
    _held: Option<Base>,
}

#[derive(Clone, Debug)]
struct Layer {
    /// `None` for one that cannot be used.
    diff_id: Option<LayerDigest>,
    blob: Option<Descriptor>,
    parent: Option<usize>,
    created: i64,
}

#[derive(Clone, Debug)]
struct Record {
    result: Stacked,
    canonical: Option<Digest>,
}

#[derive(Clone, Debug)]
enum Stacked {
    /// A layer with those below it.
    Top(usize),
    Chain(Vec<usize>),
}

/// A result that an imported cache has for a key.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    cache: usize,
    /// The name of the cache.
    pub name: String,
    pub key: Digest,
    /// The canonical key that the cache says, which nothing proves.
    pub canonical: Digest,
    /// The layers of each output, the lowest first; `None` for one that was not asked for.
    pub outputs: Vec<Option<Vec<Offered>>>,
}

/// A layer of a result.
#[derive(Clone, Debug)]
pub(crate) struct Offered {
    pub diff_id: LayerDigest,
    pub blob: Option<Descriptor>,
    pub created: i64,
}

impl Imports {
    /// Returns the imports of a build: of equal ones, one.
    pub fn new(wanted: impl IntoIterator<Item = Import>) -> Arc<Self> {
        let mut seen = BTreeSet::new();
        let wanted = wanted.into_iter();
        Arc::new(Self {
            wanted: wanted.filter(|one| seen.insert(one.clone())).collect(),
            ..Self::default()
        })
    }

    /// Returns whether all of these are among the imports.
    pub fn includes(&self, imports: &[Import]) -> bool {
        imports.iter().all(|import| self.wanted.contains(import))
    }

    /// Reads the records. A cache that cannot be read is reported, and otherwise as if it was empty.
    pub(crate) async fn load(&self, builder: &Arc<Builder>, request: &Request) {
        let loading = async {
            let wanted = self.wanted.iter().take(MAX_IMPORTS);
            let read: Vec<_> = wanted
                .map(|import| load(builder, request, import).boxed())
                .collect();
            let mut read = futures_util::stream::iter(read).buffered(PARALLEL);
            let mut loaded = Loaded::default();
            for import in &self.wanted {
                match read.next().await {
                    Some(Ok(caches)) => loaded.caches.extend(caches),
                    Some(Err(error)) => {
                        loaded.failures.push(format!("{}: {error}", import.name()));
                    }
                    None => break,
                }
            }
            for import in self.wanted.iter().skip(MAX_IMPORTS) {
                let text = format!(
                    "{}: a build imports at most {MAX_IMPORTS} caches",
                    import.name()
                );
                loaded.failures.push(text);
            }
            loaded
        };
        self.loaded.get_or_init(|| loading).await;
    }

    /// Returns why caches could not be read.
    pub(crate) fn failures(&self) -> &[String] {
        self.loaded.get().map_or(&[], |loaded| &loaded.failures)
    }

    pub(super) fn source(&self, offer: &Offer) -> Option<&Source> {
        Some(&self.loaded.get()?.caches.get(offer.cache)?.source)
    }

    /// Returns what a cache has for the key of an operation with `count` outputs: the first one that has all outputs that
    /// are needed.
    pub(crate) fn find(&self, key: &Digest, count: usize, needed: &[usize]) -> Option<Offer> {
        let loaded = self.loaded.get()?;
        let caches = loaded.caches.iter().enumerate();
        let failed = self.failed.lock().ignore_poison();
        let mut offers = caches.filter_map(|(index, cache)| {
            let mut canonical = None;
            let mut outputs = vec![None; count];
            for &output in needed {
                let record = cache.records.get(&Place { output, count }.key(key))?;
                let layers = cache.stack(&record.result)?;
                let mut blobs = layers.iter().filter_map(|one| one.blob.as_ref());
                if blobs.any(|blob| failed.contains(&(index, blob.digest.clone()))) {
                    return None;
                }
                canonical = canonical.or(record.canonical);
                *outputs.get_mut(output)? = Some(layers);
            }
            let forgotten = self.forgotten.lock().ignore_poison();
            let is_forgotten = needed.is_empty() || forgotten.contains(&(index, *key));
            (!is_forgotten).then(|| Offer {
                cache: index,
                name: cache.name.clone(),
                key: *key,
                canonical: canonical.unwrap_or(*key),
                outputs,
            })
        });
        offers.next()
    }

    /// Returns a blob of a layer that a cache in a registry has.
    pub(super) fn blob(&self, layer: &LayerDigest) -> Option<Descriptor> {
        let caches = &self.loaded.get()?.caches;
        let caches = caches
            .iter()
            .filter(|cache| matches!(cache.source, Source::Registry(_)));
        let mut layers = caches.flat_map(|cache| &cache.layers);
        let found = layers.find(|one| one.blob.is_some() && one.diff_id.as_ref() == Some(layer));
        found?.blob.clone()
    }

    /// Does not return an offer again.
    pub(crate) fn forget(&self, offer: &Offer) {
        let mut forgotten = self.forgotten.lock().ignore_poison();
        forgotten.insert((offer.cache, offer.key));
    }

    /// Returns no results with a blob of the offer's cache again: it cannot be had.
    pub(super) fn forget_blob(&self, offer: &Offer, blob: &LayerDigest) {
        let mut failed = self.failed.lock().ignore_poison();
        failed.insert((offer.cache, blob.clone()));
    }
}

impl Cache {
    fn new(name: String, source: Source, config: Config, blobs: &[&Descriptor]) -> Self {
        let blobs: HashMap<&str, &Descriptor> = blobs
            .iter()
            .map(|blob| (blob.digest.as_str(), *blob))
            .collect();
        let layers = config.layers.iter().map(|layer| {
            let annotations = layer.annotations.clone().unwrap_or_default();
            Layer {
                diff_id: annotations.diff_id.parse().ok(),
                blob: blobs.get(layer.blob.as_str()).map(|blob| (*blob).clone()),
                parent: usize::try_from(layer.parent).ok(),
                created: config::nanoseconds(annotations.created.as_deref()),
            }
        });
        Self {
            layers: layers.collect(),
            records: records(&config.records),
            name,
            source,
            _held: None,
        }
    }

    /// Returns the cache of an image, whose manifest has these blobs.
    fn inline(
        name: String,
        source: Source,
        list: &[config::Record],
        image: &ImageConfig,
        blobs: &[Descriptor],
    ) -> Self {
        let times = image.history.iter().filter(|entry| !entry.empty_layer);
        let mut times = times.map(|entry| config::nanoseconds(entry.created.as_deref()));
        let ids = image.rootfs.diff_ids.iter().enumerate();
        let layers = ids.map(|(index, diff_id)| Layer {
            diff_id: Some(diff_id.clone()),
            blob: blobs.get(index).cloned(),
            parent: index.checked_sub(1),
            created: times.next().unwrap_or(0),
        });
        Self {
            layers: layers.collect(),
            records: records(list),
            name,
            source,
            _held: None,
        }
    }

    /// Returns the layers of a result; `None` if it refers to one that does not exist, or to more than there can be.
    fn stack(&self, result: &Stacked) -> Option<Vec<Offered>> {
        let positions = match result {
            Stacked::Chain(positions) => positions.clone(),
            Stacked::Top(top) => {
                let mut found = Vec::new();
                let mut next = Some(*top);
                // This ends a cycle, too.
                while let Some(position) = next {
                    if found.len() == MAX_STACK {
                        return None;
                    }
                    found.push(position);
                    next = self.layers.get(position)?.parent;
                }
                found.reverse();
                found
            }
        };
        if positions.is_empty() || positions.len() > MAX_STACK {
            return None;
        }
        let layers = positions.into_iter().map(|position| {
            let layer = self.layers.get(position)?;
            Some(Offered {
                diff_id: layer.diff_id.clone()?,
                blob: layer.blob.clone(),
                created: layer.created,
            })
        });
        layers.collect()
    }
}

/// Returns the records that have a key and a result.
fn records(list: &[config::Record]) -> HashMap<Digest, Record> {
    let position = |number: i64| usize::try_from(number).ok();
    let digest = |record: &config::Record| Digest::parse(&record.digest);
    let found = list.iter().filter_map(|record| {
        let top = record.results.first();
        let result = match (top, record.chains.first()) {
            (Some(top), _) => Stacked::Top(position(top.layer)?),
            (None, Some(chain)) => {
                let positions = chain.layers.iter().map(|layer| position(*layer));
                Stacked::Chain(positions.collect::<Option<_>>()?)
            }
            (None, None) => return None,
        };
        let mut links = record.inputs.iter().flat_map(|input| &input.0);
        let link = links.find(|link| link.selector == CANONICAL);
        let canonical = link.and_then(|link| digest(list.get(position(link.link)?)?));
        Some((digest(record)?, Record { result, canonical }))
    });
    found.collect()
}

/// Reads a cache, and tells the client.
async fn load(builder: &Arc<Builder>, request: &Request, import: &Import) -> Result<Vec<Cache>> {
    let name = format!("importing cache manifest from {}", import.name());
    let work = request.progress.begin(name);
    let read = match import {
        Import::Local { source, digest } => local(request, source, digest, &work).await,
        Import::Registry { reference } => registry(builder, request, reference, &work).await,
        Import::Unsupported { what, .. } => Err(Error::Unsupported(what.clone())),
    };
    work.end(read)
}

async fn local(
    request: &Request,
    directory: &str,
    digest: &str,
    work: &Work,
) -> Result<Vec<Cache>> {
    let digest: LayerDigest = digest
        .parse()
        .map_err(|error| Error::invalid(format!("local cache {directory}: {error}")))?;
    let source = Source::Store {
        client: request.client.clone(),
        name: format!("local:{directory}"),
    };
    let document = source.document(&digest).await?;
    caches(&source, &format!("local:{directory}"), &document, work).await
}

async fn registry(
    builder: &Arc<Builder>,
    request: &Request,
    text: &str,
    work: &Work,
) -> Result<Vec<Cache>> {
    let reference: Reference = text.parse()?;
    let reference = reference.with_default_tag();
    // As with Docker, an image that is here is used first.
    if let Some(cache) = of_image(builder, text, &reference).await? {
        return Ok(vec![cache]);
    }
    builder.engine.images.accepts_unsigned(&reference)?;
    let credentials = request.client.credentials(&reference.domain).await?;
    let client = builder.engine.images.web();
    let repository = client
        .pull(&reference, credentials)
        .map_err(source::failed)?;
    let version = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => Version::Digest(digest.clone()),
        (None, tag) => Version::Tag(tag.clone().unwrap_or_else(|| "latest".into())),
    };
    let document = repository.manifest(&version).await.map_err(|error| {
        let cause = match error.kind() {
            Kind::NotFound => "not found".to_owned(),
            _ => error.to_string(),
        };
        let name = reference.familiar();
        Error::invalid(format!(
            "failed to configure registry cache importer: {name}: {cause}"
        ))
    })?;
    let source = Source::Registry(repository);
    caches(&source, text, &document.bytes, work).await
}

/// Returns the inline cache of an image of this engine, if it is here and has one.
async fn of_image(
    builder: &Arc<Builder>,
    name: &str,
    reference: &Reference,
) -> Result<Option<Cache>> {
    let (builder, name, reference) = (builder.clone(), name.to_owned(), reference.to_string());
    blocking(move || {
        let Ok((image, _pin)) = builder.engine.images.pin(&reference, None) else {
            return Ok(None);
        };
        let config = builder.store().content.read(&image.id)?;
        let Some(records) = inline::records(&config)? else {
            return Ok(None);
        };
        let held = Base::of(builder.store(), image.clone());
        let mut cache = Cache::inline(name, Source::Engine, &records, &image.config, &[]);
        cache._held = Some(held);
        Ok(Some(cache))
    })
    .await
}

/// Reads the caches that a manifest or an index refers to.
async fn caches(source: &Source, name: &str, document: &[u8], work: &Work) -> Result<Vec<Cache>> {
    let document = Document::parse(document)?;
    if let Some((config, blobs)) = document.cache() {
        let bytes = source.small(config, MAX_CONFIG).await?;
        let config = blocking(move || Config::parse(&bytes)).await?;
        return Ok(vec![Cache::new(
            name.to_owned(),
            source.clone(),
            config,
            &blobs,
        )]);
    }
    let mut found = Vec::new();
    if document.config.is_some() {
        found.extend(of_manifest(source, name, &document).await?);
    }
    // Manifests of attestations are for the platform `unknown/unknown`.
    let is_image = |entry: &&Descriptor| {
        let platform = entry.platform.as_ref();
        !entry.is_index() && platform.is_none_or(|platform| platform.os != "unknown")
    };
    let images = document.manifests.iter().filter(is_image);
    for entry in images.take(MAX_IMAGES) {
        let manifest = Document::parse(&source.document(&entry.digest).await?)?;
        found.extend(of_manifest(source, name, &manifest).await?);
    }
    if found.is_empty() {
        let name = "there is no build cache in it".to_owned();
        work.add(EventKind::Part {
            name,
            is_done: true,
        });
    }
    Ok(found)
}

/// Reads the inline cache of an image.
async fn of_manifest(source: &Source, name: &str, manifest: &Document) -> Result<Option<Cache>> {
    let Some(config) = &manifest.config else {
        return Ok(None);
    };
    let bytes = source.small(config, MAX_CONFIG_SIZE).await?;
    let Some(records) = inline::records(&bytes)? else {
        return Ok(None);
    };
    let image = ImageConfig::parse(&bytes)?;
    let blobs = &manifest.layers;
    Ok(Some(Cache::inline(
        name.to_owned(),
        source.clone(),
        &records,
        &image,
        blobs,
    )))
}

/// Reads bytes as what a cache consists of, and looks all of its records up.
pub(crate) fn decode(bytes: &[u8]) {
    if let Ok(document) = Document::parse(bytes) {
        let _ = document.cache();
    }
    if let Ok(Some(records)) = inline::records(bytes) {
        let _ = self::records(&records);
    }
    if let Ok(config) = Config::parse(bytes) {
        let cache = Cache::new(String::new(), Source::Engine, config, &[]);
        for record in cache.records.values() {
            let stack = cache.stack(&record.result);
            assert!(stack.is_none_or(|stack| stack.len() <= MAX_STACK));
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn id(number: u16) -> LayerDigest {
        LayerDigest::of(&number.to_le_bytes())
    }

    /// A cache with a layer for each of these parents, and a record for each of these results.
    fn cache(parents: &[i64], results: &[i64]) -> Cache {
        let layers = parents
            .iter()
            .zip(0_u16..)
            .map(|(parent, number)| config::Layer {
                blob: id(number).to_string(),
                parent: *parent,
                annotations: Some(config::Annotations {
                    diff_id: id(number).to_string(),
                    ..config::Annotations::default()
                }),
            });
        let records = results
            .iter()
            .zip(0_u8..)
            .map(|(layer, number)| config::Record {
                digest: Digest::of(&[number]).to_string(),
                results: vec![config::Top {
                    layer: *layer,
                    created: None,
                }],
                ..config::Record::default()
            });
        let config = Config {
            layers: layers.collect(),
            records: records.collect(),
        };
        Cache::new("x".into(), Source::Engine, config, &[])
    }

    fn found(cache: Cache) -> Vec<Option<usize>> {
        let numbers = 0..u8::try_from(cache.records.len()).unwrap();
        let imports = Imports::default();
        imports
            .loaded
            .set(Loaded {
                caches: vec![cache],
                failures: Vec::new(),
            })
            .unwrap();
        numbers
            .map(|number| {
                let offer = imports.find(&Digest::of(&[number]), 1, &[0])?;
                offer.outputs[0].as_ref().map(Vec::len)
            })
            .collect()
    }

    #[test]
    fn stacks_follow_the_parents() {
        let found = found(cache(&[-1, 0, 0, 2], &[0, 1, 3]));
        assert_eq!(found, [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn outputs_are_found_if_all_that_are_needed_are_there() {
        let key = Digest::of(b"k");
        let mut cache = cache(&[-1, 0], &[]);
        for (output, canonical) in [(0, None), (2, Some(Digest::of(b"c")))] {
            let place = Place { output, count: 3 };
            let result = Stacked::Top(output / 2);
            let record = Record { result, canonical };
            cache.records.insert(place.key(&key), record);
        }
        let imports = Imports::default();
        let (caches, failures) = (vec![cache], Vec::new());
        imports.loaded.set(Loaded { caches, failures }).unwrap();
        let found = |count, needed: &[usize]| {
            let offer = imports.find(&key, count, needed)?;
            let outputs = offer.outputs.iter();
            let sizes: Vec<usize> = outputs
                .map(|output| output.as_ref().map_or(0, Vec::len))
                .collect();
            Some((sizes, offer.canonical == Digest::of(b"c")))
        };
        assert_eq!(found(3, &[0, 2]), Some((vec![1, 0, 2], true)));
        assert_eq!(found(3, &[0]), Some((vec![1, 0, 0], false)));
        assert_eq!((found(3, &[0, 1]), found(3, &[])), (None, None));
        assert_eq!((found(1, &[0]), found(2, &[2])), (None, None));
    }

    #[test]
    fn references_to_nothing_and_cycles_match_nothing() {
        for (parents, results) in [
            (&[1, 0][..], &[0, 1][..]),
            (&[0], &[0]),
            (&[7], &[0]),
            (&[-1], &[1]),
            (&[-1], &[i64::MAX]),
        ] {
            let found = found(cache(parents, results));
            assert!(found.iter().all(Option::is_none), "{parents:?} {results:?}");
        }
        let deep: Vec<i64> = (-1..1000).collect();
        assert_eq!(found(cache(&deep, &[499, 500])), [Some(500), None]);
        // A position that is negative is no record at all.
        assert!(cache(&[-1], &[-1]).records.is_empty());
    }

    #[test]
    fn canonical_keys_are_found_by_links() {
        let link = |link| {
            config::Input(vec![config::Link {
                selector: CANONICAL.into(),
                link,
            }])
        };
        let mut list = vec![config::Record::default(); 3];
        for (record, number) in list.iter_mut().zip(0_u8..) {
            record.digest = Digest::of(&[number]).to_string();
            record.results = vec![config::Top::default()];
        }
        list[0].inputs = vec![link(1)];
        // To itself, and to nothing.
        list[1].inputs = vec![link(1)];
        list[2].inputs = vec![link(9), link(-1)];
        let records = records(&list);
        let canonical = |number: u8| records[&Digest::of(&[number])].canonical;
        assert_eq!(canonical(0), Some(Digest::of(&[1])));
        assert_eq!(canonical(1), Some(Digest::of(&[1])));
        assert_eq!(canonical(2), None);
    }

    #[test]
    fn attributes_of_imports() {
        let parse = |kind: &str, attributes: &[(&str, &str)]| {
            let attributes = attributes.iter();
            let attributes =
                attributes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Import::parse(kind, &attributes.collect())
        };
        let registry = Import::Registry {
            reference: "a/b".into(),
        };
        assert_eq!(parse("registry", &[("ref", "a/b")]), registry);
        assert_eq!(
            parse("registry", &[("ref", "a/b"), ("insecure", "false")]),
            registry
        );
        for (kind, attributes, expected) in [
            ("gha", &[("token", "x")][..], "cache import from gha"),
            ("s3", &[], "cache import from s3"),
            (
                "registry",
                &[("ref", "a"), ("insecure", "true")],
                "insecure of a cache import from registry",
            ),
        ] {
            let Import::Unsupported { what, .. } = parse(kind, attributes) else {
                panic!("{kind}")
            };
            assert_eq!(what, expected);
        }
    }
}
