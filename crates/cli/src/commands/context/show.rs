//! The `context show` command.

use crate::Outcome;
use crate::endpoint::RootFlags;
use crate::output::print_line;

pub(super) fn show(flags: &RootFlags) -> Outcome {
    print_line!("{}", flags.context())?;
    Ok(0)
}
