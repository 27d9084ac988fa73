//! Parsers for `--volume` and `--mount`.

use serde_json::{Map, Value, json};

use crate::commands::arguments::key_values;
use crate::format::units::parse_size;
use crate::{Failure, Outcome};

/// Parses `--volume` flags: returns binds and named volumes unchanged, and the paths that get
/// anonymous volumes.
pub(crate) fn parse_volumes(given: &[String]) -> Outcome<(Vec<String>, Map<String, Value>)> {
    let (mut binds, mut anonymous) = (Vec::new(), Map::new());
    for spec in given {
        let wrong =
            |reason: &str| Failure::with_code(125, format!("invalid spec: {spec}: {reason}"));
        // Docker takes so short a text as a path without looking for colons.
        match spec.len() {
            0 => return Err(Failure::with_code(125, "invalid empty volume spec")),
            1 | 2 => {
                anonymous.insert(spec.clone(), json!({}));
                continue;
            }
            _ => {}
        }
        let parts: Vec<&str> = spec.split(':').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(wrong("empty section between colons"));
        }
        match parts.as_slice() {
            [target] => drop(anonymous.insert((*target).to_owned(), json!({}))),
            [source, rest @ ..] if rest.len() <= 2 => {
                // A path that starts with a dot is relative to this process's directory, so it is
                // resolved here.
                let source = if source.starts_with('.') {
                    absolute(source)
                } else {
                    (*source).to_owned()
                };
                binds.push(format!("{source}:{}", rest.join(":")));
            }
            _ => return Err(wrong("too many colons")),
        }
    }
    Ok((binds, anonymous))
}

fn absolute(path: &str) -> String {
    std::path::absolute(path).map_or_else(
        |_| path.to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}

/// Splits a CSV line into fields: a field that starts with a quote may contain commas, and quotes
/// written twice.
///
/// # Errors
/// Returns the text of Go's CSV reader if quotes are wrong, or if the line is empty.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("EOF".into());
    }
    let wrong = |rest: &str, reason: &str| {
        let column = text.len() - rest.len() + 1;
        Err(format!("parse error on line 1, column {column}: {reason}"))
    };
    const QUOTED: &str = "extraneous or missing \" in quoted-field";
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, behind) = match rest.strip_prefix('"') {
            None => {
                let (field, behind) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
                if let Some(quote) = field.find('"') {
                    return wrong(&rest[quote..], "bare \" in non-quoted-field");
                }
                (field.to_owned(), behind)
            }
            Some(quoted) => {
                let mut quotes = quoted.match_indices('"');
                let Some((end, _)) = quotes.find(|(at, _)| closes(quoted, *at)) else {
                    return wrong("", QUOTED);
                };
                let behind = &quoted[end + 1..];
                if !behind.is_empty() && !behind.starts_with(',') {
                    return wrong(&quoted[end..], QUOTED);
                }
                (quoted[..end].replace("\"\"", "\""), behind)
            }
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None => return Ok(fields),
        }
    }
}

/// Returns whether the quote at `at` terminates a field, i.e. is not one of a doubled pair.
fn closes(text: &str, at: usize) -> bool {
    let before = text[..at]
        .bytes()
        .rev()
        .take_while(|byte| *byte == b'"')
        .count();
    let after = text[at + 1..].starts_with('"');
    before.is_multiple_of(2) && !after
}

/// Parses `type=bind,source=…,target=…,readonly,…`.
pub(crate) fn parse_mount(text: &str) -> Outcome<Value> {
    let fail = |reason: String| {
        Failure::with_code(
            125,
            format!("invalid argument {text:?} for \"--mount\" flag: {reason}"),
        )
    };
    let (mut mount, mut bind, mut volume, mut image, mut tmpfs) =
        (Map::new(), Map::new(), Map::new(), Map::new(), Map::new());
    let (mut labels, mut driver_options) = (Map::new(), Map::new());
    mount.insert("Type".into(), json!("volume"));
    for field in &fields(text).map_err(fail)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        let text = value.unwrap_or_default();
        let key = key.to_lowercase();
        let key = key.as_str();
        let flag = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(fail(format!("invalid value for {key}: {other}"))),
        };
        match key {
            "readonly" | "ro" => drop(mount.insert("ReadOnly".into(), json!(flag()?))),
            "bind-nonrecursive" => drop(bind.insert("NonRecursive".into(), json!(flag()?))),
            "bind-create-src" => drop(bind.insert("CreateMountpoint".into(), json!(flag()?))),
            "volume-nocopy" => drop(volume.insert("NoCopy".into(), json!(flag()?))),
            _ if value.is_none() => {
                return Err(fail(format!(
                    "invalid field '{field}' must be a key=value pair"
                )));
            }
            "type" => drop(mount.insert("Type".into(), json!(text.to_lowercase()))),
            "source" | "src" => {
                mount.insert(
                    "Source".into(),
                    json!(if text.starts_with('.') {
                        absolute(text)
                    } else {
                        text.to_owned()
                    }),
                );
            }
            "target" | "dst" | "destination" => drop(mount.insert("Target".into(), json!(text))),
            "consistency" => drop(mount.insert("Consistency".into(), json!(text))),
            "bind-propagation" => drop(bind.insert("Propagation".into(), json!(text))),
            "bind-recursive" => bind.extend(bind_recursive(text).map_err(fail)?),
            "map-user" if text.is_empty() => {
                return Err(fail("map-user requires a value: auto".into()));
            }
            "map-user" => drop(bind.insert("MapUser".into(), json!(text))),
            "image-subpath" => drop(image.insert("Subpath".into(), json!(text))),
            "volume-subpath" => drop(volume.insert("Subpath".into(), json!(text))),
            "volume-driver" => {
                volume.entry("DriverConfig").or_insert_with(|| json!({}))["Name"] = json!(text)
            }
            "volume-label" => labels.extend(key_values(&[text.to_owned()])),
            "volume-opt" => driver_options.extend(key_values(&[text.to_owned()])),
            "tmpfs-size" => drop(tmpfs.insert(
                "SizeBytes".into(),
                json!(
                    parse_size(text)
                        .map_err(|_| fail(format!("invalid value for tmpfs-size: {text}")))?
                ),
            )),
            "tmpfs-mode" => drop(tmpfs.insert(
                "Mode".into(),
                json!(
                        u32::from_str_radix(text, 8)
                            .map_err(|_| fail(format!("invalid value for tmpfs-mode: {text}")))?
                    ),
            )),
            other => return Err(fail(format!("unexpected key '{other}' in '{field}'"))),
        }
    }
    if !mount.contains_key("Target") {
        return Err(fail("target is required".into()));
    }
    if !labels.is_empty() {
        volume.insert("Labels".into(), Value::Object(labels));
    }
    if !driver_options.is_empty() {
        volume.entry("DriverConfig").or_insert_with(|| json!({}))["Options"] =
            Value::Object(driver_options);
    }
    let options = [
        ("bind", "BindOptions", bind),
        ("volume", "VolumeOptions", volume),
        ("image", "ImageOptions", image),
        ("tmpfs", "TmpfsOptions", tmpfs),
    ];
    with_options(mount, options).map_err(fail)
}

/// Returns the bind option for a value of `bind-recursive`, if it is not the default.
fn bind_recursive(value: &str) -> Result<Option<(String, Value)>, String> {
    let name = match value {
        "enabled" => return Ok(None),
        "disabled" => "NonRecursive",
        "writable" => "ReadOnlyNonRecursive",
        "readonly" => "ReadOnlyForceRecursive",
        other => {
            return Err(format!(
                "invalid value for bind-recursive: {other} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
            ));
        }
    };
    Ok(Some((name.into(), json!(true))))
}

/// Adds the options of the mount's type. Options of another type are an error.
fn with_options(
    mut mount: Map<String, Value>,
    options: [(&str, &str, Map<String, Value>); 4],
) -> Result<Value, String> {
    let kind = mount["Type"].as_str().unwrap_or_default().to_owned();
    for (name, field, options) in options {
        if options.is_empty() {
            continue;
        }
        if kind != name {
            return Err(format!(
                "cannot mix '{name}-*' options with mount type '{kind}'"
            ));
        }
        mount.insert(field.into(), Value::Object(options));
    }
    Ok(Value::Object(mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        assert_eq!(
            parse_mount("type=bind,src=/a,dst=/b,ro").unwrap(),
            json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true})
        );
        assert_eq!(
            parse_mount(
                "src=v,dst=/b,volume-nocopy,volume-opt=type=nfs,volume-label=a=b,volume-subpath=x"
            )
            .unwrap(),
            json!({"Type": "volume", "Source": "v", "Target": "/b", "VolumeOptions": {
                "NoCopy": true, "DriverConfig": {"Options": {"type": "nfs"}}, "Labels": {"a": "b"}, "Subpath": "x"}})
        );
        assert_eq!(
            parse_mount(r#"src=v,dst=/b,volume-opt=type=nfs,"volume-opt=o=addr=10.0.0.1,vers=4","volume-label=a=""b""""#).unwrap(),
            json!({"Type": "volume", "Source": "v", "Target": "/b", "VolumeOptions": {
                "DriverConfig": {"Options": {"type": "nfs", "o": "addr=10.0.0.1,vers=4"}}, "Labels": {"a": "\"b\""}}})
        );
        let text = |text: &str| parse_mount(text).unwrap_err().text;
        for (mount, reason) in [
            ("", "EOF"),
            (
                "src=v,\"dst=/b",
                "parse error on line 1, column 14: extraneous or missing \" in quoted-field",
            ),
            (
                "\"a\"b,dst=/x",
                "parse error on line 1, column 3: extraneous or missing \" in quoted-field",
            ),
            (
                "type=volume,dst=/x,src=\"a",
                "parse error on line 1, column 24: bare \" in non-quoted-field",
            ),
            (
                "type=tmpfs,dst=/x,tmpfs-size=foo",
                "invalid value for tmpfs-size: foo",
            ),
        ] {
            assert_eq!(
                text(mount),
                format!("invalid argument {mount:?} for \"--mount\" flag: {reason}")
            );
        }
        assert!(parse_mount("type=BIND,SRC=/a,Dst=/b").is_ok());
        assert!(text("bogus").ends_with("invalid field 'bogus' must be a key=value pair"));
        assert!(text("type=volume").ends_with("target is required"));
        assert!(
            text("type=volume,dst=/x,bind-propagation=shared")
                .ends_with("cannot mix 'bind-*' options with mount type 'volume'")
        );
    }

    #[test]
    fn volumes() {
        let own = |text: &str| parse_volumes(&[text.to_owned()]);
        assert_eq!(
            own("/a").unwrap().1,
            json!({"/a": {}}).as_object().unwrap().clone()
        );
        assert_eq!(own("/a:/b:ro").unwrap().0, ["/a:/b:ro"]);
        assert!(own("./a:/b").unwrap().0[0].starts_with('/'));
        assert_eq!(
            own("ab:").unwrap_err().text,
            "invalid spec: ab:: empty section between colons"
        );
        assert_eq!(own("").unwrap_err().text, "invalid empty volume spec");
        assert!(own("/:").unwrap().1.contains_key("/:"));
        assert_eq!(
            own("/a:/b:/c:ro").unwrap_err().text,
            "invalid spec: /a:/b:/c:ro: too many colons"
        );
    }
}
