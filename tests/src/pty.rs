//! A command on a pseudo-terminal.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::PATIENCE;
use crate::engine::Engine;

/// A command on a terminal of 24 rows and 80 columns. Killed on drop.
#[derive(Debug)]
pub struct Pty {
    terminal: OwnedFd,
    child: Child,
    command: String,
    /// Everything that was output to the terminal.
    screen: Vec<u8>,
    /// Offset in `screen` up to which text was found already.
    seen: usize,
}

impl Pty {
    #[track_caller]
    pub(crate) fn start(
        engine: &Engine,
        program: &Path,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = openpt(flags).expect("open a terminal");
        grantpt(&terminal).expect("take the terminal");
        unlockpt(&terminal).expect("unlock the terminal");
        set_size(&terminal, 24, 80);
        let side = || {
            Stdio::from(
                ioctl_tiocgptpeer(&terminal, flags).expect("open the terminal's other side"),
            )
        };
        // `--ctty` makes it the controlling terminal of the command, so that SIGWINCH is delivered.
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(program)
            .args(args)
            .env("TERM", "xterm")
            .stdin(side())
            .stdout(side())
            .stderr(side());
        engine.set_environment(&mut command);
        command.envs(env.iter().copied());
        let shown = format!("{} {}", program.display(), args.join(" "));
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        Self {
            terminal,
            child,
            command: shown,
            screen: Vec::new(),
            seen: 0,
        }
    }

    /// Resizes the terminal.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.terminal, rows, columns);
    }

    /// Sends a signal to the command.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal the command");
    }

    /// Closes the terminal, as when its window is closed.
    #[track_caller]
    pub fn hang_up(&mut self) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        // Another one, on which nothing is shown.
        self.terminal = openpt(flags).expect("open a terminal");
    }

    /// Types keys.
    #[track_caller]
    pub fn keys(&mut self, keys: &str) {
        self.write(keys).expect("press keys");
    }

    fn write(&self, keys: &str) -> rustix::io::Result<()> {
        let mut rest = keys.as_bytes();
        while !rest.is_empty() {
            let count = rustix::io::write(&self.terminal, rest)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Waits until the terminal shows `text` after what was found before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let begin = Instant::now();
        let mut open = true;
        loop {
            if self.find(text) {
                return;
            }
            assert!(
                open,
                "{}: ended before {text:?} appeared: {:?}",
                self.command,
                self.screen()
            );
            assert!(
                begin.elapsed() < PATIENCE,
                "{}: timed out waiting for {text:?}: {:?}",
                self.command,
                self.screen()
            );
            open = self.read();
        }
    }

    /// Types keys repeatedly until the terminal shows `text`, for programs that ignore keys until
    /// they are ready.
    #[track_caller]
    pub fn insist(&mut self, keys: &str, text: &str) {
        if let Err(problem) = self.answer(keys, text) {
            panic!("{}: {problem}", self.command);
        }
    }

    /// Types keys repeatedly until the terminal shows `text`.
    ///
    /// # Errors
    /// Returns all that was shown if the command ends before, or does not answer in time.
    pub fn answer(&mut self, keys: &str, text: &str) -> Result<(), String> {
        /// The time for an answer, however much else is shown meanwhile.
        const AGAIN: Duration = Duration::from_millis(500);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            // A command that has ended has no terminal any more, which reading tells.
            let _ = self.write(keys);
            let typed = Instant::now();
            while typed.elapsed() < AGAIN {
                if self.find(text) {
                    return Ok(());
                }
                if !self.read() {
                    let shown = self.screen();
                    return Err(format!("ended before {text:?} appeared: {shown:?}"));
                }
            }
        }
        let shown = self.screen();
        Err(format!("timed out waiting for {text:?}: {shown:?}"))
    }

    /// Returns whether the terminal has shown `text` after what was found before.
    fn find(&mut self, text: &str) -> bool {
        let found = self.screen[self.seen..]
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        if let Some(at) = found {
            self.seen += at + text.len();
        }
        found.is_some()
    }

    /// Returns everything shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    /// Waits for the command's end and returns its exit status.
    #[track_caller]
    pub fn finish(&mut self) -> i32 {
        let begin = Instant::now();
        loop {
            let open = self.read();
            if let Some(status) = self.child.try_wait().expect("wait for the command") {
                while self.read_now() {}
                return status.code().unwrap_or(-1);
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{}: still running: {:?}",
                self.command,
                self.screen()
            );
            if !open {
                std::thread::sleep(crate::POLL);
            }
        }
    }

    /// Reads what arrives within 100 ms. Returns `false` if the other side is closed.
    fn read(&mut self) -> bool {
        const WAIT: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        self.read_within(&WAIT).unwrap_or(false)
    }

    /// Reads without waiting. Returns whether something was read.
    fn read_now(&mut self) -> bool {
        const NONE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let before = self.screen.len();
        self.read_within(&NONE).is_ok() && self.screen.len() > before
    }

    fn read_within(&mut self, wait: &Timespec) -> rustix::io::Result<bool> {
        let ready = poll(
            &mut [PollFd::new(&self.terminal, PollFlags::IN)],
            Some(wait),
        )?;
        if ready == 0 {
            return Ok(true);
        }
        let mut piece = [0u8; 4096];
        let count = rustix::io::read(&self.terminal, &mut piece[..])?;
        self.screen.extend_from_slice(&piece[..count]);
        Ok(count > 0)
    }
}

#[track_caller]
fn set_size(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("set the terminal's size");
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
