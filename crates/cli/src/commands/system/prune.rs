//! The `system prune` command.

use clap::Args;
use whelk_api_types::{
    ContainerPruneResponse, ImagePruneResponse, NetworkPruneResponse, VolumePruneResponse,
};

use crate::client::Client;
use crate::commands::confirm::asked;
use crate::commands::pruned::{
    filters, post, print_deleted, print_deleted_images, print_reclaimed,
};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    if args.volumes
        && args
            .filter
            .iter()
            .any(|filter| filter.starts_with("until="))
    {
        return Err(Failure::new(
            "ERROR: The \"until\" filter is not supported with \"--volumes\"",
        ));
    }
    let given = filters(&args.filter)?;
    let mut parts = vec![
        "  - all stopped containers",
        "  - all networks not used by at least one container",
    ];
    if args.volumes {
        parts.push("  - all anonymous volumes not used by at least one container");
    }
    parts.push(if args.all {
        "  - all images without at least one container associated to them"
    } else {
        "  - all dangling images"
    });
    if !args.force
        && !asked(&format!(
            "WARNING! This will remove:\n{}\n\nAre you sure you want to continue? [y/N] ",
            parts.join("\n")
        ))
    {
        return Ok(0);
    }
    let mut reclaimed = 0;
    let containers: ContainerPruneResponse = post(client, "containers", &given).await?;
    print_deleted(
        "Containers",
        &containers.containers_deleted.unwrap_or_default(),
    )?;
    reclaimed += containers.space_reclaimed;
    let networks: NetworkPruneResponse = post(client, "networks", &given).await?;
    print_deleted("Networks", &networks.networks_deleted.unwrap_or_default())?;
    if args.volumes {
        let volumes: VolumePruneResponse = post(client, "volumes", &given).await?;
        print_deleted("Volumes", &volumes.volumes_deleted)?;
        reclaimed += volumes.space_reclaimed;
    }
    let mut for_images = args.filter;
    if args.all {
        for_images.push("dangling=false".into());
    }
    let given = filters(&for_images)?;
    let images: ImagePruneResponse = post(client, "images", &given).await?;
    print_deleted_images(&images.images_deleted.unwrap_or_default())?;
    reclaimed += images.space_reclaimed;
    print_reclaimed(reclaimed)?;
    Ok(0)
}
