//! Exec: additional processes in a running container.

mod bound;
mod step;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use whelk_sys::sync::IgnorePoison as _;

use tokio::net::UnixStream;
use whelk_runtime::spec::{ConsoleSize, Process};
use whelk_runtime::user::UserRequest;
use whelk_shim::protocol::{self, Attach, Exit, Reply, Request};

use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::model::{Config, HostConfig, Status};
use crate::shims;
use crate::{random_names, security, spec};

/// The settings of an exec (the API's `ExecConfig`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecConfig {
    pub user: String,
    pub privileged: bool,
    pub tty: bool,
    pub console_size: Option<[u16; 2]>,
    pub attach_stdin: bool,
    pub attach_stderr: bool,
    pub attach_stdout: bool,
    pub detach_keys: String,
    pub env: Option<Vec<String>>,
    pub working_dir: String,
    pub cmd: Option<Vec<String>>,
}

impl ExecConfig {
    /// Whether any stream is attached. An exec without one is started as if it were detached.
    pub fn attaches(&self) -> bool {
        self.attach_stdin || self.attach_stdout || self.attach_stderr
    }
}

/// An exec from its creation until [`RETENTION`] after its end.
#[derive(Debug)]
pub struct ExecSession {
    pub id: String,
    pub container: String,
    pub config: ExecConfig,
    /// Whether it is a run of a health check.
    is_check: bool,
    state: Mutex<ExecState>,
    /// Notified when the state changes.
    changed: tokio::sync::Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecState {
    pub started: bool,
    pub running: bool,
    pub pid: i32,
    pub exit_code: Option<i32>,
    /// Its client has detached.
    pub detached: bool,
    pub ended_at: Option<Instant>,
}

/// How long an exec can be inspected after its end.
const RETENTION: Duration = Duration::from_secs(300);

impl ExecSession {
    fn new(id: String, container: &Container, config: ExecConfig) -> Self {
        Self {
            id,
            container: container.id.clone(),
            config,
            is_check: false,
            state: Mutex::default(),
            changed: tokio::sync::Notify::new(),
        }
    }

    pub fn state(&self) -> ExecState {
        *self.state.lock().ignore_poison()
    }

    fn change(&self, change: impl FnOnce(&mut ExecState)) {
        change(&mut self.state.lock().ignore_poison());
        self.changed.notify_waiters();
    }

    /// Waits until the process has ended, or until its client has detached.
    pub async fn ended(&self) {
        self.wait_for(|state| !state.running || state.detached)
            .await;
    }

    async fn wait_for(&self, is_so: impl Fn(&ExecState) -> bool) -> ExecState {
        loop {
            // Registered before the state is read, so that no change is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let state = self.state();
            if is_so(&state) {
                return state;
            }
            changed.await;
        }
    }

    fn command_line(&self) -> String {
        let (command, arguments) = self
            .config
            .cmd
            .as_deref()
            .and_then(<[String]>::split_first)
            .map_or((String::new(), String::new()), |(first, rest)| {
                (first.clone(), rest.join(" "))
            });
        // Docker writes the space even without arguments.
        format!("{command} {arguments}")
    }
}

/// The exit code of an exec whose program was not started.
const NOT_STARTED: i32 = 128;

/// The options of `exec start`.
#[derive(Clone, Debug, Default)]
pub struct ExecStart {
    pub detach: bool,
    pub tty: bool,
    pub console_size: Option<[u16; 2]>,
    pub detach_keys: Vec<u8>,
}

impl Containers {
    /// Creates an exec without starting it, and returns its id.
    ///
    /// # Errors
    /// Returns an error if the container does not run, or if the settings are invalid.
    pub async fn exec_create(&self, name: &str, config: ExecConfig) -> Result<String> {
        let container = self.find(name)?;
        container.wait_for_start().await;
        check_can_exec(&container, name)?;
        for entry in config.env.iter().flatten() {
            if entry.is_empty() || entry.starts_with('=') {
                return Err(Error::invalid(format!(
                    "invalid environment variable: {entry}"
                )));
            }
        }
        check_user(&container, &config.user).await?;
        let exec = ExecSession::new(random_names::random_id(), &container, config);
        self.execs.lock().ignore_poison().retain(|_, exec| {
            exec.state()
                .ended_at
                .is_none_or(|at| at.elapsed() < RETENTION)
        });
        Ok(self.add_exec(&container, exec).id.clone())
    }

    fn add_exec(&self, container: &Container, exec: ExecSession) -> Arc<ExecSession> {
        self.publish_exec(
            container,
            exec.is_check,
            &format!("exec_create: {}", exec.command_line()),
            &[("execID", exec.id.clone())],
        );
        let exec = Arc::new(exec);
        let mut execs = self.execs.lock().ignore_poison();
        execs.insert(exec.id.clone(), exec.clone());
        exec
    }

    /// Returns an exec by its id.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if there is none.
    pub fn exec(&self, id: &str) -> Result<Arc<ExecSession>> {
        self.execs
            .lock()
            .ignore_poison()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("No such exec instance: {id}")))
    }

    /// Marks an exec as started, so that only the caller starts it. [`Containers::exec_start`] has
    /// to follow.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if it was started already, or if the container does not run.
    pub fn exec_claim(&self, id: &str) -> Result<Arc<ExecSession>> {
        let exec = self.exec(id)?;
        let container = self.find(&exec.container)?;
        check_can_exec(&container, &container.id)?;
        let mut state = exec.state.lock().ignore_poison();
        if state.started {
            let what = if state.running {
                "is already running"
            } else {
                "has already run"
            };
            return Err(Error::conflict(format!("exec command {id} {what}")));
        }
        state.started = true;
        state.running = true;
        drop(state);
        Ok(exec)
    }

    /// Starts an exec that [`Containers::exec_claim`] has claimed. Returns the connection to its
    /// streams, or `None` if it is detached or has no stream attached.
    ///
    /// # Errors
    /// Returns the reason why the program did not start; the exec has ended then.
    pub async fn exec_start(
        self: &Arc<Self>,
        exec: &Arc<ExecSession>,
        start: ExecStart,
    ) -> Result<Option<UnixStream>> {
        let (containers, exec) = (self.clone(), exec.clone());
        to_its_end(async move { containers.exec_start_now(&exec, start).await }).await
    }

    async fn exec_start_now(
        &self,
        exec: &ExecSession,
        start: ExecStart,
    ) -> Result<Option<UnixStream>> {
        let outcome = match self.find(&exec.container) {
            Ok(container) => {
                self.publish_exec_start(&container, exec);
                self.run_exec(exec, &container, start).await
            }
            Err(error) => Err((error, NOT_STARTED)),
        };
        outcome.map_err(|(error, exit_code)| {
            exec.change(|state| {
                state.running = false;
                state.exit_code = Some(exit_code);
                state.ended_at = Some(Instant::now());
            });
            error
        })
    }

    fn publish_exec_start(&self, container: &Container, exec: &ExecSession) {
        self.publish_exec(
            container,
            exec.is_check,
            &format!("exec_start: {}", exec.command_line()),
            &[("execID", exec.id.clone())],
        );
    }

    fn publish_exec(
        &self,
        container: &Container,
        is_check: bool,
        action: &str,
        more: &[(&str, String)],
    ) {
        if is_check {
            let (id, attributes) = Self::actor_of(&container.record(), more);
            self.events.publish_check(action, id, attributes);
        } else {
            self.publish(container, action, more);
        }
    }

    async fn run_exec(
        &self,
        exec: &ExecSession,
        container: &Container,
        start: ExecStart,
    ) -> std::result::Result<Option<UnixStream>, (Error, i32)> {
        // Checked here and not at creation: Docker's runtime reports it when the exec starts.
        if !exec.config.working_dir.is_empty() && !exec.config.working_dir.starts_with('/') {
            return Err((
                Error::internal(
                    "OCI runtime exec failed: exec failed: Cwd must be an absolute path",
                ),
                NOT_STARTED,
            ));
        }
        let mut launch = self
            .exec_launch(&exec.config, container, &start)
            .map_err(|error| (error, NOT_STARTED))?;
        launch.id.clone_from(&exec.id);
        let detached = launch.attach.is_none();
        let request = Request::Exec(Box::new(launch));
        let stream = request_exec(exec, container, &request).await?;
        Ok((!detached).then_some(stream))
    }

    /// Returns the message that starts a process with these settings, without an id.
    fn exec_launch(
        &self,
        config: &ExecConfig,
        container: &Container,
        start: &ExecStart,
    ) -> Result<protocol::ExecLaunch> {
        let record = container.record().clone();
        let host = self.applied_defaults(container, &record.host)?;
        let links = self.link_environment(&record)?;
        self.launch_beside(config, (&record.config, &host), &links, start)
    }

    /// Returns the message that starts a process beside the first one, which has this configuration.
    fn launch_beside(
        &self,
        config: &ExecConfig,
        (first, host): (&Config, &HostConfig),
        links: &[String],
        start: &ExecStart,
    ) -> Result<protocol::ExecLaunch> {
        let mut capable = host.clone();
        capable.privileged |= config.privileged;
        // --privileged adds capabilities, but the seccomp filter remains the container's.
        let filter = self.filter(host, &security::capabilities(host)?)?;
        let options = security::Options::parse(host)?;
        let container_config = Config {
            tty: config.tty,
            ..first.clone()
        };
        let size = start
            .console_size
            .or(config.console_size)
            .filter(|size| *size != [0, 0]);
        let process = Process {
            terminal: config.tty,
            console_size: size
                .filter(|_| config.tty)
                .map(|[height, width]| ConsoleSize { height, width }),
            args: config.cmd.clone().unwrap_or_default(),
            env: spec::environment(
                &container_config,
                &first.hostname,
                links,
                config.env.as_deref().unwrap_or_default(),
            )
            .into_iter()
            .filter(|entry| entry.contains('='))
            .collect(),
            cwd: [&config.working_dir, &first.working_dir]
                .into_iter()
                .find(|path| !path.is_empty())
                .map_or("/", String::as_str)
                .into(),
            capabilities: Some(spec::capability_sets(security::capabilities(&capable)?)),
            no_new_privileges: options.no_new_privileges,
            // As for the first process: without AppArmor the profile is ignored.
            apparmor_profile: if self.host.apparmor {
                options.apparmor
            } else {
                String::new()
            },
            oom_score_adj: Some(host.oom_score_adj),
            rlimits: spec::rlimits(host, self.instance.open_files),
            ..Process::default()
        };
        let attach = (!start.detach && config.attaches()).then(|| Attach {
            stdin: config.attach_stdin,
            stdout: config.attach_stdout,
            stderr: config.attach_stderr,
            detach_keys: start.detach_keys.clone(),
            raw: Some(start.tty),
        });
        let user = if config.user.is_empty() {
            first.user.clone()
        } else {
            config.user.clone()
        };
        Ok(protocol::ExecLaunch {
            id: String::new(),
            process,
            user: UserRequest {
                user,
                groups: host.group_add.clone().unwrap_or_default(),
            },
            filter,
            stdin: config.attach_stdin && attach.is_some(),
            attach,
            bound: false,
            tells_exit: false,
        })
    }

    /// Sets the size of an exec's terminal. Waits until its program has started.
    ///
    /// # Errors
    /// Returns an error if it has ended, does not start within 10 s, or if its container does not run.
    pub async fn exec_resize(&self, id: &str, height: u16, width: u16) -> Result<()> {
        /// Docker's timeout.
        const START_TIMEOUT: Duration = Duration::from_secs(10);
        let exec = self.exec(id)?;
        let container = self.find(&exec.container)?;
        check_can_exec(&container, &container.id)?;
        let started = exec.wait_for(|state| state.pid != 0 || state.exit_code.is_some());
        let state = tokio::time::timeout(START_TIMEOUT, started).await;
        let state = state.map_err(|_| Error::internal("timeout waiting for exec session ready"))?;
        let gone = || Error::NotFound(format!("NotFound: process does not exist {id}: not found"));
        if !state.running {
            return Err(gone());
        }
        let request = Request::Resize {
            exec: Some(exec.id.clone()),
            height,
            width,
        };
        let (reply, _) = container.workload.request(&request).await?;
        match reply {
            // It has ended meanwhile.
            Reply::Failed(whelk_runtime::Error::State(_)) => Err(gone()),
            reply => shims::expect_done(reply, "cannot resize the exec's terminal"),
        }
    }

    /// Records that a client has detached from a container or an exec by the detach keys.
    pub(super) fn record_detach(&self, container: &Container, exec: Option<&str>) {
        match exec {
            None => self.publish(container, "detach", &[]),
            Some(id) => {
                if let Ok(exec) = self.exec(id) {
                    exec.change(|state| state.detached = true);
                }
                self.publish(container, "exec_detach", &[("execID", id.to_owned())]);
            }
        }
    }

    /// Records the end of an exec.
    pub(super) fn record_exec_exit(&self, container: &Container, id: &str, exit: &Exit) {
        let exec = self.exec(id);
        // Only a check that takes too long is forgotten before its end.
        let is_check = exec.as_ref().map_or(true, |exec| exec.is_check);
        if let Ok(exec) = exec {
            exec.change(|state| {
                state.running = false;
                state.exit_code = Some(exit.code);
                state.ended_at = Some(Instant::now());
            });
        }
        self.publish_exec(
            container,
            is_check,
            "exec_die",
            &[
                ("execID", id.to_owned()),
                ("exitCode", exit.code.to_string()),
            ],
        );
    }

    /// Ends all execs of a container that has ended, and deletes those that were not started.
    pub(super) fn end_execs(&self, container: &Container) {
        const KILLED: i32 = 137;
        let mut execs = self.execs.lock().ignore_poison();
        execs.retain(|_, exec| exec.container != container.id || exec.state().started);
        for exec in execs.values().filter(|exec| exec.container == container.id) {
            exec.change(|state| {
                if std::mem::replace(&mut state.running, false) {
                    state.exit_code.get_or_insert(KILLED);
                }
            });
        }
    }

    /// Returns the ids of a container's running execs.
    pub(super) fn running_execs(&self, container: &str) -> Vec<String> {
        let execs = self.execs.lock().ignore_poison();
        execs
            .values()
            .filter(|exec| exec.container == container && exec.state().running)
            .map(|exec| exec.id.clone())
            .collect()
    }

    /// Adds an exec that was started before the engine's restart.
    pub(super) fn adopt_exec(&self, container: &Container, id: &str, pid: i32) {
        let exec = ExecSession::new(id.to_owned(), container, ExecConfig::default());
        exec.change(|state| {
            state.started = true;
            state.running = true;
            state.pid = pid;
        });
        self.execs
            .lock()
            .ignore_poison()
            .entry(id.to_owned())
            .or_insert_with(|| Arc::new(exec));
    }
}

/// Sends the message that starts an exec, and returns the connection. An error comes with the exit
/// code that the exec has.
async fn request_exec(
    exec: &ExecSession,
    container: &Container,
    request: &Request,
) -> std::result::Result<UnixStream, (Error, i32)> {
    let (reply, stream) = container
        .workload
        .request_while_alive(request)
        .await
        .map_err(|error| (error.prefixed("exec"), NOT_STARTED))?;
    note_start(exec, reply)?;
    Ok(stream)
}

/// Notes the shim's reply to the request to start an exec.
///
/// # Errors
/// Returns the reason why the program did not start, and the exit code for it.
fn note_start(exec: &ExecSession, reply: Reply) -> std::result::Result<(), (Error, i32)> {
    match reply {
        Reply::Started { pid } => {
            exec.change(|state| state.pid = pid);
            Ok(())
        }
        Reply::Failed(error) => Err(exec_error(error)),
        _ => Err((Error::internal("unexpected reply of the shim"), NOT_STARTED)),
    }
}

/// Looks a user up in the container's passwd file, so that an unknown one is reported at creation.
async fn check_user(container: &Container, user: &str) -> Result<()> {
    if user.is_empty() {
        return Ok(());
    }
    use rustix::fs::{Mode, OFlags, open};
    let root = open(
        format!("/proc/{}/root", container.running_pid()?),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let root = root.map_err(|error| {
        Error::internal(format!(
            "open the root of container {}: {error}",
            container.id
        ))
    })?;
    let request = UserRequest {
        user: user.to_owned(),
        groups: Vec::new(),
    };
    let resolved = container
        .with_process_access(move || whelk_runtime::user::resolve(&root, &request))
        .await?;
    resolved
        .map(drop)
        .map_err(|error| Error::invalid(error.to_string()))
}

fn check_can_exec(container: &Container, name: &str) -> Result<()> {
    match container.status() {
        Status::Running => Ok(()),
        Status::Paused => Err(Error::conflict(format!(
            "Container {name} is paused, unpause the container before exec"
        ))),
        Status::Restarting => Err(Error::conflict(format!(
            "container {} is restarting, wait until the container is running",
            container.id
        ))),
        _ => Err(Error::conflict(format!(
            "container {} is not running",
            container.id
        ))),
    }
}

/// Converts a runtime's error to Docker's text, and returns the exit code for it.
fn exec_error(error: whelk_runtime::Error) -> (Error, i32) {
    use whelk_runtime::Error as Runtime;
    const FAILED: &str = "OCI runtime exec failed: exec failed: unable to start container process";
    // A shim that lacks some of these kinds is older than the first release: no text is parsed for
    // it, and its execs fail with exit code 128 at worst.
    match error {
        // A missing working directory counts as "not found" too, as with Docker.
        Runtime::CommandNotFound(text) | Runtime::NoWorkingDirectory(text) => {
            (Error::invalid(format!("{FAILED}: {text}")), 127)
        }
        Runtime::NotExecutable(text) => (Error::invalid(format!("{FAILED}: {text}")), 126),
        Runtime::ProgramIsDirectory(text) => (
            Error::invalid(format!("{FAILED}: {text}: permission denied")),
            126,
        ),
        Runtime::NoSuchUser(text) => (Error::invalid(text), 126),
        Runtime::State(text) => (Error::conflict(text), 128),
        other => (Error::invalid(format!("{FAILED}: {other}")), 128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_depend_on_the_kind_of_error_only() {
        use whelk_runtime::Error as Runtime;
        let text = || "chdir to cwd (\"/x\"): no such file or directory: is a directory".to_owned();
        for (error, code) in [
            (Runtime::NoWorkingDirectory(text()), 127),
            (Runtime::CommandNotFound(text()), 127),
            (Runtime::NotExecutable(text()), 126),
            (Runtime::ProgramIsDirectory(text()), 126),
            (Runtime::NoSuchUser(text()), 126),
            (Runtime::State(text()), 128),
            (Runtime::Os(text()), 128),
        ] {
            let shown = format!("{error:?}");
            let (converted, found) = exec_error(error);
            assert_eq!(found, code, "{shown}");
            assert!(
                converted.to_string().contains(&text()),
                "{shown}: {converted}"
            );
        }
    }
}
