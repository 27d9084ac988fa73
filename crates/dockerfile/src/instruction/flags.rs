//! The flags of an instruction.

use crate::error::{Error, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// With no value, `true` or `false`.
    Bool,
    /// With a value.
    One,
    /// With a value, any number of times.
    Many,
}

/// The flags of a line by name.
pub(super) struct Flags<'a>(Vec<(&'static str, &'a str)>);

impl<'a> Flags<'a> {
    /// Reads the flags of a line, of which only those in `known` may be there.
    pub fn read(flags: &'a [String], known: &[(&'static str, Kind)]) -> Result<Self> {
        let mut read: Vec<(&'static str, &str)> = Vec::new();
        for flag in flags {
            let (written, value) = flag
                .split_once('=')
                .map_or((flag.as_str(), None), |(name, value)| (name, Some(value)));
            let name = written.strip_prefix("--").unwrap_or(written);
            let Some(&(name, kind)) = known.iter().find(|(known, _)| *known == name) else {
                let error = Error::new(format!("unknown flag: {written}"));
                return Err(error.suggest(name, known.iter().map(|(name, _)| *name), true));
            };
            if kind != Kind::Many && read.iter().any(|(read, _)| *read == name) {
                return Err(Error::new(format!("duplicate flag specified: {written}")));
            }
            let missing = || Error::new(format!("missing a value on flag: {written}"));
            let value = match (kind, value) {
                (Kind::Bool, Some("")) | (Kind::One | Kind::Many, None) => return Err(missing()),
                (Kind::Bool, value) => match value.map(str::to_lowercase).as_deref() {
                    None | Some("true") => "true",
                    Some("false") => "false",
                    Some(_) => {
                        return Err(Error::new(format!(
                            "expecting boolean value for flag {written}, not: {}",
                            value.unwrap_or_default()
                        )));
                    }
                },
                (_, Some(value)) => value,
            };
            read.push((name, value));
        }
        Ok(Self(read))
    }

    /// Returns the value of a flag, or an empty text.
    pub fn get(&self, name: &str) -> &'a str {
        self.values(name).next().unwrap_or_default()
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(known, _)| *known == name);
        named.map(|(_, value)| *value)
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        self.values(name).map(str::to_owned).collect()
    }

    pub fn bool(&self, name: &str) -> Option<bool> {
        self.values(name).next().map(|value| value == "true")
    }
}
