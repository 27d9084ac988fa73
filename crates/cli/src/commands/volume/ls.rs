//! The `volume ls` command.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use whelk_api_types::{Volume, VolumeListResponse};
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::{filters, not_available};
use crate::format::natural;
use crate::format::table::Table;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Display only cluster volumes, and use cluster volume list formatting
    #[arg(long)]
    cluster: bool,
    /// Provide filter values (e.g. "dangling=true")
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

const TABLE: Table = Table {
    row: "*formatter.volumeContext",
    id: "Name",
    columns: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Scope", "SCOPE"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
        ("Links", "LINKS"),
        ("Size", "SIZE"),
        ("Group", "GROUP"),
        ("Availability", "AVAILABILITY"),
        ("Status", "STATUS"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    driver: String,
    name: String,
    scope: String,
    mountpoint: String,
    labels: BTreeMap<String, String>,
    links: String,
    size: String,
    group: &'static str,
    availability: &'static str,
    status: &'static str,
}

/// Docker's placeholder for a value that a list of volumes does not contain.
const UNKNOWN: &str = "N/A";

pub(super) async fn ls(client: &Client, args: LsArgs) -> Outcome {
    not_available(&[("--cluster", args.cluster)], "volumes of a swarm are")?;
    let VolumeListResponse { mut volumes, .. } = client
        .get(&format!(
            "/volumes{}",
            query(&[("filters", &filters(&args.filter)?)])
        ))
        .await?;
    volumes.sort_by(|one, other| natural(&one.name, &other.name));
    let rows = volumes.into_iter().map(row).collect();
    let format = client.format(args.format, args.quiet, "volumesFormat");
    TABLE.print(&format, args.quiet, "{{.Driver}}\t{{.Name}}", rows)?;
    Ok(0)
}

/// Returns the row of a volume, with its use if the engine has sent that.
pub(crate) fn row(volume: Volume) -> Row {
    let usage = volume.usage_data;
    let shown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    Row {
        driver: volume.driver,
        name: volume.name,
        scope: volume.scope,
        mountpoint: volume.mountpoint,
        labels: volume.labels.unwrap_or_default(),
        links: shown(usage.map(|usage| usage.ref_count.to_string())),
        size: shown(usage.map(|usage| size::decimal(usage.size.try_into().unwrap_or(0), 4))),
        group: UNKNOWN,
        availability: UNKNOWN,
        status: UNKNOWN,
    }
}
