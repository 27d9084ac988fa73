//! Reads bake files and what is around the command.

use std::io::{self, Read as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use whelk_bake::{DEFAULT_FILES, Environment, File};
use whelk_image::Platform;

use super::entitlements::Allowed;
use crate::{Failure, Outcome, files, plain};

/// The maximum size of a file in bytes.
pub(super) const MAX_FILE: u64 = 4 << 20;

/// The file with variables for Compose's files.
const DOT_ENV: &str = ".env";

/// Where a file is in the directory of the command.
const CWD: &str = "cwd://";

/// Names of files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Those in the directory of the command.
    pub local: Vec<String>,
    /// Those on a server.
    pub remote: Vec<String>,
}

impl Names {
    /// Returns those of the flags or of the environment. `is_remote` tells whether there is a server: on it are those that do not
    /// begin with `cwd://`.
    pub fn new(given: &[String], is_remote: bool) -> Self {
        let mut names = Self::default();
        for name in given_names(given) {
            match name.strip_prefix(CWD) {
                Some(name) => names.local.push(name.to_owned()),
                None if is_remote => names.remote.push(name),
                None => names.local.push(name),
            }
        }
        names
    }
}

fn given_names(given: &[String]) -> Vec<String> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let Ok(list) = std::env::var("BUILDX_BAKE_FILE") else {
        return Vec::new();
    };
    let separator = std::env::var("BUILDX_BAKE_PATH_SEPARATOR").unwrap_or_default();
    let separator = if separator.is_empty() {
        ":"
    } else {
        &separator
    };
    let names = list.split(separator).map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Reads files, or those with the usual names that are there. Blocking.
pub(super) fn read(names: Vec<String>) -> Outcome<Vec<File>> {
    let is_default = names.is_empty();
    let names = match is_default {
        true => DEFAULT_FILES.map(str::to_owned).to_vec(),
        false => names,
    };
    let mut found = Vec::new();
    for name in names {
        let content = match name.as_str() {
            "-" => standard_input(),
            name => files::read_at_most(Path::new(name), MAX_FILE),
        };
        let content = match content {
            Err(error) if is_default && error.kind() == io::ErrorKind::NotFound => continue,
            content => {
                content.map_err(|error| Failure::new(format!("open {name}: {}", plain(&error))))?
            }
        };
        let content = text(&name, content).map_err(Failure::new)?;
        found.push(File { name, content });
    }
    Ok(found)
}

/// Reads a file that another one names. Returns `None` if there is none. Blocking.
///
/// # Errors
/// Returns a text for what cannot be read, or is outside of what the user allows.
pub(super) fn named(allowed: &Allowed, path: &str) -> Result<Option<String>, String> {
    let failed = |error: &io::Error| format!("open {path}: {}", plain(error));
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    // As beside the command.
    if found.is_dir() && Path::new(path).ends_with(DOT_ENV) {
        return Ok(None);
    }
    // A pipe or a device might never end.
    if !found.is_file() {
        return Err(format!("open {path}: not a regular file"));
    }
    if !allowed.reads(path).map_err(|failure| failure.text)? {
        return Err(format!(
            "open {path}: it is outside of the working directory; pass --allow=fs.read={path} to read it"
        ));
    }
    let content = files::read_at_most(Path::new(path), MAX_FILE).map_err(|error| failed(&error))?;
    text(path, content).map(Some)
}

/// Returns the text of a file.
///
/// # Errors
/// Returns a text with the line that is none.
pub(super) fn text(name: &str, content: Vec<u8>) -> Result<String, String> {
    String::from_utf8(content).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        format!("{name}:{line}: the file is not valid UTF-8")
    })
}

fn standard_input() -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    io::stdin().take(MAX_FILE + 1).read_to_end(&mut content)?;
    match content.len() as u64 > MAX_FILE {
        true => Err(io::Error::other(format!(
            "it has more than {MAX_FILE} bytes"
        ))),
        false => Ok(content),
    }
}

/// Returns what definitions may see. `context` is `BAKE_CMD_CONTEXT`.
pub(super) fn environment(context: &str) -> Outcome<Environment> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let builtin = [
        ("BAKE_CMD_CONTEXT", context.to_owned()),
        ("BAKE_LOCAL_PLATFORM", Platform::host().to_string()),
    ];
    let builtin = builtin.map(|(name, value)| (name.to_owned(), value));
    let dot_env = match files::read_at_most(Path::new(DOT_ENV), MAX_FILE) {
        Ok(content) => text(DOT_ENV, content).map_err(Failure::new)?,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::IsADirectory
            ) =>
        {
            String::new()
        }
        Err(error) => return Err(Failure::new(format!("open {DOT_ENV}: {}", plain(&error)))),
    };
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(io::Error::from)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(0));
    Ok(Environment {
        variables: variables.collect(),
        builtin: builtin.into(),
        dot_env,
        now,
        home: std::env::var("HOME").unwrap_or_default(),
        seed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_here_or_on_the_server() {
        let given = ["cwd://a.hcl", "b.hcl"].map(str::to_owned);
        let names = |is_remote: bool| {
            let names = Names::new(&given, is_remote);
            (names.local.join(" "), names.remote.join(" "))
        };
        assert_eq!(names(false), ("a.hcl b.hcl".into(), String::new()));
        assert_eq!(names(true), ("a.hcl".into(), "b.hcl".into()));
    }
}
