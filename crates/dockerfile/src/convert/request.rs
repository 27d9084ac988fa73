//! What a conversion needs to know from outside.

use std::collections::HashMap;

use whelk_llb::pb::{Platform, SourceOp};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// The configuration of an image.
    Image {
        /// In normal form, with a tag or a digest.
        reference: String,
        platform: Platform,
        /// The name that clients show: `[internal] load metadata for docker.io/library/x:latest`.
        name: String,
        /// The image is in an OCI layout of the client, with this id.
        layout: Option<String>,
    },
    /// The `.dockerignore` of a client's directory that is a named context.
    Ignore {
        /// The directory's name, `local://NAME`.
        local: String,
        session: String,
        shared_key: String,
        name: String,
    },
    /// The time of a source: a git commit's, or the `Last-Modified` of a URL or the newest file in an archive
    /// behind it.
    Time { source: Source, name: String },
}

/// A source whose time is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub identifier: String,
    pub attributes: Vec<(String, String)>,
}

impl From<&SourceOp> for Source {
    fn from(source: &SourceOp) -> Self {
        let attributes = source.attrs.iter();
        Self {
            identifier: source.identifier.clone(),
            attributes: attributes
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }
}

/// An answer to the request of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Image {
        /// The reference, or the one that a policy replaces it by.
        reference: String,
        /// Digest of the manifest or index that the reference stands for; empty if it has none.
        digest: String,
        /// The configuration, as JSON.
        config: Vec<u8>,
    },
    /// A policy replaces the image by this, which is none: `local://NAME`, …
    Replaced(String),
    /// The file's text, or `None` if there is none.
    Ignore(Option<String>),
    /// In seconds since 1970; `None` if the source has no time.
    Time(Option<i64>),
    /// Why the question cannot be answered.
    Failed(String),
}

pub type Answers = HashMap<Request, Answer>;
