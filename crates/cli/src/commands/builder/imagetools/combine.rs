//! Makes one image of several sources: pure.

use std::collections::BTreeMap;

use whelk_image::descriptor::{DOCKER_MANIFEST_LIST, INDEX, SCHEMA_VERSION};
use whelk_image::{Digest, Platform};

use super::source::Found;
use super::wire::{Descriptor, Index};
use crate::{Failure, Outcome};

/// An image to push, and where its parts are.
#[derive(Debug)]
pub(super) struct Combined {
    pub bytes: Vec<u8>,
    pub descriptor: Descriptor,
    /// The parts, with the index of their source.
    pub parts: Vec<(Descriptor, usize)>,
}

/// An annotation, and what it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Annotation {
    kind: String,
    platform: Option<Platform>,
    key: String,
    value: String,
}

/// Reads `[KIND[PLATFORM],…:]KEY=VALUE`.
///
/// # Errors
/// Returns an error for another form or kind.
pub(super) fn annotations(given: &[String]) -> Outcome<Vec<Annotation>> {
    let mut found = Vec::new();
    for text in given.iter().filter(|text| !text.is_empty()) {
        let wrong = |cause: String| Failure::new(format!("failed to parse annotations: {cause}"));
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| wrong(format!("invalid annotation {text:?}, expected key=value")))?;
        let (kinds, key) = key.split_once(':').unwrap_or(("", key));
        for kind in kinds.split(',') {
            let (kind, platform) = match kind.split_once('[') {
                Some((kind, rest)) => {
                    let platform = rest.strip_suffix(']').ok_or_else(|| {
                        wrong(format!(
                            "invalid annotation type {kind:?}, expected type and optional platform in square brackets"
                        ))
                    })?;
                    let platform: Platform = platform
                        .parse()
                        .map_err(|_| wrong(format!("invalid platform {platform:?}")))?;
                    (kind, Some(platform))
                }
                None => (kind, None),
            };
            match kind {
                "index" | "manifest-descriptor" => {}
                "index-descriptor" => {
                    let text =
                        "\"index-descriptor\" annotations are invalid while creating an image";
                    return Err(Failure::new(text));
                }
                "manifest" | "" => {
                    let text = format!("{kind:?} annotations are not supported yet");
                    return Err(Failure::new(text));
                }
                other => return Err(wrong(format!("unknown annotation type {other:?}"))),
            }
            found.push(Annotation {
                kind: kind.to_owned(),
                platform,
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    Ok(found)
}

/// Makes an index of sources. A single one stays as it is, if it is an index or `prefer_index` is not set.
pub(super) fn combine(
    sources: &[Found],
    annotations: &[Annotation],
    prefer_index: bool,
) -> Outcome<Combined> {
    if let [only] = sources
        && annotations.is_empty()
        && (only.descriptor.is_index() || !prefer_index)
    {
        let parts = match only.descriptor.is_index() {
            true => Index::parse(&only.bytes)?.manifests,
            false => vec![only.descriptor.clone()],
        };
        return Ok(Combined {
            bytes: only.bytes.clone(),
            descriptor: only.descriptor.clone(),
            parts: parts.into_iter().map(|part| (part, 0)).collect(),
        });
    }
    let mut parts = Parts::default();
    for (number, source) in sources.iter().enumerate() {
        if !source.descriptor.is_index() {
            parts.add(source.descriptor.clone(), number)?;
            continue;
        }
        for entry in Index::parse(&source.bytes)?.manifests {
            parts.add(entry, number)?;
        }
    }
    let mut parts = parts.list;
    let is_docker =
        |(part, _): &(Descriptor, usize)| part.media_type.starts_with("application/vnd.docker.");
    let media_type = match parts.iter().all(is_docker) {
        true => DOCKER_MANIFEST_LIST,
        false => INDEX,
    };
    let mut of_index = BTreeMap::new();
    // Lists of Docker have none.
    for annotation in annotations.iter().filter(|_| media_type == INDEX) {
        let Annotation { key, value, .. } = annotation;
        if annotation.kind == "index" {
            of_index.insert(key.clone(), value.clone());
            continue;
        }
        for (part, _) in &mut parts {
            let own = part.platform.as_ref().map(|own| own.plain());
            if annotation.platform.is_none() || annotation.platform == own {
                part.annotations.insert(key.clone(), value.clone());
            }
        }
    }
    let index = Index {
        schema_version: SCHEMA_VERSION,
        media_type: media_type.into(),
        manifests: parts.iter().map(|(part, _)| part.clone()).collect(),
        annotations: of_index,
        ..Index::default()
    };
    let bytes = index.encode()?;
    Ok(Combined {
        descriptor: Descriptor {
            media_type: media_type.into(),
            digest: Some(Digest::of(&bytes)),
            size: bytes.len() as u64,
            ..Descriptor::default()
        },
        bytes,
        parts,
    })
}

/// Entries by their digests: the same one is listed once.
#[derive(Default)]
struct Parts {
    list: Vec<(Descriptor, usize)>,
}

impl Parts {
    fn add(&mut self, part: Descriptor, source: usize) -> Outcome<()> {
        part.digest()?;
        let same = |known: &&mut (Descriptor, usize)| known.0.digest == part.digest;
        let Some((known, from)) = self.list.iter_mut().find(same) else {
            self.list.push((part, source));
            return Ok(());
        };
        if known.media_type.is_empty() {
            known.media_type = part.media_type;
        }
        if part.platform.is_some() {
            known.platform = part.platform;
        }
        known.annotations.extend(part.annotations);
        *from = source;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use whelk_image::descriptor::{DOCKER_MANIFEST, MANIFEST};

    use super::super::wire::FullPlatform;
    use super::*;

    fn found(content: &str, media_type: &str, architecture: &str) -> Found {
        Found {
            name: "example.com/a:1".parse().unwrap(),
            descriptor: Descriptor {
                media_type: media_type.into(),
                digest: Some(Digest::of(content.as_bytes())),
                size: content.len() as u64,
                platform: (!architecture.is_empty()).then(|| FullPlatform {
                    architecture: architecture.into(),
                    os: "linux".into(),
                    ..FullPlatform::default()
                }),
                ..Descriptor::default()
            },
            bytes: content.into(),
        }
    }

    #[test]
    fn sources_become_an_index() {
        let (one, two) = (
            found("1", MANIFEST, "amd64"),
            found("2", DOCKER_MANIFEST, "arm64"),
        );
        let single = combine(std::slice::from_ref(&one), &[], false).unwrap();
        assert_eq!(
            (single.bytes.as_slice(), single.parts.len()),
            (&b"1"[..], 1)
        );
        let index = combine(std::slice::from_ref(&one), &[], true).unwrap();
        assert_eq!(index.descriptor.media_type, INDEX);
        let docker = combine(&[two.clone(), two.clone()], &[], true).unwrap();
        assert_eq!(docker.descriptor.media_type, DOCKER_MANIFEST_LIST);
        assert_eq!(docker.parts.len(), 1);
        let both = combine(&[one, two], &[], true).unwrap();
        let text = String::from_utf8(both.bytes.clone()).unwrap();
        let again = combine(&[found(&text, INDEX, "")], &[], true).unwrap();
        assert_eq!((again.bytes, again.parts.len()), (both.bytes, 2));
    }

    #[test]
    fn annotations_are_of_the_index_or_of_entries() {
        let sources = [found("1", MANIFEST, "amd64"), found("2", MANIFEST, "arm64")];
        let given = ["index:a=b=c", "manifest-descriptor[linux/arm64]:d=e"].map(str::to_owned);
        let combined = combine(&sources, &annotations(&given).unwrap(), true).unwrap();
        let index = Index::parse(&combined.bytes).unwrap();
        assert_eq!(index.annotations["a"], "b=c");
        assert!(index.manifests[0].annotations.is_empty());
        assert_eq!(index.manifests[1].annotations["d"], "e");
        for (text, expected) in [
            ("a=b", "\"\" annotations are not supported yet"),
            (
                "manifest:a=b",
                "\"manifest\" annotations are not supported yet",
            ),
            (
                "index-descriptor:a=b",
                "are invalid while creating an image",
            ),
            ("other:a=b", "unknown annotation type \"other\""),
            ("index:a", "expected key=value"),
            ("index[x/y/z/w]:a=b", "invalid platform"),
        ] {
            let failed = annotations(&[text.to_owned()]).unwrap_err().text;
            assert!(failed.contains(expected), "{failed}");
        }
    }
}
