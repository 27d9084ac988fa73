//! What a container mounts besides its own files: binds and tmpfs, from `-v`, `--mount` and `--tmpfs`.

use crate::error::{Error, Result};
use crate::model::{Config, HostConfig};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path of the host. `create` makes a missing directory.
    Bind {
        path: String,
        create: bool,
    },
    Tmpfs,
}

/// One mount, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    pub source: Source,
    pub target: String,
    /// The option words of the OCI configuration.
    pub options: Vec<String>,
    pub read_only: bool,
    /// The mode as it was written, for `inspect`.
    pub mode: String,
    pub propagation: String,
}

/// All mounts a container asks for, parents before children.
///
/// # Errors
/// A specification that makes no sense, a target twice, and volumes, which this version does not have.
pub fn plan(_config: &Config, host: &HostConfig) -> Result<Vec<MountPlan>> {
    let mut plans = Vec::new();
    for bind in host.binds.iter().flatten() {
        plans.push(parse_bind(bind)?);
    }
    for mount in host.mounts.iter().flatten() {
        plans.push(parse_mount(mount)?);
    }
    for (target, options) in &host.tmpfs {
        plans.push(tmpfs(target, options)?);
    }
    for (index, plan) in plans.iter().enumerate() {
        if plans[..index].iter().any(|other| other.target == plan.target) {
            return Err(Error::invalid(format!("Duplicate mount point: {}", plan.target)));
        }
    }
    plans.sort_by_key(|plan| plan.target.matches('/').count());
    Ok(plans)
}

/// An absolute path without `.`, `..` and double slashes.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn check_target(target: &str) -> Result<String> {
    if !target.starts_with('/') {
        return Err(Error::invalid(format!("invalid mount path: '{target}' mount path must be absolute")));
    }
    match clean(target).as_str() {
        "/" => Err(Error::invalid("invalid specification: destination can't be '/'")),
        target => Ok(target.to_owned()),
    }
}

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// `SOURCE:TARGET[:MODE]`
fn parse_bind(spec: &str) -> Result<MountPlan> {
    let invalid =
        |error: Error| Error::invalid(format!("invalid volume specification: '{spec}': invalid mount config for type \"bind\": {error}"));
    let parts: Vec<&str> = spec.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(Error::invalid(format!("invalid volume specification: '{spec}'"))),
    };
    if !source.starts_with('/') {
        return Err(Error::Unsupported(format!(
            "volume {source}: volumes are not available in this version of whelk; give an absolute path of the host"
        )));
    }
    let target = check_target(target).map_err(invalid)?;
    let (mut read_only, mut propagation, mut recursive) = (None, None, true);
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        let fresh = match word {
            "ro" | "rw" => read_only.replace(word == "ro").is_none(),
            "nocopy" | "consistent" | "cached" | "delegated" => true,
            "z" | "Z" => {
                return Err(Error::Unsupported(format!(
                    "mount option {word}: SELinux relabelling is not available in this version of whelk"
                )));
            }
            "bind-nonrecursive" => {
                recursive = false;
                true
            }
            word if PROPAGATIONS.contains(&word) => propagation.replace(word).is_none(),
            _ => false,
        };
        if !fresh {
            return Err(Error::invalid(format!("invalid mode: {mode}")));
        }
    }
    Ok(bind(clean(source), target, read_only == Some(true), propagation.unwrap_or("rprivate"), recursive, true, true, mode))
}

#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools, reason = "the options of one mount, each named where it is given")]
fn bind(
    path: String,
    target: String,
    read_only: bool,
    propagation: &str,
    recursive: bool,
    recursive_read_only: bool,
    create: bool,
    mode: &str,
) -> MountPlan {
    let mut options = vec![if recursive { "rbind" } else { "bind" }.to_owned(), propagation.to_owned()];
    if read_only {
        options.push("ro".into());
        if recursive_read_only && recursive {
            options.push("rro".into());
        }
    }
    MountPlan {
        source: Source::Bind { path, create },
        target,
        options,
        read_only,
        mode: mode.to_owned(),
        propagation: propagation.to_owned(),
    }
}

fn parse_mount(mount: &crate::model::Mount) -> Result<MountPlan> {
    let fail = |text: &str| Err(Error::invalid(format!("invalid mount config for type {:?}: {text}", mount.kind)));
    if mount.target.is_empty() {
        return fail("field Target must not be empty");
    }
    let target = match check_target(&mount.target) {
        Ok(target) => target,
        Err(error) => return fail(&error.to_string()),
    };
    match mount.kind.as_str() {
        "bind" => {
            if mount.source.is_empty() {
                return fail("field Source must not be empty");
            }
            if !mount.source.starts_with('/') {
                return fail(&format!("invalid mount path: '{}' mount path must be absolute", mount.source));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            let propagation = if options.propagation.is_empty() { "rprivate" } else { &options.propagation };
            if !PROPAGATIONS.contains(&propagation) {
                return fail(&format!("invalid propagation mode: {propagation}"));
            }
            if !options.create_mountpoint && !whelk_sys::fs::exists(&mount.source) {
                return fail(&format!("bind source path does not exist: {}", mount.source));
            }
            Ok(bind(
                clean(&mount.source),
                target,
                mount.read_only,
                propagation,
                !options.non_recursive,
                !options.read_only_non_recursive,
                options.create_mountpoint,
                "",
            ))
        }
        "tmpfs" => {
            if !mount.source.is_empty() {
                return fail("field Source must not be specified");
            }
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            let mut words = Vec::new();
            if options.size_bytes > 0 {
                words.push(format!("size={}", options.size_bytes));
            }
            if options.mode != 0 {
                words.push(format!("mode={:o}", options.mode));
            }
            words.extend(options.options.iter().flatten().map(|pair| pair.join("=")));
            if mount.read_only {
                words.push("ro".into());
            }
            tmpfs(&target, &words.join(","))
        }
        "volume" | "image" | "cluster" | "npipe" => {
            Err(Error::Unsupported(format!("mount type {}: not available in this version of whelk", mount.kind)))
        }
        _ => fail("mount type unknown"),
    }
}

fn tmpfs(target: &str, options: &str) -> Result<MountPlan> {
    const FLAGS: [&str; 18] = [
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "ro",
        "rw",
        "sync",
        "async",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ];
    const KEYS: [&str; 9] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge", "noswap"];
    let target = check_target(target)?;
    let mut words: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
    for word in options.split(',').filter(|word| !word.is_empty()) {
        let key = word.split('=').next().unwrap_or(word);
        if !FLAGS.contains(&word) && !(KEYS.contains(&key)) && !PROPAGATIONS.contains(&word) {
            return Err(Error::invalid(format!("invalid tmpfs option {word:?}")));
        }
        words.push(word.to_owned());
    }
    let read_only = words.iter().rev().find(|word| *word == "ro" || *word == "rw").is_some_and(|word| word == "ro");
    Ok(MountPlan { source: Source::Tmpfs, target, options: words, read_only, mode: options.to_owned(), propagation: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bind: &str, expected: &str) {
        let outcome = parse_bind(bind).map(|plan| format!("{:?} {} {}", plan.source, plan.target, plan.options.join(",")));
        assert_eq!(outcome.unwrap_or_else(|error| error.to_string()), expected, "{bind}");
    }

    #[test]
    fn binds() {
        check("/a:/b", "Bind { path: \"/a\", create: true } /b rbind,rprivate");
        check("/a/../c:/b/./x:ro,rslave", "Bind { path: \"/c\", create: true } /b/x rbind,rslave,ro,rro");
        check("/a:/b:bogus", "invalid mode: bogus");
        check("/a:/b:ro,rw", "invalid mode: ro,rw");
        check(
            "/:/",
            "invalid volume specification: '/:/': invalid mount config for type \"bind\": invalid specification: destination can't be '/'",
        );
        check(
            "/a:b",
            "invalid volume specification: '/a:b': invalid mount config for type \"bind\": invalid mount path: 'b' mount path must be absolute",
        );
    }

    #[test]
    fn tmpfs_options() {
        assert_eq!(tmpfs("/x", "size=1m,exec").unwrap().options.join(","), "noexec,nosuid,nodev,size=1m,exec");
        assert_eq!(tmpfs("/x", "bogus").unwrap_err().to_string(), "invalid tmpfs option \"bogus\"");
        assert_eq!(tmpfs("rel", "").unwrap_err().to_string(), "invalid mount path: 'rel' mount path must be absolute");
    }
}
