//! The `system df` command.

use clap::Args;
use serde_json::{Map, Value, json};
use whelk_text::size;

use crate::client::Client;
use crate::format::table::{self, Table};
use crate::format::units::ago;
use crate::output::print_line;
use crate::{Failure, Outcome};

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
    let usage = client.get("/system/df").await?;
    if args.verbose {
        if !args.format.is_empty() {
            return Err(Failure::new(
                "--format: not available together with --verbose in this version of whelk",
            ));
        }
        return verbose(&usage);
    }
    let list = |key: &str| usage[key].as_array().cloned().unwrap_or_default();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (images, containers, volumes) = (list("Images"), list("Containers"), list("Volumes"));
    let used_images: Vec<&Value> = images
        .iter()
        .filter(|image| number(&image["Containers"]) > 0)
        .collect();
    // The size of the images in use, where layers they share are counted once.
    let used = used_images
        .iter()
        .map(|image| number(&image["Size"]) - number(&image["SharedSize"]))
        .sum::<u64>();
    let layers = number(&usage["LayersSize"]);
    let running: Vec<&Value> = containers
        .iter()
        .filter(|container| {
            matches!(
                container["State"].as_str(),
                Some("running" | "paused" | "restarting")
            )
        })
        .collect();
    let writable = |container: &Value| number(&container["SizeRw"]);
    let in_use: Vec<&Value> = volumes
        .iter()
        .filter(|volume| number(&volume["UsageData"]["RefCount"]) > 0)
        .collect();
    let volume_size = |volume: &Value| number(&volume["UsageData"]["Size"]);
    let all_writable: u64 = containers.iter().map(writable).sum();
    let all_volumes: u64 = volumes.iter().map(volume_size).sum();
    let rows = [
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
        row("Build Cache", list("BuildCache").len(), 0, 0, 0),
    ];
    TABLE.print(
        &args.format,
        false,
        "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
        rows.into(),
    )?;
    Ok(0)
}

fn row(
    kind: &str,
    total: usize,
    active: usize,
    bytes: u64,
    reclaimable: u64,
) -> Map<String, Value> {
    let share = (reclaimable * 100)
        .checked_div(bytes)
        .map_or_else(String::new, |share| format!(" ({share}%)"));
    let fields = json!({
        "Type": kind, "TotalCount": total.to_string(), "Active": active.to_string(), "Size": size::decimal(bytes, 4),
        "Reclaimable": format!("{}{share}", size::decimal(reclaimable, 4)),
    });
    fields.as_object().cloned().unwrap_or_default()
}

fn verbose(usage: &Value) -> Outcome {
    let list = |key: &str| usage[key].as_array().cloned().unwrap_or_default();
    let bytes = |value: &Value| size::decimal(value.as_u64().unwrap_or(0), 3);
    let short = |value: &Value| {
        value
            .as_str()
            .unwrap_or_default()
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect::<String>()
    };
    let mut lines = vec![
        "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\tSHARED SIZE\tUNIQUE SIZE\tCONTAINERS".to_owned(),
    ];
    for image in list("Images") {
        let name = image["RepoTags"][0]
            .as_str()
            .unwrap_or("<none>:<none>")
            .to_owned();
        let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, "<none>"));
        let unique = image["Size"]
            .as_u64()
            .unwrap_or(0)
            .saturating_sub(image["SharedSize"].as_u64().unwrap_or(0));
        let created = ago(image["Created"].as_i64().unwrap_or(0));
        lines.push(format!(
            "{repository}\t{tag}\t{}\t{created}\t{}\t{}\t{}\t{}",
            short(&image["Id"]),
            bytes(&image["Size"]),
            bytes(&image["SharedSize"]),
            size::decimal(unique, 4),
            image["Containers"]
        ));
    }
    print_line!("Images space usage:\n\n{}", table::align(&lines))?;
    lines = vec![
        "CONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES".to_owned(),
    ];
    for container in list("Containers") {
        let mut row = crate::commands::container::ps::row(&container, false);
        row.insert("Size".into(), bytes(&container["SizeRw"]).into());
        let fields = [
            "ID",
            "Image",
            "Command",
            "LocalVolumes",
            "Size",
            "RunningFor",
            "Status",
            "Names",
        ];
        lines.push(
            fields
                .map(|field| row[field].as_str().unwrap_or_default().to_owned())
                .join("\t"),
        );
    }
    print_line!("Containers space usage:\n\n{}", table::align(&lines))?;
    lines = vec!["VOLUME NAME\tLINKS\tSIZE".to_owned()];
    for volume in list("Volumes") {
        let usage = &volume["UsageData"];
        lines.push(format!(
            "{}\t{}\t{}",
            volume["Name"].as_str().unwrap_or_default(),
            usage["RefCount"],
            bytes(&usage["Size"])
        ));
    }
    print_line!("Local Volumes space usage:\n\n{}", table::align(&lines))?;
    print_line!("Build cache usage: 0B\n")?;
    print_line!(
        "{}",
        table::align(&["CACHE ID\tCACHE TYPE\tSIZE\tCREATED\tLAST USED\tUSAGE\tSHARED".to_owned()])
    )?;
    Ok(0)
}
