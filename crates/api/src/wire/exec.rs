//! Execs.

use whelk_api_types::{ExecInspectResponse, ProcessConfig};
use whelk_engine::containers::ExecSession;

pub(crate) fn exec(exec: &ExecSession) -> ExecInspectResponse {
    let (config, state) = (&exec.config, exec.state());
    let mut command = config.cmd.iter().flatten().cloned();
    ExecInspectResponse {
        id: exec.id.clone(),
        running: state.running,
        exit_code: state.exit_code,
        process_config: ProcessConfig {
            tty: config.tty,
            entrypoint: command.next().unwrap_or_default(),
            arguments: command.collect(),
            privileged: config.privileged,
            user: config.user.clone(),
        },
        open_stdin: config.attach_stdin,
        open_stderr: config.attach_stderr,
        open_stdout: config.attach_stdout,
        // Execs that can be removed have been removed already.
        can_remove: false,
        container_id: exec.container.clone(),
        detach_keys: String::new(),
        pid: state.pid,
    }
}
