//! The `search` command.

use clap::Args;
use hyper::Method;
use serde::Serialize;
use whelk_api_types::SearchResult;
use whelk_client::no_body;

use crate::client::{Client, query, read};
use crate::commands::arguments::filters;
use crate::format::table::Table;
use crate::format::units::ellipsis;
use crate::{Outcome, credentials};

/// Length of shown descriptions, unless they are not truncated.
const DESCRIPTION: usize = 45;

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Pretty-print search using a Go template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Max number of search results
    #[arg(
        long,
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    limit: i64,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Term to search for on Docker Hub, or HOST[:PORT]/TERM for another registry
    #[arg(value_name = "TERM")]
    term: String,
}

const TABLE: Table = Table {
    row: "*registry.searchContext",
    id: "Name",
    columns: &[
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("StarCount", "STARS"),
        ("IsOfficial", "OFFICIAL"),
    ],
};

const DEFAULT: &str = "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    description: String,
    is_official: &'static str,
    name: String,
    star_count: String,
}

pub(super) async fn search(client: &Client, args: SearchArgs) -> Outcome {
    let limit = match args.limit {
        0 => String::new(),
        limit => limit.to_string(),
    };
    let filters = filters(&args.filter)?;
    let parameters = [
        ("term", args.term.as_str()),
        ("limit", &limit),
        ("filters", &filters),
    ];
    let credentials = credentials::header(client.config(), &args.term)?;
    let response = client
        .send(
            Method::GET,
            &format!("/images/search{}", query(&parameters)),
            &[("x-registry-auth", &credentials)],
            no_body(),
        )
        .await?;
    let results: Vec<SearchResult> = read(response).await?;
    // `json` prints booleans as "true" and "false"; the fields of a template are "[OK]" or empty.
    let is_json = args.format == "json" || args.format.replace(' ', "").contains("{{json.}}");
    let row = |result: SearchResult| {
        let is_official = match (is_json, result.is_official) {
            (true, true) => "true",
            (true, false) => "false",
            (false, true) => "[OK]",
            (false, false) => "",
        };
        let description = result.description.replace(['\n', '\r'], " ");
        Row {
            description: if args.no_trunc {
                description
            } else {
                ellipsis(&description, DESCRIPTION)
            },
            is_official,
            name: result.name,
            star_count: result.star_count.to_string(),
        }
    };
    let rows = results.into_iter().map(row).collect();
    TABLE.print(&args.format, false, DEFAULT, rows)?;
    Ok(0)
}
