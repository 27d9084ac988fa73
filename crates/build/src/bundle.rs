//! In-toto statements in files, which scanners and frontends write. They are not trusted.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::Value;
use whelk_sys::in_root;

use crate::error::{Error, Result};
use crate::request::Solved;
use crate::statement::{Bill, Subject};
use crate::{Builder, blocking};

/// The type of the predicate of a bill of materials.
pub const SPDX: &str = "https://spdx.dev/Document";
/// The types of provenance, which only the engine states.
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// Maximum size of a statement in bytes, as with BuildKit.
const MAX_STATEMENT: usize = 40 << 20;
/// Maximum size of all statements of a reader in bytes, and their number.
const MAX_STATEMENTS: usize = 64 << 20;
const MAX_FILES: usize = 1000;

/// An attestation that a frontend has returned.
#[derive(Clone, Debug, Default)]
pub struct Attestation {
    /// Whether it is a directory of statements, and not a file with a predicate.
    pub is_bundle: bool,
    /// The file or the directory.
    pub path: String,
    /// The type of the predicate; of a bundle, the one that all of its statements must have, if it is not empty.
    pub kind: String,
    /// What a single predicate is about.
    pub subjects: Vec<Subject>,
    /// The name, up to the first dot, of the statement that comes before the others.
    pub core: Option<String>,
    /// Whether it is only for images.
    pub is_inline_only: bool,
}

/// A statement as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<Value>>,
    predicate: Value,
}

/// Reads statements up to a limit.
pub(crate) struct Reader {
    bytes: usize,
    files: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            bytes: MAX_STATEMENTS,
            files: MAX_FILES,
        }
    }
}

impl Builder {
    /// Reads the attestations of a result that a frontend has returned, each in the result that has its file.
    ///
    /// # Errors
    /// Returns an error if one cannot be read, is no statement, or is one that only the engine may make.
    pub async fn read_attestations(
        self: &Arc<Self>,
        attestations: Vec<(Arc<Solved>, Attestation)>,
    ) -> Result<Vec<Bill>> {
        let builder = self.clone();
        blocking(move || {
            let mut reader = Reader::default();
            let (mut first, mut others) = (Vec::new(), Vec::new());
            for (solved, attestation) in attestations {
                let view = solved.mount(&builder)?;
                let mut bills = reader.attestation(&view.root, &attestation)?;
                let Some(core) = &attestation.core else {
                    others.extend(bills);
                    continue;
                };
                core_first(&mut bills, core);
                for bill in bills {
                    match bill.is_core {
                        true => first.push(bill),
                        false => others.push(bill),
                    }
                }
            }
            first.extend(others);
            Ok(first)
        })
        .await
    }
}

impl Reader {
    /// Reads the statements of an attestation.
    fn attestation(&mut self, root: &OwnedFd, attestation: &Attestation) -> Result<Vec<Bill>> {
        let path = Path::new(&attestation.path);
        if attestation.is_bundle {
            let mut bills = self.bundle(root, path, &attestation.kind)?;
            for bill in &mut bills {
                if bill.kind.starts_with(PROVENANCE) {
                    let text = "frontend may not bundle provenance attestations";
                    return Err(Error::invalid(text));
                }
                bill.is_inline_only = attestation.is_inline_only;
            }
            return Ok(bills);
        }
        let file = path.file_name().and_then(|name| name.to_str());
        let Some(file) = file else {
            return Err(Error::invalid("attestation does not have set path"));
        };
        if attestation.kind.starts_with(PROVENANCE) {
            let text = "frontend may not set provenance attestations";
            return Err(Error::invalid(text));
        }
        let bytes = self.file(root, path);
        let bytes = bytes
            .map_err(|error| Error::invalid(format!("cannot read in-toto attestation: {error}")))?;
        let predicate = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes)
                .map_err(|error| Error::invalid(format!("in-toto attestation {file}: {error}")))?,
        };
        Ok(vec![Bill {
            file: file.to_owned(),
            kind: attestation.kind.clone(),
            subjects: attestation.subjects.clone(),
            predicate,
            is_inline_only: attestation.is_inline_only,
            is_core: false,
        }])
    }

    fn file(&mut self, root: &OwnedFd, path: &Path) -> Result<Vec<u8>> {
        let Some(left) = self.files.checked_sub(1) else {
            return Err(Error::invalid(format!("more than {MAX_FILES} statements")));
        };
        self.files = left;
        let bytes = in_root::read_regular(root, path, MAX_STATEMENT.min(self.bytes));
        let bytes = bytes.map_err(|error| failed(&path.display().to_string(), &error))?;
        self.bytes = self.bytes.saturating_sub(bytes.len());
        Ok(bytes)
    }

    /// Reads all files of a directory as statements, which must have this type of predicate, unless it is empty.
    ///
    /// # Errors
    /// Returns an error if one is not a statement, is of another type, or is too large.
    pub fn bundle(&mut self, root: &OwnedFd, place: &Path, kind: &str) -> Result<Vec<Bill>> {
        let shown = place.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = in_root::open(root, place, flags, Mode::empty());
        let directory = directory.map_err(|error| failed(&shown, &error))?;
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(&directory);
        for entry in entries.map_err(|error| failed(&shown, &error.into()))? {
            let entry = entry.map_err(|error| failed(&shown, &error.into()))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let Ok(name) = String::from_utf8(name.to_vec()) else {
                return Err(Error::invalid("the name of a statement is not UTF-8"));
            };
            names.push(name);
            if names.len() > MAX_FILES {
                return Err(Error::invalid(format!("more than {MAX_FILES} statements")));
            }
        }
        names.sort();
        let mut bills = Vec::with_capacity(names.len());
        for name in names {
            let bytes = self.file(root, &place.join(&name))?;
            bills.push(bill(&name, &bytes, kind)?);
        }
        Ok(bills)
    }
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    let cause = whelk_sys::errno_text(error);
    Error::invalid(format!("read {what}: {cause}"))
}

/// Sorts the statement with this name, up to the first dot, before the others.
pub(crate) fn core_first(bills: &mut [Bill], core: &str) {
    for bill in &mut *bills {
        bill.is_core = bill.file.split('.').next() == Some(core);
    }
    bills.sort_by_key(|bill| !bill.is_core);
}

fn bill(name: &str, bytes: &[u8], kind: &str) -> Result<Bill> {
    let written: Written = serde_json::from_slice(bytes).map_err(|error| {
        let text = format!("{name}: cannot decode in-toto statement: {error}");
        Error::invalid(text)
    })?;
    if !kind.is_empty() && written.predicate_type != kind {
        let text = format!(
            "bundle entry {} does not match required predicate type {kind}",
            written.predicate_type
        );
        return Err(Error::invalid(text));
    }
    let subjects = written.subject.unwrap_or_default().into_iter();
    Ok(Bill {
        file: name.to_owned(),
        kind: written.predicate_type,
        subjects: subjects.map(Subject::Other).collect(),
        predicate: written.predicate,
        is_inline_only: false,
        is_core: false,
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    const DESTINATION: &str = "/run/out";
    const STATEMENT: &str = r#"{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"spdxVersion":"SPDX-2.3"}}"#;

    fn written(files: &[(&str, &str)]) -> (whelk_sys::Scratch, OwnedFd) {
        let scratch = whelk_sys::Scratch::temporary("sbom").unwrap();
        let out = scratch.path().join("run/out");
        whelk_sys::fs::create_dir_all(&out, 0o755).unwrap();
        for (name, text) in files {
            whelk_sys::fs::replace(out.join(name), text, 0o644).unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(scratch.path(), flags, Mode::empty()).unwrap();
        (scratch, root)
    }

    fn read(root: &OwnedFd, place: &str) -> Result<Vec<Bill>> {
        Reader::default().bundle(root, Path::new(place), SPDX)
    }

    #[test]
    fn the_bill_of_the_result_is_the_first() {
        let files = [("a.spdx.json", STATEMENT), ("sbom.spdx.json", STATEMENT)];
        let (_scratch, root) = written(&files);
        let mut bills = read(&root, DESTINATION).unwrap();
        core_first(&mut bills, "sbom");
        let names: Vec<&str> = bills.iter().map(|bill| bill.file.as_str()).collect();
        assert_eq!(names, ["sbom.spdx.json", "a.spdx.json"]);
        assert_eq!(bills[0].predicate["spdxVersion"], "SPDX-2.3");
    }

    #[test]
    fn what_is_no_statement_is_refused() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        let other = STATEMENT.replace("spdx.dev", "example.com");
        for (text, expected) in [
            ("", "cannot decode"),
            ("{}", "cannot decode"),
            ("no JSON", "cannot decode"),
            (deep.as_str(), "cannot decode"),
            (&format!("{STATEMENT}{{}}"), "cannot decode"),
            (&other, "does not match required predicate type"),
        ] {
            let (_scratch, root) = written(&[("sbom.spdx.json", text)]);
            let error = read(&root, DESTINATION).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let (scratch, root) = written(&[]);
        let out = scratch.path().join("run/out");
        assert_eq!(read(&root, DESTINATION).unwrap().len(), 0);
        whelk_sys::fs::create_dir_all(out.join("directory"), 0o755).unwrap();
        assert!(read(&root, DESTINATION).is_err());
        assert!(read(&root, "/nothing").is_err());
    }

    #[test]
    fn links_lead_nowhere_else() {
        let (scratch, root) = written(&[]);
        let out = scratch.path().join("run/out");
        rustix::fs::symlink("/etc/hostname", out.join("sbom.spdx.json")).unwrap();
        let error = read(&root, DESTINATION).unwrap_err().to_string();
        assert!(error.contains("no such file or directory"), "{error}");
    }

    #[test]
    fn statements_of_frontends() {
        let text = STATEMENT.replace("spdx.dev/Document", "example.com/a/v1");
        let files = [
            ("b/bundled.json", text.as_str()),
            ("b/second.spdx.json", STATEMENT),
            ("one.json", r#"{"ok": true}"#),
            ("empty.json", ""),
            ("broken.json", "{"),
        ];
        let (scratch, root) = written(&[]);
        let out = scratch.path().join("run/out");
        whelk_sys::fs::create_dir_all(out.join("b"), 0o755).unwrap();
        for (name, text) in files {
            whelk_sys::fs::replace(out.join(name), text, 0o644).unwrap();
        }
        let attestation = |path: &str, kind: &str, is_bundle: bool| Attestation {
            is_bundle,
            path: format!("{DESTINATION}/{path}"),
            kind: kind.to_owned(),
            ..Attestation::default()
        };
        let read = |one: &Attestation| Reader::default().attestation(&root, one);
        let bundled = read(&attestation("b", "", true)).unwrap();
        let names: Vec<&str> = bundled.iter().map(|bill| bill.file.as_str()).collect();
        assert_eq!(names, ["bundled.json", "second.spdx.json"]);
        assert_eq!(bundled[0].kind, "https://example.com/a/v1");
        let inline = Attestation {
            is_inline_only: true,
            subjects: vec![Subject::Result(None)],
            ..attestation("one.json", "https://example.com/a/v1", false)
        };
        let one = read(&inline).unwrap().remove(0);
        assert_eq!((one.file.as_str(), one.is_inline_only), ("one.json", true));
        assert_eq!(one.predicate["ok"], true);
        assert_eq!(one.subjects, [Subject::Result(None)]);
        let empty = read(&attestation("empty.json", "x", false)).unwrap();
        assert_eq!(empty[0].predicate, Value::Null);
        let provenance = "https://slsa.dev/provenance/v1";
        for (one, expected) in [
            (attestation("b", SPDX, true), "required predicate type"),
            (attestation("broken.json", "x", false), "broken.json"),
            (attestation("none.json", "x", false), "cannot read in-toto"),
            (
                attestation("one.json", provenance, false),
                "frontend may not set provenance",
            ),
            (
                Attestation {
                    path: String::new(),
                    ..inline.clone()
                },
                "does not have set path",
            ),
        ] {
            let error = read(&one).unwrap_err().to_string();
            assert!(error.contains(expected), "{one:?}: {error}");
        }
        let forged = STATEMENT.replace("https://spdx.dev/Document", provenance);
        whelk_sys::fs::replace(out.join("b/bundled.json"), forged, 0o644).unwrap();
        let error = read(&attestation("b", "", true)).unwrap_err().to_string();
        assert_eq!(error, "frontend may not bundle provenance attestations");
    }
}
