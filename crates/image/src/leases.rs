//! Leases protect blobs and layers from garbage collection until a record refers to them.
//!
//! An operation that adds blobs or layers takes a lease, adds each digest to it before it checks
//! whether the store has the object, and drops the lease after the record that refers to the objects
//! was committed. If the operation fails or panics, the lease is dropped and the next collection removes
//! its objects. Leases are in memory: the next process starts without any.
//!
//! A collection reads the records, which takes time, and then removes all objects that are neither in
//! a record nor in a lease. If a lease is dropped in between, its record may be missing from those that
//! were read. So a digest that is released while a collection runs stays protected until the collection
//! ends; then another collection runs, which removes the object if it is unused.
//!
//! What only reads layers, such as a start that is about to mount them, holds them too: they stay where they
//! are, whatever becomes of their image and however damaged they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use whelk_sys::sync::IgnorePoison as _;

use crate::digest::Digest;

/// The leases of a store.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Number of leases by digest.
    held: BTreeMap<Digest, usize>,
    /// Number of collections that run.
    collections: usize,
    /// Digests released since the first of these collections began.
    released: Vec<Digest>,
    /// Digests that a collection has kept because of a lease.
    kept: BTreeSet<Digest>,
    /// Digests were released that the collections so far have kept.
    is_behind: bool,
}

impl Table {
    fn release(&mut self, digest: &Digest) {
        if let Some(count) = self.held.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(digest);
                self.is_behind |= self.kept.remove(digest);
            }
        }
    }
}

impl Leases {
    /// Returns a new lease, which holds nothing yet.
    pub fn take(&self) -> Lease {
        Lease {
            table: self.0.clone(),
            digests: Mutex::default(),
        }
    }

    /// Returns whether any lease holds a blob or layer.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.0.lock().ignore_poison().held.contains_key(digest)
    }

    /// Begins a collection. The records must be read after this call.
    pub(crate) fn collect(&self) -> Collection {
        self.0.lock().ignore_poison().collections += 1;
        Collection(self.0.clone())
    }

    /// Returns whether another collection is necessary, because the ones that have ended kept what
    /// was released while they ran, or later. Returns that once.
    pub fn must_collect_again(&self) -> bool {
        std::mem::take(&mut self.0.lock().ignore_poison().is_behind)
    }
}

/// Keeps blobs and layers from being collected until it is dropped.
#[derive(Debug)]
pub struct Lease {
    table: Arc<Mutex<Table>>,
    digests: Mutex<BTreeSet<Digest>>,
}

impl Lease {
    /// Holds the blob or layer `digest`, which need not exist yet.
    pub fn hold(&self, digest: &Digest) {
        let mut digests = self.digests.lock().ignore_poison();
        if digests.insert(digest.clone()) {
            let mut table = self.table.lock().ignore_poison();
            *table.held.entry(digest.clone()).or_default() += 1;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let digests = std::mem::take(&mut *self.digests.lock().ignore_poison());
        let mut table = self.table.lock().ignore_poison();
        if table.collections > 0 {
            table.released.extend(digests);
        } else {
            for digest in &digests {
                table.release(digest);
            }
        }
    }
}

/// A collection that runs.
pub(crate) struct Collection(Arc<Mutex<Table>>);

impl Collection {
    /// Runs `remove` unless a lease holds `digest`. No lease can begin to hold it meanwhile, so
    /// `remove` must be quick.
    pub(crate) fn unless_held<T>(
        &self,
        digest: Option<&Digest>,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut table = self.0.lock().ignore_poison();
        match digest {
            Some(digest) if table.held.contains_key(digest) => {
                table.kept.insert(digest.clone());
                None
            }
            _ => Some(remove()),
        }
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        let mut table = self.0.lock().ignore_poison();
        table.collections -= 1;
        if table.collections == 0 {
            let released = std::mem::take(&mut table.released);
            table.is_behind |= !released.is_empty();
            for digest in &released {
                table.release(digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_until_the_last_lease_and_the_running_collections_have_ended() {
        let leases = Leases::default();
        let digest = Digest::of(b"content");
        let held = || {
            let collection = leases.collect();
            collection.unless_held(Some(&digest), || ()).is_none()
        };
        let (first, second) = (leases.take(), leases.take());
        assert!(!held());
        for lease in [&first, &first, &second] {
            lease.hold(&digest);
        }
        drop(first);
        assert!(held());
        let running = leases.collect();
        drop(second);
        assert!(held(), "released while a collection runs");
        assert!(!leases.must_collect_again());
        drop(running);
        assert!(leases.must_collect_again() && !leases.must_collect_again());
        assert!(!held());
        let third = leases.take();
        third.hold(&digest);
        drop(third);
        assert!(!leases.must_collect_again(), "no collection has kept it");
        let fourth = leases.take();
        fourth.hold(&digest);
        assert!(held());
        drop(fourth);
        assert!(leases.must_collect_again(), "released after a collection");
        let table = leases.0.lock().unwrap();
        assert!(table.held.is_empty() && table.kept.is_empty());
    }
}
