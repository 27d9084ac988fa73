//! The `ps` command.

use clap::Args;
use serde_json::{Map, Value, json};
use whelk_text::size;

use super::ports;
use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::filters;
use crate::format::table::Table;
use crate::format::units::{ago, ellipsis};

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

pub(crate) async fn ps(client: &Client, args: PsArgs) -> Outcome {
    TABLE.check(&args.format)?;
    let limit = if args.latest { 1 } else { args.last };
    let size = args.size || args.format.contains(".Size");
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
    let containers = client.get(&format!("/containers/json{query}")).await?;
    let rows: Vec<Map<String, Value>> = containers
        .as_array()
        .into_iter()
        .flatten()
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

pub(crate) fn row(container: &Value, no_trunc: bool) -> Map<String, Value> {
    let text = |key: &str| container[key].as_str().unwrap_or_default();
    let short = |id: &str| {
        if no_trunc {
            id.to_owned()
        } else {
            id.chars().take(12).collect()
        }
    };
    let created = container["Created"].as_i64().unwrap_or(0);
    let local = jiff::Timestamp::from_second(created)
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::system());
    let join = |values: Vec<String>| values.join(",");
    let names = container["Names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|name| name.trim_start_matches('/').to_owned())
        // Names that contain a slash come from links.
        .filter(|name| no_trunc || !name.contains('/'))
        .collect();
    let labels = container["Labels"].as_object().cloned().unwrap_or_default();
    let mounts = container["Mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|mount| {
            mount["Name"]
                .as_str()
                .filter(|name| !name.is_empty())
                .or(mount["Source"].as_str())
                .unwrap_or_default()
        })
        .map(|source| {
            if no_trunc {
                source.to_owned()
            } else {
                ellipsis(source, 15)
            }
        });
    let command = if no_trunc {
        text("Command").to_owned()
    } else {
        ellipsis(text("Command"), 20)
    };
    let image = text("Image");
    let sizes = (
        container["SizeRw"].as_u64().unwrap_or(0),
        container["SizeRootFs"].as_u64().unwrap_or(0),
    );
    let fields = json!({
        "ID": short(text("Id")),
        "Image": if image.is_empty() { "<no image>".to_owned() } else if image.starts_with("sha256:") && !no_trunc { short(&image[7..]) } else { image.to_owned() },
        "Command": format!("{command:?}"),
        "CreatedAt": local.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
        "RunningFor": ago(created),
        "Ports": ports::column(&container["Ports"]),
        "State": text("State"),
        "Status": text("Status"),
        "Size": if sizes.1 > 0 { format!("{} (virtual {})", size::decimal(sizes.0, 3), size::decimal(sizes.1, 3)) } else { size::decimal(sizes.0, 3) },
        "Names": join(names),
        "Labels": labels,
        "Mounts": join(mounts.collect()),
        "LocalVolumes": container["Mounts"].as_array().into_iter().flatten().filter(|mount| mount["Driver"] == "local").count().to_string(),
        "Networks": join(container["NetworkSettings"]["Networks"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()),
        "Platform": Value::Null,
    });
    fields.as_object().cloned().unwrap_or_default()
}
