//! Variables.

use std::collections::HashMap;

/// Variables by name, in the order in which they were last set.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    values: HashMap<String, (u64, String)>,
    sets: u64,
}

impl Environment {
    /// Takes `NAME=value` entries; the last one of a name is used.
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        let mut environment = Self::default();
        for entry in entries {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            environment.set(name, value);
        }
        environment
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(_, value)| value.as_str())
    }

    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.sets += 1;
        self.values.insert(name.into(), (self.sets, value.into()));
    }

    pub fn remove(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// Returns the names, in the order in which they were last set.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<(u64, &str)> = self
            .values
            .iter()
            .map(|(name, (set, _))| (*set, name.as_str()))
            .collect();
        names.sort_unstable();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// Returns `NAME=value` entries, in the order in which the names were last set.
    pub fn entries(&self) -> Vec<String> {
        let entry = |name: &str| format!("{name}={}", self.get(name).unwrap_or_default());
        self.names().into_iter().map(entry).collect()
    }

    /// Returns the number of bytes of all entries.
    pub fn size(&self) -> usize {
        let entries = self.values.iter();
        entries
            .map(|(name, (_, value))| name.len() + value.len() + 1)
            .sum()
    }
}
