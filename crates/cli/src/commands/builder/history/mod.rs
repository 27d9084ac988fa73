//! `buildx history`: the builds that the engine remembers.

mod export;
mod inspect;
mod logs;
mod ls;
pub(crate) mod provenance;
mod rm;

use clap::{Args, Subcommand};
use whelk_bake::paths::{is_remote, join};
use whelk_buildkit::grpc::{Channel, Result as Reply};
use whelk_buildkit::pb::Unused;
use whelk_buildkit::pb::content::{ReadContentRequest, ReadContentResponse};
use whelk_buildkit::pb::control::{
    BuildHistoryEvent, BuildHistoryRecord, BuildHistoryRequest, UpdateBuildHistoryRequest,
};

use super::BuilderFlags;
use crate::client::Client;
use crate::commands::build::{State, States, connect, options::one_builder};
use crate::{Failure, Outcome};

/// The flags and the subcommand of `history`.
#[derive(Debug, Args)]
pub(crate) struct History {
    #[command(flatten)]
    flags: BuilderFlags,
    #[command(subcommand)]
    command: HistoryCommand,
}

#[derive(Debug, Subcommand)]
enum HistoryCommand {
    /// Export build records into an archive
    Export(export::ExportArgs),
    /// Inspect a build record
    Inspect(inspect::InspectArgs),
    /// Print the logs of a build record
    Logs(logs::LogsArgs),
    /// List build records
    Ls(ls::LsArgs),
    /// Remove build records
    Rm(rm::RmArgs),
}

pub(super) async fn history(client: &Client, args: History) -> Outcome {
    let own = match &args.command {
        HistoryCommand::Export(args) => &args.flags,
        HistoryCommand::Inspect(args) => &args.flags,
        HistoryCommand::Logs(args) => &args.flags,
        HistoryCommand::Ls(args) => &args.flags,
        HistoryCommand::Rm(args) => &args.flags,
    };
    for flags in [&args.flags, own] {
        one_builder(client, &flags.builder)?;
    }
    let channel = connect(client).await?;
    let builds = Builds {
        channel,
        builder: client.context().to_owned(),
        states: States::of(client),
    };
    match args.command {
        HistoryCommand::Export(args) => export::export(&builds, args).await,
        HistoryCommand::Inspect(args) => inspect::inspect(&builds, args).await,
        HistoryCommand::Logs(args) => logs::logs(&builds, args).await,
        HistoryCommand::Ls(args) => ls::ls(&builds, args).await,
        HistoryCommand::Rm(args) => rm::rm(&builds, args).await,
    }
}

/// The history of an engine.
struct Builds {
    channel: Channel,
    /// The name that the engine has as a builder.
    builder: String,
    /// The paths that builds were asked with.
    states: States,
}

impl Builds {
    /// Returns the records that filters select, the newest first.
    async fn list(&self, filter: Vec<String>) -> Outcome<Vec<BuildHistoryRecord>> {
        let request = BuildHistoryRequest {
            early_exit: true,
            filter,
            ..BuildHistoryRequest::default()
        };
        let mut records = self.records(&request).await.map_err(failed)?;
        records.sort_by_key(|record| std::cmp::Reverse(begin(record)));
        Ok(records)
    }

    async fn records(&self, request: &BuildHistoryRequest) -> Reply<Vec<BuildHistoryRecord>> {
        let method = "moby.buildkit.v1.Control/ListenBuildHistory";
        let mut stream = self.channel.stream(method, Default::default())?;
        stream.requests.send(request).await?;
        stream.requests.close();
        let mut records = Vec::new();
        while let Some(event) = stream.next::<BuildHistoryEvent>().await? {
            records.extend(event.record);
        }
        Ok(records)
    }

    /// Returns the record that a user means: by the name of the build, by how it begins, as `^N`, the build before the last N
    /// ones, or as nothing, the last one.
    async fn find(&self, wanted: &str) -> Outcome<BuildHistoryRecord> {
        let records = self.list(Vec::new()).await?;
        let names: Vec<&str> = records.iter().map(|record| &*record.r#ref).collect();
        let index = position(&names, wanted)?;
        let found = records.into_iter().nth(index);
        found.ok_or_else(|| Failure::new("no record found"))
    }

    async fn update(&self, request: &UpdateBuildHistoryRequest) -> Outcome<()> {
        let method = "moby.buildkit.v1.Control/UpdateBuildHistory";
        let updated = self.channel.unary::<Unused>(method, request).await;
        updated.map(drop).map_err(failed)
    }

    /// Returns a blob of the history.
    async fn blob(&self, digest: &str) -> Outcome<Vec<u8>> {
        self.read(digest).await.map_err(failed)
    }

    async fn read(&self, digest: &str) -> Reply<Vec<u8>> {
        let method = "containerd.services.content.v1.Content/Read";
        let mut stream = self.channel.stream(method, Default::default())?;
        let request = ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        };
        stream.requests.send(&request).await?;
        stream.requests.close();
        let mut bytes = Vec::new();
        while let Some(ReadContentResponse { data, .. }) = stream.next().await? {
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }
}

fn failed(status: whelk_buildkit::grpc::Status) -> Failure {
    Failure::new(status.message)
}

/// Returns the index of the build that a user means. The newest is the first.
fn position(names: &[&str], wanted: &str) -> Outcome<usize> {
    let missing = || match wanted {
        "" => Failure::new("no records found"),
        wanted => Failure::new(format!("no record found for ref {wanted:?}")),
    };
    if let Some(number) = wanted.strip_prefix('^') {
        let number = number.parse().ok().filter(|number| *number < names.len());
        return number.ok_or_else(missing);
    }
    // With the names of the builder and of its node.
    let name = wanted.rsplit('/').next().unwrap_or_default();
    if let Some(index) = names.iter().position(|known| *known == name) {
        return Ok(index);
    }
    let found = names.iter().enumerate();
    let mut found = found.filter(|(_, known)| known.starts_with(name));
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some((index, _)), Some(_)) if wanted.is_empty() => Ok(index),
        (Some(_), Some(_)) => Err(Failure::new(format!(
            "there are several records whose ref begins with {wanted}"
        ))),
        (None, _) => Err(missing()),
    }
}

/// Returns when a build began, in nanoseconds since the epoch.
fn begin(record: &BuildHistoryRecord) -> i128 {
    record.created_at.map_or(0, nanos)
}

fn nanos(time: whelk_buildkit::pb::Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

/// Returns how long a build took, or takes already.
fn duration(record: &BuildHistoryRecord) -> String {
    let end = match record.completed_at {
        Some(end) => nanos(end),
        None => jiff::Timestamp::now().as_nanosecond(),
    };
    #[allow(clippy::cast_precision_loss, reason = "it is shown with one digit")]
    let seconds = (end - begin(record)).max(0) as f64 / 1e9;
    match seconds {
        ..60.0 => format!("{seconds:.1}s"),
        _ => {
            let seconds = seconds.round();
            format!("{:.0}m {:.0}s", (seconds / 60.0).floor(), seconds % 60.0)
        }
    }
}

fn status(record: &BuildHistoryRecord) -> &'static str {
    // The code of gRPC for what was cancelled.
    const CANCELLED: i32 = 1;
    match (&record.error, record.completed_at) {
        (Some(error), _) if error.code == CANCELLED => "Canceled",
        (Some(_), _) => "Error",
        (None, Some(_)) => "Completed",
        (None, None) => "Running",
    }
}

/// Returns the name of a build, as Docker's client makes it of its attributes and of the paths that it was asked with: what it
/// builds, and of that which part.
fn name(record: &BuildHistoryRecord, state: &State) -> String {
    let attributes = &record.frontend_attrs;
    let get = |name: &str| attributes.get(name).map_or("", String::as_str);
    let own = get("build-arg:BUILDKIT_BUILD_NAME");
    if !own.is_empty() {
        return own.to_owned();
    }
    let place = match (get("context"), get("vcs:localdir:context")) {
        ("", "" | ".") => place(record, state),
        ("", directory) => directory.to_owned(),
        (context, _) => context.to_owned(),
    };
    match (place.as_str(), get("target")) {
        ("", "") => get("vcs:source").to_owned(),
        (place, "") => place.to_owned(),
        ("", target) => target.to_owned(),
        (place, target) => format!("{place} ({target})"),
    }
}

/// Returns what names a build of a directory: the name of the directory, and that of a Dockerfile with a name of its own.
fn place(record: &BuildHistoryRecord, state: &State) -> String {
    let attributes = &record.frontend_attrs;
    let get = |name: &str| attributes.get(name).map_or("", String::as_str);
    let is_local = !is_remote(&state.context);
    let known = |path: &str| is_local && path != "-";
    let [context, given] = [&state.context, &state.dockerfile].map(|path| match known(path) {
        true => path.as_str(),
        false => "",
    });
    let file = match (given, get("filename")) {
        ("", "Dockerfile") => "",
        ("", file) => file,
        (given, _) => given,
    };
    let file = match get("vcs:localdir:dockerfile") {
        directory if given.is_empty() && !matches!(directory, "" | ".") => join(directory, file),
        _ => file.to_owned(),
    };
    let usual = file.strip_suffix("/Dockerfile");
    let is_usual = usual.is_some() || file.is_empty();
    let file = usual.unwrap_or(&file);
    if !file.is_empty() && file.len() > context.len() && file.starts_with(context) {
        let start = context.rfind('/').map_or(0, |slash| slash + 1);
        return file.get(start..).unwrap_or(file).to_owned();
    }
    let path = if file.is_empty() { context } else { file };
    match path.rsplit_once('/') {
        Some((parent, name)) if !is_usual => {
            format!("{}/{name}", parent.rsplit('/').next().unwrap_or_default())
        }
        Some((_, name)) => name.to_owned(),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_found_by_their_names() {
        let names = ["abcdef", "abcxyz", "other"];
        for (wanted, expected) in [
            ("", Ok(0)),
            ("^1", Ok(1)),
            ("^3", Err("no record found for ref \"^3\"")),
            ("other", Ok(2)),
            ("default/default/other", Ok(2)),
            ("abcd", Ok(0)),
            (
                "abc",
                Err("there are several records whose ref begins with abc"),
            ),
            ("none", Err("no record found for ref \"none\"")),
        ] {
            let found = position(&names, wanted).map_err(|failure| failure.text);
            assert_eq!(found, expected.map_err(str::to_owned), "{wanted}");
        }
        assert!(position(&[], "").is_err());
    }

    #[test]
    fn builds_are_called_after_what_they_build() {
        let check = |attributes: &[(&str, &str)], paths: (&str, &str), expected: &str| {
            let pairs = attributes.iter();
            let pairs = pairs.map(|(name, value)| ((*name).into(), (*value).into()));
            let record = BuildHistoryRecord {
                frontend_attrs: pairs.collect(),
                ..BuildHistoryRecord::default()
            };
            let state = State {
                context: paths.0.into(),
                dockerfile: paths.1.into(),
                ..State::default()
            };
            assert_eq!(name(&record, &state), expected, "{attributes:?} {paths:?}");
        };
        let unknown = ("", "");
        check(&[("filename", "Dockerfile")], unknown, "");
        check(&[("target", "t")], unknown, "t");
        check(
            &[("context", "https://x/y.git"), ("target", "t")],
            unknown,
            "https://x/y.git (t)",
        );
        check(&[("filename", "a.Dockerfile")], unknown, "a.Dockerfile");
        check(&[("vcs:source", "https://x/y")], unknown, "https://x/y");
        check(&[("vcs:localdir:context", "web")], ("/a/b", ""), "web");
        check(
            &[
                ("vcs:localdir:dockerfile", "sub"),
                ("filename", "a.Dockerfile"),
            ],
            unknown,
            "sub/a.Dockerfile",
        );
        check(&[], ("/a/web", ""), "web");
        check(&[("target", "t")], ("/a/web", ""), "web (t)");
        check(&[], ("/a/web", "/a/web/Dockerfile"), "web");
        check(&[], ("/a/web", "/a/web/x/Dockerfile"), "web/x");
        check(&[], ("/a/web", "/a/web/x.Dockerfile"), "web/x.Dockerfile");
        check(&[], ("/a/web", "/b/c/x.Dockerfile"), "c/x.Dockerfile");
        check(&[], ("-", ""), "");
        check(&[], ("https://x/y.git", "x"), "");
        check(
            &[("build-arg:BUILDKIT_BUILD_NAME", "mine"), ("target", "t")],
            ("/a/web", ""),
            "mine",
        );
    }

    #[test]
    fn durations_are_short() {
        let check = |seconds: i64, expected: &str| {
            let at = |seconds| whelk_buildkit::pb::Timestamp { seconds, nanos: 0 };
            let record = BuildHistoryRecord {
                created_at: Some(at(5)),
                completed_at: Some(at(5 + seconds)),
                ..BuildHistoryRecord::default()
            };
            assert_eq!(duration(&record), expected);
        };
        check(3, "3.0s");
        check(59, "59.0s");
        check(125, "2m 5s");
    }
}
