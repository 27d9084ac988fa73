//! The `exec` command: runs another process in a running container.

use clap::Args;
use whelk_api_types::{ExecConfig, ExecInspectResponse, ExecStartConfig, IdResponse};

use super::create::environment::environment;
use super::stream::{Ended, KEEPS_RUNNING, Streams, follow_size, lost, pump, unless_lost};
use crate::client::{Client, escape_name};
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long)]
    env_file: Vec<String>,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long)]
    workdir: Option<String>,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, default_value = "", hide_default_value = true)]
    detach_keys: String,
    #[arg(required = true, num_args = 2.., value_names = ["CONTAINER", "COMMAND"], trailing_var_arg = true, allow_hyphen_values = true)]
    container_and_command: Vec<String>,
}

pub(crate) async fn exec(client: &Client, args: ExecArgs) -> Outcome {
    let (container, command) = args
        .container_and_command
        .split_first()
        .ok_or_else(|| Failure::new("no container specified"))?;
    if args.tty && args.interactive && !args.detach && !terminal::stdin_is_terminal() {
        return Err(Failure::new("the input device is not a TTY"));
    }
    // Only a flag is a mistake of the command line, not what a file says.
    let environment =
        environment(&args.env, &args.env_file).map_err(|failure| match &failure.text {
            text if text.starts_with("invalid argument ") => failure,
            _ => Failure { code: 1, ..failure },
        })?;
    let body = ExecConfig {
        user: args.user.unwrap_or_default(),
        privileged: args.privileged,
        tty: args.tty,
        console_size: terminal::size()
            .filter(|_| args.tty)
            .map(|(height, width)| [height, width]),
        attach_stdin: args.interactive && !args.detach,
        attach_stderr: !args.detach,
        attach_stdout: !args.detach,
        detach_keys: args.detach_keys.clone(),
        env: environment,
        working_dir: args.workdir.unwrap_or_default(),
        cmd: Some(command.to_vec()),
    };
    let path = format!("/containers/{}/exec", escape_name(container));
    let IdResponse { id } = client.post_json(&path, &body).await?;
    let start = ExecStartConfig {
        detach: args.detach,
        tty: args.tty,
        console_size: None,
    };
    if args.detach {
        client
            .post_json_no_content(&format!("/exec/{id}/start"), &start)
            .await?;
        return Ok(0);
    }
    let connection = client
        .hijack(&format!("/exec/{id}/start"), Some(&start))
        .await?;
    let size = args
        .tty
        .then(|| follow_size(client, format!("/exec/{id}/resize")));
    let ended = pump(
        connection,
        &Streams {
            stdin: args.interactive,
            tty: args.tty,
            detach_keys: args.detach_keys,
        },
    )
    .await;
    if let Some(size) = size {
        size.abort();
    }
    let lost = || {
        lost(
            "attached to a command in",
            container,
            &format!("{KEEPS_RUNNING}, and so does the command"),
        )
    };
    match ended? {
        Ended::Detached => return Err(Failure::new("read escape sequence")),
        Ended::Lost => return Err(lost()),
        Ended::Output => {}
    }
    let inspected = client.get(&format!("/exec/{id}/json")).await;
    let inspected: ExecInspectResponse = inspected.map_err(|error| unless_lost(error, lost))?;
    // The engine closes the streams when the command has ended, or when it stops itself; then this is
    // the response of the engine that was started after it.
    match inspected.exit_code {
        Some(code) if !inspected.running => Ok(u8::try_from(code).unwrap_or(1)),
        _ => Err(lost()),
    }
}
