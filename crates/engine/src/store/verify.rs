//! Verifies the store of a running engine.

use whelk_sys::fs;

use super::copies::REST;
use super::{FILE, RecordStore};
use crate::error::Result;
use crate::findings::Findings;

impl RecordStore {
    /// Checks the database.
    pub(crate) fn verify(&self, findings: &mut Findings) {
        let root = self.copies.root();
        match self.quick_check() {
            Ok(problems) => {
                for problem in problems {
                    findings.add_unrepairable(format!(
                        "the engine's store {} is damaged: {problem}; stop the engine, and rebuild the store: whelk system repair --root {}",
                        root.join(FILE).display(),
                        root.display()
                    ));
                }
            }
            Err(error) => findings.add_unrepairable(error.to_string()),
        }
    }

    /// Checks the copy of the records that are not in a container's directory.
    pub(crate) fn check(self: &std::sync::Arc<Self>, findings: &mut Findings) {
        let path = self.copies.root().join(REST);
        if !self.copies.has_rest() {
            let store = self.clone();
            let problem = format!(
                "the copy of the engine's records {} is lost",
                path.display()
            );
            findings.add(problem, move || {
                store.copies.put_rest();
                store.write_copies(true);
                Ok("written again".into())
            });
        }
    }

    /// Returns what SQLite finds wrong with the database. Changes of records wait for it: there is no second
    /// connection, because the engine locks the database.
    fn quick_check(&self) -> Result<Vec<String>> {
        let connection = self.connection()?;
        let mut statement = connection.prepare("PRAGMA quick_check(10)")?;
        let found = statement.query_map([], |row| row.get(0))?;
        let found: Vec<String> = found.collect::<rusqlite::Result<_>>()?;
        Ok(found.into_iter().filter(|text| text != "ok").collect())
    }
}

impl super::copies::Copies {
    /// Returns whether [`REST`] is there and valid.
    fn has_rest(&self) -> bool {
        const MAX_SIZE: u64 = 64 << 20;
        let path = self.root().join(REST);
        let text = fs::read_at_most(&path, MAX_SIZE);
        text.is_ok_and(|text| matches!(super::copies::Rest::parse(&text, &path), Ok(Some(_))))
    }
}
