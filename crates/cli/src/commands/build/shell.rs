//! `--on-error=shell`: a shell in the state of a step that has failed.

use clap::{Args as _, Command, FromArgMatches as _};
use whelk_api_types::ImageDeleteResponseItem;
use whelk_buildkit::details::shell_of_failed;

use super::prepared::Prepared;
use super::solve::Signals;
use crate::client::{Client, escape_name};
use crate::commands::container::run::{RunArgs, run};
use crate::output::warn_line;
use crate::{Failure, Outcome, terminal};

/// What is said of a build that has failed in another way.
pub(super) const NO_STATE: &str =
    "\nNo shell is opened: no RUN has failed whose program could be executed";

/// The exit codes of `run` for programs that cannot be executed.
const NOT_EXECUTED: [u8; 2] = [126, 127];

/// Runs the shell of an image in a container, and removes both. Returns the exit code of this command if a signal has ended it.
pub(super) async fn open(
    client: &Client,
    image: &str,
    prepared: &Prepared,
    signals: &mut Signals,
) -> Outcome<Option<u8>> {
    signals.catch_hangup()?;
    let container = shell_of_failed(&prepared.request.r#ref);
    let name = format!("--name={container}");
    let mut words = vec![
        "run",
        "--rm",
        "--interactive",
        "--pull=never",
        // Signals are for this command: a shell that is the first process of its container ignores them.
        "--sig-proxy=false",
        &name,
    ];
    let is_terminal = terminal::stdin_is_terminal() && terminal::stdout_is_terminal();
    if is_terminal {
        words.push("--tty");
    }
    let settings = settings(&prepared.args);
    words.extend(settings.iter().map(String::as_str));
    words.push(image);
    warn_line!(
        "A shell in the state of the failed step, without its secrets and mounts; what is changed here is not kept:"
    );
    let command = RunArgs::augment_args(Command::new("run").disable_help_flag(true));
    let matches = command.try_get_matches_from(words);
    let run_args = matches.and_then(|matches| RunArgs::from_arg_matches(&matches));
    let run_args = run_args.map_err(|error| Failure::new(error.to_string()))?;
    let running = async { Ok(run(client, run_args).await) };
    let ended = signals.or_stopped(running).await;
    let removing = async {
        remove(client, &container, image).await;
        Ok(())
    };
    // A further signal does not wait for an engine that does not answer.
    let removed = signals.or_stopped(removing).await;
    match (ended, removed) {
        // A terminal that is gone may fail to be written to before its signal has come.
        (Err(stopped), _) | (Ok(_), Err(stopped)) => Ok(Some(stopped.code)),
        (Ok(Err(failure)), _) if NOT_EXECUTED.contains(&failure.code) => {
            let text = failure.text.trim_start_matches("whelk: ");
            // It may be of a hostile image.
            warn_line!("No shell is opened: {}", terminal::harmless(text));
            Ok(None)
        }
        // The code of the last command in the shell says nothing.
        (Ok(ran), _) => ran.map(|_| None),
    }
}

/// Removes the container, if it is still there, and its image. What fails is tried again by the engine when the session of the
/// build has ended, so that nothing is said of it.
async fn remove(client: &Client, container: &str, image: &str) {
    let path = format!("/containers/{}?force=1&v=1", escape_name(container));
    let _ = client.delete_no_content(&path).await;
    let path = format!("/images/{}?force=1", escape_name(image));
    let _ = client.delete::<Vec<ImageDeleteResponseItem>>(&path).await;
}

/// Adds a flag with a value that is not empty.
fn add(flags: &mut Vec<String>, flag: &str, value: &str) {
    if !value.is_empty() {
        flags.push(format!("{flag}={value}"));
    }
}

/// Returns the flags of `run` for the settings that the steps of the build had.
fn settings(args: &super::BuildArgs) -> Vec<String> {
    let mut flags = Vec::new();
    if args.network != "default" {
        add(&mut flags, "--network", &args.network);
    }
    for (flag, text) in [
        ("--shm-size", &args.shm_size),
        ("--cgroup-parent", &args.cgroup_parent),
        ("--memory", &args.memory),
        ("--memory-swap", &args.memory_swap),
        ("--cpuset-cpus", &args.cpuset_cpus),
        ("--cpuset-mems", &args.cpuset_mems),
    ] {
        add(&mut flags, flag, text);
    }
    for (flag, number) in [
        ("--cpu-shares", args.cpu_shares),
        ("--cpu-period", args.cpu_period),
        ("--cpu-quota", args.cpu_quota),
    ] {
        if number != 0 {
            flags.push(format!("{flag}={number}"));
        }
    }
    let lists = [("--add-host", &args.add_host), ("--ulimit", &args.ulimit)];
    for (flag, values) in lists {
        flags.extend(values.iter().map(|value| format!("{flag}={value}")));
    }
    flags
}
