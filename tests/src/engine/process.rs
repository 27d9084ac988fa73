//! Starts, kills and restarts an engine's process, and runs `whelk daemon` for it in other ways.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::Engine;
use crate::cli::Program;
use crate::{PATIENCE, happens, http, leftovers};

impl Engine {
    /// Stops the engine with SIGTERM.
    #[track_caller]
    pub fn terminate(&self) {
        self.stop().expect("stop the engine");
    }

    /// Kills the engine with SIGKILL. Its containers keep running.
    #[track_caller]
    pub fn kill9(&self) {
        let mut child = self.daemon().take().expect("the engine runs");
        child.kill().expect("kill the engine");
        child.wait().expect("wait for the engine");
    }

    /// Writes the engine's configuration file for its next start. What `WHELK_TEST_LAYERS` says is added
    /// unless `content` has the key.
    pub fn configure(&self, content: &Value) {
        let mut content = content.clone();
        if let (Some(form), Some(keys)) = (crate::layers(), content.as_object_mut()) {
            keys.entry("layers").or_insert(form.into());
        }
        fs::write(self.config(), content.to_string()).expect("write the configuration file");
    }

    /// Sets further arguments of `whelk daemon` for its next start.
    pub fn set_arguments(&self, arguments: &[&str]) {
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        *self
            .arguments
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = arguments;
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("daemon.json")
    }

    /// Starts the engine (again) on the same directories and waits until it answers.
    #[track_caller]
    pub fn restart(&self) {
        if let Err(error) = self.launch() {
            panic!("{error}{}", self.last_words());
        }
    }

    /// Starts the engine, which must fail. Returns the end of its log.
    #[track_caller]
    pub fn refuses_to_start(&self) -> String {
        let error = self.launch().expect_err("the engine started");
        assert!(
            error.starts_with("the engine exited during start: "),
            "{error}"
        );
        *self.daemon() = None;
        self.last_words()
    }

    /// Runs `whelk system repair` on the engine's root and returns its output. The engine must not
    /// run.
    #[track_caller]
    pub fn repair(&self) -> String {
        let mut command = Command::new(Program::Whelk.path());
        let output = command
            .args(["system", "repair", "--root"])
            .arg(self.root())
            .output()
            .expect("start a repair");
        assert!(
            output.status.success(),
            "repair: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(super) fn launch(&self) -> Result<(), String> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(|error| format!("open the engine's log: {error}"))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let host = format!("unix://{}", self.socket().display());
        let mut command = match self.open_files {
            // What it creates must not depend on the umask that it is started with.
            None => {
                let mut command = Command::new("sh");
                command
                    .args(["-c", "umask 077 && exec \"$0\" \"$@\""])
                    .arg(Program::Whelk.path());
                command
            }
            Some(soft) => {
                // Executes the engine in the same process, so the PID is the engine's.
                let mut command = Command::new("prlimit");
                command
                    .arg(format!("--nofile={soft}:"))
                    .arg(Program::Whelk.path());
                command
            }
        };
        command
            .arg("daemon")
            .arg("--root")
            .arg(self.root())
            .arg("--run")
            .arg(self.run())
            .args(["--host", &host, "--instance", &self.name]);
        if self.config().exists() {
            command.arg("--config-file").arg(self.config());
        }
        let arguments = self.arguments.lock();
        command.args(arguments.unwrap_or_else(PoisonError::into_inner).iter());
        command
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .env_remove("DOCKER_HOST")
            .env_remove("WHELK_HOST");
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("start {:?}: {error}", Program::Whelk.path()))?;
        *self.daemon() = Some(child);
        let mut ended = None;
        let answers = happens(PATIENCE, || {
            ended = self
                .daemon()
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            ended.is_some() || self.answers()
        });
        match ended {
            Some(status) => Err(format!("the engine exited during start: {status}")),
            None if !answers => Err(format!("the engine does not answer within {PATIENCE:?}")),
            None => {
                self.served.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Runs `whelk daemon --uninstall` for this instance, whose engine must not run.
    pub fn uninstall(&self) -> std::process::Output {
        let mut command = leftovers::uninstall_command(&self.name, &self.dir);
        command.output().expect("run whelk daemon --uninstall")
    }

    /// Starts a second engine, which must fail, and returns its output. It has this engine's
    /// instance name, or its own instance name and this engine's run directory.
    #[track_caller]
    pub fn start_rival(&self, name: Option<&str>) -> String {
        let place = self.scratch("rival");
        let host = format!("unix://{}", place.join("s.sock").display());
        let run = name.map_or_else(|| place.join("run"), |_| self.run());
        let instance =
            name.map_or_else(|| self.name.clone(), |name| format!("{}{name}", self.name));
        let mut command = Command::new(Program::Whelk.path());
        command
            .arg("daemon")
            .arg("--root")
            .arg(place.join("root"))
            .arg("--run")
            .arg(run);
        let output = command
            .args(["--host", &host, "--instance", &instance])
            .output()
            .expect("start a second engine");
        if name.is_some() {
            let _ = fs::remove_file(format!("/run/whelk-instance-{instance}.lock"));
        }
        assert!(!output.status.success(), "a second engine ran");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Returns whether the engine serves requests.
    pub fn answers(&self) -> bool {
        self.socket().exists()
            && http::request(&self.socket(), "GET", "/_ping", &[], b"")
                .is_ok_and(|response| response.status == 200)
    }

    /// Returns the PID of the engine's process.
    #[track_caller]
    pub fn daemon_pid(&self) -> i32 {
        i32::try_from(self.daemon().as_ref().expect("the engine runs").id()).expect("a pid")
    }

    pub(super) fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Returns the end of the engine's log, to be shown by a failed test.
    pub fn last_words(&self) -> String {
        const LINES: usize = 60;
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "\n--- the engine's log ends with:\n{}\n---",
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        )
    }
}
