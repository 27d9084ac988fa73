//! The `context rm` command.

use clap::Args;

use super::store;
use crate::commands::each::failures_of;
use crate::config_file::{current_context, set_current_context};
use crate::context::DEFAULT;
use crate::endpoint::RootFlags;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of a context in use
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "CONTEXT")]
    contexts: Vec<String>,
}

pub(super) fn rm(flags: &RootFlags, args: RmArgs) -> Outcome {
    let mut failures = Vec::new();
    for name in &args.contexts {
        match remove(flags, name, args.force) {
            Ok(()) => print_line!("{name}")?,
            Err(failure) => failures.push(failure.text),
        }
    }
    failures_of(&failures)
}

fn remove(flags: &RootFlags, name: &str, force: bool) -> Outcome<()> {
    if name == DEFAULT {
        return Err(Failure::new(format!(
            "context {DEFAULT:?} cannot be removed"
        )));
    }
    let store = store(flags)?;
    if !force && !store.exists(name) {
        return Err(Failure::new(format!("context {name:?} does not exist")));
    }
    if name == flags.context() {
        if !force {
            return Err(Failure::new(format!(
                "context {name:?} is in use, set -f flag to force remove"
            )));
        }
        // The flag --context and the variable may name another one than the file.
        if let Some(config) = flags.config()
            && current_context(&config).as_deref() == Some(name)
        {
            set_current_context(&config, None)?;
        }
    }
    store.remove(name)
}
