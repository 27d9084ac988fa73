//! The `context ls` command.

use clap::Args;
use serde::Serialize;

use super::{DEFAULT_DESCRIPTION, store};
use crate::Outcome;
use crate::context::{Context, DEFAULT};
use crate::endpoint::{RootFlags, overriding_variable};
use crate::format::natural;
use crate::format::table::Table;
use crate::format::units::ellipsis;
use crate::output::warn_line;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Only show context names
    #[arg(short, long)]
    quiet: bool,
}

const TABLE: Table = Table {
    row: "*formatter.clientContextContext",
    id: "Name",
    columns: &[
        ("Current", ""),
        ("Description", "DESCRIPTION"),
        ("DockerEndpoint", "DOCKER ENDPOINT"),
        ("Error", "ERROR"),
        ("Name", "NAME"),
    ],
};

/// Maximum length of an error in characters.
const MAX_ERROR: usize = 45;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    current: bool,
    description: String,
    docker_endpoint: String,
    error: String,
    name: String,
}

pub(super) fn ls(flags: &RootFlags, args: LsArgs) -> Outcome {
    let store = store(flags)?;
    let current = flags.context();
    let mut contexts = store.list()?;
    let host = flags.default_host()?.0.to_string();
    contexts.push(Context::new(DEFAULT, DEFAULT_DESCRIPTION, &host, false));
    let mut error = String::new();
    if !contexts.iter().any(|context| context.name() == current) {
        // It is listed with the reason why it cannot be used.
        error = store.read(&current).err().unwrap_or_default();
        contexts.push(Context::new(&current, "", "", false));
    }
    contexts.sort_by(|one, other| natural(one.name(), other.name()));
    let row = |context: &Context| {
        let is_current = context.name() == current;
        let error = if is_current {
            ellipsis(&error, MAX_ERROR)
        } else {
            String::new()
        };
        Row {
            current: is_current,
            description: context.description().to_owned(),
            docker_endpoint: context.host().to_owned(),
            error,
            name: context.name().to_owned(),
        }
    };
    let rows = contexts.iter().map(row).collect();
    let default =
        "{{.Name}}{{if .Current}} *{{end}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}";
    TABLE.print(&args.format, args.quiet, default, rows)?;
    if let Some(variable) = overriding_variable() {
        warn_line!(
            "Warning: {variable} environment variable overrides the active context. To use a context, either set the global --context flag, or unset {variable} environment variable."
        );
    }
    Ok(0)
}
