//! The `ps` command.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use whelk_api_types::{ContainerSummary, MountPoint};
use whelk_text::size;

use super::ports;
use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::filters;
use crate::format::table::Table;
use crate::format::units::{ago, ellipsis, local_time};

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, default_value = "-1", allow_hyphen_values = true)]
    last: i64,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

const TABLE: Table = Table {
    row: "*formatter.ContainerContext",
    id: "ID",
    columns: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("RunningFor", "CREATED"),
        ("Ports", "PORTS"),
        ("State", "STATE"),
        ("Status", "STATUS"),
        ("Size", "SIZE"),
        ("Names", "NAMES"),
        ("Labels", "LABELS"),
        ("Mounts", "MOUNTS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Networks", "NETWORKS"),
        ("Platform", "PLATFORM"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    #[serde(rename = "ID")]
    pub id: String,
    pub image: String,
    pub command: String,
    created_at: String,
    pub running_for: String,
    ports: String,
    state: String,
    pub status: String,
    pub size: String,
    pub names: String,
    labels: BTreeMap<String, String>,
    mounts: String,
    pub local_volumes: String,
    networks: String,
    /// Not in the API's version of this client.
    platform: Option<()>,
}

pub(crate) async fn ps(client: &Client, mut args: PsArgs) -> Outcome {
    args.format = client.format(args.format, args.quiet, "psFormat");
    TABLE.check(&args.format)?;
    let limit = if args.latest { 1 } else { args.last };
    let size = args.size || shows_size(&args.format);
    let limit = if limit > 0 {
        limit.to_string()
    } else {
        String::new()
    };
    let query = query(&[
        ("all", if args.all { "1" } else { "" }),
        ("limit", &limit),
        ("size", if size { "1" } else { "" }),
        ("filters", &filters(&args.filter)?),
    ]);
    let containers: Vec<ContainerSummary> = client.get(&format!("/containers/json{query}")).await?;
    let rows = containers
        .iter()
        .map(|container| row(container, args.no_trunc))
        .collect();
    let default = if args.size {
        "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}"
    } else {
        "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
    };
    TABLE.print(&args.format, args.quiet, default, rows)?;
    Ok(0)
}

/// Returns whether a template shows sizes: by name, or with all other fields.
fn shows_size(format: &str) -> bool {
    let dense: String = format.split_whitespace().collect();
    ["{{json.}}", "{{json.|"]
        .iter()
        .any(|all| dense.contains(all))
        || dense.contains(".Size")
}

pub(crate) fn row(container: &ContainerSummary, no_trunc: bool) -> Row {
    let short = |id: &str| {
        if no_trunc {
            id.to_owned()
        } else {
            id.chars().take(12).collect()
        }
    };
    let cut = |text: &str, most: usize| {
        if no_trunc {
            text.to_owned()
        } else {
            ellipsis(text, most)
        }
    };
    let image = match container.image.as_str() {
        "" => "<no image>".to_owned(),
        image => match image.strip_prefix("sha256:") {
            Some(digits) if !no_trunc => short(digits),
            _ => image.to_owned(),
        },
    };
    let names: Vec<&str> = container
        .names
        .iter()
        .map(|name| name.trim_start_matches('/'))
        // Names that contain a slash come from links.
        .filter(|name| no_trunc || !name.contains('/'))
        .collect();
    let source = |mount: &MountPoint| {
        let has_name = !mount.name.is_empty();
        cut(if has_name { &mount.name } else { &mount.source }, 15)
    };
    let mounts: Vec<String> = container.mounts.iter().map(source).collect();
    let local = container
        .mounts
        .iter()
        .filter(|mount| mount.driver == "local");
    let networks = &container.network_settings.networks;
    let networks: Vec<&str> = networks.keys().map(String::as_str).collect();
    let writable = size::decimal(container.size_rw.unwrap_or(0), 3);
    Row {
        id: short(&container.id),
        image,
        command: format!("{:?}", cut(&container.command, 20)),
        created_at: local_time(container.created),
        running_for: ago(container.created),
        ports: ports::column(&container.ports),
        state: container.state.clone(),
        status: container.status.clone(),
        size: match container.size_root_fs {
            None | Some(0) => writable,
            Some(all) => format!("{writable} (virtual {})", size::decimal(all, 3)),
        },
        names: names.join(","),
        labels: container.labels.clone(),
        mounts: mounts.join(","),
        local_volumes: local.count().to_string(),
        networks: networks.join(","),
        platform: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_requested_for_templates_that_show_them() {
        for (format, expected) in [
            ("{{.Size}}", true),
            ("{{json .}}", true),
            ("{{ json . | upper }}", true),
            ("json", false),
            ("{{json .Names}}", false),
            ("table {{.Names}}", false),
        ] {
            assert_eq!(shows_size(format), expected, "{format}");
        }
    }
}
