//! Waiting for a container's end.

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

impl Containers {
    /// Starts waiting at once: whatever happens after this returns is seen by the future it returns.
    ///
    /// # Errors
    /// No such container.
    pub fn wait(&self, name: &str, condition: WaitCondition) -> Result<impl Future<Output = Waited> + Send + use<>> {
        let container = self.find(name)?;
        let mut progress = container.progress.subscribe();
        let exits = progress.borrow_and_update().exits;
        Ok(async move {
            let done = |now: &super::Progress| match condition {
                WaitCondition::NotRunning => !now.running,
                WaitCondition::NextExit => now.exits > exits || now.removed,
                WaitCondition::Removed => now.removed,
            };
            let seen = progress.wait_for(done).await.map(|seen| *seen);
            let exit_code = seen.map_or_else(|_| container.state().exit_code, |seen| seen.exit_code);
            Waited { exit_code }
        })
    }
}
