//! One build: asks for it, shows its progress, and cancels it when a signal comes.

use std::cell::Cell;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use whelk_buildkit::grpc::{Channel, Status};
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse, StatusRequest, StatusResponse};

use super::display::Display;
use crate::{Failure, Outcome};

/// The time between two drawings on a terminal.
const TICK: Duration = Duration::from_millis(100);

/// How long the last news of a build may take after its end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same, for a build of which there were no news: it was refused.
const SHORT: Duration = Duration::from_millis(50);

/// Why there is no result.
pub(super) enum Unsolved {
    Failed(Status),
    /// This command was asked to end.
    Stopped(Failure),
}

/// Signals that end a build.
pub(super) struct Signals([(SignalKind, Signal); 2]);

impl Signals {
    pub fn new() -> Outcome<Self> {
        let caught = |kind: SignalKind| Ok::<_, Failure>((kind, signal(kind)?));
        let kinds = [
            caught(SignalKind::interrupt())?,
            caught(SignalKind::terminate())?,
        ];
        Ok(Self(kinds))
    }

    /// Waits for a signal, and returns the failure of the command then, with the exit code that shells report.
    async fn next(&mut self) -> Failure {
        let [(first, one), (second, other)] = &mut self.0;
        let kind = tokio::select! {
            _ = one.recv() => *first,
            _ = other.recv() => *second,
        };
        let code = 128 + u8::try_from(kind.as_raw_value()).unwrap_or(0);
        Failure::with_code(code, "failed to solve: Canceled: context canceled")
    }

    /// Returns what work results in, unless a signal comes before.
    pub async fn or_stopped<T>(&mut self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        tokio::select! {
            done = work => done,
            stopped = self.next() => Err(stopped),
        }
    }
}

/// Builds, and shows how it goes.
pub(super) async fn solve(
    channel: &Channel,
    request: &SolveRequest,
    mut display: Display,
    signals: &mut Signals,
) -> Result<SolveResponse, Unsolved> {
    let outcome = async {
        let solving = channel.unary("moby.buildkit.v1.Control/Solve", request);
        // The call is cancelled when it is dropped, and with it the build.
        tokio::select! {
            solved = solving => solved.map_err(Unsolved::Failed),
            stopped = signals.next() => Err(Unsolved::Stopped(stopped)),
        }
    };
    let outcome = {
        let is_told = Cell::new(false);
        let watching = watch(channel, &request.r#ref, &mut display, &is_told);
        tokio::pin!(outcome, watching);
        tokio::select! {
            outcome = &mut outcome => {
                let patience = if is_told.get() { PATIENCE } else { SHORT };
                // What is late is not shown.
                let _ = tokio::time::timeout(patience, watching).await;
                outcome
            }
            () = &mut watching => outcome.await,
        }
    };
    display.finish();
    outcome
}

/// Shows the news of a build until there are no more.
async fn watch(channel: &Channel, name: &str, display: &mut Display, is_told: &Cell<bool>) {
    let request = StatusRequest {
        r#ref: name.to_owned(),
    };
    let stream = channel.stream("moby.buildkit.v1.Control/Status", Default::default());
    let Ok(mut stream) = stream else { return };
    // The build's own call tells of a lost connection.
    let _ = stream.requests.send(&request).await;
    stream.requests.close();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            next = stream.next::<StatusResponse>() => match next {
                Ok(Some(response)) => {
                    is_told.set(true);
                    display.update(&response);
                }
                _ => return,
            },
            _ = ticks.tick() => display.tick(),
        }
    }
}
