//! The `volume ls` command.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use whelk_api_types::{Volume, VolumeListResponse};

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
struct Row {
    driver: String,
    name: String,
    scope: String,
    mountpoint: String,
    labels: BTreeMap<String, String>,
    links: &'static str,
    size: &'static str,
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
    let row = |volume: Volume| Row {
        driver: volume.driver,
        name: volume.name,
        scope: volume.scope,
        mountpoint: volume.mountpoint,
        labels: volume.labels.unwrap_or_default(),
        links: UNKNOWN,
        size: UNKNOWN,
        group: UNKNOWN,
        availability: UNKNOWN,
        status: UNKNOWN,
    };
    volumes.sort_by(|one, other| natural(&one.name, &other.name));
    let rows = volumes.into_iter().map(row).collect();
    TABLE.print(&args.format, args.quiet, "{{.Driver}}\t{{.Name}}", rows)?;
    Ok(0)
}
