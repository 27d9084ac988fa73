//! An engine for one test: started, used, killed, and checked for leftovers at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::attached::{Attached, Events};
use crate::cli::{Cli, Output, Program, tools};
use crate::http::{self, Response};
use crate::{PATIENCE, escape, eventually, happens, images, leftovers};

/// How long an engine may take to stop on SIGTERM.
const STOP: Duration = Duration::from_secs(10);

/// An engine with its own directories, socket and instance name. Removed with everything it created
/// on drop.
#[derive(Debug)]
pub struct Engine {
    dir: PathBuf,
    name: String,
    env: Vec<(String, String)>,
    /// The soft limit of open files (`RLIMIT_NOFILE`) of the engine's process.
    open_files: Option<u64>,
    /// Further arguments of `whelk daemon`.
    arguments: Mutex<Vec<String>>,
    daemon: Mutex<Option<Child>>,
    /// Whether it has ever answered. If not, it is not asked to clean up.
    served: AtomicBool,
}

impl Engine {
    /// Starts an engine that has the image `busybox`.
    #[track_caller]
    pub fn start() -> Self {
        Self::with_env(&[])
    }

    /// Like [`start`](Self::start), with additional environment variables for the engine.
    #[track_caller]
    pub fn with_env(env: &[(&str, &str)]) -> Self {
        let engine = Self::without_images(env);
        engine.load(&fs::read(images::busybox()).expect("read busybox.tar"));
        engine
    }

    /// Starts an engine without images.
    #[track_caller]
    pub fn without_images(env: &[(&str, &str)]) -> Self {
        Self::with_settings(env, None)
    }

    /// Like [`start`](Self::start), with this soft limit of open files for the engine's process.
    #[track_caller]
    pub fn with_open_files(soft: u64) -> Self {
        let engine = Self::with_settings(&[], Some(soft));
        engine.load(&fs::read(images::busybox()).expect("read busybox.tar"));
        engine
    }

    #[track_caller]
    fn with_settings(env: &[(&str, &str)], open_files: Option<u64>) -> Self {
        let (name, dir) = leftovers::new_instance();
        let env = env
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let engine = Self {
            dir,
            name,
            env,
            open_files,
            arguments: Mutex::default(),
            daemon: Mutex::new(None),
            served: AtomicBool::new(false),
        };
        let plugins = serde_json::json!({"cliPluginsExtraDirs": [tools().join("libexec/docker/cli-plugins")]});
        fs::create_dir(engine.docker_config()).expect("make the docker CLI's directory");
        fs::write(
            engine.docker_config().join("config.json"),
            plugins.to_string(),
        )
        .expect("write the docker CLI's settings");
        engine.restart();
        engine
    }

    /// The instance's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("whelk.sock")
    }

    /// Creates a directory for the test's own files, removed with the engine.
    #[track_caller]
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.dir.join("case").join(name);
        fs::create_dir_all(&path).expect("make a directory for the case");
        path
    }

    /// Like [`scratch`](Self::scratch), but returns the path as text for a command line.
    #[track_caller]
    pub fn scratch_text(&self, name: &str) -> String {
        self.scratch(name).display().to_string()
    }

    // The two command lines.

    pub fn cli(&self, program: Program) -> Cli<'_> {
        Cli::new(self, program)
    }

    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Output {
        self.cli(Program::Docker).run(args)
    }

    #[track_caller]
    pub fn whelk(&self, args: &[&str]) -> Output {
        self.cli(Program::Whelk).run(args)
    }

    /// Runs a test with both clients, one after the other, removing all containers after each.
    #[track_caller]
    pub fn both(&self, case: impl Fn(Cli<'_>)) {
        for program in [Program::Docker, Program::Whelk] {
            case(self.cli(program));
            if let Err(error) = self.remove_containers() {
                panic!("with {program:?}: {error}");
            }
        }
    }

    fn docker_config(&self) -> PathBuf {
        self.dir.join("docker-config")
    }

    /// Configures a client to use this engine and to ignore the user's own settings.
    pub(crate) fn set_environment(&self, command: &mut Command) {
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.docker_config())
            .env("DOCKER_CLI_HINTS", "false")
            .env("LC_ALL", "C");
        for name in [
            "DOCKER_CONTEXT",
            "DOCKER_API_VERSION",
            "DOCKER_TLS",
            "DOCKER_TLS_VERIFY",
            "DOCKER_DEFAULT_PLATFORM",
            "WHELK_HOST",
        ] {
            command.env_remove(name);
        }
    }

    // The API.

    /// Sends a request with any headers and body.
    #[track_caller]
    pub fn http(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        http::request(&self.socket(), method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}{}", self.last_words()))
    }

    /// Sends a request with a JSON body. Returns status and response.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let response = match body {
            Some(body) => self.http(
                method,
                path,
                &[("Content-Type", "application/json")],
                body.to_string().as_bytes(),
            ),
            None => self.http(method, path, &[], b""),
        };
        (response.status, response.json())
    }

    /// Sends a GET request that must succeed. Returns the response.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (status, answer) = self.api("GET", path, None);
        assert_eq!(status, 200, "GET {path}: {answer}");
        answer
    }

    /// Creates a container from a request body. Returns its ID.
    #[track_caller]
    pub fn create(&self, name: &str, body: &Value) -> String {
        let (status, answer) = self.api(
            "POST",
            &format!("/containers/create?name={}", escape(name)),
            Some(body),
        );
        assert_eq!(status, 201, "create {name}: {answer}");
        answer["Id"].as_str().expect("an id").to_owned()
    }

    /// Returns a container's `inspect` output.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        self.get(&format!("/containers/{name}/json"))
    }

    /// Returns a container's status, or "" if it does not exist.
    pub fn state(&self, name: &str) -> String {
        let (status, answer) = self.api("GET", &format!("/containers/{name}/json"), None);
        if status == 200 {
            answer["State"]["Status"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        } else {
            String::new()
        }
    }

    /// Waits until a container has a status ("" for removed).
    #[track_caller]
    pub fn await_state(&self, name: &str, state: &str) {
        eventually(&format!("{name} to be {state:?}"), || {
            (self.state(name) == state).then_some(())
        });
    }

    /// Returns the PID of a container's first process in the host's PID namespace.
    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        let pid = self.inspect(name)["State"]["Pid"]
            .as_i64()
            .unwrap_or_default();
        assert!(pid > 0, "{name} has no process");
        i32::try_from(pid).expect("a pid")
    }

    /// Returns everything that a container without a terminal has written to standard output.
    #[track_caller]
    pub fn logs(&self, name: &str) -> String {
        let response = self.http(
            "GET",
            &format!("/containers/{name}/logs?stdout=1"),
            &[],
            b"",
        );
        assert_eq!(response.status, 200, "logs of {name}: {}", response.text());
        let (mut text, mut rest) = (Vec::new(), response.body.as_slice());
        while let Some((head, tail)) = rest.split_first_chunk::<8>() {
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            text.extend_from_slice(&tail[..length]);
            rest = &tail[length..];
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until a container has written `text` to standard output.
    #[track_caller]
    pub fn await_log(&self, name: &str, text: &str) {
        eventually(&format!("{text:?} in the log of {name}"), || {
            self.logs(name).contains(text).then_some(())
        });
    }

    /// Attaches to a container before or while it runs. `streams` is the query, such as
    /// `stream=1&stdout=1`.
    #[track_caller]
    pub fn attach(&self, name: &str, streams: &str, framed: bool) -> Attached {
        Attached::open(
            &self.socket(),
            &format!("/containers/{name}/attach?{streams}"),
            None,
            framed,
        )
    }

    /// Creates an exec. Returns its ID.
    #[track_caller]
    pub fn create_exec(&self, name: &str, body: &Value) -> String {
        let (status, answer) = self.api("POST", &format!("/containers/{name}/exec"), Some(body));
        assert_eq!(status, 201, "exec in {name}: {answer}");
        answer["Id"].as_str().expect("an id").to_owned()
    }

    /// Starts an exec and attaches to its streams.
    #[track_caller]
    pub fn start_exec(&self, id: &str, tty: bool) -> Attached {
        let body = serde_json::json!({"Detach": false, "Tty": tty});
        Attached::open(
            &self.socket(),
            &format!("/exec/{id}/start"),
            Some(&body),
            !tty,
        )
    }

    /// Subscribes to events; `query` may contain a start time or filters.
    #[track_caller]
    pub fn events(&self, query: &str) -> Events {
        Events::open(&self.socket(), &format!("/events?{query}"))
    }

    /// Loads an image archive.
    #[track_caller]
    pub fn load(&self, archive: &[u8]) {
        let response = self.try_load(archive);
        assert!(
            response.status == 200 && !response.text().contains("\"error\""),
            "load: {} {}",
            response.status,
            response.text()
        );
    }

    /// Returns the response to loading an archive that may be rejected.
    #[track_caller]
    pub fn try_load(&self, archive: &[u8]) -> Response {
        self.http(
            "POST",
            "/images/load?quiet=1",
            &[("Content-Type", "application/x-tar")],
            archive,
        )
    }

    /// Imports a root file system archive as an image, with Dockerfile instructions for its
    /// configuration.
    #[track_caller]
    pub fn import(&self, name: &str, changes: &[&str], archive: &[u8]) {
        let changes: String = changes
            .iter()
            .map(|change| format!("&changes={}", escape(change)))
            .collect();
        let path = format!("/images/create?fromSrc=-&repo={}{changes}", escape(name));
        let response = self.http(
            "POST",
            &path,
            &[("Content-Type", "application/x-tar")],
            archive,
        );
        assert!(
            response.status == 200 && !response.text().contains("\"error\""),
            "import {name}: {} {}",
            response.status,
            response.text()
        );
    }

    // Start and stop.

    /// Kills the engine with SIGKILL. Its containers keep running.
    #[track_caller]
    pub fn kill9(&self) {
        let mut child = self.daemon().take().expect("the engine runs");
        child.kill().expect("kill the engine");
        child.wait().expect("wait for the engine");
    }

    /// Writes the engine's configuration file for its next start.
    pub fn configure(&self, content: &Value) {
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

    fn config(&self) -> PathBuf {
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

    fn launch(&self) -> Result<(), String> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(|error| format!("open the engine's log: {error}"))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let host = format!("unix://{}", self.socket().display());
        let mut command = match self.open_files {
            None => Command::new(Program::Whelk.path()),
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

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
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

    // Teardown.

    /// Removes all containers, whatever their state.
    pub fn remove_containers(&self) -> Result<(), String> {
        let request = |method: &str, path: &str| {
            http::request(&self.socket(), method, path, &[], b"")
                .map_err(|error| format!("{method} {path}: {error}"))
        };
        let answer = request("GET", "/containers/json?all=1")?.json();
        for container in answer
            .as_array()
            .ok_or_else(|| format!("the list of containers is {answer}"))?
        {
            let id = container["Id"].as_str().unwrap_or_default();
            let response = request("DELETE", &format!("/containers/{id}?force=1&v=1"))?;
            // A container with --rm may be removed concurrently.
            if !matches!(response.status, 204 | 404 | 409) {
                return Err(format!(
                    "remove container {id}: {} {}",
                    response.status,
                    response.text()
                ));
            }
        }
        let empty = || {
            request("GET", "/containers/json?all=1")
                .is_ok_and(|response| response.json().as_array().is_some_and(Vec::is_empty))
        };
        if happens(PATIENCE, empty) {
            Ok(())
        } else {
            Err("containers were not removed".into())
        }
    }

    /// Removes everything and returns a list of unexpected leftovers.
    fn tear_down(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.served.load(Ordering::Relaxed) {
            problems.extend(self.stop().err());
            problems.extend(leftovers::end(&self.name, &self.dir));
            return problems;
        }
        let ended = self
            .daemon()
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            problems.push(format!("the engine exited unexpectedly: {status}"));
        }
        // A test may end with the engine killed.
        if ended.is_some() || self.daemon().is_none() {
            problems.extend(self.launch().err());
        }
        problems.extend(self.remove_containers().err());
        problems.extend(self.check_interfaces().err());
        for directory in [
            self.root().join("containers"),
            self.root().join("tmp"),
            self.root().join("trash"),
            self.run().join("containers"),
            self.run().join("netns"),
        ] {
            if !happens(STOP, || entries(&directory).is_empty()) {
                problems.push(format!(
                    "files in {}: {:?}",
                    directory.display(),
                    entries(&directory)
                ));
            }
        }
        problems.extend(self.stop().err());
        problems.extend(leftovers::end(&self.name, &self.dir));
        problems
    }

    /// Returns the default network's bridge, whose name has the prefix of all interfaces of the
    /// engine.
    pub fn bridge(&self) -> String {
        self.get("/networks/bridge")["Options"]["com.docker.network.bridge.name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Returns this engine's interfaces on the host, without the default bridge and pre-created
    /// ones.
    pub fn interfaces(&self) -> Vec<String> {
        let bridge = self.bridge();
        let prefix = bridge.strip_suffix('0').unwrap_or(&bridge);
        let all = Path::new("/sys/class/net");
        let note =
            |name: &String| fs::read_to_string(all.join(name).join("ifalias")).unwrap_or_default();
        let own = entries(all)
            .into_iter()
            .filter(|name| name.starts_with(prefix) && *name != bridge);
        own.filter(|name| !note(name).ends_with(" warm pool\n"))
            .collect()
    }

    /// Checks that no interfaces remain without containers and networks.
    fn check_interfaces(&self) -> Result<(), String> {
        let answer = http::request(&self.socket(), "POST", "/networks/prune", &[], b"")
            .map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("prune networks: {}", answer.text()));
        }
        let gone = happens(STOP, || self.interfaces().is_empty());
        if gone {
            Ok(())
        } else {
            Err(format!("interfaces: {:?}", self.interfaces()))
        }
    }

    fn stop(&self) -> Result<(), String> {
        let Some(mut child) = self.daemon().take() else {
            return Ok(());
        };
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        if happens(STOP, || !matches!(child.try_wait(), Ok(None))) {
            return Ok(());
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(format!("the engine did not end within {STOP:?} of SIGTERM"))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("{}", self.last_words());
        }
        let problems = self.tear_down();
        let keep =
            std::env::var_os("WHELK_TEST_KEEP").is_some() && (failed || !problems.is_empty());
        if !keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
        if problems.is_empty() {
            return;
        }
        let text = format!(
            "the engine left resources behind:\n  {}",
            problems.join("\n  ")
        );
        // A second panic would abort the test program.
        if failed {
            eprintln!("{text}");
        } else {
            panic!("{text}");
        }
    }
}

/// Returns the names in a directory; empty if it does not exist.
pub(crate) fn entries(directory: &Path) -> Vec<String> {
    let Ok(listing) = fs::read_dir(directory) else {
        return Vec::new();
    };
    listing
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
