//! What of the history is kept.

use std::collections::{BTreeSet, HashSet};

use prost::Message as _;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::{History, State, blobs};

/// Records that are kept in any case, as long as there is room; of others those of the last two days, as with BuildKit.
const KEPT: usize = 50;
const MAX_AGE: i64 = 48 * 3600 * 1_000_000_000;

/// Limits of all that is not pinned.
const MAX_RECORDS: usize = 1000;
const MAX_BYTES: u64 = 512 << 20;
/// Of the records themselves, which are in memory.
const MAX_IN_MEMORY: u64 = 64 << 20;

impl History {
    /// Removes the oldest records, and blobs that none refers to, apart from those that wait for their record. The caller
    /// holds `disk`.
    pub(super) fn collect(&self) -> fs::Result<()> {
        let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let expired = expired(&self.state.lock().ignore_poison(), now);
        for name in expired {
            self.remove(&name)?;
        }
        // A blob that is finished meanwhile waits for `disk`.
        let known: HashSet<String> = {
            let state = self.state.lock().ignore_poison();
            let blobs = state.ended.values().flat_map(blobs::of);
            let digits = blobs.map(|blob| blob.digest.trim_start_matches("sha256:").to_owned());
            digits.chain(state.held.keys().cloned()).collect()
        };
        for entry in fs::list(self.place.join("blobs"))? {
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| known.contains(name)) {
                fs::remove_if_exists(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Returns the names of records to remove.
fn expired(state: &State, now: i64) -> Vec<String> {
    let mut records: Vec<_> = state.ended.values().filter(|one| !one.pinned).collect();
    // The newest first.
    records.sort_by_key(|record| std::cmp::Reverse(record.completed_at));
    let (mut bytes, mut in_memory) = (0_u64, 0_u64);
    let mut counted = BTreeSet::new();
    let mut expired = Vec::new();
    for (index, record) in records.into_iter().enumerate() {
        for blob in blobs::of(record) {
            if counted.insert(&blob.digest) {
                bytes = bytes.saturating_add(u64::try_from(blob.size).unwrap_or(0));
            }
        }
        in_memory = in_memory.saturating_add(record.encoded_len() as u64);
        let age = record
            .completed_at
            .map_or(0, |at| now.saturating_sub(at.to_nanos()));
        let is_old = index >= KEPT && age > MAX_AGE;
        let is_over = bytes > MAX_BYTES || in_memory > MAX_IN_MEMORY;
        if is_old || index >= MAX_RECORDS || is_over && index > 0 {
            expired.push(record.r#ref.clone());
        }
    }
    expired
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::Timestamp;
    use crate::pb::control::{BuildHistoryRecord, Descriptor};

    const HOUR: i64 = 3600 * 1_000_000_000;

    /// Records that have ended an hour after each other, the last one now.
    fn state(count: usize, bytes: i64) -> State {
        let mut state = State::default();
        for number in 0..count {
            let age = i64::try_from(count - 1 - number).unwrap() * HOUR;
            let record = BuildHistoryRecord {
                r#ref: format!("{number:04}"),
                completed_at: Some(Timestamp::from_nanos(2000 * HOUR - age)),
                logs: Some(Descriptor {
                    digest: number.to_string(),
                    size: bytes,
                    ..Descriptor::default()
                }),
                ..BuildHistoryRecord::default()
            };
            state.ended.insert(record.r#ref.clone(), record);
        }
        state
    }

    #[test]
    fn records_expire_by_number_and_age_and_size() {
        let now = 2000 * HOUR;
        assert_eq!(expired(&state(50, 1), 9000 * HOUR).len(), 0);
        assert_eq!(expired(&state(100, 1), now).len(), 50);
        // All of them are of the last two days.
        assert_eq!(
            expired(&state(50 + 7, 1), now),
            ["0006", "0005", "0004", "0003", "0002", "0001", "0000"]
        );
        let mut pinned = state(60, 1);
        for record in pinned.ended.values_mut().take(5) {
            record.pinned = true;
        }
        assert_eq!(expired(&pinned, now).len(), 5);
        let large = state(4, 200 << 20);
        assert_eq!(expired(&large, now), ["0001", "0000"]);
        // Records are in memory, also those whose blobs are small.
        let mut long = state(4, 1);
        for record in long.ended.values_mut() {
            let name = "n".repeat(30 << 20);
            record.frontend_attrs.insert(name, String::new());
        }
        assert_eq!(expired(&long, now), ["0001", "0000"]);
        // The last one is kept, however large it is.
        assert_eq!(expired(&state(1, 1 << 40), now).len(), 0);
    }
}
