//! Waiting for a container's exit or removal.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use whelk_sys::sync::IgnorePoison as _;

use futures_util::future::Either;

use super::Containers;
use crate::error::{Error, Result};

/// What to wait for (the API's `condition`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// Returns at once if the container does not run.
    #[default]
    NotRunning,
    NextExit,
    Removed,
}

impl std::str::FromStr for WaitCondition {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            other => Err(Error::invalid(format!("invalid condition: {other:?}"))),
        }
    }
}

/// The result of a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    pub exit_code: i32,
}

/// Exit codes of containers that were removed at their exit (`--rm`), the oldest first.
#[derive(Debug, Default)]
pub(super) struct Exits(VecDeque<(Instant, String, i32)>);

impl Exits {
    /// How long an exit code is kept, and the maximum number of them.
    const KEPT: Duration = Duration::from_secs(300);
    const MOST: usize = 4096;

    fn add(&mut self, id: String, exit_code: i32) {
        self.0.push_back((Instant::now(), id, exit_code));
        while self.0.len() > Self::MOST
            || self
                .0
                .front()
                .is_some_and(|(at, ..)| at.elapsed() > Self::KEPT)
        {
            self.0.pop_front();
        }
    }

    fn of(&self, id: &str) -> Option<i32> {
        self.0
            .iter()
            .rev()
            .find(|(at, known, _)| known == id && at.elapsed() <= Self::KEPT)
            .map(|(.., exit_code)| *exit_code)
    }
}

impl Containers {
    /// Keeps the exit code of a `--rm` container before it is removed: a client may call `wait`
    /// only after the exit.
    pub(super) fn retain_exit_code(&self, id: &str, exit_code: i32) {
        self.exits
            .lock()
            .ignore_poison()
            .add(id.to_owned(), exit_code);
    }

    /// Waits for a container. The wait begins before this returns: the returned future sees
    /// everything that happens afterwards.
    ///
    /// # Errors
    /// Returns an error if there is no such container.
    pub fn wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = Waited> + Send + use<>> {
        let container = match self.find(name) {
            Ok(container) => container,
            Err(error) => {
                let kept = self.exits.lock().ignore_poison().of(name);
                let exit_code = kept.ok_or(error)?;
                return Ok(Either::Left(std::future::ready(Waited { exit_code })));
            }
        };
        let mut progress = container.progress.subscribe();
        let exits = progress.borrow_and_update().exits;
        Ok(Either::Right(async move {
            let done = |now: &super::Progress| match condition {
                WaitCondition::NotRunning => !now.running,
                WaitCondition::NextExit => now.exits > exits || now.removed,
                WaitCondition::Removed => now.removed,
            };
            let seen = progress.wait_for(done).await.map(|seen| *seen);
            let exit_code =
                seen.map_or_else(|_| container.state().exit_code, |seen| seen.exit_code);
            Waited { exit_code }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_a_bounded_number_of_exit_codes_by_id() {
        let mut exits = Exits::default();
        for number in 0..=Exits::MOST {
            exits.add(format!("id{number}"), i32::try_from(number).unwrap());
        }
        assert_eq!(
            (
                exits.of("id0"),
                exits.of("id1"),
                exits.of("id4096"),
                exits.of("id")
            ),
            (None, Some(1), Some(4096), None)
        );
    }
}
