//! The `build` command: a client of the engine's BuildKit protocol, like buildx.
//!
//! ```text
//! flags ─► contexts, secrets, outputs ─► session: serves the engine ◄─┐
//!   └────► request ────────────────────► solve ─────────────────────► engine
//!                                          └─► display, failure
//! ```

mod agents;
mod archive;
mod args;
mod contexts;
pub(crate) mod display;
mod engine;
mod failure;
mod local;
pub(crate) mod options;
mod outputs;
pub(crate) mod policy;
mod prepared;
mod report;
mod secrets;
mod session;
mod shell;
mod solve;
mod state;
mod stores;
mod walk;

pub(crate) use agents::KnownAgents;
pub(crate) use args::BuildArgs;
pub(crate) use contexts::{is_archive, is_fetched, layout};
pub(crate) use engine::{connect, open_credentials, random_id};
pub(crate) use failure::{excerpts, failure_of_target, solve_failure};
pub(crate) use outputs::{ONE_STDOUT, check_file};
pub(crate) use prepared::Prepared;
pub(crate) use report::{metadata, print_answer};
pub(crate) use solve::{Asked, Signals, Unsolved, solve_all, watched};
pub(crate) use state::{State, States};

use whelk_buildkit::details::image_of_failed;
use whelk_buildkit::pb::control::SolveResponse;

use self::display::{Display, Mode};
use self::failure::{failure, not_built};
use self::outputs::Output;
use self::solve::solve;
use crate::client::Client;
use crate::commands::builder::history::provenance;
use crate::commands::image;
use crate::commands::messages::Target;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome, plain};

pub(crate) async fn build(client: &Client, mut args: BuildArgs) -> Outcome {
    // From here on, a signal ends this command in order.
    let mut signals = Signals::new()?;
    options::one_builder(client, &args.builder).map_err(not_built)?;
    let mode = Mode::new(&args.progress, args.quiet).map_err(not_built)?;
    options::name_contexts(&mut args).map_err(not_built)?;
    let debug = args.debug || client.debug();
    let known = &mut KnownAgents::default();
    let prepared = Prepared::new(client, args, &mut signals, known).await;
    let mut prepared = prepared.map_err(not_built)?;
    if !prepared.args.iidfile.is_empty() {
        // A build that fails leaves none. A device stays.
        let is_file = |path: &String| std::fs::metadata(path).is_ok_and(|old| old.is_file());
        if is_file(&prepared.args.iidfile) {
            let _ = std::fs::remove_file(&prepared.args.iidfile);
        }
    }
    let begun = async {
        let channel = connect(client).await?;
        prepared.begin(client, &channel).await?;
        Ok(channel)
    };
    let channel = signals.or_stopped(begun).await.map_err(not_built)?;
    let display = Display::new(mode, client.context(), debug);
    let display = display.explaining(prepared.args.explain);
    let response = match solve(&channel, &prepared.request, display, &mut signals).await {
        Ok(response) => response,
        Err(Unsolved::Stopped(failure)) => return Err(not_built(failure)),
        Err(Unsolved::Failed(status)) => {
            let mut failure = failure(&status);
            let Some(image) = image_of_failed(&status) else {
                if prepared.args.on_error == "shell" {
                    failure.text += shell::NO_STATE;
                }
                return Err(failure);
            };
            warn_line!("{}", failure.text);
            let ended = shell::open(client, &image, &prepared, &mut signals).await?;
            return Ok(ended.unwrap_or(failure.code));
        }
    };
    if let Some((call, format)) = prepared.call {
        prepared.stores.finish(&response).map_err(not_built)?;
        return print_answer(&response, call, format);
    }
    let is_quiet = mode == Mode::Quiet;
    // What it fails with says so already; what stops it does not.
    let finished = async { Ok(prepared.end(client, &response, is_quiet).await) };
    let code = signals.or_stopped(finished).await.map_err(not_built)??;
    // Not behind an archive.
    if is_quiet
        && !prepared.writes_to_stdout()
        && let Some(id) = image_id(&response)
    {
        print_line!("{id}")?;
    }
    Ok(code)
}

/// Returns the id of the image that was built: the digest of its configuration, or that of the index of several images.
fn image_id(response: &SolveResponse) -> Option<&String> {
    let told = &response.exporter_response;
    let names = ["containerimage.config.digest", "containerimage.digest"];
    names.iter().find_map(|name| told.get(*name))
}

/// Writes the files about the result, and pushes it.
async fn finish(
    client: &Client,
    args: &BuildArgs,
    name: &str,
    response: &SolveResponse,
    outputs: &[Output],
    is_quiet: bool,
) -> Outcome {
    let write = |path: &str, content: &str| {
        // Into what is there, which may be a device.
        let written = std::fs::write(path, content);
        written.map_err(|error| Failure::new(format!("write {path}: {}", plain(&error))))
    };
    if !args.iidfile.is_empty()
        && let Some(id) = image_id(response)
    {
        write(&args.iidfile, id).map_err(not_built)?;
    }
    if !args.metadata_file.is_empty() {
        let mut values = report::metadata(client.context(), name, response);
        values.extend(provenance::entries(client, name).await.map_err(not_built)?);
        let text = serde_json::to_string_pretty(&values)
            .map_err(|error| Failure::new(format!("encode the metadata: {error}")))?;
        write(&args.metadata_file, &text).map_err(not_built)?;
    }
    let pushed = |output: &&Output| output.is_pushed && !output.is_pushed_by_builder();
    for output in outputs.iter().filter(pushed) {
        push(client, &output.names(&args.tag), is_quiet).await?;
    }
    Ok(0)
}

/// Adds the name of an image to why it was not pushed, in the words of builders that push by themselves.
fn not_pushed(name: &str, failure: Failure) -> Failure {
    if failure.is_unwritten {
        return failure;
    }
    let text = format!("failed to push {name}: {}", failure.text);
    Failure { text, ..failure }
}

async fn push(client: &Client, names: &[String], is_quiet: bool) -> Outcome<()> {
    // The standard output is for the id, or for an archive.
    let target = match is_quiet {
        true => Target::Nowhere,
        false => Target::Errors,
    };
    for name in names {
        if !is_quiet {
            warn_line!("pushing {name}");
        }
        let name = image::pull::with_default_tag(name);
        let pushed = image::push::push_named(client, &name, "", target).await;
        pushed.map_err(|failure| not_built(not_pushed(&name, failure)))?;
    }
    Ok(())
}
