//! Sets, which JSON represents as maps to empty objects.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A set of strings: `{"80/tcp": {}}`.
pub type Set = BTreeMap<String, Empty>;

/// The empty object. Any value is accepted in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Empty {}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self {})
    }
}
