//! Docker's configuration file, `config.json`, of which only the current context, the credentials, the
//! formats of lists and the headers of requests concern this client. All other settings are kept as they are.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::context::read_json;
use crate::output::warn_line;
use crate::{Failure, Outcome, files, plain};

const CURRENT: &str = "currentContext";
const HEADERS: &str = "HttpHeaders";

/// Returns the current context (`context use`); `None` for the default. If the file cannot be used,
/// prints a warning and returns `None`.
pub(crate) fn current_context(config: &Path) -> Option<String> {
    let path = config.join("config.json");
    match read_json(&path) {
        Ok(file) => file[CURRENT]
            .as_str()
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        Err(reason) if reason.ends_with("no such file or directory") => None,
        Err(reason) => {
            warn_line!(
                "WARNING: Error loading config file: {}: {reason}",
                path.display()
            );
            None
        }
    }
}

/// Returns the default format of a list (`psFormat`). A file that cannot be used has none; which context is
/// the current one has been read from it before, with a warning.
pub(crate) fn format(config: &Path, key: &str) -> Option<String> {
    let file = read_json(&config.join("config.json")).ok()?;
    Some(file[key].as_str()?.to_owned())
}

/// Returns the headers that each request to an engine has (`HttpHeaders`), such as the token of a proxy.
pub(crate) fn http_headers(config: &Path) -> Vec<(String, String)> {
    let file = read_json(&config.join("config.json")).unwrap_or_default();
    let headers = file[HEADERS].as_object().into_iter().flatten();
    headers
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The proxies that a configuration has for an engine.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Proxy {
    http_proxy: Option<String>,
    https_proxy: Option<String>,
    no_proxy: Option<String>,
    ftp_proxy: Option<String>,
    all_proxy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Proxies {
    /// By hosts, such as `tcp://engine:2376`; `default` is for all others.
    proxies: BTreeMap<String, Proxy>,
}

/// Returns the variables of proxies that containers and builds of a host get (`proxies`).
pub(crate) fn proxies(config: &Path, host: &str) -> Vec<(String, String)> {
    let file = read_json(&config.join("config.json")).ok();
    let file = file.and_then(|file| serde_json::from_value(file).ok());
    let Proxies { mut proxies } = file.unwrap_or_default();
    let own = proxies.remove(host).or_else(|| proxies.remove("default"));
    let own = own.unwrap_or_default();
    let all = [
        ("HTTP_PROXY", own.http_proxy),
        ("HTTPS_PROXY", own.https_proxy),
        ("NO_PROXY", own.no_proxy),
        ("FTP_PROXY", own.ftp_proxy),
        ("ALL_PROXY", own.all_proxy),
    ];
    let set = all.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_empty())?;
        Some([name.to_owned(), name.to_lowercase()].map(|name| (name, value.clone())))
    });
    set.flatten().collect()
}

/// Sets the current context; `None` selects the default.
///
/// # Errors
/// Returns an error if the file cannot be read or written, or is not a JSON object.
pub(crate) fn set_current_context(config: &Path, name: Option<&str>) -> Outcome<()> {
    edit(config, files::replace, |settings| match name {
        Some(name) => settings.insert(CURRENT.to_owned(), name.into()) != Some(Value::from(name)),
        None => settings.shift_remove(CURRENT).is_some(),
    })
    .map(drop)
}

/// Changes the settings. As they may contain secrets, only the file's owner can read it afterwards.
/// `change` returns whether it has changed something; otherwise nothing is written. Returns the same.
///
/// # Errors
/// Returns an error if the file cannot be read or written, or is no JSON object: its other settings
/// would be lost.
pub(crate) fn change(
    config: &Path,
    change: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Outcome<bool> {
    edit(config, files::replace_secret, change)
}

fn edit(
    config: &Path,
    replace: fn(&Path, &[u8]) -> std::io::Result<()>,
    change: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Outcome<bool> {
    let path = config.join("config.json");
    let mut settings = match read_json(&path) {
        Ok(Value::Object(settings)) => settings,
        Ok(_) => {
            let text = format!("{}: the file is not a JSON object", path.display());
            return Err(Failure::new(text));
        }
        // Docker's CLI always writes this key.
        Err(reason) if reason.ends_with("no such file or directory") => {
            Map::from_iter([("auths".to_owned(), Value::Object(Map::new()))])
        }
        Err(reason) => return Err(Failure::new(reason)),
    };
    if !change(&mut settings) {
        return Ok(false);
    }
    let text = pretty(&settings)?;
    files::create_directories(config, 0o700)
        .and_then(|()| replace(&path, &text))
        .map_err(|error| Failure::new(format!("write {}: {}", path.display(), plain(&error))))?;
    Ok(true)
}

/// Formats the settings as Docker's CLI does, with tabs.
fn pretty(settings: &Map<String, Value>) -> Outcome<Vec<u8>> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(settings, &mut serializer)
        .map_err(|error| Failure::new(format!("encode the configuration: {error}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn other_settings_are_kept() {
        let scratch = Scratch::temporary("config").unwrap();
        let dir = scratch.path().join("docker");
        let file = || std::fs::read_to_string(dir.join("config.json")).unwrap();
        set_current_context(&dir, None).unwrap();
        assert!(!dir.exists());
        set_current_context(&dir, Some("one")).unwrap();
        assert_eq!(
            file(),
            "{\n\t\"auths\": {},\n\t\"currentContext\": \"one\"\n}"
        );
        std::fs::write(
            dir.join("config.json"),
            r#"{"credsStore": "x", "currentContext": "one", "auths": {"r": {"auth": "YQ=="}}}"#,
        )
        .unwrap();
        assert_eq!(current_context(&dir).as_deref(), Some("one"));
        set_current_context(&dir, None).unwrap();
        assert_eq!(current_context(&dir), None);
        assert_eq!(
            file(),
            "{\n\t\"credsStore\": \"x\",\n\t\"auths\": {\n\t\t\"r\": {\n\t\t\t\"auth\": \"YQ==\"\n\t\t}\n\t}\n}"
        );
        for (broken, cause) in [
            ("{", "EOF while parsing an object"),
            ("[]", "the file is not a JSON object"),
        ] {
            std::fs::write(dir.join("config.json"), broken).unwrap();
            let error = set_current_context(&dir, Some("two")).unwrap_err().text;
            let path = dir.join("config.json").display().to_string();
            assert!(error.contains(&path) && error.contains(cause), "{error}");
            assert_eq!(file(), broken);
        }
    }
}
