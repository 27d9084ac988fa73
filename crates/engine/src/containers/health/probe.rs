//! One run of a health check: an exec of which only the beginning of the output is kept, and which is
//! killed when nobody waits for it any more.

use std::time::Duration;

use whelk_shim::protocol::Request;
use whelk_text::{duration, signal};

use super::state;
use crate::containers::exec::ExecSession;
use crate::containers::{Container, Containers};
use crate::error::{Error, Result};
use crate::events::now;
use crate::model::HealthResult;
use crate::shims::{ExecChannel, Told};

/// Time limit for the start, which does not count towards the check's own, as with Docker.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of a killed check is waited for.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of bytes of output that are kept.
const KEPT_OUTPUT: usize = 4096;

impl Containers {
    /// Checks a container's health. Returns `None` if the container is being paused or has ended. The
    /// check is killed if this future is dropped.
    pub(super) async fn probe(&self, container: &Container) -> Option<HealthResult> {
        let start = now();
        let (exit_code, output) = match self.run_probe(container).await {
            Ok(ended) => ended,
            Err(Error::Conflict(_)) => return None,
            Err(error) => (-1, error.to_string()),
        };
        Some(HealthResult {
            start,
            end: now(),
            exit_code,
            output,
        })
    }

    /// Returns the exit code and the output.
    async fn run_probe(&self, container: &Container) -> Result<(i32, String)> {
        let (command, limit) = {
            let record = container.record();
            let check = state::effective(record.config.healthcheck.as_ref())
                .ok_or_else(|| Error::internal("the container has no health check"))?;
            let command = state::command(check, record.config.shell.as_ref());
            (command, state::timeout(check))
        };
        if command.is_empty() {
            return Err(Error::invalid("the health check has no command"));
        }
        let tools = container.take_tools();
        let mut launch = match tools.launch {
            Some(launch) => launch,
            None => self.bound_launch(container, command)?,
        };
        let exec = self.bound_exec(container, &mut launch)?;
        let _forgotten = Forgotten(self, &exec.id);
        let request = Request::Exec(launch);
        let starting = self.start_bound(&exec, container, &request, tools.channel);
        let Ok(started) = tokio::time::timeout(START_TIMEOUT, starting).await else {
            return Err(Error::internal(format!(
                "timed out starting health check for container {}",
                container.id
            )));
        };
        let mut channel = started?;
        if let Request::Exec(launch) = request {
            container.keep_launch(launch);
        }
        let mut output = Output::default();
        let allowed = Duration::from_nanos(limit.unsigned_abs());
        let ended = self.await_end(container, &exec, &mut channel, &mut output);
        if tokio::time::timeout(allowed, ended).await.is_ok() {
            container.keep_channel(channel);
            let exit_code = exec.state().exit_code.ok_or_else(|| {
                Error::internal(format!(
                    "healthcheck for container {} has no exit code",
                    container.id
                ))
            })?;
            return Ok((exit_code, output.text()));
        }
        self.kill_probe(container, &exec.id).await;
        // What was written until now is part of the result.
        let ended = self.await_end(container, &exec, &mut channel, &mut output);
        let _ = tokio::time::timeout(END_TIMEOUT, ended).await;
        let mut text = format!(
            "Health check exceeded timeout ({})",
            duration::format(limit)
        );
        if !output.kept.is_empty() {
            text = format!("{text}: {}", output.text());
        }
        Ok((-1, text))
    }

    /// Waits until a check has ended, and takes its output.
    async fn await_end(
        &self,
        container: &Container,
        exec: &ExecSession,
        channel: &mut ExecChannel,
        output: &mut Output,
    ) {
        loop {
            match channel.next().await {
                Told::Output(bytes) => output.take(&bytes).await,
                Told::Exit(exit) => return self.record_exec_exit(container, &exec.id, &exit),
                // Told by an event.
                Told::Closed => return exec.ended().await,
            }
        }
    }

    /// Kills a check that takes too long. A shim of an earlier version would not do that when the
    /// connection is closed.
    async fn kill_probe(&self, container: &Container, exec: &str) {
        let request = Request::Signal {
            exec: Some(exec.to_owned()),
            signal: signal::KILL,
        };
        if let Err(error) = container.workload.request(&request).await {
            tracing::debug!(container = container.id, "kill the health check: {error}");
        }
    }
}

/// Removes an exec from those that are known when it is dropped.
struct Forgotten<'a>(&'a Containers, &'a str);

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        self.0.forget_exec(self.1);
    }
}

/// The beginning of a check's output.
#[derive(Debug, Default)]
struct Output {
    kept: Vec<u8>,
    is_truncated: bool,
    total: usize,
}

impl Output {
    /// Takes more output, and waits if that is much.
    async fn take(&mut self, bytes: &[u8]) {
        /// A check that prints more than this, in bytes, is read from slowly, so that it has to wait
        /// and neither engine nor shim spend time on it.
        const MUCH: usize = 1 << 20;
        /// A pause is made after each of so many bytes.
        const STEP: usize = 16 << 10;
        const PAUSE: Duration = Duration::from_millis(5);
        let before = self.total;
        self.add(bytes);
        if self.total > MUCH && self.total / STEP > before / STEP {
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = (KEPT_OUTPUT - self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..room]);
        self.is_truncated |= room < bytes.len();
        self.total = self.total.saturating_add(bytes.len());
    }

    /// Returns the text that Docker shows.
    fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.kept).into_owned();
        if self.is_truncated {
            text.push_str("...");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_the_output_is_kept() {
        let text = |parts: &[&[u8]]| {
            let mut output = Output::default();
            parts.iter().for_each(|part| output.add(part));
            output.text()
        };
        assert_eq!(text(&[b"a", b"b\xff"]), "ab\u{fffd}");
        assert_eq!(text(&[&[b'x'; 4096]]), "x".repeat(4096));
        assert_eq!(
            text(&[&[b'x'; 4000], &[b'y'; 97], b"z"]),
            format!("{}{}...", "x".repeat(4000), "y".repeat(96))
        );
    }
}
