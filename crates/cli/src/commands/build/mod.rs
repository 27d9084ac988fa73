//! The `build` command: a client of the engine's BuildKit protocol, like buildx.
//!
//! ```text
//! flags ─► contexts, secrets, outputs ─► session: serves the engine ◄─┐
//!   └────► request ────────────────────► solve ─────────────────────► engine
//!                                          └─► display, failure
//! ```

mod agents;
mod args;
mod contexts;
pub(crate) mod display;
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

use std::sync::Arc;

use whelk_buildkit::details::image_of_failed;
use whelk_buildkit::pb::control::SolveResponse;

use self::agents::Agents;
use self::contexts::Contexts;
use self::display::{Display, Mode};
use self::failure::{failure, not_built};
use self::outputs::Output;
use self::secrets::Secrets;
use self::session::Session;
use self::solve::{Signals, Unsolved, solve};
use self::stores::Stores;
use crate::client::Client;
use crate::commands::builder::host_gateway;
use crate::commands::image;
use crate::commands::messages::Target;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome, plain};

pub(crate) async fn build(client: &Client, args: BuildArgs) -> Outcome {
    // From here on, a signal ends this command in order.
    let mut signals = Signals::new()?;
    options::one_builder(client, &args.builder).map_err(not_built)?;
    let mode = Mode::new(&args.progress, args.quiet).map_err(not_built)?;
    let call = options::call(&args).map_err(not_built)?;
    let outputs = outputs::parse(&args.output, args.load, args.push).map_err(not_built)?;
    for output in &outputs {
        output.check(&args.tag).map_err(not_built)?;
    }
    let secrets = Secrets::new(&args.secret).map_err(not_built)?;
    let agents = Agents::new(&args.ssh).map_err(not_built)?;
    let contexts = signals.or_stopped(Contexts::find(&args)).await;
    let mut contexts = contexts.map_err(not_built)?;
    let mut request = options::request(&args, &contexts, &outputs).map_err(not_built)?;
    let stores = Stores::of(request.cache.get_or_insert_default()).map_err(not_built)?;
    let own = &request.frontend_attrs;
    let proxies = client
        .proxies()
        .into_iter()
        .map(|(name, value)| (format!("build-arg:{name}"), value));
    // The user's own ones hold in both spellings.
    let proxies: Vec<_> = proxies
        .filter(|(name, _)| !own.keys().any(|own| own.eq_ignore_ascii_case(name)))
        .collect();
    request.frontend_attrs.extend(proxies);
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
        secrets: Arc::new(secrets),
        agents,
        outputs: outputs.clone(),
        stores: stores.clone(),
        config: client.config().map(std::path::Path::to_owned),
    };
    let key = contexts.shared_key(&session.sources);
    if args.explain && key.is_empty() {
        warn_line!(
            "WARNING: --explain: without the path of a context, nothing is known of earlier builds"
        );
    }
    let connected = async {
        tokio::try_join!(
            engine::connect(client),
            engine::open_session(client, &request.session, &key, session)
        )
    };
    let (channel, ()) = signals.or_stopped(connected).await.map_err(not_built)?;
    if options::wants_host_gateway(&request.frontend_attrs) {
        let address = host_gateway(&channel).await.map_err(not_built)?;
        options::set_host_gateway(&mut request.frontend_attrs, &address);
    }
    let display = Display::new(mode, client.context(), args.debug || client.debug());
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
    // What it fails with says so already; what stops it does not.
    let finished = async { Ok(finish(client, &args, name, &response, &outputs, is_quiet).await) };
    signals.or_stopped(finished).await.map_err(not_built)?
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
        let text = report::metadata(client.context(), name, response)?;
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
        image::push::push_named(client, &name, "", target)
            .await
            .map_err(not_built)?;
    }
    Ok(())
}
