//! The manifests and indexes that are pushed, which list the blobs that the registry has.

use std::collections::BTreeMap;

use whelk_image::Digest;
use whelk_image::descriptor::{self, Descriptor, Manifest};

use crate::error::{Error, Result};
use crate::images::Image;
use crate::images::manifests::REFERENCE_DIGEST;
use crate::images::pull::{DOCKER_CONFIG, LAYERS};

/// The manifest of an image that is in the registry otherwise.
pub(super) struct ToPut {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
    /// The manifest that the image came with, if this is another.
    pub(super) instead_of: Option<Digest>,
}

/// Returns the media type and the bytes of an index in which some manifests are replaced by others. What
/// refers to a manifest of it refers to the other one then.
pub(super) fn relisted(
    bytes: Vec<u8>,
    replaced: &BTreeMap<Digest, Descriptor>,
) -> Result<(String, Vec<u8>)> {
    let invalid = |error: serde_json::Error| Error::internal(error.to_string());
    let parsed = descriptor::Index::parse(&bytes)?;
    let media_type = parsed.kind().to_owned();
    if replaced.is_empty() {
        return Ok((media_type, bytes));
    }
    let mut entries = parsed.manifests;
    for entry in &mut entries {
        let about = entry.annotations.get_mut(REFERENCE_DIGEST);
        if let Some(about) = about
            && let Some(other) = about
                .parse()
                .ok()
                .and_then(|about| replaced.get::<Digest>(&about))
        {
            *about = other.digest.to_string();
        }
        if let Some(other) = replaced.get(&entry.digest) {
            entry.media_type.clone_from(&other.media_type);
            entry.digest = other.digest.clone();
            entry.size = other.size;
        }
    }
    // What else the index has, such as annotations, is kept.
    let mut whole: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(invalid)?;
    whole.insert(
        "manifests".into(),
        serde_json::to_value(&entries).map_err(invalid)?,
    );
    Ok((media_type, serde_json::to_vec(&whole).map_err(invalid)?))
}

/// Returns the media type and the bytes of the manifest to push, and the digest of the image's own
/// manifest if that is a different one. `layers` are the blobs in the registry.
pub(super) fn document<'a>(
    original: Option<(Manifest, Vec<u8>)>,
    image: &Image,
    config: &[u8],
    layers: impl Iterator<Item = &'a Descriptor>,
) -> Result<(String, Vec<u8>, Option<Digest>)> {
    let invalid = |error: serde_json::Error| Error::internal(error.to_string());
    let Some((mut manifest, bytes)) = original else {
        let config = Descriptor::new(descriptor::CONFIG, image.id.clone(), config.len() as u64);
        let manifest = Manifest::new(config, layers.cloned().collect());
        let bytes = serde_json::to_vec(&manifest).map_err(invalid)?;
        return Ok((descriptor::MANIFEST.into(), bytes, None));
    };
    let is_docker = manifest.config.media_type == DOCKER_CONFIG;
    let media_type = manifest.kind().to_owned();
    let mut is_same = true;
    for (own, found) in manifest.layers.iter_mut().zip(layers) {
        if own.digest != found.digest {
            is_same = false;
            own.media_type = layer_type(&found.media_type, is_docker);
            own.digest = found.digest.clone();
            own.size = found.size;
        }
    }
    if is_same {
        return Ok((media_type, bytes, None));
    }
    // Other fields of the manifest, such as annotations, are kept.
    let mut whole: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(invalid)?;
    let layers = serde_json::to_value(&manifest.layers).map_err(invalid)?;
    whole.insert("layers".into(), layers);
    let changed = serde_json::to_vec(&whole).map_err(invalid)?;
    Ok((media_type, changed, Some(Digest::of(&bytes))))
}

/// Returns the media type of a layer in a manifest with Docker's or with OCI's media types.
fn layer_type(media_type: &str, is_docker: bool) -> String {
    let suffix = LAYERS
        .iter()
        .find_map(|known| media_type.strip_prefix(known))
        .unwrap_or("+gzip");
    let compression = suffix.trim_start_matches(['+', '.']);
    match (compression, is_docker) {
        ("", true) => LAYERS[1].to_owned(),
        ("", false) => LAYERS[0].to_owned(),
        (compression, true) => format!("{}.{compression}", LAYERS[1]),
        (compression, false) => format!("{}+{compression}", LAYERS[0]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use whelk_image::ImageConfig;
    use whelk_image::archive::Origin;

    use super::*;

    fn image() -> Image {
        Image {
            id: Digest::of(b"config"),
            config: ImageConfig::default(),
            origin: Origin::default(),
            other_manifests: Vec::new(),
            parent: None,
            repo_digests: Vec::new(),
            size: 0,
            tagged_at: 0,
        }
    }

    #[test]
    fn a_manifest_is_kept_unless_a_layer_is_another() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let bytes = json!({
            "schemaVersion": 2,
            "mediaType": descriptor::DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "digest": image().id, "size": 6},
            "layers": [{"mediaType": LAYERS[1], "digest": old, "size": 3, "annotations": {"a": "1"}}],
            "annotations": {"b": "2"},
        })
        .to_string()
        .into_bytes();
        let push = |layer: &Descriptor| {
            let original = (Manifest::parse(&bytes).unwrap(), bytes.clone());
            document(Some(original), &image(), b"config", [layer].into_iter()).unwrap()
        };
        let same = Descriptor::new(LAYERS[1], old.clone(), 3);
        let expected = (descriptor::DOCKER_MANIFEST.to_owned(), bytes.clone(), None);
        assert_eq!(push(&same), expected);
        let other = Descriptor::new(format!("{}+gzip", LAYERS[0]), new.clone(), 4);
        let (media_type, changed, instead_of) = push(&other);
        assert_eq!(media_type, descriptor::DOCKER_MANIFEST);
        assert_eq!(instead_of, Some(Digest::of(&bytes)));
        let mut expected: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        expected["layers"] = json!([{"mediaType": format!("{}.gzip", LAYERS[1]), "digest": new, "size": 4, "annotations": {"a": "1"}}]);
        let changed: serde_json::Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!(changed, expected);
    }

    #[test]
    fn an_index_names_what_was_pushed_instead() {
        let (old, new, other) = (Digest::of(b"old"), Digest::of(b"new"), Digest::of(b"other"));
        let entry = |digest: &Digest, about: &Digest| {
            json!({
                "mediaType": descriptor::MANIFEST, "digest": digest, "size": 3,
                "annotations": {REFERENCE_DIGEST: about}, "platform": {"architecture": "arm64", "os": "linux"},
            })
        };
        let index = |first: &Digest| {
            json!({
                "schemaVersion": 2,
                "manifests": [entry(first, &other), entry(&other, first)],
                "annotations": {"a": "1"},
            })
        };
        let bytes = index(&old).to_string().into_bytes();
        let same = relisted(bytes.clone(), &BTreeMap::new()).unwrap();
        assert_eq!(same, (descriptor::INDEX.to_owned(), bytes.clone()));
        let replaced = Descriptor::new(descriptor::MANIFEST, new.clone(), 3);
        let (_, changed) = relisted(bytes, &[(old, replaced)].into()).unwrap();
        let changed: serde_json::Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!(changed, index(&new));
    }

    #[test]
    fn an_image_without_a_manifest_gets_one() {
        let layer = Descriptor::new(format!("{}+gzip", LAYERS[0]), Digest::of(b"layer"), 4);
        let (media_type, bytes, instead_of) =
            document(None, &image(), b"config", [&layer].into_iter()).unwrap();
        assert_eq!(
            (media_type.as_str(), instead_of),
            (descriptor::MANIFEST, None)
        );
        let manifest = Manifest::parse(&bytes).unwrap();
        assert_eq!(manifest.media_type, descriptor::MANIFEST);
        assert_eq!((manifest.config.size, manifest.layers), (6, vec![layer]));
    }

    #[test]
    fn media_types_of_layers_follow_the_manifest() {
        for (media_type, docker, oci) in [
            (LAYERS[0], LAYERS[1].to_owned(), LAYERS[0].to_owned()),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                format!("{}.zstd", LAYERS[1]),
                format!("{}+zstd", LAYERS[0]),
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                format!("{}.gzip", LAYERS[1]),
                format!("{}+gzip", LAYERS[0]),
            ),
        ] {
            assert_eq!(layer_type(media_type, true), docker);
            assert_eq!(layer_type(media_type, false), oci);
        }
    }
}
