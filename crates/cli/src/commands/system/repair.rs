//! The `system repair` command.

use std::path::PathBuf;

use clap::Args;

use crate::Outcome;
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// Directory of the engine's data [default: the one of the configuration file, or
    /// /var/lib/whelk]
    #[arg(long, alias = "data-root")]
    root: Option<PathBuf>,
    /// Configuration file of the engine [default: /etc/whelk/daemon.json]
    #[arg(long)]
    config_file: Option<PathBuf>,
}

pub(crate) fn repair(args: RepairArgs, repair: crate::Repair) -> Outcome {
    for line in repair(args.root, args.config_file)? {
        print_line!("{line}")?;
    }
    Ok(0)
}
