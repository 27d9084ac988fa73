//! Parses `SOURCE:TARGET[:MODE]`, the syntax of `-v` and of the API's `HostConfig.Binds`.

use super::propagation::{PROPAGATIONS, propagation_of};
use super::{PlanContext, bind, check_relabel, check_target, clean, volume};
use crate::error::{Error, Result};
use crate::model::mount::{MountPlan, Source, VolumeUse};
use crate::model::volume::{CreateVolume, VolumeDriverName};

/// Parses `SOURCE:TARGET[:MODE]`. A source that is not an absolute path is a volume's name.
pub(super) fn parse_bind(spec: &str, driver: &str, context: PlanContext<'_>) -> Result<MountPlan> {
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

#[cfg(test)]
mod tests {
    use super::super::{context, parse_volumes_from};
    use super::*;

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
}
