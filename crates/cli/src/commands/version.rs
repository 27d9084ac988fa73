//! The `version` command, and the output of a single object that it shares with `info`.

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use whelk_api_types::{SystemVersion, read};
use whelk_text::build;

use crate::Outcome;
use crate::client::{API_VERSION, ApiResult, Client, unreadable};
use crate::format::template::{Mode, Template, Typed, failure, json, typed};
use crate::output::print;

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(super) format: String,
}

/// Prints an object as `--format` says, or as `text` without a format.
pub(crate) fn print_one(
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
                .map_err(|mistake| failure(&mistake, 64, "template parsing error: "))?;
            let (text, outcome) = template.execute_until(object, Mode::Values);
            print(&(text + "\n"))?;
            return outcome.map_err(|mistake| failure(&mistake, 1, ""));
        }
    };
    print(&text)
}

pub(crate) async fn version(client: &Client, args: FormatArgs) -> Outcome {
    // The client's part is printed even if the engine cannot be reached.
    let answer = client.get::<Value>("/version").await;
    let server: ApiResult<SystemVersion> = answer
        .clone()
        .and_then(|server| read(server).map_err(unreadable));
    let negotiated = server.as_ref().map_or(API_VERSION, |server| {
        older(&server.api_version, API_VERSION)
    });
    let own = ClientVersion {
        version: env!("CARGO_PKG_VERSION"),
        api_version: client.fixed_version().unwrap_or(negotiated),
        build: Build::of(client),
    };
    let both = Versions {
        client: &own,
        server: answer.ok(),
    };
    let both = typed("system.versionInfo", json(&both)?);
    print_one(&both, "version", &args.format, || {
        version_text(&own, server.as_ref().ok())
    })?;
    server.map(|_| 0).map_err(Into::into)
}

/// Both versions. Templates see the engine's as it has sent it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Versions<'v> {
    client: &'v ClientVersion<'v>,
    server: Option<Value>,
}

/// The client's version.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ClientVersion<'v> {
    version: &'v str,
    api_version: &'v str,
    #[serde(flatten)]
    build: Build<'v>,
}

/// The client's version, build and context, as `version` and `info` show them.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Build<'b> {
    #[serde(rename = "DefaultAPIVersion")]
    default_api_version: &'b str,
    git_commit: &'b str,
    go_version: &'b str,
    os: &'b str,
    arch: &'b str,
    build_time: String,
    context: &'b str,
}

impl<'b> Build<'b> {
    pub(crate) fn of(client: &'b Client) -> Self {
        Self {
            default_api_version: API_VERSION,
            git_commit: build::COMMIT,
            go_version: "",
            os: std::env::consts::OS,
            arch: architecture(),
            build_time: readable(build::TIME),
            context: client.context(),
        }
    }
}

/// Returns the older of two versions `1.N`.
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

fn version_text(own: &ClientVersion, server: Option<&SystemVersion>) -> String {
    let mut lines = String::from("Client:\n");
    let mut line = |label: &str, value: &str, indent: usize| {
        let indent = " ".repeat(indent);
        lines += format!("{indent}{:<19}{value}", format!("{label}:")).trim_end();
        lines.push('\n');
    };
    let build = &own.build;
    line("Version", own.version, 1);
    let version = if own.api_version == build.default_api_version {
        own.api_version.to_owned()
    } else {
        format!(
            "{} (downgraded from {})",
            own.api_version, build.default_api_version
        )
    };
    line("API version", &version, 1);
    for (label, value) in [
        ("Git commit", build.git_commit),
        ("Built", &build.build_time),
    ] {
        if !value.is_empty() {
            line(label, value, 1);
        }
    }
    line("OS/Arch", &format!("{}/{}", build.os, build.arch), 1);
    line("Context", build.context, 1);
    let Some(server) = server else { return lines };
    lines += "\nServer:\n";
    let mut line = |label: &str, value: &str, indent: usize| {
        let (indent, width) = (" ".repeat(indent), 20 - indent);
        lines += format!("{indent}{:<width$}{value}", format!("{label}:")).trim_end();
        lines.push('\n');
    };
    line("Engine", "", 1);
    line("Version", &server.version, 2);
    let version = match server.min_api_version.as_str() {
        "" => server.api_version.clone(),
        least => format!("{} (minimum version {least})", server.api_version),
    };
    line("API version", &version, 2);
    for (label, value) in [
        ("Git commit", &server.git_commit),
        ("Built", &readable(&server.build_time)),
    ] {
        if !value.is_empty() {
            line(label, value, 2);
        }
    }
    line("OS/Arch", &format!("{}/{}", server.os, server.arch), 2);
    line("Kernel", &server.kernel_version, 2);
    line("Experimental", &server.experimental.to_string(), 2);
    let others = server.components.iter();
    for component in others.filter(|component| component.name != "Engine") {
        line(&component.name, "", 1);
        line("Version", &component.version, 2);
        for (key, value) in component
            .details
            .iter()
            .filter(|(_, value)| !value.is_empty())
        {
            line(key, value, 2);
        }
    }
    lines
}

/// Returns a time as Docker's client shows it; one that cannot be read as it is.
fn readable(time: &str) -> String {
    time.parse::<jiff::Timestamp>().map_or_else(
        |_| time.to_owned(),
        |time| time.strftime("%a %b %e %H:%M:%S %Y").to_string(),
    )
}

/// Returns the machine's architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_and_time_of_the_build_are_shown_if_they_are_known() {
        let text = |commit: &'static str, time: &str| {
            let own = ClientVersion {
                version: "1",
                api_version: "1.51",
                build: Build {
                    default_api_version: "1.51",
                    git_commit: commit,
                    go_version: "",
                    os: "linux",
                    arch: "amd64",
                    build_time: readable(time),
                    context: "default",
                },
            };
            let server = SystemVersion {
                git_commit: commit.into(),
                build_time: time.into(),
                ..SystemVersion::default()
            };
            version_text(&own, Some(&server))
        };
        let shown = text("0123abc", "2026-11-08T12:16:52.000000000+00:00");
        let shows = |name: &str, value: &str| {
            let lines = shown.lines().map(str::trim);
            lines
                .filter(|line| line.starts_with(name) && line.ends_with(value))
                .count()
        };
        // Of the client and of the engine.
        assert_eq!(shows("Git commit:", " 0123abc"), 2, "{shown}");
        assert_eq!(shows("Built:", " Sun Nov  8 12:16:52 2026"), 2, "{shown}");
        let shown = text("", "");
        assert!(
            !shown.contains("Git") && !shown.contains("Built"),
            "{shown}"
        );
    }
}
