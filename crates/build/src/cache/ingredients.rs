//! What the keys of steps were made of when they were executed last (`explain`).

use rusqlite::{Connection, params};
use whelk_llb::Digest;
use whelk_sys::sync::IgnorePoison as _;

use super::{Cache, failed};
use crate::error::Result;
use crate::explain::Ingredients;

/// Number of steps that are kept: those that were executed last.
const MAX: i64 = 2000;

/// Number of bytes of all of them.
const MAX_BYTES: i64 = 16 << 20;

impl Cache {
    /// Returns what the key of a step was made of when it was executed last.
    pub(crate) fn ingredients(&self, place: &Digest) -> Option<Ingredients> {
        let state = self.state.lock().ignore_poison();
        let select = "SELECT text FROM ingredients WHERE place = ?1";
        let found: rusqlite::Result<String> =
            state
                .connection
                .query_row(select, [place.as_bytes().as_slice()], |row| row.get(0));
        drop(state);
        serde_json::from_str(&found.ok()?).ok()
    }

    /// Notes what the keys of steps are made of that were executed.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub(crate) fn note(&self, steps: &[(Digest, Ingredients)]) -> Result<()> {
        let steps: Vec<(&Digest, String)> = steps
            .iter()
            .map(|(place, step)| (place, step.encode()))
            .collect();
        let mut state = self.state.lock().ignore_poison();
        note(&mut state.connection, &steps).map_err(failed("write to the build cache"))
    }

    /// Removes all that was noted.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub(crate) fn forget_ingredients(&self) -> Result<()> {
        let state = self.state.lock().ignore_poison();
        let removed = state.connection.execute("DELETE FROM ingredients", []);
        removed
            .map(drop)
            .map_err(failed("write to the build cache"))
    }

    /// The number by which digests of this database differ from those of others, so that nobody can look values up.
    pub(crate) fn salt(&self) -> &[u8] {
        &self.salt
    }
}

fn note(connection: &mut Connection, steps: &[(&Digest, String)]) -> rusqlite::Result<()> {
    let now = whelk_engine::events::now();
    let transaction = connection.transaction()?;
    for (place, text) in steps {
        let insert = "INSERT OR REPLACE INTO ingredients VALUES (?1, ?2, ?3)";
        transaction.execute(insert, params![place.as_bytes().as_slice(), now, text])?;
    }
    let trim = "DELETE FROM ingredients WHERE place IN (
        SELECT place FROM (
            SELECT place,
                ROW_NUMBER() OVER newest AS number,
                SUM(octet_length(text)) OVER newest AS bytes
            FROM ingredients WINDOW newest AS (ORDER BY at DESC, place ROWS UNBOUNDED PRECEDING)
        ) WHERE number > ?1 OR bytes > ?2
    )";
    transaction.execute(trim, [MAX, MAX_BYTES])?;
    transaction.commit()
}

/// Returns the salt of a database, which gets one if it has none.
pub(super) fn salt(connection: &Connection) -> rusqlite::Result<Vec<u8>> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS salt (value BLOB NOT NULL);
        INSERT INTO salt SELECT randomblob(32) WHERE NOT EXISTS (SELECT 1 FROM salt);",
    )?;
    connection.query_row("SELECT value FROM salt", [], |row| row.get(0))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_image::Store;
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn what_is_noted_is_bounded_and_forgotten() {
        let root = Scratch::temporary("build-ingredients").unwrap();
        let store = Store::open(root.path()).unwrap();
        let cache = Cache::open(root.path(), &store).unwrap();
        let place = |number: u32| Digest::of(&number.to_le_bytes());
        let step: Ingredients = serde_json::from_str(
            r#"{"instruction": "RUN x", "operation": "", "variables": {}, "inputs": []}"#,
        )
        .unwrap();
        let steps: Vec<_> = (0..3000)
            .map(|number| (place(number), step.clone()))
            .collect();
        cache.note(&steps).unwrap();
        let count = || -> (i64, i64) {
            let state = cache.state.lock().ignore_poison();
            let select = "SELECT COUNT(*), COALESCE(SUM(length(text)), 0) FROM ingredients";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            state.connection.query_row(select, [], read).unwrap()
        };
        assert_eq!(count().0, MAX);
        // Large ones push the oldest out.
        let state = &cache.state;
        let large = "x".repeat(60 << 10);
        let texts: Vec<Digest> = (5000..5400).map(place).collect();
        let texts: Vec<_> = texts.iter().map(|place| (place, large.clone())).collect();
        note(&mut state.lock().ignore_poison().connection, &texts).unwrap();
        let (kept, bytes) = count();
        assert!(bytes <= MAX_BYTES && kept < 400, "{kept} {bytes}");
        cache.note(&[(place(1), step.clone())]).unwrap();
        assert_eq!(cache.ingredients(&place(1)), Some(step));
        cache.forget_ingredients().unwrap();
        assert_eq!((count().0, cache.ingredients(&place(1))), (0, None));
        // The salt stays the same.
        let salt = cache.salt().to_vec();
        assert_eq!(salt.len(), 32);
        drop(cache);
        assert_eq!(Cache::open(root.path(), &store).unwrap().salt(), salt);
    }
}
