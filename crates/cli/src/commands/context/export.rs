//! The `context export` command.

use std::os::unix::fs::OpenOptionsExt;

use clap::Args;

use super::load;
use crate::context::{DEFAULT, archive, check_name};
use crate::endpoint::RootFlags;
use crate::output::{failed, warn_line};
use crate::{Failure, Outcome, plain, terminal};

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    context: String,
    /// File to write, or - for STDOUT [default: CONTEXT.dockercontext]
    #[arg(value_name = "FILE|-")]
    file: Option<String>,
}

pub(super) fn export(flags: &RootFlags, args: ExportArgs) -> Outcome {
    let name = args.context.as_str();
    if name != DEFAULT {
        check_name(name)?;
    }
    let (context, tls) = load(flags, name)?;
    let path = args.file.unwrap_or_else(|| format!("{name}.dockercontext"));
    if path == "-" {
        if terminal::stdout_is_terminal() {
            return Err(Failure::new(
                "cowardly refusing to export to a terminal, specify a file path",
            ));
        }
        archive::write(&context, &tls, std::io::stdout().lock())
            .map_err(|error| failed(&error, "/dev/stdout"))?;
        return Ok(0);
    }
    let mut options = std::fs::File::options();
    // An archive may contain a private key.
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::new(format!("open {path}: {}", plain(&error))))?;
    archive::write(&context, &tls, file).map_err(|error| {
        let _ = std::fs::remove_file(&path);
        failed(&error, &path)
    })?;
    warn_line!("Written file {path:?}");
    Ok(0)
}
