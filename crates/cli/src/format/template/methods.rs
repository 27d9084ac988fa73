//! Methods of Docker's Go types.

use whelk_gotemplate::{Kind, Mode, Typed};

/// Calls a method. The only one with arguments is `.Label "name"`, of table rows and headings.
pub(super) fn call(
    value: &Typed,
    name: &str,
    arguments: &[Typed],
    mode: Mode,
) -> Option<Result<Typed, String>> {
    match (value.kind(), name, arguments) {
        (_, _, []) => method(value, name).map(Ok),
        (Kind::Row, "Label", [label]) => Some(match label.as_text() {
            Some(label) if mode == Mode::Headings => Ok(Typed::text(heading(&label))),
            Some(label) => Ok(Typed::text(
                value.json["Labels"][&label].as_str().unwrap_or_default(),
            )),
            None => Err("expected string".into()),
        }),
        (Kind::Row, "Label", _) => Some(Err(format!(
            "wrong number of args for Label: want 1 got {}",
            arguments.len()
        ))),
        _ => None,
    }
}

/// Returns the heading of a label's column: the last component of its name, with `-` and `_`
/// replaced by spaces.
fn heading(label: &str) -> String {
    label
        .rsplit('.')
        .next()
        .unwrap_or_default()
        .replace(['-', '_'], " ")
}

/// Formats the types that have a `String` method.
pub(super) fn string(value: &Typed) -> Option<String> {
    match value.ty {
        "units.Ulimit" | "*units.Ulimit" if !value.json.is_null() => {
            let ulimit = value.part("units.Ulimit", value.json.clone());
            let number = |name: &str| ulimit.field(name).map_or(0, |field| field.as_int());
            Some(format!(
                "{}={}:{}",
                ulimit.field("Name")?.as_text()?,
                number("Soft"),
                number("Hard")
            ))
        }
        "*registry.NetIPNet" if !value.json.is_null() => value.json.as_str().map(str::to_owned),
        _ => None,
    }
}

/// Evaluates a method without arguments of a named Go type.
fn method(value: &Typed, name: &str) -> Option<Typed> {
    let flag = |holds: bool| Some(Typed::literal("bool", holds));
    let text = value.as_text();
    match (value.ty, name, text.as_deref()) {
        ("nat.Port", "Port", Some(port)) => {
            Some(Typed::text(port.split('/').next().unwrap_or_default()))
        }
        ("nat.Port", "Proto", Some(port)) => Some(Typed::text(
            port.split_once('/').map_or("tcp", |(_, protocol)| protocol),
        )),
        ("nat.Port", "Int", Some(port)) => Some(Typed::literal(
            "int",
            port.split('/').next()?.parse::<i64>().unwrap_or(0),
        )),
        ("container.NetworkMode", "NetworkName", Some(mode)) => {
            Some(Typed::text(if mode.starts_with("container:") {
                "container"
            } else {
                mode
            }))
        }
        ("container.NetworkMode", "IsUserDefined", Some(mode)) => flag(
            !matches!(mode, "default" | "bridge" | "host" | "none")
                && !mode.starts_with("container:"),
        ),
        ("container.NetworkMode", "IsDefault" | "IsBridge", Some(mode)) => {
            flag(mode == name[2..].to_lowercase())
        }
        ("container.CgroupnsMode" | "container.IpcMode", "IsPrivate", Some(mode)) => {
            flag(mode == "private")
        }
        ("container.UTSMode" | "container.UsernsMode", "IsPrivate", Some(mode)) => {
            flag(mode != "host")
        }
        ("container.NetworkMode" | "container.PidMode", "IsPrivate", Some(mode)) => {
            flag(mode != "host" && !mode.starts_with("container:"))
        }
        (ty, "IsHost", Some(mode)) if ty.starts_with("container.") && ty.ends_with("Mode") => {
            flag(mode == "host")
        }
        ("container.NetworkMode" | "container.IpcMode", "IsNone", Some(mode)) => {
            flag(mode == "none")
        }
        ("container.IpcMode", "IsShareable", Some(mode)) => flag(mode == "shareable"),
        (
            "container.NetworkMode" | "container.IpcMode" | "container.PidMode",
            "IsContainer",
            Some(mode),
        ) => flag(mode.starts_with("container:")),
        ("container.RestartPolicy", method, _) => {
            let policy = value.json["Name"].as_str().unwrap_or_default();
            match method {
                "IsNone" => flag(matches!(policy, "" | "no")),
                "IsAlways" => flag(policy == "always"),
                "IsOnFailure" => flag(policy == "on-failure"),
                "IsUnlessStopped" => flag(policy == "unless-stopped"),
                _ => None,
            }
        }
        _ => None,
    }
}
