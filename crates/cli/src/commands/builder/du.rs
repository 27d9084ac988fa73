//! `buildx du`: the records of the build cache.

use clap::Args;
use serde::Serialize;
use whelk_buildkit::pb::Timestamp;
use whelk_buildkit::pb::control::{DiskUsageRequest, DiskUsageResponse, UsageRecord};
use whelk_text::size;

use super::BuilderFlags;
use super::prune::conditions;
use crate::client::Client;
use crate::commands::build::{connect, options::one_builder};
use crate::format::table::Table;
use crate::format::units::ago_exact;
use crate::output::{print, print_line};
use crate::terminal::one_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    #[command(flatten)]
    flags: BuilderFlags,
    /// Provide filter values
    #[arg(long)]
    filter: Vec<String>,
    /// Format the output
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Shorthand for `--format=pretty`
    #[arg(long)]
    verbose: bool,
}

const TABLE: Table = Table {
    row: "*commands.diskusageContext",
    id: "ID",
    columns: &[
        ("ID", "ID"),
        ("Parents", "PARENTS"),
        ("CreatedAt", "CREATED AT"),
        ("Mutable", "MUTABLE"),
        ("Reclaimable", "RECLAIMABLE"),
        ("Shared", "SHARED"),
        ("Size", "SIZE"),
        ("Description", "DESCRIPTION"),
        ("UsageCount", "USAGE COUNT"),
        ("LastUsedAt", "LAST ACCESSED"),
        ("Type", "TYPE"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    parents: Vec<String>,
    created_at: String,
    mutable: bool,
    reclaimable: bool,
    shared: bool,
    size: String,
    description: String,
    usage_count: i64,
    last_used_at: String,
    #[serde(rename = "Type")]
    kind: String,
}

pub(crate) async fn du(client: &Client, args: DuArgs) -> Outcome {
    one_builder(client, &args.flags.builder)?;
    let (filter, duration) = conditions(&args.filter)?;
    let request = DiskUsageRequest {
        filter,
        age_limit: duration,
    };
    let channel = connect(client).await?;
    let answer: DiskUsageResponse = channel
        .unary("moby.buildkit.v1.Control/DiskUsage", &request)
        .await
        .map_err(|status| Failure::new(status.message))?;
    let mut records = answer.record;
    records.sort_by_key(|record| std::cmp::Reverse(record.size));
    match args.format.as_str() {
        "" | "table" if !args.verbose => {
            TABLE.print(
                "",
                false,
                "{{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastUsedAt}}",
                rows(&records),
            )?;
            print(&summary(&records))?;
        }
        "" | "pretty" => {
            for record in &records {
                print_line!("{}", details(record))?;
            }
            print(&summary(&records))?;
        }
        format => TABLE.print(format, false, format, rows(&records))?,
    }
    Ok(0)
}

fn rows(records: &[UsageRecord]) -> Vec<Row> {
    let row = |record: &UsageRecord| Row {
        id: record.id.clone(),
        parents: record.parents.clone(),
        created_at: record.created_at.map(time).unwrap_or_default(),
        mutable: record.mutable,
        reclaimable: !record.in_use,
        shared: record.shared,
        size: bytes(record.size),
        description: record.description.clone(),
        usage_count: record.usage_count,
        last_used_at: record
            .last_used_at
            .map(|time| ago_exact(time.seconds, time.nanos))
            .unwrap_or_default(),
        kind: record.record_type.clone(),
    };
    records.iter().map(row).collect()
}

pub(super) fn bytes(size: i64) -> String {
    size::decimal(u64::try_from(size).unwrap_or(0), 4)
}

fn time(time: Timestamp) -> String {
    let time = jiff::Timestamp::new(time.seconds, time.nanos);
    time.map(|time| time.to_string()).unwrap_or_default()
}

/// Returns all that is known of a record, in lines.
pub(super) fn details(record: &UsageRecord) -> String {
    let mut text = format!("ID:\t\t{}\n", one_line(&record.id));
    if !record.parents.is_empty() {
        let parents = one_line(&record.parents.join(", "));
        text += &format!("Parents:\t{parents}\n");
    }
    if let Some(created) = record.created_at {
        text += &format!("Created at:\t{}\n", time(created));
    }
    text += &format!(
        "Mutable:\t{}\nReclaimable:\t{}\nShared:\t\t{}\nSize:\t\t{}\n",
        record.mutable,
        !record.in_use,
        record.shared,
        bytes(record.size)
    );
    if !record.description.is_empty() {
        text += &format!("Description:\t{}\n", one_line(&record.description));
    }
    text += &format!("Usage count:\t{}\n", record.usage_count);
    if let Some(used) = record.last_used_at {
        text += &format!("Last used:\t{}\n", ago_exact(used.seconds, used.nanos));
    }
    text + &format!("Type:\t\t{}\n", one_line(&record.record_type))
}

fn summary(records: &[UsageRecord]) -> String {
    let sum = |is_meant: fn(&&UsageRecord) -> bool| -> String {
        let meant = records.iter().filter(is_meant);
        bytes(meant.map(|record| record.size).sum())
    };
    let mut text = String::new();
    if records.iter().any(|record| record.shared) {
        text += &format!("Shared:\t\t{}\n", sum(|record| record.shared));
        text += &format!("Private:\t{}\n", sum(|record| !record.shared));
    }
    text += &format!("Reclaimable:\t{}\n", sum(|record| !record.in_use));
    text + &format!("Total:\t\t{}\n", sum(|_| true))
}
