//! Locks that stay usable after a panic.

use std::sync::{LockResult, PoisonError};

/// Takes a lock's guard whether or not the lock is poisoned.
///
/// A panic of one request must not make every later one fail. Data under the project's locks is
/// valid between any two statements that change it.
pub trait IgnorePoison {
    /// What the lock protects, or its guard.
    type Guard;

    /// Returns the guard, also if a thread panicked while it held the lock.
    fn ignore_poison(self) -> Self::Guard;
}

impl<T> IgnorePoison for LockResult<T> {
    type Guard = T;

    fn ignore_poison(self) -> T {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::IgnorePoison as _;
    use std::sync::Mutex;

    #[test]
    fn a_poisoned_lock_gives_its_data() {
        let lock = Mutex::new(1);
        std::thread::scope(|scope| {
            let panicked = scope.spawn(|| {
                let _guard = lock.lock().ignore_poison();
                panic!("while the lock is held");
            });
            let payload = panicked.join().unwrap_err();
            assert_eq!(
                payload.downcast_ref(),
                Some(&"while the lock is held"),
                "a panic of another kind"
            );
        });
        assert!(lock.is_poisoned());
        *lock.lock().ignore_poison() += 1;
        assert_eq!(lock.into_inner().ignore_poison(), 2);
    }
}
