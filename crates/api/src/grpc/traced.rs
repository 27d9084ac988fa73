//! Builds whose progress goes where their request came from (`POST /build?version=2`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use whelk_build::Pieces;
use whelk_buildkit::grpc::Result;
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse, StatusResponse};
use whelk_engine::events::now;

use super::Buildkit;
use super::client::BODY;
use super::progress::{self, Listener};

impl Buildkit {
    /// Returns a name for a build whose client has none.
    pub fn new_name(&self) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let text = format!("{} {} {number}", self.engine.id, now());
        let digits = whelk_llb::Digest::of(text.as_bytes()).to_string();
        // Names of BuildKit's clients have as many letters.
        digits
            .trim_start_matches("sha256:")
            .chars()
            .take(25)
            .collect()
    }

    /// Returns the addresses that `host-gateway` stands for.
    pub fn host_gateway(&self) -> Vec<String> {
        self.engine.networks.host_gateway()
    }

    /// Builds, and sends its progress. The context is the body, if there is one.
    ///
    /// # Errors
    /// Returns why the build has failed.
    pub async fn build_traced(
        self: &Arc<Self>,
        mut request: SolveRequest,
        body: Option<Pieces>,
        updates: mpsc::Sender<StatusResponse>,
    ) -> Result<SolveResponse> {
        /// How long the last updates may take after the end; of a build that was refused there are none.
        const PATIENCE: Duration = Duration::from_secs(30);
        if body.is_some() {
            // No other build knows the name, so that none with this session, or without one, can read the body.
            let url = format!("http://buildkit-session/{BODY}{}", self.new_name());
            request.frontend_attrs.insert("context".into(), url);
        }
        let id = request.r#ref.clone();
        let has_begun = AtomicBool::new(false);
        let telling = async {
            if let Ok(report) = self.builds.report(&id).await {
                has_begun.store(true, Ordering::Relaxed);
                // A client that is gone needs no updates.
                let _ = progress::tell(&report, &Listener::Record(updates)).await;
            }
        };
        let solving = self.solve(request, body);
        tokio::pin!(telling, solving);
        tokio::select! {
            solved = &mut solving => {
                if has_begun.load(Ordering::Relaxed) {
                    let _ = tokio::time::timeout(PATIENCE, telling).await;
                }
                solved
            }
            () = &mut telling => solving.await,
        }
    }
}
