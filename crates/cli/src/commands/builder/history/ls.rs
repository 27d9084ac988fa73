//! `buildx history ls`.

use clap::Args;
use serde::Serialize;
use whelk_buildkit::pb::control::BuildHistoryRecord;

use super::super::BuilderFlags;
use super::{Builds, duration, name, status};
use crate::commands::build::State;
use crate::format::table::Table;
use crate::format::units::ago_exact;
use crate::output::print_line;
use crate::terminal::{harmless_json, one_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    pub flags: BuilderFlags,
    /// Provide filter values (e.g., `status=error`)
    #[arg(long)]
    filter: Vec<String>,
    /// Format the output
    #[arg(long, default_value = "table", hide_default_value = true)]
    format: String,
    /// List records for current repository only
    #[arg(long)]
    local: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
}

const TABLE: Table = Table {
    row: "*history.lsContext",
    id: "Ref",
    columns: &[
        ("Ref", "BUILD ID"),
        ("Name", "NAME"),
        ("Status", "STATUS"),
        ("CreatedAt", "CREATED AT"),
        ("Duration", "DURATION"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    r#ref: String,
    name: String,
    status: &'static str,
    created_at: String,
    duration: String,
}

/// As Docker's client writes a record as JSON.
#[derive(Serialize)]
struct Line {
    r#ref: String,
    name: String,
    status: &'static str,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    total_steps: i32,
    completed_steps: i32,
    cached_steps: i32,
}

pub(super) async fn ls(builds: &Builds, args: LsArgs) -> Outcome {
    if args.local {
        return Err(Failure::new(
            "--local: not available in this version of whelk",
        ));
    }
    let records = builds.list(conditions(&args.filter)?).await?;
    if args.format == "json" {
        for record in &records {
            let line = serde_json::to_string(&line(record, builds));
            let line = line.map_err(|error| Failure::new(error.to_string()))?;
            print_line!("{}", harmless_json(&line))?;
        }
        return Ok(0);
    }
    let rows = records.iter().map(|record| {
        let state = builds.states.read(&record.r#ref);
        row(record, &state, args.no_trunc)
    });
    let default = "{{.Ref}}\t{{.Name}}\t{{.Status}}\t{{.CreatedAt}}\t{{.Duration}}";
    let format = match args.format.as_str() {
        "table" => "",
        format => format,
    };
    TABLE.print(format, false, default, rows.collect())?;
    Ok(0)
}

/// Returns filters as the engine reads them: all of them must be true, which is one text there.
fn conditions(given: &[String]) -> Outcome<Vec<String>> {
    let all = given.iter().map(|filter| condition(filter));
    let all = all.collect::<Outcome<Vec<_>>>()?;
    Ok(match all.is_empty() {
        true => Vec::new(),
        false => vec![all.join(",")],
    })
}

/// Returns a filter as the engine knows it: one sign of equality means that a name contains the value there.
fn condition(filter: &str) -> Outcome<String> {
    let signs = ["==", "!=", "~=", ">=", "<=", "=", ">", "<"];
    let found = signs.iter().filter_map(|sign| {
        let at = filter.find(sign)?;
        Some((at, *sign))
    });
    // At the same place the longer one.
    let Some((at, sign)) = found.min_by_key(|(at, sign)| (*at, std::cmp::Reverse(sign.len())))
    else {
        return Err(Failure::new(format!("invalid filter {filter:?}")));
    };
    let (name, value) = (&filter[..at], &filter[at + sign.len()..]);
    let is_text = match name {
        "ref" | "repository" | "status" => true,
        "startedAt" | "completedAt" | "duration" => false,
        _ => return Err(Failure::new(format!("unsupported filter {filter:?}"))),
    };
    if is_text != matches!(sign, "=" | "==" | "!=" | "~=") {
        let expected = match is_text {
            true => "= or !=",
            false => "<=, <, >= or >",
        };
        let text = format!("invalid separator for {name:?}, expected {expected}");
        return Err(Failure::new(text));
    }
    let sign = match (name, sign) {
        ("status", "=") => "==",
        (_, "=") => "~=",
        (_, sign) => sign,
    };
    Ok(format!("{name}{sign}{value}"))
}

fn row(record: &BuildHistoryRecord, state: &State, is_whole: bool) -> Row {
    /// Number of letters of a name.
    const MOST: usize = 36;
    // Also where the row is no table.
    let name = one_line(&name(record, state));
    let count = name.chars().count();
    let name = match is_whole || count <= MOST {
        true => name,
        // The end of a path says more.
        false => {
            let end: String = name.chars().skip(count - MOST + 2).collect();
            format!("..{end}")
        }
    };
    Row {
        r#ref: record.r#ref.clone(),
        name,
        status: status(record),
        created_at: record
            .created_at
            .map(|time| ago_exact(time.seconds, time.nanos))
            .unwrap_or_default(),
        duration: duration(record),
    }
}

fn line(record: &BuildHistoryRecord, builds: &Builds) -> Line {
    let builder = &builds.builder;
    Line {
        r#ref: format!("{builder}/{builder}/{}", record.r#ref),
        name: name(record, &builds.states.read(&record.r#ref)),
        status: status(record),
        created_at: record.created_at.map(time).unwrap_or_default(),
        completed_at: record.completed_at.map(time),
        total_steps: record.total_steps,
        completed_steps: record.completed_steps,
        cached_steps: record.cached_steps,
    }
}

/// Returns a time by RFC 3339.
pub(super) fn time(time: whelk_buildkit::pb::Timestamp) -> String {
    let time = jiff::Timestamp::new(time.seconds, time.nanos);
    time.map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_those_of_the_engine() {
        for (filter, expected) in [
            ("status=error", Ok("status==error")),
            ("status!=error", Ok("status!=error")),
            ("ref=abc", Ok("ref~=abc")),
            ("ref==a=b", Ok("ref==a=b")),
            ("repository~=x", Ok("repository~=x")),
            ("duration>=10s", Ok("duration>=10s")),
            ("startedAt<1h", Ok("startedAt<1h")),
            ("x", Err("invalid filter \"x\"")),
            ("foo=bar", Err("unsupported filter \"foo=bar\"")),
            (
                "ref>1",
                Err("invalid separator for \"ref\", expected = or !="),
            ),
            (
                "duration=1s",
                Err("invalid separator for \"duration\", expected <=, <, >= or >"),
            ),
        ] {
            let found = condition(filter).map_err(|failure| failure.text);
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(found, expected, "{filter}");
        }
        let both = ["status=error".to_owned(), "ref=a".to_owned()];
        let both = conditions(&both).unwrap();
        assert_eq!(both, ["status==error,ref~=a"]);
        assert!(conditions(&[]).unwrap().is_empty());
    }

    #[test]
    fn long_names_are_cut_at_their_beginning() {
        let record = BuildHistoryRecord {
            frontend_attrs: [("target".to_owned(), "x".repeat(50))].into(),
            ..BuildHistoryRecord::default()
        };
        let state = State::default();
        let shown = row(&record, &state, false).name;
        assert!(shown.starts_with("..x") && shown.len() == 36, "{shown}");
        assert_eq!(row(&record, &state, true).name.len(), 50);
    }
}
