//! The `logout` command.

use std::path::Path;

use clap::Args;

use crate::credentials::{self, HUB};
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// HOST[:PORT]; default: Docker Hub
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

/// Removes the credentials for a registry from the user's configuration.
pub(crate) fn logout(config: Option<&Path>, args: &LogoutArgs) -> Outcome {
    let config = config.ok_or_else(|| Failure::new("logout: set HOME, or give --config"))?;
    let server = args.server.as_deref().unwrap_or_default();
    let keys = if server.is_empty() {
        vec![HUB.to_owned()]
    } else {
        // Older clients wrote URLs.
        let host = credentials::host_of(server);
        let keys = ["", "http://", "https://"].map(|scheme| format!("{scheme}{host}"));
        [vec![server.to_owned()], keys.into()].concat()
    };
    let shown = if server.is_empty() {
        HUB
    } else {
        credentials::host_of(server)
    };
    print_line!("Removing login credentials for {shown}")?;
    let failures: Vec<(String, Failure)> = keys
        .iter()
        .filter_map(|key| Some((key.clone(), credentials::erase(config, key).err()?)))
        .collect();
    if failures.len() == keys.len() {
        warn_line!("WARNING: could not erase credentials:");
        for (key, failure) in failures {
            warn_line!("{key}: {}", failure.text);
        }
    }
    Ok(0)
}
