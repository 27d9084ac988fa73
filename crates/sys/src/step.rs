//! Fault injection: kills the process at a chosen step, so that a test can kill it at every step
//! and check that it recovers.
//!
//! A step is any change that is visible outside the process (a renamed file, a message to the
//! kernel, a row in the store). In builds with debug assertions, the file named by `WHELK_STEPS`
//! has the number of steps that the process may still take; without the file, or while it is
//! empty, the number is unlimited. Whoever ends the count empties the file under its lock
//! (`File::lock`): the process dies before it releases that lock or not at all. In other builds
//! this does nothing.

/// Counts a step that is about to be taken; kills the process if none is left.
#[inline]
pub fn step() {
    #[cfg(debug_assertions)]
    counted::step();
}

#[cfg(debug_assertions)]
mod counted {
    use crate::sync::IgnorePoison as _;
    use std::fs::File;
    use std::io::{self, Read as _, Seek as _, Write as _};
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock};

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
        let _turn = TURN.lock().ignore_poison();
        let Ok(mut file) = File::options().read(true).write(true).open(file) else {
            return;
        };
        let _ = count(&mut file);
    }

    /// Takes one from the number in `file`, or kills the process, while holding the file's lock.
    #[allow(
        clippy::disallowed_methods,
        reason = "these accesses are not steps themselves"
    )]
    fn count(file: &mut File) -> io::Result<()> {
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        match text.trim().parse::<u32>().map(|left| left.checked_sub(1)) {
            Ok(Some(left)) => {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(left.to_string().as_bytes())
            }
            Ok(None) => {
                let _ = rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::KILL,
                );
                Ok(())
            }
            // The count has ended.
            Err(_) => Ok(()),
        }
    }
}
