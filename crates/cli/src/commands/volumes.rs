//! `volume …`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{confirmed, filters, for_each, key_values, labels_of};
use crate::client::{Client, escape_name, query};
use crate::format::table::{self, Column};
use crate::format::units::size;
use crate::{Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume
    Create(CreateArgs),
    /// Display detailed information on one or more volumes
    Inspect(InspectArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove unused local volumes
    Prune(PruneArgs),
    /// Remove one or more volumes
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Update a volume (cluster volumes only)
    Update { volume: String },
}

pub(crate) async fn volume(client: &Client, command: VolumeCommand) -> Outcome {
    match command {
        VolumeCommand::Create(args) => create(client, args).await,
        VolumeCommand::Inspect(args) => {
            super::system::inspect(client, super::system::InspectArgs::new(args.format, args.names), Some("volume")).await
        }
        VolumeCommand::Ls(args) => ls(client, args).await,
        VolumeCommand::Prune(args) => prune(client, args).await,
        VolumeCommand::Rm(args) => rm(client, args).await,
        VolumeCommand::Update { .. } => Err(Failure::new("can only update cluster volumes")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Specify volume driver name
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Set metadata for a volume
    #[arg(long)]
    label: Vec<String>,
    /// Specify volume name
    #[arg(long, hide = true, conflicts_with = "volume")]
    name: Option<String>,
    /// Set driver specific options
    #[arg(short, long)]
    opt: Vec<String>,
    volume: Option<String>,
}

async fn create(client: &Client, args: CreateArgs) -> Outcome {
    let body = json!({
        "Name": args.volume.or(args.name).unwrap_or_default(), "Driver": args.driver, "DriverOpts": key_values(&args.opt)?,
        "Labels": labels_of(&args.label),
    });
    let created = client.post("/volumes/create", Some(&body)).await?;
    println!("{}", created["Name"].as_str().unwrap_or_default());
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "")]
    format: String,
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Provide filter values (e.g. "dangling=true")
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "")]
    format: String,
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: &[Column] = &[
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
];

async fn ls(client: &Client, args: LsArgs) -> Outcome {
    let volumes = client.get(&format!("/volumes{}", query(&[("filters", &filters(&args.filter)?)]))).await?;
    let row = |volume: &Value| {
        let labels: Vec<String> = volume["Labels"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        let fields = json!({
            "Driver": volume["Driver"], "Name": volume["Name"], "Scope": volume["Scope"], "Mountpoint": volume["Mountpoint"],
            "Labels": labels.join(","), "Links": "N/A", "Size": "N/A", "Group": "N/A", "Availability": "N/A", "Status": "N/A",
        });
        fields.as_object().cloned().unwrap_or_default()
    };
    let rows: Vec<_> = volumes["Volumes"].as_array().into_iter().flatten().map(row).collect();
    table::print(&args.format, args.quiet, "{{.Driver}}\t{{.Name}}", "Name", COLUMNS, &rows)?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=<label>")
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    let what = if args.all { "all local volumes" } else { "anonymous local volumes" };
    if !args.force && !confirmed(&format!("{what} not used by at least one container")) {
        return Ok(0);
    }
    let mut given = args.filter;
    if args.all {
        given.push("all=true".into());
    }
    let answer = client.post(&format!("/volumes/prune{}", query(&[("filters", &filters(&given)?)])), None).await?;
    let deleted: Vec<&str> = answer["VolumesDeleted"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !deleted.is_empty() {
        println!("Deleted Volumes:\n{}\n", deleted.join("\n"));
    }
    println!("Total reclaimed space: {}", size(answer["SpaceReclaimed"].as_u64().unwrap_or(0), 4));
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of one or more volumes
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

async fn rm(client: &Client, args: RmArgs) -> Outcome {
    let query = query(&[("force", if args.force { "1" } else { "" })]);
    for_each(&args.volumes, async |name| {
        client.delete(&format!("/volumes/{}{query}", escape_name(name))).await?;
        println!("{name}");
        Ok(())
    })
    .await
}
