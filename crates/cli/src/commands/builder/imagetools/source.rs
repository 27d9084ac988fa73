//! The sources of a new image: references, digests, and descriptors as JSON.

use whelk_image::{Digest, Reference};

use super::document;
use super::wire::{Descriptor, FullPlatform, Manifest, read};
use crate::commands::manifest::remote::{self, Remote};
use crate::{Failure, Outcome};

/// Maximum size of a configuration in bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// A source as it is given. A digest and a descriptor may have no repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Source {
    pub name: Option<Reference>,
    pub descriptor: Descriptor,
}

/// A source that was found in its registry.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub name: Reference,
    pub descriptor: Descriptor,
    pub bytes: Vec<u8>,
}

impl Source {
    /// Reads a digest, a reference or a descriptor.
    ///
    /// # Errors
    /// Returns an error if it is none of them.
    pub fn parse(text: &str) -> Outcome<Self> {
        let invalid = |cause: String| {
            Failure::new(format!(
                "failed to parse source {text:?}, valid sources are digests, references and descriptors: {cause}"
            ))
        };
        let digest: Result<Digest, _> = text.parse();
        match digest {
            Ok(digest) => {
                return Ok(Self {
                    name: None,
                    descriptor: Descriptor {
                        digest: Some(digest),
                        ..Descriptor::default()
                    },
                });
            }
            Err(error) if text.starts_with("sha256") => return Err(invalid(error.to_string())),
            Err(_) => {}
        }
        match text.parse::<Reference>() {
            Ok(name) => Ok(Self {
                name: Some(name),
                ..Self::default()
            }),
            Err(error) if !text.starts_with('{') => Err(invalid(error.to_string())),
            Err(_) => {
                let descriptor = read(text.as_bytes(), "descriptor");
                Ok(Self {
                    name: None,
                    descriptor: descriptor.map_err(|failure| invalid(failure.text))?,
                })
            }
        }
    }

    /// Gives a source without a repository the only one of the command.
    ///
    /// # Errors
    /// Returns an error if there are several.
    pub fn complete(&mut self, only: Option<&Reference>, text: &str) -> Outcome<()> {
        if self.name.is_some() {
            return Ok(());
        }
        let only = only.ok_or_else(|| {
            Failure::new(format!(
                "multiple repositories specified, cannot infer repository for {text:?}"
            ))
        })?;
        self.name = Some(Reference {
            tag: None,
            digest: self.descriptor.digest.clone(),
            ..only.clone()
        });
        Ok(())
    }

    /// Gets the manifest or index, with its platform if it is a manifest.
    pub async fn find(&self, remote: &Remote) -> Outcome<Found> {
        let Some(name) = self.name.clone() else {
            return Err(Failure::new("a source has no repository"));
        };
        let name = name.with_default_tag();
        let found = document(remote, &name).await?;
        let own = Descriptor {
            media_type: found.media_type,
            digest: Some(found.digest),
            size: found.bytes.len() as u64,
            ..Descriptor::default()
        };
        let mut descriptor = merged(own, &self.descriptor)?;
        if !descriptor.is_index() {
            let platform = descriptor.platform.get_or_insert_default();
            if platform.os.is_empty() || platform.architecture.is_empty() {
                complete_platform(platform, remote, &name, &found.bytes).await?;
            }
        }
        Ok(Found {
            name,
            descriptor,
            bytes: found.bytes,
        })
    }
}

/// Returns the descriptor that a registry has told, with what the user says of it.
fn merged(found: Descriptor, given: &Descriptor) -> Outcome<Descriptor> {
    let digest = found.digest()?;
    if given.digest.as_ref().is_some_and(|given| given != digest) {
        return Err(Failure::new(format!(
            "the descriptor's digest is not {digest}"
        )));
    }
    if given.size != 0 && given.size != found.size {
        return Err(Failure::new(format!(
            "invalid size mismatch for {digest}, {} != {}",
            given.size, found.size
        )));
    }
    Ok(Descriptor {
        media_type: match given.media_type.as_str() {
            "" => found.media_type,
            given => given.to_owned(),
        },
        annotations: given.annotations.clone(),
        platform: given.platform.clone(),
        ..found
    })
}

/// Adds what the image's configuration says of its platform.
async fn complete_platform(
    platform: &mut FullPlatform,
    remote: &Remote,
    name: &Reference,
    manifest: &[u8],
) -> Outcome<()> {
    let manifest: Manifest = read(manifest, "manifest")?;
    let Some(config) = manifest.config else {
        return Ok(());
    };
    let digest = config.digest()?;
    if config.size > MAX_CONFIG {
        let text = format!(
            "{name}: a configuration of {} bytes is larger than {MAX_CONFIG}",
            config.size
        );
        return Err(Failure::new(text));
    }
    let content = remote::blob(&remote.to_read(name)?, digest, config.size).await?;
    let content = content
        .ok_or_else(|| Failure::new(format!("the content of {digest} has another digest")))?;
    let own: FullPlatform = read(&content, "configuration")?;
    let own = own.plain().normalized();
    if platform.architecture.is_empty() {
        platform.architecture = own.architecture;
        if platform.variant.is_empty() {
            platform.variant = own.variant;
        }
    }
    if platform.os.is_empty() {
        platform.os = own.os;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn sources_have_three_forms() {
        let digest = Source::parse(DIGEST).unwrap();
        assert!(digest.name.is_none() && digest.descriptor.digest.is_some());
        let name = Source::parse("example.com/a:1").unwrap();
        assert_eq!(name.name.unwrap().to_string(), "example.com/a:1");
        let text = format!(r#"{{"digest":"{DIGEST}","platform":{{"os":"linux"}}}}"#);
        let mut descriptor = Source::parse(&text).unwrap();
        assert_eq!(descriptor.descriptor.platform.clone().unwrap().os, "linux");
        let failed = descriptor.complete(None, &text).unwrap_err();
        assert!(failed.text.starts_with("multiple repositories"));
        let only: Reference = "example.com/a:1".parse().unwrap();
        descriptor.complete(Some(&only), &text).unwrap();
        let name = descriptor.name.unwrap().to_string();
        assert_eq!(name, format!("example.com/a@{DIGEST}"));
        for (text, expected) in [
            ("sha256:1", "failed to parse source \"sha256:1\", valid"),
            ("A B", "invalid reference format"),
            ("{\"digest\":1}", "invalid descriptor"),
        ] {
            let failed = Source::parse(text).unwrap_err();
            assert!(failed.text.contains(expected), "{}", failed.text);
        }
    }

    #[test]
    fn a_descriptor_may_say_more_but_nothing_else() {
        let found = Descriptor {
            digest: Some(DIGEST.parse().unwrap()),
            size: 2,
            media_type: "x".into(),
            ..Descriptor::default()
        };
        let given = Descriptor {
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            ..Descriptor::default()
        };
        let both = merged(found.clone(), &given).unwrap();
        assert_eq!((both.size, &*both.media_type), (2, "x"));
        assert_eq!(both.annotations["a"], "b");
        let wrong = Descriptor { size: 3, ..given };
        let failed = merged(found, &wrong).unwrap_err().text;
        assert_eq!(
            failed,
            format!("invalid size mismatch for {DIGEST}, 3 != 2")
        );
    }
}
