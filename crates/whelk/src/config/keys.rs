//! Keys of objects within the file. Go reads them whatever their case is, so Docker accepts `{"builder": {"GC": …}}`. Those of
//! the file itself have to be written as they are, with Docker, too.

use serde_json::{Map, Value};

/// Keys of the file; the number of levels below each that have names in place of keys; and the keys below.
const NESTED: &[(&str, usize, &[&str])] = &[
    (
        "builder",
        0,
        &[
            "gc",
            "enabled",
            "policy",
            "defaultKeepStorage",
            "defaultReservedSpace",
            "defaultMaxUsedSpace",
            "defaultMinFreeSpace",
            "all",
            "filter",
            "keepDuration",
            "keepStorage",
            "reservedSpace",
            "maxUsedSpace",
            "minFreeSpace",
            "entitlements",
            "network-host",
            "security-insecure",
            "device",
        ],
    ),
    ("default-address-pools", 0, &["base", "size"]),
    ("default-ulimits", 1, &["Name", "Soft", "Hard"]),
    (
        "runtimes",
        1,
        &["path", "runtimeArgs", "args", "runtimeType"],
    ),
];

/// Gives the keys within the members of a file the case in which they are read.
pub(super) fn normalize(members: &mut Map<String, Value>) {
    for (key, names, known) in NESTED {
        if let Some(value) = members.get_mut(*key) {
            rename(value, *names, known);
        }
    }
}

/// Renames the keys of a value, below so many levels of names.
fn rename(value: &mut Value, names: usize, known: &[&str]) {
    match value {
        Value::Array(items) => {
            for item in items {
                rename(item, names, known);
            }
        }
        Value::Object(members) => {
            for member in members.values_mut() {
                rename(member, names.saturating_sub(1), known);
            }
            if names > 0 {
                return;
            }
            let written: Vec<String> = members.keys().cloned().collect();
            for key in written {
                let found = known.iter().find(|known| known.eq_ignore_ascii_case(&key));
                // One that is there twice stays, and is refused.
                if let Some(&found) = found
                    && !members.contains_key(found)
                    && let Some(member) = members.remove(&key)
                {
                    members.insert(found.to_owned(), member);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_within_objects_have_any_case() {
        let given = json!({
            "Builder": {"GC": {}},
            "builder": {"GC": {"Enabled": true, "policy": [{"KEEPSTORAGE": "1GB", "Filter": ["Type==x"]}]},
                "Entitlements": {"Network-Host": false, "other": 1}},
            "runtimes": {"Path": {"Path": "/x", "RuntimeArgs": ["Args"]}},
            "default-ulimits": {"NAME": {"name": "NAME", "SOFT": 1, "Soft": 2}},
            "default-address-pools": [{"Base": "10.0.0.0/8", "size": 16}],
            "labels": ["Path"],
        });
        let expected = json!({
            "Builder": {"GC": {}},
            "builder": {"gc": {"enabled": true, "policy": [{"keepStorage": "1GB", "filter": ["Type==x"]}]},
                "entitlements": {"network-host": false, "other": 1}},
            "runtimes": {"Path": {"path": "/x", "runtimeArgs": ["Args"]}},
            "default-ulimits": {"NAME": {"Name": "NAME", "SOFT": 1, "Soft": 2}},
            "default-address-pools": [{"base": "10.0.0.0/8", "size": 16}],
            "labels": ["Path"],
        });
        let mut members = given.as_object().cloned().unwrap_or_default();
        normalize(&mut members);
        assert_eq!(Value::Object(members), expected);
    }
}
