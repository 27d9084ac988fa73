//! `buildx history inspect`.

use clap::Args;
use serde::Serialize;
use whelk_buildkit::pb::control::{BuildHistoryRecord, Descriptor};

use super::super::BuilderFlags;
use super::ls::time;
use super::{Builds, duration, name, nanos, status};
use crate::format::units::local_time;
use crate::output::{print, write_out};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    pub flags: BuilderFlags,
    /// Format the output (`pretty`, `json`)
    #[arg(long, default_value = "pretty")]
    format: String,
    /// The build; the last one without it. `attachment REF DIGEST` prints a file of it
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Attachment>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Error {
    code: i32,
    message: String,
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
        [word, name, digest] if word == "attachment" => {
            return attachment(builds, name, digest).await;
        }
        [word, ..] if word == "attachment" => {
            return Err(Failure::new(
                "attachment requires a build and a digest, which inspect shows",
            ));
        }
        [name] => name,
        _ => return Err(Failure::new("inspect requires at most 1 argument")),
    };
    let record = builds.find(wanted).await?;
    let shown = inspected(&record);
    let text = match args.format.as_str() {
        "pretty" => crate::terminal::harmless(&pretty(&record, &shown)),
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
        return Ok(text + "\n");
    }
    let wrong = |mistake| failure(&mistake, 1, "template parsing error: ");
    let template = Template::parse(format).map_err(wrong)?;
    let shown = template.execute(&Typed::any(value), Mode::Raw);
    Ok(shown.map_err(wrong)? + "\n")
}

async fn attachment(builds: &Builds, name: &str, digest: &str) -> Outcome {
    let record = builds.find(name).await?;
    let mut attached = attachments(&record).into_iter();
    if !attached.any(|(_, descriptor)| descriptor.digest == digest) {
        return Err(Failure::new(format!("no attachment {digest} found")));
    }
    write_out(&builds.blob(digest).await?)?;
    Ok(0)
}

/// Returns the files that a build has left, and the platforms that they are for; those of a build for one platform have none.
pub(super) fn attachments(record: &BuildHistoryRecord) -> Vec<(&str, &Descriptor)> {
    let of_all = record.result.iter().map(|result| ("", result));
    let of_platforms = record.results.iter();
    let of_platforms = of_platforms.map(|(platform, result)| (platform.as_str(), result));
    let mut all = Vec::new();
    for (platform, result) in of_all.chain(of_platforms) {
        let outputs = match (result.results.is_empty(), &result.deprecated) {
            (true, Some(only)) => vec![only],
            _ => result.results.values().collect(),
        };
        let found = outputs.into_iter().chain(&result.attestations);
        all.extend(found.map(|descriptor| (platform, descriptor)));
    }
    all
}

/// Returns what an attachment is: the type of a statement's predicate, or the media type.
fn kind(descriptor: &Descriptor) -> &str {
    let predicate = descriptor.annotations.get("in-toto.io/predicate-type");
    predicate.unwrap_or(&descriptor.media_type)
}

fn inspected(record: &BuildHistoryRecord) -> Inspected {
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
    Inspected {
        name: name(record),
        r#ref: record.r#ref.clone(),
        context: get("context"),
        dockerfile: get("filename"),
        repository: get("vcs:source"),
        revision: get("vcs:revision"),
        target: get("target"),
        platform: platforms.map(str::to_owned).collect(),
        named_contexts: pairs("context:"),
        started_at: record.created_at.map(time),
        completed_at: record.completed_at.map(time),
        duration: i64::try_from(end - record.created_at.map_or(end, nanos))
            .unwrap_or(0)
            .max(0),
        status: status(record).to_lowercase(),
        error: record.error.as_ref().map(|error| Error {
            code: error.code,
            message: error.message.clone(),
        }),
        num_completed_steps: record.completed_steps,
        num_total_steps: record.total_steps,
        num_cached_steps: record.cached_steps,
        build_args: pairs("build-arg:"),
        labels: pairs("label:"),
        attachments: attachments(record)
            .into_iter()
            .map(|(platform, descriptor)| Attachment {
                digest: descriptor.digest.clone(),
                platform: platform.to_owned(),
                r#type: kind(descriptor).to_owned(),
            })
            .collect(),
    }
}

/// Returns all of it as text.
fn pretty(record: &BuildHistoryRecord, shown: &Inspected) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text += &format!("{:<17}{value}\n", format!("{name}:"));
        }
    };
    line("Name", &shown.name);
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
    for (heading, pairs) in [("BUILD ARG", &shown.build_args), ("LABEL", &shown.labels)] {
        if pairs.is_empty() {
            continue;
        }
        let width = pairs.iter().map(|pair| pair.name.len()).max();
        let width = width.unwrap_or(0).max(heading.len()) + 3;
        text += &format!("\n{heading:<width$}VALUE\n");
        for pair in pairs {
            text += &format!("{:<width$}{}\n", pair.name, pair.value);
        }
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
            let (digest, platform) = (&attachment.digest, &attachment.platform);
            text += &format!("{digest:<74}{platform:<width$}{}\n", attachment.r#type);
        }
    }
    if let Some(error) = &shown.error {
        text += &format!("\nError: {}\n", error.message);
    }
    text + &format!(
        "\nPrint build logs: whelk buildx history logs {}\n",
        shown.r#ref
    )
}
