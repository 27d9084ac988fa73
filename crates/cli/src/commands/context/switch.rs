//! The `context use` command.

use clap::Args;

use super::store;
use crate::config_file::set_current_context;
use crate::context::{DEFAULT, check_name};
use crate::endpoint::{RootFlags, overriding_variable};
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct UseArgs {
    context: String,
}

pub(super) fn switch(flags: &RootFlags, args: UseArgs) -> Outcome {
    let name = args.context.as_str();
    let store = store(flags)?;
    if name != DEFAULT {
        check_name(name)?;
        store.read(name).map_err(Failure::new)?;
    }
    let config = flags.config().unwrap_or_default();
    set_current_context(&config, Some(name).filter(|name| *name != DEFAULT))?;
    print_line!("{name}")?;
    warn_line!("Current context is now {name:?}");
    if let Some(variable) = overriding_variable().filter(|_| name != DEFAULT) {
        warn_line!(
            "Warning: {variable} environment variable overrides the active context. To use {name:?}, either set the global --context flag, or unset {variable} environment variable."
        );
    }
    Ok(0)
}
