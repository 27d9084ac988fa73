//! The `volume create` command.

use clap::Args;
use whelk_api_types::{Volume, VolumeCreateRequest};

use crate::client::Client;
use crate::commands::arguments::{key_values, labels_of, not_available};
use crate::output::print_line;
use crate::{Failure, Outcome};

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

pub(super) async fn create(client: &Client, args: CreateVolumeArgs) -> Outcome {
    args.cluster.check()?;
    if args.name.is_some() && args.volume.is_some() {
        return Err(Failure::new(
            "conflicting options: cannot specify a volume-name through both --name and as a positional arg",
        ));
    }
    let body = VolumeCreateRequest {
        name: args.volume.or(args.name).unwrap_or_default(),
        driver: args.driver,
        driver_opts: Some(key_values(&args.opt)),
        labels: Some(labels_of(&args.label, "--label")?),
        ..VolumeCreateRequest::default()
    };
    let created: Volume = client.post_json("/volumes/create", &body).await?;
    print_line!("{}", created.name)?;
    Ok(0)
}
