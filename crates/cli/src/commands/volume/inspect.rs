//! The `volume inspect` command.

use clap::Args;

use crate::commands::inspect::{Inspection, ObjectArgs};

#[derive(Debug, Args)]
#[command(mut_arg("names", |names| names.value_name("VOLUME").help("Names of volumes")))]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    objects: ObjectArgs,
}

impl From<InspectArgs> for Inspection {
    fn from(args: InspectArgs) -> Self {
        args.objects.of("volume")
    }
}
