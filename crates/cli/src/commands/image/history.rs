//! The `history` command.

use clap::Args;
use serde_json::{Map, Value, json};
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::commands::image::platform::platform_json;
use crate::format::table::Table;
use crate::format::units::{ago, ellipsis};

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

pub(crate) async fn history(client: &Client, args: HistoryArgs) -> Outcome {
    let query = query(&[("platform", &platform_json(&args.platform)?)]);
    let steps = client
        .get(&format!(
            "/images/{}/history{query}",
            escape_name(&args.image)
        ))
        .await?;
    let row = |step: &Value| -> Map<String, Value> {
        let id = step["Id"].as_str().unwrap_or_default();
        let created = step["Created"].as_i64().unwrap_or(0);
        let bytes = step["Size"].as_u64().unwrap_or(0);
        let by = step["CreatedBy"]
            .as_str()
            .unwrap_or_default()
            .replace('\t', " ");
        let at = jiff::Timestamp::from_second(created)
            .unwrap_or_default()
            .to_string();
        let fields = json!({
            "ID": if args.no_trunc || id == "<missing>" { id.to_owned() } else { id.trim_start_matches("sha256:").chars().take(12).collect() },
            "CreatedSince": if args.human { ago(created) } else { at.clone() }, "CreatedAt": at,
            "CreatedBy": if args.no_trunc { by } else { ellipsis(&by, 45) },
            "Size": if args.human { size::decimal(bytes, 3) } else { bytes.to_string() },
            "Comment": step["Comment"],
        });
        fields.as_object().cloned().unwrap_or_default()
    };
    let rows = steps.as_array().into_iter().flatten().map(row).collect();
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
