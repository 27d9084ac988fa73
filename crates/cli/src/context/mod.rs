//! Docker's context store: named engines, which `docker` and `whelk` share.
//!
//! ```text
//! <config>/contexts/meta/<sha256(NAME)>/meta.json        {"Name": "NAME", "Metadata": {"Description": "…"},
//!                                                         "Endpoints": {"docker": {"Host": "unix://…", "SkipTLSVerify": false}}}
//!         /contexts/tls/<sha256(NAME)>/docker/           ca.pem, cert.pem, key.pem
//! ```

pub(crate) mod archive;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{Failure, Outcome, files, plain};

/// The name of the context that is not stored: the flags and the environment.
pub(crate) const DEFAULT: &str = "default";
/// The endpoint that this client connects to. Contexts can have others.
pub(crate) const ENDPOINT: &str = "docker";

/// The PEM files of a context by the names of their endpoint and of the file.
pub(crate) type TlsFiles = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// A context's metadata as stored, including what this client does not know.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Context(pub Map<String, Value>);

impl Context {
    pub(crate) fn new(name: &str, description: &str, host: &str, skip_verify: bool) -> Self {
        let mut context = Self::default();
        context.set_name(name);
        context.0.insert("Metadata".into(), json!({}));
        context.0.insert("Endpoints".into(), json!({}));
        context.set_description(description);
        context.set_endpoint(host, skip_verify);
        context
    }

    fn of(json: Value) -> Option<Self> {
        match json {
            Value::Object(object) => Some(Self(object)),
            _ => None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.0
            .get("Name")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub(crate) fn description(&self) -> &str {
        self.value(&["Metadata", "Description"])
            .as_str()
            .unwrap_or_default()
    }

    pub(crate) fn host(&self) -> &str {
        self.value(&["Endpoints", ENDPOINT, "Host"])
            .as_str()
            .unwrap_or_default()
    }

    pub(crate) fn skip_verify(&self) -> bool {
        *self.value(&["Endpoints", ENDPOINT, "SkipTLSVerify"]) == true
    }

    fn value(&self, path: &[&str]) -> &Value {
        path.iter()
            .skip(1)
            .fold(
                path.first().and_then(|key| self.0.get(*key)),
                |value, key| value?.get(*key),
            )
            .unwrap_or(&Value::Null)
    }

    pub(crate) fn set_name(&mut self, name: &str) {
        self.0.insert("Name".into(), name.into());
    }

    /// Sets the description; an empty one is none.
    pub(crate) fn set_description(&mut self, description: &str) {
        let metadata = object(&mut self.0, "Metadata");
        if description.is_empty() {
            metadata.shift_remove("Description");
        } else {
            metadata.insert("Description".into(), description.into());
        }
    }

    /// Sets the endpoint; an empty host is none.
    pub(crate) fn set_endpoint(&mut self, host: &str, skip_verify: bool) {
        let endpoint = object(object(&mut self.0, "Endpoints"), ENDPOINT);
        if host.is_empty() {
            endpoint.shift_remove("Host");
        } else {
            endpoint.insert("Host".into(), host.into());
        }
        endpoint.insert("SkipTLSVerify".into(), skip_verify.into());
    }
}

/// Returns the object with this key, which is created if there is none.
fn object<'m>(map: &'m mut Map<String, Value>, key: &str) -> &'m mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it has just been made an object"),
    }
}

/// The contexts in a configuration directory.
#[derive(Clone, Debug)]
pub(crate) struct ContextStore {
    contexts: PathBuf,
}

impl ContextStore {
    pub(crate) fn new(config: &Path) -> Self {
        Self {
            contexts: config.join("contexts"),
        }
    }

    pub(crate) fn metadata_directory(&self, name: &str) -> PathBuf {
        self.contexts.join("meta").join(id(name))
    }

    pub(crate) fn tls_directory(&self, name: &str) -> PathBuf {
        self.contexts.join("tls").join(id(name))
    }

    /// Returns a context.
    ///
    /// # Errors
    /// Returns an error with Docker's text if there is none or it cannot be read.
    pub(crate) fn read(&self, name: &str) -> Result<Context, String> {
        let path = self.metadata_directory(name).join("meta.json");
        let read = read_json(&path).map_err(|reason| {
            if reason.ends_with("no such file or directory") {
                format!("context not found: {reason}")
            } else {
                reason
            }
        });
        read.and_then(|json| {
            Context::of(json).ok_or_else(|| format!("parsing {}: not an object", path.display()))
        })
        .map_err(|reason| format!("context {name:?}: {reason}"))
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.metadata_directory(name).join("meta.json").exists()
    }

    /// Returns all contexts in no particular order.
    ///
    /// # Errors
    /// Returns an error if one cannot be read.
    pub(crate) fn list(&self) -> Outcome<Vec<Context>> {
        let failed = |reason: String| Failure::new(format!("failed to read metadata: {reason}"));
        let entries = match std::fs::read_dir(self.contexts.join("meta")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(plain(&error))),
        };
        let mut contexts = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed(plain(&error)))?;
            let path = entry.path().join("meta.json");
            if path.exists() {
                let json = read_json(&path).map_err(failed)?;
                contexts.extend(Context::of(json));
            }
        }
        Ok(contexts)
    }

    /// Stores a new context. If that fails, its certificates are removed.
    pub(crate) fn create(&self, context: &Context, tls: &TlsFiles) -> Outcome<()> {
        let name = context.name();
        let created = self
            .set_tls(name, None, tls)
            .and_then(|()| self.write(context));
        if created.is_err() {
            let _ = self.remove(name);
        }
        created
    }

    /// Writes a context's metadata, which makes a new one visible.
    pub(crate) fn write(&self, context: &Context) -> Outcome<()> {
        let directory = self.metadata_directory(context.name());
        let path = directory.join("meta.json");
        let text = go_escaped(&Value::from(context.0.clone()).to_string());
        files::create_directories(&directory, 0o755)
            .and_then(|()| files::replace(&path, text.as_bytes()))
            .map_err(|error| Failure::new(format!("write {}: {}", path.display(), plain(&error))))
    }

    /// Returns the names of the PEM files.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed: without them, a copy would be less protected.
    pub(crate) fn tls_names(&self, name: &str) -> Outcome<BTreeMap<String, Vec<String>>> {
        let directory = self.tls_directory(name);
        names_in(&directory)?
            .into_iter()
            .map(|endpoint| Ok((endpoint.clone(), names_in(&directory.join(endpoint))?)))
            .collect()
    }

    /// Returns the PEM files.
    pub(crate) fn tls(&self, name: &str) -> Outcome<TlsFiles> {
        let directory = self.tls_directory(name);
        let read = |endpoint: &str, file: String| {
            let path = directory.join(endpoint).join(&file);
            let content = files::read(&path).map_err(|error| {
                Failure::new(format!("open {}: {}", path.display(), plain(&error)))
            })?;
            Ok((file, content))
        };
        let endpoints = self.tls_names(name)?.into_iter();
        endpoints
            .map(|(endpoint, names)| {
                let files = names.into_iter().map(|file| read(&endpoint, file));
                Ok((endpoint.clone(), files.collect::<Outcome<_>>()?))
            })
            .collect()
    }

    /// Replaces the PEM files of all endpoints, or of one. If that fails, the old files remain:
    /// without them, the context would be used without TLS.
    pub(crate) fn set_tls(&self, name: &str, of: Option<&str>, tls: &TlsFiles) -> Outcome<()> {
        let directory = self.tls_directory(name);
        let write = || {
            let replaced = match of {
                Some(endpoint) => directory.join(endpoint),
                None => directory.clone(),
            };
            if tls.is_empty() {
                files::remove_directory(&replaced)?;
            } else {
                let staged = files::stage_directory(&directory)?;
                let written = write_tls(&staged, tls).and_then(|()| match of {
                    Some(endpoint) => {
                        files::create_directories(&directory, 0o700)?;
                        files::replace_directory(&staged.join(endpoint), &replaced)
                    }
                    None => files::replace_directory(&staged, &replaced),
                });
                let removed = files::remove_directory(&staged);
                written.and(removed)?;
            }
            // Without files there is no directory, which would enable TLS.
            match std::fs::remove_dir(&directory) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    Err(error)
                }
                _ => Ok(()),
            }
        };
        write().map_err(|error| {
            Failure::new(format!("write {}: {}", directory.display(), plain(&error)))
        })
    }

    pub(crate) fn remove(&self, name: &str) -> Outcome<()> {
        let remove = |directory: PathBuf| {
            files::remove_directory(&directory).map_err(|error| {
                Failure::new(format!(
                    "failed to remove {}: {}",
                    directory.display(),
                    plain(&error)
                ))
            })
        };
        let removed = remove(self.metadata_directory(name));
        remove(self.tls_directory(name)).and(removed)
    }
}

fn write_tls(directory: &Path, tls: &TlsFiles) -> std::io::Result<()> {
    for (endpoint, contents) in tls {
        let directory = directory.join(endpoint);
        files::create_directories(&directory, 0o700)?;
        for (file, content) in contents {
            files::replace(&directory.join(file), content)?;
        }
    }
    Ok(())
}

/// Returns the names in a directory in order; none if it does not exist.
fn names_in(directory: &Path) -> Outcome<Vec<String>> {
    let failed = |error: std::io::Error| {
        Failure::new(format!("open {}: {}", directory.display(), plain(&error)))
    };
    let mut names = Vec::new();
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Checks that a context of this name can be stored.
pub(crate) fn check_name(name: &str) -> Outcome<()> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    let mut bytes = name.bytes();
    let starts_well = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if name.is_empty() {
        Err(Failure::new("context name cannot be empty"))
    } else if name == DEFAULT {
        Err(Failure::new(format!(
            "{DEFAULT:?} is a reserved context name"
        )))
    } else if !starts_well || name.len() < 2 || !bytes.all(inner) {
        Err(Failure::new(format!(
            "context name {name:?} is invalid, names are validated against regexp \"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$\""
        )))
    } else {
        Ok(())
    }
}

fn id(name: &str) -> String {
    let digest = Sha256::digest(name);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Escapes what Go's JSON encoder escapes in strings: `<`, `>`, `&`. These do not occur elsewhere in
/// JSON.
pub(crate) fn go_escaped(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

pub(crate) fn read_json(path: &Path) -> Result<Value, String> {
    let text =
        files::read(path).map_err(|error| format!("open {}: {}", path.display(), plain(&error)))?;
    serde_json::from_slice(&text).map_err(|error| format!("parsing {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn rejects_names_that_are_reserved_or_malformed() {
        for name in ["ab", "a+", "0.-_", "Default"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let refused = |name: &str| check_name(name).unwrap_err().text;
        assert_eq!(refused(""), "context name cannot be empty");
        assert_eq!(refused("default"), "\"default\" is a reserved context name");
        for name in ["a", "-a", ".a", "a/b", "..", "a b", "a\n", "é1", "aé"] {
            assert_eq!(
                refused(name),
                format!(
                    "context name {name:?} is invalid, names are validated against regexp \"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$\""
                )
            );
        }
    }

    #[test]
    fn a_context_that_cannot_be_stored_leaves_nothing() {
        let scratch = Scratch::temporary("store").unwrap();
        let config = scratch.path();
        let store = ContextStore::new(config);
        let context = Context::new("xy", "", "tcp://h", false);
        let files = [("key.pem".to_owned(), b"KEY".to_vec())].into();
        let tls: TlsFiles = [("docker".to_owned(), files)].into();
        std::fs::create_dir_all(config.join("contexts")).unwrap();
        std::fs::write(config.join("contexts/meta"), "no directory").unwrap();
        let error = store.create(&context, &tls).unwrap_err().text;
        let meta = config.join("contexts/meta").display().to_string();
        assert!(
            error.contains(&meta) && error.ends_with("not a directory"),
            "{error}"
        );
        assert!(!store.tls_directory("xy").exists());
        std::fs::remove_file(config.join("contexts/meta")).unwrap();
        store.create(&context, &tls).unwrap();
        assert_eq!(store.read("xy").unwrap(), context);
        assert_eq!(store.tls("xy").unwrap(), tls);
        store.remove("xy").unwrap();
        assert!(!store.exists("xy") && store.tls("xy").unwrap().is_empty());
    }

    #[test]
    fn certificates_are_replaced_together_or_not_at_all() {
        let scratch = Scratch::temporary("set-tls").unwrap();
        let config = scratch.path();
        let store = ContextStore::new(config);
        let of = |files: &[(&str, &str)]| -> TlsFiles {
            let files = files
                .iter()
                .map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()));
            [(ENDPOINT.to_owned(), files.collect())].into()
        };
        let old = of(&[("ca.pem", "CA"), ("key.pem", "KEY")]);
        store.set_tls("xy", Some(ENDPOINT), &old).unwrap();
        // As on a full disk, the second file cannot be written.
        let name = "x".repeat(300);
        let broken = of(&[("ca.pem", "NEW"), (&name, "KEY")]);
        for endpoint in [Some(ENDPOINT), None] {
            let error = store.set_tls("xy", endpoint, &broken).unwrap_err();
            assert!(error.text.contains("file name too long"), "{}", error.text);
            assert_eq!(store.tls("xy").unwrap(), old);
        }
        for (endpoint, new) in [
            (Some(ENDPOINT), of(&[("ca.pem", "1")])),
            (None, of(&[("key.pem", "2")])),
        ] {
            store.set_tls("xy", endpoint, &new).unwrap();
            assert_eq!(store.tls("xy").unwrap(), new);
        }
        let left = names_in(&config.join("contexts/tls")).unwrap();
        assert_eq!(left, [id("xy")]);
        store
            .set_tls("xy", Some(ENDPOINT), &TlsFiles::new())
            .unwrap();
        assert!(!store.tls_directory("xy").exists());
    }

    #[test]
    fn unknown_metadata_is_kept() {
        let json = json!({"Name": "x", "Metadata": {"k": "v", "Description": "d"}, "More": [1],
            "Endpoints": {"kubernetes": {}, "docker": {"Host": "tcp://a", "Extra": 1}}});
        let mut context = Context::of(json).unwrap();
        assert_eq!((context.description(), context.host()), ("d", "tcp://a"));
        context.set_description("");
        context.set_endpoint("tcp://b", true);
        assert_eq!(
            Value::from(context.0),
            json!({"Name": "x", "Metadata": {"k": "v"}, "More": [1],
                "Endpoints": {"kubernetes": {}, "docker": {"Host": "tcp://b", "Extra": 1, "SkipTLSVerify": true}}})
        );
        // Setting an endpoint replaces values of the wrong type.
        let mut context = Context::of(json!({"Endpoints": 5, "Metadata": null})).unwrap();
        assert_eq!((context.name(), context.host()), ("", ""));
        context.set_endpoint("tcp://b", false);
        assert_eq!(context.host(), "tcp://b");
    }
}
