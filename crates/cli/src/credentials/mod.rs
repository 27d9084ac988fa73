//! Credentials for registries, from Docker's `config.json` and from credential helpers: programs
//! `docker-credential-NAME` that keep secrets.

mod helper;
mod store;

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use whelk_api_types::AuthConfig;

use crate::{Failure, Outcome, plain};

pub(crate) use store::{erase, store};

/// The name of Docker Hub in `config.json` and for credential helpers.
pub(crate) const HUB: &str = "https://index.docker.io/v1/";

/// The parts of `config.json` that concern registries.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: Option<BTreeMap<String, Entry>>,
    /// The helper for all registries without one of their own.
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// `USER:PASSWORD` in base64.
    auth: Option<String>,
    /// Some programs write `username` and `password` instead of `auth`.
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Returns the header `X-Registry-Auth` for the registry of an image.
///
/// # Errors
/// Returns an error if a credential helper is configured and fails, instead of sending the request
/// without the user's credentials.
pub(crate) fn header(config: Option<&Path>, image: &str) -> Outcome<String> {
    let registry = registry_of(image);
    let found = match config {
        Some(config) => find(config, &registry)?,
        None => AuthConfig::default(),
    };
    let json = serde_json::to_vec(&found)
        .map_err(|error| Failure::new(format!("encode credentials: {error}")))?;
    Ok(URL_SAFE.encode(json))
}

/// Returns the name of an image's registry in `config.json`.
fn registry_of(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.to_lowercase() != first =>
        {
            match first {
                "docker.io" | "index.docker.io" => HUB.to_owned(),
                host => host.to_owned(),
            }
        }
        _ => HUB.to_owned(),
    }
}

impl ConfigFile {
    fn read(path: &Path) -> Outcome<Self> {
        match std::fs::read(path) {
            Ok(content) => serde_json::from_slice(&content)
                .map_err(|error| Failure::new(format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::new(format!(
                "open {}: {}",
                path.display(),
                plain(&error)
            ))),
        }
    }

    /// Returns the helper that is configured for a registry, if any.
    fn helper(&self, registry: &str) -> Option<&str> {
        let own = self
            .cred_helpers
            .as_ref()
            .and_then(|helpers| helpers.get(registry));
        let helper = own.or(self.creds_store.as_ref());
        helper
            .map(String::as_str)
            .filter(|helper| !helper.is_empty())
    }
}

/// Returns the name of a login's server in `config.json`: the host of a URL.
pub(crate) fn host_of(server: &str) -> &str {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| server.strip_prefix(scheme))
        .unwrap_or(server);
    rest.split('/').next().unwrap_or_default()
}

/// Returns the credentials for a registry; empty if there are none.
///
/// # Errors
/// Returns an error if the configuration or a credential helper fails.
pub(crate) fn find(config: &Path, registry: &str) -> Outcome<AuthConfig> {
    let path = config.join("config.json");
    let file = ConfigFile::read(&path)?;
    if let Some(helper) = file.helper(registry) {
        return helper::get(helper, registry);
    }
    let auths = file.auths.unwrap_or_default();
    let entry = auths.get(registry).or_else(|| {
        let mut others = auths.iter();
        others
            // Older clients wrote URLs.
            .find(|(key, _)| registry != HUB && host_of(key) == registry)
            .map(|(_, entry)| entry)
    });
    let Some(entry) = entry else {
        return Ok(AuthConfig::default());
    };
    let mut found = AuthConfig {
        serveraddress: registry.to_owned(),
        username: entry.username.clone().unwrap_or_default(),
        password: entry.password.clone().unwrap_or_default(),
        identitytoken: entry.identitytoken.clone().unwrap_or_default(),
        registrytoken: entry.registrytoken.clone().unwrap_or_default(),
        ..AuthConfig::default()
    };
    if let Some(auth) = entry.auth.as_deref().filter(|auth| !auth.is_empty()) {
        let decoded = STANDARD
            .decode(auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':'))
        else {
            return Err(Failure::new(format!(
                "{}: the credentials for {registry} are not USER:PASSWORD in base64",
                path.display()
            )));
        };
        user.clone_into(&mut found.username);
        password
            .trim_end_matches('\0')
            .clone_into(&mut found.password);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn images_are_of_registries() {
        for (image, registry) in [
            ("busybox", HUB),
            ("library/busybox:1", HUB),
            ("docker.io/busybox", HUB),
            ("localhost/x", "localhost"),
            ("localhost:5000/a/b", "localhost:5000"),
            ("quay.io/a/b@sha256:00", "quay.io"),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let scratch = Scratch::temporary("auths").unwrap();
        let dir = scratch.path();
        let write = |text: &str| std::fs::write(dir.join("config.json"), text).unwrap();
        assert_eq!(find(dir, "r").unwrap(), AuthConfig::default());
        write(
            r#"{"auths": {"r:1": {"auth": "dTpwOnE="}, "https://old/v1/": {"identitytoken": "t"},
                "https://index.docker.io/v1/": {"auth": "aHViOng="}, "empty": {}, "plain": {"username": "u", "password": "p"},
                "both": {"auth": "dTpwOnE=", "username": "x", "password": "y"}, "bad": {"auth": "c2VjcmV0"}}}"#,
        );
        let found = |registry: &str| {
            let found = find(dir, registry).unwrap();
            [found.username, found.password, found.identitytoken]
        };
        assert_eq!(found("r:1"), ["u", "p:q", ""]);
        assert_eq!(found("old"), ["", "", "t"]);
        assert_eq!(found(HUB), ["hub", "x", ""]);
        assert_eq!(found("empty"), ["", "", ""]);
        assert_eq!(found("plain"), ["u", "p", ""]);
        assert_eq!(found("both"), ["u", "p:q", ""]);
        // They are not sent to another port or registry (CVE-2021-41092).
        assert_eq!(found("r"), ["", "", ""]);
        assert_eq!(found("index.docker.io.example.com"), ["", "", ""]);
        let error = find(dir, "bad").unwrap_err().text;
        assert!(
            error.contains("not USER:PASSWORD") && !error.contains("secret"),
            "{error}"
        );
        write(r#"{"credsStore": "whelk-test-nosuch", "auths": {"r": {"auth": "dTpw"}}}"#);
        let error = find(dir, "r").unwrap_err().text;
        assert_eq!(
            error,
            "error getting credentials: docker-credential-whelk-test-nosuch: no such file or directory"
        );
        write(r#"{"credHelpers": {"r": "../x"}}"#);
        assert!(find(dir, "r").unwrap_err().text.contains("no slash"));
    }
}
