//! Writes a set as Docker does, as a map to empty objects.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};

#[derive(Serialize)]
struct Empty {}

pub(super) fn serialize<S: Serializer>(
    set: &BTreeSet<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(set.iter().map(|key| (key, Empty {})))
}

/// Earlier engines have written any values.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeSet<String>, D::Error> {
    optional::deserialize(deserializer).map(Option::unwrap_or_default)
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
