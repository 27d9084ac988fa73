//! The `history` command.

use clap::Args;
use serde::Serialize;
use whelk_api_types::ImageHistoryResponseItem;
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::commands::image::platform::platform_json;
use crate::format::table::Table;
use crate::format::units::{ago, ellipsis, short_id};

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Show history for the given platform. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

const HISTORY: Table = Table {
    row: "*image.historyContext",
    id: "ID",
    columns: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    created_since: String,
    created_at: String,
    created_by: String,
    size: String,
    comment: String,
}

pub(crate) async fn history(client: &Client, args: HistoryArgs) -> Outcome {
    let query = query(&[("platform", &platform_json(&args.platform)?)]);
    let steps: Vec<ImageHistoryResponseItem> = client
        .get(&format!(
            "/images/{}/history{query}",
            escape_name(&args.image)
        ))
        .await?;
    let row = |step: ImageHistoryResponseItem| {
        let by = step.created_by.replace('\t', " ");
        let at = jiff::Timestamp::from_second(step.created)
            .unwrap_or_default()
            .to_string();
        Row {
            id: if args.no_trunc || step.id == "<missing>" {
                step.id
            } else {
                short_id(&step.id)
            },
            created_since: if args.human {
                ago(step.created)
            } else {
                at.clone()
            },
            created_at: at,
            created_by: if args.no_trunc { by } else { ellipsis(&by, 45) },
            size: if args.human {
                size::decimal(step.size, 3)
            } else {
                step.size.to_string()
            },
            comment: step.comment,
        }
    };
    let rows = steps.into_iter().map(row).collect();
    let created = if args.human {
        "CreatedSince"
    } else {
        "CreatedAt"
    };
    let default = format!(
        "{{{{.ID}}}}\t{{{{.{created}}}}}\t{{{{.CreatedBy}}}}\t{{{{.Size}}}}\t{{{{.Comment}}}}"
    );
    HISTORY.print(&args.format, args.quiet, &default, rows)?;
    Ok(0)
}
