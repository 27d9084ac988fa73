//! The `run` command: creates, attaches, starts, waits.

use clap::Args;
use whelk_api_types::ContainerWaitResponse;

use crate::client::Client;
use crate::commands::container::create::{CreateContainerArgs, make};
use crate::commands::container::stream::{
    Ended, Streams, attach_path, follow_size, forward_signals, lost_attached, pump, unless_lost,
};
use crate::commands::container::wait::wait_request;
use crate::output::print_line;
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Run container in background and print container ID
    #[arg(short, long)]
    detach: bool,
    /// Proxy received signals to the process
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, default_value = "", hide_default_value = true)]
    detach_keys: String,
    #[command(flatten)]
    create: CreateContainerArgs,
}

/// Exit code of `run` if it fails before the container's process runs, or cannot know how it ended.
const NOT_RUN: u8 = 125;

pub(crate) async fn run(client: &Client, args: RunArgs) -> Outcome {
    let create = &args.create;
    if create.rm && create.restart != "no" {
        return Err(not_run(
            "conflicting options: cannot specify both --restart and --rm",
        ));
    }
    if args.detach && !create.attach.is_empty() {
        return Err(Failure::new(
            "conflicting options: cannot specify both --attach and --detach",
        ));
    }
    let attached = |stream: &str| {
        create
            .attach
            .iter()
            .any(|given| given.eq_ignore_ascii_case(stream))
    };
    let stdin =
        !args.detach && create.interactive && (create.attach.is_empty() || attached("stdin"));
    if create.tty && stdin && !terminal::stdin_is_terminal() {
        return Err(Failure::new("the input device is not a TTY"));
    }
    if !args.detach {
        // The engine would find them only when the container is there.
        terminal::detach_keys(&args.detach_keys).map_err(|failure| not_run(&failure.text))?;
    }
    let id = make(client, create, true, Some(args.detach))
        .await
        .map_err(|failure| match failure.code {
            NOT_RUN => failure,
            _ => Failure::with_code(code_of(&failure.text), format!("whelk: {}", failure.text)),
        })?;
    if args.detach {
        // The container exists even if it cannot be started.
        let started = start(client, &id).await;
        print_line!("{id}")?;
        return started.map(|()| 0);
    }
    let (stdout, stderr) = (
        create.attach.is_empty() || attached("stdout"),
        (create.attach.is_empty() || attached("stderr")) && !create.tty,
    );
    let path = attach_path(&id, stdin, stdout, stderr, &args.detach_keys);
    let connection = client
        .hijack(&path, None)
        .await
        .map_err(|error| not_run(&error.to_string()))?;
    // Waiting begins before the start, so that the exit of a short-lived process is not missed.
    let condition = if create.rm { "removed" } else { "next-exit" };
    let wait = wait_request(client, &id, condition)
        .await
        .map_err(|error| not_run(&error.to_string()))?;
    let streams = Streams {
        stdin,
        tty: create.tty,
        detach_keys: args.detach_keys.clone(),
    };
    let signals = (args.sig_proxy && !create.tty).then(|| forward_signals(client, &id));
    let pumping = pump(connection, &streams);
    tokio::pin!(pumping);
    start(client, &id).await?;
    let size = create
        .tty
        .then(|| follow_size(client, format!("/containers/{id}/resize")));
    let ended = pumping.await;
    for task in [size, signals].into_iter().flatten() {
        task.abort();
    }
    let lost = || {
        let name = create.name.as_deref().or_else(|| id.get(..12));
        let failure = lost_attached(name.unwrap_or(&id));
        Failure {
            code: NOT_RUN,
            text: format!("whelk: {}", failure.text),
            ..failure
        }
    };
    match ended? {
        Ended::Detached => return Ok(0),
        Ended::Lost => return Err(lost()),
        Ended::Output => {}
    }
    let status = crate::client::read(wait)
        .await
        .map_err(|error| unless_lost(error, lost))?;
    Ok(exit_code(&status))
}

pub(crate) fn exit_code(status: &ContainerWaitResponse) -> u8 {
    u8::try_from(status.status_code).unwrap_or(NOT_RUN)
}

pub(crate) fn not_run(text: &str) -> Failure {
    Failure::with_code(NOT_RUN, format!("whelk: {text}"))
}

/// Starts a container. If its program cannot be executed, the exit code is the one that shells use.
async fn start(client: &Client, id: &str) -> Outcome<()> {
    let path = format!("/containers/{id}/start");
    let Err(error) = client.post_no_content(&path).await else {
        return Ok(());
    };
    let text = error.to_string();
    Err(Failure::with_code(code_of(&text), format!("whelk: {text}")))
}

/// Returns the exit code that shells use for the cause in an error text.
fn code_of(text: &str) -> u8 {
    if [
        "executable file not found",
        "no such file or directory",
        "system cannot find the file specified",
    ]
    .iter()
    .any(|part| text.contains(part))
    {
        127
    } else if text.contains("permission denied") || text.contains("is a directory") {
        126
    } else {
        NOT_RUN
    }
}
