//! The `volume update` command, which is only for the volumes of a swarm.

use clap::Args;

use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Cluster volume availability ("active", "pause", "drain")
    #[arg(long)]
    availability: Option<String>,
    /// Name of the volume
    volume: String,
}

pub(super) fn update(_args: UpdateArgs) -> Outcome {
    Err(Failure::new("can only update cluster volumes"))
}
