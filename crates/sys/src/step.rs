//! Fault injection: kills the process at a chosen step, so that a test can kill it at every step
//! and check that it recovers.
//!
//! A step is any change that is visible outside the process (a renamed file, a message to the
//! kernel, a row in the store). In builds with debug assertions, the file named by `WHELK_STEPS`
//! has the number of steps that the process may still take; without the file the number is
//! unlimited. In other builds this does nothing.

/// Counts a step that is about to be taken; kills the process if none is left.
#[inline]
pub fn step() {
    #[cfg(debug_assertions)]
    counted::step();
}

#[cfg(debug_assertions)]
mod counted {
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());

    #[allow(
        clippy::disallowed_methods,
        reason = "these accesses are not steps themselves"
    )]
    pub(super) fn step() {
        let Some(file) = FILE.get_or_init(|| std::env::var_os("WHELK_STEPS").map(PathBuf::from))
        else {
            return;
        };
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left) = std::fs::read_to_string(file)
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
        else {
            return;
        };
        match left.checked_sub(1) {
            Some(left) => drop(std::fs::write(file, left.to_string())),
            None => drop(rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            )),
        }
    }
}
