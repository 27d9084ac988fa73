//! Docker's plugin protocol (v1), client side: finds plugins and calls them.
//!
//! A plugin is a program that the administrator runs and that answers `POST /Interface.Method` with
//! JSON. It is found by its socket, or by a file that contains its address; the file's name is the
//! plugin's. Plugins are trusted as much as the engine; their answers are still limited in size and
//! checked, because they are third-party programs.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use whelk_client::{Address, full_body, read_at_most, send, within};
use whelk_sys::{errno_text, fs};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("plugin {0:?} not found")]
    NotFound(String),
    /// Its spec file is invalid, it cannot be reached, or it does not speak the protocol.
    #[error("{0}")]
    Broken(String),
    /// The plugin's own error.
    #[error("{0}")]
    Refused(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// A plugin that has been activated.
#[derive(Clone, Debug)]
pub struct Plugin {
    name: String,
    address: Address,
}

/// The directories that are searched for plugins.
#[derive(Clone, Debug, Default)]
pub struct SearchPaths {
    /// Directories of sockets: `NAME.sock` or `NAME/NAME.sock`.
    pub sockets: Vec<PathBuf>,
    /// Directories of spec files: `NAME.spec` (an address) or `NAME.json` (an object with an
    /// address in `Addr`).
    pub descriptions: Vec<PathBuf>,
}

/// Maximum size of an answer in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// Maximum size of a spec file in bytes.
const MAX_DESCRIPTION: u64 = 64 << 10;
const ACCEPT: &str = "application/vnd.docker.plugins.v1.2+json";

impl SearchPaths {
    /// Returns the names of all plugins with a socket or spec file.
    pub fn names(&self) -> Vec<String> {
        let mut names = BTreeSet::new();
        for (directories, extensions) in [
            (&self.sockets, &["sock"][..]),
            (&self.descriptions, &["spec", "json"]),
        ] {
            for entry in directories
                .iter()
                .filter_map(|directory| fs::list(directory).ok())
                .flatten()
            {
                let path = entry.path();
                let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else {
                    continue;
                };
                let is_one = extensions
                    .iter()
                    .any(|one| path.extension().is_some_and(|found| found == *one))
                    || fs::exists(path.join(format!("{stem}.sock")));
                if is_one && is_name(stem) {
                    names.insert(stem.to_owned());
                }
            }
        }
        names.into_iter().collect()
    }

    fn address(&self, name: &str) -> Result<Address> {
        if !is_name(name) {
            return Err(Error::NotFound(name.into()));
        }
        for directory in &self.sockets {
            for path in [
                directory.join(format!("{name}.sock")),
                directory.join(name).join(format!("{name}.sock")),
            ] {
                if fs::exists(&path) {
                    return Ok(Address::Unix(path));
                }
            }
        }
        for directory in &self.descriptions {
            for (extension, is_json) in [("spec", false), ("json", true)] {
                let path = directory.join(format!("{name}.{extension}"));
                if fs::exists(&path) {
                    return read_description(&path, is_json);
                }
            }
        }
        Err(Error::NotFound(name.into()))
    }

    /// Finds a plugin and activates it.
    ///
    /// # Errors
    /// Returns an error if there is no such plugin, it does not answer, or it does not implement
    /// `interface`.
    pub fn activate(&self, name: &str, interface: &str) -> Result<Plugin> {
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Manifest {
            implements: Vec<String>,
        }
        const LIMIT: Duration = Duration::from_secs(10);
        let plugin = Plugin {
            name: name.to_owned(),
            address: self.address(name)?,
        };
        let manifest: Manifest = plugin.call("Plugin.Activate", &(), LIMIT)?;
        if !manifest.implements.iter().any(|known| known == interface) {
            return Err(Error::Broken(format!(
                "Plugin does not implement the requested driver: plugin={name:?}, requested implementation={interface:?}"
            )));
        }
        Ok(plugin)
    }
}

/// Returns whether a name is valid: it becomes part of paths.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn read_description(path: &Path, is_json: bool) -> Result<Address> {
    let broken = |text: String| Error::Broken(format!("{}: {text}", path.display()));
    let content = fs::read_at_most(path, MAX_DESCRIPTION)
        .map_err(|error| Error::Broken(error.to_string()))?;
    let text = String::from_utf8_lossy(&content).into_owned();
    let address = if is_json {
        let value: Value =
            serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if !value["TLSConfig"].is_null() {
            return Err(broken(
                "TLSConfig: plugins over TLS are not supported".into(),
            ));
        }
        value["Addr"].as_str().unwrap_or_default().to_owned()
    } else {
        text.trim().to_owned()
    };
    match address.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
        Some(("tcp" | "http", host)) if !host.is_empty() => {
            Ok(Address::Tcp(host.trim_end_matches('/').into()))
        }
        _ => Err(broken(format!(
            "unknown address {address:?}: must be unix:///PATH or tcp://HOST:PORT"
        ))),
    }
}

impl Plugin {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls `Interface.Method` and blocks until the answer, at most for `limit`.
    ///
    /// # Errors
    /// Returns [`Error::Refused`] with the plugin's own error, and [`Error::Broken`] if it does not
    /// answer in time or not in the protocol.
    pub fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T> {
        let broken = |text: String| Error::Broken(text);
        let mut bytes = serde_json::to_vec(body).map_err(|error| broken(error.to_string()))?;
        if bytes == b"null" {
            bytes.clear();
        }
        // A separate thread, because the caller's may be a runtime thread, on which `block_on`
        // panics.
        let answer = std::thread::scope(|scope| {
            let exchange = || -> Result<(u16, Bytes)> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| broken(error.to_string()))?;
                runtime.block_on(self.exchange(method, bytes, limit))
            };
            scope
                .spawn(exchange)
                .join()
                .unwrap_or_else(|_| Err(broken("the call panicked".into())))
        });
        let (status, content) = answer?;
        let value: serde_json::Result<Value> = serde_json::from_slice(&content);
        if status != 200 {
            let told = value
                .ok()
                .and_then(|value| value["Err"].as_str().map(str::to_owned));
            let told = told.unwrap_or_else(|| String::from_utf8_lossy(&content).trim().to_owned());
            return Err(Error::Refused(format!("{method}: {told}")));
        }
        let unreadable = |error: serde_json::Error| {
            broken(format!(
                "{}: invalid answer: {error}",
                self.describe(method)
            ))
        };
        let value = value.map_err(unreadable)?;
        if let Some(text) = value["Err"].as_str().filter(|text| !text.is_empty()) {
            return Err(Error::Refused(text.to_owned()));
        }
        serde_json::from_value(value).map_err(unreadable)
    }

    fn describe(&self, method: &str) -> String {
        format!("plugin {}: {method}", self.name)
    }

    async fn exchange(&self, method: &str, body: Vec<u8>, limit: Duration) -> Result<(u16, Bytes)> {
        let failed = |text: String| Error::Broken(format!("{}: {text}", self.describe(method)));
        let host = match &self.address {
            Address::Unix(_) | Address::Program(_) => "plugin.moby.localhost",
            Address::Tcp(host) | Address::Tls(host, _) => host,
        };
        let request = hyper::Request::post(format!("/{method}"))
            .header("host", host)
            .header("accept", ACCEPT)
            .header("content-type", "application/json")
            .body(full_body(body))
            .map_err(|error| failed(error.to_string()))?;
        let exchange = async {
            let response = send(&self.address, request).await?;
            let status = response.status().as_u16();
            Ok((status, read_at_most(response, MAX_ANSWER).await?))
        };
        within(limit, exchange).await.map_err(|error| {
            failed(match error {
                whelk_client::Error::Connect(error) => {
                    let at = match &self.address {
                        Address::Unix(path) => path.display().to_string(),
                        Address::Tcp(host) | Address::Tls(host, _) => host.clone(),
                        Address::Program(program) => program.shown.clone(),
                    };
                    format!("{at}: {}", errno_text(&error))
                }
                other => other.to_string(),
            })
        })
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_found_by_sockets_and_descriptions() {
        let scratch = whelk_sys::Scratch::temporary("plugins").unwrap();
        let base = scratch.path();
        let paths = SearchPaths {
            sockets: vec![base.join("run")],
            descriptions: vec![base.join("etc")],
        };
        std::fs::create_dir_all(base.join("run/inner")).unwrap();
        std::fs::create_dir_all(base.join("etc")).unwrap();
        for (path, content) in [
            ("run/plain.sock", ""),
            ("run/inner/inner.sock", ""),
            ("run/other.txt", ""),
            ("etc/far.spec", "tcp://127.0.0.1:9000\n"),
            ("etc/near.spec", "unix:///run/near.sock"),
            (
                "etc/object.json",
                r#"{"Name": "x", "Addr": "http://127.0.0.1:9001/"}"#,
            ),
            ("etc/bad.spec", "gopher://x"),
            (
                "etc/secret.json",
                r#"{"Addr": "https://x", "TLSConfig": {}}"#,
            ),
            ("etc/broken.json", "{"),
        ] {
            std::fs::write(base.join(path), content).unwrap();
        }
        assert_eq!(
            paths.names(),
            [
                "bad", "broken", "far", "inner", "near", "object", "plain", "secret"
            ]
        );
        let found = |name: &str| paths.address(name).map_err(|error| error.to_string());
        assert_eq!(
            found("plain"),
            Ok(Address::Unix(base.join("run/plain.sock")))
        );
        assert_eq!(
            found("inner"),
            Ok(Address::Unix(base.join("run/inner/inner.sock")))
        );
        assert_eq!(found("far"), Ok(Address::Tcp("127.0.0.1:9000".into())));
        assert_eq!(found("near"), Ok(Address::Unix("/run/near.sock".into())));
        assert_eq!(found("object"), Ok(Address::Tcp("127.0.0.1:9001".into())));
        for (name, file, cause) in [
            ("bad", "bad.spec", "unknown address \"gopher://x\""),
            ("secret", "secret.json", "TLSConfig: plugins over TLS"),
            ("broken", "broken.json", "EOF while parsing an object"),
        ] {
            let error = found(name).unwrap_err();
            let path = base.join("etc").join(file);
            let expected = format!("{}: {cause}", path.display());
            assert!(error.contains(&expected), "{error}");
        }
        for name in ["nosuch", "", "../etc/far", ".hidden", "a/b"] {
            assert_eq!(found(name), Err(format!("plugin {name:?} not found")));
        }
    }
}
