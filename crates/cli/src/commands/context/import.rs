//! The `context import` command.

use clap::Args;

use super::{check_new, store};
use crate::context::archive;
use crate::endpoint::RootFlags;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome, plain};

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    context: String,
    /// Archive to read, or - for STDIN
    #[arg(value_name = "FILE|-")]
    file: String,
}

pub(super) fn import(flags: &RootFlags, args: ImportArgs) -> Outcome {
    let (name, path) = (args.context.as_str(), args.file.as_str());
    let store = store(flags)?;
    check_new(&store, name)?;
    let (mut context, tls) = match path {
        "-" => archive::read(std::io::stdin().lock(), "/dev/stdin")?,
        _ => {
            let file = std::fs::File::open(path)
                .map_err(|error| Failure::new(format!("open {path}: {}", plain(&error))))?;
            archive::read(file, path)?
        }
    };
    context.set_name(name);
    store.create(&context, &tls)?;
    print_line!("{name}")?;
    warn_line!("Successfully imported context {name:?}");
    Ok(0)
}
