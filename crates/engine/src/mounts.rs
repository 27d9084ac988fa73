//! Plans a container's mounts: bind mounts, volumes, images and tmpfs, from `-v`, `--mount` and
//! `--tmpfs`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use whelk_runtime::spec::IdMapping;

use crate::error::{Error, Result};
pub(crate) use crate::model::mount::{ImageUse, MountPlan, Source, VolumeUse};
use crate::model::volume::{CreateVolume, VolumeDriverName};
use crate::model::{HostConfig, MountKind};

impl MountPlan {
    /// Plans an anonymous volume, as `-v /path` and an image's `VOLUME` request it.
    pub fn anonymous(target: &str, driver: &str) -> Result<Self> {
        let make = CreateVolume {
            driver: VolumeDriverName::given(driver),
            ..CreateVolume::default()
        };
        Ok(volume(
            VolumeUse {
                copy: true,
                make,
                ..VolumeUse::default()
            },
            check_target(target)?,
            false,
            "",
        ))
    }
}

/// What mounts are planned for.
#[derive(Clone, Copy)]
struct PlanContext<'a> {
    /// The engine's own directory.
    data_root: &'a Path,
    /// Whether a mount that cannot be made on this host is an error.
    is_checked: bool,
}

/// Returns all mounts of the settings in a request. `data_root` is the engine's own directory.
///
/// # Errors
/// Returns an error if a specification is invalid, if a target is used twice, or if a mount cannot
/// be made on this host.
pub fn plan(host: &HostConfig, data_root: &Path) -> Result<Vec<MountPlan>> {
    let is_checked = true;
    plan_in(
        host,
        PlanContext {
            data_root,
            is_checked,
        },
    )
}

/// Like [`plan`], for settings that an earlier engine has accepted: what is missing on the host now
/// may be there at the container's next start, which reports it otherwise.
pub(crate) fn plan_recorded(host: &HostConfig, data_root: &Path) -> Result<Vec<MountPlan>> {
    let is_checked = false;
    plan_in(
        host,
        PlanContext {
            data_root,
            is_checked,
        },
    )
}

fn plan_in(host: &HostConfig, context: PlanContext<'_>) -> Result<Vec<MountPlan>> {
    let mut plans = Vec::new();
    for bind in host.binds.iter().flatten() {
        plans.push(parse_bind(bind, &host.volume_driver, context)?);
    }
    for mount in host.mounts.iter().flatten() {
        plans.push(parse_mount(mount, context)?);
    }
    for (target, options) in &host.tmpfs {
        plans.push(tmpfs(target, options)?);
    }
    let mut targets = HashSet::new();
    if let Some(twice) = plans
        .iter()
        .find(|plan| !targets.insert(plan.target.as_str()))
    {
        return Err(Error::invalid(format!(
            "Duplicate mount point: {}",
            twice.target
        )));
    }
    Ok(plans)
}

/// Sorts mounts so that parents come before their children.
pub fn sort(plans: &mut [MountPlan]) {
    plans.sort_by_key(|plan| depth(&plan.target));
}

/// Returns the number of components of a clean absolute path.
pub(crate) fn depth(target: &str) -> usize {
    target.matches('/').count()
}

/// Parses a `--volumes-from` value: a container's name and, if given, whether the mounts are
/// read-only.
pub fn parse_volumes_from(text: &str) -> Result<(&str, Option<bool>)> {
    let Some((name, mode)) = text.split_once(':') else {
        return Ok((text, None));
    };
    let mut read_only = None;
    for word in mode.split(',') {
        match word {
            "ro" | "rw" if read_only.is_none() => read_only = Some(word == "ro"),
            "z" | "Z" => check_relabel(word)?,
            _ => return Err(Error::invalid(format!("invalid mode: {mode}"))),
        }
    }
    Ok((name, read_only))
}

/// The options `z` and `Z` relabel files for SELinux. They have no effect where SELinux is not
/// enabled, and are rejected where it is.
fn check_relabel(word: &str) -> Result<()> {
    if whelk_sys::fs::exists(crate::security::SELINUX) {
        return Err(Error::Unsupported(format!(
            "mount option {word}: SELinux relabelling is not available in this version of whelk"
        )));
    }
    Ok(())
}

/// Returns an absolute path without `.`, `..` and duplicate slashes.
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
        return Err(Error::invalid(format!(
            "invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    match clean(target).as_str() {
        "/" => Err(Error::invalid(
            "invalid specification: destination can't be '/'",
        )),
        target => Ok(target.to_owned()),
    }
}

const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

/// Returns whether a bind mount of `source` contains the engine's directory or is a part of it.
pub(crate) fn touches_data_root(source: &str, data_root: &Path) -> bool {
    Path::new(source).starts_with(data_root) || data_root.starts_with(source)
}

/// Returns the propagation of a bind mount. If the engine's own mounts are below it, what the
/// engine unmounts must also be unmounted in the container: a private copy would keep it busy.
fn propagation_of<'a>(
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

/// The parsed third part of `SOURCE:TARGET:MODE`.
struct BindMode<'a> {
    read_only: Option<bool>,
    propagation: Option<&'a str>,
    recursive: bool,
    /// Whether the image's content is copied into an empty volume.
    copy: Option<bool>,
}

fn parse_mode(mode: &str, is_checked: bool) -> Result<BindMode<'_>> {
    let mut parsed = BindMode {
        read_only: None,
        propagation: None,
        recursive: true,
        copy: None,
    };
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        let is_first = match word {
            "ro" | "rw" => parsed.read_only.replace(word == "ro").is_none(),
            "nocopy" => parsed.copy.replace(false).is_none(),
            "consistent" | "cached" | "delegated" => true,
            "z" | "Z" => {
                if is_checked {
                    check_relabel(word)?;
                }
                true
            }
            "bind-nonrecursive" => {
                parsed.recursive = false;
                true
            }
            word if PROPAGATIONS.contains(&word) => parsed.propagation.replace(word).is_none(),
            _ => false,
        };
        if !is_first {
            return Err(Error::invalid(format!("invalid mode: {mode}")));
        }
    }
    Ok(parsed)
}

/// Parses `SOURCE:TARGET[:MODE]`. A source that is not an absolute path is a volume's name.
fn parse_bind(spec: &str, driver: &str, context: PlanContext<'_>) -> Result<MountPlan> {
    let parts: Vec<&str> = spec.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => {
            return Err(Error::invalid(format!(
                "invalid volume specification: '{spec}'"
            )));
        }
    };
    let is_bind = source.starts_with('/');
    let kind = if is_bind { "bind" } else { "volume" };
    let invalid = |error: Error| {
        Error::invalid(format!(
            "invalid volume specification: '{spec}': invalid mount config for type {kind:?}: {error}"
        ))
    };
    if source.is_empty() {
        return Err(Error::invalid(format!(
            "invalid volume specification: '{spec}'"
        )));
    }
    let BindMode {
        read_only,
        propagation,
        recursive,
        copy,
    } = parse_mode(mode, context.is_checked)?;
    let target = check_target(target).map_err(invalid)?;
    if !is_bind {
        if propagation.is_some() || !recursive {
            return Err(invalid(Error::invalid(
                "field BindOptions must not be specified",
            )));
        }
        let make = CreateVolume {
            name: source.to_owned(),
            driver: VolumeDriverName::given(driver),
            ..CreateVolume::default()
        };
        let volume_use = VolumeUse {
            name: source.to_owned(),
            copy: copy.unwrap_or(true),
            make,
            ..VolumeUse::default()
        };
        return Ok(volume(
            volume_use,
            target,
            read_only == Some(true),
            if mode.is_empty() { "z" } else { mode },
        ));
    }
    if copy.is_some() {
        return Err(invalid(Error::invalid(
            "field VolumeOptions must not be specified",
        )));
    }
    let path = clean(source);
    let propagation = propagation_of(&path, propagation, context)?;
    let source = Source::Bind {
        path,
        create: true,
        map_user: false,
    };
    Ok(bind(
        source,
        target,
        read_only == Some(true),
        propagation,
        recursive,
        true,
        mode,
    ))
}

fn volume(volume: VolumeUse, target: String, read_only: bool, mode: &str) -> MountPlan {
    let mut options: Vec<String> = vec!["rbind".into(), "rprivate".into()];
    if read_only {
        options.extend(["ro", "rro"].map(str::to_owned));
    }
    options.extend(subdirectory(&volume.subpath));
    MountPlan {
        source: Source::Volume(volume),
        target,
        options,
        read_only,
        mode: mode.to_owned(),
        propagation: String::new(),
    }
}

fn subdirectory(path: &str) -> Option<String> {
    (!path.is_empty()).then(|| format!("X-mount.subdir={path}"))
}

#[allow(
    clippy::fn_params_excessive_bools,
    reason = "the options of one mount, each named where it is given"
)]
fn bind(
    source: Source,
    target: String,
    read_only: bool,
    propagation: &str,
    recursive: bool,
    recursive_read_only: bool,
    mode: &str,
) -> MountPlan {
    let mut options = vec![
        if recursive { "rbind" } else { "bind" }.to_owned(),
        propagation.to_owned(),
    ];
    if read_only {
        options.push("ro".into());
        if recursive_read_only && recursive {
            options.push("rro".into());
        }
    }
    MountPlan {
        source,
        target,
        options,
        read_only,
        mode: mode.to_owned(),
        propagation: propagation.to_owned(),
    }
}

fn parse_mount(mount: &crate::model::Mount, context: PlanContext<'_>) -> Result<MountPlan> {
    let fail = |text: &str| {
        Err(Error::invalid(format!(
            "invalid mount config for type {:?}: {text}",
            mount.kind.as_str()
        )))
    };
    if mount.target.is_empty() {
        return fail("field Target must not be empty");
    }
    let target = match check_target(&mount.target) {
        Ok(target) => target,
        Err(error) => return fail(&error.to_string()),
    };
    let foreign = [
        (
            "BindOptions",
            mount.bind_options.is_some() && mount.kind != MountKind::Bind,
        ),
        (
            "VolumeOptions",
            mount.volume_options.is_some() && mount.kind != MountKind::Volume,
        ),
        (
            "TmpfsOptions",
            mount.tmpfs_options.is_some() && mount.kind != MountKind::Tmpfs,
        ),
        (
            "ImageOptions",
            mount.image_options.is_some() && mount.kind != MountKind::Image,
        ),
    ];
    if let Some((field, _)) = foreign.iter().find(|(_, given)| *given) {
        return fail(&format!("field {field} must not be specified"));
    }
    match mount.kind {
        MountKind::Bind => bind_mount(mount, target, context, fail),
        MountKind::Tmpfs if !mount.source.is_empty() => fail("field Source must not be specified"),
        MountKind::Tmpfs => tmpfs(&target, &tmpfs_options(mount).join(",")),
        MountKind::Volume => match volume_of(mount) {
            Ok((volume_use, read_only)) => Ok(volume(volume_use, target, read_only, "z")),
            Err(reason) => fail(reason),
        },
        MountKind::Image => match image_of(mount) {
            Ok(image) => Ok(MountPlan {
                // Image mounts are read-only.
                options: ["ro".to_owned()]
                    .into_iter()
                    .chain(subdirectory(&image.subpath))
                    .collect(),
                source: Source::Image(image),
                target,
                read_only: true,
                mode: String::new(),
                propagation: "rprivate".into(),
            }),
            Err(reason) => fail(reason),
        },
    }
}

/// Plans a bind mount. `fail` converts a reason to an error.
fn bind_mount(
    mount: &crate::model::Mount,
    target: String,
    context: PlanContext<'_>,
    fail: impl Fn(&str) -> Result<MountPlan>,
) -> Result<MountPlan> {
    if mount.source.is_empty() {
        return fail("field Source must not be empty");
    }
    if !mount.source.starts_with('/') {
        return fail(&format!(
            "invalid mount path: '{}' mount path must be absolute",
            mount.source
        ));
    }
    let options = mount.bind_options.clone().unwrap_or_default();
    let given = Some(options.propagation.as_str()).filter(|given| !given.is_empty());
    if let Some(given) = given.filter(|given| !PROPAGATIONS.contains(given)) {
        return fail(&format!("invalid propagation mode: {given}"));
    }
    let path = clean(&mount.source);
    let propagation = propagation_of(&path, given, context)?;
    if context.is_checked && !options.create_mountpoint && !whelk_sys::fs::exists(&mount.source) {
        return fail(&format!(
            "bind source path does not exist: {}",
            mount.source
        ));
    }
    let map_user = match options.map_user.as_str() {
        "" => false,
        "auto" => true,
        other => {
            return fail(&format!(
                "invalid user mapping {other:?}: only \"auto\" is supported"
            ));
        }
    };
    let source = Source::Bind {
        path,
        create: options.create_mountpoint,
        map_user,
    };
    let (recursive, read_only_below) = (!options.non_recursive, !options.read_only_non_recursive);
    Ok(bind(
        source,
        target,
        mount.read_only,
        propagation,
        recursive,
        read_only_below,
        "",
    ))
}

/// Returns the options of a tmpfs mount in mount(8) syntax.
fn tmpfs_options(mount: &crate::model::Mount) -> Vec<String> {
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
    words
}

/// Returns the volume of a `--mount` value, and whether it is read-only.
fn volume_of(mount: &crate::model::Mount) -> std::result::Result<(VolumeUse, bool), &'static str> {
    let options = mount.volume_options.clone().unwrap_or_default();
    if mount.source.is_empty() && mount.read_only {
        return Err("must not set ReadOnly mode when using anonymous volumes");
    }
    let subpath = options.subpath;
    check_subpath(&subpath)?;
    let driver = options.driver_config.unwrap_or_default();
    let make = CreateVolume {
        name: mount.source.clone(),
        driver: VolumeDriverName::given(&driver.name),
        options: driver.options,
        labels: options.labels,
        ephemeral: false,
    };
    Ok((
        VolumeUse {
            name: mount.source.clone(),
            subpath,
            copy: !options.no_copy,
            make,
            anonymous: false,
        },
        mount.read_only,
    ))
}

fn image_of(mount: &crate::model::Mount) -> std::result::Result<ImageUse, &'static str> {
    if mount.source.is_empty() {
        return Err("field Source must not be empty");
    }
    let subpath = mount.image_options.clone().unwrap_or_default().subpath;
    check_subpath(&subpath)?;
    Ok(ImageUse {
        name: mount.source.clone(),
        id: String::new(),
        subpath,
    })
}

fn check_subpath(subpath: &str) -> std::result::Result<(), &'static str> {
    if subpath.starts_with('/') || subpath.split('/').any(|part| part == "..") {
        return Err("subpath must be a relative path within the volume");
    }
    Ok(())
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
    const KEYS: [&str; 9] = [
        "size",
        "mode",
        "uid",
        "gid",
        "nr_inodes",
        "nr_blocks",
        "mpol",
        "huge",
        "noswap",
    ];
    let target = check_target(target)?;
    let mut words: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
    for word in options.split(',').filter(|word| !word.is_empty()) {
        let key = word.split('=').next().unwrap_or(word);
        if !FLAGS.contains(&word) && !(KEYS.contains(&key)) && !PROPAGATIONS.contains(&word) {
            return Err(Error::invalid(format!("invalid tmpfs option {word:?}")));
        }
        words.push(word.to_owned());
    }
    let read_only = words
        .iter()
        .rev()
        .find(|word| *word == "ro" || *word == "rw")
        .is_some_and(|word| word == "ro");
    Ok(MountPlan {
        source: Source::Tmpfs,
        target,
        options: words,
        read_only,
        mode: options.to_owned(),
        propagation: String::new(),
    })
}

/// Returns an id mapping that shows files of `disk` as files of `shown`; all other ids are mapped
/// to themselves. Files of `shown` on disk appear as owned by the overflow id, and creating files
/// as `disk` inside fails (`EOVERFLOW`), because it is not mapped.
pub(crate) fn map_owner(disk: u32, shown: u32) -> Vec<IdMapping> {
    if disk == shown {
        return vec![IdMapping {
            container_id: 0,
            host_id: 0,
            size: u32::MAX,
        }];
    }
    let mut maps = vec![IdMapping {
        container_id: disk,
        host_id: shown,
        size: 1,
    }];
    let (low, high) = (disk.min(shown), disk.max(shown));
    for (begin, end) in [(0, low), (low + 1, high), (high + 1, u32::MAX)] {
        if begin < end {
            maps.push(IdMapping {
                container_id: begin,
                host_id: begin,
                size: end - begin,
            });
        }
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> PlanContext<'static> {
        PlanContext {
            data_root: Path::new("/data/root"),
            is_checked: true,
        }
    }

    fn check(bind: &str, expected: &str) {
        let outcome = parse_bind(bind, "", context()).map(|plan| {
            format!(
                "{:?} {} {}",
                plan.source,
                plan.target,
                plan.options.join(",")
            )
        });
        assert_eq!(
            outcome.unwrap_or_else(|error| error.to_string()),
            expected,
            "{bind}"
        );
    }

    #[test]
    fn parses_binds() {
        check(
            "/a:/b",
            "Bind { path: \"/a\", create: true, map_user: false } /b rbind,rprivate",
        );
        check(
            "/a/../c:/b/./x:ro,rslave",
            "Bind { path: \"/c\", create: true, map_user: false } /b/x rbind,rslave,ro,rro",
        );
        check("/a:/b:bogus", "invalid mode: bogus");
        check(
            "/a:/b:nocopy",
            "invalid volume specification: '/a:/b:nocopy': invalid mount config for type \"bind\": field VolumeOptions must not be specified",
        );
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
    fn binds_that_contain_the_data_root_are_slaves() {
        for source in ["/", "/data", "/data/root", "/data/root/volumes"] {
            check(
                &format!("{source}:/b"),
                &format!(
                    "Bind {{ path: {source:?}, create: true, map_user: false }} /b rbind,rslave"
                ),
            );
        }
        check(
            "/data/rooter:/b",
            "Bind { path: \"/data/rooter\", create: true, map_user: false } /b rbind,rprivate",
        );
        check(
            "/data:/b:rshared",
            "Bind { path: \"/data\", create: true, map_user: false } /b rbind,rshared",
        );
        check(
            "/data:/b:rprivate",
            "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when mount source is within the daemon \
             root, daemon root: \"/data/root\", bind mount source: \"/data\", propagation: \"rprivate\"",
        );
    }

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

    #[test]
    fn parses_volumes() {
        let named = |spec: &str| {
            parse_bind(spec, "", context()).map(|plan| (plan.volume().unwrap().clone(), plan))
        };
        let (volume, plan) = named("data:/x:ro,nocopy").unwrap();
        assert_eq!(
            (
                volume.name.as_str(),
                volume.copy,
                plan.read_only,
                plan.mode.as_str()
            ),
            ("data", false, true, "ro,nocopy")
        );
        assert_eq!(named("data:/x").unwrap().1.mode, "z");
        check(
            "data:/x:rprivate",
            "invalid volume specification: 'data:/x:rprivate': invalid mount config for type \"volume\": field BindOptions must not be specified",
        );
        assert_eq!(parse_volumes_from("c:ro").unwrap(), ("c", Some(true)));
        assert_eq!(
            parse_volumes_from("c:foo").unwrap_err().to_string(),
            "invalid mode: foo"
        );
    }

    #[test]
    fn parses_tmpfs_options() {
        assert_eq!(
            tmpfs("/x", "size=1m,exec").unwrap().options.join(","),
            "noexec,nosuid,nodev,size=1m,exec"
        );
        assert_eq!(
            tmpfs("/x", "bogus").unwrap_err().to_string(),
            "invalid tmpfs option \"bogus\""
        );
        assert_eq!(
            tmpfs("rel", "").unwrap_err().to_string(),
            "invalid mount path: 'rel' mount path must be absolute"
        );
    }

    #[test]
    fn maps_the_owner_on_disk_to_the_owner_shown() {
        let maps = |disk, shown| -> Vec<(u32, u32, u32)> {
            map_owner(disk, shown)
                .iter()
                .map(|map| (map.container_id, map.host_id, map.size))
                .collect()
        };
        assert_eq!(maps(5, 5), [(0, 0, u32::MAX)]);
        assert_eq!(
            maps(1000, 0),
            [(1000, 0, 1), (1, 1, 999), (1001, 1001, u32::MAX - 1001)]
        );
        assert_eq!(maps(0, 1), [(0, 1, 1), (2, 2, u32::MAX - 2)]);
    }
}
