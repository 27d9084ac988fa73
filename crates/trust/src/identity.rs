//! Which names in a signature count for an image.

use serde::{Deserialize, Serialize};
use whelk_image::Reference;

use crate::{Error, Result};

/// Selects the names that a signature may be for (`signedIdentity`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum Identity {
    /// The image's own name with its tag.
    MatchExact,
    /// The image's own name with its tag; if it is named by a digest, its repository with any tag.
    #[default]
    MatchRepoDigestOrExact,
    /// The image's repository with any tag or none. Cosign signs repositories without tags.
    MatchRepository,
    /// This name with its tag.
    #[serde(rename_all = "camelCase")]
    ExactReference { docker_reference: String },
    /// This repository with any tag or none.
    #[serde(rename_all = "camelCase")]
    ExactRepository { docker_repository: String },
}

impl Identity {
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |key: &str, text: &str, problem: String| {
            Err(Error::Policy(format!("{key} {text:?}: {problem}")))
        };
        match self {
            Self::ExactReference { docker_reference } => {
                match docker_reference.parse::<Reference>() {
                    Ok(name) if name.tag.is_some() || name.digest.is_some() => Ok(()),
                    Ok(_) => invalid(
                        "dockerReference",
                        docker_reference,
                        "want a tag or a digest".into(),
                    ),
                    Err(error) => invalid("dockerReference", docker_reference, error.to_string()),
                }
            }
            Self::ExactRepository { docker_repository } => {
                match docker_repository.parse::<Reference>() {
                    Ok(name) if name.tag.is_none() && name.digest.is_none() => Ok(()),
                    Ok(_) => invalid(
                        "dockerRepository",
                        docker_repository,
                        "want a repository without a tag or a digest".into(),
                    ),
                    Err(error) => invalid("dockerRepository", docker_repository, error.to_string()),
                }
            }
            Self::MatchExact | Self::MatchRepoDigestOrExact | Self::MatchRepository => Ok(()),
        }
    }

    /// Returns whether a signature for the name `signed` counts for the image `image`.
    pub(crate) fn accepts(&self, image: &Reference, signed: &Reference) -> bool {
        let same_repository = |other: &Reference| repository(other) == repository(signed);
        let same_tag = |other: &Reference| {
            same_repository(other) && other.tag.is_some() && other.tag == signed.tag
        };
        match self {
            Self::MatchExact => same_tag(image),
            Self::MatchRepoDigestOrExact if image.digest.is_some() => same_repository(image),
            Self::MatchRepoDigestOrExact => same_tag(image),
            Self::MatchRepository => same_repository(image),
            Self::ExactReference { docker_reference } => {
                docker_reference.parse().is_ok_and(|exact: Reference| {
                    same_repository(&exact)
                        && exact.tag == signed.tag
                        && exact.digest == signed.digest
                })
            }
            Self::ExactRepository { docker_repository } => docker_repository
                .parse()
                .is_ok_and(|exact: Reference| same_repository(&exact)),
        }
    }
}

/// Returns a repository's name. Cosign calls Docker Hub by the name of its index.
fn repository(name: &Reference) -> (&str, &str) {
    let domain = match name.domain.as_str() {
        "index.docker.io" => "docker.io",
        domain => domain,
    };
    (domain, &name.path)
}
