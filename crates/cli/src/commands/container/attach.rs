//! The `attach` command.

use clap::Args;
use whelk_api_types::{ContainerInspectResponse, ContainerWaitResponse};

use super::stream::{
    Ended, Streams, attach_path, follow_size, forward_signals, lost_attached, pump, redraw,
    unless_lost,
};
use crate::client::{Client, escape_name};
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Do not attach STDIN
    #[arg(long)]
    no_stdin: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Proxy all received signals to the process
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    container: String,
}

pub(crate) async fn attach(client: &Client, args: AttachArgs) -> Outcome {
    let name = escape_name(&args.container);
    let container: ContainerInspectResponse =
        client.get(&format!("/containers/{name}/json")).await?;
    if !container.state.running {
        return Err(Failure::new(
            "You cannot attach to a stopped container, start it first",
        ));
    }
    if container.state.paused {
        return Err(Failure::new(
            "You cannot attach to a paused container, unpause it first",
        ));
    }
    let tty = container.config.tty;
    let stdin = !args.no_stdin && container.config.open_stdin;
    if tty && stdin && !terminal::stdin_is_terminal() {
        return Err(Failure::new("the input device is not a TTY"));
    }
    let waiting = {
        let (client, path) = (client.clone(), format!("/containers/{name}/wait"));
        tokio::spawn(async move { client.post::<ContainerWaitResponse>(&path).await })
    };
    let connection = client
        .hijack(
            &attach_path(&args.container, stdin, true, true, &args.detach_keys),
            None,
        )
        .await?;
    if tty {
        redraw(client, &name).await;
    }
    let size = tty.then(|| follow_size(client, format!("/containers/{name}/resize")));
    let signals = (args.sig_proxy && !tty).then(|| forward_signals(client, &name));
    let ended = pump(
        connection,
        &Streams {
            stdin,
            tty,
            detach_keys: args.detach_keys,
        },
    )
    .await;
    for task in [size, signals].into_iter().flatten() {
        task.abort();
    }
    match ended? {
        Ended::Detached => return Err(Failure::new("read escape sequence")),
        Ended::Lost => return Err(lost_attached(&args.container)),
        Ended::Output => {}
    }
    let status = waiting
        .await
        .map_err(|error| Failure::new(error.to_string()))?
        .map_err(|error| unless_lost(error, || lost_attached(&args.container)))?;
    Ok(u8::try_from(status.status_code).unwrap_or(1))
}
