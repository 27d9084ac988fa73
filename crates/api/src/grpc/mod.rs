//! BuildKit's services, on connections that `POST /grpc` has upgraded, and sessions of clients (`POST /session`).
//!
//! ```text
//! Control.Solve ─► Build ◄─ LLBBridge.Solve (Dockerfile or definition ─► reference)
//!                    │   ◄─ LLBBridge.Return (the reference that is the result)
//! Control.Status ◄───┘  progress
//! ```
//! With the usual clients, a build's frontend is the client: it asks for references, and returns one of them. They
//! are solved when somebody needs their files. Other frontends are programs in images, which have the service `LLBBridge` alone
//! on their standard input and output (`gateway`).

mod bridge;
mod builds;
mod caches;
mod client;
mod containers;
mod contexts;
mod control;
mod export;
mod failed;
mod frontend;
mod gateway;
mod history;
pub(crate) mod named;
mod platforms;
mod policies;
mod progress;
mod remote;
mod result;
mod scope;
mod trace;
mod traced;

use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::rt::{Read, Write};
use whelk_build::Builder;
use whelk_buildkit::grpc::{self, Call, Result, Status};
use whelk_buildkit::history::History;
use whelk_buildkit::pb::{BytesMessage, HealthCheckResponse, Unused};
use whelk_buildkit::session::Sessions;
use whelk_engine::Engine;

use builds::Builds;
use contexts::Contexts;

/// BuildKit's services of an engine, which all connections share.
#[derive(Debug)]
pub(crate) struct Buildkit {
    engine: Arc<Engine>,
    builder: Arc<Builder>,
    pub sessions: Arc<Sessions>,
    pub named: named::Named,
    builds: Builds,
    contexts: Arc<Contexts>,
    history: History,
}

impl Buildkit {
    /// Opens the history of builds, and removes what another boot has left. Blocking.
    pub fn new(engine: Arc<Engine>, builder: Arc<Builder>) -> Arc<Self> {
        Arc::new(Self {
            history: History::open(&engine.instance.root.join("build/history")),
            contexts: Contexts::new(builder.clone(), &engine.instance.root),
            engine,
            builder,
            sessions: Arc::default(),
            named: named::Named::default(),
            builds: Builds::default(),
        })
    }

    /// Serves the calls of a connection until it ends.
    pub async fn serve(self: Arc<Self>, stream: impl Read + Write + Unpin + Send + 'static) {
        let answer = move |call| self.clone().answer(call);
        // Clients hang up without a word, and look whether this works by opening a connection.
        if let Err(error) = grpc::serve(stream, grpc::Limits::default(), headers, answer).await {
            tracing::debug!("connection of BuildKit's protocol: {error}");
        }
    }

    async fn answer(self: Arc<Self>, mut call: Call) -> Result<()> {
        let method = std::mem::take(&mut call.method);
        let (service, name) = method.split_once('/').unwrap_or_default();
        match service {
            "moby.buildkit.v1.Control" => self.control(name, call).await,
            "moby.buildkit.v1.frontend.LLBBridge" => self.bridge(name, call).await,
            "containerd.services.content.v1.Content" => self.content(name, call).await,
            "grpc.health.v1.Health" if name == "Check" => {
                let status = HealthCheckResponse::SERVING;
                call.responses.send(&HealthCheckResponse { status }).await
            }
            // Traces of the client: what it wants to be kept beside those of the engine, which has none.
            "opentelemetry.proto.collector.trace.v1.TraceService" if name == "Export" => {
                call.responses.send(&Unused {}).await
            }
            _ => Err(Status::unimplemented(format!("unknown method {method}"))),
        }
    }

    /// Serves a session whose connection is a stream of messages.
    async fn session(&self, call: Call) -> Result<()> {
        /// Clients accept messages of up to 4 MiB.
        const PIECE: usize = 64 << 10;
        let Call {
            metadata,
            mut requests,
            responses,
            ..
        } = call;
        let (ours, theirs) = tokio::io::duplex(4 * PIECE);
        let (mut output, mut input) = tokio::io::split(theirs);
        let received = async {
            while let Some(BytesMessage { data }) = requests.next().await? {
                if tokio::io::AsyncWriteExt::write_all(&mut input, &data)
                    .await
                    .is_err()
                {
                    break;
                }
            }
            // The client waits for the end of the stream when it has closed its side.
            Ok(())
        };
        let sent = async {
            let mut buffer = bytes::BytesMut::with_capacity(PIECE);
            while let Ok(1..) = tokio::io::AsyncReadExt::read_buf(&mut output, &mut buffer).await {
                let data = buffer.split().freeze();
                responses.send(&BytesMessage { data }).await?;
                buffer.reserve(PIECE);
            }
            Ok(())
        };
        let served = self
            .sessions
            .serve(&metadata, hyper_util::rt::TokioIo::new(ours));
        tokio::select! {
            result = received => result,
            result = sent => result,
            result = served => result,
        }
    }
}

/// Runs work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Status::unknown(error.to_string())))
}

/// The headers of each answer: some calls must have the time.
fn headers() -> HeaderMap {
    let now = jiff::Timestamp::now().to_string();
    let time = HeaderValue::from_str(&now).ok();
    let name = HeaderName::from_static("buildkit-current-timestamp");
    time.map(|time| (name, time)).into_iter().collect()
}
