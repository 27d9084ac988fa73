//! `buildx ls`.

use clap::Args;
use serde::Serialize;

use super::{BuilderFlags, platforms, version, worker};
use crate::client::Client;
use crate::commands::build::options::one_builder;
use crate::format::table::Table;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    flags: BuilderFlags,
    /// Format the output
    #[arg(long, default_value = "table", hide_default_value = true)]
    format: String,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
}

const TABLE: Table = Table {
    row: "*commands.lsContext",
    id: "Name",
    columns: &[
        ("Name", "NAME/NODE"),
        ("DriverEndpoint", "DRIVER/ENDPOINT"),
        ("Status", "STATUS"),
        ("Buildkit", "BUILDKIT"),
        ("Platforms", "PLATFORMS"),
        ("Error", "ERROR"),
    ],
};

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    name: String,
    driver_endpoint: String,
    status: &'static str,
    buildkit: String,
    platforms: String,
    error: String,
}

pub(crate) async fn ls(client: &Client, args: LsArgs) -> Outcome {
    one_builder(client, &args.flags.builder)?;
    let name = client.context();
    let found = worker(client).await;
    let node = match &found {
        Ok(worker) => Row {
            status: "running",
            buildkit: version(worker),
            platforms: platforms(worker),
            ..Row::default()
        },
        Err(failure) => Row {
            status: "error",
            error: failure.text.clone(),
            ..Row::default()
        },
    };
    let rows = vec![
        Row {
            name: format!("{name}*"),
            driver_endpoint: "docker".into(),
            ..Row::default()
        },
        Row {
            name: format!(" \\_ {name}"),
            driver_endpoint: format!(" \\_ {name}"),
            ..node
        },
    ];
    let default = "{{.Name}}\t{{.DriverEndpoint}}\t{{.Status}}\t{{.Buildkit}}\t{{.Platforms}}";
    let format = match args.format.as_str() {
        "table" => "",
        format => format,
    };
    TABLE.print(format, false, default, rows)?;
    match found {
        Ok(_) => Ok(0),
        Err(failure) => Err(Failure {
            hint: false,
            ..failure
        }),
    }
}
