//! The secrets of a build: files and variables of the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use whelk_buildkit::grpc::{Result, Status};

use super::options::fields;
use crate::{Failure, Outcome, files, plain};

/// The maximum size of a secret; BuildKit's is the same.
const MAX: u64 = 500 << 10;

/// Secrets by their ids.
#[derive(Debug, Default)]
pub(super) struct Secrets(BTreeMap<String, Source>);

#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Variable(String),
}

impl Secrets {
    /// Reads `id=ID[,src=FILE][,env=VARIABLE]`.
    ///
    /// # Errors
    /// Returns an error for another form, and for a file that is not there.
    pub fn new(given: &[String]) -> Outcome<Self> {
        let mut secrets = BTreeMap::new();
        for text in given {
            let (id, source) = parse(text)?;
            if let Source::File(path) = &source {
                check(path)?;
            }
            secrets.insert(id, source);
        }
        Ok(Self(secrets))
    }

    /// Returns a secret's value. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is none, or if it cannot be read.
    pub fn read(&self, id: &str) -> Result<Vec<u8>> {
        let missing = || Status::not_found(format!("secret {id} not found"));
        match self.0.get(id).ok_or_else(missing)? {
            Source::Variable(name) => {
                use std::os::unix::ffi::OsStringExt as _;
                let value = std::env::var_os(name).ok_or_else(missing)?;
                Ok(value.into_vec())
            }
            Source::File(path) => files::read_at_most(path, MAX).map_err(|error| {
                Status::unknown(format!("read {}: {}", path.display(), plain(&error)))
            }),
        }
    }
}

fn parse(text: &str) -> Outcome<(String, Source)> {
    let mut fields = fields(text, "secret")?;
    let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_empty());
    let id = take("id");
    let kind = take("type").unwrap_or_default();
    let file = take("src").or_else(|| take("source"));
    let variable = take("env");
    if let Some(other) = fields.keys().next() {
        let text = format!("unexpected key '{other}' in '{text}'");
        return Err(Failure::new(format!("failed to parse secrets: {text}")));
    }
    let wrong = |text: String| Err(Failure::new(format!("failed to parse secrets: {text}")));
    let source = match (kind.as_str(), file, variable) {
        (other, ..) if !matches!(other, "" | "file" | "env") => {
            return wrong(format!("unsupported secret type {other:?}"));
        }
        (_, Some(_), Some(_)) => return wrong(format!("both src and env in '{text}'")),
        ("env", Some(name), None) | (_, None, Some(name)) => Source::Variable(name),
        (_, Some(path), None) => Source::File(path.into()),
        (kind, None, None) => match &id {
            None => return wrong(format!("neither id nor src in '{text}'")),
            // Without a source, a variable of that name if there is one.
            Some(id) if kind == "env" || kind.is_empty() && std::env::var_os(id).is_some() => {
                Source::Variable(id.clone())
            }
            Some(id) => Source::File(id.into()),
        },
    };
    let id = match (id, &source) {
        (Some(id), _) => id,
        (None, Source::Variable(name)) => name.clone(),
        (None, Source::File(path)) => path.display().to_string(),
    };
    Ok((id, source))
}

fn check(path: &std::path::Path) -> Outcome<()> {
    let path_text = path.display();
    let found = std::fs::metadata(path)
        .map_err(|error| Failure::new(format!("failed to stat {path_text}: {}", plain(&error))))?;
    if found.is_dir() {
        return Err(Failure::new(format!(
            "the secret {path_text} is a directory"
        )));
    }
    match found.len() {
        size if size > MAX => Err(Failure::new(format!(
            "invalid secret size {size} of {path_text}: at most {MAX} bytes"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_a_file_or_a_variable() {
        let file = |path: &str| Source::File(path.into());
        let variable = |name: &str| Source::Variable(name.into());
        for (text, id, source) in [
            ("id=a,src=b", "a", file("b")),
            ("id=a", "a", file("a")),
            ("id=a,env=B", "a", variable("B")),
            ("type=env,id=B", "B", variable("B")),
            ("id=HOME", "HOME", variable("HOME")),
            ("source=/x/y", "/x/y", file("/x/y")),
        ] {
            assert_eq!(parse(text).unwrap(), (id.to_owned(), source), "{text}");
        }
        for (text, expected) in [
            ("a", "must be a key=value pair"),
            ("id=a,typo=b", "unexpected key 'typo'"),
            ("type=x,id=a", "unsupported secret type \"x\""),
            ("type=file", "neither id nor src"),
            ("id=a,src=b,env=C", "both src and env"),
        ] {
            let failed = parse(text).unwrap_err().text;
            assert!(failed.contains(expected), "{failed}");
        }
        let failed = Secrets::new(&["id=a,src=/nonexistent".into()]).unwrap_err();
        assert_eq!(
            failed.text,
            "failed to stat /nonexistent: no such file or directory"
        );
        // A device has no size, and no end.
        let secrets = Secrets::new(&["id=a,src=/dev/zero".into()]).unwrap();
        let failed = secrets.read("a").unwrap_err();
        assert!(failed.message.contains("read /dev/zero"), "{failed:?}");
        let failed = Secrets::new(&["id=a,src=/tmp".into()]).unwrap_err();
        assert_eq!(failed.text, "the secret /tmp is a directory");
    }
}
