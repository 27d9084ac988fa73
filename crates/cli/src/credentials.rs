//! Credentials for registries, from Docker's `config.json` and from credential helpers: programs
//! `docker-credential-NAME` that keep secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};

use crate::{Failure, Outcome, plain};

/// The name of Docker Hub in `config.json` and for credential helpers.
const HUB: &str = "https://index.docker.io/v1/";
/// A user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What a helper answers if it has no credentials for a server.
const NOT_FOUND: &str = "credentials not found in native keychain";

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
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// An `AuthConfig` of the Engine API.
#[derive(Default, PartialEq, Eq, Serialize)]
struct AuthConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    password: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    serveraddress: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    identitytoken: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    registrytoken: String,
}

impl fmt::Debug for AuthConfig {
    /// Shows nothing that is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Returns the header `X-Registry-Auth` for the registry of an image.
///
/// # Errors
/// Returns an error if a credential helper is configured and fails: another identity than the
/// user's must not be used instead.
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

fn find(config: &Path, registry: &str) -> Outcome<AuthConfig> {
    let path = config.join("config.json");
    let file = match std::fs::read(&path) {
        Ok(content) => serde_json::from_slice::<ConfigFile>(&content)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => ConfigFile::default(),
        Err(error) => {
            return Err(Failure::new(format!(
                "open {}: {}",
                path.display(),
                plain(&error)
            )));
        }
    };
    let helpers = file.cred_helpers.unwrap_or_default();
    let helper = helpers.get(registry).or(file.creds_store.as_ref());
    if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
        return ask(helper, registry);
    }
    let auths = file.auths.unwrap_or_default();
    // Older clients wrote URLs.
    let host = |key: &str| {
        let rest = key
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        rest.split('/').next().unwrap_or_default().to_owned()
    };
    let entry = auths.get(registry).or_else(|| {
        let mut others = auths.iter();
        others
            .find(|(key, _)| registry != HUB && host(key) == registry)
            .map(|(_, entry)| entry)
    });
    let Some(entry) = entry else {
        return Ok(AuthConfig::default());
    };
    let mut found = AuthConfig {
        serveraddress: registry.to_owned(),
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

/// Asks a credential helper.
fn ask(helper: &str, registry: &str) -> Outcome<AuthConfig> {
    let program = format!("docker-credential-{helper}");
    let failed =
        |cause: &str| Failure::new(format!("error getting credentials: {program}: {cause}"));
    if helper.contains('/') {
        return Err(failed("the name of a helper has no slash"));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(&plain(&error)))?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read says so by what it answers.
        let _ = input.write_all(registry.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(&plain(&error)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return match text.trim() {
            NOT_FOUND => Ok(AuthConfig::default()),
            // It is the helper's error, and not a secret.
            text => Err(failed(text)),
        };
    }
    let answer: Answer = serde_json::from_str(&text)
        .map_err(|_| failed("the answer has no Username and Secret in JSON"))?;
    let mut found = AuthConfig {
        serveraddress: registry.to_owned(),
        ..AuthConfig::default()
    };
    if answer.username == TOKEN_USER {
        found.identitytoken = answer.secret;
    } else {
        (found.username, found.password) = (answer.username, answer.secret);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
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
        let dir = std::env::temp_dir().join(format!("whelk-auths-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let write = |text: &str| std::fs::write(dir.join("config.json"), text).unwrap();
        assert_eq!(find(&dir, "r").unwrap(), AuthConfig::default());
        write(
            r#"{"auths": {"r:1": {"auth": "dTpwOnE="}, "https://old/v1/": {"identitytoken": "t"},
                "https://index.docker.io/v1/": {"auth": "aHViOng="}, "empty": {}, "bad": {"auth": "c2VjcmV0"}}}"#,
        );
        let found = |registry: &str| {
            let found = find(&dir, registry).unwrap();
            [found.username, found.password, found.identitytoken]
        };
        assert_eq!(found("r:1"), ["u", "p:q", ""]);
        assert_eq!(found("old"), ["", "", "t"]);
        assert_eq!(found(HUB), ["hub", "x", ""]);
        assert_eq!(found("empty"), ["", "", ""]);
        // Neither another port nor another registry gets them (CVE-2021-41092).
        assert_eq!(found("r"), ["", "", ""]);
        assert_eq!(found("index.docker.io.example.com"), ["", "", ""]);
        let error = find(&dir, "bad").unwrap_err().text;
        assert!(
            error.contains("not USER:PASSWORD") && !error.contains("secret"),
            "{error}"
        );
        write(r#"{"credsStore": "whelk-test-nosuch", "auths": {"r": {"auth": "dTpw"}}}"#);
        let error = find(&dir, "r").unwrap_err().text;
        assert_eq!(
            error,
            "error getting credentials: docker-credential-whelk-test-nosuch: no such file or directory"
        );
        write(r#"{"credHelpers": {"r": "../x"}}"#);
        assert!(find(&dir, "r").unwrap_err().text.contains("no slash"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
