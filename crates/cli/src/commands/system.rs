//! The commands about everything: inspect, events, info, version, prune.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::images::{platform_json, print_pruned};
use super::{asked, confirmed, filters};
use crate::client::{API_VERSION, Client, escape_name, no_body, query};
use crate::format::table::print_text;
use crate::format::template::{Mistake, Mode, Template, Typed};
use crate::format::units::{binary_size, moment, size};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
    /// Display total file sizes if the type is container
    #[arg(short, long)]
    size: bool,
    /// Only inspect objects of the given type
    #[arg(long = "type")]
    kind: Option<String>,
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectContainerArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectImageArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
    /// Inspect a specific platform of the multi-platform image
    #[arg(long)]
    platform: Option<String>,
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

/// What is to be inspected, and how.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    pub format: String,
    pub names: Vec<String>,
    /// One of `KINDS`; none for whichever has the name.
    pub kind: Option<String>,
    pub size: bool,
    pub platform: Option<String>,
}

impl From<InspectArgs> for Inspection {
    fn from(args: InspectArgs) -> Self {
        Self {
            format: args.format,
            names: args.names,
            kind: args.kind,
            size: args.size,
            platform: None,
        }
    }
}

impl From<InspectContainerArgs> for Inspection {
    fn from(args: InspectContainerArgs) -> Self {
        Self {
            format: args.format,
            names: args.names,
            kind: Some("container".into()),
            size: args.size,
            platform: None,
        }
    }
}

impl From<InspectImageArgs> for Inspection {
    fn from(args: InspectImageArgs) -> Self {
        Self {
            format: args.format,
            names: args.names,
            kind: Some("image".into()),
            size: false,
            platform: args.platform,
        }
    }
}

pub(super) async fn inspect(client: &Client, what: impl Into<Inspection>) -> Outcome {
    let what = what.into();
    let kind = what.kind.as_deref();
    if let Some(kind) = kind.filter(|kind| !KINDS.iter().any(|known| known.name == *kind)) {
        return Err(Failure::new(format!("unknown type: {kind:?}")));
    }
    let template = match what.format.as_str() {
        "" | "json" => None,
        format => Some(
            Template::parse(format)
                .map_err(|mistake| mistake.failure(64, "template parsing error: "))?,
        ),
    };
    let (mut found, mut shown, mut failures) = (Vec::new(), String::new(), Vec::new());
    for name in &what.names {
        match (inspect_one(client, name, &what).await, &template) {
            (Ok(object), None) => found.push(object.json),
            (Ok(object), Some(template)) => match show(template, object) {
                Ok(text) => shown += &(text + "\n"),
                Err(failure) => failures.push(failure.text),
            },
            (Err(failure), _) => failures.push(failure.text),
        }
    }
    print_text(&match what.format.as_str() {
        "" => pretty(&Value::Array(found)) + "\n",
        "json" => Value::Array(found).to_string() + "\n",
        _ if shown.is_empty() => "\n".into(),
        _ => shown,
    });
    if failures.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(failures.join("\n")))
    }
}

/// What a template makes of an object: of its type in Docker's client, or else of its JSON as it
/// came.
fn show(template: &Template, object: Typed) -> Outcome<String> {
    let typed = template.execute(&object, Mode::Values);
    typed.or_else(|_| {
        template
            .execute(&Typed::any(object.json), Mode::Raw)
            .map_err(|mistake| mistake.failure(1, "template parsing error: "))
    })
}

/// A kind of object that can be inspected.
struct InspectKind {
    name: &'static str,
    /// Where the API has it.
    path: &'static str,
    /// Its type in Docker's client.
    ty: &'static str,
}

/// In the order they are looked for.
const KINDS: &[InspectKind] = &[
    InspectKind {
        name: "container",
        path: "/containers/{}/json",
        ty: "container.InspectResponse",
    },
    InspectKind {
        name: "image",
        path: "/images/{}/json",
        ty: "image.InspectResponse",
    },
    InspectKind {
        name: "network",
        path: "/networks/{}",
        ty: "network.Inspect",
    },
    InspectKind {
        name: "volume",
        path: "/volumes/{}",
        ty: "volume.Volume",
    },
];

async fn inspect_one(client: &Client, name: &str, what: &Inspection) -> Outcome<Typed> {
    let wanted = what.kind.as_deref();
    for kind in KINDS
        .iter()
        .filter(|kind| wanted.is_none_or(|wanted| wanted == kind.name))
    {
        let size = if what.size && kind.name == "container" {
            "1"
        } else {
            ""
        };
        let platform = platform_json(what.platform.as_deref().unwrap_or_default())?;
        let query = query(&[("size", size), ("platform", &platform)]);
        match client
            .get(&(kind.path.replace("{}", &escape_name(name)) + &query))
            .await
        {
            Err(error) if error.status == hyper::StatusCode::NOT_FOUND && wanted.is_none() => {}
            result => return Ok(Typed::new(kind.ty, result?)),
        }
    }
    Err(Failure::new(format!("Error: No such object: {name}")))
}

/// JSON indented by four, as Docker prints objects.
fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template: 'json' or a Go template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show all events created since timestamp
    #[arg(long, default_value = "", hide_default_value = true)]
    since: String,
    /// Stream events until this timestamp
    #[arg(long, default_value = "", hide_default_value = true)]
    until: String,
}

pub(crate) async fn events(client: &Client, args: EventsArgs) -> Outcome {
    let query = query(&[
        ("since", &moment(&args.since)?),
        ("until", &moment(&args.until)?),
        ("filters", &filters(&args.filter)?),
    ]);
    let bad = |mistake: Mistake, code| mistake.failure(code, "Error parsing format: ");
    let template = match args.format.as_str() {
        "" => None,
        "json" => Some("{{json .}}"),
        format => Some(format),
    };
    let template = template
        .map(Template::parse)
        .transpose()
        .map_err(|mistake| bad(mistake, 64))?;
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/events{query}"),
            &[],
            no_body(),
        )
        .await?;
    let mut body = response.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame
            .map_err(|_| Failure::new("unexpected EOF"))?
            .into_data()
        else {
            continue;
        };
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Ok(event) = serde_json::from_slice::<Value>(&line) else {
                continue;
            };
            let text = match &template {
                Some(template) => template
                    .execute(&Typed::new("events.Message", event), Mode::Values)
                    .map_err(|mistake| bad(mistake, 1))?,
                None => event_line(&event),
            };
            let mut out = std::io::stdout();
            writeln!(out, "{text}").and_then(|()| out.flush())?;
        }
    }
    Ok(0)
}

/// `TIME TYPE ACTION ID (key=value, …)`
fn event_line(event: &Value) -> String {
    let nanoseconds = event["timeNano"].as_i64().unwrap_or(0);
    let time = jiff::Timestamp::from_nanosecond(nanoseconds.into())
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::system());
    let mut attributes: Vec<String> = event["Actor"]["Attributes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    attributes.sort();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let head = format!(
        "{} {} {} {}",
        time.strftime("%Y-%m-%dT%H:%M:%S.%9f%:z"),
        text(&event["Type"]),
        text(&event["Action"]),
        text(&event["Actor"]["ID"])
    );
    if attributes.is_empty() {
        head
    } else {
        format!("{head} ({})", attributes.join(", "))
    }
}

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
}

/// Carries out `--format` on one object, or prints the text for people.
fn print_one(
    object: &Typed,
    name: &'static str,
    format: &str,
    text: impl FnOnce() -> String,
) -> Outcome<()> {
    let text = match format {
        "" => text(),
        "json" => format!("{}\n", object.json),
        format => {
            let template = Template::named(name, format)
                .map_err(|mistake| mistake.failure(64, "template parsing error: "))?;
            let (text, outcome) = template.execute_until(object, Mode::Values);
            print_text(&(text + "\n"));
            return outcome.map_err(|mistake| mistake.failure(1, ""));
        }
    };
    print_text(&text);
    Ok(())
}

pub(crate) async fn info(client: &Client, args: FormatArgs) -> Outcome {
    // What the client itself is can be told without an engine.
    let answer = client.get("/info").await;
    let mut info = answer.as_ref().ok().cloned().unwrap_or_else(|| json!({}));
    info["ClientInfo"] = json!({
        "Debug": client.debug(), "Version": env!("CARGO_PKG_VERSION"), "DefaultAPIVersion": API_VERSION, "GitCommit": "", "GoVersion": "",
        "Os": std::env::consts::OS, "Arch": architecture(), "BuildTime": "", "Context": client.context(), "Plugins": [], "Warnings": null,
    });
    print_one(
        &Typed::new("system.dockerInfo", info.clone()),
        "",
        &args.format,
        || info_text(client, answer.as_ref().ok()),
    )?;
    answer.map(|_| 0).map_err(Into::into)
}

fn info_text(client: &Client, info: Option<&Value>) -> String {
    let mut text = format!(
        "Client:\n Version:    {}\n Context:    {}\n Debug Mode: {}\n\nServer:\n",
        env!("CARGO_PKG_VERSION"),
        client.context(),
        client.debug()
    );
    let Some(info) = info else { return text };
    let line = |label: &str, key: &str| {
        format!(
            " {label}: {}\n",
            info[key]
                .as_str()
                .map_or_else(|| info[key].to_string(), str::to_owned)
        )
    };
    for (label, key) in [
        ("Containers", "Containers"),
        (" Running", "ContainersRunning"),
        (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ] {
        text += &line(label, key);
    }
    text += &format!(
        " Total Memory: {}\n",
        binary_size(info["MemTotal"].as_u64().unwrap_or(0))
    );
    text + &line("Name", "Name") + &line("ID", "ID") + &line("Docker Root Dir", "DockerRootDir")
}

/// The machine's architecture in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) async fn version(client: &Client, args: FormatArgs) -> Outcome {
    // What the client itself is can be told without an engine.
    let server = client.get("/version").await;
    let spoken = server
        .as_ref()
        .ok()
        .and_then(|server| server["ApiVersion"].as_str())
        .map_or(API_VERSION, |theirs| older(theirs, API_VERSION));
    let own = json!({
        "Version": env!("CARGO_PKG_VERSION"), "ApiVersion": spoken, "DefaultAPIVersion": API_VERSION, "GitCommit": "", "GoVersion": "",
        "Os": std::env::consts::OS, "Arch": architecture(), "BuildTime": "", "Context": client.context(),
    });
    let both = Typed::new(
        "system.versionInfo",
        json!({"Client": own, "Server": server.as_ref().ok()}),
    );
    print_one(&both, "version", &args.format, || {
        version_text(&own, server.as_ref().ok())
    })?;
    server.map(|_| 0).map_err(Into::into)
}

/// The older one of two versions `1.N`.
fn older<'v>(one: &'v str, other: &'v str) -> &'v str {
    let minor = |version: &str| {
        version
            .split_once('.')
            .and_then(|(_, minor)| minor.parse::<u32>().ok())
            .unwrap_or(0)
    };
    if minor(one) < minor(other) {
        one
    } else {
        other
    }
}

fn version_text(own: &Value, server: Option<&Value>) -> String {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut lines = String::from("Client:\n");
    let mut line = |label: &str, value: String, indent: usize| {
        let indent = " ".repeat(indent);
        lines += format!("{indent}{:<19}{value}", format!("{label}:")).trim_end();
        lines.push('\n');
    };
    let api = |value: &Value| match (text(value, "ApiVersion"), text(value, "MinAPIVersion")) {
        (api, least) if least.is_empty() => api,
        (api, least) => format!("{api} (minimum version {least})"),
    };
    line("Version", text(own, "Version"), 1);
    line("API version", text(own, "ApiVersion"), 1);
    line(
        "OS/Arch",
        format!("{}/{}", text(own, "Os"), text(own, "Arch")),
        1,
    );
    line("Context", text(own, "Context"), 1);
    let Some(server) = server else { return lines };
    let components = server["Components"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    lines += "\nServer:\n";
    let mut line = |label: &str, value: &str, indent: usize| {
        let (indent, width) = (" ".repeat(indent), 20 - indent);
        lines += format!("{indent}{:<width$}{value}", format!("{label}:")).trim_end();
        lines.push('\n');
    };
    line("Engine", "", 1);
    line("Version", &text(server, "Version"), 2);
    line("API version", &api(server), 2);
    line(
        "OS/Arch",
        &format!("{}/{}", text(server, "Os"), text(server, "Arch")),
        2,
    );
    line("Kernel", &text(server, "KernelVersion"), 2);
    line(
        "Experimental",
        &server["Experimental"]
            .as_bool()
            .unwrap_or(false)
            .to_string(),
        2,
    );
    for component in components
        .iter()
        .filter(|component| component["Name"] != "Engine")
    {
        line(&text(component, "Name"), "", 1);
        line("Version", &text(component, "Version"), 2);
        for (key, value) in component["Details"].as_object().into_iter().flatten() {
            line(key, value.as_str().unwrap_or_default(), 2);
        }
    }
    lines
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn prune(client: &Client, args: PruneArgs, what: &str) -> Outcome {
    if !args.force {
        let warning = if what == "containers" {
            "all stopped containers"
        } else if args.all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        };
        if !confirmed(warning) {
            return Ok(0);
        }
    }
    let mut given = args.filter;
    if what == "images" && args.all {
        given.push("dangling=false".into());
    }
    let answer = client
        .post(
            &format!("/{what}/prune{}", query(&[("filters", &filters(&given)?)])),
            None,
        )
        .await?;
    if what == "containers" {
        let deleted: Vec<&str> = answer["ContainersDeleted"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !deleted.is_empty() {
            println!("Deleted Containers:\n{}\n", deleted.join("\n"));
        }
    } else if answer["ImagesDeleted"].is_array() {
        println!("Deleted Images:");
        print_pruned(&answer["ImagesDeleted"]);
        println!();
    }
    println!(
        "Total reclaimed space: {}",
        size(answer["SpaceReclaimed"].as_u64().unwrap_or(0), 4)
    );
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct PruneAllArgs {
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn prune_all(client: &Client, args: PruneAllArgs) -> Outcome {
    if args.volumes
        && args
            .filter
            .iter()
            .any(|filter| filter.starts_with("until="))
    {
        return Err(Failure::new(
            "ERROR: The \"until\" filter is not supported with \"--volumes\"",
        ));
    }
    let mut parts = vec![
        "  - all stopped containers",
        "  - all networks not used by at least one container",
    ];
    if args.volumes {
        parts.push("  - all anonymous volumes not used by at least one container");
    }
    parts.push(if args.all {
        "  - all images without at least one container associated to them"
    } else {
        "  - all dangling images"
    });
    if !args.force
        && !asked(&format!(
            "WARNING! This will remove:\n{}\n\nAre you sure you want to continue? [y/N] ",
            parts.join("\n")
        ))
    {
        return Ok(0);
    }
    let mut kinds = vec![
        ("containers", "ContainersDeleted", "Deleted Containers"),
        ("networks", "NetworksDeleted", "Deleted Networks"),
    ];
    if args.volumes {
        kinds.push(("volumes", "VolumesDeleted", "Deleted Volumes"));
    }
    kinds.push(("images", "ImagesDeleted", "Deleted Images"));
    let mut reclaimed = 0;
    for (kind, field, title) in kinds {
        let mut given = args.filter.clone();
        if kind == "images" && args.all {
            given.push("dangling=false".into());
        }
        let answer = client
            .post(
                &format!("/{kind}/prune{}", query(&[("filters", &filters(&given)?)])),
                None,
            )
            .await?;
        let deleted = answer[field]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if !deleted.is_empty() {
            println!("{title}:");
            if kind == "images" {
                print_pruned(&answer[field]);
            }
            deleted
                .iter()
                .filter_map(Value::as_str)
                .for_each(|name| println!("{name}"));
            println!();
        }
        reclaimed += answer["SpaceReclaimed"].as_u64().unwrap_or(0);
    }
    println!("Total reclaimed space: {}", size(reclaimed, 4));
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// Directory of the engine's data [default: the one of the configuration file, or
    /// /var/lib/whelk]
    #[arg(long, alias = "data-root")]
    root: Option<PathBuf>,
    /// Configuration file of the engine [default: /etc/whelk/daemon.json]
    #[arg(long)]
    config_file: Option<PathBuf>,
}

pub(crate) fn repair(args: RepairArgs, repair: crate::Repair) -> Outcome {
    for line in repair(args.root, args.config_file)? {
        println!("{line}");
    }
    Ok(0)
}
