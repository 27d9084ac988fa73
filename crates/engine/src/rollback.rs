//! Undoing operations that fail midway.
//!
//! An operation of several steps wraps what it changes in a [`Rollback`]. After each step it pushes
//! how to undo it, and it commits after the last. If it returns before that, by an error or because
//! its future is dropped, the steps are undone in reverse order.
//!
//! Undoing may block. An operation that begins on a thread that may block and goes on in a future
//! keeps its rollback there as a [`BlockingRollback`].

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};

type Undo<'a, T> = Box<dyn FnOnce(&mut T) -> Result<()> + Send + 'a>;

/// Steps that change a `T`, which can be undone until they are committed. `T` is a mutable reference
/// if the caller needs what is changed.
pub(crate) struct Rollback<'a, T> {
    /// The operation, for the log.
    operation: &'static str,
    target: T,
    steps: Vec<(&'static str, Undo<'a, T>)>,
}

impl<'a, T> Rollback<'a, T> {
    pub(crate) fn new(operation: &'static str, target: T) -> Self {
        Self {
            operation,
            target,
            steps: Vec::new(),
        }
    }

    /// Registers how to undo the step that was just done, or is begun now: an undo must also undo a
    /// half-done step. `what` says what the undo does, for the log.
    pub(crate) fn push_undo(
        &mut self,
        what: &'static str,
        undo: impl FnOnce(&mut T) -> Result<()> + Send + 'a,
    ) {
        self.steps.push((what, Box::new(undo)));
    }

    /// Ends the operation: nothing is undone.
    pub(crate) fn commit(mut self) {
        self.steps.clear();
    }
}

impl<T> Drop for Rollback<'_, T> {
    fn drop(&mut self) {
        // A step that fails does not keep the others from being undone.
        let mut errors = Errors::default();
        while let Some((what, undo)) = self.steps.pop() {
            errors.keep(undo(&mut self.target).map_err(|error| error.prefixed(what)));
        }
        if let Err(error) = errors.into_result() {
            tracing::warn!("undo {}: {error}", self.operation);
        }
    }
}

impl<T> Deref for Rollback<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.target
    }
}

impl<T> DerefMut for Rollback<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.target
    }
}

impl<T> fmt::Debug for Rollback<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<&str> = self.steps.iter().map(|(what, _)| *what).collect();
        formatter
            .debug_struct("Rollback")
            .field("operation", &self.operation)
            .field("steps", &steps)
            .finish_non_exhaustive()
    }
}

/// A [`Rollback`] that a future holds. Its steps are undone on a thread that may block, if it is
/// dropped in a runtime.
#[derive(Debug)]
pub(crate) struct BlockingRollback<T: Send + 'static>(Option<Rollback<'static, T>>);

impl<T: Send + 'static> BlockingRollback<T> {
    /// Ends the operation: nothing is undone.
    pub(crate) fn commit(mut self) {
        if let Some(steps) = self.0.take() {
            steps.commit();
        }
    }

    /// Undoes the steps, and waits for that. It goes on even if this future is dropped.
    pub(crate) async fn undo(mut self) {
        let steps = self.0.take();
        // Fails if an undo panics, which is logged, or if the runtime ends.
        let _ = tokio::task::spawn_blocking(move || drop(steps)).await;
    }
}

impl<T: Send + 'static> From<Rollback<'static, T>> for BlockingRollback<T> {
    fn from(steps: Rollback<'static, T>) -> Self {
        Self(Some(steps))
    }
}

impl<T: Send + 'static> Drop for BlockingRollback<T> {
    fn drop(&mut self) {
        let Some(steps) = self.0.take() else { return };
        // Without a runtime they are undone here, as are those that an ending one no longer accepts.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(steps)));
        }
    }
}

/// The errors of a teardown, which does not stop at its first one.
#[derive(Debug, Default)]
pub(crate) struct Errors(Option<Error>);

impl Errors {
    /// Keeps the error of a step that failed.
    pub(crate) fn keep<T>(&mut self, outcome: std::result::Result<T, impl Into<Error>>) {
        let Err(error) = outcome else { return };
        let error = error.into();
        self.0 = Some(match self.0.take() {
            None => error,
            // The kind is that of the first one.
            Some(first) => first.followed(&error),
        });
    }

    /// Returns whether all steps have succeeded.
    ///
    /// # Errors
    /// Returns the first error, with the texts of the others.
    pub(crate) fn into_result(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does three steps, which append to a list and are undone by appending; commits them unless an
    /// undo is to fail.
    fn run(list: &mut Vec<String>, fails_at: Option<usize>, broken_undo: &[usize]) -> Result<()> {
        let mut done = Rollback::new("count", list);
        for step in 1..=3 {
            if fails_at == Some(step) {
                return Err(Error::invalid(format!("step {step}")));
            }
            done.push(format!("+{step}"));
            let is_broken = broken_undo.contains(&step);
            done.push_undo("count back", move |list| {
                list.push(format!("-{step}"));
                if is_broken {
                    return Err(Error::conflict(format!("stuck at {step}")));
                }
                Ok(())
            });
        }
        if broken_undo.is_empty() {
            done.commit();
        }
        Ok(())
    }

    fn check(fails_at: Option<usize>, broken_undo: &[usize], expected: &str, error: &str) {
        let mut list = Vec::new();
        let outcome = run(&mut list, fails_at, broken_undo);
        assert_eq!(list.join(" "), expected);
        let said = outcome.map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(said, error);
    }

    #[test]
    fn steps_are_undone_in_reverse_unless_committed() {
        check(None, &[], "+1 +2 +3", "");
        check(Some(1), &[], "", "step 1");
        check(Some(3), &[], "+1 +2 -2 -1", "step 3");
    }

    #[test]
    fn an_undo_that_fails_does_not_hinder_the_others() {
        check(None, &[1, 3], "+1 +2 +3 -3 -2 -1", "");
        check(Some(3), &[2], "+1 +2 -2 -1", "step 3");
    }

    /// Returns a step whose undo sends the thread that it runs on.
    fn held() -> (BlockingRollback<Option<Sender>>, Receiver) {
        let (undone, where_undone) = tokio::sync::oneshot::channel();
        let mut steps = Rollback::new("hold", Some(undone));
        steps.push_undo("send the thread", |undone| {
            let sent = undone
                .take()
                .map(|undone| undone.send(std::thread::current().id()));
            assert!(matches!(sent, Some(Ok(()))));
            Ok(())
        });
        (steps.into(), where_undone)
    }

    type Sender = tokio::sync::oneshot::Sender<std::thread::ThreadId>;
    type Receiver = tokio::sync::oneshot::Receiver<std::thread::ThreadId>;

    #[tokio::test]
    async fn what_a_dropped_future_holds_is_undone_on_another_thread() {
        let (steps, where_undone) = held();
        let mut operation = Box::pin(async move {
            std::future::pending::<()>().await;
            steps.commit();
        });
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(operation.as_mut().poll(&mut context).is_pending());
        drop(operation);
        assert_ne!(where_undone.await.unwrap(), std::thread::current().id());
    }

    #[tokio::test]
    async fn an_undo_is_waited_for() {
        let (steps, mut where_undone) = held();
        steps.undo().await;
        assert_ne!(
            where_undone.try_recv().unwrap(),
            std::thread::current().id()
        );
    }

    #[tokio::test]
    async fn what_a_future_has_committed_is_not_undone() {
        let (steps, where_undone) = held();
        steps.commit();
        // The sender is dropped with the target.
        assert!(where_undone.await.is_err());
    }

    #[test]
    fn without_a_runtime_it_is_undone_at_once() {
        let (steps, mut where_undone) = held();
        drop(steps);
        assert_eq!(
            where_undone.try_recv().unwrap(),
            std::thread::current().id()
        );
    }

    #[test]
    fn the_first_error_decides_the_kind() {
        let mut errors = Errors::default();
        errors.keep(Ok::<(), Error>(()));
        errors.keep(Err::<(), _>(Error::NotFound("a".into())));
        errors.keep(Err::<(), _>(Error::internal("b")));
        let error = errors.into_result().unwrap_err();
        assert!(
            matches!(&error, Error::NotFound(text) if text == "a; b"),
            "{error}"
        );
        assert!(Errors::default().into_result().is_ok());
    }
}
