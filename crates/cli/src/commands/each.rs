//! Runs a command for each of several names.

use crate::{Failure, Outcome};

/// Runs `action` for each name, continuing after errors. Returns all errors at the end, or at once
/// if the output has no reader any more.
pub(crate) async fn for_each<F: AsyncFnMut(&str) -> Outcome<()>>(
    names: &[String],
    mut action: F,
) -> Outcome {
    let (mut failures, mut unwritten) = (Vec::new(), false);
    for name in names {
        if let Err(failure) = action(name).await {
            if failure.is_closed_pipe() {
                return Err(failure);
            }
            // Reported once, because it is the same for all names.
            if !(failure.is_unwritten && unwritten) {
                unwritten |= failure.is_unwritten;
                failures.push(failure.text);
            }
        }
    }
    failures_of(&failures)
}

/// Returns the outcome of a command whose parts failed with these errors.
pub(crate) fn failures_of(failures: &[String]) -> Outcome {
    if failures.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(failures.join("\n")))
    }
}
