//! The `exec` command: runs another process in a running container.

use clap::Args;
use serde_json::json;

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
    let environment =
        environment(&args.env, &args.env_file).map_err(|failure| Failure { code: 1, ..failure })?;
    let mut body = json!({
        "User": args.user.unwrap_or_default(), "Privileged": args.privileged, "Tty": args.tty,
        "AttachStdin": args.interactive && !args.detach, "AttachStdout": !args.detach, "AttachStderr": !args.detach,
        "DetachKeys": args.detach_keys, "Env": environment, "WorkingDir": args.workdir.unwrap_or_default(), "Cmd": command,
    });
    if let Some((height, width)) = terminal::size().filter(|_| args.tty) {
        body["ConsoleSize"] = json!([height, width]);
    }
    let created = client
        .post(
            &format!("/containers/{}/exec", escape_name(container)),
            Some(&body),
        )
        .await?;
    let id = created["Id"].as_str().unwrap_or_default().to_owned();
    let start = json!({"Detach": args.detach, "Tty": args.tty});
    if args.detach {
        client
            .post(&format!("/exec/{id}/start"), Some(&start))
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
    let inspected = inspected.map_err(|error| unless_lost(error, lost))?;
    // The engine closes the streams when the command has ended, or when it stops itself; then this is
    // the response of the engine that was started after it.
    match inspected["ExitCode"].as_i64() {
        Some(code) if inspected["Running"] != true => Ok(u8::try_from(code).unwrap_or(1)),
        _ => Err(lost()),
    }
}
