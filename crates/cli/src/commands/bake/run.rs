//! Builds targets, all at the same time and with one display.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use whelk_bake::{Group, Resolved, Target};
use whelk_buildkit::pb::control::SolveResponse;

use super::remote::Remote;
use super::{BakeArgs, Called, inputs, target};
use crate::client::Client;
use crate::commands::USAGE;
use crate::commands::build::display::{Display, Mode};
use crate::commands::build::{
    Asked, KnownAgents, ONE_STDOUT, Prepared, Signals, Unsolved, check_file, connect,
    failure_of_target, metadata, print_answer, solve_all,
};
use crate::commands::builder::history::provenance;
use crate::output::print_line;
use crate::terminal::harmless;
use crate::{Failure, Outcome, plain};

/// Builds the targets, or asks about them.
pub(super) async fn run(
    client: &Client,
    args: &BakeArgs,
    resolved: &Resolved,
    remote: Option<&Remote>,
    called: Option<Called>,
) -> Outcome {
    // From here on, a signal ends this command in order.
    let mut signals = Signals::new()?;
    let mode = Mode::new(&args.progress, false)?;
    check_file(&args.metadata_file)?;
    let mut known = KnownAgents::default();
    let mut builds: BTreeMap<&str, Prepared> = BTreeMap::new();
    for (name, target) in &resolved.targets {
        let named = |failure: Failure| Failure {
            text: format!("target {name}: {}", failure.text),
            // The value is that of a file, and none of this command's flags.
            code: if failure.code == USAGE {
                1
            } else {
                failure.code
            },
            ..failure
        };
        let mut own = target::build(target, remote)?;
        own.debug |= args.debug;
        let prepared = Prepared::new(client, own, &mut signals, &mut known).await;
        let mut prepared = prepared.map_err(named)?;
        if let Some(remote) = remote {
            remote.put(target, &mut prepared.request).map_err(named)?;
        }
        builds.insert(name, prepared);
    }
    check_stdout(&builds)?;
    share_contexts(&mut builds);
    let started = async {
        let channel = connect(client).await?;
        for (name, build) in &mut builds {
            let begun = build.begin(client, &channel).await;
            begun.map_err(|failure| Failure {
                text: format!("target {name}: {}", failure.text),
                ..failure
            })?;
        }
        Ok(channel)
    };
    let channel = signals.or_stopped(started).await?;
    let mut definitions = BTreeMap::new();
    for name in inputs::order(&resolved.targets) {
        let (Some(build), Some(target)) =
            (builds.get_mut(name.as_str()), resolved.targets.get(&name))
        else {
            continue;
        };
        inputs::put(target, &definitions, &mut build.request)?;
        // A definition is asked for also if the target's own build is a question.
        let found = signals
            .or_stopped(inputs::definition(&channel, &build.as_build()))
            .await?;
        let found = found.map_err(|status| failure_of_target(&name, &status))?;
        definitions.insert(name, found);
    }
    for (name, build) in &mut builds {
        if let Some(target) = resolved.targets.get(*name) {
            inputs::put(target, &definitions, &mut build.request)?;
        }
    }
    let display = Display::new(mode, client.context(), args.debug || client.debug());
    let is_single = builds.len() == 1;
    let asked = builds.iter().map(|(name, build)| Asked {
        prefix: if is_single { "" } else { name },
        request: &build.request,
    });
    let asked: Vec<Asked<'_>> = asked.collect();
    let answers = match solve_all(&channel, &asked, display, &mut signals).await {
        Ok(answers) => answers,
        Err((_, Unsolved::Stopped(failure))) => return Err(failure),
        Err((number, Unsolved::Failed(status))) => {
            let name = builds.keys().nth(number).copied().unwrap_or_default();
            return Err(failure_of_target(name, &status));
        }
    };
    let answers: BTreeMap<&str, &SolveResponse> = builds.keys().copied().zip(&answers).collect();
    for (name, build) in &builds {
        let (Some(answer), None) = (answers.get(name), build.call) else {
            continue;
        };
        let done = async { Ok(build.end(client, answer, mode == Mode::Quiet).await) };
        signals.or_stopped(done).await?.map_err(|failure| Failure {
            text: format!("target {name}: {}", failure.text),
            ..failure
        })?;
    }
    if !args.metadata_file.is_empty() {
        write_metadata(client, &args.metadata_file, &builds, &answers).await?;
    }
    tell(resolved, &builds, &answers, called)
}

/// Has targets with one directory as their context receive it once: from the session of the first one.
fn share_contexts(builds: &mut BTreeMap<&str, Prepared>) {
    let mut sessions: BTreeMap<PathBuf, String> = BTreeMap::new();
    for build in builds.values_mut() {
        let Some(context) = build.context().map(Path::to_owned) else {
            continue;
        };
        let own = &build.request.session;
        let session = sessions.entry(context).or_insert_with(|| own.clone());
        if *session != *own {
            let name = "local-sessionid:context".to_owned();
            build.request.frontend_attrs.insert(name, session.clone());
        }
    }
}

/// Refuses targets whose archives would be mixed, with each other or with the answers of questions.
fn check_stdout(builds: &BTreeMap<&str, Prepared>) -> Outcome<()> {
    let writing = builds.iter().filter_map(|(name, build)| {
        let is_archive = build.writes_to_stdout();
        (is_archive || build.call.is_some()).then_some((*name, is_archive))
    });
    let writing: Vec<(&str, bool)> = writing.collect();
    match mixed(&writing) {
        Some((archive, other)) => Err(Failure::new(format!(
            "targets {archive} and {other}: {ONE_STDOUT}"
        ))),
        None => Ok(()),
    }
}

/// Returns a target that writes an archive, and another one. The targets are those that write to the standard output, with
/// whether that is an archive.
fn mixed<'a>(writing: &[(&'a str, bool)]) -> Option<(&'a str, &'a str)> {
    let (archive, _) = *writing.iter().find(|(_, is_archive)| *is_archive)?;
    let (other, _) = *writing.iter().find(|(name, _)| *name != archive)?;
    Some((archive, other))
}

async fn write_metadata(
    client: &Client,
    path: &str,
    builds: &BTreeMap<&str, Prepared>,
    answers: &BTreeMap<&str, &SolveResponse>,
) -> Outcome<()> {
    let mut all = BTreeMap::new();
    for (name, build) in builds {
        let Some(answer) = answers.get(name) else {
            continue;
        };
        let id = &build.request.r#ref;
        let mut values = metadata(client.context(), id, answer);
        if build.call.is_none() {
            values.extend(provenance::entries(client, id).await?);
        }
        all.insert(*name, values);
    }
    let text = serde_json::to_string_pretty(&all)
        .map_err(|error| Failure::new(format!("encode the metadata: {error}")))?;
    std::fs::write(path, text)
        .map_err(|error| Failure::new(format!("write {path}: {}", plain(&error))))
}

/// What is printed of a target with `--call KIND,format=json`.
#[derive(Serialize)]
struct Told<'a> {
    build: &'a Target,
    #[serde(flatten)]
    answer: BTreeMap<&'a str, Value>,
}

#[derive(Serialize)]
struct AllTold<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    group: &'a BTreeMap<String, Group>,
    target: BTreeMap<&'a str, Told<'a>>,
}

/// Prints the answers of targets that were asked about.
fn tell(
    resolved: &Resolved,
    builds: &BTreeMap<&str, Prepared>,
    answers: &BTreeMap<&str, &SolveResponse>,
    called: Option<Called>,
) -> Outcome {
    let mut code = 0;
    let is_json = called.as_ref().is_some_and(|called| called.is_json);
    let ignores_status = called.as_ref().is_some_and(|called| called.ignores_status);
    let mut all = AllTold {
        group: &resolved.groups,
        target: BTreeMap::new(),
    };
    let mut is_first = true;
    for (name, build) in builds {
        let (Some((call, format)), Some(answer)) = (build.call, answers.get(name)) else {
            continue;
        };
        let Some(target) = resolved.targets.get(*name) else {
            continue;
        };
        if is_json {
            let own = status(answer);
            let (answer, has_failed) = answer_of(answer);
            match (has_failed, code) {
                (true, _) => code = 1,
                (false, 0) if !ignores_status => code = own,
                _ => {}
            }
            let kind = match called.as_ref().map(|called| called.name.as_str()) {
                Some("outline") => "outline",
                Some("targets") => "targets",
                _ => "check",
            };
            let answer = [(kind, answer)].into();
            all.target.insert(
                name,
                Told {
                    build: target,
                    answer,
                },
            );
            continue;
        }
        if !is_first {
            print_line!("")?;
        }
        is_first = false;
        print_line!("{name}")?;
        if !target.description.is_empty() {
            print_line!("{}", harmless(&target.description))?;
        }
        print_line!("")?;
        match print_answer(answer, call, format) {
            Ok(own) if code == 0 && !ignores_status => code = own,
            Ok(_) => {}
            Err(failure) if failure.is_unwritten => return Err(failure),
            Err(failure) => {
                let text = failure.text.trim_start_matches("ERROR: ");
                print_line!("error: {}", harmless(text))?;
                code = 1;
            }
        }
    }
    if is_json {
        print_line!("{}", super::printed(&all)?)?;
    }
    Ok(code)
}

/// Returns the exit code that an answer asks for.
fn status(answer: &SolveResponse) -> u8 {
    let code = answer.exporter_response.get("result.statuscode");
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// Returns an answer, with its error under the name that Docker's bake has for it, and whether there is one.
fn answer_of(answer: &SolveResponse) -> (Value, bool) {
    let text = answer.exporter_response.get("result.json");
    let value = text.and_then(|text| serde_json::from_str(text).ok());
    let mut value: Value = value.unwrap_or_default();
    let message = value.pointer("/buildError/message").cloned();
    if let (Some(message), Value::Object(members)) = (&message, &mut value) {
        members.insert("error".into(), message.clone());
    }
    (value, message.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_not_mixed() {
        assert_eq!(mixed(&[("a", true)]), None);
        assert_eq!(mixed(&[("a", false), ("b", false)]), None);
        assert_eq!(mixed(&[("a", true), ("b", true)]), Some(("a", "b")));
        assert_eq!(mixed(&[("a", false), ("b", true)]), Some(("b", "a")));
    }

    #[test]
    fn errors_of_answers_are_named() {
        let answer = |json: &str, code: &str| {
            let mut answer = SolveResponse::default();
            let entries = [("result.json", json), ("result.statuscode", code)];
            let entries = entries.map(|(key, value)| (key.to_owned(), value.to_owned()));
            answer.exporter_response.extend(entries);
            answer
        };
        let failed = answer(r#"{"buildError":{"message":"no"}}"#, "1");
        let (value, has_failed) = answer_of(&failed);
        assert_eq!(value.get("error"), Some(&"no".into()));
        assert!(has_failed && status(&failed) == 1);
        let fine = answer(r#"{"warnings":null}"#, "");
        assert_eq!((answer_of(&fine).1, status(&fine)), (false, 0));
        assert_eq!(answer_of(&answer("", "")), (Value::Null, false));
    }
}
