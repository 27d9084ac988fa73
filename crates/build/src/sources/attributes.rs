//! Attributes of images in definitions.

use whelk_engine::images::Image;
use whelk_image::{Digest, Reference};
use whelk_llb::pb::SourceOp;

use crate::error::{Error, Result};

/// Attributes of images that are known. The type of a record has no effect.
const KNOWN: [&str; 7] = [
    "image.resolvemode",
    "image.recordtype",
    "image.layerlimit",
    CHECKSUM,
    "oci.session",
    "oci.store",
    "oci.layerlimit",
];

const CHECKSUM: &str = "image.checksum";

/// Returns the name of the image that a source is.
pub(crate) fn image_of(source: &SourceOp) -> Option<&str> {
    let of_registry = source.identifier.strip_prefix("docker-image://");
    of_registry.or_else(|| source.identifier.strip_prefix("oci-layout://"))
}

/// Returns what a source's image is known by in a build: its name, and the digest that it must have, if there is one.
pub(super) fn known_as(source: &SourceOp) -> Option<String> {
    let reference = image_of(source)?;
    Some(match source.attrs.get(CHECKSUM) {
        Some(checksum) => format!("{reference} {checksum}"),
        None => reference.to_owned(),
    })
}

/// Refuses attributes of an image that are not known, and values that cannot be.
pub(crate) fn check(source: &SourceOp) -> Result<()> {
    if image_of(source).is_none() {
        return Ok(());
    }
    let mut names = source.attrs.keys();
    if let Some(name) = names.find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(Error::Unsupported(format!(
            "the attribute {name} of the source {}",
            source.identifier
        )));
    }
    layer_limit(source)?;
    checksum(source).map(drop)
}

/// Returns the number of an image's layers that are used, from the lowest one on, at most.
pub(super) fn layer_limit(source: &SourceOp) -> Result<usize> {
    let limits = ["image.layerlimit", "oci.layerlimit"];
    let limit = limits.into_iter().find_map(|name| source.attrs.get(name));
    let Some(limit) = limit else {
        return Ok(usize::MAX);
    };
    let parsed = limit.parse::<usize>().ok().filter(|limit| *limit > 0);
    parsed.ok_or_else(|| Error::invalid(format!("invalid layer limit {limit}")))
}

/// Returns the digest that an image must have.
pub(super) fn checksum(source: &SourceOp) -> Result<Option<Digest>> {
    let Some(checksum) = source.attrs.get(CHECKSUM) else {
        return Ok(None);
    };
    let parsed = checksum.parse::<Digest>().map(Some);
    parsed.map_err(|_| Error::invalid(format!("invalid image checksum {checksum}")))
}

/// Returns the digests by which registries know an image: those that it was pulled or pushed with under this name, and its own.
fn digests<'a>(image: &'a Image, reference: &Reference) -> Vec<&'a Digest> {
    let known = image.repo_digests.iter();
    let known = known.filter(|known| known.name() == reference.name());
    let known = known.filter_map(|known| known.digest.as_ref());
    known
        .chain(image.origin.blobs())
        .chain([&image.id])
        .collect()
}

/// Returns the digest of a source's image: that of its name, of its index or its manifest, or its id.
pub(super) fn digest(image: &Image, reference: &Reference) -> Digest {
    let is_own = |digest: &&Digest| image.origin.blobs().any(|own| own == *digest);
    let known = image.repo_digests.iter();
    let known = known.filter(|known| known.name() == reference.name());
    let known: Vec<_> = known.filter_map(|known| known.digest.as_ref()).collect();
    let found = reference.digest.as_ref();
    let found = found.or_else(|| known.iter().copied().find(is_own));
    let found = found.or(known.last().copied());
    let found = found.or(image.origin.index.as_ref());
    let found = found.or(image.origin.manifest.as_ref());
    found.unwrap_or(&image.id).clone()
}

/// Checks that an image has the digest that its source wants.
pub(super) fn verify(image: &Image, source: &SourceOp) -> Result<()> {
    let (Some(wanted), Some(name)) = (checksum(source)?, image_of(source)) else {
        return Ok(());
    };
    let reference: Reference = name
        .parse()
        .map_err(|error: whelk_image::Error| Error::invalid(error.to_string()))?;
    if digests(image, &reference).contains(&&wanted) {
        return Ok(());
    }
    let found = digest(image, &reference);
    Err(Error::invalid(format!(
        "image digest {found} for {name} does not match expected checksum {wanted}"
    )))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn source(attributes: &[(&str, &str)]) -> SourceOp {
        let attributes = attributes.iter();
        SourceOp {
            identifier: "docker-image://docker.io/library/busybox:latest".into(),
            attrs: attributes
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn values_are_checked() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        for (name, value, is_valid) in [
            ("image.layerlimit", "1", true),
            ("image.layerlimit", "0", false),
            ("image.layerlimit", "-1", false),
            ("image.layerlimit", "x", false),
            ("oci.layerlimit", "0", false),
            ("image.checksum", &digest, true),
            ("image.checksum", "sha256:0", false),
            ("image.resolvemode", "local", true),
            ("image.other", "", false),
        ] {
            assert_eq!(
                check(&source(&[(name, value)])).is_ok(),
                is_valid,
                "{name} {value}"
            );
        }
        assert_eq!(
            layer_limit(&source(&[("image.layerlimit", "2")])).unwrap(),
            2
        );
        assert_eq!(layer_limit(&source(&[])).unwrap(), usize::MAX);
        let error = check(&source(&[("image.layerlimit", "0")])).unwrap_err();
        assert_eq!(error.to_string(), "invalid layer limit 0");
    }

    #[test]
    fn images_with_a_checksum_are_others() {
        let plain = "docker.io/library/busybox:latest";
        assert_eq!(known_as(&source(&[])).unwrap(), plain);
        let known = known_as(&source(&[("image.checksum", "c")])).unwrap();
        assert_eq!(known, format!("{plain} c"));
    }
}
