//! The OCI runtimes that containers can be run with.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use whelk_shim::protocol::OciRuntime;
use whelk_sys::fs;

use crate::error::{Error, Result};

/// The name of the engine's own runtime, which Docker's clients expect.
pub(crate) const OWN: &str = "runc";

/// Other names of the engine's own runtime.
const ALIASES: [&str; 2] = ["io.containerd.runc.v2", "whelk"];

/// The configured runtimes besides the engine's own one.
#[derive(Clone, Debug)]
pub struct Runtimes {
    pub others: BTreeMap<String, OciRuntime>,
    /// The name of the runtime of containers that do not choose one.
    pub default: String,
}

impl Default for Runtimes {
    fn default() -> Self {
        Self {
            others: BTreeMap::new(),
            default: OWN.into(),
        }
    }
}

impl Runtimes {
    /// Adds a runtime.
    ///
    /// # Errors
    /// Returns an error if the name is invalid or that of the engine's own runtime, or if the path is
    /// empty or relative.
    pub fn add(&mut self, name: &str, runtime: OciRuntime) -> Result<()> {
        let refused = |text: String| Err(Error::invalid(text));
        if name == OWN || ALIASES.contains(&name) {
            return refused(format!("runtime name '{name}' is reserved"));
        }
        if name.is_empty() || name.contains(|letter: char| letter.is_control() || letter == '/') {
            return refused(format!("invalid runtime name {name:?}"));
        }
        if runtime.path.as_os_str().is_empty() {
            return refused(format!("runtime {name}: no path"));
        }
        if !runtime.path.is_absolute() && runtime.path.components().count() != 1 {
            let path = runtime.path.display();
            return refused(format!(
                "runtime {name}: path {path}: want an absolute path or the name of a program"
            ));
        }
        self.others.insert(name.to_owned(), runtime);
        Ok(())
    }

    /// Checks that the default exists.
    ///
    /// # Errors
    /// Returns an error if it does not.
    pub fn check(&self) -> Result<()> {
        match self.resolve(&self.default) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::invalid(format!(
                "specified default runtime '{}' does not exist",
                self.default
            ))),
        }
    }

    /// Returns the name of the runtime that a client asks for; empty for the default.
    pub(crate) fn resolve(&self, name: &str) -> Result<String> {
        let name = match name {
            "" => self.default.as_str(),
            name => name,
        };
        if name == OWN || ALIASES.contains(&name) {
            return Ok(OWN.into());
        }
        match self.others.contains_key(name) {
            true => Ok(name.to_owned()),
            false => Err(unknown(name)),
        }
    }

    /// Returns the runtime with this name, as a shim needs it: with the path of its program and the
    /// engine's environment. `None` for the engine's own one.
    ///
    /// # Errors
    /// Returns an error if it is not configured, or if its program is in no directory of `PATH`.
    pub(crate) fn find(&self, name: &str) -> Result<Option<OciRuntime>> {
        if name == OWN || name.is_empty() {
            return Ok(None);
        }
        let mut runtime = self
            .others
            .get(name)
            .cloned()
            .ok_or_else(|| unknown(name))?;
        if !runtime.path.is_absolute() {
            let program = runtime.path.to_string_lossy().into_owned();
            runtime.path = find_program(&program).ok_or_else(|| {
                Error::invalid(format!(
                    "runtime {name}: exec: {program:?}: executable file not found in $PATH"
                ))
            })?;
        }
        let variables = std::env::vars_os();
        runtime.env = variables
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| !is_own(name))
            .collect();
        Ok(Some(runtime))
    }
}

/// Writes the other runtimes as the event `reload` has them.
impl fmt::Display for Runtimes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = self.others.iter();
        let others: Vec<String> = others
            .map(|(name, runtime)| format!("{name}:{}", runtime.path.display()))
            .collect();
        formatter.write_str(&others.join(", "))
    }
}

/// Returns whether a variable is meant for the engine alone.
fn is_own(variable: &str) -> bool {
    variable == "NOTIFY_SOCKET" || variable.starts_with("LISTEN_") || variable.starts_with("WHELK_")
}

/// Searches for a program in the directories of the engine's `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        // It may be a symbolic link.
        fs::canonicalize(path)
            .and_then(fs::metadata)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

fn unknown(name: &str) -> Error {
    Error::invalid(format!("unknown or invalid runtime name: {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_docker_or_configured() {
        let mut runtimes = Runtimes::default();
        let runtime = OciRuntime {
            path: "/bin/x".into(),
            ..OciRuntime::default()
        };
        runtimes.add("other", runtime.clone()).unwrap();
        for (name, found) in [
            ("", "runc"),
            ("whelk", "runc"),
            ("io.containerd.runc.v2", "runc"),
            ("other", "other"),
        ] {
            assert_eq!(runtimes.resolve(name).unwrap(), found);
        }
        let found = runtimes.find("other").unwrap().unwrap();
        assert_eq!(found.path, runtime.path);
        assert!(found.env.iter().any(|(name, _)| name == "PATH"));
        let relative = |path: &str| OciRuntime {
            path: path.into(),
            ..OciRuntime::default()
        };
        runtimes.add("named", relative("sh")).unwrap();
        let found = runtimes.find("named").unwrap().unwrap();
        assert!(found.path.is_absolute() && found.path.ends_with("sh"));
        runtimes
            .add("missing", relative("no-such-program"))
            .unwrap();
        assert_eq!(
            runtimes.find("missing").unwrap_err().to_string(),
            "runtime missing: exec: \"no-such-program\": executable file not found in $PATH"
        );
        assert!(runtimes.add("relative", relative("a/b")).is_err());
        assert_eq!(
            runtimes.find("gone").unwrap_err().to_string(),
            "unknown or invalid runtime name: gone"
        );
        assert_eq!(
            runtimes
                .add("runc", runtime.clone())
                .unwrap_err()
                .to_string(),
            "runtime name 'runc' is reserved"
        );
        assert!(runtimes.add("a/b", runtime).is_err());
        assert!(runtimes.add("empty", OciRuntime::default()).is_err());
        runtimes.default = "gone".into();
        assert_eq!(
            runtimes.check().unwrap_err().to_string(),
            "specified default runtime 'gone' does not exist"
        );
    }
}
