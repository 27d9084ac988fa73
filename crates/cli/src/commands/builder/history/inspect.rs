//! `buildx history inspect`.

pub(super) mod attachment;
mod config;
mod failure;

use std::path::Path;

use clap::Args;
use serde::Serialize;
use whelk_buildkit::pb::control::BuildHistoryRecord;

use self::attachment::Material;
pub(super) use self::attachment::attachments;
use self::config::Config;
use super::super::BuilderFlags;
use super::ls::time;
use super::{Builds, duration, name, nanos, status};
use crate::commands::build::State;
use crate::format::table::align;
use crate::format::units::local_time;
use crate::output::print;
use crate::terminal::{harmless, harmless_json, one_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    pub flags: BuilderFlags,
    /// Format the output (`pretty`, `json`)
    #[arg(long, default_value = "pretty")]
    format: String,
    /// Platform of an attachment
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Type of an attachment (`index`, `manifest`, `image`, `provenance`, `sbom`, or a media type)
    #[arg(long = "type", default_value = "", hide_default_value = true)]
    kind: String,
    /// The build; the last one without it. `attachment [REF [DIGEST]]` prints a file of it
    #[arg(value_name = "REF", num_args = 0..)]
    names: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    r#ref: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    context: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    dockerfile: String,
    #[serde(rename = "VCSRepository", skip_serializing_if = "String::is_empty")]
    repository: String,
    #[serde(rename = "VCSRevision", skip_serializing_if = "String::is_empty")]
    revision: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    target: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    platform: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    named_contexts: Vec<Pair>,
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    /// In nanoseconds.
    duration: i64,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
    num_completed_steps: i32,
    num_total_steps: i32,
    num_cached_steps: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    build_args: Vec<Pair>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Pair>,
    config: Config,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    materials: Vec<Material>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Attachment>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Error {
    code: i32,
    message: String,
    /// The step that has failed, and the last lines of its output.
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<String>,
    /// The lines of the Dockerfile, in base64 as Go writes bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    sources: String,
    /// The same as text.
    #[serde(skip)]
    excerpts: String,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Attachment {
    digest: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    r#type: String,
}

pub(super) async fn inspect(builds: &Builds, args: InspectArgs) -> Outcome {
    let wanted = match args.names.as_slice() {
        [] => "",
        [word, rest @ ..] if word == "attachment" => {
            let wanted = attachment::Wanted::parse(rest, &args.kind, &args.platform)?;
            return attachment::print(builds, &wanted).await;
        }
        [name] => name,
        _ => return Err(Failure::new("inspect requires at most 1 argument")),
    };
    if !(args.kind.is_empty() && args.platform.is_empty()) {
        return Err(Failure::new(
            "--type and --platform select an attachment: `history inspect attachment`",
        ));
    }
    let record = builds.find(wanted).await?;
    let mut shown = inspected(&record, &builds.states.read(&record.r#ref));
    shown.materials = attachment::materials(builds, &record).await?;
    if let Some(error) = &mut shown.error {
        failure::complete(builds, &record, error).await?;
    }
    let text = match args.format.as_str() {
        "pretty" => {
            // The name that was asked for is known.
            let name = if wanted.is_empty() { &*shown.r#ref } else { "" };
            harmless(&pretty(&record, name, &shown))
        }
        format => {
            let value = serde_json::to_value(&shown);
            let value = value.map_err(|error| Failure::new(error.to_string()))?;
            formatted(format, value)?
        }
    };
    print(&text)?;
    Ok(0)
}

/// Returns what a format makes of a record.
fn formatted(format: &str, value: serde_json::Value) -> Outcome<String> {
    use crate::format::template::{Mode, Template, Typed, failure};
    if format == "json" {
        let text = serde_json::to_string_pretty(&value);
        let text = text.map_err(|error| Failure::new(error.to_string()))?;
        return Ok(harmless_json(&text) + "\n");
    }
    let wrong = |mistake| failure(&mistake, 1, "template parsing error: ");
    let template = Template::parse(format).map_err(wrong)?;
    let shown = template.execute(&Typed::any(value), Mode::Raw);
    Ok(shown.map_err(wrong)? + "\n")
}

fn inspected(record: &BuildHistoryRecord, state: &State) -> Inspected {
    let get = |name: &str| record.frontend_attrs.get(name).cloned().unwrap_or_default();
    let pairs = |prefix: &str| {
        let all = record.frontend_attrs.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix(prefix)?.to_owned();
            let value = value.clone();
            Some(Pair { name, value })
        });
        all.collect::<Vec<_>>()
    };
    let platforms = get("platform");
    let platforms = platforms.split(',').filter(|one| !one.is_empty());
    let end = record.completed_at.map(nanos);
    let end = end.unwrap_or_else(|| jiff::Timestamp::now().as_nanosecond());
    let (context, dockerfile) = paths(record, state);
    let is_fetched = !get("context").is_empty();
    let of_repository = |name: &str| if is_fetched { String::new() } else { get(name) };
    Inspected {
        name: name(record, state),
        r#ref: record.r#ref.clone(),
        context,
        dockerfile,
        repository: of_repository("vcs:source"),
        revision: of_repository("vcs:revision"),
        target: get("target"),
        platform: platforms.map(str::to_owned).collect(),
        named_contexts: pairs("context:"),
        started_at: record.created_at.map(time),
        completed_at: record.completed_at.map(time),
        duration: i64::try_from(end - record.created_at.map_or(end, nanos))
            .unwrap_or(0)
            .max(0),
        status: match status(record) {
            "Error" => "failed".to_owned(),
            status => status.to_lowercase(),
        },
        error: record.error.as_ref().map(|error| Error {
            code: error.code,
            message: error.message.clone(),
            name: String::new(),
            logs: Vec::new(),
            sources: String::new(),
            excerpts: String::new(),
        }),
        num_completed_steps: record.completed_steps,
        num_total_steps: record.total_steps,
        num_cached_steps: record.cached_steps,
        build_args: pairs("build-arg:"),
        labels: pairs("label:"),
        config: Config::of(&record.frontend_attrs, !state.context.is_empty()),
        materials: Vec::new(),
        attachments: attachments(record)
            .into_iter()
            .map(|(platform, descriptor)| Attachment {
                digest: descriptor.digest.clone(),
                platform: platform.to_owned(),
                r#type: attachment::kind(descriptor).to_owned(),
            })
            .collect(),
    }
}

/// Returns the context and the Dockerfile of a build: as this client was asked for them, relative if they are below here, or else as
/// the record has them.
fn paths(record: &BuildHistoryRecord, state: &State) -> (String, String) {
    let get = |name: &str| record.frontend_attrs.get(name).cloned().unwrap_or_default();
    let below = |directory: &Path, path: &str| match Path::new(path).strip_prefix(directory) {
        Ok(rest) if rest.as_os_str().is_empty() => ".".to_owned(),
        Ok(rest) => rest.display().to_string(),
        Err(_) => path.to_owned(),
    };
    let here = std::env::current_dir().unwrap_or_default();
    let context = match state.context.as_str() {
        "" => get("context"),
        path if here.as_os_str().is_empty() => path.to_owned(),
        path => below(&here, path),
    };
    let dockerfile = match (state.dockerfile.as_str(), state.context.as_str()) {
        ("", _) => match get("vcs:localdir:dockerfile").as_str() {
            "" => get("filename"),
            directory => whelk_bake::paths::join(directory, &get("filename")),
        },
        (file, "") => file.to_owned(),
        (file, context) => below(Path::new(context), file),
    };
    (context, dockerfile)
}

/// Returns all of it as text, with this name.
fn pretty(record: &BuildHistoryRecord, name: &str, shown: &Inspected) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text += &format!("{:<17}{}\n", format!("{name}:"), one_line(value));
        }
    };
    line("Name", &shown.name);
    line("Ref", name);
    line("Context", &shown.context);
    line("Dockerfile", &shown.dockerfile);
    line("VCS Repository", &shown.repository);
    line("VCS Revision", &shown.revision);
    line("Target", &shown.target);
    line("Platforms", &shown.platform.join(", "));
    for context in &shown.named_contexts {
        line(
            "Named Context",
            &format!("{}={}", context.name, context.value),
        );
    }
    let started = record.created_at.map(|time| local_time(time.seconds));
    line("Started", &started.unwrap_or_default());
    line("Duration", &duration(record));
    line("Status", status(record));
    let cached = match shown.num_total_steps {
        0 => 0,
        total => shown.num_cached_steps * 100 / total,
    };
    let (done, all) = (shown.num_completed_steps, shown.num_total_steps);
    line("Build Steps", &format!("{done}/{all} ({cached}% cached)"));
    let settings = shown.config.pretty();
    if !settings.is_empty() {
        text += &format!("\n{settings}");
    }
    for (heading, pairs) in [("BUILD ARG", &shown.build_args), ("LABEL", &shown.labels)] {
        if pairs.is_empty() {
            continue;
        }
        let width = pairs.iter().map(|pair| pair.name.len()).max();
        let width = width.unwrap_or(0).max(heading.len()) + 3;
        text += &format!("\n{heading:<width$}VALUE\n");
        for pair in pairs {
            let (name, value) = (one_line(&pair.name), one_line(&pair.value));
            text += &format!("{name:<width$}{value}\n");
        }
    }
    if !shown.materials.is_empty() {
        let rows = shown.materials.iter().map(Material::row);
        let rows: Vec<String> = std::iter::once("URI\tDIGEST".to_owned())
            .chain(rows)
            .collect();
        text += &format!("\nMaterials:\n{}", align(&rows));
    }
    if !shown.attachments.is_empty() {
        let platforms = shown.attachments.iter().map(|one| one.platform.len());
        let width = match platforms.max().unwrap_or(0) {
            0 => 0,
            longest => longest.max("PLATFORM".len()) + 3,
        };
        let heading = if width == 0 { "" } else { "PLATFORM" };
        text += &format!("\n{:<74}{heading:<width$}TYPE\n", "ATTACHMENT");
        for attachment in &shown.attachments {
            let cells = [&attachment.digest, &attachment.platform, &attachment.r#type];
            let [digest, platform, kind] = cells.map(|cell| one_line(cell));
            text += &format!("{digest:<74}{platform:<width$}{kind}\n");
        }
    }
    if let Some(error) = &shown.error {
        text += &format!("\n{}", error.excerpts);
        if !error.logs.is_empty() {
            text += &format!("Logs:\n> => {}:\n", one_line(&error.name));
            text.extend(error.logs.iter().map(|line| format!("> {line}\n")));
        }
        text += &format!("Error: {}\n", error.message);
    }
    text + &format!(
        "\nPrint build logs: whelk buildx history logs {}\n",
        shown.r#ref
    )
}
