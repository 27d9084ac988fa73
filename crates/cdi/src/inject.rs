//! Changes an OCI configuration so that the container has devices.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use whelk_runtime::launch::NodeOfUser;
use whelk_runtime::spec::{Device, DeviceKind, DeviceRule, Hook, Hooks, Mount, Spec};

use crate::registry::Registry;
use crate::spec::{self, DeviceNode, Edits, Text};
use crate::{Error, Result};

/// How long a hook may run that sets no limit itself, in seconds.
const HOOK_TIMEOUT: u64 = 60;

/// What a container gets that its configuration cannot say, because its user is only known in its
/// own files.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Supplementary groups of its processes.
    pub groups: Vec<u32>,
    /// Paths of device nodes whose user, or whose group, is that of its first process.
    pub of_user: Vec<NodeOfUser>,
}

impl Registry {
    /// Adds what devices consist of to a configuration. Nothing is changed on an error.
    ///
    /// # Errors
    /// Returns [`Error::Unresolvable`] if a device is not known, and [`Error::Device`] if a device node
    /// does not exist on the host, or if a specification asks for something that is not supported.
    pub fn inject(&self, devices: &[String], spec: &mut Spec) -> Result<Injected> {
        let edits = self.edits(devices)?;
        let mut changed = spec.clone();
        let mut injected = Injected::default();
        let has_mounts = edits.iter().any(|edits| !edits.mounts.is_empty());
        for edits in edits {
            apply(edits, &mut changed, &mut injected).map_err(Error::Device)?;
        }
        // Parents before children; mounts of the same depth keep their order. Without new mounts the
        // user's keep theirs.
        if has_mounts {
            changed
                .mounts
                .sort_by_key(|mount| depth(&mount.destination));
        }
        *spec = changed;
        Ok(injected)
    }
}

fn apply(
    edits: &Edits,
    spec: &mut Spec,
    injected: &mut Injected,
) -> std::result::Result<(), String> {
    if edits.intel_rdt.is_some() {
        return Err("intelRdt is not supported".into());
    }
    if !edits.net_devices.is_empty() {
        return Err("netDevices are not supported".into());
    }
    if let Some(process) = &mut spec.process {
        for entry in &edits.env {
            set_variable(&mut process.env, entry);
        }
    }
    for node in &edits.device_nodes {
        add_device(node, spec, injected)?;
    }
    for mount in &edits.mounts {
        let mount = bind(mount);
        spec.mounts
            .retain(|other| other.destination != mount.destination);
        spec.mounts.push(mount);
    }
    for hook in &edits.hooks {
        add_hook(hook, &mut spec.hooks)?;
    }
    for &group in edits.additional_gids.iter().filter(|group| **group != 0) {
        if !injected.groups.contains(&group) {
            injected.groups.push(group);
        }
    }
    Ok(())
}

/// Sets a variable `NAME=VALUE`, in the place of an earlier one of the same name.
fn set_variable(env: &mut Vec<String>, entry: &str) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let wanted = name(entry);
    match env.iter_mut().find(|other| name(other) == wanted) {
        Some(other) => *other = entry.to_owned(),
        None => env.push(entry.to_owned()),
    }
}

fn add_device(
    node: &DeviceNode,
    spec: &mut Spec,
    injected: &mut Injected,
) -> std::result::Result<(), String> {
    let (kind, major, minor) = numbers(node)?;
    let path = node.path.0.clone();
    let linux = &mut spec.linux;
    linux.devices.retain(|other| other.path != path);
    linux.devices.push(Device {
        path: path.clone(),
        kind,
        major,
        minor,
        file_mode: node.file_mode,
        uid: node.uid.unwrap_or(0),
        gid: node.gid.unwrap_or(0),
    });
    injected.of_user.retain(|other| other.path != path);
    if node.uid.is_none() || node.gid.is_none() {
        injected.of_user.push(NodeOfUser {
            path,
            user: node.uid.is_none(),
            group: node.gid.is_none(),
        });
    }
    let access = match &*node.permissions {
        "" => "rwm",
        "none" => "",
        access => access,
    };
    if !access.is_empty() && matches!(kind, DeviceKind::Block | DeviceKind::Char) {
        linux.resources.devices.push(DeviceRule {
            allow: true,
            kind: Some(kind),
            major: Some(major),
            minor: Some(minor),
            access: access.to_owned(),
        });
    }
    Ok(())
}

/// Returns the type and the number of a device node: those of the specification, or else those of the
/// node on the host.
fn numbers(node: &DeviceNode) -> std::result::Result<(DeviceKind, i64, i64), String> {
    let given = match &*node.kind {
        "b" => Some(DeviceKind::Block),
        "c" | "u" => Some(DeviceKind::Char),
        "p" => Some(DeviceKind::Fifo),
        _ => None,
    };
    if let Some(kind) = given
        && (node.major != 0 || kind == DeviceKind::Fifo)
    {
        return Ok((kind, node.major, node.minor));
    }
    let host = if node.host_path.is_empty() {
        &*node.path
    } else {
        &*node.host_path
    };
    let failed = |text: &str| format!("failed to stat CDI host device {host:?}: {text}");
    let found =
        std::fs::symlink_metadata(host).map_err(|error| failed(&whelk_sys::errno_text(&error)))?;
    let kind = match found.file_type() {
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_char_device() => DeviceKind::Char,
        kind if kind.is_fifo() => DeviceKind::Fifo,
        _ => return Err(failed("not a device node")),
    };
    if let Some(given) = given
        && given != kind
    {
        return Err(format!(
            "CDI device ({:?}, {host:?}), host type mismatch ({}, {})",
            &*node.path,
            given.letter(),
            kind.letter()
        ));
    }
    if node.major != 0 {
        return Ok((kind, node.major, node.minor));
    }
    let number = found.rdev();
    Ok((
        kind,
        rustix::fs::major(number).into(),
        rustix::fs::minor(number).into(),
    ))
}

/// Returns a mount; it is a bind mount unless it has a type.
fn bind(mount: &spec::Mount) -> Mount {
    let mut options = strings(&mount.options);
    let is_bind = matches!(&*mount.kind, "" | "none" | "bind");
    if is_bind && !options.iter().any(|it| it == "bind" || it == "rbind") {
        options.push("bind".into());
    }
    Mount {
        destination: mount.container_path.0.clone(),
        kind: if is_bind {
            "bind".into()
        } else {
            mount.kind.0.clone()
        },
        source: mount.host_path.0.clone(),
        options,
        ..Mount::default()
    }
}

fn add_hook(hook: &spec::Hook, hooks: &mut Hooks) -> std::result::Result<(), String> {
    let path = Path::new(&*hook.path);
    if !path.is_absolute() {
        return Err(format!(
            "hook {:?}: {} is not an absolute path",
            &*hook.hook_name,
            path.display()
        ));
    }
    let limit = hook.timeout.and_then(|limit| u64::try_from(limit).ok());
    let list = match &*hook.hook_name {
        "prestart" => &mut hooks.prestart,
        "createRuntime" => &mut hooks.create_runtime,
        "createContainer" => &mut hooks.create_container,
        "startContainer" => &mut hooks.start_container,
        "poststart" => &mut hooks.poststart,
        "poststop" => &mut hooks.poststop,
        other => return Err(format!("unknown hook name {other:?}")),
    };
    list.push(Hook {
        path: path.to_owned(),
        args: strings(&hook.args),
        env: strings(&hook.env),
        timeout: limit.filter(|limit| *limit > 0).or(Some(HOOK_TIMEOUT)),
    });
    Ok(())
}

fn strings(list: &[Text]) -> Vec<String> {
    list.iter().map(|text| text.0.clone()).collect()
}

fn depth(path: &str) -> usize {
    Path::new(path).components().count()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use whelk_sys::{Scratch, fs};

    use super::*;

    /// Writes specifications into directories, each with its file's content.
    fn registry(files: &[(&str, &str)]) -> (Scratch, Registry) {
        let scratch = Scratch::temporary("cdi").unwrap();
        let directories: Vec<PathBuf> = ["first", "second", "none"]
            .map(|name| scratch.path().join(name))
            .into();
        for directory in &directories[..2] {
            fs::create_dir(directory, 0o700).unwrap();
        }
        for (path, content) in files {
            fs::write(scratch.path().join(path), content).unwrap();
        }
        let registry = Registry::read(&directories);
        (scratch, registry)
    }

    fn spec(devices: &[(&str, &str)]) -> String {
        let devices: Vec<String> = devices
            .iter()
            .map(|(name, edits)| format!("- name: {name}\n  containerEdits: {edits}"))
            .collect();
        format!(
            "cdiVersion: 1.1.0\nkind: vendor.com/class\ncontainerEdits: {{env: [ALL=1]}}\ndevices:\n{}\n",
            devices.join("\n")
        )
    }

    #[test]
    fn later_directories_replace_and_equal_ones_conflict() {
        let (scratch, registry) = registry(&[
            (
                "first/a.yaml",
                &spec(&[("one", "{env: [A=1]}"), ("two", "{env: [A=2]}")]),
            ),
            (
                "first/b.json",
                r#"{"cdiVersion": "0.3.0", "kind": "vendor.com/class", "devices": [{"name": "two", "containerEdits": {"env": ["A=3"]}}]}"#,
            ),
            ("first/c.txt", "not read"),
            ("first/d.yaml", "devices: ["),
            ("second/a.yaml", &spec(&[("one", "{env: [A=4]}")])),
        ]);
        assert!(registry.devices().eq(["vendor.com/class=one"]));
        let errors: Vec<String> = registry
            .errors()
            .iter()
            .map(|error| {
                error
                    .text
                    .replace(&scratch.path().display().to_string(), "")
            })
            .collect();
        assert_eq!(
            errors[..2],
            [r#"conflicting device "vendor.com/class=two" (specs "/first/b.json", "/first/a.yaml")"#;
                2]
        );
        assert!(
            errors[2].starts_with(
                r#"failed to load CDI Spec failed to parse CDI Spec "/first/d.yaml": "#
            ),
            "{}",
            errors[2]
        );
        let mut spec = Spec {
            process: Some(Default::default()),
            ..Spec::default()
        };
        registry
            .inject(&["vendor.com/class=one".into()], &mut spec)
            .unwrap();
        assert_eq!(spec.process.unwrap().env, ["ALL=1", "A=4"]);
        let unknown = ["vendor.com/class=two", "x/y=z"].map(str::to_owned);
        assert_eq!(
            registry
                .inject(&unknown, &mut Spec::default())
                .unwrap_err()
                .to_string(),
            "unresolvable CDI devices vendor.com/class=two, x/y=z"
        );
    }

    #[test]
    fn edits_are_applied_in_their_order() {
        let one = "{env: [B=2], deviceNodes: [{path: /dev/x, hostPath: /dev/null, fileMode: 0640, uid: 7, permissions: rw}, \
                   {path: /dev/y, type: c, major: 1, minor: 5, permissions: none}], \
                   mounts: [{hostPath: /lib, containerPath: /a/b, options: [ro, rbind]}, {hostPath: /x, containerPath: /a}], \
                   hooks: [{hookName: createContainer, path: /bin/h, args: [h, 1], timeout: 5}, {hookName: poststop, path: /bin/h}], \
                   additionalGids: [0, 5, 5]}";
        let (_scratch, registry) = registry(&[("first/a.yaml", &spec(&[("one", one)]))]);
        let mut spec = Spec {
            process: Some(whelk_runtime::spec::Process {
                env: vec!["B=1".into(), "C=1".into()],
                ..Default::default()
            }),
            mounts: vec![bind(&spec::Mount {
                container_path: Text("/a/b".into()),
                ..Default::default()
            })],
            ..Spec::default()
        };
        let injected = registry
            .inject(&["vendor.com/class=one".into()], &mut spec)
            .unwrap();
        assert_eq!(spec.process.unwrap().env, ["B=2", "C=1", "ALL=1"]);
        let devices = &spec.linux.devices;
        assert_eq!(
            (
                devices[0].major,
                devices[0].minor,
                devices[0].file_mode,
                devices[0].uid
            ),
            (1, 3, Some(0o640), 7)
        );
        assert_eq!(devices[1].minor, 5);
        assert_eq!(spec.linux.resources.devices.len(), 1);
        assert_eq!(spec.linux.resources.devices[0].access, "rw");
        let mounts: Vec<_> = spec
            .mounts
            .iter()
            .map(|mount| (&*mount.destination, &*mount.source, mount.options.join(",")))
            .collect();
        assert_eq!(
            mounts,
            [
                ("/a", "/x", "bind".to_owned()),
                ("/a/b", "/lib", "ro,rbind".to_owned())
            ]
        );
        assert_eq!(spec.hooks.create_container[0].args, ["h", "1"]);
        assert_eq!(spec.hooks.create_container[0].timeout, Some(5));
        assert_eq!(spec.hooks.poststop[0].timeout, Some(HOOK_TIMEOUT));
        assert_eq!(injected.groups, [5]);
        let owned: Vec<_> = injected
            .of_user
            .iter()
            .map(|it| (&*it.path, it.user, it.group))
            .collect();
        assert_eq!(owned, [("/dev/x", false, true), ("/dev/y", true, true)]);
    }

    #[test]
    fn specifications_may_be_links_and_their_writers_are_checked() {
        use std::os::unix::fs::symlink;
        let (scratch, _) = registry(&[
            ("first/a.yaml", &spec(&[("one", "{env: [A=1]}")])),
            ("target", &spec(&[("two", "{env: [A=1]}")])),
        ]);
        let first = scratch.path().join("first");
        symlink("../target", first.join("b.yaml")).unwrap();
        symlink("/dev/zero", first.join("c.yaml")).unwrap();
        let fifo = scratch.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        symlink("../fifo", first.join("d.yaml")).unwrap();
        let read = || {
            let registry = Registry::read(std::slice::from_ref(&first));
            assert!(
                registry
                    .devices()
                    .eq(["vendor.com/class=one", "vendor.com/class=two"])
            );
            let errors = registry.errors().iter();
            errors
                .map(|error| {
                    let name = error.path.file_name().unwrap().to_string_lossy();
                    (name.into_owned(), error.text.clone())
                })
                .collect::<Vec<_>>()
        };
        fs::set_mode(first.join("a.yaml"), 0o644).unwrap();
        fs::set_mode(scratch.path().join("target"), 0o644).unwrap();
        let errors = read();
        assert_eq!(errors.len(), 2, "{errors:?}");
        for (name, text) in errors {
            assert!(name == "c.yaml" || name == "d.yaml", "{name}");
            assert!(text.ends_with("not a regular file"), "{text}");
        }
        fs::set_mode(&first, 0o757).unwrap();
        fs::set_mode(scratch.path().join("target"), 0o646).unwrap();
        let warned: Vec<_> = read()
            .into_iter()
            .filter(|(_, text)| text.starts_with("writable by others than root"))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(warned, ["first", "b.yaml"]);
    }

    #[test]
    fn mounts_are_sorted_only_with_new_ones() {
        let (_scratch, registry) = registry(&[(
            "first/a.yaml",
            &spec(&[
                ("one", "{env: [A=1]}"),
                ("two", "{mounts: [{hostPath: /x, containerPath: /b}]}"),
            ]),
        )]);
        let mounted = |device: &str| {
            let mount = |path: &str| {
                bind(&spec::Mount {
                    container_path: Text(path.into()),
                    ..Default::default()
                })
            };
            let mut spec = Spec {
                mounts: vec![mount("/a/deep"), mount("/a")],
                ..Spec::default()
            };
            registry.inject(&[device.into()], &mut spec).unwrap();
            let mounts = spec.mounts.into_iter();
            mounts.map(|mount| mount.destination).collect::<Vec<_>>()
        };
        assert_eq!(mounted("vendor.com/class=one"), ["/a/deep", "/a"]);
        assert_eq!(mounted("vendor.com/class=two"), ["/a", "/b", "/a/deep"]);
    }

    #[test]
    fn unsupported_edits_and_missing_devices_are_refused() {
        for (edits, expected) in [
            ("{intelRdt: {closID: a}}", "intelRdt is not supported"),
            (
                "{netDevices: [{hostInterfaceName: a, name: b}]}",
                "netDevices are not supported",
            ),
            (
                "{deviceNodes: [{path: /dev/no-such}]}",
                "failed to stat CDI host device \"/dev/no-such\": no such file or directory",
            ),
            (
                "{deviceNodes: [{path: /etc}]}",
                "failed to stat CDI host device \"/etc\": not a device node",
            ),
            (
                "{deviceNodes: [{path: /dev/null, type: b}]}",
                "CDI device (\"/dev/null\", \"/dev/null\"), host type mismatch (b, c)",
            ),
            (
                "{hooks: [{hookName: prestart, path: bin/h}]}",
                "hook \"prestart\": bin/h is not an absolute path",
            ),
        ] {
            let (_scratch, registry) = registry(&[("first/a.yaml", &spec(&[("one", edits)]))]);
            let mut spec = Spec::default();
            let error = registry
                .inject(&["vendor.com/class=one".into()], &mut spec)
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("failed to inject devices: {expected}")
            );
            assert_eq!(spec, Spec::default());
        }
    }
}
