//! Shell completion: `completion SHELL` prints a script that calls `__complete LINE`, which prints
//! the possible completions:
//!
//! ```text
//! VALUE<tab>DESCRIPTION     a word that can complete the line
//! :files                    file names can complete the line as well
//! ```
//! Object names are requested from the engine that the command line refers to, if it answers in
//! time; no engine is started.

use std::time::Duration;

use clap::{Arg, Command, Parser};
use whelk_api_types::{ContainerSummary, ImageSummary, NetworkInspect, VolumeListResponse};
use whelk_text::words;

use super::usage;
use crate::client::Client;
use crate::context::{Context, ContextStore, DEFAULT};
use crate::endpoint::{Endpoint, RootFlags};
use crate::flags::{self, NextWord, flags_of};
use crate::output::print;
use crate::{Failure, Outcome};

/// How long to wait for the engine's answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints the completion script for a shell.
pub(super) fn script(shell: &str) -> Outcome {
    let script = match shell {
        "bash" => include_str!("whelk.bash"),
        "zsh" => include_str!("whelk.zsh"),
        "fish" => include_str!("whelk.fish"),
        other => {
            return Err(Failure::new(format!(
                "whelk: completion: unknown shell {other:?}: must be bash, zsh or fish"
            )));
        }
    };
    print(script).map(|()| 0)
}

/// The kind of word that can be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Nothing,
    Words(&'static [&'static str]),
    /// Containers in one of these states (space-separated), or all if empty.
    Containers(&'static str),
    Images,
    Networks,
    Volumes,
    /// Volume names or paths.
    VolumesAndFiles,
    /// Objects of any kind.
    Objects,
    Contexts,
    Variables,
    Files,
}

/// A word and its description.
type Candidate = (String, String);

#[derive(Debug, Parser)]
struct Root {
    #[command(flatten)]
    flags: RootFlags,
}

/// Prints the completions for the end of a command line.
pub(super) fn complete(line: &str) -> Outcome {
    let (words, typed) = words::split(line);
    let tree = usage::tree();
    let Some(place) = words
        .get(1..)
        .and_then(|words| flags::next_word(&tree, words))
    else {
        return Ok(0);
    };
    let (offer, prefix) = offered(&place, &typed);
    let mut candidates = match offer {
        None => names(&place, &typed),
        Some(offer) => {
            let root = Root::try_parse_from(
                std::iter::once("whelk".to_owned()).chain(place.root_flags.iter().cloned()),
            );
            from_engine(offer, root.ok().map(|root| root.flags).unwrap_or_default())
        }
    };
    let files = matches!(offer, Some(Offer::Files | Offer::VolumesAndFiles));
    let wanted = typed.strip_prefix(&prefix).unwrap_or(&typed);
    candidates.retain(|(word, _)| word.starts_with(wanted) && !place.arguments.contains(word));
    candidates.sort();
    candidates.dedup_by(|one, other| one.0 == other.0);
    let shown = unbroken(&typed, &prefix);
    let mut text = String::new();
    for (word, description) in candidates {
        let word = format!("{prefix}{word}");
        let word = word.get(shown..).unwrap_or(&word);
        text += &if description.is_empty() {
            format!("{word}\n")
        } else {
            format!("{word}\t{description}\n")
        };
    }
    if files {
        text += ":files\n";
    }
    print(&text).map(|()| 0)
}

/// Returns the length of the prefix of the typed word that bash keeps when it inserts a completion:
/// everything up to the last character in `COMP_WORDBREAKS`.
fn unbroken(typed: &str, prefix: &str) -> usize {
    let breaks = std::env::var("WHELK_WORDBREAKS").unwrap_or_default();
    let end = typed
        .rfind(|letter: char| matches!(letter, ':' | '=') && breaks.contains(letter))
        .map_or(0, |at| at + 1);
    if typed.starts_with(prefix) { end } else { 0 }
}

/// Returns what can be completed at a place, and the prefix of the typed word that precedes it
/// (`--flag=`). `None` stands for names of commands and flags.
fn offered(place: &NextWord, typed: &str) -> (Option<Offer>, String) {
    if let Some(argument) = place.value_of {
        return (Some(value_of(argument)), String::new());
    }
    if typed.starts_with('-') && !place.closed {
        return match typed.split_once('=') {
            Some((flag, _)) => {
                let argument = flags_of(place.command)
                    .find(|argument| argument.get_long() == flag.strip_prefix("--"));
                (
                    Some(argument.map_or(Offer::Nothing, value_of)),
                    format!("{flag}="),
                )
            }
            None => (None, String::new()),
        };
    }
    if place.command.has_subcommands() {
        return (None, String::new());
    }
    let path: Vec<&str> = place.path.iter().map(String::as_str).collect();
    (
        Some(argument_of(&path, place.arguments.len())),
        String::new(),
    )
}

/// Returns the subcommands or flags that can be completed at a place.
fn names(place: &NextWord, typed: &str) -> Vec<Candidate> {
    let about =
        |text: Option<&clap::builder::StyledStr>| text.map(ToString::to_string).unwrap_or_default();
    if !typed.starts_with('-') {
        let shown = place
            .command
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        return shown
            .map(|command: &Command| (command.get_name().to_owned(), about(command.get_about())))
            .collect();
    }
    let shown = flags_of(place.command).filter(|flag| !flag.is_hide_set());
    let flags = shown
        .filter_map(|flag: &Arg| Some((format!("--{}", flag.get_long()?), about(flag.get_help()))));
    flags
        .chain([("--help".to_owned(), "Print help".to_owned())])
        .collect()
}

/// Returns what a flag's value can be completed with.
fn value_of(argument: &Arg) -> Offer {
    match argument.get_long().unwrap_or_default() {
        "attach" => Offer::Words(&["STDERR", "STDIN", "STDOUT"]),
        "cap-add" | "cap-drop" => Offer::Words(&[
            "ALL",
            "CHOWN",
            "DAC_OVERRIDE",
            "IPC_LOCK",
            "KILL",
            "MKNOD",
            "NET_ADMIN",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SETGID",
            "SETUID",
            "SYS_ADMIN",
            "SYS_CHROOT",
            "SYS_NICE",
            "SYS_PTRACE",
            "SYS_RESOURCE",
            "SYS_TIME",
        ]),
        "cgroupns" => Offer::Words(&["host", "private"]),
        "context" | "from" => Offer::Contexts,
        "driver" => Offer::Words(&["bridge", "ipvlan", "macvlan"]),
        "env" => Offer::Variables,
        "ipc" => Offer::Words(&["host", "none", "private", "shareable"]),
        "log-driver" => Offer::Words(&[
            "fluentd",
            "gelf",
            "journald",
            "json-file",
            "local",
            "none",
            "syslog",
        ]),
        "log-level" => Offer::Words(&["debug", "error", "fatal", "info", "warn"]),
        "link" | "volumes-from" => Offer::Containers(""),
        "network" => Offer::Networks,
        "on-error" => Offer::Words(&["shell"]),
        "pid" | "userns" | "uts" => Offer::Words(&["host"]),
        "progress" => Offer::Words(&["auto", "plain", "quiet", "rawjson", "tty"]),
        "pull" => Offer::Words(&["always", "missing", "never"]),
        "restart" => Offer::Words(&["always", "no", "on-failure", "unless-stopped"]),
        "signal" | "stop-signal" => Offer::Words(&[
            "SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2",
        ]),
        "type" => Offer::Words(&["container", "image", "network", "volume"]),
        "volume" => Offer::VolumesAndFiles,
        "cidfile" | "config" | "device" | "env-file" | "file" | "iidfile" | "input"
        | "label-file" | "metadata-file" | "output" => Offer::Files,
        _ => Offer::Nothing,
    }
}

/// Returns what a command's positional argument can be completed with.
fn argument_of(path: &[&str], index: usize) -> Offer {
    const UP: &str = "running paused restarting";
    match (path, index) {
        (["context", "inspect" | "rm"], _) | (["context", "export" | "update" | "use"], 0) => {
            Offer::Contexts
        }
        (["context", "import" | "export"], 1) => Offer::Files,
        (["context", ..], _) => Offer::Nothing,
        (["network", "connect" | "disconnect"], 1) => Offer::Containers(""),
        (["network", "connect" | "disconnect"], 0) | (["network", "inspect" | "rm"], _) => {
            Offer::Networks
        }
        (["volume", "inspect" | "rm"], _)
        | (
            [
                "volume",
                "clone" | "export" | "import" | "snapshot" | "update",
            ],
            0,
        ) => Offer::Volumes,
        (["volume", "import"], 1) | (["man"], _) => Offer::Files,
        (["inspect"], _) => Offer::Objects,
        (["completion"], 0) => Offer::Words(&["bash", "fish", "zsh"]),
        (["image", "inspect" | "rm"] | [.., "rmi" | "save"], _)
        | ([.., "history" | "images" | "push" | "tag"] | ["image", "ls"], 0) => Offer::Images,
        ([.., "import"], 0) => Offer::Files,
        (["run" | "create"] | ["container", "run" | "create"], 0) => Offer::Images,
        ([.., "start"], _) => Offer::Containers("created exited"),
        ([.., "stop" | "kill" | "pause" | "stats"], _)
        | ([.., "attach" | "exec" | "port" | "top"], 0) => Offer::Containers(UP),
        ([.., "unpause"], _) => Offer::Containers("paused"),
        (["container", "inspect"] | [.., "restart" | "rm" | "update" | "wait"], _)
        | ([.., "commit" | "diff" | "export" | "logs" | "rename"], 0) => Offer::Containers(""),
        ([.., "cp"], _) | ([.., "build"], 0) | (["builder", "cache", "import"], 1) => Offer::Files,
        _ => Offer::Nothing,
    }
}

fn from_engine(offer: Offer, flags: RootFlags) -> Vec<Candidate> {
    let word = |word: &&str| ((*word).to_owned(), String::new());
    match offer {
        Offer::Nothing | Offer::Files => return Vec::new(),
        Offer::Words(words) => return words.iter().map(word).collect(),
        Offer::Variables => {
            return std::env::vars_os()
                .filter_map(|(name, _)| Some((name.into_string().ok()?, String::new())))
                .collect();
        }
        Offer::Contexts => return contexts(&flags),
        Offer::Containers(_)
        | Offer::Images
        | Offer::Networks
        | Offer::Volumes
        | Offer::VolumesAndFiles
        | Offer::Objects => {}
    }
    let Ok(Endpoint {
        host, tls, context, ..
    }) = flags.endpoint()
    else {
        return Vec::new();
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return Vec::new();
    };
    let mut client = Client::new(host, tls, context, false);
    runtime.block_on(async {
        let all = async {
            client.find_remote_program().await.ok()?;
            Some(objects(&client, offer).await)
        };
        let all = tokio::time::timeout(PATIENCE, all).await;
        all.ok().flatten().unwrap_or_default()
    })
}

/// Returns the contexts with their hosts.
fn contexts(flags: &RootFlags) -> Vec<Candidate> {
    let stored = flags
        .config()
        .map(|config| ContextStore::new(&config).list());
    let stored = stored.and_then(Result::ok).unwrap_or_default().into_iter();
    let candidate = |context: Context| (context.name().to_owned(), context.host().to_owned());
    let default = (DEFAULT.to_owned(), String::new());
    stored.map(candidate).chain([default]).collect()
}

/// Requests the names of the objects that are offered. Those that the engine does not list are left
/// out.
async fn objects(client: &Client, offer: Offer) -> Vec<Candidate> {
    let mut found = Vec::new();
    if let Offer::Containers(_) | Offer::Objects = offer {
        let containers = client.get("/containers/json?all=1").await;
        let containers: Vec<ContainerSummary> = containers.unwrap_or_default();
        let is_offered = |container: &&ContainerSummary| match offer {
            Offer::Containers(states) if !states.is_empty() => {
                states.split(' ').any(|state| container.state == state)
            }
            _ => true,
        };
        found.extend(containers.iter().filter(is_offered).map(|container| {
            let name = container.names.first().map_or("", String::as_str);
            (
                name.trim_start_matches('/').to_owned(),
                format!("{}, {}", container.image, container.status),
            )
        }));
    }
    if let Offer::Images | Offer::Objects = offer {
        let images = client.get("/images/json").await;
        let images: Vec<ImageSummary> = images.unwrap_or_default();
        let names = images.into_iter().flat_map(|image| image.repo_tags);
        found.extend(names.map(|name| (name, "image".to_owned())));
    }
    if let Offer::Networks | Offer::Objects = offer {
        let networks = client.get("/networks").await;
        let networks: Vec<NetworkInspect> = networks.unwrap_or_default();
        let network = |network: NetworkInspect| {
            let about = format!("network, {}", network.driver);
            (network.name, about)
        };
        found.extend(networks.into_iter().map(network));
    }
    if let Offer::Volumes | Offer::VolumesAndFiles | Offer::Objects = offer {
        let list = client.get("/volumes").await;
        let list: VolumeListResponse = list.unwrap_or_default();
        let volumes = list.volumes.into_iter();
        found.extend(volumes.map(|volume| (volume.name, format!("volume, {}", volume.driver))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_completions_by_place() {
        let tree = usage::tree();
        let offer = |line: &str| {
            let (words, typed) = words::split(line);
            offered(&flags::next_word(&tree, &words[1..]).unwrap(), &typed)
        };
        for (line, expected) in [
            ("whelk ", None),
            ("whelk network ", None),
            ("whelk run --ne", None),
            ("whelk run --network ", Some(Offer::Networks)),
            ("whelk run -it ", Some(Offer::Images)),
            ("whelk run -itv ", Some(Offer::VolumesAndFiles)),
            ("whelk run busybox --ne", Some(Offer::Nothing)),
            (
                "whelk exec -u x ",
                Some(Offer::Containers("running paused restarting")),
            ),
            (
                "whelk -H x container start ",
                Some(Offer::Containers("created exited")),
            ),
            ("whelk network connect a ", Some(Offer::Containers(""))),
            ("whelk volume rm a ", Some(Offer::Volumes)),
            ("whelk context rm a ", Some(Offer::Contexts)),
            ("whelk context import a ", Some(Offer::Files)),
            ("whelk context create ", Some(Offer::Nothing)),
            ("whelk -c ", Some(Offer::Contexts)),
            (
                "whelk --log-level ",
                Some(Offer::Words(&["debug", "error", "fatal", "info", "warn"])),
            ),
        ] {
            assert_eq!(offer(line).0, expected, "{line}");
        }
        assert_eq!(
            offer("whelk run --pull=m"),
            (
                Some(Offer::Words(&["always", "missing", "never"])),
                "--pull=".into()
            )
        );
    }
}
