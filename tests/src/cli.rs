//! The two command-line clients: the unmodified `docker` and `whelk`.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::engine::Engine;
use crate::pty::Pty;
use crate::{PATIENCE, happens};

/// Maximum duration of a command.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Docker,
    Whelk,
}

impl Program {
    /// Returns the program's path: `docker` where `scripts/setup` unpacked it; `whelk` above the
    /// directory of the test programs, unless `WHELK_BIN` names another.
    pub fn path(self) -> PathBuf {
        match self {
            Self::Docker => tools().join("bin/docker"),
            Self::Whelk => {
                std::env::var_os("WHELK_BIN").map_or_else(|| Self::beside("whelk"), PathBuf::from)
            }
        }
    }

    /// Returns the path of a program that cargo built along with this one.
    pub(crate) fn beside(name: &str) -> PathBuf {
        let this = std::env::current_exe().expect("the program's own path");
        let directory = this.parent().expect("it lies in a directory");
        // Test programs are in deps/, one level below the others.
        if directory.ends_with("deps") {
            directory.with_file_name(name)
        } else {
            directory.join(name)
        }
    }
}

/// The `usr` directory of the docker CLI's packages.
pub(crate) fn tools() -> PathBuf {
    crate::cache("WHELK_TOOLS", "tools").join("usr")
}

/// Returns Debian's registry server.
pub fn debian_registry() -> PathBuf {
    tools().join("bin/docker-registry")
}

/// A command-line client connected to an engine.
#[derive(Clone, Copy, Debug)]
pub struct Cli<'e> {
    engine: &'e Engine,
    program: Program,
    env: &'e [(&'e str, &'e str)],
    directory: Option<&'e Path>,
}

impl<'e> Cli<'e> {
    pub(crate) fn new(engine: &'e Engine, program: Program) -> Self {
        Self {
            engine,
            program,
            env: &[],
            directory: None,
        }
    }

    /// Runs commands with more variables in their environment.
    #[must_use]
    pub fn with_env(self, env: &'e [(&'e str, &'e str)]) -> Self {
        Self { env, ..self }
    }

    /// Runs commands in a directory.
    #[must_use]
    pub fn in_directory(self, directory: &'e Path) -> Self {
        Self {
            directory: Some(directory),
            ..self
        }
    }

    pub fn engine(self) -> &'e Engine {
        self.engine
    }

    pub fn program(self) -> Program {
        self.program
    }

    /// Runs a command to its end, without input.
    #[track_caller]
    pub fn run(self, args: &[&str]) -> Output {
        self.spawn_with(args, Stdio::null()).finish()
    }

    /// Runs a command with `input` on its standard input.
    #[track_caller]
    pub fn feed(self, args: &[&str], input: &[u8]) -> Output {
        let mut running = self.spawn_with(args, Stdio::piped());
        let mut stdin = running.stdin.take().expect("a pipe to the command");
        let input = input.to_vec();
        // A command may end before it has read all input; that is not an error.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = running.finish();
        let _ = writer.join();
        output
    }

    /// Starts a command that runs concurrently with the test. Its input stays open until it is
    /// closed.
    #[track_caller]
    pub fn spawn(self, args: &[&str]) -> Running {
        self.spawn_with(args, Stdio::piped())
    }

    /// Starts a command on a pseudo-terminal.
    #[track_caller]
    pub fn pty(self, args: &[&str]) -> Pty {
        Pty::start(self.engine, &self.program.path(), args, self.env)
    }

    /// Runs `run --rm --network none FLAGS busybox sh -c SCRIPT`.
    #[track_caller]
    pub fn sh(self, flags: &[&str], script: &str) -> Output {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend_from_slice(flags);
        args.extend_from_slice(&["busybox", "sh", "-c", script]);
        self.run(&args)
    }

    /// Runs `run --rm --network none IMAGE COMMAND…`.
    #[track_caller]
    pub fn once(self, image: &str, command: &[&str]) -> Output {
        let run = ["run", "--rm", "--network", "none", image];
        self.run(&[&run, command].concat())
    }

    /// Runs `run -d --network none --name NAME FLAGS busybox COMMAND…`, which must succeed. Returns
    /// the container's ID.
    #[track_caller]
    pub fn up(self, name: &str, flags: &[&str], command: &[&str]) -> String {
        let mut args = vec!["run", "-d", "--network", "none", "--name", name];
        args.extend_from_slice(flags);
        args.push("busybox");
        args.extend_from_slice(command);
        self.run(&args).ok()
    }

    #[track_caller]
    fn spawn_with(self, args: &[&str], stdin: Stdio) -> Running {
        let mut command = Command::new(self.program.path());
        command.args(args);
        self.engine.set_environment(&mut command);
        command.envs(self.env.iter().copied());
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        Running::start(
            command,
            stdin,
            format!("{:?} {}", self.program, args.join(" ")),
        )
    }
}

/// The result of a command.
#[must_use = "the command's status was not checked"]
#[derive(Clone, Debug)]
pub struct Output {
    command: String,
    /// The exit status, or 128 + signal number.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Returns trimmed standard output. Panics unless the command succeeded.
    #[track_caller]
    pub fn ok(&self) -> String {
        self.exits(0);
        self.out().trim().to_owned()
    }

    /// Returns trimmed standard error. Panics unless the command exited with `code`.
    #[track_caller]
    pub fn fails(&self, code: i32) -> String {
        self.exits(code);
        self.err().trim().to_owned()
    }

    /// Returns both outputs concatenated. Panics unless the command exited with `code`.
    #[track_caller]
    pub fn exits(&self, code: i32) -> String {
        let (out, err) = (self.out(), self.err());
        assert_eq!(
            self.code, code,
            "{}: expected status {code}, got {}\n--- stdout:\n{out}\n--- stderr:\n{err}\n---",
            self.command, self.code
        );
        out + &err
    }

    /// Checks that the command exited with `code` and that standard error contains `text`.
    #[track_caller]
    pub fn refuses(&self, code: i32, text: &str) {
        let err = self.fails(code);
        assert!(
            err.contains(text),
            "{}: expected {text:?} in {err:?}",
            self.command
        );
    }
}

/// A command that runs concurrently with the test. Killed on drop.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    pub stdin: Option<ChildStdin>,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    /// Offset in standard output up to which text was found already.
    seen: usize,
}

impl Running {
    #[track_caller]
    fn start(mut command: Command, stdin: Stdio, shown: String) -> Self {
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let program = command.get_program().to_owned();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: start {}: {error}", program.display()));
        let stdout: Arc<Mutex<Vec<u8>>> = Arc::default();
        let stderr: Arc<Mutex<Vec<u8>>> = Arc::default();
        let readers = vec![
            collect(child.stdout.take().expect("a pipe"), Arc::clone(&stdout)),
            collect(child.stderr.take().expect("a pipe"), Arc::clone(&stderr)),
        ];
        let stdin = child.stdin.take();
        Self {
            command: shown,
            child,
            stdin,
            stdout,
            stderr,
            readers,
            seen: 0,
        }
    }

    /// Returns standard output so far.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&text(&self.stdout)).into_owned()
    }

    /// Returns standard error so far.
    pub fn errors_so_far(&self) -> String {
        String::from_utf8_lossy(&text(&self.stderr)).into_owned()
    }

    /// Waits until standard output contains `wanted` after what was found before.
    #[track_caller]
    pub fn expect(&mut self, wanted: &str) {
        let begin = Instant::now();
        loop {
            let all = text(&self.stdout);
            if let Some(at) = all[self.seen..]
                .windows(wanted.len())
                .position(|window| window == wanted.as_bytes())
            {
                self.seen += at + wanted.len();
                return;
            }
            let (out, err) = (self.so_far(), self.errors_so_far());
            assert!(
                begin.elapsed() < PATIENCE,
                "{}: timed out waiting for {wanted:?}\n--- stdout:\n{out}\n--- stderr:\n{err}\n---",
                self.command
            );
            std::thread::sleep(crate::POLL);
        }
    }

    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("input is open");
        stdin
            .write_all(bytes)
            .and_then(|()| stdin.flush())
            .expect("write to the command");
    }

    /// Closes the command's input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal the command");
    }

    /// Returns whether the command is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the command's end.
    ///
    /// # Panics
    /// Panics if the command does not end in time, after killing it.
    #[track_caller]
    pub fn finish(&mut self) -> Output {
        self.finish_within(TIMEOUT)
    }

    /// As [`Running::finish`], with another time limit.
    ///
    /// # Panics
    /// As [`Running::finish`].
    #[track_caller]
    pub fn finish_within(&mut self, limit: Duration) -> Output {
        self.close_input();
        if !happens(limit, || !matches!(self.child.try_wait(), Ok(None))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!(
                "{}: still running after {limit:?}; output {:?} {:?}",
                self.command,
                self.so_far(),
                self.errors_so_far()
            );
        }
        let status = self.child.wait().expect("wait for the command");
        // Another process may have its pipes: the plugin of a client that was killed.
        assert!(
            happens(limit, || self.readers.iter().all(JoinHandle::is_finished)),
            "{}: another process has its output still open after {limit:?}; output {:?} {:?}",
            self.command,
            self.so_far(),
            self.errors_so_far()
        );
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let code = status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .unwrap_or(-1);
        Output {
            command: self.command.clone(),
            code,
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(buffer: &Mutex<Vec<u8>>) -> Vec<u8> {
    buffer
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Reads a pipe to its end on a separate thread.
fn collect(mut pipe: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        while let Ok(count) = pipe.read(&mut piece) {
            if count == 0 {
                break;
            }
            into.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(&piece[..count]);
        }
    })
}
