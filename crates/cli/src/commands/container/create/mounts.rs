//! Parsers for `--volume` and `--mount`.

use whelk_api_types::{BindOptions, Empty, Mount, Set};

use crate::commands::arguments::key_values;
use crate::format::units::parse_size;
use crate::{Failure, Outcome};

/// Parses `--volume` flags: returns binds and named volumes unchanged, and the paths that get
/// anonymous volumes. What is given twice counts once.
pub(crate) fn parse_volumes(given: &[String]) -> Outcome<(Vec<String>, Set)> {
    let (mut binds, mut anonymous) = (Vec::new(), Set::new());
    for spec in given {
        let wrong =
            |reason: &str| Failure::with_code(125, format!("invalid spec: {spec}: {reason}"));
        // Docker takes so short a text as a path without looking for colons.
        match spec.len() {
            0 => return Err(Failure::with_code(125, "invalid empty volume spec")),
            1 | 2 => {
                anonymous.insert(spec.clone(), Empty {});
                continue;
            }
            _ => {}
        }
        let parts: Vec<&str> = spec.split(':').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(wrong("empty section between colons"));
        }
        match parts.as_slice() {
            [target] => drop(anonymous.insert((*target).to_owned(), Empty {})),
            [source, rest @ ..] if rest.len() <= 2 => {
                // A path that starts with a dot is relative to this process's directory, so it is
                // resolved here.
                let source = if source.starts_with('.') {
                    absolute(source)
                } else {
                    (*source).to_owned()
                };
                let bind = format!("{source}:{}", rest.join(":"));
                if !binds.contains(&bind) {
                    binds.push(bind);
                }
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
pub(crate) fn parse_mount(text: &str) -> Outcome<Mount> {
    let fail = |reason: String| {
        Failure::with_code(
            125,
            format!("invalid argument {text:?} for \"--mount\" flag: {reason}"),
        )
    };
    let mut mount = Mount {
        kind: "volume".into(),
        ..Mount::default()
    };
    let mut has_target = false;
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
        let bind = &mut mount.bind_options;
        let volume = &mut mount.volume_options;
        match key {
            "readonly" | "ro" => mount.read_only = flag()?,
            "bind-nonrecursive" => bind.get_or_insert_default().non_recursive = flag()?,
            "bind-create-src" => bind.get_or_insert_default().create_mountpoint = flag()?,
            "volume-nocopy" => volume.get_or_insert_default().no_copy = flag()?,
            _ if value.is_none() => {
                return Err(fail(format!(
                    "invalid field '{field}' must be a key=value pair"
                )));
            }
            "type" => mount.kind = text.to_lowercase(),
            "source" | "src" if text.starts_with('.') => mount.source = absolute(text),
            "source" | "src" => mount.source = text.to_owned(),
            "target" | "dst" | "destination" => {
                text.clone_into(&mut mount.target);
                has_target = true;
            }
            "consistency" => text.clone_into(&mut mount.consistency),
            "bind-propagation" => text.clone_into(&mut bind.get_or_insert_default().propagation),
            "bind-recursive" => bind_recursive(bind, text).map_err(fail)?,
            "map-user" if text.is_empty() => {
                return Err(fail("map-user requires a value: auto".into()));
            }
            "map-user" => text.clone_into(&mut bind.get_or_insert_default().map_user),
            "image-subpath" => {
                let image = mount.image_options.get_or_insert_default();
                text.clone_into(&mut image.subpath);
            }
            "volume-subpath" => text.clone_into(&mut volume.get_or_insert_default().subpath),
            "volume-driver" => {
                let volume = volume.get_or_insert_default();
                let driver = volume.driver_config.get_or_insert_default();
                text.clone_into(&mut driver.name);
            }
            "volume-label" => {
                let labels = &mut volume.get_or_insert_default().labels;
                labels.extend(key_values(&[text.to_owned()]));
            }
            "volume-opt" => {
                let volume = volume.get_or_insert_default();
                let driver = volume.driver_config.get_or_insert_default();
                driver.options.extend(key_values(&[text.to_owned()]));
            }
            "tmpfs-size" => {
                let size = parse_size(text)
                    .map_err(|_| fail(format!("invalid value for tmpfs-size: {text}")))?;
                mount.tmpfs_options.get_or_insert_default().size_bytes = size;
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(text, 8)
                    .map_err(|_| fail(format!("invalid value for tmpfs-mode: {text}")))?;
                mount.tmpfs_options.get_or_insert_default().mode = mode;
            }
            other => return Err(fail(format!("unexpected key '{other}' in '{field}'"))),
        }
    }
    if !has_target {
        return Err(fail("target is required".into()));
    }
    check_options(&mount).map_err(fail)?;
    Ok(mount)
}

/// Sets the bind option for a value of `bind-recursive`, if it is not the default.
fn bind_recursive(bind: &mut Option<BindOptions>, value: &str) -> Result<(), String> {
    match value {
        "enabled" => {}
        "disabled" => bind.get_or_insert_default().non_recursive = true,
        "writable" => bind.get_or_insert_default().read_only_non_recursive = true,
        "readonly" => bind.get_or_insert_default().read_only_force_recursive = true,
        other => {
            return Err(format!(
                "invalid value for bind-recursive: {other} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
            ));
        }
    }
    Ok(())
}

/// Checks that a mount has no options of another type.
fn check_options(mount: &Mount) -> Result<(), String> {
    let options = [
        ("bind", mount.bind_options.is_some()),
        ("volume", mount.volume_options.is_some()),
        ("image", mount.image_options.is_some()),
        ("tmpfs", mount.tmpfs_options.is_some()),
    ];
    let kind = &mount.kind;
    match options.iter().find(|(name, given)| *given && kind != name) {
        Some((name, _)) => Err(format!(
            "cannot mix '{name}-*' options with mount type '{kind}'"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_mounts() {
        let check = |text: &str, expected: &str| {
            let mount = parse_mount(text).unwrap();
            assert_eq!(serde_json::to_string(&mount).unwrap(), expected, "{text}");
        };
        check(
            "type=bind,src=/a,dst=/b,ro",
            r#"{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true}"#,
        );
        check(
            "type=bind,src=/a,dst=/b,bind-recursive=readonly,map-user=auto",
            r#"{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"ReadOnlyForceRecursive":true,"MapUser":"auto"}}"#,
        );
        check(
            "src=v,dst=/b,volume-nocopy,volume-opt=type=nfs,volume-label=a=b,volume-subpath=x",
            r#"{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"NoCopy":true,"Labels":{"a":"b"},"Subpath":"x","DriverConfig":{"Options":{"type":"nfs"}}}}"#,
        );
        check(
            r#"src=v,dst=/b,volume-opt=type=nfs,"volume-opt=o=addr=10.0.0.1,vers=4","volume-label=a=""b""""#,
            r#"{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"Labels":{"a":"\"b\""},"DriverConfig":{"Options":{"o":"addr=10.0.0.1,vers=4","type":"nfs"}}}}"#,
        );
        check(
            "type=tmpfs,dst=/b,tmpfs-size=1k,tmpfs-mode=1777",
            r#"{"Type":"tmpfs","Target":"/b","TmpfsOptions":{"SizeBytes":1024,"Mode":1023}}"#,
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
    fn parses_volumes() {
        let own = |text: &str| parse_volumes(&[text.to_owned()]);
        let anonymous = own("/a").unwrap().1;
        assert_eq!(anonymous.into_keys().collect::<Vec<_>>(), ["/a"]);
        assert_eq!(own("/a:/b:ro").unwrap().0, ["/a:/b:ro"]);
        let twice = ["v:/a", "w:/b", "v:/a"].map(str::to_owned);
        assert_eq!(parse_volumes(&twice).unwrap().0, ["v:/a", "w:/b"]);
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
