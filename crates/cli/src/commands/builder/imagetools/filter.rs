//! Leaves platforms out of a new image: pure.

use whelk_image::{Digest, Platform};

use super::combine::Combined;
use super::wire::{Descriptor, Index, REFERENCE_DIGEST};
use crate::{Failure, Outcome};

const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Keeps the manifests of these platforms, and what is attested of them. Without platforms all are kept.
///
/// # Errors
/// Returns an error if nothing is left.
pub(super) fn filter(combined: Combined, platforms: &[Platform]) -> Outcome<Combined> {
    if platforms.is_empty() {
        return Ok(combined);
    }
    let matches = |part: &Descriptor| {
        let own = part.platform.as_ref().map(|own| own.plain());
        own.is_none_or(|own| platforms.iter().any(|platform| platform.is(&own)))
    };
    if !combined.descriptor.is_index() {
        let Some(platform) = &combined.descriptor.platform else {
            return Err(Failure::new(
                "cannot filter platforms from a manifest without platform information",
            ));
        };
        return match matches(&combined.descriptor) {
            true => Ok(combined),
            false => Err(Failure::new(format!(
                "input platform {} does not match any of the provided platforms",
                platform.name()
            ))),
        };
    }
    let all = &combined.parts;
    let is_about_kept = |part: &Descriptor| {
        let kind = part.annotations.get(REFERENCE_TYPE).map(String::as_str);
        let about = part.annotations.get(REFERENCE_DIGEST);
        kind == Some("attestation-manifest")
            && about.is_some_and(|about| {
                all.iter().any(|(subject, _)| {
                    let digest = subject.digest.as_ref().map(Digest::as_str);
                    digest == Some(about) && matches(subject)
                })
            })
    };
    let kept = all
        .iter()
        .filter(|(part, _)| matches(part) || is_about_kept(part));
    let kept: Vec<_> = kept.cloned().collect();
    if kept.len() == all.len() {
        return Ok(combined);
    }
    if kept.is_empty() {
        return Err(Failure::new(
            "none of the manifests match the provided platforms",
        ));
    }
    let index = Index {
        manifests: kept.iter().map(|(part, _)| part.clone()).collect(),
        ..Index::parse(&combined.bytes)?
    };
    let bytes = index.encode()?;
    Ok(Combined {
        descriptor: Descriptor {
            media_type: combined.descriptor.media_type,
            annotations: combined.descriptor.annotations,
            digest: Some(Digest::of(&bytes)),
            size: bytes.len() as u64,
            ..Descriptor::default()
        },
        bytes,
        parts: kept,
    })
}

/// Reads `--platform`, whose values may be lists.
pub(super) fn platforms(given: &[String]) -> Outcome<Vec<Platform>> {
    let all = given.iter().flat_map(|text| text.split(','));
    all.map(|text| {
        let platform = text.parse();
        platform.map_err(|_| Failure::new(format!("invalid platform {text:?}")))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use whelk_image::descriptor::INDEX;

    use super::super::wire::FullPlatform;
    use super::*;

    fn part(content: &str, architecture: &str, about: &str) -> (Descriptor, usize) {
        let annotations = [
            (REFERENCE_TYPE.to_owned(), "attestation-manifest".to_owned()),
            (
                REFERENCE_DIGEST.to_owned(),
                Digest::of(about.as_bytes()).to_string(),
            ),
        ];
        let descriptor = Descriptor {
            media_type: "x".into(),
            digest: Some(Digest::of(content.as_bytes())),
            annotations: annotations
                .into_iter()
                .filter(|_| !about.is_empty())
                .collect(),
            platform: Some(FullPlatform {
                architecture: architecture.into(),
                os: "linux".into(),
                ..FullPlatform::default()
            }),
            ..Descriptor::default()
        };
        (descriptor, 0)
    }

    #[test]
    fn attestations_follow_their_images() {
        let all = || Combined {
            bytes: br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(),
            descriptor: Descriptor {
                media_type: INDEX.into(),
                ..Descriptor::default()
            },
            parts: vec![
                part("1", "amd64", ""),
                part("2", "arm64", ""),
                part("3", "unknown", "1"),
                part("4", "unknown", "2"),
            ],
        };
        let wanted = platforms(&["linux/aarch64".to_owned()]).unwrap();
        let kept = filter(all(), &wanted).unwrap();
        let kept: Vec<_> = kept
            .parts
            .iter()
            .map(|(part, _)| part.digest.clone())
            .collect();
        let expected = ["2", "4"].map(|content| Some(Digest::of(content.as_bytes())));
        assert_eq!(kept, expected);
        let every = platforms(&["linux/amd64,linux/arm64".to_owned()]).unwrap();
        assert_eq!(filter(all(), &every).unwrap().parts.len(), 4);
        let none = platforms(&["linux/s390x".to_owned()]).unwrap();
        let failed = filter(all(), &none).unwrap_err().text;
        assert_eq!(failed, "none of the manifests match the provided platforms");
    }
}
