//! Fault injection: kills the process at a chosen step, or lets that step fail, so that a test can
//! do so at every step and check that it recovers, or that what was done before is undone.
//!
//! A step is any change that is visible outside the process (a renamed file, a message to the
//! kernel, a row in the store). In builds with debug assertions, the file named by `WHELK_STEPS`
//! has the number of steps that may still be taken before a process is killed, or, after the word
//! `fail`, before one fails. Without the file, or while it is empty, the number is unlimited.
//! Whoever ends the count empties the file under its lock (`File::lock`): the process dies before it
//! releases that lock or not at all, and a step that fails empties the file. In other builds this
//! does nothing.

use std::io;

/// Counts a step that is about to be taken; kills the process if none is left. Not counted where
/// steps are to fail: this one cannot, or has an error that is not undone.
#[inline]
pub fn step() {
    #[cfg(debug_assertions)]
    counted::step(false);
}

/// Counts a step that is about to be taken; kills the process if none is left, or fails.
///
/// # Errors
/// Returns `EIO` for the step that is to fail.
#[inline]
pub fn fallible_step() -> io::Result<()> {
    #[cfg(debug_assertions)]
    if counted::step(true) {
        return Err(rustix::io::Errno::IO.into());
    }
    Ok(())
}

/// Does work in the background of all operations. Its steps are not let fail: no operation would
/// report it.
pub fn in_background<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(debug_assertions)]
    let _background = counted::Background::begin();
    work()
}

#[cfg(debug_assertions)]
mod counted {
    use crate::sync::IgnorePoison as _;
    use std::cell::Cell;
    use std::fs::File;
    use std::io::{self, Read as _, Seek as _, Write as _};
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock};

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());

    thread_local! {
        static IN_BACKGROUND: Cell<bool> = const { Cell::new(false) };
    }

    /// While it lives, the steps of this thread are those of background work.
    pub(super) struct Background {
        before: bool,
    }

    impl Background {
        pub(super) fn begin() -> Self {
            let before = IN_BACKGROUND.replace(true);
            Self { before }
        }
    }

    impl Drop for Background {
        fn drop(&mut self) {
            IN_BACKGROUND.set(self.before);
        }
    }

    /// Returns whether the step must fail.
    #[allow(
        clippy::disallowed_methods,
        reason = "these accesses are not steps themselves"
    )]
    pub(super) fn step(can_fail: bool) -> bool {
        let Some(file) = FILE.get_or_init(|| std::env::var_os("WHELK_STEPS").map(PathBuf::from))
        else {
            return false;
        };
        let can_fail = can_fail && !IN_BACKGROUND.get();
        let _turn = TURN.lock().ignore_poison();
        let Ok(mut file) = File::options().read(true).write(true).open(file) else {
            return false;
        };
        count(&mut file, can_fail).unwrap_or(false)
    }

    /// Takes one from the number in `file` while holding the file's lock. If none is left, kills the
    /// process, or empties the file and returns that the step must fail.
    #[allow(
        clippy::disallowed_methods,
        reason = "these accesses are not steps themselves"
    )]
    fn count(file: &mut File, can_fail: bool) -> io::Result<bool> {
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let (prefix, left) = match text.strip_prefix("fail ") {
            Some(_) if !can_fail => return Ok(false),
            Some(left) => ("fail ", left),
            None => ("", text.as_str()),
        };
        // No number: the count has ended.
        let Ok(left) = left.trim().parse::<u32>() else {
            return Ok(false);
        };
        if let Some(left) = left.checked_sub(1) {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(format!("{prefix}{left}").as_bytes())?;
            return Ok(false);
        }
        if prefix.is_empty() {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            return Ok(false);
        }
        file.set_len(0)?;
        Ok(true)
    }
}
