//! In-toto statements: what attestations say, and about what.

use serde_json::{Value, json};
use whelk_image::descriptor::Descriptor;
use whelk_image::{Digest, Reference};
use whelk_llb::pb::Platform;

use crate::error::{Error, Result};
use crate::provenance::{Options, Provenance, package_url};

const STATEMENT: &str = "https://in-toto.io/Statement/v0.1";

/// An attestation of a result.
#[derive(Clone, Debug)]
pub enum Statement {
    Provenance(Box<Provenance>, Options),
    Bill(Bill),
}

/// A bill of materials.
#[derive(Clone, Debug)]
pub struct Bill {
    /// The name of the file, of outputs that are files.
    pub file: String,
    /// The type of the predicate.
    pub kind: String,
    /// What it is about, if it says so.
    pub subjects: Vec<Value>,
    pub predicate: Value,
}

/// A statement that is complete.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub file: String,
    pub kind: String,
    pub bytes: Vec<u8>,
}

impl Statement {
    /// Returns whether it is only for images.
    pub fn is_inline_only(&self) -> bool {
        matches!(self, Self::Provenance(_, options) if options.is_inline_only)
    }

    fn file(&self) -> &str {
        match self {
            Self::Provenance(_, options) => &options.filename,
            Self::Bill(bill) => &bill.file,
        }
    }

    fn kind(&self) -> &str {
        match self {
            Self::Provenance(_, options) => Provenance::kind(options),
            Self::Bill(bill) => &bill.kind,
        }
    }

    /// Completes the statement: it is about `subjects`, unless it says otherwise. `layers` are those of the image, if their blobs
    /// are known.
    ///
    /// # Errors
    /// Returns an error if it cannot be encoded.
    pub fn encode(
        &self,
        subjects: &[Value],
        layers: Option<&[Descriptor]>,
        is_indented: bool,
    ) -> Result<Encoded> {
        let (subjects, predicate) = match self {
            Self::Provenance(provenance, options) => {
                (subjects, &provenance.predicate(options, layers))
            }
            Self::Bill(bill) if bill.subjects.is_empty() => (subjects, &bill.predicate),
            Self::Bill(bill) => (bill.subjects.as_slice(), &bill.predicate),
        };
        let statement = json!({
            "_type": STATEMENT,
            "predicateType": self.kind(),
            "subject": subjects,
            "predicate": predicate,
        });
        let bytes = match is_indented {
            true => serde_json::to_vec_pretty(&statement),
            false => serde_json::to_vec(&statement),
        };
        Ok(Encoded {
            file: self.file().to_owned(),
            kind: self.kind().to_owned(),
            bytes: bytes.map_err(|error| Error::internal(error.to_string()))?,
        })
    }
}

/// Returns what an attestation of an image is about: the image by each of its names.
pub(crate) fn of_image(names: &[Reference], platform: &Platform, manifest: &Digest) -> Vec<Value> {
    let subject = |name: &Reference| {
        let name = package_url("docker", &name.to_string(), Some(platform));
        subject(&name, manifest.as_str())
    };
    names.iter().map(subject).collect()
}

/// Returns a subject by its name and its digest.
pub(crate) fn subject(name: &str, digest: &str) -> Value {
    let (algorithm, digits) = digest.split_once(':').unwrap_or(("sha256", digest));
    json!({"name": name, "digest": {algorithm: digits}})
}
