//! Finds the device nodes on the host that a container gets.

use std::path::Path;

use whelk_runtime::spec::{Device, DeviceKind};
use whelk_sys::fs;

use crate::error::{Error, Result};
use crate::model::HostConfig;
use crate::spec;

/// Returns a container's device nodes with their cgroup access.
pub(super) fn devices(host: &HostConfig) -> Result<Vec<(Device, String)>> {
    let mut devices = Vec::new();
    if host.privileged {
        collect_devices(Path::new("/dev"), Path::new("/dev"), "rwm", &mut devices)?;
    }
    for mapping in host.devices.iter().flatten() {
        let access = spec::device_access(mapping)?;
        let target = if mapping.path_in_container.is_empty() {
            &mapping.path_on_host
        } else {
            &mapping.path_in_container
        };
        let gather = |text: String| {
            Error::internal(format!(
                "error gathering device information while adding custom device {:?}: {text}",
                mapping.path_on_host
            ))
        };
        let source = fs::canonicalize(&mapping.path_on_host)
            .map_err(|error| gather(whelk_sys::errno_text(&error.source)))?;
        let before = devices.len();
        let target = Path::new(target);
        devices.retain(|(device, _): &(Device, String)| Path::new(&device.path) != target);
        if fs::metadata(&source)?.is_dir() {
            collect_devices(&source, target, &access, &mut devices)?;
        } else {
            devices.extend(device_at(&source, target)?.map(|device| (device, access)));
        }
        if devices.len() < before
            || devices
                .iter()
                .all(|(device, _)| !Path::new(&device.path).starts_with(target))
        {
            return Err(gather("not a device node".into()));
        }
    }
    Ok(devices)
}

/// Entries of `/dev` that privileged containers do not get.
const NOT_DEVICES: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".udev"];

fn collect_devices(
    source: &Path,
    target: &Path,
    access: &str,
    devices: &mut Vec<(Device, String)>,
) -> Result<()> {
    let entries = match fs::list(source) {
        // Removed meanwhile.
        Err(error) if error.is_not_found() => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry.file_name();
        if NOT_DEVICES.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let (path, target) = (entry.path(), target.join(&name));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_devices(&path, &target, access, devices)?,
            Ok(_) => {
                devices.extend(device_at(&path, &target)?.map(|device| (device, access.to_owned())))
            }
            Err(_) => {}
        }
    }
    Ok(())
}

fn device_at(source: &Path, target: &Path) -> Result<Option<Device>> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(metadata) = fs::metadata(source) else {
        return Ok(None);
    };
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Char,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return Ok(None),
    };
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    Ok(Some(Device {
        path: target.to_string_lossy().into_owned(),
        kind,
        major: major.into(),
        minor: minor.into(),
        file_mode: Some(metadata.mode() & 0o777),
        uid: metadata.uid(),
        gid: metadata.gid(),
    }))
}

/// Returns the major and minor number of a device node.
pub(super) fn device_number(path: &str) -> Result<(i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).map_err(|error| Error::internal(error.to_string()))?;
    Ok((
        rustix::fs::major(metadata.rdev()).into(),
        rustix::fs::minor(metadata.rdev()).into(),
    ))
}
