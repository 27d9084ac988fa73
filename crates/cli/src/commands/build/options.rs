//! What the flags of a build say to the engine.

use std::collections::BTreeMap;

use whelk_buildkit::pb::control::{CacheOptions, CacheOptionsEntry, SolveRequest};
use whelk_image::{Platform, Reference};
use whelk_text::extra_host::{self, HOST_GATEWAY};

use super::args::BuildArgs;
use super::contexts::Contexts;
use super::outputs::Output;
use crate::client::Client;
use crate::commands::USAGE;
use crate::commands::arguments::{labels_of, not_available};
use crate::commands::container::create::limits::parse_ulimit;
use crate::format::units::parse_size;
use crate::{Failure, Outcome};

type Attributes = BTreeMap<String, String>;

/// Leaves out values that are empty, which scripts have (`--secret "$X"`), as Docker's client does.
pub(super) fn leave_out_empty(args: &mut BuildArgs) {
    for list in [
        &mut args.add_host,
        &mut args.allow,
        &mut args.annotation,
        &mut args.attest,
        &mut args.build_context,
        &mut args.cache_from,
        &mut args.cache_to,
        &mut args.output,
        &mut args.secret,
        &mut args.ssh,
    ] {
        list.retain(|text| !text.is_empty());
    }
}

/// Checks the contexts of `--build-context`, also those that no stage uses, and shortens their names, as buildx does.
///
/// # Errors
/// Returns an error for a name that is none of an image, and for a target, which only files of bake have.
pub(super) fn name_contexts(args: &mut BuildArgs) -> Outcome<()> {
    for given in &mut args.build_context {
        let Some((name, value)) = given.split_once('=') else {
            // It is refused with the others that have no value.
            continue;
        };
        if name.is_empty() {
            continue;
        }
        let named = name
            .parse::<Reference>()
            .map_err(|error| Failure::new(format!("invalid context name {name}: {error}")))?;
        let familiar = named.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        if let Some(target) = value.strip_prefix("target:") {
            let text = format!("failed to find target {target} for context {name}");
            return Err(Failure::new(text));
        }
        *given = format!("{name}={value}");
    }
    Ok(())
}

/// What is wanted instead of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Check,
    Outline,
    Targets,
}

/// How what was called for is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallFormat {
    Text,
    Json,
}

/// Reads `--call` and `--check`; `None` is a build.
pub(super) fn call(args: &BuildArgs) -> Outcome<Option<(Call, CallFormat)>> {
    let text = if args.check { "check" } else { &args.call };
    let invalid = || Failure::new(format!("invalid print mode {text:?}"));
    let (mut name, mut format) = (String::new(), CallFormat::Text);
    for field in whelk_dockerfile::csv::fields(text).map_err(|_| invalid())? {
        match field.split_once('=') {
            None if name.is_empty() => name = field,
            Some(("format", "json")) => format = CallFormat::Json,
            Some(("format", "text")) => {}
            Some(("ignorestatus", _)) => {
                return Err(Failure::new(
                    "--call: ignorestatus not available in this version of whelk",
                ));
            }
            _ => return Err(invalid()),
        }
    }
    let call = match name.as_str() {
        "" | "build" => return Ok(None),
        "check" | "lint" => Call::Check,
        "outline" => Call::Outline,
        "targets" => Call::Targets,
        _ => return Err(invalid()),
    };
    Ok(Some((call, format)))
}

/// Returns the request of a build, without the names of the build and of its session.
pub(super) fn request(
    args: &BuildArgs,
    contexts: &Contexts,
    outputs: &[Output],
) -> Outcome<SolveRequest> {
    refuse(args)?;
    for tag in &args.tag {
        let parsed: Result<Reference, _> = tag.parse();
        if let Err(error) = parsed {
            return Err(Failure::new(format!("invalid tag {tag:?}: {error}")));
        }
    }
    let mut attributes = attributes(args)?;
    attributes.extend(contexts.attributes.clone());
    let mut entitlements = args.allow.clone();
    match args.network.as_str() {
        "" | "default" => {}
        mode @ ("host" | "none") => {
            attributes.insert("force-network-mode".into(), mode.into());
            // As Docker's client: who asks for the host's network of all steps allows it.
            if mode == "host" && !entitlements.iter().any(|right| right == "network.host") {
                entitlements.push("network.host".into());
            }
        }
        // A network of the engine, which BuildKit does not know.
        name => drop(attributes.insert("whelk.network".into(), name.into())),
    }
    let mut exporters = Vec::new();
    if call(args)?.is_none() {
        for output in outputs {
            exporters.push(output.exporter(&args.tag, &args.annotation)?);
        }
    }
    let imports = args.cache_from.iter().map(|text| cache(text, "src"));
    let exports = args.cache_to.iter().map(|text| cache(text, "dest"));
    let mut exports = exports.collect::<Outcome<Vec<_>>>()?;
    // As buildx does it.
    let inline = attributes.get("build-arg:BUILDKIT_INLINE_CACHE");
    if inline.is_some_and(|value| whelk_text::parse_bool(value) == Some(true)) {
        exports.push(CacheOptionsEntry {
            kind: "inline".into(),
            ..CacheOptionsEntry::default()
        });
    }
    Ok(SolveRequest {
        frontend: "dockerfile.v0".into(),
        frontend_attrs: attributes,
        entitlements,
        exporters,
        cache: Some(CacheOptions {
            imports: imports.collect::<Outcome<_>>()?,
            exports,
            ..CacheOptions::default()
        }),
        source_policy: super::policy::from_environment()?,
        ..SolveRequest::default()
    })
}

/// Refuses what this client cannot do. The engine refuses the rest by its names.
fn refuse(args: &BuildArgs) -> Outcome<()> {
    let flags = [
        ("--squash", args.squash),
        ("--security-opt", !args.security_opt.is_empty()),
        ("--isolation", !matches!(&*args.isolation, "" | "default")),
    ];
    not_available(&flags, "for builds it is")
}

/// Refuses another builder than the engine, which has the name of its context. Without a name it is that of the environment.
pub(crate) fn one_builder(client: &Client, name: &str) -> Outcome<()> {
    let variable = match name {
        "" => std::env::var("BUILDX_BUILDER").unwrap_or_default(),
        _ => String::new(),
    };
    let name = if name.is_empty() { &variable } else { name };
    let own = client.context();
    if name.is_empty() || name == own {
        return Ok(());
    }
    Err(Failure::new(format!(
        "no builder {name:?} found: the engine is the only one, {own:?}"
    )))
}

fn attributes(args: &BuildArgs) -> Outcome<Attributes> {
    let mut attributes = Attributes::new();
    let mut set = |name: &str, value: String| drop(attributes.insert(name.to_owned(), value));
    for argument in &args.build_arg {
        if argument.is_empty() || argument.starts_with('=') {
            let text = format!("invalid key-value pair {argument:?}: empty key");
            return Err(Failure::new(text));
        }
        match argument.split_once('=') {
            Some((name, value)) => set(&format!("build-arg:{name}"), value.to_owned()),
            // The value of this process's environment, or none.
            None => {
                if let Ok(value) = std::env::var(argument) {
                    set(&format!("build-arg:{argument}"), value);
                }
            }
        }
    }
    for (name, value) in labels_of(&args.label, "--label")? {
        set(&format!("label:{name}"), value);
    }
    if !args.target.is_empty() {
        set("target", args.target.clone());
    }
    if args.platform.iter().any(String::is_empty) {
        return Err(Failure::new(format!(
            "invalid platform {:?}: one of them is empty",
            args.platform.join(",")
        )));
    }
    // As for images that are pulled.
    let platform = match args.platform.is_empty() {
        true => std::env::var("DOCKER_DEFAULT_PLATFORM").unwrap_or_default(),
        false => args.platform.join(","),
    };
    if !platform.is_empty() {
        set("platform", platforms(&platform));
    }
    limits(args, &mut set)?;
    if args.no_cache && !args.no_cache_filter.is_empty() {
        return Err(Failure::new(
            "--no-cache and --no-cache-filter cannot currently be used together",
        ));
    }
    if args.no_cache || !args.no_cache_filter.is_empty() {
        set("no-cache", args.no_cache_filter.join(","));
    }
    if args.pull {
        set("image-resolve-mode", "pull".into());
    }
    if !args.cgroup_parent.is_empty() {
        set("cgroup-parent", args.cgroup_parent.clone());
    }
    if !args.shm_size.is_empty() {
        set("shm-size", size(&args.shm_size, "--shm-size")?.to_string());
    }
    if !args.ulimit.is_empty() {
        let limits = args.ulimit.iter().map(|text| {
            let limit = parse_ulimit(text)?;
            Ok(format!("{}={}:{}", limit.name, limit.soft, limit.hard))
        });
        set("ulimit", limits.collect::<Outcome<Vec<_>>>()?.join(","));
    }
    if !args.add_host.is_empty() {
        let hosts = args.add_host.iter().map(|host| extra_host(host));
        set("add-hosts", hosts.collect::<Outcome<Vec<_>>>()?.join(","));
    }
    if args.explain {
        set("whelk.explain", "true".into());
    }
    match args.on_error.as_str() {
        "" => {}
        "shell" => set("whelk.keep-failed", "true".into()),
        other => {
            return Err(Failure::new(format!(
                "invalid value {other:?} for --on-error: it can be shell"
            )));
        }
    }
    attest(args, &mut set)?;
    Ok(attributes)
}

/// Puts the platform of this client for `local`, as buildx does, and leaves out what is there twice then.
fn platforms(text: &str) -> String {
    let mut found: Vec<String> = Vec::new();
    for name in text.split(',') {
        let name = match name.eq_ignore_ascii_case("local") {
            true => Platform::host().to_string(),
            false => name.to_owned(),
        };
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found.join(",")
}

/// Sets the limits of processes.
fn limits(args: &BuildArgs, set: &mut impl FnMut(&str, String)) -> Outcome<()> {
    if !args.memory.is_empty() {
        set("memory", size(&args.memory, "-m, --memory")?.to_string());
    }
    match args.memory_swap.as_str() {
        "" => {}
        "-1" => set("memswap", "-1".into()),
        text => set("memswap", size(text, "--memory-swap")?.to_string()),
    }
    for (name, number) in [
        ("cpushares", args.cpu_shares),
        ("cpuperiod", args.cpu_period),
        ("cpuquota", args.cpu_quota),
    ] {
        if number != 0 {
            set(name, number.to_string());
        }
    }
    for (name, text) in [
        ("cpusetcpus", &args.cpuset_cpus),
        ("cpusetmems", &args.cpuset_mems),
    ] {
        if !text.is_empty() {
            set(name, text.clone());
        }
    }
    Ok(())
}

/// Reads a size such as `64m`.
pub(crate) fn size(text: &str, flag: &str) -> Outcome<i64> {
    parse_size(text).map_err(|failure| {
        let text = format!(
            "invalid argument {text:?} for \"{flag}\" flag: {}",
            failure.text
        );
        Failure::with_code(USAGE, text)
    })
}

/// Whether a request needs the host's address.
pub(super) fn wants_host_gateway(attributes: &Attributes) -> bool {
    let hosts = attributes.get("add-hosts").map_or("", String::as_str);
    let mut hosts = hosts.split(',');
    hosts.any(|host| host.ends_with(&format!("={HOST_GATEWAY}")))
}

/// Sets the host's address, as the engine tells it.
pub(super) fn set_host_gateway(attributes: &mut Attributes, address: &str) {
    if let Some(hosts) = attributes.get_mut("add-hosts") {
        let replaced = hosts.split(',').map(|host| {
            let own = host.strip_suffix(HOST_GATEWAY);
            own.map_or(host.to_owned(), |own| format!("{own}{address}"))
        });
        *hosts = replaced.collect::<Vec<_>>().join(",");
    }
}

/// Reads `HOST:IP` or `HOST=IP`.
fn extra_host(text: &str) -> Outcome<String> {
    let (host, address) = extra_host::split(text).unwrap_or((text, ""));
    if host.is_empty() || address.is_empty() {
        return Err(Failure::new(format!("invalid host {text}")));
    }
    // The engine says later which it is.
    if address != HOST_GATEWAY && address.parse::<std::net::IpAddr>().is_err() {
        return Err(Failure::new(format!(
            "invalid IP address in add-host: {address:?}"
        )));
    }
    Ok(format!("{host}={address}"))
}

/// Sets what is attested. Without a flag nothing is.
fn attest(args: &BuildArgs, set: &mut impl FnMut(&str, String)) -> Outcome<()> {
    let is_false = |text: &str| whelk_text::parse_bool(text) == Some(false);
    for (kind, text) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        if !text.is_empty() && !is_false(text) {
            if whelk_text::parse_bool(text).is_none() {
                fields(text, kind)?;
            }
            set(&format!("attest:{kind}"), text.clone());
        }
    }
    for text in &args.attest {
        let fields = fields(text, "attestation")?;
        let kind = fields.get("type").cloned().unwrap_or_default();
        if kind.is_empty() {
            return Err(Failure::new("attestation type not specified"));
        }
        if fields.get("disabled").is_none_or(|text| is_false(text)) {
            set(&format!("attest:{kind}"), text.clone());
        }
    }
    Ok(())
}

/// Reads `key=value,…`.
pub(super) fn fields(text: &str, what: &str) -> Outcome<BTreeMap<String, String>> {
    let fields = whelk_dockerfile::csv::fields(text)
        .map_err(|error| Failure::new(format!("invalid {what} {text:?}: {error}")))?;
    let pair = |field: &String| match field.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_lowercase(), value.to_owned())),
        None => Err(Failure::new(format!(
            "invalid {what} {text:?}: {field:?} must be a key=value pair"
        ))),
    };
    fields.iter().map(pair).collect()
}

/// Reads `--cache-from` or `--cache-to`; `key` is the attribute of a plain name.
fn cache(text: &str, key: &str) -> Outcome<CacheOptionsEntry> {
    if !text.contains(',') && !text.contains('=') {
        let attrs = [("ref".to_owned(), text.to_owned())].into();
        return Ok(CacheOptionsEntry {
            kind: "registry".into(),
            attrs,
        });
    }
    let mut attrs = fields(text, "cache")?;
    let kind = attrs.remove("type").unwrap_or_default();
    if kind.is_empty() {
        return Err(Failure::new(format!("type required for {text:?}")));
    }
    if kind == "local" && !attrs.contains_key(key) {
        return Err(Failure::new(format!("local cache {text:?} requires {key}")));
    }
    Ok(CacheOptionsEntry { kind, attrs })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn args(words: &[&str]) -> BuildArgs {
        let words = ["build"].iter().chain(words).chain(&["."]);
        Line::try_parse_from(words).unwrap().args
    }

    #[track_caller]
    fn check(words: &[&str], expected: Result<&[(&str, &str)], &str>) {
        let found = request(&args(words), &Contexts::default(), &[]);
        let found = found.map(|request| request.frontend_attrs);
        let expected = expected.map(|pairs| {
            let pairs = pairs.iter();
            let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            pairs.collect::<Attributes>()
        });
        let found = found.map_err(|failure| failure.text);
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn flags_become_attributes() {
        check(&[], Ok(&[]));
        check(
            &[
                "--build-arg",
                "A=1=2",
                "--build-arg",
                "NOT_SET_ANYWHERE_Y",
                "--label",
                "l=x",
                "--label",
                "m",
            ],
            Ok(&[("build-arg:A", "1=2"), ("label:l", "x"), ("label:m", "")]),
        );
        check(
            &["--target", "t", "--pull", "--no-cache"],
            Ok(&[
                ("image-resolve-mode", "pull"),
                ("no-cache", ""),
                ("target", "t"),
            ]),
        );
        check(
            &["--no-cache-filter", "a", "--no-cache-filter", "b"],
            Ok(&[("no-cache", "a,b")]),
        );
        check(
            &[
                "--add-host",
                "a:1.2.3.4,b=::1",
                "--shm-size",
                "1m",
                "--ulimit",
                "nofile=5",
            ],
            Ok(&[
                ("add-hosts", "a=1.2.3.4,b=::1"),
                ("shm-size", "1048576"),
                ("ulimit", "nofile=5:5"),
            ]),
        );
        check(
            &["--network", "none", "--provenance", "false"],
            Ok(&[("force-network-mode", "none")]),
        );
        check(
            &["--explain", "--on-error", "shell"],
            Ok(&[("whelk.explain", "true"), ("whelk.keep-failed", "true")]),
        );
        check(&["--sbom", "true"], Ok(&[("attest:sbom", "true")]));
        check(
            &["--sbom", "foo"],
            Err("invalid sbom \"foo\": \"foo\" must be a key=value pair"),
        );
        check(
            &[
                "-m",
                "2g",
                "--memory-swap",
                "-1",
                "-c",
                "512",
                "--cpuset-cpus",
                "0-1",
            ],
            Ok(&[
                ("cpusetcpus", "0-1"),
                ("cpushares", "512"),
                ("memory", "2147483648"),
                ("memswap", "-1"),
            ]),
        );
    }

    #[test]
    fn values_that_are_empty_are_left_out() {
        let mut args = args(&[
            "--secret",
            "",
            "-o",
            "",
            "--ssh",
            "",
            "--secret",
            "id=a",
            "--add-host=",
            "--allow=",
        ]);
        leave_out_empty(&mut args);
        assert_eq!(args.secret, ["id=a"]);
        assert!(args.output.is_empty() && args.ssh.is_empty());
        assert!(args.add_host.is_empty() && args.allow.is_empty());
    }

    #[test]
    fn names_of_contexts_are_checked_and_shortened() {
        let named = |given: &str| {
            let mut args = args(&["--build-context", given]);
            let named = name_contexts(&mut args);
            named.map_err(|failure| failure.text)?;
            Ok(args.build_context.concat())
        };
        for (given, expected) in [
            ("lib=../lib", "lib=../lib"),
            ("docker.io/library/alpine:latest=a=b", "alpine=a=b"),
            ("host:5000/x:1=.", "host:5000/x:1=."),
            ("lib", "lib"),
            ("=x", "=x"),
            ("", ""),
        ] {
            assert_eq!(named(given), Ok(expected.to_owned()));
        }
        for (given, expected) in [
            (
                "UP=.",
                "invalid context name UP: invalid reference format: repository name (library/UP) must be lowercase",
            ),
            (
                "a b=.",
                "invalid context name a b: invalid reference format",
            ),
            ("d=target:x", "failed to find target x for context d"),
        ] {
            assert_eq!(named(given), Err(expected.to_owned()));
        }
    }

    #[test]
    fn the_address_of_the_host_is_set_later() {
        let words = ["--add-host", "a:host-gateway", "--add-host", "b:1.2.3.4"];
        let request = request(&args(&words), &Contexts::default(), &[]).unwrap();
        let mut attributes = request.frontend_attrs;
        assert!(wants_host_gateway(&attributes));
        set_host_gateway(&mut attributes, "172.17.0.1");
        assert_eq!(attributes["add-hosts"], "a=172.17.0.1,b=1.2.3.4");
        assert!(!wants_host_gateway(&attributes));
    }

    #[test]
    fn the_platform_local_is_that_of_the_client() {
        let host = Platform::host().to_string();
        assert_eq!(platforms("local"), host);
        assert_eq!(
            platforms(&format!("Local,{host},linux/s390x")),
            format!("{host},linux/s390x")
        );
        assert_eq!(
            platforms("linux/s390x,local"),
            format!("linux/s390x,{host}")
        );
        assert_eq!(platforms("linux/local"), "linux/local");
        check(
            &["--platform", "local,local"],
            Ok(&[("platform", host.as_str())]),
        );
    }

    #[test]
    fn networks_of_the_engine_are_named() {
        check(&["--network", "mine"], Ok(&[("whelk.network", "mine")]));
        check(
            &["--network", "host"],
            Ok(&[("force-network-mode", "host")]),
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (words, expected) in [
            (["--add-host", "a"], "invalid host a"),
            (
                ["--add-host", "a:b"],
                "invalid IP address in add-host: \"b\"",
            ),
            (
                ["--isolation", "hyperv"],
                "--isolation: for builds it is not available in this version of whelk",
            ),
            (
                ["--memory", "x"],
                "invalid argument \"x\" for \"-m, --memory\" flag: invalid size: 'x'",
            ),
            (
                ["--on-error", "x"],
                "invalid value \"x\" for --on-error: it can be shell",
            ),
            (["--attest", "mode=x"], "attestation type not specified"),
            (
                ["--build-arg", ""],
                "invalid key-value pair \"\": empty key",
            ),
            (
                ["--build-arg", "=a"],
                "invalid key-value pair \"=a\": empty key",
            ),
            (
                ["--platform", "linux/amd64,"],
                "invalid platform \"linux/amd64,\": one of them is empty",
            ),
            (["--tag", ""], "invalid tag \"\": invalid reference format"),
            (
                ["--tag", "App:1"],
                "invalid tag \"App:1\": invalid reference format: repository name (library/App) must be lowercase",
            ),
            (["--cache-to", "dest=x"], "type required for \"dest=x\""),
        ] {
            check(&words, Err(expected));
        }
    }
}
