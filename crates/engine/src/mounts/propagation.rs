//! Chooses and checks the propagation of bind mounts (mount_namespaces(7)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::PlanContext;
use crate::error::{Error, Result};
use crate::model::mount::MountPlan;

pub(super) const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

/// Returns whether a bind mount of `source` contains the engine's directory or is a part of it.
pub(crate) fn touches_data_root(source: &str, data_root: &Path) -> bool {
    Path::new(source).starts_with(data_root) || data_root.starts_with(source)
}

/// Returns the propagation of a bind mount. If the engine's own mounts are below it, what the
/// engine unmounts must also be unmounted in the container: a private copy would keep it busy.
pub(super) fn propagation_of<'a>(
    source: &str,
    given: Option<&'a str>,
    context: PlanContext<'_>,
) -> Result<&'a str> {
    let data_root = context.data_root;
    let is_apart = !touches_data_root(source, data_root);
    match given {
        None if is_apart => Ok("rprivate"),
        None => Ok("rslave"),
        Some(given) if matches!(given, "rslave" | "rshared") || is_apart => Ok(given),
        Some(_) if !context.is_checked => Ok("rslave"),
        Some(given) => Err(Error::invalid(format!(
            "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when mount source is within the daemon \
             root, daemon root: {:?}, bind mount source: {source:?}, propagation: {given:?}",
            data_root.display().to_string()
        ))),
    }
}

/// Returns an error if the source's mount cannot propagate as planned: mounts propagate out of a
/// container only to a shared mount, and into it only from a shared or slave mount. `mountinfo` is
/// the host's mount table, `real` the source without symbolic links.
pub(crate) fn check_propagation(
    plan: &MountPlan,
    source: &str,
    real: &Path,
    data_root: &Path,
    mountinfo: &str,
) -> Result<()> {
    let wanted = match plan.propagation.as_str() {
        "shared" | "rshared" => "shared",
        "slave" | "rslave" if !touches_data_root(source, data_root) => "shared or slave",
        _ => return Ok(()),
    };
    let Some((mount_point, tags)) = mount_of(real, mountinfo) else {
        return Err(Error::internal(format!(
            "could not find source mount of {source}"
        )));
    };
    let fits = tags
        .iter()
        .any(|tag| tag.starts_with("shared:") || wanted != "shared" && tag.starts_with("master:"));
    if fits {
        return Ok(());
    }
    Err(Error::internal(format!(
        "path {source} is mounted on {} but it is not a {wanted} mount",
        mount_point.display()
    )))
}

/// Returns the mount point that a path is on, and its optional fields (proc_pid_mountinfo(5)).
fn mount_of<'a>(path: &Path, mountinfo: &'a str) -> Option<(PathBuf, Vec<&'a str>)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, _) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(4);
        let point = PathBuf::from(unescape(fields.next()?));
        path.starts_with(&point)
            .then(|| (point, fields.skip(1).collect()))
    });
    // Of several mounts at one path the last is on top.
    mounts.max_by_key(|(point, _): &(PathBuf, Vec<&str>)| point.components().count())
}

/// Returns the mount points that `mountinfo` lists, except the root.
pub(crate) fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(|point| unescape(point).into())
        .filter(|point: &PathBuf| point != Path::new("/"))
}

/// Decodes the kernel's octal escapes (`\040`) of white space and backslashes.
fn unescape(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::binds::parse_bind;
    use super::super::context;
    use super::*;

    #[test]
    fn rejects_sources_that_cannot_propagate() {
        let table = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n\
                     30 22 0:5 / /mnt/with\\040space rw master:7 propagate_from:2 - tmpfs t rw\n\
                     31 22 0:6 / /mnt/own rw - tmpfs t rw\n\
                     32 31 0:7 / /mnt/own rw shared:9 - tmpfs over rw\n\
                     33 22 0:8 / /mnt/alone rw - tmpfs t rw\n";
        let outcome = |path: &str, mode: &str| {
            let plan = parse_bind(&format!("{path}:/b:{mode}"), "", context()).unwrap();
            check_propagation(&plan, path, Path::new(path), Path::new("/data/root"), table)
                .map_or_else(|error| error.to_string(), |()| String::new())
        };
        for (path, mode) in [
            ("/srv", "shared"),
            ("/mnt/with space/x", "slave"),
            ("/mnt/own", "rshared"),
            ("/mnt/alone", "private"),
        ] {
            assert_eq!(outcome(path, mode), "", "{path} {mode}");
        }
        assert_eq!(
            outcome("/mnt/with space/x", "shared"),
            "path /mnt/with space/x is mounted on /mnt/with space but it is not a shared mount"
        );
        assert_eq!(
            outcome("/mnt/alone/x", "rslave"),
            "path /mnt/alone/x is mounted on /mnt/alone but it is not a shared or slave mount"
        );
    }
}
