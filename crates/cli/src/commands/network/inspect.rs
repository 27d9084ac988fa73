//! The `network inspect` command.

use clap::Args;

use crate::commands::inspect::{Inspection, ObjectArgs};

#[derive(Debug, Args)]
#[command(mut_arg("names", |names| names.value_name("NETWORK").help("Names or ids of networks")))]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    objects: ObjectArgs,
    /// Verbose output for diagnostics
    #[arg(short, long)]
    verbose: bool,
}

/// `--verbose` is ignored: it concerns swarm services.
impl From<InspectArgs> for Inspection {
    fn from(args: InspectArgs) -> Self {
        args.objects.of("network")
    }
}
