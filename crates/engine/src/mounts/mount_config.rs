//! Plans the mounts of the API's `HostConfig.Mounts`, which `--mount` writes.

use super::propagation::{PROPAGATIONS, propagation_of};
use super::tmpfs::tmpfs;
use super::{PlanContext, bind, check_target, clean, subdirectory, volume};
use crate::error::{Error, Result};
use crate::model::MountKind;
use crate::model::mount::{ImageUse, MountPlan, Source, VolumeUse};
use crate::model::volume::{CreateVolume, VolumeDriverName};

pub(super) fn parse_mount(
    mount: &crate::model::Mount,
    context: PlanContext<'_>,
) -> Result<MountPlan> {
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
    if mount.source.is_empty() && !subpath.is_empty() {
        return Err("must not set Subpath when using anonymous volumes");
    }
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
