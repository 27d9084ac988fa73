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

/// A bill of materials, or another statement of a frontend.
#[derive(Clone, Debug)]
pub struct Bill {
    /// The name of the file, of outputs that are files.
    pub file: String,
    /// The type of the predicate.
    pub kind: String,
    /// What it is about; the result, if there are none.
    pub subjects: Vec<Subject>,
    pub predicate: Value,
    /// Whether it is only for images.
    pub is_inline_only: bool,
    /// Whether it is the bill of the result, which says where in it files are.
    pub is_core: bool,
}

/// What a statement is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// The image, by each of its names, or the files; and again by another name, if there is one.
    Result(Option<String>),
    Other(Value),
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
        match self {
            Self::Provenance(_, options) => options.is_inline_only,
            Self::Bill(bill) => bill.is_inline_only,
        }
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
                (subjects.to_vec(), &provenance.predicate(options, layers))
            }
            Self::Bill(bill) => (bill.about(subjects), &bill.predicate),
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

impl Bill {
    /// Returns all subjects. `result` are those of the result.
    fn about(&self, result: &[Value]) -> Vec<Value> {
        if self.subjects.is_empty() {
            return result.to_vec();
        }
        let mut found = Vec::new();
        for subject in &self.subjects {
            match subject {
                Subject::Other(subject) => found.push(subject.clone()),
                Subject::Result(None) => found.extend_from_slice(result),
                Subject::Result(Some(name)) => {
                    for own in result {
                        let named = json!({"name": name, "digest": own["digest"]});
                        found.extend([own.clone(), named]);
                    }
                }
            }
        }
        found
    }
}

/// Returns what an attestation of an image is about: the image by each of its names.
pub(crate) fn of_image(names: &[Reference], platform: &Platform, manifest: &Digest) -> Vec<Value> {
    let subject = |name: &Reference| {
        let name = package_url("docker", &name.to_string(), Some(platform));
        subject(&name, &[manifest.as_str()])
    };
    names.iter().map(subject).collect()
}

/// Returns a subject by its name and its digests.
pub fn subject<T: AsRef<str>>(name: &str, digests: &[T]) -> Value {
    let digests = digests.iter().map(|digest| {
        let digest = digest.as_ref();
        let (algorithm, digits) = digest.split_once(':').unwrap_or(("sha256", digest));
        (algorithm.to_owned(), Value::from(digits))
    });
    let digests: serde_json::Map<String, Value> = digests.collect();
    json!({"name": name, "digest": digests})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_the_result_or_others() {
        let bill = |subjects: Vec<Subject>| Bill {
            file: String::new(),
            kind: String::new(),
            subjects,
            predicate: Value::Null,
            is_inline_only: false,
            is_core: false,
        };
        let result = [subject("a", &["sha256:1"]), subject("b", &["sha256:1"])];
        assert_eq!(bill(Vec::new()).about(&result), result);
        assert_eq!(bill(vec![Subject::Result(None)]).about(&result), result);
        let other = subject("c", &["sha256:2"]);
        let named = Subject::Result(Some("d".into()));
        let about = bill(vec![named, Subject::Other(other)]).about(&result);
        let names: Vec<&str> = about
            .iter()
            .filter_map(|subject| subject["name"].as_str())
            .collect();
        assert_eq!(names, ["a", "d", "b", "d", "c"]);
        assert_eq!(about[1]["digest"]["sha256"], "1");
    }
}
