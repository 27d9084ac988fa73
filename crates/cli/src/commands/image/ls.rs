//! The `images` command.

use clap::Args;
use serde_json::{Value, json};
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::{filters, not_available};
use crate::format::table::Table;
use crate::format::units::ago;

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show all images (default hides intermediate images)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// List multi-platform images as a tree
    #[arg(long)]
    tree: bool,
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

const TABLE: Table = Table {
    row: "*formatter.imageContext",
    id: "ID",
    columns: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("VirtualSize", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("Containers", "CONTAINERS"),
    ],
};

pub(crate) async fn images(client: &Client, args: ImagesArgs) -> Outcome {
    not_available(&[("--tree", args.tree)], "trees of images are")?;
    let mut given = args.filter.clone();
    given.extend(
        args.repository
            .as_ref()
            .map(|repository| format!("reference={repository}")),
    );
    let images = client
        .get(&format!(
            "/images/json{}",
            query(&[
                ("all", if args.all { "1" } else { "" }),
                ("filters", &filters(&given)?)
            ])
        ))
        .await?;
    let mut rows = Vec::new();
    for image in images.as_array().into_iter().flatten() {
        let id = image["Id"].as_str().unwrap_or_default();
        let created = image["Created"].as_i64().unwrap_or(0);
        let local = jiff::Timestamp::from_second(created)
            .unwrap_or_default()
            .to_zoned(jiff::tz::TimeZone::system());
        let (total, shared) = (
            image["Size"].as_u64().unwrap_or(0),
            image["SharedSize"].as_u64(),
        );
        // The engine sends -1 for values that were not requested.
        let shown = |bytes: Option<u64>| {
            bytes.map_or_else(|| "N/A".to_owned(), |bytes| size::decimal(bytes, 4))
        };
        let tags: Vec<&str> = image["RepoTags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for name in if tags.is_empty() {
            vec!["<none>:<none>"]
        } else {
            tags
        } {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
            let fields = json!({
                "Repository": repository, "Tag": tag, "Digest": "<none>",
                "ID": if args.no_trunc { id.to_owned() } else { id.trim_start_matches("sha256:").chars().take(12).collect() },
                "CreatedSince": ago(created), "CreatedAt": local.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
                "Size": size::decimal(total, 3), "VirtualSize": size::decimal(total, 4), "SharedSize": shown(shared), "UniqueSize": shown(shared.map(|shared| total.saturating_sub(shared))),
                "Containers": image["Containers"].as_u64().map_or_else(|| "N/A".to_owned(), |count| count.to_string()),
            });
            rows.push(fields.as_object().cloned().unwrap_or_default());
        }
    }
    let default = if args.digests {
        "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    } else {
        "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    };
    TABLE.print(&args.format, args.quiet, default, rows)?;
    Ok(0)
}
