//! Execs that the shim kills when the connection to their output is closed: health checks.

use std::sync::Arc;

use tokio::net::UnixStream;
use whelk_shim::protocol::{ExecLaunch, Request};
use whelk_sys::sync::IgnorePoison as _;

use super::{ExecConfig, ExecSession, ExecStart, check_can_exec, request_exec};
use crate::containers::{Container, Containers};
use crate::error::Result;
use crate::random_names;

impl Containers {
    /// Returns the message that starts a bound exec, whose output is sent without frames. It can be
    /// used for any number of execs.
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
        let start = ExecStart {
            // Without frames.
            tty: true,
            ..ExecStart::default()
        };
        let mut launch = self.exec_launch(&config, container, &start)?;
        launch.bound = true;
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
        let exec = ExecSession::new(random_names::random_id(), container, config);
        launch.id.clone_from(&exec.id);
        exec.change(|state| {
            state.started = true;
            state.running = true;
        });
        Ok(self.add_exec(container, exec))
    }

    /// Starts a bound exec and returns the connection to its output.
    ///
    /// # Errors
    /// Returns the reason why the program did not start.
    pub(in crate::containers) async fn start_bound(
        &self,
        exec: &ExecSession,
        container: &Container,
        request: &Request,
    ) -> Result<UnixStream> {
        self.publish_exec_start(container, exec);
        let started = request_exec(exec, container, request).await;
        started.map_err(|(error, _)| error)
    }

    pub(in crate::containers) fn forget_exec(&self, id: &str) {
        self.execs.lock().ignore_poison().remove(id);
    }
}
