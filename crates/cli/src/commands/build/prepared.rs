//! A build that is ready to be asked for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use whelk_buildkit::grpc::Channel;
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse};

use super::agents::{Agents, KnownAgents};
use super::args::BuildArgs;
use super::contexts::{CONTEXT, Contexts, Source};
use super::engine;
use super::failure::not_built;
use super::options::{self, Call, CallFormat};
use super::outputs::{self, Output};
use super::report;
use super::secrets::Secrets;
use super::session::Session;
use super::solve::Signals;
use super::state::States;
use super::stores::Stores;
use crate::Outcome;
use crate::client::Client;
use crate::commands::builder::host_gateway;
use crate::output::warn_line;

/// A build with all that the engine may ask for.
pub(crate) struct Prepared {
    pub args: BuildArgs,
    pub request: SolveRequest,
    /// What is wanted instead of a build.
    pub call: Option<(Call, CallFormat)>,
    pub(super) stores: Stores,
    outputs: Vec<Output>,
    /// Until it is opened.
    session: Option<Session>,
    /// Has an unpacked archive.
    contexts: Contexts,
}

impl Prepared {
    /// Reads the flags of a build, and finds its contexts.
    ///
    /// # Errors
    /// Returns an error for flags that are not valid, and for files that are not there.
    pub async fn new(
        client: &Client,
        mut args: BuildArgs,
        signals: &mut Signals,
        known: &mut KnownAgents,
    ) -> Outcome<Self> {
        options::leave_out_empty(&mut args);
        let call = options::call(&args)?;
        let outputs = outputs::parse(&args.output, args.load, args.push)?;
        for output in &outputs {
            output.check(&args.tag)?;
        }
        for path in [&args.iidfile, &args.metadata_file] {
            outputs::check_file(path)?;
        }
        let secrets = Secrets::new(&args.secret)?;
        // What comes from the standard input is no passphrase.
        let may_ask = args.context != "-" && args.file != "-";
        let agents = signals
            .or_stopped(Agents::new(&args.ssh, may_ask, known))
            .await?;
        let mut contexts = signals.or_stopped(Contexts::find(&args)).await?;
        let mut request = options::request(&args, &contexts, &outputs)?;
        // The request has them, and `bake` may prepare many builds with large ones.
        args.build_arg = Vec::new();
        let mut stores = Stores::of(request.cache.get_or_insert_default())?;
        stores.layouts = std::mem::take(&mut contexts.layouts);
        stores.exported = outputs.iter().find_map(Output::layout).map(Path::to_owned);
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
            config: client.config().map(Path::to_owned),
        };
        Ok(Self {
            args,
            request,
            call,
            stores,
            outputs,
            session: Some(session),
            contexts,
        })
    }

    /// Returns the directory of this machine that is the context. Before the session is opened.
    pub fn context(&self) -> Option<&Path> {
        match self.session.as_ref()?.sources.get(CONTEXT)? {
            Source::Directory(path) => Some(path),
            Source::File { .. } | Source::Empty => None,
        }
    }

    /// Opens the build's session, and completes its request with what the engine tells.
    pub async fn begin(&mut self, client: &Client, channel: &Channel) -> Outcome<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        let key = self.contexts.shared_key(&session.sources);
        if self.args.explain && key.is_empty() {
            warn_line!(
                "WARNING: --explain: without the path of a context, nothing is known of earlier builds"
            );
        }
        engine::open_session(client, &self.request.session, &key, session).await?;
        if self.call.is_none() {
            States::of(client).save(&self.args, &self.request.r#ref);
        }
        let attributes = &mut self.request.frontend_attrs;
        if options::wants_host_gateway(attributes) {
            let address = host_gateway(channel).await?;
            options::set_host_gateway(attributes, &address);
        }
        Ok(())
    }

    /// Returns the request as that of a build, if it is a question.
    pub fn as_build(&self) -> SolveRequest {
        let mut request = self.request.clone();
        if self.call.is_some() {
            let attributes: &mut BTreeMap<_, _> = &mut request.frontend_attrs;
            attributes.remove("requestid");
            attributes.remove("frontend.caps");
        }
        request
    }

    /// Whether the result is written to the standard output.
    pub fn writes_to_stdout(&self) -> bool {
        self.call.is_none() && self.outputs.iter().any(Output::is_stdout)
    }

    /// Writes the files about the result, and pushes it.
    pub async fn end(&self, client: &Client, response: &SolveResponse, is_quiet: bool) -> Outcome {
        self.stores.finish(response).map_err(not_built)?;
        let name = &self.request.r#ref;
        super::finish(client, &self.args, name, response, &self.outputs, is_quiet).await
    }
}
