//! Runs a command for each of several names.

use std::pin::pin;

use futures_util::{StreamExt as _, stream};

use crate::output::print_line;
use crate::{Failure, Outcome};

/// The greatest number of requests at the same time, as in Docker's client.
const AT_ONCE: usize = 50;

/// The errors of a command, which continues after them.
#[derive(Default)]
struct Failures {
    texts: Vec<String>,
    is_unwritten: bool,
}

impl Failures {
    /// Remembers an error. Returns it if the output has no reader any more, so that the command must end.
    fn add(&mut self, failure: Failure) -> Outcome<()> {
        if failure.is_closed_pipe() {
            return Err(failure);
        }
        // Reported once, because it is the same for all names.
        if !(failure.is_unwritten && self.is_unwritten) {
            self.is_unwritten |= failure.is_unwritten;
            self.texts.push(failure.text);
        }
        Ok(())
    }
}

/// Runs `action` for each name, continuing after errors. Returns all errors at the end, or at once
/// if the output has no reader any more.
pub(crate) async fn for_each<F: AsyncFnMut(&str) -> Outcome<()>>(
    names: &[String],
    mut action: F,
) -> Outcome {
    let mut failures = Failures::default();
    for name in names {
        if let Err(failure) = action(name).await {
            failures.add(failure)?;
        }
    }
    failures_of(&failures.texts)
}

/// Like [`for_each`], but for several names at the same time. Prints each name, in the given order, for which
/// `action` returns true.
pub(crate) async fn for_each_at_once<F: AsyncFn(&str) -> Outcome<bool>>(
    names: &[String],
    action: F,
) -> Outcome {
    let mut failures = Failures::default();
    let actions = stream::iter(names).map(|name| action(name));
    let mut results = pin!(actions.buffered(AT_ONCE).zip(stream::iter(names)));
    while let Some((result, name)) = results.next().await {
        let printed = match result {
            Ok(true) => print_line!("{name}"),
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = printed {
            failures.add(failure)?;
        }
    }
    failures_of(&failures.texts)
}

/// Returns the outcome of a command whose parts failed with these errors.
pub(crate) fn failures_of(failures: &[String]) -> Outcome {
    if failures.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(failures.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn fifty_requests_run_at_the_same_time() {
        let names: Vec<String> = (0..120).map(|number| number.to_string()).collect();
        let (running, most, done) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let outcome = for_each_at_once(&names, async |name| {
            running.set(running.get() + 1);
            most.set(most.get().max(running.get()));
            tokio::task::yield_now().await;
            running.set(running.get() - 1);
            done.set(done.get() + 1);
            match name {
                "3" | "100" => Err(Failure::new(format!("no {name}"))),
                _ => Ok(false),
            }
        });
        assert_eq!(outcome.await.unwrap_err().text, "no 3\nno 100");
        assert_eq!((most.get(), done.get()), (50, 120));
    }
}
