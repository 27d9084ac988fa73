//! The `network ls` command.

use clap::Args;
use serde_json::{Value, json};

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::filters;
use crate::format::natural;
use crate::format::table::Table;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Provide filter values (e.g. "driver=bridge")
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

const TABLE: Table = Table {
    row: "*network.networkContext",
    id: "ID",
    columns: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
};

pub(super) async fn ls(client: &Client, args: LsArgs) -> Outcome {
    let networks = client
        .get(&format!(
            "/networks{}",
            query(&[("filters", &filters(&args.filter)?)])
        ))
        .await?;
    let mut networks = networks.as_array().cloned().unwrap_or_default();
    networks.sort_by(|one, other| natural(one["Name"].as_str(), other["Name"].as_str()));
    let row = |network: &Value| {
        let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
        let switch = |key: &str| network[key].as_bool().unwrap_or(false).to_string();
        let id = text("Id");
        let labels = network["Labels"].as_object().cloned().unwrap_or_default();
        let created = text("Created")
            .parse::<jiff::Timestamp>()
            .map(|time| time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string());
        let fields = json!({
            "ID": if args.no_trunc { id } else { id.chars().take(12).collect() },
            "Name": text("Name"), "Driver": text("Driver"), "Scope": text("Scope"), "IPv4": switch("EnableIPv4"), "IPv6": switch("EnableIPv6"),
            "Internal": switch("Internal"), "Labels": labels, "CreatedAt": created.unwrap_or_default(),
        });
        fields.as_object().cloned().unwrap_or_default()
    };
    let rows = networks.iter().map(row).collect();
    TABLE.print(
        &args.format,
        args.quiet,
        "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
        rows,
    )?;
    Ok(0)
}
