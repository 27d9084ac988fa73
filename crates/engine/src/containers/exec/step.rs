//! Further processes of steps: those that the frontend of a build starts in a container.

use super::{ExecConfig, ExecStart};
use crate::containers::{Containers, RunningStep};
use crate::error::Result;
use crate::random_names;
use crate::workload::StartedExec;

impl Containers {
    /// Starts a further process of a step, with the confinement of the first one and the variables of its own configuration
    /// only. Its output has frames. It is killed when the connection to its streams is closed.
    ///
    /// # Errors
    /// Returns the reason why it did not start.
    pub async fn exec_in_step(
        &self,
        step: &RunningStep,
        config: &ExecConfig,
    ) -> Result<StartedExec> {
        let first = (&step.config, &step.host);
        let mut launch = self.launch_beside(config, first, &[], &ExecStart::default())?;
        launch.id = random_names::random_id();
        launch.bound = true;
        step.started.exec(launch).await
    }
}
