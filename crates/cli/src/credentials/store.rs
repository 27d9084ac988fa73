//! Stores the credentials of a login: in a credential helper if one is configured, else in `config.json`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use whelk_api_types::AuthConfig;

use super::{ConfigFile, helper};
use crate::output::warn_line;
use crate::{Outcome, config_file};

const AUTHS: &str = "auths";

/// Stores credentials for `auth.serveraddress`. Prints a warning if a password is written to the file.
///
/// # Errors
/// Returns an error if the helper refuses them, or if the file cannot be written.
pub(crate) fn store(config: &Path, auth: &AuthConfig) -> Outcome<()> {
    let path = config.join("config.json");
    let file = ConfigFile::read(&path)?;
    if let Some(helper) = file.helper(&auth.serveraddress) {
        helper::store(helper, auth)?;
        // The entry lists the registry for which the helper has credentials.
        return config_file::change(config, |settings| {
            set(
                settings,
                &auth.serveraddress,
                [("auth", ""), ("identitytoken", "")],
            )
        })
        .map(drop);
    }
    let user = if auth.username.is_empty() && auth.password.is_empty() {
        String::new()
    } else {
        STANDARD.encode(format!("{}:{}", auth.username, auth.password))
    };
    let changed = config_file::change(config, |settings| {
        let values = [
            ("auth", user.as_str()),
            ("identitytoken", auth.identitytoken.as_str()),
        ];
        set(settings, &auth.serveraddress, values)
    })?;
    if changed && !auth.password.is_empty() {
        warn_line!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/\n",
            path.display()
        );
    }
    Ok(())
}

/// Removes the credentials for a registry, which need not exist.
///
/// # Errors
/// Returns an error if the helper fails, or if the file cannot be written.
pub(crate) fn erase(config: &Path, registry: &str) -> Outcome<()> {
    let file = ConfigFile::read(&config.join("config.json"))?;
    if let Some(helper) = file.helper(registry) {
        helper::erase(helper, registry)?;
    }
    config_file::change(config, |settings| {
        let auths = settings.get_mut(AUTHS).and_then(Value::as_object_mut);
        auths.is_some_and(|auths| auths.shift_remove(registry).is_some())
    })
    .map(drop)
}

/// Sets fields of a registry's entry; those with an empty value are removed. Returns whether something
/// has changed.
fn set<const N: usize>(
    settings: &mut Map<String, Value>,
    registry: &str,
    values: [(&str, &str); N],
) -> bool {
    let mut auths = object(settings.get(AUTHS));
    let mut entry = object(auths.get(registry));
    for (name, value) in values {
        if value.is_empty() {
            entry.shift_remove(name);
        } else {
            entry.insert(name.to_owned(), value.into());
        }
    }
    let entry = Value::Object(entry);
    let is_changed = auths.get(registry) != Some(&entry);
    auths.insert(registry.to_owned(), entry);
    settings.insert(AUTHS.to_owned(), Value::Object(auths));
    is_changed
}

fn object(value: Option<&Value>) -> Map<String, Value> {
    value
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use whelk_sys::Scratch;

    use super::*;
    use crate::credentials::find;

    fn login(server: &str, password: &str, token: &str) -> AuthConfig {
        AuthConfig {
            username: "u".into(),
            password: password.into(),
            serveraddress: server.into(),
            identitytoken: token.into(),
            ..AuthConfig::default()
        }
    }

    #[test]
    fn a_login_keeps_everything_else_and_is_found_and_erased() {
        let scratch = Scratch::temporary("logins").unwrap();
        let dir = scratch.path();
        let path = dir.join("config.json");
        let file = || std::fs::read_to_string(&path).unwrap();
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        store(dir, &login("r:1", "p:q", "")).unwrap();
        assert_eq!(mode(), 0o600);
        let found = find(dir, "r:1").unwrap();
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("u", "p:q")
        );
        let text = r#"{"x": [1], "auths": {"r:1": {"auth": "dTpwOnE=", "email": "e"}, "z": {"auth": "YTpi"}}, "currentContext": "c"}"#;
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        // Unchanged settings are not written.
        store(dir, &login("r:1", "p:q", "")).unwrap();
        assert_eq!((file().as_str(), mode()), (text, 0o644));
        store(dir, &login("r:1", "", "token")).unwrap();
        let found = find(dir, "r:1").unwrap();
        assert_eq!(
            (found.password.as_str(), found.identitytoken.as_str()),
            ("", "token")
        );
        assert_eq!(mode(), 0o600, "the file has secrets now");
        let expected = "{\n\t\"x\": [\n\t\t1\n\t],\n\t\"auths\": {\n\t\t\"r:1\": {\n\t\t\t\"auth\": \"dTo=\",\n\t\t\t\"email\": \"e\",\n\t\t\t\"identitytoken\": \"token\"\n\t\t},\n\t\t\"z\": {\n\t\t\t\"auth\": \"YTpi\"\n\t\t}\n\t},\n\t\"currentContext\": \"c\"\n}";
        assert_eq!(file(), expected);
        erase(dir, "r:1").unwrap();
        erase(dir, "nosuch").unwrap();
        assert!(!file().contains("r:1") && file().contains("YTpi"));
        std::fs::write(&path, "[").unwrap();
        let error = store(dir, &login("r:1", "p", "")).unwrap_err();
        assert!(
            error.text.contains("config.json: EOF while parsing a list"),
            "{}",
            error.text
        );
        assert_eq!(file(), "[");
    }
}
