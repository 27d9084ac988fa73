//! The `build` command: a client of the engine's BuildKit protocol, like buildx.
//!
//! ```text
//! flags ─► contexts, secrets, outputs ─► session: serves the engine ◄─┐
//!   └────► request ────────────────────► solve ─────────────────────► engine
//!                                          └─► display, failure
//! ```

mod args;
mod contexts;
mod display;
mod engine;
mod failure;
mod local;
pub(crate) mod options;
mod outputs;
mod report;
mod secrets;
mod session;
mod shell;
mod solve;
mod stores;
mod walk;

pub(crate) use args::BuildArgs;
pub(crate) use engine::connect;

use whelk_buildkit::details::image_of_failed;
use whelk_buildkit::pb::control::SolveResponse;

use self::contexts::Contexts;
use self::display::{Display, Mode};
use self::failure::{failure, not_built};
use self::outputs::Output;
use self::secrets::Secrets;
use self::session::Session;
use self::solve::{Signals, Unsolved, solve};
use self::stores::Stores;
use crate::client::Client;
use crate::commands::image;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome, plain};

pub(crate) async fn build(client: &Client, args: BuildArgs) -> Outcome {
    let mode = Mode::new(&args.progress, args.quiet).map_err(not_built)?;
    let call = options::call(&args).map_err(not_built)?;
    let outputs = outputs::parse(&args.output, args.load, args.push).map_err(not_built)?;
    let secrets = Secrets::new(&args.secret).map_err(not_built)?;
    let mut contexts = Contexts::new(&args).map_err(not_built)?;
    let mut request = options::request(&args, &contexts, &outputs).map_err(not_built)?;
    let stores = Stores::of(request.cache.get_or_insert_default()).map_err(not_built)?;
    // While the standard input was read, a signal ended this process.
    let mut signals = Signals::new()?;
    if !args.iidfile.is_empty() {
        // A build that fails leaves none. A device stays.
        let is_file = |path: &String| std::fs::metadata(path).is_ok_and(|old| old.is_file());
        if is_file(&args.iidfile) {
            let _ = std::fs::remove_file(&args.iidfile);
        }
    }
    request.r#ref = engine::random_id()?;
    request.session = engine::random_id()?;
    if let Some((call, _)) = call {
        report::ask(&mut request, call);
    }
    let session = Session {
        sources: std::mem::take(&mut contexts.sources),
        secrets,
        outputs: outputs.clone(),
        stores: stores.clone(),
        config: client.config().map(std::path::Path::to_owned),
    };
    let key = contexts.shared_key(&session.sources);
    let connected = async {
        tokio::try_join!(
            engine::connect(client),
            engine::open_session(client, &request.session, &key, session)
        )
    };
    let (channel, ()) = signals.or_stopped(connected).await.map_err(not_built)?;
    let display = Display::new(mode, "default", args.debug || client.debug());
    let response = match solve(&channel, &request, display, &mut signals).await {
        Ok(response) => response,
        Err(Unsolved::Stopped(failure)) => return Err(not_built(failure)),
        Err(Unsolved::Failed(status)) => {
            let failure = failure(&status);
            let Some(image) = image_of_failed(&status) else {
                return Err(failure);
            };
            warn_line!("{}", failure.text);
            shell::open(client, &image, &args).await?;
            return Ok(failure.code);
        }
    };
    stores.finish(&response).map_err(not_built)?;
    if let Some((call, format)) = call {
        return report::print_answer(&response, call, format);
    }
    let is_quiet = mode == Mode::Quiet;
    let name = &request.r#ref;
    let finished = finish(client, &args, name, &response, &outputs, is_quiet);
    signals.or_stopped(finished).await
}

/// Writes the files about the result, pushes it, and prints its id.
async fn finish(
    client: &Client,
    args: &BuildArgs,
    name: &str,
    response: &SolveResponse,
    outputs: &[Output],
    is_quiet: bool,
) -> Outcome {
    let id = response.exporter_response.get("containerimage.digest");
    let write = |path: &str, content: &str| {
        // Into what is there, which may be a device.
        let written = std::fs::write(path, content);
        written.map_err(|error| Failure::new(format!("write {path}: {}", plain(&error))))
    };
    if let Some(id) = id.filter(|_| !args.iidfile.is_empty()) {
        write(&args.iidfile, id).map_err(not_built)?;
    }
    if !args.metadata_file.is_empty() {
        let text = report::metadata(name, response)?;
        write(&args.metadata_file, &text).map_err(not_built)?;
    }
    for output in outputs.iter().filter(|output| output.is_pushed) {
        push(client, &output.names(&args.tag), is_quiet).await?;
    }
    if is_quiet && let Some(id) = id {
        print_line!("{id}")?;
    }
    Ok(0)
}

async fn push(client: &Client, names: &[String], is_quiet: bool) -> Outcome<()> {
    if names.is_empty() {
        let text = "tag is needed when pushing to registry";
        return Err(not_built(Failure::new(text)));
    }
    for name in names {
        if !is_quiet {
            warn_line!("pushing {name}");
        }
        let name = image::pull::with_default_tag(name);
        image::push::push_named(client, &name, "", is_quiet)
            .await
            .map_err(not_built)?;
    }
    Ok(())
}
