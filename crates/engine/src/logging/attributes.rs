//! The attributes of each line of a container's log: labels, environment variables and the tag that
//! the options of its driver select. `logs --details` shows them.

use std::collections::BTreeMap;

use regex_lite::Regex;
use serde_json::json;
use whelk_gotemplate::{Mode, Template, Typed, Types};
use whelk_logsend::Identity;

use crate::error::{Error, Result};
use crate::model::ContainerRecord;

/// Returns the attributes of a container's log.
///
/// # Errors
/// Returns an error if a regular expression or the tag's template is invalid.
pub fn attributes(record: &ContainerRecord) -> Result<BTreeMap<String, String>> {
    let mut attributes = selected(record)?;
    let tag = tag(record, "")?;
    if !tag.is_empty() {
        attributes.insert("tag".into(), tag);
    }
    Ok(attributes)
}

/// Returns what messages to a collector say about a container.
///
/// # Errors
/// As [`attributes`].
pub(super) fn identity(record: &ContainerRecord) -> Result<Identity> {
    let info = info(record);
    let text = |method_name: &str| {
        let value = method(&info, method_name, &[], Mode::Values);
        value
            .and_then(std::result::Result::ok)
            .and_then(|value| value.as_text())
            .unwrap_or_default()
    };
    Ok(Identity {
        id: record.id.clone(),
        name: record.name.clone(),
        image_id: record.image.clone(),
        image_name: record.config.image.clone(),
        command: text("Command"),
        created: info.json["ContainerCreated"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        tag: tag(record, "{{.ID}}")?,
        hostname: text("Hostname"),
        epoch: crate::random_names::random_id(),
        attributes: selected(record)?,
    })
}

/// Returns the labels and environment variables that the options select.
fn selected(record: &ContainerRecord) -> Result<BTreeMap<String, String>> {
    let options = &record.host.log_config.options;
    let labels = record.config.labels.iter();
    let labels: BTreeMap<&str, &str> = labels.map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let entries = record.config.env.iter().flatten();
    let env: BTreeMap<&str, &str> = entries.filter_map(|entry| entry.split_once('=')).collect();
    let mut attributes = BTreeMap::new();
    for (known, names, pattern) in [
        (&labels, "labels", "labels-regex"),
        (&env, "env", "env-regex"),
    ] {
        for name in options
            .get(names)
            .into_iter()
            .flat_map(|list| list.split(','))
        {
            if let Some(value) = known.get(name) {
                attributes.insert(name.to_owned(), (*value).to_owned());
            }
        }
        let Some(text) = options.get(pattern).filter(|text| !text.is_empty()) else {
            continue;
        };
        let regex = Regex::new(text)
            .map_err(|error| Error::invalid(format!("error parsing regexp: {error}: `{text}`")))?;
        let found = known.iter().filter(|(name, _)| regex.is_match(name));
        attributes.extend(found.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }
    Ok(attributes)
}

/// Executes the template of the option `tag`, or `default` if there is no such option.
///
/// # Errors
/// Returns the template's error.
fn tag(record: &ContainerRecord, default: &str) -> Result<String> {
    let given = record.host.log_config.options.get("tag");
    let text = given.filter(|text| !text.is_empty());
    let text = text.map_or(default, String::as_str);
    check_length(text.len())?;
    // Most tags are constant.
    if !text.contains("{{") {
        return Ok(text.to_owned());
    }
    let invalid = |error: whelk_gotemplate::Error| Error::invalid(error.to_string());
    let template = Template::named("log-tag", text).map_err(invalid)?;
    let tag = template.execute(&info(record), Mode::Values);
    let tag = tag.map_err(invalid)?;
    check_length(tag.len())?;
    Ok(tag)
}

/// A tag is part of each line that is sent.
fn check_length(length: usize) -> Result<()> {
    const MAX: usize = 4096;
    if length > MAX {
        return Err(Error::invalid(format!(
            "log option tag: {length} bytes: must be {MAX} or less"
        )));
    }
    Ok(())
}

/// What templates know of a container: Go's type `logger.Info`.
fn info(record: &ContainerRecord) -> Typed {
    let config = &record.config;
    let entrypoint = config.entrypoint.iter().flatten();
    let mut command = entrypoint.chain(config.cmd.iter().flatten());
    let created = jiff::Timestamp::from_nanosecond(record.created_at.into()).unwrap_or_default();
    let info = json!({
        "Config": record.host.log_config.options,
        "ContainerID": record.id,
        "ContainerName": format!("/{}", record.name),
        "ContainerEntrypoint": command.next(),
        "ContainerArgs": command.collect::<Vec<_>>(),
        "ContainerImageID": record.image,
        "ContainerImageName": config.image,
        "ContainerCreated": created.to_string(),
        "ContainerEnv": config.env,
        "ContainerLabels": config.labels,
        // Templates written for Docker put it into tags that collectors select by.
        "DaemonName": "docker",
    });
    Typed::new(&TYPES, "*logger.Info", info)
}

static TYPES: Types = Types {
    aliases: &[],
    structs: &[(
        "logger.Info",
        &[
            ("Config", "map[string]string"),
            ("ContainerID", "string"),
            ("ContainerName", "string"),
            ("ContainerEntrypoint", "string"),
            ("ContainerArgs", "[]string"),
            ("ContainerImageID", "string"),
            ("ContainerImageName", "string"),
            ("ContainerCreated", "time.Time"),
            ("ContainerEnv", "[]string"),
            ("ContainerLabels", "map[string]string"),
            ("LogPath", "string"),
            ("DaemonName", "string"),
        ],
    )],
    json_names: &[],
    method,
    string: |_| None,
};

/// Calls a method of `logger.Info`.
fn method(
    value: &Typed,
    name: &str,
    arguments: &[Typed],
    _: Mode,
) -> Option<std::result::Result<Typed, String>> {
    if !matches!(value.ty, "logger.Info" | "*logger.Info") || !arguments.is_empty() {
        return None;
    }
    let text = |field: &str| value.json[field].as_str().unwrap_or_default();
    let short = |text: &str| text.get(..12).unwrap_or(text).to_owned();
    let found = match name {
        "ID" => short(text("ContainerID")),
        "FullID" => text("ContainerID").to_owned(),
        "Name" => text("ContainerName").trim_start_matches('/').to_owned(),
        // With its algorithm, as with Docker.
        "ImageID" => short(text("ContainerImageID")),
        "ImageFullID" => text("ContainerImageID").to_owned(),
        "ImageName" => text("ContainerImageName").to_owned(),
        "Hostname" => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        "Command" => {
            let arguments = value.json["ContainerArgs"].as_array();
            let arguments = arguments.into_iter().flatten();
            let words = arguments.filter_map(|argument| argument.as_str());
            let words: Vec<&str> = std::iter::once(text("ContainerEntrypoint"))
                .chain(words)
                .collect();
            words.join(" ")
        }
        _ => return None,
    };
    Some(Ok(Typed::text(found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Config, HostConfig, LogConfig};

    fn record(options: &[(&str, &str)]) -> ContainerRecord {
        let pairs = |list: &[(&str, &str)]| {
            let owned = list.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
            owned.collect::<BTreeMap<_, _>>()
        };
        ContainerRecord {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            created_at: 0,
            image: "sha256:fedcba9876543210".into(),
            config: Config {
                image: "busybox:1".into(),
                entrypoint: Some(vec!["sh".into(), "-c".into()]),
                cmd: Some(vec!["true".into()]),
                labels: pairs(&[("app", "shop"), ("app.tier", "front"), ("other", "x")]),
                env: Some(vec!["REGION=eu".into(), "EMPTY".into(), "OS=a=b".into()]),
                ..Config::default()
            },
            host: HostConfig {
                log_config: LogConfig {
                    driver: None,
                    options: pairs(options),
                },
                ..HostConfig::default()
            },
            state: Default::default(),
            networks: Default::default(),
            mounts: Vec::new(),
            ports: Vec::new(),
        }
    }

    #[track_caller]
    fn check(options: &[(&str, &str)], expected: &str) {
        let found = attributes(&record(options)).map(|found| {
            let pairs: Vec<String> = found.iter().map(|(k, v)| format!("{k}={v}")).collect();
            pairs.join(",")
        });
        let found = found.unwrap_or_else(|error| error.to_string());
        assert_eq!(found, expected, "{options:?}");
    }

    #[test]
    fn labels_and_variables_are_selected_by_name_and_pattern() {
        check(&[], "");
        check(
            &[("labels", "app,nope"), ("env", "OS,EMPTY")],
            "OS=a=b,app=shop",
        );
        check(&[("labels-regex", "^app")], "app=shop,app.tier=front");
        check(
            &[
                ("env-regex", "G"),
                ("labels", "other"),
                ("labels-regex", ""),
            ],
            "REGION=eu,other=x",
        );
        let refused = attributes(&record(&[("labels-regex", "(")])).unwrap_err();
        assert!(
            refused.to_string().starts_with("error parsing regexp: "),
            "{refused}"
        );
    }

    #[test]
    fn tags_are_templates() {
        check(&[("tag", "plain")], "tag=plain");
        check(
            &[("tag", "{{.Name}}/{{.ID}}/{{.FullID}}")],
            "tag=web/0123456789ab/0123456789abcdef",
        );
        check(
            &[("tag", "{{.ImageName}} {{.ImageID}} {{.ImageFullID}}")],
            "tag=busybox:1 sha256:fedcb sha256:fedcba9876543210",
        );
        check(
            &[("tag", "{{.DaemonName}} {{.Command}} {{.ContainerName}}")],
            "tag=docker sh -c true /web",
        );
        check(
            &[("tag", "{{index .ContainerLabels \"app\" | upper}}")],
            "tag=SHOP",
        );
        check(
            &[("tag", "{{.Nope}}")],
            "template: log-tag:1:2: executing \"log-tag\" at <.Nope>: can't evaluate field Nope in type *logger.Info",
        );
        check(&[("tag", "{{.ID")], "template: log-tag:1: unclosed action");
    }
}
