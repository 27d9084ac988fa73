//! The build of a target: a bake file's words as those of `build`.

use clap::{Args as _, Command, FromArgMatches as _};
use whelk_bake::Target;
use whelk_bake::paths::{clean, is_remote, join};

use super::remote::Remote;
use crate::commands::build::{self, BuildArgs, is_fetched};
use crate::{Failure, Outcome};

/// Where a path is in the directory of the command.
const CWD: &str = "cwd://";

/// Refuses what a target cannot have.
pub(super) fn check(target: &Target) -> Outcome<()> {
    let refused = |what: &str| Failure::new(format!("{what} from stdin not allowed in bake"));
    match (target.context.as_deref(), target.dockerfile.as_deref()) {
        (Some("-"), _) => return Err(refused("context")),
        (_, Some("-")) => return Err(refused("dockerfile")),
        (_, Some(path)) if path.starts_with('/') && path.trim_start_matches('/').is_empty() => {
            return Err(Failure::new(format!(
                "target {}: invalid dockerfile {path:?}: it is a directory",
                target.name
            )));
        }
        _ => {}
    }
    if let Some(size) = target.shm_size.as_deref().filter(|size| !size.is_empty())
        && whelk_text::size::parse_binary(size).is_err()
    {
        return Err(Failure::new(format!(
            "invalid value {size} for membytes key shm-size"
        )));
    }
    let mut annotations = target.annotations.iter().flatten();
    if let Some(annotation) = annotations.find(|annotation| !annotation.contains('=')) {
        return Err(Failure::new(format!(
            "invalid annotation {annotation:?}, expected key=value"
        )));
    }
    // It would be read as another name and another path.
    match target.contexts.keys().find(|name| name.contains('=')) {
        Some(name) => Err(Failure::new(format!(
            "target {}: invalid name of a context {name:?}",
            target.name
        ))),
        None => Ok(()),
    }
}

/// Finds the context of a target: with definitions of a server, paths are those of directories beside them.
///
/// # Errors
/// Returns an error if the definitions of a server name a Dockerfile of this machine without saying so.
pub(super) fn place(target: &mut Target, remote: Option<&Remote>) -> Outcome<()> {
    let own = target.context.as_deref().unwrap_or(".").to_owned();
    let remote = remote.filter(|remote| remote.has_files());
    let is_local = own.starts_with(CWD) && target.dockerfile_inline.is_none();
    target.is_remote = remote.is_some() && is_beside(&own);
    target.has_git_ssh = match remote {
        Some(remote) if is_git_ssh(&remote.url) => true,
        _ => is_git_ssh(&own) && target.ssh.as_ref().is_none_or(Vec::is_empty),
    };
    target.context = Some(match remote {
        Some(remote) if target.is_remote && clean(&own) == "." => {
            target.is_remote = false;
            remote.url.clone()
        }
        Some(_) if target.is_remote => clean(&own),
        _ => context(target),
    });
    let file = target.dockerfile.as_deref().unwrap_or("Dockerfile");
    let path = dockerfile(target);
    if remote.is_some()
        && is_local
        && !file.starts_with(CWD)
        && std::fs::symlink_metadata(&path).is_ok()
    {
        let here = format!("{CWD}{path}");
        // As Docker's bake, and what to do.
        return Err(Failure::new(format!(
            "target {}: reading a dockerfile for a remote build invocation is currently not supported; \
             to use the one here, define dockerfile = {here:?}",
            target.name,
        )));
    }
    Ok(())
}

/// Whether a context of definitions of a server is a directory beside them.
pub(super) fn is_beside(value: &str) -> bool {
    let schemes = [CWD, "target:", "docker-image:", "oci-layout:"];
    !is_remote(value) && !schemes.iter().any(|scheme| value.starts_with(scheme))
}

/// Whether a repository is fetched over ssh.
pub(super) fn is_git_ssh(url: &str) -> bool {
    let host = url.split(['/', ':']).next().unwrap_or_default();
    url.starts_with("ssh://") || is_remote(url) && host.contains('@')
}

/// Returns the flag of the ssh agent, or of the keys, that repositories are fetched with; nothing if there is none.
pub(super) fn git_agent() -> Option<String> {
    let variables = ["BUILDX_BAKE_GIT_SSH", "SSH_AUTH_SOCK"].into_iter();
    let mut paths = variables.filter_map(|variable| std::env::var(variable).ok());
    let paths = paths.find(|paths| !paths.is_empty())?;
    Some(format!("default={paths}"))
}

/// The secrets that repositories are fetched with, and their variables.
const GIT_SECRETS: [(&str, &str); 2] = [
    ("GIT_AUTH_TOKEN", "BUILDX_BAKE_GIT_AUTH_TOKEN"),
    ("GIT_AUTH_HEADER", "BUILDX_BAKE_GIT_AUTH_HEADER"),
];

/// Returns the flags of the secrets that repositories are fetched with: those of a host, or, without one, those for whatever repository is
/// the context.
pub(super) fn git_secrets(host: Option<&str>) -> Vec<String> {
    let secrets = GIT_SECRETS.into_iter();
    let is_set = |(_, variable): &(&str, &str)| std::env::var_os(variable).is_some();
    secrets
        .filter(is_set)
        .filter_map(|(id, variable)| git_secret(id, variable, host))
        .collect()
}

/// Returns the flag of a secret. There is none for a host with characters that flags have a meaning for.
fn git_secret(id: &str, variable: &str, host: Option<&str>) -> Option<String> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-._:[]".contains(char);
    match host {
        None => Some(format!("id={id},env={variable}")),
        Some(host) if host.chars().all(is_plain) => Some(format!("id={id}.{host},env={variable}")),
        Some(_) => None,
    }
}

/// Returns a path in the form in which `build` takes it for nothing else.
fn plainly(path: String) -> String {
    match path == "-" || is_remote(&path) {
        true => format!("./{path}"),
        false => path,
    }
}

/// Returns the context of a target.
pub(super) fn context(target: &Target) -> String {
    match target.context.as_deref().unwrap_or(".") {
        url if is_fetched(url) => url.to_owned(),
        path => plainly(clean(path.strip_prefix(CWD).unwrap_or(path))),
    }
}

/// Returns the path of a target's Dockerfile; empty for the usual one of a remote context.
pub(super) fn dockerfile(target: &Target) -> String {
    let own = target.dockerfile.as_deref().unwrap_or("Dockerfile");
    let context = context(target);
    let is_fetched = target.is_remote || is_fetched(&context);
    if let Some(path) = own.strip_prefix(CWD) {
        let directory = std::env::current_dir().unwrap_or_default();
        return match is_fetched {
            // A full path is none of the context.
            true => join(&directory.to_string_lossy(), path),
            false => plainly(clean(path)),
        };
    }
    match is_fetched {
        true if own == "Dockerfile" => String::new(),
        true if target.is_remote => plainly(own.trim_start_matches('/').to_owned()),
        true => own.to_owned(),
        false if own.starts_with('/') => clean(own),
        false => plainly(join(&context, own)),
    }
}

/// Returns the path of a named context, if it is a directory here. `is_beside_remote` tells that paths are those of a server.
pub(super) fn local_context(value: &str, is_beside_remote: bool) -> Option<String> {
    let is_elsewhere = is_remote(value)
        || is_beside_remote && is_beside(value)
        || ["target:", "docker-image:", "oci-layout:"]
            .iter()
            .any(|scheme| value.starts_with(scheme));
    (!is_elsewhere).then(|| clean(value.strip_prefix(CWD).unwrap_or(value)))
}

/// Returns the directory of a named context that is an OCI layout.
pub(super) fn layout(value: &str) -> Option<&str> {
    build::layout(value).map(|(path, ..)| path)
}

/// Returns the words of `build` for a target. Contexts that are beside the definitions on a server have none.
fn words(target: &Target, remote: Option<&Remote>) -> Vec<String> {
    let is_beside_remote = remote.is_some_and(Remote::has_files);
    let mut words = vec!["build".to_owned()];
    let mut add = |flag: &str, value: &str| words.push(format!("--{flag}={value}"));
    let lists = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    for (flag, texts) in [("build-arg", &target.args), ("label", &target.labels)] {
        for (name, text) in texts {
            if let Some(text) = text {
                add(flag, &format!("{name}={text}"));
            }
        }
    }
    for (name, address) in &target.extra_hosts {
        if let Some(address) = address {
            add("add-host", &format!("{name}={address}"));
        }
    }
    for (name, context) in &target.contexts {
        if is_beside_remote && is_beside(context) {
            continue;
        }
        let path = local_context(context, is_beside_remote).unwrap_or_else(|| context.clone());
        add("build-context", &format!("{name}={path}"));
    }
    for (flag, list) in [
        ("tag", &target.tags),
        ("platform", &target.platforms),
        ("no-cache-filter", &target.no_cache_filter),
        ("ulimit", &target.ulimits),
        ("annotation", &target.annotations),
        ("allow", &target.entitlements),
    ] {
        lists(list).iter().for_each(|text| add(flag, text));
    }
    for (flag, caches) in [
        ("cache-from", &target.cache_from),
        ("cache-to", &target.cache_to),
    ] {
        let caches = caches.iter().flatten();
        caches.for_each(|cache| add(flag, &cache.0.flag()));
    }
    let outputs = target.outputs.iter().flatten();
    outputs.for_each(|output| add("output", &output.0.flag()));
    let attestations = target.attest.iter().flatten();
    attestations.for_each(|attestation| add("attest", &attestation.0.flag()));
    let secrets = target.secrets.iter().flatten();
    secrets.for_each(|secret| add("secret", &secret.flag()));
    let agents = target.ssh.iter().flatten();
    let has_agent = agents.clone().any(|agent| agent.id == "default");
    agents.for_each(|agent| add("ssh", &agent.flag()));
    if target.has_git_ssh && !has_agent {
        add("ssh", "default");
    }
    for (flag, text) in [
        ("target", &target.target),
        ("network", &target.network),
        ("shm-size", &target.shm_size),
        ("call", &target.call),
    ] {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            add(flag, text);
        }
    }
    let context = context(target);
    if target.is_remote || is_fetched(&context) {
        let secrets = remote.map_or_else(|| git_secrets(None), Remote::secrets);
        secrets.iter().for_each(|secret| add("secret", secret));
    }
    let file = dockerfile(target);
    if target.dockerfile_inline.is_none() && !file.is_empty() {
        add("file", &file);
    }
    for (flag, is_set) in [("pull", target.pull), ("no-cache", target.no_cache)] {
        if is_set == Some(true) {
            words.push(format!("--{flag}"));
        }
    }
    words.push("--".into());
    words.push(context);
    words
}

/// Returns the build of a target. `remote` is where its definitions are, if they are on a server.
///
/// # Errors
/// Returns an error for a value that `build` does not accept.
pub(super) fn build(target: &Target, remote: Option<&Remote>) -> Outcome<BuildArgs> {
    let command = BuildArgs::augment_args(Command::new("build").disable_help_flag(true));
    let matches = command.try_get_matches_from(words(target, remote));
    let args = matches.and_then(|matches| BuildArgs::from_arg_matches(&matches));
    let args = args.map_err(|error| Failure::new(format!("target {}: {error}", target.name)))?;
    Ok(BuildArgs {
        inline: target.dockerfile_inline.clone(),
        is_input: target.is_remote,
        ..args
    })
}

#[cfg(test)]
mod tests {
    use whelk_bake::Output;

    use super::*;

    #[test]
    fn secrets_are_those_of_the_definitions_server() {
        let of = |host| git_secret("GIT_AUTH_TOKEN", "VAR", host);
        assert_eq!(of(None).as_deref(), Some("id=GIT_AUTH_TOKEN,env=VAR"));
        assert_eq!(
            of(Some("[::1]:80")).as_deref(),
            Some("id=GIT_AUTH_TOKEN.[::1]:80,env=VAR")
        );
        assert_eq!(of(Some("h,src=/etc/passwd")), None);
    }

    #[test]
    fn repositories_of_ssh_are_known() {
        for (url, expected) in [
            ("ssh://git@h/a", true),
            ("git@h:a.git", true),
            ("github.com/a/b.git#x@y", false),
            ("https://u:secret@h/a.git", false),
        ] {
            assert_eq!(is_git_ssh(url), expected, "{url}");
        }
    }

    #[test]
    fn full_paths_are_below_a_context_beside_the_definitions() {
        let beside = |file: &str| Target {
            context: Some("sub".into()),
            dockerfile: Some(file.into()),
            is_remote: true,
            ..Target::default()
        };
        assert_eq!(dockerfile(&beside("/x/Own")), "x/Own");
        // It is not the standard input.
        assert_eq!(dockerfile(&beside("/-")), "./-");
        assert!(check(&beside("/-")).is_ok());
        let root = check(&beside("//")).unwrap_err().text;
        assert!(root.contains("it is a directory"), "{root}");
    }

    #[test]
    fn targets_become_builds() {
        let target = Target {
            name: "app".into(),
            context: Some("dir/".into()),
            dockerfile: Some("../x.Dockerfile".into()),
            args: [
                ("A".to_owned(), Some("--x,y".to_owned())),
                ("B".to_owned(), None),
            ]
            .into(),
            tags: Some(vec!["a:1".into(), "b:1".into()]),
            contexts: [("base".to_owned(), "target:base".to_owned())].into(),
            pull: Some(true),
            no_cache: Some(false),
            outputs: Some(vec![Output::default()]),
            ..Target::default()
        };
        let args = Target {
            outputs: None,
            ..target.clone()
        };
        let args = build(&args, None).unwrap();
        assert_eq!((&*args.context, &*args.file), ("dir", "x.Dockerfile"));
        assert_eq!(args.build_arg, ["A=--x,y"]);
        assert_eq!(args.tag, ["a:1", "b:1"]);
        assert_eq!(args.build_context, ["base=target:base"]);
        assert!(args.pull && !args.no_cache);
        let remote = Target {
            context: Some("https://example.com/x.git".into()),
            dockerfile: Some("Dockerfile".into()),
            ..target
        };
        assert_eq!(dockerfile(&remote), "");
        let beside = |file: &str| Target {
            context: Some("sub".into()),
            dockerfile: Some(file.into()),
            is_remote: true,
            ..Target::default()
        };
        assert!(dockerfile(&beside("cwd://Own")).starts_with('/'));
        assert_eq!(local_context("cwd://a/../b", true).as_deref(), Some("b"));
        assert_eq!(local_context("./a", false).as_deref(), Some("a"));
        assert_eq!(local_context("./a", true), None);
        assert_eq!(local_context("docker-image://x", false), None);
        let words = words(
            &Target {
                context: Some("git@example.com:x.git".into()),
                contexts: [("a".to_owned(), "./a".to_owned())].into(),
                has_git_ssh: true,
                ..Target::default()
            },
            Some(&Remote::at("https://example.com/x.git")),
        );
        assert!(words.contains(&"--ssh=default".to_owned()), "{words:?}");
        assert!(!words.iter().any(|word| word.starts_with("--build-context")));
        for (value, expected) in [
            ("oci-layout:///a/b:1", Some("/a/b")),
            ("oci-layout://../a@sha256:00", Some("../a")),
            ("oci-layout:///a:1/b", Some("/a:1/b")),
            ("docker-image://x", None),
        ] {
            assert_eq!(layout(value), expected, "{value}");
        }
        let named = Target {
            contexts: [("a=/etc".to_owned(), "b".to_owned())].into(),
            ..Target::default()
        };
        assert!(
            check(&named)
                .unwrap_err()
                .text
                .contains("invalid name of a context")
        );
        let dash = Target {
            context: Some("./-".into()),
            ..Target::default()
        };
        assert_eq!(
            (&*context(&dash), &*dockerfile(&dash)),
            ("./-", "-/Dockerfile")
        );
        let stdin = Target {
            context: Some("-".into()),
            ..Target::default()
        };
        assert_eq!(
            check(&stdin).unwrap_err().text,
            "context from stdin not allowed in bake"
        );
    }
}
