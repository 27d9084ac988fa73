//! `builder prune` and `buildx prune`.

use clap::Args;
use whelk_buildkit::grpc::{Channel, Status, Stream};
use whelk_buildkit::pb::control::{PruneRequest, UsageRecord};
use whelk_text::duration;

use super::BuilderFlags;
use super::du::{bytes, details};
use crate::client::Client;
use crate::commands::build::{connect, options::one_builder, options::size};
use crate::commands::confirm::asked;
use crate::format::table::align;
use crate::format::units::ago_exact;
use crate::output::{print, print_line};
use crate::terminal::one_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    flags: BuilderFlags,
    /// Include internal/frontend images
    #[arg(short, long)]
    all: bool,
    /// Provide filter values
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Amount of disk space to keep for cache
    #[arg(long, default_value = "", hide = true)]
    keep_storage: String,
    /// Maximum amount of disk space allowed to keep for cache
    #[arg(long, default_value = "", hide_default_value = true)]
    max_used_space: String,
    /// Target amount of free disk space after pruning
    #[arg(long, default_value = "", hide_default_value = true)]
    min_free_space: String,
    /// Amount of disk space always allowed to keep for cache
    #[arg(long, default_value = "", hide_default_value = true)]
    reserved_space: String,
    /// Provide a more verbose output
    #[arg(long)]
    verbose: bool,
}

pub(crate) async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    one_builder(client, &args.flags.builder)?;
    let (filter, keep_duration) = conditions(&args.filter)?;
    let space = |text: &str, flag: &str| match text {
        "" => Ok(0),
        text => size(text, flag),
    };
    let request = PruneRequest {
        filter,
        all: args.all,
        keep_duration,
        reserved_space: match args.reserved_space.as_str() {
            "" => space(&args.keep_storage, "--keep-storage")?,
            text => space(text, "--reserved-space")?,
        },
        max_used_space: space(&args.max_used_space, "--max-used-space")?,
        min_free_space: space(&args.min_free_space, "--min-free-space")?,
    };
    let what = match args.all {
        true => "all build cache",
        false => "all dangling build cache",
    };
    let question =
        format!("WARNING! This will remove {what}. Are you sure you want to continue? [y/N] ");
    if !args.force && !asked(&question) {
        return Ok(0);
    }
    let channel = connect(client).await?;
    let mut stream = removals(&channel, &request).await?;
    let (mut total, mut lines) = (0, vec!["ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED".to_owned()]);
    while let Some(record) = stream.next::<UsageRecord>().await.map_err(failed)? {
        total += record.size;
        if args.verbose {
            print_line!("{}", details(&record))?;
            continue;
        }
        let used = record
            .last_used_at
            .map(|time| ago_exact(time.seconds, time.nanos))
            .unwrap_or_default();
        lines.push(format!(
            "{}\t{}\t{}\t{used}",
            one_line(&record.id),
            !record.in_use,
            bytes(record.size)
        ));
    }
    if lines.len() > 1 {
        print(&align(&lines))?;
    }
    print_line!("Total:\t{}", bytes(total))?;
    Ok(0)
}

/// Asks for the removal of records. Returns the call that tells of each of them.
pub(super) async fn removals(channel: &Channel, request: &PruneRequest) -> Outcome<Stream> {
    let stream = channel.stream("moby.buildkit.v1.Control/Prune", Default::default());
    let mut stream = stream.map_err(failed)?;
    // A call that has ended has a status, too.
    let _ = stream.requests.send(request).await;
    stream.requests.close();
    Ok(stream)
}

pub(super) fn failed(status: Status) -> Failure {
    Failure::new(status.message)
}

/// Returns filters as the engine reads them, and the time of `until`, in nanoseconds.
pub(super) fn conditions(given: &[String]) -> Outcome<(Vec<String>, i64)> {
    let mut until = None;
    let mut all = Vec::new();
    for filter in given {
        let invalid = || Failure::new(format!("invalid filter {filter:?}: expected name=value"));
        let at = filter.find(['=', '!', '~']);
        let Some((name, rest)) = at.and_then(|at| filter.split_at_checked(at)) else {
            return Err(invalid());
        };
        let name = name.trim();
        let Some(value) = ["==", "!=", "~=", "="]
            .iter()
            .find_map(|sign| rest.strip_prefix(sign))
        else {
            return Err(invalid());
        };
        match (name, rest.starts_with(['!', '~'])) {
            ("until" | "unused-for", false) => {
                let time = duration::parse(value)
                    .map_err(|error| Failure::new(format!("invalid filter {filter:?}: {error}")))?;
                if until.replace(time).is_some() {
                    return Err(Failure::new("filters expect only one value for \"until\""));
                }
            }
            ("id", false) => all.push(format!("id~={value}")),
            ("parents", _) => all.push(format!("parent{rest}")),
            (name, true) => all.push(format!("{name}{rest}")),
            (name, false) => all.push(format!("{name}=={value}")),
        }
    }
    // All of them must be true, which the engine reads from one text.
    let filter = match all.is_empty() {
        true => Vec::new(),
        false => vec![all.join(",")],
    };
    Ok((filter, until.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_conditions() {
        let found = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            conditions(&given).map_err(|failure| failure.text)
        };
        let hour = 3_600_000_000_000;
        for (given, expected) in [
            (&["until=24h"][..], ("", 24 * hour)),
            (
                &["type=exec.cachemount", "id=abc"],
                ("type==exec.cachemount,id~=abc", 0),
            ),
            (&["type!=regular"], ("type!=regular", 0)),
            (&["parents=x", "unused-for=1h"], ("parent=x", hour)),
            (&[], ("", 0)),
        ] {
            let (filter, until) = found(given).unwrap();
            assert_eq!((&*filter.join(" "), until), expected);
        }
        for given in [
            &["until=x"][..],
            &["x"],
            &["type!x"],
            &["until=1h", "until=2h"],
        ] {
            assert!(found(given).is_err(), "{given:?}");
        }
    }
}
