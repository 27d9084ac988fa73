//! The `network ls` command.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use whelk_api_types::NetworkInspect;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::filters;
use crate::format::natural;
use crate::format::table::Table;
use crate::format::units::utc_time;

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

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    driver: String,
    scope: String,
    #[serde(rename = "IPv4")]
    ipv4: String,
    #[serde(rename = "IPv6")]
    ipv6: String,
    internal: String,
    labels: BTreeMap<String, String>,
    created_at: String,
}

pub(super) async fn ls(client: &Client, args: LsArgs) -> Outcome {
    let mut networks: Vec<NetworkInspect> = client
        .get(&format!(
            "/networks{}",
            query(&[("filters", &filters(&args.filter)?)])
        ))
        .await?;
    networks.sort_by(|one, other| natural(&one.name, &other.name));
    let row = |network: NetworkInspect| Row {
        id: if args.no_trunc {
            network.id
        } else {
            network.id.chars().take(12).collect()
        },
        name: network.name,
        driver: network.driver,
        scope: network.scope,
        ipv4: network.enable_ipv4.to_string(),
        ipv6: network.enable_ipv6.to_string(),
        internal: network.internal.to_string(),
        labels: network.labels,
        created_at: utc_time(&network.created),
    };
    let rows = networks.into_iter().map(row).collect();
    let format = client.format(args.format, args.quiet, "networksFormat");
    TABLE.print(
        &format,
        args.quiet,
        "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
        rows,
    )?;
    Ok(0)
}
