//! Paths of documents, relative to the directories of their projects.

use serde_json::Value;

use super::Object;
use super::canonical::scalar;
use crate::paths::{clean, is_remote, join};

/// Resolves the paths of a model that is in its long forms. `directory` is that of its project; empty for the working directory.
pub(super) fn resolve(model: &mut Object, directory: &str, home: &str) {
    let path = |value: &mut Value| {
        if let Some(text) = scalar(value).filter(|text| !text.is_empty()) {
            *value = under(directory, &expanded(&text, home)).into();
        }
    };
    let context = |value: &mut Value| {
        if let Some(text) = scalar(value)
            && !text.contains("://")
            && !text.starts_with("service:")
            && !is_remote(&text)
        {
            path(value);
        }
    };
    let services = model.get_mut("services").and_then(Value::as_object_mut);
    for service in services.into_iter().flat_map(Object::values_mut) {
        if let Some(file) = service.pointer_mut("/extends/file") {
            path(file);
        }
        let files = service.get_mut("env_file").and_then(Value::as_array_mut);
        for file in files.into_iter().flatten() {
            if let Some(file) = file.get_mut("path") {
                path(file);
            }
        }
        let Some(build) = service.get_mut("build").and_then(Value::as_object_mut) else {
            continue;
        };
        if let Some(value) = build.get_mut("context") {
            context(value);
        }
        let contexts = build.get_mut("additional_contexts");
        let contexts = contexts.and_then(Value::as_object_mut);
        contexts
            .into_iter()
            .flat_map(Object::values_mut)
            .for_each(context);
        let agents = build.get_mut("ssh").and_then(Value::as_object_mut);
        agents
            .into_iter()
            .flat_map(Object::values_mut)
            .for_each(path);
    }
    let secrets = model.get_mut("secrets").and_then(Value::as_object_mut);
    for secret in secrets.into_iter().flat_map(Object::values_mut) {
        if let Some(file) = secret.get_mut("file") {
            path(file);
        }
    }
}

/// Returns a path in a directory, which may be empty for the working directory.
pub(super) fn under(directory: &str, path: &str) -> String {
    match directory.is_empty() || path.starts_with('/') {
        true => clean(path),
        false => join(directory, path),
    }
}

/// Returns the directory of a file; empty for the working directory.
pub(super) fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        None => String::new(),
        Some(("", _)) => "/".to_owned(),
        Some((directory, _)) => match clean(directory).as_str() {
            "." => String::new(),
            directory => directory.to_owned(),
        },
    }
}

fn expanded(path: &str, home: &str) -> String {
    match path.strip_prefix('~') {
        Some(rest) if !home.is_empty() => join(home, rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_those_of_the_project() {
        let mut model = json!({
            "services": {"a": {
                "extends": {"file": "b.yaml"},
                "env_file": [{"path": "./e"}],
                "build": {
                    "context": "../x",
                    "additional_contexts": {
                        "a": "./a", "b": "service:b", "c": "docker-image://c", "d": "https://d", "e": "/e",
                    },
                    "ssh": {"default": null, "k": "~/k"},
                },
            }, "n": null},
            "secrets": {"s": {"file": "s"}},
        });
        resolve(model.as_object_mut().unwrap(), "sub", "/home/u");
        let expected = json!({
            "services": {"a": {
                "extends": {"file": "sub/b.yaml"},
                "env_file": [{"path": "sub/e"}],
                "build": {
                    "context": "x",
                    "additional_contexts": {
                        "a": "sub/a", "b": "service:b", "c": "docker-image://c", "d": "https://d", "e": "/e",
                    },
                    "ssh": {"default": null, "k": "/home/u/k"},
                },
            }, "n": null},
            "secrets": {"s": {"file": "sub/s"}},
        });
        assert_eq!(model, expected);
        for (path, expected) in [("a", ""), ("./a", ""), ("/a", "/"), ("../b/a", "../b")] {
            assert_eq!(parent(path), expected, "{path}");
        }
        assert_eq!(under("", "./a"), "a");
        assert_eq!(under("..", "a"), "../a");
    }
}
