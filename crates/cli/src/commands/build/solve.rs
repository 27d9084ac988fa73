//! One build: asks for it, shows its progress, and cancels it when a signal comes.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_util::future::{select_all, try_join_all};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use whelk_buildkit::grpc::{Channel, Status};
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse, StatusRequest, StatusResponse};

use super::display::Display;
use crate::{Failure, Outcome};

/// The time between two drawings on a terminal.
const TICK: Duration = Duration::from_millis(100);

/// How long the last news of a build may take after its end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same, for a build that was stopped before there were any: it may not have begun, and there are none.
const STOPPED: Duration = Duration::from_millis(200);

/// The same, for a build that goes on.
const SHORT: Duration = Duration::from_millis(50);

/// Why there is no result.
pub(crate) enum Unsolved {
    Failed(Status),
    /// This command was asked to end.
    Stopped(Failure),
}

/// Signals that end a build.
pub(crate) struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    pub fn new() -> Outcome<Self> {
        let mut signals = Self(Vec::new());
        signals.catch(SignalKind::interrupt())?;
        signals.catch(SignalKind::terminate())?;
        Ok(signals)
    }

    /// Lets the end of the terminal end this command in order, too.
    pub(super) fn catch_hangup(&mut self) -> Outcome<()> {
        self.catch(SignalKind::hangup())
    }

    fn catch(&mut self, kind: SignalKind) -> Outcome<()> {
        self.0.push((kind, signal(kind)?));
        Ok(())
    }

    /// Waits for a signal, and returns the failure of the command then, with the exit code that shells report.
    async fn next(&mut self) -> Failure {
        let caught = self.0.iter_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        // There are at least two.
        let (kind, ..) = select_all(caught).await;
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

/// The maximum number of builds at the same time.
const AT_ONCE: usize = 32;

/// A build to ask for, beside others.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// What its steps are told by; empty for a build that is alone.
    pub prefix: &'a str,
    pub request: &'a SolveRequest,
}

/// Builds, and shows how it goes.
pub(super) async fn solve(
    channel: &Channel,
    request: &SolveRequest,
    display: Display,
    signals: &mut Signals,
) -> Result<SolveResponse, Unsolved> {
    let asked = Asked {
        prefix: "",
        request,
    };
    let solved = solve_all(channel, &[asked], display, signals).await;
    let mut answers = solved.map_err(|(_, unsolved)| unsolved)?;
    let lost = || Unsolved::Failed(Status::unavailable("the build has no answer"));
    answers.pop().ok_or_else(lost)
}

/// Builds several at the same time, and shows how they go. The first that fails ends the others.
///
/// # Errors
/// Returns why, and the number of the build.
pub(crate) async fn solve_all(
    channel: &Channel,
    asked: &[Asked<'_>],
    display: Display,
    signals: &mut Signals,
) -> Result<Vec<SolveResponse>, (usize, Unsolved)> {
    let display = RefCell::new(display);
    let (stop, stopped) = watch::channel(false);
    let mut why = None;
    let answers = {
        let places = Semaphore::new(AT_ONCE);
        let (places, display, stopped) = (&places, &display, &stopped);
        let all = asked.iter().enumerate().map(|(number, asked)| async move {
            let _place = places.acquire().await;
            let answer = solve_one(channel, asked, display, stopped.clone()).await;
            answer.map_err(|status| (number, Unsolved::Failed(status)))
        });
        let ticks = ticks(display);
        let all = try_join_all(all);
        tokio::pin!(all, ticks);
        loop {
            tokio::select! {
                answers = &mut all => break answers,
                failure = signals.next(), if why.is_none() => {
                    why = Some(failure);
                    stop.send_replace(true);
                }
                () = &mut ticks => {}
            }
        }
    };
    display.into_inner().finish();
    let answers: Option<Vec<SolveResponse>> = answers?.into_iter().collect();
    match (answers, why) {
        (Some(answers), _) => Ok(answers),
        (None, Some(failure)) => Err((0, Unsolved::Stopped(failure))),
        (None, None) => Err((0, Unsolved::Failed(Status::canceled()))),
    }
}

/// Draws again and again, without an end.
async fn ticks(display: &RefCell<Display>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        display.borrow_mut().tick();
    }
}

/// Does work that has a build do something, and shows how that goes.
pub(crate) async fn watched<T>(
    channel: &Channel,
    build: &str,
    display: Display,
    work: impl Future<Output = T>,
) -> T {
    let request = SolveRequest {
        r#ref: build.to_owned(),
        ..SolveRequest::default()
    };
    let asked = Asked {
        prefix: "",
        request: &request,
    };
    let (display, is_told) = (RefCell::new(display), Cell::new(false));
    let done = {
        let watching = news(channel, &asked, &display, &is_told);
        let ticks = ticks(&display);
        tokio::pin!(work, watching, ticks);
        let mut has_ended = false;
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = &mut watching, if !has_ended => has_ended = true,
                () = &mut ticks => {}
            }
        };
        if !has_ended {
            // What is late is not shown: the build goes on.
            let _ = tokio::time::timeout(SHORT, watching).await;
        }
        done
    };
    display.into_inner().finish();
    done
}

/// Builds, and shows what comes of it. Returns `None` if it was stopped before.
async fn solve_one(
    channel: &Channel,
    asked: &Asked<'_>,
    display: &RefCell<Display>,
    mut stopped: watch::Receiver<bool>,
) -> Result<Option<SolveResponse>, Status> {
    if *stopped.borrow() {
        return Ok(None);
    }
    let is_told = Cell::new(false);
    let outcome = async {
        let solving = channel.unary("moby.buildkit.v1.Control/Solve", asked.request);
        // The call is cancelled when it is dropped, and with it the build.
        tokio::select! {
            answer = solving => answer.map(Some),
            _ = stopped.wait_for(|stopped| *stopped) => Ok(None),
        }
    };
    let watching = news(channel, asked, display, &is_told);
    tokio::pin!(outcome, watching);
    tokio::select! {
        outcome = &mut outcome => {
            // What is late is not shown. Those of a build that was refused end at once.
            let is_stopped = matches!(outcome, Ok(None));
            let is_over = is_stopped && !is_told.get() && {
                let watched = tokio::time::timeout(STOPPED, &mut watching).await;
                watched.is_ok() || !is_told.get()
            };
            if !is_over {
                let _ = tokio::time::timeout(PATIENCE, watching).await;
            }
            outcome
        }
        () = &mut watching => outcome.await,
    }
}

/// Shows the news of a build until there are no more.
async fn news(
    channel: &Channel,
    asked: &Asked<'_>,
    display: &RefCell<Display>,
    is_told: &Cell<bool>,
) {
    let request = StatusRequest {
        r#ref: asked.request.r#ref.clone(),
    };
    let stream = channel.stream("moby.buildkit.v1.Control/Status", Default::default());
    let Ok(mut stream) = stream else { return };
    // The build's own call tells of a lost connection.
    let _ = stream.requests.send(&request).await;
    stream.requests.close();
    while let Ok(Some(mut response)) = stream.next::<StatusResponse>().await {
        is_told.set(true);
        if !asked.prefix.is_empty() {
            name_steps(asked.prefix, &mut response);
        }
        display.borrow_mut().update(&response);
    }
}

/// Puts the name of a target before those of its steps, and makes them differ from the same steps of other targets.
fn name_steps(prefix: &str, response: &mut StatusResponse) {
    let own = |digest: &mut String| *digest = format!("{prefix} {digest}");
    for vertex in &mut response.vertexes {
        own(&mut vertex.digest);
        vertex.inputs.iter_mut().for_each(own);
        vertex.name = match vertex.name.strip_prefix('[') {
            Some(rest) => format!("[{prefix} {rest}"),
            None => format!("[{prefix}] {}", vertex.name),
        };
    }
    for status in &mut response.statuses {
        own(&mut status.vertex);
    }
    for log in &mut response.logs {
        own(&mut log.vertex);
    }
    for warning in &mut response.warnings {
        own(&mut warning.vertex);
    }
}

#[cfg(test)]
mod tests {
    use whelk_buildkit::pb::control::Vertex;

    use super::*;

    #[test]
    fn steps_are_named_by_their_targets() {
        let mut response = StatusResponse::default();
        for name in ["[1/2] FROM x", "exporting to image"] {
            response.vertexes.push(Vertex {
                digest: "sha256:1".into(),
                name: name.into(),
                ..Vertex::default()
            });
        }
        name_steps("app", &mut response);
        let names: Vec<&str> = response
            .vertexes
            .iter()
            .map(|vertex| &*vertex.name)
            .collect();
        assert_eq!(names, ["[app 1/2] FROM x", "[app] exporting to image"]);
        assert_eq!(response.vertexes[0].digest, "app sha256:1");
    }
}
