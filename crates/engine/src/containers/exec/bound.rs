//! Execs that the shim kills when the connection to their output is closed, and whose exits it tells on
//! that connection: health checks.

use std::sync::Arc;

use whelk_shim::protocol::{ExecLaunch, Request};
use whelk_sys::sync::IgnorePoison as _;

use super::{ExecConfig, ExecSession, ExecStart, check_can_exec, note_start};
use crate::containers::{Container, Containers};
use crate::error::Result;
use crate::random_names;
use crate::shims::ExecChannel;

impl Containers {
    /// Returns the message that starts a bound exec. It can be used for any number of execs.
    pub(in crate::containers) fn bound_launch(
        &self,
        container: &Container,
        command: Vec<String>,
    ) -> Result<Box<ExecLaunch>> {
        let config = ExecConfig {
            attach_stdout: true,
            attach_stderr: true,
            cmd: Some(command),
            ..ExecConfig::default()
        };
        let mut launch = self.exec_launch(&config, container, &ExecStart::default())?;
        launch.bound = true;
        launch.tells_exit = true;
        Ok(Box::new(launch))
    }

    /// Creates a bound exec, claims it, and gives the message its id. It is known until
    /// [`Containers::forget_exec`].
    ///
    /// # Errors
    /// Returns [`crate::error::Error::Conflict`] if the container does not run.
    pub(in crate::containers) fn bound_exec(
        &self,
        container: &Container,
        launch: &mut ExecLaunch,
    ) -> Result<Arc<ExecSession>> {
        check_can_exec(container, &container.id)?;
        let config = ExecConfig {
            cmd: Some(launch.process.args.clone()),
            ..ExecConfig::default()
        };
        let mut exec = ExecSession::new(random_names::random_id(), container, config);
        exec.is_check = true;
        launch.id.clone_from(&exec.id);
        exec.change(|state| {
            state.started = true;
            state.running = true;
        });
        Ok(self.add_exec(container, exec))
    }

    /// Starts a bound exec and returns the channel that its output and its exit come on. `earlier` is the
    /// channel of one that has ended.
    ///
    /// # Errors
    /// Returns the reason why the program did not start.
    pub(in crate::containers) async fn start_bound(
        &self,
        exec: &ExecSession,
        container: &Container,
        request: &Request,
        earlier: Option<ExecChannel>,
    ) -> Result<ExecChannel> {
        self.publish_exec_start(container, exec);
        let started = ExecChannel::start(earlier, container.workload.address(), request).await;
        let (reply, channel) = started.map_err(|error| error.prefixed("exec"))?;
        note_start(exec, reply).map_err(|(error, _)| error)?;
        Ok(channel)
    }

    pub(in crate::containers) fn forget_exec(&self, id: &str) {
        self.execs.lock().ignore_poison().remove(id);
    }
}
