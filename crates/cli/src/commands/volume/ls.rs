//! The `volume ls` command.

use clap::Args;
use serde_json::{Value, json};

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

pub(super) async fn ls(client: &Client, args: LsArgs) -> Outcome {
    not_available(&[("--cluster", args.cluster)], "volumes of a swarm are")?;
    let volumes = client
        .get(&format!(
            "/volumes{}",
            query(&[("filters", &filters(&args.filter)?)])
        ))
        .await?;
    let row = |volume: &Value| {
        let labels = volume["Labels"].as_object().cloned().unwrap_or_default();
        let fields = json!({
            "Driver": volume["Driver"], "Name": volume["Name"], "Scope": volume["Scope"], "Mountpoint": volume["Mountpoint"],
            "Labels": labels, "Links": "N/A", "Size": "N/A", "Group": "N/A", "Availability": "N/A", "Status": "N/A",
        });
        fields.as_object().cloned().unwrap_or_default()
    };
    let mut volumes: Vec<&Value> = volumes["Volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    volumes.sort_by(|one, other| natural(one["Name"].as_str(), other["Name"].as_str()));
    let rows = volumes.into_iter().map(row).collect();
    TABLE.print(&args.format, args.quiet, "{{.Driver}}\t{{.Name}}", rows)?;
    Ok(0)
}
