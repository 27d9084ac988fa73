//! Waiting for a container's end.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use futures_util::future::Either;

use super::Containers;
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// Returns at once for one that does not run.
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

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    pub exit_code: i32,
}

/// Exit codes of containers that were removed at their end, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Exits(VecDeque<(Instant, String, i32)>);

impl Exits {
    /// How long an exit code is kept, and how many are at most.
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
    /// Keeps the exit code of a container that is about to be removed because it has ended: a
    /// client that started it may ask for it only now.
    pub(super) fn keep_exit_code(&self, id: &str, exit_code: i32) {
        self.exits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(id.to_owned(), exit_code);
    }

    /// Starts waiting at once: whatever happens after this returns is seen by the future it
    /// returns.
    ///
    /// # Errors
    /// No such container.
    pub fn wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = Waited> + Send + use<>> {
        let container = match self.find(name) {
            Ok(container) => container,
            Err(error) => {
                let kept = self
                    .exits
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .of(name);
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
    fn exit_codes_are_kept_by_id_and_bounded() {
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
