//! `buildx history inspect attachment`: the files that a build has left, and what they say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use whelk_buildkit::pb::control::{BuildHistoryRecord, Descriptor};

use super::super::Builds;
use crate::output::write_out;
use crate::terminal::one_line;
use crate::{Failure, Outcome};

/// How the types of provenance predicates begin.
pub(crate) const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Wanted<'a> {
    build: &'a str,
    digest: &'a str,
    /// A short name, a media type or the type of a predicate.
    kind: &'a str,
    platform: &'a str,
}

impl<'a> Wanted<'a> {
    /// Reads `[REF [DIGEST]]` and the flags.
    ///
    /// # Errors
    /// Returns an error if nothing says which attachment is meant.
    pub fn parse(names: &'a [String], kind: &'a str, platform: &'a str) -> Outcome<Self> {
        let (build, digest) = match names {
            [] => ("", ""),
            [build] => (build.as_str(), ""),
            [build, digest] => (build.as_str(), digest.as_str()),
            _ => return Err(Failure::new("attachment requires at most 2 arguments")),
        };
        if digest.is_empty() && kind.is_empty() && platform.is_empty() {
            return Err(Failure::new(
                "at least one of --type, --platform or DIGEST must be specified",
            ));
        }
        Ok(Self {
            build,
            digest,
            kind,
            platform,
        })
    }

    fn is(&self, platform: &str, descriptor: &Descriptor) -> bool {
        if !self.digest.is_empty() {
            return descriptor.digest == self.digest;
        }
        let found = kind(descriptor);
        let is_kind = match self.kind {
            "" => true,
            "index" => found == "application/vnd.oci.image.index.v1+json",
            "manifest" => found == "application/vnd.oci.image.manifest.v1+json",
            "image" => found == "application/vnd.oci.image.config.v1+json",
            "provenance" => found.starts_with(PROVENANCE),
            "sbom" => found == "https://spdx.dev/Document",
            kind => found == kind,
        };
        is_kind && (self.platform.is_empty() || self.platform == platform)
    }
}

/// Prints the first attachment that is meant.
pub(super) async fn print(builds: &Builds, wanted: &Wanted<'_>) -> Outcome {
    let record = builds.find(wanted.build).await?;
    let mut all = attachments(&record).into_iter();
    let found = all.find(|(platform, descriptor)| wanted.is(platform, descriptor));
    let Some((_, descriptor)) = found else {
        return Err(Failure::new(match wanted.digest {
            "" => format!("no matching attachment found for ref {:?}", wanted.build),
            digest => format!("no attachment {digest} found"),
        }));
    };
    write_out(&builds.blob(&descriptor.digest).await?)?;
    Ok(0)
}

/// Returns the files that a build has left, and the platforms that they are for; those of a build for one platform have none.
pub(in super::super) fn attachments(record: &BuildHistoryRecord) -> Vec<(&str, &Descriptor)> {
    let of_all = record.result.iter().map(|result| ("", result));
    let of_platforms = record.results.iter();
    let of_platforms = of_platforms.map(|(platform, result)| (platform.as_str(), result));
    let mut all = Vec::new();
    for (platform, result) in of_all.chain(of_platforms) {
        let outputs = match (result.results.is_empty(), &result.deprecated) {
            (true, Some(only)) => vec![only],
            _ => result.results.values().collect(),
        };
        let found = outputs.into_iter().chain(&result.attestations);
        all.extend(found.map(|descriptor| (platform, descriptor)));
    }
    all
}

/// Returns what an attachment is: the type of a statement's predicate, or the media type.
pub(super) fn kind(descriptor: &Descriptor) -> &str {
    let predicate = descriptor.annotations.get("in-toto.io/predicate-type");
    predicate.unwrap_or(&descriptor.media_type)
}

/// What a build was made of.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Material {
    #[serde(rename = "URI", skip_serializing_if = "String::is_empty")]
    uri: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    digests: Vec<String>,
}

impl Material {
    /// Returns it as a line of a table.
    pub fn row(&self) -> String {
        let digests = one_line(&self.digests.join(", "));
        format!("{}\t{digests}", one_line(&self.uri))
    }
}

/// A predicate of provenance, of SLSA 0.2 or 1.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Predicate {
    materials: Option<Vec<Dependency>>,
    build_definition: Definition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Definition {
    resolved_dependencies: Option<Vec<Dependency>>,
}

#[derive(Deserialize)]
struct Dependency {
    #[serde(default)]
    uri: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

/// Returns what the provenance of a build says that it was made of.
///
/// # Errors
/// Returns an error if the provenance cannot be had.
pub(super) async fn materials(
    builds: &Builds,
    record: &BuildHistoryRecord,
) -> Outcome<Vec<Material>> {
    let mut all = attachments(record).into_iter();
    let provenance = all.find(|(_, descriptor)| kind(descriptor).starts_with(PROVENANCE));
    let Some((_, descriptor)) = provenance else {
        return Ok(Vec::new());
    };
    let digest = &descriptor.digest;
    let predicate = builds.blob(digest).await?;
    materials_in(&predicate)
        .map_err(|error| Failure::new(format!("failed to unmarshal provenance {digest}: {error}")))
}

fn materials_in(predicate: &[u8]) -> serde_json::Result<Vec<Material>> {
    let predicate: Predicate = serde_json::from_slice(predicate)?;
    let v1 = predicate.build_definition.resolved_dependencies;
    let all = predicate.materials.or(v1).unwrap_or_default().into_iter();
    let materials = all.map(|dependency| {
        let digests = dependency.digest.iter();
        Material {
            digests: digests.map(|(name, hex)| format!("{name}:{hex}")).collect(),
            uri: dependency.uri,
        }
    });
    Ok(materials.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_are_selected_by_type_and_platform() {
        let check = |kind: &str, platform: &str, expected: &[bool]| {
            let wanted = Wanted {
                kind,
                platform,
                ..Wanted::default()
            };
            let descriptor = |media_type: &str, predicate: &str| {
                let mut descriptor = Descriptor {
                    media_type: media_type.into(),
                    ..Descriptor::default()
                };
                if !predicate.is_empty() {
                    let name = "in-toto.io/predicate-type".to_owned();
                    descriptor.annotations.insert(name, predicate.into());
                }
                descriptor
            };
            let all = [
                (
                    "",
                    descriptor("application/vnd.oci.image.manifest.v1+json", ""),
                ),
                (
                    "linux/amd64",
                    descriptor("x", "https://slsa.dev/provenance/v1"),
                ),
                (
                    "linux/arm64",
                    descriptor("x", "https://slsa.dev/provenance/v0.2"),
                ),
            ];
            let found = all.iter().map(|(platform, one)| wanted.is(platform, one));
            assert_eq!(found.collect::<Vec<_>>(), expected, "{kind} {platform}");
        };
        check("manifest", "", &[true, false, false]);
        check("provenance", "", &[false, true, true]);
        check("provenance", "linux/arm64", &[false, false, true]);
        check("https://slsa.dev/provenance/v1", "", &[false, true, false]);
        check("", "linux/amd64", &[false, true, false]);
        check("sbom", "", &[false, false, false]);
    }

    #[test]
    fn materials_are_those_of_both_versions() {
        let list = r#"[{"uri":"pkg:docker/x","digest":{"sha256":"00"}},{"uri":"u"}]"#;
        for text in [
            format!(r#"{{"materials":{list}}}"#),
            format!(r#"{{"buildDefinition":{{"resolvedDependencies":{list}}}}}"#),
        ] {
            let rows: Vec<String> = materials_in(text.as_bytes())
                .unwrap()
                .iter()
                .map(Material::row)
                .collect();
            assert_eq!(rows, ["pkg:docker/x\tsha256:00", "u\t"], "{text}");
        }
        let none = materials_in(br#"{"materials":null}"#).unwrap();
        assert!(none.is_empty());
        assert!(materials_in(b"[").is_err());
    }
}
