//! `buildx imagetools inspect --format`: what templates see, with the Go types of buildx.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use whelk_gotemplate::{Mode, Template, Typed, Types};
use whelk_image::Reference;
use whelk_registry::Document;

use super::wire::{
    Descriptor, Envelope, Image, Index, Manifest, REFERENCE_DIGEST, Statement, read,
};
use super::{by_digest, document};
use crate::commands::manifest::remote::{self, Remote};
use crate::format::template::{failure, json};
use crate::{Failure, Outcome};

/// Maximum size of a configuration or an attestation in bytes.
const MAX_BLOB: u64 = 64 << 20;

static TYPES: Types = Types {
    aliases: &[("digest.Digest", "string")],
    structs: &[
        (
            "imagetools.tplInput",
            &[
                ("Name", "string"),
                ("Manifest", "imagetools.Manifest"),
                ("Image", "*v1.Image"),
                ("SBOM", "imagetools.sbomStub"),
                ("Provenance", "imagetools.provenanceStub"),
            ],
        ),
        (
            "imagetools.tplInputs",
            &[
                ("Name", "string"),
                ("Manifest", "imagetools.Manifest"),
                ("Image", "map[string]*v1.Image"),
                ("SBOM", "map[string]imagetools.sbomStub"),
                ("Provenance", "map[string]imagetools.provenanceStub"),
            ],
        ),
        (
            "imagetools.Manifest",
            &[
                ("SchemaVersion", "int"),
                ("MediaType", "string"),
                ("Digest", "digest.Digest"),
                ("Size", "int64"),
                ("Manifests", "[]v1.Descriptor"),
                ("URLs", "[]string"),
                ("Annotations", "map[string]string"),
                ("Platform", "*v1.Platform"),
            ],
        ),
        (
            "imagetools.sbomStub",
            &[
                ("SPDX", "interface {}"),
                ("AdditionalSPDXs", "[]interface {}"),
            ],
        ),
        ("imagetools.provenanceStub", &[("SLSA", "interface {}")]),
        (
            "v1.Descriptor",
            &[
                ("MediaType", "string"),
                ("Digest", "digest.Digest"),
                ("Size", "int64"),
                ("URLs", "[]string"),
                ("Annotations", "map[string]string"),
                ("Data", "string"),
                ("Platform", "*v1.Platform"),
                ("ArtifactType", "string"),
            ],
        ),
        (
            "v1.Platform",
            &[
                ("Architecture", "string"),
                ("OS", "string"),
                ("OSVersion", "string"),
                ("OSFeatures", "[]string"),
                ("Variant", "string"),
            ],
        ),
        (
            "v1.Image",
            &[
                ("Created", "*time.Time"),
                ("Author", "string"),
                ("Platform", "+v1.Platform"),
                ("Config", "v1.ImageConfig"),
                ("RootFS", "v1.RootFS"),
                ("History", "[]v1.History"),
            ],
        ),
        (
            "v1.ImageConfig",
            &[
                ("User", "string"),
                ("ExposedPorts", "map[string]struct {}"),
                ("Env", "[]string"),
                ("Entrypoint", "[]string"),
                ("Cmd", "[]string"),
                ("Volumes", "map[string]struct {}"),
                ("WorkingDir", "string"),
                ("Labels", "map[string]string"),
                ("StopSignal", "string"),
                ("ArgsEscaped", "bool"),
            ],
        ),
        (
            "v1.RootFS",
            &[("Type", "string"), ("DiffIDs", "[]digest.Digest")],
        ),
        (
            "v1.History",
            &[
                ("Created", "*time.Time"),
                ("CreatedBy", "string"),
                ("Author", "string"),
                ("Comment", "string"),
                ("EmptyLayer", "bool"),
            ],
        ),
    ],
    json_names: &[
        ("OSVersion", "os.version"),
        ("OSFeatures", "os.features"),
        ("DiffIDs", "diff_ids"),
        ("CreatedBy", "created_by"),
        ("EmptyLayer", "empty_layer"),
    ],
    method: |_, _, _, _| None,
    string: |_| None,
};

/// An index as templates see it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownIndex<'a> {
    schema_version: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    media_type: &'a str,
    digest: &'a whelk_image::Digest,
    size: usize,
    manifests: &'a [Descriptor],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Input<I, S, P> {
    name: String,
    manifest: Value,
    image: I,
    /// Only there if the template needs it.
    #[serde(rename = "SBOM", skip_serializing_if = "Option::is_none")]
    sbom: Option<S>,
    #[serde(rename = "Provenance", skip_serializing_if = "Option::is_none")]
    provenance: Option<P>,
}

#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "UPPERCASE")]
struct Provenance {
    #[serde(skip_serializing_if = "Option::is_none")]
    slsa: Option<Value>,
}

#[derive(Clone, Default, Serialize)]
struct Sbom {
    #[serde(rename = "SPDX", skip_serializing_if = "Option::is_none")]
    spdx: Option<Value>,
    #[serde(rename = "AdditionalSPDXs", skip_serializing_if = "Vec::is_empty")]
    additional: Vec<Value>,
}

/// What is known of the image of one platform.
struct Known {
    image: Image,
    sbom: Option<Sbom>,
    provenance: Option<Provenance>,
}

/// Returns what a template makes of an image.
pub(super) async fn shown(
    remote: &Remote,
    given: &str,
    name: &Reference,
    found: &Document,
    index: Option<Index>,
    format: &str,
) -> Outcome<String> {
    let template = Template::parse(format).map_err(|error| failure(&error, 1, ""))?;
    let mut repository = Images {
        remote,
        name,
        with_attestations: format.contains("SBOM") || format.contains("Provenance"),
        found: BTreeMap::new(),
    };
    let manifest = match &index {
        Some(index) => {
            repository.add_index(index).await?;
            json(&ShownIndex {
                schema_version: index.schema_version,
                media_type: &index.media_type,
                digest: &found.digest,
                size: found.bytes.len(),
                manifests: &index.manifests,
                annotations: &index.annotations,
            })?
        }
        None => {
            repository.add(&found.bytes, None, &[]).await?;
            json(&Descriptor {
                media_type: found.media_type.clone(),
                digest: Some(found.digest.clone()),
                size: found.bytes.len() as u64,
                ..Descriptor::default()
            })?
        }
    };
    let all = repository.found;
    let wants = |what: &str| format.contains(what);
    let (ty, value) = if all.len() > 1 {
        let part = |known: &Known| json(&known.image);
        let images = all.iter().map(|(key, known)| Ok((key, part(known)?)));
        let sboms = all
            .iter()
            .filter_map(|(key, known)| Some((key, known.sbom.as_ref()?)));
        let provenances = all
            .iter()
            .filter_map(|(key, known)| Some((key, known.provenance.as_ref()?)));
        let input = Input {
            name: given.to_owned(),
            manifest,
            image: images.collect::<Outcome<BTreeMap<_, _>>>()?,
            sbom: wants("SBOM").then(|| sboms.collect::<BTreeMap<_, _>>()),
            provenance: wants("Provenance").then(|| provenances.collect::<BTreeMap<_, _>>()),
        };
        ("imagetools.tplInputs", json(&input)?)
    } else {
        let only = all.into_values().next();
        let (sbom, provenance, image) = match only {
            Some(only) => (only.sbom, only.provenance, Some(only.image)),
            None => (None, None, None),
        };
        let input = Input {
            name: given.to_owned(),
            manifest,
            image,
            sbom: wants("SBOM").then(|| sbom.unwrap_or_default()),
            provenance: wants("Provenance").then(|| provenance.unwrap_or_default()),
        };
        ("imagetools.tplInput", json(&input)?)
    };
    let shown = template.execute(&Typed::new(&TYPES, ty, value), Mode::Indented);
    shown.map_err(|error| failure(&error, 1, ""))
}

/// The images of an index, by their platforms.
struct Images<'a> {
    remote: &'a Remote,
    name: &'a Reference,
    with_attestations: bool,
    found: BTreeMap<String, Known>,
}

impl Images<'_> {
    async fn add_index(&mut self, index: &Index) -> Outcome<()> {
        for entry in &index.manifests {
            if entry.annotations.contains_key(REFERENCE_DIGEST) || entry.is_index() {
                continue;
            }
            let digest = entry.digest()?;
            let about = index.manifests.iter().filter(|other| {
                other.annotations.get(REFERENCE_DIGEST).map(String::as_str) == Some(digest.as_str())
            });
            let about: Vec<&Descriptor> = about.collect();
            let manifest = document(self.remote, &by_digest(self.name, digest)).await?;
            self.add(&manifest.bytes, Some(entry), &about).await?;
        }
        Ok(())
    }

    /// Adds the image of a manifest, with what is attested of it.
    async fn add(
        &mut self,
        manifest: &[u8],
        entry: Option<&Descriptor>,
        about: &[&Descriptor],
    ) -> Outcome<()> {
        let manifest: Manifest = read(manifest, "manifest")?;
        let Some(config) = &manifest.config else {
            return Ok(());
        };
        let image: Image = read(&self.blob(config).await?, "configuration")?;
        let platform = entry.and_then(|entry| entry.platform.clone());
        let platform = platform.unwrap_or_else(|| image.platform.clone());
        let mut known = Known {
            image,
            sbom: None,
            provenance: None,
        };
        if self.with_attestations {
            for attestation in about {
                self.attested(attestation, &mut known).await?;
            }
        }
        let platform = platform.plain().normalized().to_string();
        self.found.insert(platform, known);
        Ok(())
    }

    async fn attested(&self, attestation: &Descriptor, known: &mut Known) -> Outcome<()> {
        let digest = attestation.digest()?;
        let manifest = document(self.remote, &by_digest(self.name, digest)).await?;
        let manifest: Manifest = read(&manifest.bytes, "manifest")?;
        for layer in &manifest.layers {
            let is_signed = layer.media_type.starts_with("application/vnd.in-toto.")
                && layer.media_type.ends_with("+dsse");
            if layer.media_type != "application/vnd.in-toto+json" && !is_signed {
                continue;
            }
            let kind = layer.annotations.get("in-toto.io/predicate-type");
            let kind = kind.map_or("", String::as_str);
            let is_sbom = kind == "https://spdx.dev/Document";
            if !is_sbom && !kind.starts_with("https://slsa.dev/provenance/") {
                continue;
            }
            let mut bytes = self.blob(layer).await?;
            if is_signed {
                let envelope: Envelope = read(&bytes, "envelope")?;
                bytes = STANDARD
                    .decode(&envelope.payload)
                    .map_err(|error| Failure::new(format!("invalid envelope: {error}")))?;
            }
            let Statement { predicate } = read(&bytes, "statement")?;
            match (is_sbom, &mut known.sbom) {
                (true, Some(sbom)) => sbom.additional.push(predicate),
                (true, sbom) => {
                    *sbom = Some(Sbom {
                        spdx: Some(predicate),
                        ..Sbom::default()
                    });
                }
                (false, _) => {
                    known.provenance.get_or_insert(Provenance {
                        slsa: Some(predicate),
                    });
                }
            }
        }
        Ok(())
    }

    async fn blob(&self, descriptor: &Descriptor) -> Outcome<Vec<u8>> {
        let digest = descriptor.digest()?;
        if descriptor.size > MAX_BLOB {
            let text = format!(
                "{digest} has {} bytes, more than {MAX_BLOB}",
                descriptor.size
            );
            return Err(Failure::new(text));
        }
        let repository = self.remote.to_read(self.name)?;
        let content = remote::blob(&repository, digest, descriptor.size).await?;
        content.ok_or_else(|| Failure::new(format!("the content of {digest} has another digest")))
    }
}
