//! Deaths on demand: what survives a kill at any moment is shown by a test that kills at every one.
//!
//! Whatever others can see (a file renamed, a message to the kernel, a row in the store) is a step.
//! In builds with debug assertions, the file that `WHELK_STEPS` names says how many steps the
//! process may still take; without that file there is no end to them, and in other builds there is
//! nothing of this.

/// Notes that a step is about to be taken.
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
        reason = "these accesses are no steps themselves"
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
