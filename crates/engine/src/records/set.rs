//! Writes a set as Docker does, as a map to empty objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};

#[derive(Serialize)]
struct Empty {}

/// A member, written as the text of a key.
pub(super) struct Key<'a, T>(pub(super) &'a T);

impl<T: Display> Serialize for Key<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

pub(super) fn serialize<T: Display, S: Serializer>(
    set: &BTreeSet<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(set.iter().map(|key| (Key(key), Empty {})))
}

/// Earlier engines have also written other values than empty objects.
pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<BTreeSet<T>, D::Error>
where
    T: FromStr + Ord,
    D: Deserializer<'de>,
{
    let keys = optional::deserialize(deserializer)?.unwrap_or_default();
    // The first engines took members from images without a check, and ignored wrong ones.
    Ok(keys.iter().filter_map(|key| key.parse().ok()).collect())
}

/// A set that may be `null`.
pub(super) mod optional {
    use super::*;

    struct Written<'a>(&'a BTreeSet<String>);

    impl Serialize for Written<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            super::serialize(self.0, serializer)
        }
    }

    pub(in super::super) fn serialize<S: Serializer>(
        set: &Option<BTreeSet<String>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        set.as_ref().map(Written).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<BTreeSet<String>>, D::Error> {
        let found = Option::<BTreeMap<String, IgnoredAny>>::deserialize(deserializer)?;
        Ok(found.map(|set| set.into_keys().collect()))
    }
}
