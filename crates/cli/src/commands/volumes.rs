//! The `volume` commands.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use whelk_text::{size, url};

use super::destination::Destination;
use super::images::{file_body, reader_body};
use super::inspect::{Inspection, inspect};
use super::{confirmed, filters, for_each, key_values, labels_of, not_available, prune_filters};
use crate::client::{Client, no_body, query};
use crate::format::natural;
use crate::format::table::Table;
use crate::output::print_line;
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
pub(crate) enum VolumeCommand {
    /// Copy a volume into a new one
    Clone(CloneArgs),
    /// Create a volume
    Create(CreateVolumeArgs),
    /// Write a volume's content as a tar archive to a file or STDOUT
    Export(ExportArgs),
    /// Unpack a tar archive into a volume, which is created if it is missing
    Import(ImportArgs),
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
    /// Copy a volume's current content into a new read-only volume
    Snapshot(SnapshotArgs),
    /// Update a volume (cluster volumes only)
    Update {
        /// Cluster volume availability ("active", "pause", "drain")
        #[arg(long)]
        availability: Option<String>,
        /// Name of the volume
        volume: String,
    },
}

pub(crate) async fn volume(client: &Client, command: VolumeCommand) -> Outcome {
    match command {
        VolumeCommand::Clone(args) => {
            let ClonedArgs {
                label,
                pause,
                volume,
            } = args.cloned;
            copy(client, "clone", &volume, &args.name, &label, pause).await
        }
        VolumeCommand::Create(args) => create(client, args).await,
        VolumeCommand::Export(args) => export(client, args).await,
        VolumeCommand::Import(args) => import(client, args).await,
        VolumeCommand::Snapshot(args) => {
            let ClonedArgs {
                label,
                pause,
                volume,
            } = args.cloned;
            let name = args.name.unwrap_or_else(|| {
                format!(
                    "{volume}-{}",
                    jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S.%3f")
                )
            });
            copy(client, "snapshot", &volume, &name, &label, pause).await
        }
        VolumeCommand::Inspect(args) => {
            let what = Inspection {
                format: args.format,
                names: args.names,
                kind: Some("volume".into()),
                ..Inspection::default()
            };
            inspect(client, what).await
        }
        VolumeCommand::Ls(args) => ls(client, args).await,
        VolumeCommand::Prune(args) => prune(client, args).await,
        VolumeCommand::Rm(args) => rm(client, args).await,
        VolumeCommand::Update { .. } => Err(Failure::new("can only update cluster volumes")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct CreateVolumeArgs {
    /// Specify volume driver name
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Set metadata for a volume
    #[arg(long)]
    label: Vec<String>,
    /// Specify volume name
    #[arg(long, hide = true)]
    name: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Set driver specific options
    #[arg(short, long)]
    opt: Vec<String>,
    /// Name of the volume (default: a random one)
    volume: Option<String>,
}

/// Flags for cluster volumes (swarm), which are not supported.
#[derive(Debug, Args)]
struct ClusterArgs {
    /// Cluster Volume availability ("active", "pause", "drain")
    #[arg(long)]
    availability: Option<String>,
    /// Cluster Volume group (cluster volumes)
    #[arg(long)]
    group: Option<String>,
    /// Maximum size of the Cluster Volume in bytes
    #[arg(long)]
    limit_bytes: Option<String>,
    /// Minimum size of the Cluster Volume in bytes
    #[arg(long)]
    required_bytes: Option<String>,
    /// Cluster Volume access scope ("single", "multi")
    #[arg(long)]
    scope: Option<String>,
    /// Cluster Volume secrets
    #[arg(long)]
    secret: Vec<String>,
    /// Cluster Volume access sharing ("none", "readonly", "onewriter", "all")
    #[arg(long)]
    sharing: Option<String>,
    /// A topology that the Cluster Volume would be preferred in
    #[arg(long)]
    topology_preferred: Vec<String>,
    /// A topology that the Cluster Volume must be accessible from
    #[arg(long)]
    topology_required: Vec<String>,
    /// Cluster Volume access type ("mount", "block")
    #[arg(long = "type")]
    kind: Option<String>,
}

impl ClusterArgs {
    fn check(&self) -> Outcome<()> {
        let given = [
            ("--availability", self.availability.is_some()),
            ("--group", self.group.is_some()),
            ("--limit-bytes", self.limit_bytes.is_some()),
            ("--required-bytes", self.required_bytes.is_some()),
            ("--scope", self.scope.is_some()),
            ("--secret", !self.secret.is_empty()),
            ("--sharing", self.sharing.is_some()),
            ("--topology-preferred", !self.topology_preferred.is_empty()),
            ("--topology-required", !self.topology_required.is_empty()),
            ("--type", self.kind.is_some()),
        ];
        not_available(&given, "volumes of a swarm are")
    }
}

async fn create(client: &Client, args: CreateVolumeArgs) -> Outcome {
    args.cluster.check()?;
    if args.name.is_some() && args.volume.is_some() {
        return Err(Failure::new(
            "conflicting options: cannot specify a volume-name through both --name and as a positional arg",
        ));
    }
    let body = json!({
        "Name": args.volume.or(args.name).unwrap_or_default(), "Driver": args.driver, "DriverOpts": key_values(&args.opt),
        "Labels": labels_of(&args.label, "--label")?,
    });
    let created = client.post("/volumes/create", Some(&body)).await?;
    print_line!("{}", created["Name"].as_str().unwrap_or_default())?;
    Ok(0)
}

/// Flags shared by `clone` and `snapshot`.
#[derive(Debug, Args)]
struct ClonedArgs {
    /// Set metadata for the new volume
    #[arg(long)]
    label: Vec<String>,
    /// Pause the containers that use the volume meanwhile
    #[arg(long)]
    pause: bool,
    /// Name of the volume to copy
    volume: String,
}

#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    #[command(flatten)]
    cloned: ClonedArgs,
    /// Name of the new volume
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    cloned: ClonedArgs,
    /// Name of the new volume (default: the volume's name and the time)
    name: Option<String>,
}

async fn copy(
    client: &Client,
    how: &str,
    source: &str,
    name: &str,
    labels: &[String],
    pause: bool,
) -> Outcome {
    let body = json!({"Name": name, "Labels": labels_of(labels, "--label")?, "Pause": pause});
    let made = client
        .post(
            &format!("/volumes/{}/{how}", url::escape(source)),
            Some(&body),
        )
        .await?;
    print_line!("{}", made["Name"].as_str().unwrap_or_default())?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<String>,
    /// Name of the volume
    volume: String,
}

async fn export(client: &Client, args: ExportArgs) -> Outcome {
    let destination = Destination::new(args.output.as_deref(), "volume")?;
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/volumes/{}/export", url::escape(&args.volume)),
            &[],
            no_body(),
        )
        .await?;
    destination.write_body(response).await?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Name of the volume
    volume: String,
    /// Archive to read, or - for STDIN
    #[arg(default_value = "-")]
    file: String,
}

async fn import(client: &Client, args: ImportArgs) -> Outcome {
    let body = match args.file.as_str() {
        "-" if terminal::stdin_is_terminal() => {
            return Err(Failure::new(
                "requested import from stdin, but stdin is empty",
            ));
        }
        "-" => reader_body(std::io::stdin()),
        path => file_body(path)?,
    };
    let path = format!("/volumes/{}/import", url::escape(&args.volume));
    client
        .send(
            hyper::Method::POST,
            &path,
            &[("content-type", "application/x-tar")],
            body,
        )
        .await?;
    print_line!("{}", args.volume)?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

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

async fn ls(client: &Client, args: LsArgs) -> Outcome {
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
    let what = if args.all {
        "all local volumes"
    } else {
        "anonymous local volumes"
    };
    if !args.force && !confirmed(&format!("{what} not used by at least one container")) {
        return Ok(0);
    }
    let mut given = args.filter;
    if args.all {
        given.push("all=true".into());
    }
    let answer = client
        .post(
            &format!(
                "/volumes/prune{}",
                query(&[("filters", &prune_filters(&given)?)])
            ),
            None,
        )
        .await?;
    let deleted: Vec<&str> = answer["VolumesDeleted"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !deleted.is_empty() {
        print_line!("Deleted Volumes:\n{}\n", deleted.join("\n"))?;
    }
    print_line!(
        "Total reclaimed space: {}",
        size::decimal(answer["SpaceReclaimed"].as_u64().unwrap_or(0), 4)
    )?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of one or more volumes
    #[arg(short, long)]
    force: bool,
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

async fn rm(client: &Client, args: RmArgs) -> Outcome {
    let query = query(&[("force", if args.force { "1" } else { "" })]);
    for_each(&args.volumes, async |name| {
        client
            .delete(&format!("/volumes/{}{query}", url::escape(name)))
            .await?;
        print_line!("{name}")?;
        Ok(())
    })
    .await
}
