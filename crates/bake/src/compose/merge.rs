//! Merges documents and services, which are in their long forms.

use serde_json::Value;

use super::Object;
use super::place::Place;
use crate::error::{Error, Result};

/// Adds a document to earlier ones.
pub(super) fn documents(own: &mut Object, other: Object) -> Result<()> {
    for (key, value) in other {
        match (own.get_mut(&key), value) {
            (Some(Value::Object(own)), Value::Object(other)) if key == "services" => {
                for (name, service) in other {
                    match (own.get_mut(&name), service) {
                        (Some(Value::Object(own)), Value::Object(other)) => {
                            services(&name, own, other)?;
                        }
                        (Some(_), Value::Null) => {}
                        (_, service) => drop(own.insert(name, service)),
                    }
                }
            }
            (Some(own), value) => values(own, value, Place::new(&key))?,
            (None, value) => drop(own.insert(key, value)),
        }
    }
    Ok(())
}

/// Adds a service to one that it extends or overrides.
pub(super) fn services(name: &str, own: &mut Object, other: Object) -> Result<()> {
    for (key, value) in other {
        match (own.get_mut(&key), value) {
            (Some(Value::Object(own)), Value::Object(other)) if key == "build" => {
                builds(name, own, other)?;
            }
            (Some(Value::Object(own)), Value::Object(other)) if key == "environment" => {
                own.extend(other);
            }
            (Some(Value::Array(own)), Value::Array(other)) if key == "env_file" => {
                env_files(own, other);
            }
            (Some(own), value) => {
                let services = Place::new("services");
                values(own, value, services.below(name).below(&key))?;
            }
            (None, value) => drop(own.insert(key, value)),
        }
    }
    Ok(())
}

fn builds(name: &str, own: &mut Object, other: Object) -> Result<()> {
    for (key, value) in other {
        match (own.get_mut(&key), value) {
            // A name without a value replaces one that has one.
            (Some(Value::Object(own)), Value::Object(other))
                if matches!(key.as_str(), "additional_contexts" | "args" | "labels") =>
            {
                own.extend(other);
            }
            (Some(Value::Object(own)), Value::Object(other)) if key == "extra_hosts" => {
                hosts(own, other);
            }
            (Some(own), value) => {
                let services = Place::new("services");
                let service = services.below(name);
                values(own, value, service.below("build").below(&key))?;
            }
            (None, value) => drop(own.insert(key, value)),
        }
    }
    Ok(())
}

/// Adds addresses that are not there.
fn hosts(own: &mut Object, other: Object) {
    for (host, addresses) in other {
        match (own.get_mut(&host), addresses) {
            (Some(Value::Array(own)), Value::Array(other)) => {
                for address in other {
                    if !own.contains(&address) {
                        own.push(address);
                    }
                }
            }
            (_, addresses) => drop(own.insert(host, addresses)),
        }
    }
}

/// Adds files. One that is there already takes its former place.
fn env_files(own: &mut Vec<Value>, other: Vec<Value>) {
    for file in other {
        let path = file.get("path");
        match own.iter_mut().find(|own| own.get("path") == path) {
            Some(own) => *own = file,
            None => own.push(file),
        }
    }
}

/// Merges mappings, appends lists, and replaces other values.
fn values(own: &mut Value, other: Value, place: Place<'_>) -> Result<()> {
    match (own, other) {
        (_, Value::Null) => Ok(()),
        (Value::Object(own), Value::Object(other)) => {
            for (key, value) in other {
                match own.get_mut(&key) {
                    Some(own) => values(own, value, place.below(&key))?,
                    None => drop(own.insert(key, value)),
                }
            }
            Ok(())
        }
        (Value::Array(own), Value::Array(other)) => {
            own.extend(other);
            Ok(())
        }
        (Value::Object(_) | Value::Array(_), _) => {
            Err(Error::new(format!("cannot override {place}")))
        }
        (own, other) => {
            *own = other;
            Ok(())
        }
    }
}

/// Removes what a path leads to.
pub(super) fn remove(from: &mut Object, path: &[String]) {
    match path {
        [] => {}
        [key] => drop(from.shift_remove(key)),
        [key, rest @ ..] => {
            if let Some(Value::Object(inner)) = from.get_mut(key) {
                remove(inner, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn members(value: &Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn later_documents_add_to_earlier_ones() {
        let mut own = members(&json!({"services": {"a": {
            "image": "x",
            "env_file": [{"path": "a"}, {"path": "b"}],
            "build": {
                "args": {"A": "1", "B": "2"},
                "tags": ["a"],
                "extra_hosts": {"h": ["1"]},
                "x-bake": {"tags": ["x"]},
            },
        }}}));
        let other = members(&json!({"services": {
            "a": {
                "image": null,
                "env_file": [{"path": "a", "required": false}],
                "build": {
                    "args": {"A": null, "C": "3"},
                    "tags": ["b"],
                    "extra_hosts": {"h": ["1", "2"]},
                    "x-bake": {"tags": ["y"], "pull": true},
                },
            },
            "b": {"image": "y"},
        }}));
        documents(&mut own, other).unwrap();
        let expected = json!({"services": {
            "a": {
                "image": "x",
                "env_file": [{"path": "a", "required": false}, {"path": "b"}],
                "build": {
                    "args": {"A": null, "B": "2", "C": "3"},
                    "tags": ["a", "b"],
                    "extra_hosts": {"h": ["1", "2"]},
                    "x-bake": {"tags": ["x", "y"], "pull": true},
                },
            },
            "b": {"image": "y"},
        }});
        assert_eq!(Value::Object(own.clone()), expected);
        let path = ["services", "a", "build", "args", "B"].map(str::to_owned);
        remove(&mut own, &path);
        assert_eq!(
            own["services"]["a"]["build"]["args"],
            json!({"A": null, "C": "3"})
        );
        let wrong = members(&json!({"services": {"a": {"build": {"tags": "x"}}}}));
        assert_eq!(
            documents(&mut own, wrong).unwrap_err().text,
            "cannot override services.a.build.tags"
        );
    }
}
