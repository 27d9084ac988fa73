//! The protocol of credential helpers: a program gets an operation (`get`, `store`, `erase`) as its
//! argument, and the server or the credentials on standard input.

use std::io::Write;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use whelk_api_types::AuthConfig;

use crate::{Failure, Outcome, plain};

/// The user name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";
/// The output of a credential helper that has no credentials for a server.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The output of a credential helper's operation `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The input of a credential helper's operation `store`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(rename = "ServerURL")]
    server_url: &'a str,
    username: &'a str,
    secret: &'a str,
}

/// Returns the credentials that a helper has for a registry; empty if it has none.
pub(super) fn get(helper: &str, registry: &str) -> Outcome<AuthConfig> {
    let failed = failure("getting", helper);
    let Some(text) = run(helper, "get", registry.as_bytes()).map_err(&failed)? else {
        return Ok(AuthConfig::default());
    };
    let answer: Answer = serde_json::from_str(&text)
        .map_err(|_| failed("the answer has no Username and Secret in JSON".into()))?;
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

/// Stores credentials with a helper.
pub(super) fn store(helper: &str, auth: &AuthConfig) -> Outcome<()> {
    let (username, secret) = if auth.identitytoken.is_empty() {
        (auth.username.as_str(), auth.password.as_str())
    } else {
        (TOKEN_USER, auth.identitytoken.as_str())
    };
    let entry = Entry {
        server_url: &auth.serveraddress,
        username,
        secret,
    };
    let json = serde_json::to_vec(&entry)
        .map_err(|error| Failure::new(format!("encode credentials: {error}")))?;
    run(helper, "store", &json)
        .map(drop)
        .map_err(failure("storing", helper))
}

/// Removes the credentials for a registry from a helper, which may have none.
pub(super) fn erase(helper: &str, registry: &str) -> Outcome<()> {
    run(helper, "erase", registry.as_bytes())
        .map(drop)
        .map_err(failure("erasing", helper))
}

fn failure(operation: &str, helper: &str) -> impl Fn(String) -> Failure {
    let what = format!("error {operation} credentials: docker-credential-{helper}");
    move |cause| Failure::new(format!("{what}: {cause}"))
}

/// Runs a helper and returns its output; `None` if it has no credentials for the server.
///
/// # Errors
/// Returns the helper's error text.
fn run(helper: &str, operation: &str, input: &[u8]) -> Result<Option<String>, String> {
    if helper.contains('/') {
        return Err("the name of a helper has no slash".into());
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg(operation)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| plain(&error))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A helper that does not read its input reports the error itself.
        let _ = pipe.write_all(input);
    }
    let output = child.wait_with_output().map_err(|error| plain(&error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(Some(text.into_owned()));
    }
    match text.trim() {
        NOT_FOUND => Ok(None),
        "" => Err(output.status.to_string()),
        // The output of a failed helper is an error text, not a secret.
        text => Err(text.to_owned()),
    }
}
