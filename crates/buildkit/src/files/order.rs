//! The order of a sender's files: each after its directory, and by name in it.

use super::{Error, Result};

/// Limits of a path and of a name in bytes (`PATH_MAX`, `NAME_MAX`).
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// Maximum depth of directories.
const MAX_DEPTH: usize = 512;

/// The directories that lead to the last file.
#[derive(Debug)]
pub(super) struct Order(Vec<Directory>);

#[derive(Debug)]
struct Directory {
    path: String,
    /// The name of the last file in it.
    last: String,
}

impl Default for Order {
    fn default() -> Self {
        Self(vec![Directory {
            path: String::new(),
            last: String::new(),
        }])
    }
}

impl Order {
    /// Checks the path of the next file.
    ///
    /// # Errors
    /// Returns an error if it leads out, if its directory did not come before, and if it is not behind the last one.
    pub fn next(&mut self, path: &str, is_directory: bool) -> Result<()> {
        let refused = |reason: &str| Err(Error::refused(path, reason));
        if path.starts_with('/') {
            return refused("an absolute path");
        }
        if path.contains('\0') || path.len() > MAX_PATH {
            return refused("not a path");
        }
        for name in path.split('/') {
            match name {
                "" | "." => return refused("a path that is not in its shortest form"),
                ".." => return refused("a path that leads out of the directory"),
                name if name.len() > MAX_NAME => return refused("a name that is too long"),
                _ => {}
            }
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        while self.0.last().is_some_and(|last| last.path != parent) {
            self.0.pop();
        }
        let depth = self.0.len();
        let Some(directory) = self.0.last_mut() else {
            return refused("it is not in the order of paths, or its directory is missing");
        };
        if name.as_bytes() <= directory.last.as_bytes() {
            return refused("it is not in the order of paths");
        }
        name.clone_into(&mut directory.last);
        if is_directory {
            if depth > MAX_DEPTH {
                return refused("directories that are too deep");
            }
            self.0.push(Directory {
                path: path.to_owned(),
                last: String::new(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths of directories end with a slash.
    fn check(paths: &[&str]) -> Result<()> {
        let mut order = Order::default();
        for path in paths {
            let name = path.strip_suffix('/');
            order.next(name.unwrap_or(path), name.is_some())?;
        }
        Ok(())
    }

    #[test]
    fn slashes_are_lowest() {
        assert!(check(&["a/", "a/b/", "a/b/c", "a/b.c", "a.b", "b"]).is_ok());
        assert!(check(&[]).is_ok());
        let deep: Vec<String> = (1..=MAX_DEPTH + 1)
            .map(|depth| "d/".repeat(depth))
            .collect();
        let deep: Vec<&str> = deep.iter().map(String::as_str).collect();
        assert!(check(&deep[..MAX_DEPTH]).is_ok());
        assert!(check(&deep).is_err());
    }

    #[test]
    fn hostile_paths_are_refused() {
        for paths in [
            &["b", "a"][..],
            &["a", "a"],
            &["a/", "a/b", "b", "a/c"],
            &["a.b", "a/"],
            &["a", "a/b"],
            &["a/b"],
            &[".."],
            &["."],
            &[""],
            &["a/", "a/../b"],
            &["a/", "a//b"],
            &["/a"],
            &["a\0"],
            &["a/", "a/.."],
        ] {
            let found = check(paths);
            let last = paths.last().copied().unwrap_or_default();
            let last = last.strip_suffix('/').unwrap_or(last);
            assert!(
                matches!(&found, Err(Error::Refused { path, .. }) if path == last),
                "{paths:?}: {found:?}"
            );
        }
        assert!(check(&["a".repeat(256).as_str()]).is_err());
    }
}
