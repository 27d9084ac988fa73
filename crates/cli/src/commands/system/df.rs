//! The `system df` command.

use clap::Args;
use serde::Serialize;
use whelk_api_types::{ContainerSummary, SystemDataUsageResponse, Volume};
use whelk_text::size;

use super::build_cache;
use crate::Outcome;
use crate::client::Client;
use crate::commands::container::ps;
use crate::commands::{image, volume};
use crate::format::table::{self, Table};
use crate::format::template::{Mode, Template, failure, json, typed};
use crate::format::units::{ago, short_id};
use crate::output::{print, print_line};

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show detailed information on space usage
    #[arg(short, long)]
    verbose: bool,
}

const TABLE: Table = Table {
    row: "*formatter.diskUsageImagesContext",
    id: "Type",
    columns: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
};

pub(crate) async fn df(client: &Client, args: DfArgs) -> Outcome {
    let usage: SystemDataUsageResponse = client.get("/system/df").await?;
    if args.verbose {
        return match args.format.as_str() {
            "" | "table" => verbose(usage, own(client).await),
            "json" => formatted(usage, "{{json .}}"),
            format => formatted(usage, format),
        };
    }
    let images = usage.images.unwrap_or_default();
    let containers = usage.containers.unwrap_or_default();
    let volumes = usage.volumes.unwrap_or_default();
    let used_images: Vec<_> = images.iter().filter(|image| image.containers > 0).collect();
    // The size of the images in use, where layers they share are counted once.
    let used = used_images
        .iter()
        .map(|image| image.size.saturating_sub(unsigned(image.shared_size)))
        .sum::<u64>();
    let layers = usage.layers_size.unwrap_or(0);
    let is_running = |container: &&ContainerSummary| {
        matches!(
            container.state.as_str(),
            "running" | "paused" | "restarting"
        )
    };
    let running: Vec<_> = containers.iter().filter(is_running).collect();
    let writable = |container: &ContainerSummary| container.size_rw.unwrap_or(0);
    let is_used = |volume: &&Volume| volume.usage_data.is_some_and(|usage| usage.ref_count > 0);
    let in_use: Vec<_> = volumes.iter().filter(is_used).collect();
    let all_writable: u64 = containers.iter().map(writable).sum();
    let cache = usage.build_cache.unwrap_or_default();
    let all_volumes: u64 = volumes.iter().map(volume_size).sum();
    let mut rows = vec![
        row(
            "Images",
            images.len(),
            used_images.len(),
            layers,
            layers.saturating_sub(used),
        ),
        row(
            "Containers",
            containers.len(),
            running.len(),
            all_writable,
            all_writable - running.iter().map(|one| writable(one)).sum::<u64>(),
        ),
        row(
            "Local Volumes",
            volumes.len(),
            in_use.len(),
            all_volumes,
            all_volumes - in_use.iter().map(|one| volume_size(one)).sum::<u64>(),
        ),
        row(
            "Build Cache",
            cache.len(),
            cache.iter().filter(|record| record.in_use).count(),
            build_cache::own_size(&cache),
            build_cache::own_size(cache.iter().filter(|record| !record.in_use)),
        ),
    ];
    if let Some(logs) = own(client).await.log_usage {
        rows.push(row(
            "Logs",
            usize::try_from(logs.total_count).unwrap_or(0),
            usize::try_from(logs.active_count).unwrap_or(0),
            unsigned(logs.total_size),
            unsigned(logs.reclaimable),
        ));
    }
    TABLE.print(
        &args.format,
        false,
        "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
        rows,
    )?;
    Ok(0)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "Type")]
    kind: &'static str,
    total_count: String,
    active: String,
    size: String,
    reclaimable: String,
}

fn row(kind: &'static str, total: usize, active: usize, bytes: u64, reclaimable: u64) -> Row {
    let share = (reclaimable * 100)
        .checked_div(bytes)
        .map_or_else(String::new, |share| format!(" ({share}%)"));
    Row {
        kind,
        total_count: total.to_string(),
        active: active.to_string(),
        size: size::decimal(bytes, 4),
        reclaimable: format!("{}{share}", size::decimal(reclaimable, 4)),
    }
}

/// Returns a size, which is -1 if the engine does not know it.
fn unsigned(size: i64) -> u64 {
    size.try_into().unwrap_or(0)
}

fn volume_size(volume: &Volume) -> u64 {
    unsigned(volume.usage_data.unwrap_or_default().size)
}

/// What templates of `--verbose` are executed on.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Details {
    images: Vec<image::ls::Row>,
    containers: Vec<ps::Row>,
    volumes: Vec<volume::ls::Row>,
    build_cache: Vec<build_cache::Row>,
}

/// Prints everything that takes space by one template. As in Docker, no line break follows.
fn formatted(usage: SystemDataUsageResponse, format: &str) -> Outcome {
    let details = Details {
        images: usage
            .images
            .iter()
            .flatten()
            .map(image::ls::usage_row)
            .collect(),
        containers: usage
            .containers
            .into_iter()
            .flatten()
            .map(|mut container| {
                // Docker's client leaves out the size of the image here.
                container.size_root_fs = None;
                ps::row(&container, true)
            })
            .collect(),
        volumes: usage
            .volumes
            .into_iter()
            .flatten()
            .map(volume::ls::row)
            .collect(),
        build_cache: build_cache::rows(usage.build_cache.unwrap_or_default(), true),
    };
    let text = format.replace("\\t", "\t").replace("\\n", "\n");
    let mistake = |mistake| failure(&mistake, 1, "template parsing error: ");
    let template = Template::parse(&text).map_err(mistake)?;
    let details = typed("formatter.diskUsageContext", json(&details)?);
    print(&template.execute(&details, Mode::Values).map_err(mistake)?)?;
    Ok(0)
}

/// Returns the sizes of logs, and of what was removed but is not deleted yet. Docker's engine tells neither.
async fn own(client: &Client) -> SystemDataUsageResponse {
    let usage = client.get("/system/df?type=trash&type=logs");
    usage.await.unwrap_or_default()
}

fn verbose(usage: SystemDataUsageResponse, own: SystemDataUsageResponse) -> Outcome {
    let mut lines = vec![
        "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\tSHARED SIZE\tUNIQUE SIZE\tCONTAINERS".to_owned(),
    ];
    for image in usage.images.unwrap_or_default() {
        let name = image
            .repo_tags
            .first()
            .map_or("<none>:<none>", String::as_str);
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
        let shared = unsigned(image.shared_size);
        lines.push(format!(
            "{repository}\t{tag}\t{}\t{}\t{}\t{}\t{}\t{}",
            short_id(&image.id),
            ago(image.created),
            size::decimal(image.size, 3),
            size::decimal(shared, 4),
            size::decimal(image.size.saturating_sub(shared), 4),
            image.containers
        ));
    }
    print_line!("Images space usage:\n\n{}", table::align(&lines))?;
    lines = vec![
        "CONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES".to_owned(),
    ];
    for container in usage.containers.unwrap_or_default() {
        let row = ps::row(&container, false);
        let fields = [
            row.id,
            row.image,
            row.command,
            row.local_volumes,
            size::decimal(container.size_rw.unwrap_or(0), 3),
            row.running_for,
            row.status,
            row.names,
        ];
        lines.push(fields.join("\t"));
    }
    print_line!("Containers space usage:\n\n{}", table::align(&lines))?;
    lines = vec!["VOLUME NAME\tLINKS\tSIZE".to_owned()];
    for volume in usage.volumes.unwrap_or_default() {
        lines.push(format!(
            "{}\t{}\t{}",
            volume.name,
            volume.usage_data.unwrap_or_default().ref_count,
            size::decimal(volume_size(&volume), 3)
        ));
    }
    print_line!("Local Volumes space usage:\n\n{}", table::align(&lines))?;
    let cache = usage.build_cache.unwrap_or_default();
    let size = size::decimal(build_cache::own_size(&cache), 4);
    print_line!("Build cache usage: {size}\n")?;
    print(&build_cache::table(cache)?)?;
    let logs = own.log_usage.unwrap_or_default().items;
    if !logs.is_empty() {
        lines = vec!["CONTAINER ID\tNAME\tSIZE".to_owned()];
        for log in logs {
            let size = size::decimal(unsigned(log.size), 3);
            lines.push(format!("{}\t{}\t{size}", short_id(&log.id), log.name));
        }
        print_line!("\nLogs space usage:\n\n{}", table::align(&lines).trim_end())?;
    }
    if let Some(size) = own.trash_size.filter(|size| *size > 0) {
        print_line!("\nRemoved, and being deleted: {}", size::decimal(size, 3))?;
    }
    Ok(0)
}
