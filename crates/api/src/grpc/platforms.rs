//! Results for several platforms: a reference for each, and in the metadata which platform each is for (`refs.platforms`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use whelk_build::emulation::host;
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::gateway::{self, RefMap, result};
use whelk_dockerfile::convert::Image;
use whelk_llb::pb;

use super::Buildkit;
use super::builds::{Build, Reference};
use super::scope::Scope;

const PLATFORMS: &str = "refs.platforms";
/// The metadata of a result with the configuration of its image.
pub(super) const CONFIG: &str = "containerimage.config";
const EPOCH: &str = "source.date.epoch";

/// Maximum number of platforms of a result.
pub(super) const MAX_PLATFORMS: usize = 64;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    #[serde(default)]
    platforms: Option<Vec<PlatformEntry>>,
}

#[derive(Serialize, Deserialize)]
struct PlatformEntry {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Platform", default)]
    platform: Platform,
}

/// As in indexes of images.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    architecture: String,
    os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
}

impl From<pb::Platform> for Platform {
    fn from(platform: pb::Platform) -> Self {
        Self {
            architecture: platform.architecture,
            os: platform.os,
            os_version: platform.os_version,
            os_features: platform.os_features,
            variant: platform.variant,
        }
    }
}

/// A result that was returned for a platform.
pub(super) struct Returned {
    pub id: String,
    pub platform: pb::Platform,
    pub reference: Arc<Reference>,
    /// The configuration of the image, if the frontend has made one.
    pub config: Option<Image>,
    /// The time that the frontend has set, in seconds since 1970.
    pub epoch: Option<i64>,
}

/// Returns the names of references.
pub(super) fn ids(kind: &result::Kind) -> Vec<&String> {
    match kind {
        result::Kind::Ref(reference) => vec![&reference.id],
        result::Kind::RefName(id) => vec![id],
        result::Kind::Refs(map) => map.refs.values().map(|reference| &reference.id).collect(),
        result::Kind::RefNames(map) => map.refs.values().collect(),
    }
}

impl Buildkit {
    /// Keeps references as the results of a call, one for each platform.
    ///
    /// # Errors
    /// Returns an error if the frontend has too many.
    pub(super) fn results(
        &self,
        scope: &Scope,
        references: Vec<(pb::Platform, Reference)>,
    ) -> Result<gateway::Result> {
        let mut result = gateway::Result::default();
        let mut map = RefMap::default();
        let mut listed = Vec::with_capacity(references.len());
        for (platform, reference) in references {
            let platform = platform.normalized();
            let id = platform.specifier();
            let one = self.result(scope, reference)?;
            if let Some(config) = one.metadata.get(CONFIG) {
                result
                    .metadata
                    .insert(format!("{CONFIG}/{id}"), config.clone());
            }
            if let Some(result::Kind::Ref(reference)) = one.kind {
                map.refs.insert(id.clone(), reference);
            }
            listed.push(PlatformEntry {
                id,
                platform: platform.into(),
            });
        }
        let listing = Listing {
            platforms: Some(listed),
        };
        if let Ok(listing) = serde_json::to_vec(&listing) {
            result.metadata.insert(PLATFORMS.into(), listing);
        }
        result.kind = Some(result::Kind::Refs(map));
        Ok(result)
    }
}

/// Returns whether a result has no files, and no platforms either.
pub(super) fn is_empty(result: &gateway::Result) -> bool {
    match &result.kind {
        None => true,
        Some(result::Kind::Ref(reference)) => reference.id.is_empty(),
        Some(result::Kind::RefName(id)) => id.is_empty(),
        Some(result::Kind::Refs(map)) => map.refs.is_empty(),
        Some(result::Kind::RefNames(map)) => map.refs.is_empty(),
    }
}

/// Returns the result that a name stands for. Without a name, it has no files.
fn reference(build: &Build, name: &str) -> Result<Arc<Reference>> {
    match name {
        "" => Ok(Arc::new(Reference::empty(build.request.clone()))),
        name => build.scope.reference(name),
    }
}

/// Returns the results that a frontend has returned, and whether they are by platform.
///
/// # Errors
/// Returns an error if it refers to what it does not have, or if the platforms are not listed.
pub(super) fn returned(build: &Build, result: &gateway::Result) -> Result<(Vec<Returned>, bool)> {
    let listing = listing(result)?;
    let names: Option<Vec<(&String, &String)>> = match &result.kind {
        Some(result::Kind::Refs(map)) => {
            let refs = map.refs.iter();
            Some(refs.map(|(id, reference)| (id, &reference.id)).collect())
        }
        Some(result::Kind::RefNames(map)) => Some(map.refs.iter().collect()),
        _ => None,
    };
    let Some(names) = names else {
        let ids = result.kind.as_ref().map_or_else(Vec::new, ids);
        let id = ids.first().map_or("", |id| id.as_str());
        if listing.len() > 1 {
            let text = "cannot export multiple platforms without multi-platform enabled";
            return Err(Status::invalid(text));
        }
        let known = listing
            .first()
            .map(|listed| format!("{CONFIG}/{}", listed.id));
        let known = known.and_then(|name| result.metadata.get(&name));
        let config = config(result.metadata.get(CONFIG).or(known))?;
        let epoch = epoch(result.metadata.get(EPOCH))?;
        let reference = reference(build, id)?;
        let own = reference.origin.as_ref().map(|origin| &origin.platform);
        let platform = match (listing.into_iter().next(), own, &config) {
            (Some(listed), _, _) => platform(&listed)?,
            (None, Some(platform), _) => platform.normalized(),
            (None, None, Some(image)) => of_image(image),
            (None, None, None) => host(),
        };
        let one = Returned {
            id: platform.normalized().specifier(),
            platform,
            reference,
            config,
            epoch,
        };
        return Ok((vec![one], false));
    };
    if listing.is_empty() && !names.is_empty() {
        let text = "unable to export multiple refs, missing platforms mapping";
        return Err(Status::invalid(text));
    }
    let mut found = Vec::with_capacity(listing.len());
    for listed in listing {
        let named = names.iter().find(|(id, _)| **id == listed.id);
        let (_, named) = named.ok_or_else(|| {
            let text = format!("failed to find ref for ID {}", listed.id);
            Status::invalid(text)
        })?;
        let name = format!("{CONFIG}/{}", listed.id);
        found.push(Returned {
            platform: platform(&listed)?,
            reference: reference(build, named)?,
            config: config(result.metadata.get(&name))?,
            epoch: epoch(result.metadata.get(&format!("{EPOCH}/{}", listed.id)))?,
            id: listed.id,
        });
    }
    Ok((found, true))
}

/// Returns the platform of an image, which becomes part of names of files: the host's if its own is invalid.
fn of_image(image: &Image) -> pb::Platform {
    let host = host();
    let own = pb::Platform::new(&image.os, &image.architecture, &image.variant).normalized();
    let parsed = pb::Platform::parse(&own.specifier(), &host);
    match parsed.is_ok_and(|parsed| parsed.normalized() == own) {
        true => own,
        false => host,
    }
}

/// Reads the configuration of an image.
pub(super) fn config(bytes: Option<&Vec<u8>>) -> Result<Option<Image>> {
    let Some(bytes) = bytes else { return Ok(None) };
    let image: Option<Image> = serde_json::from_slice(bytes)
        .map_err(|error| Status::invalid(format!("invalid image config for export: {error}")))?;
    match image {
        None => Err(Status::invalid("invalid null image config for export")),
        Some(image) if image.os.is_empty() != image.architecture.is_empty() => {
            let text = "invalid image config: os and architecture must be specified together";
            Err(Status::invalid(text))
        }
        image => Ok(image),
    }
}

/// Reads a time, in seconds since 1970.
fn epoch(bytes: Option<&Vec<u8>>) -> Result<Option<i64>> {
    let Some(bytes) = bytes else { return Ok(None) };
    let text = std::str::from_utf8(bytes).ok();
    let time = text.and_then(|text| text.parse().ok());
    let invalid = || Status::invalid(format!("invalid {EPOCH} of a result"));
    time.map(Some).ok_or_else(invalid)
}

fn listing(result: &gateway::Result) -> Result<Vec<PlatformEntry>> {
    let Some(bytes) = result.metadata.get(PLATFORMS) else {
        return Ok(Vec::new());
    };
    let invalid = |error: String| Status::invalid(format!("platforms of the result: {error}"));
    let listing: Option<Listing> =
        serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    let listed = listing.and_then(|listing| listing.platforms);
    let listed = listed.unwrap_or_default();
    if listed.is_empty() {
        let text = "invalid empty platforms index for exporter";
        return Err(Status::invalid(text));
    }
    for PlatformEntry { id, platform } in &listed {
        let (os, architecture) = (&platform.os, &platform.architecture);
        if id.is_empty() {
            let text = "invalid empty platform key for exporter";
            return Err(Status::invalid(text));
        }
        if os.is_empty() || architecture.is_empty() {
            let text =
                format!("invalid platform value {os:?}, {architecture:?} of {id:?} for exporter");
            return Err(Status::invalid(text));
        }
    }
    if listed.len() > MAX_PLATFORMS {
        return Err(invalid(format!("more than {MAX_PLATFORMS}")));
    }
    let mut known = std::collections::BTreeSet::new();
    if let Some(twice) = listed
        .iter()
        .find(|listed| !known.insert(listed.id.clone()))
    {
        return Err(invalid(format!("{} is there twice", twice.id)));
    }
    Ok(listed)
}

/// Checks a platform, which becomes part of names of files, and its name.
fn platform(listed: &PlatformEntry) -> Result<pb::Platform> {
    let invalid = || Status::invalid(format!("invalid platform {:?} of a result", listed.id));
    let parsed = pb::Platform::parse(&listed.id, &host());
    let parsed = parsed.map_err(|_| invalid())?;
    let named = &listed.platform;
    let own = pb::Platform {
        architecture: named.architecture.clone(),
        os: named.os.clone(),
        variant: named.variant.clone(),
        os_version: named.os_version.clone(),
        os_features: named.os_features.clone(),
    };
    match own.normalized() == parsed.normalized() {
        true => Ok(own),
        false => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Result<Vec<PlatformEntry>> {
        let mut result = gateway::Result::default();
        result.metadata.insert(PLATFORMS.into(), text.into());
        listing(&result)
    }

    #[test]
    fn platforms_of_results_are_checked() {
        for (text, expected) in [
            ("null", "invalid empty platforms index for exporter"),
            ("{}", "invalid empty platforms index for exporter"),
            (r#"{"Platforms":null}"#, "invalid empty platforms index"),
            (r#"{"Platforms":[{}]}"#, "invalid empty platform key"),
            (r#"{"Platforms":[{"ID":"a"}]}"#, "invalid platform value"),
        ] {
            let error = listed(text).map_or_else(|status| status.message, |_| String::new());
            assert!(error.contains(expected), "{text}: {error}");
        }
        let one = r#"{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}"#;
        let list = |entries: &[&str]| format!(r#"{{"Platforms":[{}]}}"#, entries.join(","));
        let good = listed(&list(&[one])).unwrap_or_default();
        assert_eq!(
            platform(&good[0]).map(|found| found.short()),
            Ok("linux/arm64".into())
        );
        for (name, value) in [
            ("../../etc", "arm64"),
            ("linux/arm64", "amd64"),
            ("linux/arm64/../..", "arm64"),
        ] {
            let entry = format!(
                r#"{{"ID":"{name}","Platform":{{"architecture":"{value}","os":"linux"}}}}"#
            );
            let bad = listed(&list(&[&entry])).unwrap_or_default();
            assert!(platform(&bad[0]).is_err(), "{name} {value}");
        }
        assert!(listed(&list(&[one, one])).is_err());
        assert!(listed("[").is_err());
    }

    #[test]
    fn configurations_are_checked() {
        for (text, expected) in [
            ("null", "invalid null image config for export"),
            ("[", "invalid image config for export"),
            (r#"{"os":"linux"}"#, "os and architecture must be specified"),
            (r#"{"architecture":"arm64"}"#, "must be specified together"),
        ] {
            let error = config(Some(&text.into())).map_err(|status| status.message);
            let error = error.map_or_else(|error| error, |_| String::new());
            assert!(error.contains(expected), "{text}: {error}");
        }
        for text in ["{}", r#"{"os":"linux","architecture":"arm64"}"#] {
            assert!(config(Some(&text.into())).is_ok_and(|found| found.is_some()));
        }
    }
}
