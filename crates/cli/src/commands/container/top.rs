//! The `top` command.

use clap::Args;
use whelk_api_types::ContainerTopResponse;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::format::table::align_at_least;
use crate::output::print;

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    container: String,
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ps OPTIONS"
    )]
    options: Vec<String>,
}

/// Minimum column width in characters, as in Docker's CLI.
const MIN_WIDTH: usize = 20;

pub(crate) async fn top(client: &Client, args: TopArgs) -> Outcome {
    let top: ContainerTopResponse = client
        .get(&format!(
            "/containers/{}/top{}",
            escape_name(&args.container),
            query(&[("ps_args", &args.options.join(" "))])
        ))
        .await?;
    let rows = std::iter::once(&top.titles).chain(&top.processes);
    let lines: Vec<String> = rows.map(|cells| cells.join("\t")).collect();
    print(&align_at_least(&lines, MIN_WIDTH))?;
    Ok(0)
}
