//! The `image inspect` command.

use clap::Args;

use crate::commands::inspect::{Inspection, ObjectArgs};

#[derive(Debug, Args)]
#[command(mut_arg("names", |names| names.value_name("IMAGE")))]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    objects: ObjectArgs,
    /// Inspect a specific platform of the multi-platform image
    #[arg(long)]
    platform: Option<String>,
}

impl From<InspectArgs> for Inspection {
    fn from(args: InspectArgs) -> Self {
        Self {
            platform: args.platform,
            ..args.objects.of("image")
        }
    }
}
