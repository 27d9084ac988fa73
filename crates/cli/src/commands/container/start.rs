//! The `start` command.

use clap::Args;
use whelk_api_types::ContainerInspectResponse;

use crate::client::{Client, escape_name, query};
use crate::commands::container::run::exit_code;
use crate::commands::container::stream::{
    Ended, Streams, attach_path, follow_size, forward_signals, lost_attached, pump, unless_lost,
};
use crate::commands::container::wait::wait_request;
use crate::commands::each::failures_of;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Restore from this checkpoint
    #[arg(long, default_value = "", hide_default_value = true)]
    checkpoint: String,
    /// Use a custom checkpoint storage directory
    #[arg(long, default_value = "", hide_default_value = true)]
    checkpoint_dir: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn start(client: &Client, args: StartArgs) -> Outcome {
    // Refused by engines without experimental features.
    let checkpoint = query(&[
        ("checkpoint", &args.checkpoint),
        ("checkpoint-dir", &args.checkpoint_dir),
    ]);
    if !checkpoint.is_empty() && args.containers.len() > 1 {
        return Err(Failure::new(
            "you cannot restore multiple containers at once",
        ));
    }
    if !args.attach && !args.interactive {
        let (mut failed, mut unwritten) = (Vec::new(), None);
        for name in &args.containers {
            match client
                .post_no_content(&format!(
                    "/containers/{}/start{checkpoint}",
                    escape_name(name)
                ))
                .await
            {
                Ok(_) => match print_line!("{name}") {
                    Err(failure) if failure.is_closed_pipe() => return Err(failure),
                    printed => unwritten = unwritten.or(printed.err()),
                },
                Err(error) => {
                    warn_line!("{error}");
                    failed.push(name.as_str());
                }
            }
        }
        let mut failures: Vec<String> = unwritten.into_iter().map(|failure| failure.text).collect();
        if !failed.is_empty() {
            failures.push(format!(
                "Error: failed to start containers: {}",
                failed.join(", ")
            ));
        }
        return failures_of(&failures);
    }
    let [name] = args.containers.as_slice() else {
        return Err(Failure::new(
            "you cannot start and attach multiple containers at once",
        ));
    };
    let container: ContainerInspectResponse = client
        .get(&format!("/containers/{}/json", escape_name(name)))
        .await?;
    let id = container.id;
    let tty = container.config.tty;
    let stdin = args.interactive && container.config.open_stdin;
    let connection = client
        .hijack(
            &attach_path(&id, stdin, true, true, &args.detach_keys),
            None,
        )
        .await?;
    let removed = container.host_config.auto_remove;
    let wait = wait_request(client, &id, if removed { "removed" } else { "next-exit" }).await?;
    let signals = (!tty).then(|| forward_signals(client, &id));
    let streams = Streams {
        stdin,
        tty,
        detach_keys: args.detach_keys,
    };
    client
        .post_no_content(&format!("/containers/{id}/start"))
        .await?;
    let size = tty.then(|| follow_size(client, format!("/containers/{id}/resize")));
    let ended = pump(connection, &streams).await;
    for task in [size, signals].into_iter().flatten() {
        task.abort();
    }
    match ended? {
        Ended::Detached => return Ok(0),
        Ended::Lost => return Err(lost_attached(name)),
        Ended::Output => {}
    }
    let status = crate::client::read(wait)
        .await
        .map_err(|error| unless_lost(error, || lost_attached(name)))?;
    Ok(exit_code(&status))
}
