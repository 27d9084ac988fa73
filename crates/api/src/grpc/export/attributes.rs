//! Attributes of outputs. What is not known, or not supported, is refused by its name.

use std::collections::BTreeMap;

use whelk_buildkit::grpc::{Result, Status};
use whelk_image::Reference;
use whelk_image::archive::{Compression, Form, IndexAnnotations, Packing};

use whelk_buildkit::pb::control::Exporter;
use whelk_dockerfile::convert::Image;
use whelk_llb::pb::Platform;
use whelk_text::time::FOUR_DIGITS;

use super::super::platforms::{CONFIG, config};
use super::{Archive, Export, ImageForm, ImageOutput, Output, Push};

/// Maximum size of the annotations of an output in bytes: registries take manifests of 4 MiB.
const MAX_ANNOTATIONS: usize = 1 << 20;

const TYPES: [&str; 6] = ["moby", "image", "oci", "docker", "local", "tar"];

/// The attributes of an output that were not read yet.
struct Attributes<'a> {
    kind: &'a str,
    left: BTreeMap<&'a str, &'a str>,
    /// The names that were asked for.
    known: Vec<&'static str>,
    /// Whether the image has the names that the frontend returns.
    is_named_by_frontend: bool,
}

const EPOCH: &str = "source-date-epoch";

/// Gives outputs the time of the argument `SOURCE_DATE_EPOCH`, if it is valid, and they have none of their own: also results that come
/// from no Dockerfile have it.
pub(in super::super) fn with_epoch(
    exporters: &mut [Exporter],
    attributes: &BTreeMap<String, String>,
) {
    let Some(value) = attributes.get("build-arg:SOURCE_DATE_EPOCH") else {
        return;
    };
    let seconds: Option<i64> = value.parse().ok();
    if !seconds.is_some_and(|seconds| FOUR_DIGITS.contains(&seconds)) {
        return;
    }
    for exporter in exporters {
        let attributes = &mut exporter.attrs;
        attributes
            .entry(EPOCH.into())
            .or_insert_with(|| value.clone());
    }
}

/// Reads the outputs of a request.
///
/// # Errors
/// Returns an error for one that is not supported or invalid, by the name of the attribute.
pub(in super::super) fn parse(exporters: &[Exporter]) -> Result<Vec<Export>> {
    let exports = exporters.iter().enumerate();
    let exports: Vec<Export> = exports
        .map(|(id, exporter)| export(id, exporter))
        .collect::<Result<_>>()?;
    let layouts = exports.iter().filter(|export| export.is_layout());
    // The client has one store for all of them.
    if layouts.count() > 1 {
        return Err(Status::invalid("only one output can have tar=false"));
    }
    Ok(exports)
}

fn export(id: usize, exporter: &Exporter) -> Result<Export> {
    let attributes = exporter.attrs.iter();
    let mut attributes = Attributes {
        kind: match exporter.kind.as_str() {
            "moby" => "image",
            kind => kind,
        },
        // The type is a field of the request. bollard says it here, too, and another one.
        left: attributes
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, value)| *name != "type" || !TYPES.contains(value))
            .collect(),
        known: Vec::new(),
        is_named_by_frontend: false,
    };
    let epoch = attributes.epoch()?;
    let output = match exporter.kind.as_str() {
        "moby" | "image" => Output::Image(image(&mut attributes)?),
        "oci" => Output::Archive(archive(&mut attributes, Form::Oci)?),
        "docker" => Output::Archive(archive(&mut attributes, Form::Docker)?),
        "local" => {
            attributes.only("mode", &["copy"])?;
            Output::Directory(attributes.files()?)
        }
        "tar" => Output::Tar(attributes.files()?),
        kind => {
            return Err(Status::invalid(format!(
                "exporter {kind:?} could not be found; the types are image, local, tar, oci and docker"
            )));
        }
    };
    let config = match &output {
        Output::Image(_) | Output::Archive(_) => attributes.config()?,
        Output::Directory(_) | Output::Tar(_) => None,
    };
    let is_named_by_frontend = attributes.is_named_by_frontend;
    attributes.end()?;
    Ok(Export {
        id,
        epoch,
        config,
        is_named_by_frontend,
        output,
    })
}

fn image(attributes: &mut Attributes<'_>) -> Result<ImageOutput> {
    let is_by_digest = attributes.flag("push-by-digest")?.unwrap_or(false);
    let push = match attributes.flag("push")?.unwrap_or(false) {
        false => Push::Not,
        true if is_by_digest => Push::Digest,
        true => Push::Tags,
    };
    let names = attributes.names(push)?;
    if push != Push::Not && names.is_empty() && !attributes.is_named_by_frontend {
        return Err(Status::invalid("tag is needed when pushing to registry"));
    }
    let annotations = attributes.annotations()?;
    let has_docker_types = attributes.flag("oci-mediatypes")? == Some(false);
    let image = ImageOutput {
        names,
        push,
        is_stored: attributes.flag("store")?.unwrap_or(true),
        is_insecure: attributes.flag("registry.insecure")?.unwrap_or(false),
        form: ImageForm {
            compression: attributes.compression()?,
            is_forced: attributes.flag("force-compression")?.unwrap_or(false),
            has_docker_types: has_docker_types && !annotations.need_oci_types(),
        },
        annotations,
        must_rewrite_times: attributes.flag("rewrite-timestamp")?.unwrap_or(false),
        attestations: attributes.attestations()?,
    };
    // Images of the engine are always unpacked and loaded, which compose 2.26 asks for. They are found by their names with a digest,
    // too. There are no foreign layers.
    for name in ["unpack", "load", "name-canonical", "prefer-nondist-layers"] {
        attributes.flag(name)?;
    }
    attributes.only("prefer-image-digest", &["false", "0"])?;
    attributes.only("dangling-name-prefix", &[])?;
    attributes.flag("danging-name-empty-only")?;
    Ok(image)
}

fn archive(attributes: &mut Attributes<'_>, form: Form) -> Result<Archive> {
    let names = attributes.names(Push::Not)?;
    let is_layout = match attributes.take("tar") {
        "" => false,
        value => !flag("tar", value)?,
    };
    let annotations = attributes.annotations()?;
    let is_oci = attributes.flag("oci-mediatypes")?;
    let is_oci = is_oci.unwrap_or(form == Form::Oci) || annotations.need_oci_types();
    let compression = attributes.compression()?;
    let must_rewrite_times = attributes.flag("rewrite-timestamp")?.unwrap_or(false);
    // All layers are compressed anew, or not at all.
    attributes.flag("force-compression")?;
    attributes.flag("prefer-nondist-layers")?;
    // The docker context into which the client loads the archive: nothing for the engine.
    attributes.take("context");
    let attestations = attributes.attestations()?;
    Ok(Archive {
        form,
        names,
        is_layout,
        compression,
        has_docker_types: !is_oci,
        annotations,
        must_rewrite_times,
        attestations,
    })
}

/// How attestations are part of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attestations {
    /// Also those that are only for images that have an index anyway.
    pub is_forced: bool,
    /// Their manifests are artifacts of OCI.
    pub is_artifact: bool,
}

/// How files are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// Each platform has a directory of its own; without a value, if there are several.
    pub is_split: Option<bool>,
    /// Before the names of attestations.
    pub prefix: String,
}

/// What an annotation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnnotationTarget {
    Manifest,
    /// The entry of an index for a manifest.
    Entry,
    Index,
    /// What refers to an index.
    IndexEntry,
}

/// Annotations of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    /// What each is about, the platform (empty for all), the name and the value.
    list: Vec<(AnnotationTarget, String, String, String)>,
    /// In bytes.
    size: usize,
}

impl Annotations {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns whether there are some that Docker's media types do not have: all but those of manifests.
    pub fn need_oci_types(&self) -> bool {
        let mut targets = self.list.iter().map(|(target, ..)| *target);
        targets.any(|target| target != AnnotationTarget::Manifest)
    }

    /// Adds those that a frontend has returned with its result, which count instead of others of the same name.
    pub fn add_returned(&mut self, metadata: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let kind = "of a frontend";
        for (name, value) in metadata {
            if let Some(annotation) = annotation(kind, name)? {
                self.add(kind, annotation, &String::from_utf8_lossy(value))?;
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        kind: &str,
        (place, platform, key): (AnnotationTarget, String, &str),
        value: &str,
    ) -> Result<()> {
        self.size += platform.len() + key.len() + value.len();
        if self.size > MAX_ANNOTATIONS {
            let text = format!("the annotations of the output {kind} are larger than 1 MiB");
            return Err(Status::invalid(text));
        }
        self.list
            .push((place, platform, key.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Returns the annotations of something. Those for its platform count instead of those for all.
    fn at(&self, place: AnnotationTarget, platform: &str) -> BTreeMap<String, String> {
        let found = |is_for: fn(&str, &str) -> bool| {
            let found = self.list.iter();
            found.filter(move |(at, wanted, ..)| *at == place && is_for(wanted, platform))
        };
        let for_all = found(|wanted, _| wanted.is_empty());
        let for_one = found(|wanted, platform| !wanted.is_empty() && wanted == platform);
        let all = for_all.chain(for_one);
        all.map(|(.., name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// Returns those of a manifest, and those of the entry of an index for it.
    pub fn of(&self, platform: &str) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let at = |place| self.at(place, platform);
        (at(AnnotationTarget::Manifest), at(AnnotationTarget::Entry))
    }

    /// Returns how an image of the engine is described.
    pub fn packing(&self, platform: &str) -> Packing {
        let (annotations, entry_annotations) = self.of(platform);
        Packing {
            annotations,
            entry_annotations,
            ..Packing::default()
        }
    }

    pub fn index(&self) -> IndexAnnotations {
        IndexAnnotations {
            index: self.at(AnnotationTarget::Index, ""),
            entry: self.at(AnnotationTarget::IndexEntry, ""),
        }
    }

    /// Refuses annotations of platforms that there are not, and of an index if there is none.
    pub fn check(&self, platforms: &[&str], has_index: bool) -> Result<()> {
        for (place, platform, ..) in &self.list {
            if !platform.is_empty() && !platforms.contains(&platform.as_str()) {
                let text = format!("invalid annotation: no platform {platform} found in source");
                return Err(Status::invalid(text));
            }
            if matches!(
                place,
                AnnotationTarget::Index | AnnotationTarget::IndexEntry
            ) && !has_index
            {
                let text = "index annotations not supported for single platform export";
                return Err(Status::invalid(text));
            }
        }
        Ok(())
    }
}

impl<'a> Attributes<'a> {
    /// Returns the value; empty if there is none.
    fn take(&mut self, name: &'static str) -> &'a str {
        self.known.push(name);
        self.left.remove(name).unwrap_or_default()
    }

    /// Returns whether it is set, which it is without a value; `None` if it is not there.
    fn flag(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.known.push(name);
        match self.left.remove(name) {
            None => Ok(None),
            Some("") => Ok(Some(true)),
            Some(value) => flag(name, value).map(Some),
        }
    }

    /// Refuses other values than these.
    fn only(&mut self, name: &'static str, supported: &[&str]) -> Result<()> {
        match self.take(name) {
            "" => Ok(()),
            value if supported.contains(&value.to_lowercase().as_str()) => Ok(()),
            value => Err(self.unsupported(&format!("{name}={value}"))),
        }
    }

    fn unsupported(&self, attribute: &str) -> Status {
        Status::unsupported(format_args!("{attribute} of the output {}", self.kind))
    }

    fn names(&mut self, push: Push) -> Result<Vec<Reference>> {
        let text = self.take("name");
        self.is_named_by_frontend = text == "*";
        match self.is_named_by_frontend {
            true => Ok(Vec::new()),
            false => names(text, push),
        }
    }

    /// Reads the configuration of an image, which replaces that of the result: clients with definitions of their own have none.
    fn config(&mut self) -> Result<Option<Box<Image>>> {
        let text = self.take(CONFIG);
        let text = (!text.is_empty()).then(|| text.as_bytes().to_vec());
        Ok(config(text.as_ref())?.map(Box::new))
    }

    fn epoch(&mut self) -> Result<Option<i64>> {
        let value = self.take(EPOCH);
        if value.is_empty() {
            return Ok(None);
        }
        let invalid =
            |cause: &str| Status::invalid(format!("invalid source-date-epoch {value:?}: {cause}"));
        let seconds: std::result::Result<i64, _> = value.parse();
        let seconds = seconds.map_err(|error| invalid(&error.to_string()))?;
        match FOUR_DIGITS.contains(&seconds) {
            true => Ok(Some(seconds)),
            false => Err(invalid("year outside of range [0,9999]")),
        }
    }

    /// Reads the attributes of outputs that are files.
    fn files(&mut self) -> Result<Files> {
        let prefix = self.take("attestation-prefix").to_owned();
        if prefix.contains(['/', '\0']) || prefix.len() > 128 {
            let text = format!("invalid attestation-prefix {prefix:?}");
            return Err(Status::invalid(text));
        }
        Ok(Files {
            is_split: self.flag("platform-split")?,
            prefix,
        })
    }

    /// Reads what says in which form attestations are.
    fn attestations(&mut self) -> Result<Attestations> {
        Ok(Attestations {
            is_forced: self.flag("attestation-inline")?.unwrap_or(false),
            is_artifact: self.flag("oci-artifact")?.unwrap_or(false),
        })
    }

    fn compression(&mut self) -> Result<Compression> {
        let (name, level) = (self.take("compression"), self.take("compression-level"));
        match Compression::parse(name, level).map_err(Status::invalid)? {
            Some(compression) => Ok(compression),
            None if name == "estargz" => Err(self.unsupported("compression=estargz")),
            None => Err(Status::invalid(format!(
                "unknown compression {name:?} of the output {}: it can be gzip, zstd or uncompressed",
                self.kind
            ))),
        }
    }

    fn annotations(&mut self) -> Result<Annotations> {
        self.known.push("annotation.KEY");
        let mut found = Annotations::default();
        let names: Vec<&str> = self.left.keys().copied().collect();
        for name in names {
            if let Some(annotation) = annotation(self.kind, name)? {
                let value = self.left.remove(name).unwrap_or_default();
                found.add(self.kind, annotation, value)?;
            }
        }
        Ok(found)
    }

    /// Refuses what is left.
    fn end(mut self) -> Result<()> {
        let Some((name, _)) = self.left.first_key_value() else {
            return Ok(());
        };
        if name.starts_with("annotation") {
            return Err(self.unsupported(name));
        }
        self.known.sort_unstable();
        Err(Status::invalid(format!(
            "unknown attribute {name} of the output {}; it can have {}",
            self.kind,
            self.known.join(", ")
        )))
    }
}

/// Reads `annotation[-WHERE][\[PLATFORM\]].KEY`: what it is about, the platform (empty for all), and the key; `None` for another name.
fn annotation<'a>(
    kind: &str,
    name: &'a str,
) -> Result<Option<(AnnotationTarget, String, &'a str)>> {
    let unsupported = || Status::unsupported(format_args!("{name} of the output {kind}"));
    let rest = name.strip_prefix("annotation");
    let rest = rest.filter(|rest| rest.starts_with(['.', '-', '[']));
    // A platform has no dot.
    let Some((place, key)) = rest.and_then(|rest| rest.split_once('.')) else {
        return Ok(None);
    };
    let (place, platform) = match place.split_once('[') {
        Some((place, platform)) => (place, platform.strip_suffix(']')),
        None => (place, Some("")),
    };
    let place = match place {
        "" | "-manifest" => AnnotationTarget::Manifest,
        "-manifest-descriptor" => AnnotationTarget::Entry,
        "-index" => AnnotationTarget::Index,
        "-index-descriptor" => AnnotationTarget::IndexEntry,
        _ => return Err(unsupported()),
    };
    let is_of_index = matches!(
        place,
        AnnotationTarget::Index | AnnotationTarget::IndexEntry
    );
    let platform = match platform {
        None => return Err(unsupported()),
        Some("") => String::new(),
        Some(_) if is_of_index => return Err(unsupported()),
        Some(platform) => {
            let parsed = Platform::parse(platform, &whelk_build::emulation::host());
            let parsed = parsed.map_err(Status::invalid)?;
            parsed.normalized().specifier()
        }
    };
    match key.is_empty() {
        true => Err(unsupported()),
        false => Ok(Some((place, platform, key))),
    }
}

/// Reads the names of an image. Those of one that is pushed by its digest have no tags.
pub(super) fn names(text: &str, push: Push) -> Result<Vec<Reference>> {
    let names = text.split(',').filter(|name| !name.is_empty());
    let names = names.map(|name| {
        let invalid =
            |error: whelk_image::Error| Status::invalid(format!("invalid tag {name:?}: {error}"));
        let reference: Reference = name.parse().map_err(invalid)?;
        if push != Push::Digest {
            return reference.into_tag().map_err(invalid);
        }
        match reference.tag.is_none() && reference.digest.is_none() {
            true => Ok(reference),
            false => {
                let text = format!("can't push tagged ref {reference} by digest");
                Err(Status::invalid(text))
            }
        }
    });
    names.collect()
}

/// Reads a boolean value as Go does.
fn flag(name: &str, value: &str) -> Result<bool> {
    let invalid = || Status::invalid(format!("non-bool value specified for {name}: {value:?}"));
    whelk_text::parse_bool(value).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(kind: &str, attributes: &[(&str, &str)]) -> Result<Output> {
        let attributes = attributes.iter();
        let exporter = Exporter {
            kind: kind.into(),
            attrs: attributes
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let mut exports = parse(&[exporter])?;
        exports
            .pop()
            .map(|export| export.output)
            .ok_or_else(Status::canceled)
    }

    #[test]
    fn attributes_are_honoured_or_refused_by_name() {
        for (kind, name, value) in [
            ("moby", "compression", "estargz"),
            ("moby", "dangling-name-prefix", "x"),
            ("moby", "annotation-none.a", "b"),
            ("moby", "annotation.", "b"),
            ("moby", "annotation-index[linux/amd64].a", "b"),
            ("oci", "compression", "estargz"),
            ("oci", "annotation-none.a", "b"),
            ("local", "mode", "delete"),
        ] {
            let error = parsed(kind, &[(name, value)]).unwrap_err().message;
            assert!(error.contains(name), "{kind} {name}={value}: {error}");
            let expected = "not available in this version of whelk";
            assert!(error.ends_with(expected), "{kind} {name}={value}: {error}");
        }
        for (kind, name, value, expected) in [
            ("moby", "buildinfo", "true", "unknown attribute buildinfo"),
            ("moby", "type", "none", "unknown attribute type"),
            ("oci", "unpack", "true", "unknown attribute unpack"),
            (
                "local",
                "name",
                "x",
                "unknown attribute name of the output local; it can have attestation-prefix, mode, platform-split, source-date-epoch",
            ),
            (
                "oci",
                "bogus",
                "x",
                "unknown attribute bogus of the output oci; it can have annotation.KEY, attestation-inline, ",
            ),
            ("tar", "compresion", "gzip", "unknown attribute compresion"),
            (
                "oci",
                "compression",
                "lzma",
                "unknown compression \"lzma\" of the output oci: it can be gzip, zstd or uncompressed",
            ),
            (
                "cacheonly",
                "a",
                "",
                "exporter \"cacheonly\" could not be found",
            ),
            ("oci", "tar", "maybe", "non-bool value specified for tar"),
            ("oci", "compression-level", "10", "from 0 to 9"),
            ("oci", "compression-level", "x", "invalid compression-level"),
            ("oci", "source-date-epoch", "x", "source-date-epoch"),
            (
                "tar",
                "source-date-epoch",
                "253402300800",
                "year outside of range [0,9999]",
            ),
            ("oci", "annotation[x/y/z/w].a", "b", "cannot parse platform"),
            ("tar", "attestation-prefix", "../a", "attestation-prefix"),
            ("docker", "name", "UPPER", "must be lowercase"),
            ("moby", "push", "true", "tag is needed"),
        ] {
            let error = parsed(kind, &[(name, value)]).unwrap_err().message;
            assert!(error.contains(expected), "{kind} {name}={value}: {error}");
        }
    }

    #[test]
    fn the_type_is_no_attribute_of_images() {
        let output = parsed("moby", &[("type", "docker"), ("name", "a")]);
        assert!(matches!(output, Ok(Output::Image(_))));
    }

    #[test]
    fn forms_of_images() {
        let image = |attributes: &[(&str, &str)]| match parsed("image", attributes) {
            Ok(Output::Image(image)) => image,
            other => panic!("{attributes:?}: {other:?}"),
        };
        let usual = image(&[("name", "a"), ("push", "true"), ("oci-mediatypes", "")]);
        assert!(!usual.is_packed(false) && !usual.is_packed(true));
        for other in [
            ("compression", "zstd"),
            ("compression", "uncompressed"),
            ("compression-level", "3"),
            ("force-compression", "true"),
            ("oci-mediatypes", "false"),
            ("store", "false"),
        ] {
            assert!(image(&[other]).is_packed(false), "{other:?}");
        }
        let by_digest = [("push-by-digest", "true"), ("name", "example.com/a/b,c")];
        // Tags, because it is not pushed.
        let names = |image: &ImageOutput| {
            let names: Vec<String> = image.names.iter().map(Reference::to_string).collect();
            names.join(" ")
        };
        let local = image(&by_digest);
        assert_eq!(
            names(&local),
            "example.com/a/b:latest docker.io/library/c:latest"
        );
        let pushed = image(&[&by_digest[..], &[("push", ""), ("name-canonical", "true")]].concat());
        assert_eq!(names(&pushed), "example.com/a/b docker.io/library/c");
        assert!(pushed.tags().is_empty() && !pushed.is_packed(false) && pushed.is_packed(true));
        let tagged = [by_digest[0], ("push", "true"), ("name", "b:1")];
        let refused = parsed("image", &tagged).unwrap_err().message;
        assert_eq!(
            refused,
            "can't push tagged ref docker.io/library/b:1 by digest"
        );
        // Indexes of Docker's types have no annotations, so these turn the types to OCI's, as with BuildKit.
        let docker_types = ("oci-mediatypes", "false");
        let of_manifest = image(&[docker_types, ("annotation.a", "b")]);
        assert!(of_manifest.form.has_docker_types);
        let of_index = image(&[docker_types, ("annotation-index.a", "b")]);
        assert!(!of_index.form.has_docker_types);
    }

    #[test]
    fn images_have_annotations() {
        let attributes = [
            ("annotation.a", "1"),
            ("annotation-manifest[linux/riscv64].b", "2"),
            ("annotation-manifest-descriptor.c", "3"),
            ("annotation-index.d", "4"),
        ];
        let Ok(Output::Image(image)) = parsed("moby", &attributes) else {
            panic!("no image")
        };
        let annotations = &image.annotations;
        let packing = annotations.packing("linux/riscv64");
        let names: Vec<&String> = packing.annotations.keys().collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(packing.entry_annotations["c"], "3");
        assert!(annotations.check(&["linux/riscv64"], true).is_ok());
        assert!(annotations.check(&["linux/riscv64"], false).is_err());
        assert!(annotations.check(&["linux/amd64"], true).is_err());
        let Ok(Output::Image(image)) = parsed("moby", &[("name", "a")]) else {
            panic!("no image")
        };
        assert!(image.annotations.is_empty());
        let large = "x".repeat(MAX_ANNOTATIONS);
        for kind in ["moby", "oci"] {
            let refused = parsed(kind, &[("annotation.a", large.as_str())]).unwrap_err();
            assert!(refused.message.contains("larger than 1 MiB"));
        }
    }

    #[test]
    fn attributes_of_archives() {
        let attributes = [
            ("name", "a:1,example.com/b"),
            ("tar", "false"),
            ("compression", "zstd"),
            ("compression-level", "22"),
            ("annotation.org.x", "1"),
            ("annotation-manifest-descriptor.y", "2"),
            ("annotation[linux/riscv64].z", "3"),
            ("oci-artifact", "false"),
        ];
        let Ok(Output::Archive(archive)) = parsed("docker", &attributes) else {
            panic!("no archive")
        };
        let names: Vec<String> = archive.names.iter().map(Reference::to_string).collect();
        assert_eq!(names, ["docker.io/library/a:1", "example.com/b:latest"]);
        assert!(archive.is_layout && !archive.has_docker_types);
        assert_eq!(archive.compression, Compression::Zstd(22));
        let annotations = archive.annotations;
        let refused = annotations.check(&["linux/amd64"], false).unwrap_err();
        assert!(refused.message.contains("no platform linux/riscv64"));
        assert!(annotations.check(&["linux/riscv64"], false).is_ok());
        let (manifest, entry) = annotations.of("linux/amd64");
        assert_eq!(manifest, [("org.x".to_owned(), "1".to_owned())].into());
        assert_eq!(entry, [("y".to_owned(), "2".to_owned())].into());
        let Ok(Output::Archive(archive)) = parsed("docker", &[]) else {
            panic!("no archive")
        };
        assert!(!archive.is_layout && archive.has_docker_types);
        let Ok(Output::Archive(archive)) = parsed("oci", &[("annotation-index.a", "b")]) else {
            panic!("no archive")
        };
        let refused = archive.annotations.check(&[], false).unwrap_err().message;
        assert!(refused.contains("index annotations"), "{refused}");
        assert_eq!(archive.annotations.index().index["a"], "b");
    }
}
