//! The `manifest annotate` command.

use clap::Args;

use super::store::ManifestStore;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct AnnotateArgs {
    /// Set architecture
    #[arg(long, default_value = "", hide_default_value = true)]
    arch: String,
    /// Set operating system
    #[arg(long, default_value = "", hide_default_value = true)]
    os: String,
    /// Set operating system feature
    #[arg(long, value_delimiter = ',')]
    os_features: Vec<String>,
    /// Set operating system version
    #[arg(long, default_value = "", hide_default_value = true)]
    os_version: String,
    /// Set architecture variant
    #[arg(long, default_value = "", hide_default_value = true)]
    variant: String,
    #[arg(value_name = "MANIFEST_LIST")]
    list: String,
    #[arg(value_name = "MANIFEST")]
    manifest: String,
}

/// The architectures of each operating system that Docker's client accepts in a list.
const PLATFORMS: &[(&str, &[&str])] = &[
    ("darwin", &["386", "amd64", "arm", "arm64"]),
    ("dragonfly", &["amd64"]),
    ("freebsd", &["386", "amd64", "arm"]),
    (
        "linux",
        &[
            "386", "amd64", "arm", "arm64", "ppc64le", "mips64", "mips64le", "riscv64", "s390x",
        ],
    ),
    ("netbsd", &["386", "amd64", "arm"]),
    ("openbsd", &["386", "amd64", "arm"]),
    ("plan9", &["386", "amd64"]),
    ("solaris", &["amd64"]),
    ("windows", &["386", "amd64"]),
];

pub(super) fn annotate(store: &ManifestStore, args: &AnnotateArgs) -> Outcome {
    let parse = |name: &str, what: &str| {
        super::reference(name).map_err(|failure| {
            Failure::new(format!(
                "annotate: error parsing name for {what} {name}: {}",
                failure.text
            ))
        })
    };
    let list = parse(&args.list, "manifest list")?;
    let image = parse(&args.manifest, "manifest")?;
    let mut manifest = store.get(&list, &image)?.ok_or_else(|| {
        Failure::new(format!(
            "manifest for image {} does not exist in {}",
            args.manifest, args.list
        ))
    })?;
    let platform = manifest.descriptor.platform.get_or_insert_default();
    for (field, given) in [
        (&mut platform.os, &args.os),
        (&mut platform.architecture, &args.arch),
        (&mut platform.variant, &args.variant),
        (&mut platform.os_version, &args.os_version),
    ] {
        if !given.is_empty() {
            field.clone_from(given);
        }
    }
    for feature in &args.os_features {
        if !platform.os_features.contains(feature) {
            platform.os_features.push(feature.clone());
        }
    }
    let is_known = PLATFORMS.iter().any(|(os, architectures)| {
        *os == platform.os && architectures.contains(&platform.architecture.as_str())
    });
    if !is_known {
        return Err(Failure::new(format!(
            "manifest entry for image has unsupported os/arch combination: {}/{}",
            args.os, args.arch
        )));
    }
    store.save(&list, &image, &manifest)?;
    Ok(0)
}
