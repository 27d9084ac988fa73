//! Exports what a build has given as a cache that others import.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::StreamExt as _;
use whelk_image::archive::{Blob, Compression, Packing};
use whelk_image::descriptor::{
    DOCKER_MANIFEST_LIST, Descriptor, INDEX, Index, LAYER, MANIFEST, Manifest,
};
use whelk_image::{Digest, Reference};
use whelk_registry::Version;

use super::config::CACHE_CONFIG;
use super::imports::{Offer, Offered};
use super::records::{self, ExportedStep};
use super::target::Target;
use crate::error::{Error, Result};
use crate::progress::{EventKind, Work};
use crate::request::{Request, Solved};
use crate::spool::Spool;
use crate::{Builder, blocking};

/// The annotation of a layer's blob with its diff ID.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Where and how a cache is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    place: Place,
    /// Whether it has the results of all steps, and not only those that the final one consists of.
    is_max: bool,
    compression: Compression,
    /// Whether the manifest is that of an image, and not an index.
    is_image: bool,
    has_docker_types: bool,
    /// Whether the build goes on if it fails.
    is_optional: bool,
    /// Whether blobs that an imported cache has in the same place are compressed anew.
    is_forced: bool,
    /// Whether the registry may be used without TLS, if the engine's settings allow that.
    is_insecure: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Within the image.
    Inline,
    /// A directory of the client.
    Local(String),
    Registry(String),
    /// A service that is not supported.
    Service(String),
}

impl Export {
    /// Reads what a client asks for.
    ///
    /// # Errors
    /// Returns an error that names what is not supported, or is missing.
    pub fn parse(kind: &str, attributes: &BTreeMap<String, String>) -> Result<Self> {
        let mut left: BTreeMap<&str, &str> = attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let mut take = |name: &str| left.remove(name).unwrap_or_default();
        let place = match kind {
            "inline" => Place::Inline,
            "local" => match take("dest") {
                "" => return Err(Error::invalid("cache export to local: dest is missing")),
                directory => {
                    // The client writes it into the directory's index.
                    take("tag");
                    Place::Local(directory.to_owned())
                }
            },
            "registry" => match take("ref") {
                "" => return Err(Error::invalid("cache export to registry: ref is missing")),
                reference => Place::Registry(reference.to_owned()),
            },
            "gha" | "s3" | "azblob" => {
                let ignored = attributes.get("ignore-error");
                if ignored.and_then(|text| whelk_text::parse_bool(text)) != Some(true) {
                    return Err(Error::Unsupported(format!("cache export to {kind}")));
                }
                // It fails when it would begin, and the build goes on.
                return Ok(Self {
                    place: Place::Service(kind.to_owned()),
                    is_max: false,
                    compression: Compression::default(),
                    is_image: true,
                    has_docker_types: false,
                    is_optional: true,
                    is_forced: false,
                    is_insecure: false,
                });
            }
            other => {
                return Err(Error::invalid(format!(
                    "unknown cache exporter: {other:?}; the types are inline, local and registry"
                )));
            }
        };
        let is_max = match take("mode") {
            "" | "min" => false,
            "max" => true,
            other => {
                return Err(Error::invalid(format!(
                    "unknown mode {other:?} of the cache export to {kind}: it can be min or max"
                )));
            }
        };
        let compression = compression(take("compression"), take("compression-level"))?;
        let mut flag = |name: &str| match take(name) {
            "" => Ok::<Option<bool>, Error>(None),
            value => {
                let value = whelk_text::parse_bool(value).ok_or_else(|| {
                    Error::invalid(format!("non-bool value specified for {name}: {value:?}"))
                })?;
                Ok(Some(value))
            }
        };
        let is_oci = flag("oci-mediatypes")?.unwrap_or(true);
        let is_image = flag("image-manifest")?;
        let is_optional = flag("ignore-error")?.unwrap_or(false);
        let is_forced = flag("force-compression")?.unwrap_or(false);
        let mut is_insecure = false;
        for name in ["registry.insecure", "insecure"] {
            is_insecure |= flag(name)? == Some(true);
            if is_insecure && !matches!(place, Place::Registry(_)) {
                let text = format!("{name}=true of the cache export to {kind}");
                return Err(Error::Unsupported(text));
            }
        }
        if is_image == Some(true) && !is_oci {
            let text = "cache export: image-manifest=true needs oci-mediatypes=true";
            return Err(Error::invalid(text));
        }
        if let Some((name, _)) = left.first_key_value() {
            let text = format!("unknown attribute {name} of the cache export to {kind}");
            return Err(Error::invalid(text));
        }
        Ok(Self {
            place,
            is_max,
            compression,
            is_image: is_image.unwrap_or(is_oci),
            has_docker_types: !is_oci,
            is_optional,
            is_forced,
            is_insecure,
        })
    }

    /// Returns whether the cache is part of the image.
    pub fn is_inline(&self) -> bool {
        self.place == Place::Inline
    }

    /// Returns whether it is in a directory of the client, which has to learn of the manifest.
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Local(_))
    }
}

fn compression(name: &str, level: &str) -> Result<Compression> {
    let parsed = Compression::parse(name, level);
    let parsed = parsed.map_err(|error| Error::invalid(format!("cache export: {error}")))?;
    parsed.ok_or_else(|| match name {
        "estargz" => Error::Unsupported("compression=estargz of a cache export".into()),
        _ => Error::invalid(format!(
            "unknown compression {name:?} of a cache export: it can be gzip, zstd or uncompressed"
        )),
    })
}

impl Builder {
    /// Exports the results of a build as a cache; an inline one is part of the image already. Returns what the client
    /// is told of it: what refers to the manifest.
    ///
    /// # Errors
    /// Returns an error if the destination does not take it, unless the request says that this does not matter.
    pub async fn export_cache(
        self: &Arc<Self>,
        request: &Request,
        solved: &[Arc<Solved>],
        export: &Export,
    ) -> Result<Option<Descriptor>> {
        let name = match &export.place {
            Place::Inline => return Ok(None),
            Place::Local(_) => "exporting cache to client directory",
            Place::Registry(_) => "exporting cache to registry",
            Place::Service(_) => "exporting cache to a service",
        };
        let work = request.progress.begin(name);
        let exported = self.write_cache(request, solved, export, &work).await;
        match work.end(exported) {
            Ok(descriptor) => Ok(Some(descriptor)),
            Err(error) if export.is_optional => {
                tracing::info!("{name}: {error}; the build goes on");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn write_cache(
        self: &Arc<Self>,
        request: &Request,
        solved: &[Arc<Solved>],
        export: &Export,
        work: &Work,
    ) -> Result<Descriptor> {
        let target = self.target(request, export).await?;
        let preparing = Part::begin(work, "preparing build cache for export".into());
        let mut outcomes = Vec::new();
        for solved in solved {
            // The next build may begin as soon as this one has ended.
            self.recorded(&solved.keys).await;
            let mut own = self.outcomes(solved).await?;
            if !export.is_max {
                records::only_final(&mut own, &solved.stack.digests().await?);
            }
            outcomes.extend(own);
        }
        // The same results give the same cache, and keys that are only named come behind those with results.
        outcomes.sort_by_key(ExportedStep::order);
        preparing.end();
        let writing = Writing {
            builder: self,
            target: &target,
            export,
            solved,
            work,
        };
        let blobs = writing.layers(&outcomes).await?;
        let config = records::config(&outcomes, |layer| blobs.get(layer).cloned());
        let bytes =
            serde_json::to_vec(&config).map_err(|error| Error::internal(error.to_string()))?;
        let config = Blob::bytes(CACHE_CONFIG, bytes);
        let digest = config.descriptor.digest.clone();
        let part = Part::begin(work, format!("writing config {digest}"));
        let config = target.put(self.store(), config).await?;
        part.end();
        writing.manifest(config, &blobs).await
    }

    async fn target(self: &Arc<Self>, request: &Request, export: &Export) -> Result<Target> {
        match &export.place {
            Place::Inline => Err(Error::internal("an inline cache has no place of its own")),
            Place::Service(kind) => Err(Error::Unsupported(format!("cache export to {kind}"))),
            Place::Local(directory) => Ok(Target::Store {
                client: request.client.clone(),
                name: format!("local:{directory}"),
            }),
            Place::Registry(text) => {
                let reference: Reference = text.parse()?;
                let reference = reference.with_default_tag();
                let Some(tag) = reference.tag.clone().filter(|_| reference.digest.is_none()) else {
                    let text = format!("cache export to {text}: a digest is no destination");
                    return Err(Error::invalid(text));
                };
                let credentials = request.client.credentials(&reference.domain).await?;
                let client = self.engine.images.web();
                if export.is_insecure && !client.may_be_insecure(&reference.domain) {
                    return Err(Error::Unsupported(format!(
                        "insecure=true of the cache export to {text}, whose registry is not one of the engine's insecure-registries"
                    )));
                }
                Ok(Target::Registry {
                    repository: client.push(&reference, credentials),
                    version: Version::Tag(tag),
                })
            }
        }
    }
}

/// A part of the work that clients see.
struct Part<'a>(&'a Work, String);

impl<'a> Part<'a> {
    fn begin(work: &'a Work, name: String) -> Self {
        let is_done = false;
        work.add(EventKind::Part {
            name: name.clone(),
            is_done,
        });
        Self(work, name)
    }

    fn end(self) {
        let (name, is_done) = (self.1, true);
        self.0.add(EventKind::Part { name, is_done });
    }
}

struct Writing<'a> {
    builder: &'a Arc<Builder>,
    target: &'a Target,
    export: &'a Export,
    solved: &'a [Arc<Solved>],
    work: &'a Work,
}

impl Writing<'_> {
    /// Brings the layers of results to their destination. A layer that only an imported cache has, and that cannot be had
    /// any more, is left out.
    async fn layers(&self, outcomes: &[ExportedStep]) -> Result<HashMap<Digest, Descriptor>> {
        let mut blobs: HashMap<Digest, Descriptor> = HashMap::new();
        let mut lost = Vec::new();
        for outcome in outcomes {
            let own = outcome.layers.iter().enumerate();
            // Those of base images are no part of a cache.
            for (at, (layer, _)) in own.filter(|(_, (_, time))| *time != 0) {
                if blobs.contains_key(layer) || lost.contains(layer) {
                    continue;
                }
                let offered = outcome.offer.as_ref();
                let offered = offered.and_then(|offer| {
                    let layers = offer.outputs.get(outcome.place.output)?.as_ref()?;
                    Some((offer, layers.get(at)?))
                });
                match self.layer(layer, offered).await? {
                    Some(blob) => drop(blobs.insert(layer.clone(), blob)),
                    None => lost.push(layer.clone()),
                }
            }
        }
        Ok(blobs)
    }

    /// Brings a layer to its destination. Returns its blob.
    async fn layer(
        &self,
        layer: &Digest,
        offered: Option<(&Offer, &Offered)>,
    ) -> Result<Option<Descriptor>> {
        let (builder, layer) = (self.builder.clone(), layer.clone());
        let lease = self.solved.first().map(|solved| solved.lease.clone());
        let (id, is_gzip) = (layer.clone(), self.export.compression == Compression::Gzip);
        let (is_here, known) = blocking(move || {
            let snapshots = &builder.store().snapshots;
            let is_here = lease.is_some_and(|lease| snapshots.claim(&lease, &id));
            let known = snapshots.compressed(&id).filter(|_| is_here && is_gzip);
            Ok((is_here, known))
        })
        .await?;
        let kind = format!("{}{}", self.layer_type(), suffix(self.export));
        if let Some((digest, size)) = known
            && self.target.has(&digest).await?
        {
            Part::begin(self.work, format!("writing layer {digest}")).end();
            return Ok(Some(annotated(Descriptor::new(kind, digest, size), &layer)));
        }
        // The blob that it was imported from, if the target has it.
        let made = self.solved.iter().map(|solved| &solved.made);
        let imported = made.filter_map(|made| made.imports.blob(&layer)).next();
        if let Some(blob) = imported.filter(|_| !self.export.is_forced)
            && self.target.has(&blob.digest).await?
        {
            Part::begin(self.work, format!("writing layer {}", blob.digest)).end();
            return Ok(Some(annotated(blob, &layer)));
        }
        if is_here {
            let blob = self.pack(&layer).await?;
            let part = Part::begin(
                self.work,
                format!("writing layer {}", blob.0.descriptor.digest),
            );
            let written = self.target.put(self.builder.store(), blob.0).await?;
            part.end();
            return Ok(Some(annotated(written, &layer)));
        }
        let Some((
            offer,
            Offered {
                blob: Some(blob), ..
            },
        )) = offered
        else {
            return Ok(None);
        };
        let part = Part::begin(self.work, format!("writing layer {}", blob.digest));
        if !self.target.has(&blob.digest).await? {
            let Some(received) = self.receive(offer, blob).await else {
                return Ok(None);
            };
            self.target.put(self.builder.store(), received.0).await?;
        }
        part.end();
        Ok(Some(annotated(blob.clone(), &layer)))
    }

    fn layer_type(&self) -> &'static str {
        match self.export.has_docker_types {
            true => "application/vnd.docker.image.rootfs.diff.tar",
            false => LAYER,
        }
    }

    /// Packs a layer. The file exists as long as what is returned beside the blob.
    async fn pack(&self, layer: &Digest) -> Result<(Blob, whelk_sys::Scratch)> {
        let (builder, layer) = (self.builder.clone(), layer.clone());
        let packing = Packing {
            compression: self.export.compression,
            has_docker_types: self.export.has_docker_types,
            ..Packing::default()
        };
        blocking(move || {
            let store = builder.store();
            let scratch = store.staging.scratch()?;
            let blob = Blob::of_layer(store, &layer, &packing, &scratch.path().join("blob"))?;
            if packing.compression == Compression::Gzip {
                let Descriptor { digest, size, .. } = &blob.descriptor;
                let remembered = store.snapshots.remember_compressed(&layer, digest, *size);
                if let Err(error) = remembered {
                    tracing::warn!("layer {layer}: {error}");
                }
            }
            Ok((blob, scratch))
        })
        .await
    }

    /// Receives a blob of an imported cache; `None`, with a word to the client, if it cannot be had.
    async fn receive(
        &self,
        offer: &Offer,
        blob: &Descriptor,
    ) -> Option<(Blob, whelk_sys::Scratch)> {
        match self.received(offer, blob).await {
            Ok(received) => Some(received),
            Err(error) => {
                let name = format!("left out: layer {} of {}: {error}", blob.digest, offer.name);
                Part::begin(self.work, name).end();
                None
            }
        }
    }

    async fn received(
        &self,
        offer: &Offer,
        blob: &Descriptor,
    ) -> Result<(Blob, whelk_sys::Scratch)> {
        let made = self.solved.iter().map(|solved| &solved.made);
        let source = made.filter_map(|made| made.imports.source(offer)).next();
        let source = source.ok_or_else(|| Error::internal("an offer of no cache"))?;
        let builder = self.builder.clone();
        let (scratch, file) = blocking(move || {
            let scratch = builder.store().staging.scratch()?;
            let file = whelk_sys::fs::create(scratch.path().join("blob"), 0o600)?;
            Ok((scratch, file))
        })
        .await?;
        let mut spool = Spool::new(file, blob.digest.algorithm(), blob.digest.as_str());
        let mut pieces = source.blob(blob).await?;
        while let Some(piece) = pieces.next().await {
            spool.add(piece?).await?;
            if spool.size() > blob.size {
                let text = format!("blob {} is longer than it should be", blob.digest);
                return Err(Error::invalid(text));
            }
        }
        let size = spool.size();
        let (digest, _) = spool.finish().await?;
        if (&digest, size) != (&blob.digest, blob.size) {
            let text = format!("blob {} has the digest {digest}", blob.digest);
            return Err(Error::invalid(text));
        }
        let file = whelk_sys::fs::open(scratch.path().join("blob"))?;
        Ok((Blob::of_file(blob.clone(), file), scratch))
    }

    /// Writes the manifest. Returns what refers to it.
    async fn manifest(
        &self,
        config: Descriptor,
        blobs: &HashMap<Digest, Descriptor>,
    ) -> Result<Descriptor> {
        let mut layers: Vec<Descriptor> = blobs.values().cloned().collect();
        layers.sort_by(|one, other| one.digest.as_str().cmp(other.digest.as_str()));
        layers.dedup_by(|one, other| one.digest == other.digest);
        let (kind, encoded, name) = if self.export.is_image {
            let manifest = Manifest::new(config, layers);
            (
                MANIFEST,
                serde_json::to_vec(&manifest),
                "cache image manifest",
            )
        } else {
            layers.push(config);
            let mut index = Index::new(layers);
            let kind = match self.export.has_docker_types {
                true => DOCKER_MANIFEST_LIST,
                false => INDEX,
            };
            index.media_type = kind.into();
            (kind, serde_json::to_vec(&index), "cache manifest")
        };
        let bytes = encoded.map_err(|error| Error::internal(error.to_string()))?;
        let digest = Digest::of(&bytes);
        let descriptor = Descriptor::new(kind, digest.clone(), bytes.len() as u64);
        let part = Part::begin(self.work, format!("writing {name} {digest}"));
        let published = self.target.publish(self.builder.store(), kind, bytes);
        published.await?;
        part.end();
        Ok(descriptor)
    }
}

/// Returns the end of the media type of layers.
fn suffix(export: &Export) -> &'static str {
    match (export.compression, export.has_docker_types) {
        (Compression::None, _) => "",
        (Compression::Gzip | Compression::GzipLevel(_), true) => ".gzip",
        (Compression::Gzip | Compression::GzipLevel(_), false) => "+gzip",
        (Compression::Zstd(_), true) => ".zstd",
        (Compression::Zstd(_), false) => "+zstd",
    }
}

fn annotated(mut blob: Descriptor, layer: &Digest) -> Descriptor {
    blob.annotations
        .insert(UNCOMPRESSED.into(), layer.to_string());
    blob
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn parse(kind: &str, attributes: &[(&str, &str)]) -> Result<Export> {
        let attributes = attributes.iter();
        let attributes = attributes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Export::parse(kind, &attributes.collect())
    }

    #[test]
    fn attributes_are_honoured_or_refused_by_name() {
        for (kind, attributes, expected) in [
            (
                "gha",
                &[("url", "x")][..],
                "cache export to gha: not available",
            ),
            ("azblob", &[], "cache export to azblob: not available"),
            ("local", &[], "dest is missing"),
            ("registry", &[], "ref is missing"),
            (
                "registry",
                &[("ref", "a"), ("mode", "most")],
                "unknown mode \"most\" of the cache export to registry: it can be min or max",
            ),
            ("locl", &[], "unknown cache exporter: \"locl\""),
            (
                "registry",
                &[("ref", "a"), ("compression", "lzma")],
                "unknown compression \"lzma\"",
            ),
            (
                "local",
                &[("dest", "a"), ("insecure", "true")],
                "insecure=true of the cache export to local",
            ),
            (
                "registry",
                &[("ref", "a"), ("compression", "estargz")],
                "compression=estargz",
            ),
            (
                "registry",
                &[("ref", "a"), ("compression-level", "10")],
                "compression-level",
            ),
            (
                "registry",
                &[("ref", "a"), ("ignore-error", "maybe")],
                "ignore-error",
            ),
            (
                "inline",
                &[("dest", "x")],
                "unknown attribute dest of the cache export to inline",
            ),
            (
                "local",
                &[
                    ("dest", "x"),
                    ("image-manifest", "true"),
                    ("oci-mediatypes", "false"),
                ],
                "image-manifest=true needs",
            ),
        ] {
            let error = parse(kind, attributes).unwrap_err().to_string();
            assert!(error.contains(expected), "{kind} {attributes:?}: {error}");
        }
        let export = parse(
            "local",
            &[
                ("dest", "x"),
                ("tag", "y"),
                ("mode", "max"),
                ("compression", "zstd"),
                ("compression-level", "3"),
                ("force-compression", "true"),
                ("ignore-error", "1"),
                ("oci-mediatypes", "false"),
            ],
        )
        .unwrap();
        assert!(export.is_max && export.is_optional && export.has_docker_types);
        assert!(!export.is_image && export.is_local());
        assert_eq!(export.compression, Compression::Zstd(3));
        assert!(parse("inline", &[]).unwrap().is_inline());
        let ignored = parse("gha", &[("url", "x"), ("ignore-error", "true")]).unwrap();
        assert!(ignored.is_optional && ignored.place == Place::Service("gha".into()));
    }
}
