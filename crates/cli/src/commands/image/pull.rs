//! The `pull` command, and the pull before a container is created.

use std::path::{Path, PathBuf};

use clap::Args;
use whelk_client::{full_body, no_body};
use whelk_image::Reference;
use whelk_trust::PolicyFile;

use crate::client::{ApiError, Client, query};
use crate::commands::messages::{Target, print_messages_to};
use crate::output::print_line;
use crate::{Failure, Outcome, credentials, plain};

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Download all tagged images in the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Skip image verification
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    disable_content_trust: bool,
    /// Set platform if server is multi-platform capable
    #[arg(long)]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    /// Pull only if the signatures meet this policy (containers-policy.json format)
    #[arg(long, value_name = "POLICY")]
    verify: Option<PathBuf>,
    /// Image to download: NAME[:TAG|@DIGEST]
    #[arg(value_name = "NAME")]
    name: String,
}

pub(crate) async fn pull(client: &Client, args: PullArgs) -> Outcome {
    if args.all_tags && split(&args.name).1.is_some() {
        return Err(Failure::new("tag can't be used with --all-tags/-a"));
    }
    if !args.disable_content_trust {
        return Err(Failure::new(
            "--disable-content-trust=false: content trust is not available in this version of whelk",
        ));
    }
    // Docker's client validates the name itself.
    let parsed: Result<Reference, _> = args.name.parse();
    parsed.map_err(|error| Failure::new(error.to_string()))?;
    let name = if args.all_tags {
        args.name.clone()
    } else {
        with_default_tag(&args.name)
    };
    if name != args.name && !args.quiet {
        print_line!("Using default tag: latest")?;
    }
    let platform = platform(args.platform.as_deref());
    let target = if args.quiet {
        Target::Nowhere
    } else {
        Target::Output
    };
    let policy = args.verify.as_deref().map(policy).transpose()?;
    transfer(client, &name, &platform, policy, target).await?;
    print_line!("{}", full(&name))?;
    Ok(0)
}

/// Pulls the image of a container that is to be created. The progress goes to standard error, unless
/// `quiet`.
pub(crate) async fn pull_for_create(
    client: &Client,
    image: &str,
    platform: &str,
    quiet: bool,
) -> Outcome<()> {
    let target = if quiet {
        Target::Nowhere
    } else {
        Target::Errors
    };
    transfer(client, &with_default_tag(image), platform, None, target).await
}

/// Returns the platform of the flag or of `DOCKER_DEFAULT_PLATFORM`; empty for the engine's own.
pub(crate) fn platform(flag: Option<&str>) -> String {
    let variable = || std::env::var("DOCKER_DEFAULT_PLATFORM").ok();
    flag.map(str::to_owned)
        .or_else(variable)
        .unwrap_or_default()
}

/// Reads a signature policy and the keys that it names, and returns what is sent to the engine.
fn policy(path: &Path) -> Outcome<Vec<u8>> {
    let invalid = |error: &dyn std::fmt::Display| {
        Failure::new(format!("--verify {}: {error}", path.display()))
    };
    let json = std::fs::read(path).map_err(|error| invalid(&plain(&error)))?;
    let mut file = PolicyFile::parse(&json).map_err(|error| invalid(&error))?;
    file.embed_keys(|key| std::fs::read(key))
        .map_err(|error| invalid(&error))?;
    serde_json::to_vec(&file).map_err(|error| invalid(&error))
}

/// Pulls an image, with a policy only if its signatures meet that.
async fn transfer(
    client: &Client,
    name: &str,
    platform: &str,
    policy: Option<Vec<u8>>,
    target: Target,
) -> Outcome<()> {
    let credentials = credentials::header(client.config(), name)?;
    let (image, version) = split(name);
    let parameters = [
        ("fromImage", image),
        ("tag", version.unwrap_or_default()),
        ("platform", platform),
    ];
    let (path, body) = match policy {
        Some(policy) => ("/images/verified", full_body(policy)),
        None => ("/images/create", no_body()),
    };
    let response = client
        .send(
            hyper::Method::POST,
            &format!("{path}{}", query(&parameters)),
            &[("x-registry-auth", &credentials)],
            body,
        )
        .await
        .map_err(|error: ApiError| Failure::from(error))?;
    print_messages_to(response, target).await.map(drop)
}

/// Returns whether this is a name, which can be pulled, and not an image's id or a part of one.
pub(crate) fn is_name(image: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_id = image.len() == 64 && is_hex(image);
    !image.starts_with("sha256:") && !is_id
}

pub(crate) fn with_default_tag(name: &str) -> String {
    match split(name) {
        (_, None) => format!("{name}:latest"),
        _ => name.to_owned(),
    }
}

/// Splits a reference into the repository and the digest, or else the tag.
pub(super) fn split(name: &str) -> (&str, Option<&str>) {
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    // A colon before a slash belongs to a port.
    match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, digest.or(Some(tag))),
        _ => (rest, digest),
    }
}

/// Returns a reference with the registry and the default path components.
pub(super) fn full(name: &str) -> String {
    match hub_path(name) {
        Some(path) if split(path).0.contains('/') => format!("docker.io/{path}"),
        Some(path) => format!("docker.io/library/{path}"),
        None => name.to_owned(),
    }
}

/// Returns a reference without default components, as Docker shows it.
pub(crate) fn familiar(name: &str) -> &str {
    let path = hub_path(name).unwrap_or(name);
    let rest = path.strip_prefix("library/");
    rest.filter(|rest| !split(rest).0.contains('/'))
        .unwrap_or(path)
}

/// Returns a reference without its registry, if that is Docker Hub.
fn hub_path(name: &str) -> Option<&str> {
    match name.split_once('/') {
        Some(("docker.io" | "index.docker.io", path)) => Some(path),
        Some((first, _))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.to_lowercase() != first =>
        {
            None
        }
        _ => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_split() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (name, repository, version) in [
            ("busybox", "busybox", None),
            ("busybox:1", "busybox", Some("1")),
            ("r:5000/busybox", "r:5000/busybox", None),
            ("r:5000/busybox:1", "r:5000/busybox", Some("1")),
            (&format!("busybox@{digest}"), "busybox", Some(digest)),
            (&format!("busybox:1@{digest}"), "busybox", Some(digest)),
        ] {
            assert_eq!(split(name), (repository, version), "{name}");
        }
        assert_eq!(with_default_tag("r:5000/busybox"), "r:5000/busybox:latest");
        assert_eq!(full("busybox:1"), "docker.io/library/busybox:1");
        assert_eq!(full("team/app:1"), "docker.io/team/app:1");
        assert_eq!(full("localhost/app:1"), "localhost/app:1");
        for (name, short, long) in [
            ("busybox:1", "busybox:1", "docker.io/library/busybox:1"),
            (
                "docker.io/busybox:1",
                "busybox:1",
                "docker.io/library/busybox:1",
            ),
            ("index.docker.io/library/a", "a", "docker.io/library/a"),
            ("docker.io/team/app", "team/app", "docker.io/team/app"),
            ("library/a/b", "library/a/b", "docker.io/library/a/b"),
            ("r:5000/library/a", "r:5000/library/a", "r:5000/library/a"),
        ] {
            assert_eq!(
                (familiar(name), full(name).as_str()),
                (short, long),
                "{name}"
            );
        }
        assert!(is_name("busybox") && !is_name("sha256:00") && !is_name(&"a".repeat(64)));
    }
}
