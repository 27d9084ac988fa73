//! Paths of this machine, and where a copy goes, by the rules of Docker's client.
//!
//! The end of a path decides between a directory and its content: `DIR` is the directory, `DIR/.` its content, and `PATH/`
//! demands a directory.

use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use whelk_image::snapshots::Copied;

use crate::{Failure, Outcome, plain};

/// A file or directory at one end of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub path: String,
    pub exists: bool,
    pub is_directory: bool,
    /// The name that was asked for, if a link led to another one; else empty.
    pub rebased: String,
}

/// Returns an absolute path with the `/` or `/.` at the end of `path`.
pub(super) fn absolute(path: &str) -> Outcome<String> {
    if path.starts_with('/') {
        return Ok(preserve(clean(path), path));
    }
    let directory = std::env::current_dir()?;
    let directory = directory
        .to_str()
        .ok_or_else(|| Failure::new("the working directory's path is not valid UTF-8"))?;
    Ok(preserve(clean(&format!("{directory}/{path}")), path))
}

/// Returns a path without `.`, `..` and repeated slashes, as Go's `filepath.Clean`.
fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => drop(names.pop()),
            ".." if is_absolute => {}
            name => names.push(name),
        }
    }
    match (is_absolute, names.join("/")) {
        (true, names) => format!("/{names}"),
        (false, names) if names.is_empty() => ".".into(),
        (false, names) => names,
    }
}

fn preserve(mut cleaned: String, original: &str) -> String {
    if base(&cleaned) != "." && base(original) == "." {
        if !cleaned.ends_with('/') {
            cleaned.push('/');
        }
        cleaned.push('.');
    }
    if !cleaned.ends_with('/') && original.ends_with('/') {
        cleaned.push('/');
    }
    cleaned
}

/// Returns the last component of a path, as Go's `filepath.Base`.
fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return "/";
    }
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns the directory of a path, as Go's `filepath.Dir`.
fn parent(path: &str) -> String {
    clean(&path[..path.rfind('/').map_or(0, |at| at + 1)])
}

/// Splits a path into its directory and its last component, which is `.` if it was before.
fn split_entry(path: &str) -> (String, String) {
    let mut cleaned = clean(path);
    if base(path) == "." {
        cleaned.push_str("/.");
    }
    (parent(&cleaned), base(&cleaned).to_owned())
}

fn demands_directory(path: &str) -> bool {
    path.ends_with('/') || base(path) == "."
}

/// Returns the target of a link with the ending of its path, and the link's name if that differs.
pub(super) fn rebased(path: &str, target: &str) -> (String, String) {
    let mut target = target.to_owned();
    if base(path) == "." && base(&target) != "." {
        target.push_str("/.");
    }
    if path.ends_with('/') && !target.ends_with('/') {
        target.push('/');
    }
    let name = if base(path) == base(&target) {
        String::new()
    } else {
        base(path).to_owned()
    };
    (target, name)
}

fn failed(operation: &str, path: &str, error: &std::io::Error) -> Failure {
    Failure::new(format!("{operation} {path}: {}", plain(error)))
}

fn lstat(path: &str) -> Outcome<Metadata> {
    std::fs::symlink_metadata(path).map_err(|error| failed("lstat", path, &error))
}

/// Resolves all links of a path. A file that is used as a directory is an error without its path.
fn evaluated(path: &str) -> Outcome<String> {
    let resolved = std::fs::canonicalize(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotADirectory => Failure::new(plain(&error)),
        _ => failed("lstat", &missing(path), &error),
    })?;
    resolved
        .into_os_string()
        .into_string()
        .map_err(|path| Failure::new(format!("the path {} is not valid UTF-8", path.display())))
}

/// Returns the first path that does not exist on the way to `path`.
fn missing(path: &str) -> String {
    let mut at = clean(path);
    if let Ok(target) = std::fs::read_link(&at)
        && let Some(target) = target.to_str()
    {
        at = if target.starts_with('/') {
            clean(target)
        } else {
            clean(&format!("{}/{target}", parent(&at)))
        };
    }
    while at.len() > 1 && std::fs::symlink_metadata(parent(&at)).is_err() {
        at = parent(&at);
    }
    at
}

/// Returns what is to be copied. A link at the end of the path is followed if `follow`.
pub(super) fn source(path: &str, follow: bool) -> Outcome<Found> {
    let (resolved, name) = if follow {
        rebased(path, &evaluated(path)?)
    } else {
        let end = path.rfind('/').map_or(0, |at| at + 1);
        let directory = evaluated(&path[..end])?;
        let resolved = format!("{}/{}", directory.trim_end_matches('/'), &path[end..]);
        let name = if path.ends_with('/') && base(path) != base(&resolved) {
            base(path).to_owned()
        } else {
            String::new()
        };
        (resolved, name)
    };
    let found = lstat(&resolved)?;
    Ok(Found {
        path: resolved,
        exists: true,
        is_directory: found.is_dir(),
        rebased: name,
    })
}

/// Opens what is to be copied. Returns its name in the archive, too.
pub(super) fn open(found: &Found) -> Outcome<(Copied, String)> {
    let (directory, name) = split_entry(&found.path);
    let open = |path: &str| {
        std::fs::File::open(path)
            .map(Into::into)
            .map_err(|error| failed("open", path, &error))
    };
    let copied = if found.is_directory {
        Copied::Directory(open(&found.path)?)
    } else {
        Copied::Entry {
            parent: open(&directory)?,
            name: name.clone().into(),
        }
    };
    let top = Some(found.rebased.clone()).filter(|name| !name.is_empty());
    Ok((copied, top.unwrap_or(name)))
}

/// Returns what a copy to this machine replaces, or where it is created. Links are followed.
pub(super) fn destination(path: &str) -> Outcome<Found> {
    const MAX_LINKS: usize = 10;
    let mut at = path.to_owned();
    let mut links = 0;
    loop {
        let found = match std::fs::symlink_metadata(&at) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            Err(error) => return Err(failed("lstat", &at, &error)),
        };
        if !found.is_symlink() {
            return Ok(Found {
                path: at,
                exists: true,
                is_directory: found.is_dir(),
                ..Found::default()
            });
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Failure::new(format!("too many symlinks in {path}")));
        }
        let target = std::fs::read_link(&at).map_err(|error| failed("readlink", &at, &error))?;
        let target = target
            .into_os_string()
            .into_string()
            .map_err(|_| Failure::new(format!("the target of {at} is not valid UTF-8")))?;
        at = if target.starts_with('/') {
            target
        } else {
            clean(&format!("{}/{target}", split_entry(&at).0))
        };
    }
    let (directory, _) = split_entry(&at);
    let parent =
        std::fs::metadata(&directory).map_err(|error| failed("stat", &directory, &error))?;
    if !parent.is_dir() {
        return Err(Failure::new("not a directory"));
    }
    Ok(Found {
        path: at,
        ..Found::default()
    })
}

/// Returns the directory that the archive of `source` is to be unpacked into, and how its first component
/// is to be renamed.
pub(super) fn prepare(
    source: &Found,
    destination: &Found,
) -> Outcome<(String, Option<(String, String)>)> {
    let (directory, name) = split_entry(&destination.path);
    let source_name = split_entry(&source.path).1;
    // The archive of the root has names that begin with a slash.
    let old = source_name.trim_end_matches('/').to_owned();
    if destination.exists && destination.is_directory {
        let renamed = (!source.rebased.is_empty()).then(|| (old, source.rebased.clone()));
        return Ok((destination.path.clone(), renamed));
    }
    if destination.exists && source.is_directory {
        return Err(Failure::new("cannot copy directory"));
    }
    if !destination.exists && !source.is_directory && demands_directory(&destination.path) {
        return Err(Failure::new("no such directory"));
    }
    Ok((directory, Some((old, name))))
}

/// Checks that the directory of a path exists, and that it is no device.
pub(super) fn check_output(path: &str) -> Outcome<()> {
    let directory = parent(&clean(path));
    if !Path::new(&directory).exists() {
        return Err(Failure::new(format!(
            "invalid output path: directory {directory:?} does not exist"
        )));
    }
    let Ok(found) = std::fs::metadata(path) else {
        return Ok(());
    };
    let kind = found.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        return Err(Failure::new(format!(
            "invalid output path: {path:?} must be a directory or a regular file: got a device"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, expected) in [
            ("/a/../b/./c//d", "/a/../b/./c//d"),
            ("/..", "/"),
            ("/a/", "/a/"),
            ("/a/.", "/a/."),
            ("/.", "/."),
        ] {
            let expected = preserve(clean(expected), expected);
            assert_eq!(absolute(path).unwrap(), expected, "{path}");
        }
        assert_eq!(split_entry("/a/b/."), ("/a/b".into(), ".".into()));
        assert_eq!(split_entry("/a/b/"), ("/a".into(), "b".into()));
        assert_eq!(split_entry("/"), ("/".into(), "/".into()));
        assert_eq!(split_entry("x"), (".".into(), "x".into()));
    }

    #[test]
    fn the_destination_decides_names() {
        let source = |path: &str, is_directory: bool| Found {
            path: path.into(),
            exists: true,
            is_directory,
            ..Found::default()
        };
        let missing = |path: &str| Found {
            path: path.into(),
            ..Found::default()
        };
        let check = |source: &Found, destination: &Found, expected: &str| {
            let text = match prepare(source, destination) {
                Ok((directory, renamed)) => {
                    let (old, new) = renamed.unwrap_or_default();
                    format!("{directory} {old}>{new}")
                }
                Err(failure) => failure.text,
            };
            assert_eq!(text, expected, "{source:?} {destination:?}");
        };
        let (file, directory) = (source("/s/file", false), source("/s/dir", true));
        check(&file, &source("/t/dir", true), "/t/dir >");
        check(&file, &source("/t/old", false), "/t file>old");
        check(&file, &missing("/t/new"), "/t file>new");
        check(&file, &missing("/t/new/"), "no such directory");
        check(
            &directory,
            &source("/t/old", false),
            "cannot copy directory",
        );
        check(&directory, &missing("/t/new/"), "/t dir>new");
        check(&source("/s/dir/.", true), &missing("/t/new"), "/t .>new");
        check(&source("/", true), &missing("/t/new"), "/t >new");
    }
}
