//! The `container inspect` command.

use clap::Args;

use crate::commands::inspect::{Inspection, ObjectArgs};

#[derive(Debug, Args)]
#[command(mut_arg("names", |names| names.value_name("CONTAINER")))]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    objects: ObjectArgs,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

impl From<InspectArgs> for Inspection {
    fn from(args: InspectArgs) -> Self {
        Self {
            size: args.size,
            ..args.objects.of("container")
        }
    }
}
