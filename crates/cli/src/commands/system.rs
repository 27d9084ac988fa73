//! The commands about everything: inspect, events, info, version, prune.

use std::io::Write;

use clap::Args;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::images::print_pruned;
use super::{asked, confirmed, filters};
use crate::client::{Client, escape_name, no_body, query};
use crate::format::template::Template;
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

pub(crate) async fn inspect(client: &Client, args: InspectArgs, kind: Option<&str>) -> Outcome {
    let kind = kind.or(args.kind.as_deref());
    if let Some(kind) = kind.filter(|kind| !KINDS.iter().any(|(known, _)| known == kind)) {
        return Err(Failure::new(format!("unknown type: {kind:?}")));
    }
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for name in &args.names {
        match inspect_one(client, name, kind, args.size).await {
            Ok(value) => found.push(value),
            Err(failure) => failures.push(failure.text),
        }
    }
    match args.format.as_str() {
        "" => println!("{}", pretty(&Value::Array(found))),
        "json" => found.iter().for_each(|value| println!("{value}")),
        format => {
            found.iter_mut().for_each(name_optional);
            let template = Template::parse(format)?;
            for value in &found {
                println!("{}", template.execute(value)?);
            }
        }
    }
    if failures.is_empty() { Ok(0) } else { Err(Failure::new(failures.join("\n"))) }
}

/// Puts in what a container may have and this one has not, for templates to ask for.
fn name_optional(container: &mut Value) {
    if !container["HostConfig"].is_object() {
        return;
    }
    for (place, name) in [("/State", "Health"), ("", "SizeRw"), ("", "SizeRootFs")] {
        if let Some(Value::Object(fields)) = container.pointer_mut(place) {
            fields.entry(name).or_insert(Value::Null);
        }
    }
}

/// The kinds of objects in the order they are looked for, and where the API has them.
const KINDS: &[(&str, &str)] =
    &[("container", "/containers/{}/json"), ("image", "/images/{}/json"), ("network", "/networks/{}"), ("volume", "/volumes/{}")];

async fn inspect_one(client: &Client, name: &str, kind: Option<&str>, size: bool) -> Outcome<Value> {
    for (known, path) in KINDS.iter().filter(|(known, _)| kind.is_none_or(|kind| kind == *known)) {
        let size = query(&[("size", if size && *known == "container" { "1" } else { "" })]);
        match client.get(&(path.replace("{}", &escape_name(name)) + &size)).await {
            Err(error) if error.status == hyper::StatusCode::NOT_FOUND && kind.is_none() => {}
            result => return Ok(result?),
        }
    }
    Err(Failure::new(format!("Error: No such object: {name}")))
}

impl InspectArgs {
    pub(crate) fn new(format: String, names: Vec<String>) -> Self {
        Self { format, size: false, kind: None, names }
    }
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
    let query = query(&[("since", &moment(&args.since)?), ("until", &moment(&args.until)?), ("filters", &filters(&args.filter)?)]);
    let template = match args.format.as_str() {
        "" => None,
        "json" => Some(Template::parse("{{json .}}")?),
        format => Some(Template::parse(format)?),
    };
    let response = client.send(hyper::Method::GET, &format!("/events{query}"), &[], no_body()).await?;
    let mut body = response.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Failure::new("unexpected EOF"))?.into_data() else { continue };
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
            let text = match &template {
                Some(template) => template.execute(&event)?,
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
    let time = jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default().to_zoned(jiff::tz::TimeZone::system());
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
    if attributes.is_empty() { head } else { format!("{head} ({})", attributes.join(", ")) }
}

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
}

/// Carries out `--format` on one object, or prints the text for people.
fn print_one(value: &Value, format: &str, text: impl FnOnce() -> String) -> Outcome {
    match format {
        "" => print!("{}", text()),
        "json" => println!("{value}"),
        format => println!("{}", Template::parse(format)?.execute(value)?),
    }
    Ok(0)
}

pub(crate) async fn info(client: &Client, args: FormatArgs) -> Outcome {
    let info = client.get("/info").await?;
    print_one(&info, &args.format, || {
        let line =
            |label: &str, key: &str| format!(" {label}: {}\n", info[key].as_str().map_or_else(|| info[key].to_string(), str::to_owned));
        let mut text = format!("Client:\n Version: {}\n\nServer:\n", env!("CARGO_PKG_VERSION"));
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
        text += &format!(" Total Memory: {}\n", binary_size(info["MemTotal"].as_u64().unwrap_or(0)));
        text + &line("Name", "Name") + &line("ID", "ID") + &line("Root Dir", "DockerRootDir")
    })
}

pub(crate) async fn version(client: &Client, args: FormatArgs) -> Outcome {
    let server = client.get("/version").await?;
    let own = json!({"Version": env!("CARGO_PKG_VERSION"), "ApiVersion": "1.51", "Os": "linux", "Arch": server["Arch"]});
    print_one(&json!({"Client": own, "Server": server}), &args.format, || {
        let block = |name: &str, value: &Value| {
            format!(
                "{name}:\n Version:      {}\n API version:  {}\n OS/Arch:      {}/{}\n",
                value["Version"].as_str().unwrap_or_default(),
                value["ApiVersion"].as_str().unwrap_or_default(),
                value["Os"].as_str().unwrap_or_default(),
                value["Arch"].as_str().unwrap_or_default()
            )
        };
        let kernel = server["KernelVersion"].as_str().unwrap_or_default();
        let mut text = format!("{}\n{} Kernel:       {kernel}\n", block("Client", &own), block("Server", &server));
        for part in server["Components"].as_array().into_iter().flatten().filter(|part| part["Name"] != "Engine") {
            let of = |key: &str| part[key].as_str().unwrap_or_default();
            text += &format!(" {}:\n  Version:     {}\n", of("Name"), of("Version"));
        }
        text
    })
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
    let answer = client.post(&format!("/{what}/prune{}", query(&[("filters", &filters(&given)?)])), None).await?;
    if what == "containers" {
        let deleted: Vec<&str> = answer["ContainersDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !deleted.is_empty() {
            println!("Deleted Containers:\n{}\n", deleted.join("\n"));
        }
    } else if answer["ImagesDeleted"].is_array() {
        println!("Deleted Images:");
        print_pruned(&answer["ImagesDeleted"]);
        println!();
    }
    println!("Total reclaimed space: {}", size(answer["SpaceReclaimed"].as_u64().unwrap_or(0), 4));
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
    if args.volumes && args.filter.iter().any(|filter| filter.starts_with("until=")) {
        return Err(Failure::new("ERROR: The \"until\" filter is not supported with \"--volumes\""));
    }
    let mut parts = vec!["  - all stopped containers", "  - all networks not used by at least one container"];
    if args.volumes {
        parts.push("  - all anonymous volumes not used by at least one container");
    }
    parts.push(if args.all { "  - all images without at least one container associated to them" } else { "  - all dangling images" });
    if !args.force && !asked(&format!("WARNING! This will remove:\n{}\n\nAre you sure you want to continue? [y/N] ", parts.join("\n"))) {
        return Ok(0);
    }
    let mut kinds = vec![("containers", "ContainersDeleted", "Deleted Containers"), ("networks", "NetworksDeleted", "Deleted Networks")];
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
        let answer = client.post(&format!("/{kind}/prune{}", query(&[("filters", &filters(&given)?)])), None).await?;
        let deleted = answer[field].as_array().map(Vec::as_slice).unwrap_or_default();
        if !deleted.is_empty() {
            println!("{title}:");
            if kind == "images" {
                print_pruned(&answer[field]);
            }
            deleted.iter().filter_map(Value::as_str).for_each(|name| println!("{name}"));
            println!();
        }
        reclaimed += answer["SpaceReclaimed"].as_u64().unwrap_or(0);
    }
    println!("Total reclaimed space: {}", size(reclaimed, 4));
    Ok(0)
}
