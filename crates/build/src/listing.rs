//! The files that a step selects of a directory, each in a few words, to tell later which of them have changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use whelk_llb::key::Selector;

use crate::error::{Result, os};
use crate::select;
use crate::tree::{self, Filter, MAX_DEPTH, Verdict};

/// Number of files that are kept.
const MAX: usize = 2000;

/// Paths, and what is known of the files without reading them; nothing if they are too many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Listed(pub Option<BTreeMap<String, String>>);

impl Default for Listed {
    fn default() -> Self {
        Self(Some(BTreeMap::new()))
    }
}

impl Listed {
    fn add(&mut self, path: &str, stat: &Stat) {
        let Some(files) = &mut self.0 else { return };
        if files.len() == MAX {
            self.0 = None;
            return;
        }
        let mut text = format!("{:o} {} {}", stat.st_mode, stat.st_uid, stat.st_gid);
        // The time of a directory changes with what is in it.
        if !tree::is_directory(stat) {
            let (seconds, rest) = (stat.st_mtime, stat.st_mtime_nsec);
            text += &format!(" {} {seconds}.{rest}", stat.st_size);
        }
        files.insert(path.trim_start_matches('/').to_owned(), text);
    }
}

/// Lists what selectors select. Blocking.
///
/// # Errors
/// Returns an error if it cannot be read, or is not there.
pub(crate) fn list(root: &OwnedFd, selectors: &[Selector]) -> Result<Listed> {
    let mut listed = Listed::default();
    for selector in selectors {
        let filter = Filter::new(&selector.include, &selector.exclude)?;
        for selected in select::find(root, selector)? {
            listed.add(&selected.path, &selected.stat);
            if tree::is_directory(&selected.stat) {
                let failed = || os(format!("list {}", selected.path));
                let directory = tree::open_below(&selected.handle, OsStr::new("."));
                let directory = directory.map_err(failed())?;
                let mut walk = Walk {
                    top: &selected.path,
                    filter: &filter,
                    listed: &mut listed,
                };
                let walked = walk.directory(&directory, "", &Verdict::default(), 0);
                walked.map_err(failed())?;
            }
        }
    }
    Ok(listed)
}

struct Walk<'a> {
    top: &'a str,
    filter: &'a Filter,
    listed: &'a mut Listed,
}

impl Walk<'_> {
    fn directory(
        &mut self,
        directory: &OwnedFd,
        path: &str,
        verdict: &Verdict,
        depth: usize,
    ) -> rustix::io::Result<()> {
        if depth > MAX_DEPTH || self.listed.0.is_none() {
            return Ok(());
        }
        for name in tree::names(directory)? {
            let below = tree::join(path, &name);
            let (is_taken, may_have, inner) = self.filter.takes(&below, verdict);
            let Some(stat) = tree::stat(directory, &name)? else {
                continue;
            };
            if is_taken {
                let path = format!("{}/{below}", self.top.trim_end_matches('/'));
                self.listed.add(&path, &stat);
            }
            if tree::is_directory(&stat) && (is_taken || may_have) {
                let opened = tree::open_below(directory, &name)?;
                self.directory(&opened, &below, &inner, depth + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_sys::{Scratch, fs};

    use super::*;

    #[test]
    fn what_is_selected_is_listed() {
        let scratch = Scratch::temporary("listing").unwrap();
        for path in ["d/one", "d/e/two", "d/x.log", "other"] {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap(), 0o755).unwrap();
            fs::write(path, "x").unwrap();
        }
        let root = fs::open(scratch.path()).unwrap().into();
        let selector = Selector {
            path: "d".into(),
            exclude: vec!["*.log".into()],
            ..Selector::default()
        };
        let listed = || {
            list(&root, std::slice::from_ref(&selector))
                .unwrap()
                .0
                .unwrap()
        };
        let first = listed();
        let paths: Vec<&str> = first.keys().map(String::as_str).collect();
        assert_eq!(paths, ["d", "d/e", "d/e/two", "d/one"]);
        fs::write(scratch.path().join("d/e/two"), "longer").unwrap();
        let second = listed();
        let changed: Vec<&String> = first
            .keys()
            .filter(|path| first[*path] != second[*path])
            .collect();
        assert_eq!(changed, ["d/e/two"]);
        for number in 0..MAX {
            fs::write(scratch.path().join(format!("d/{number}")), "").unwrap();
        }
        assert_eq!(list(&root, &[selector]).unwrap(), Listed(None));
    }
}
