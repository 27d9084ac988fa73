//! The `logs` command.

use clap::Args;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use whelk_api_types::ContainerInspectResponse;

use super::stream::{KEEPS_RUNNING, copy_output, lost};
use crate::client::{Client, escape_name, no_body, query};
use crate::format::moment::moment;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m")
    #[arg(long, default_value = "", hide_default_value = true)]
    since: String,
    /// Show logs before a timestamp or relative
    #[arg(long, default_value = "", hide_default_value = true)]
    until: String,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    container: String,
}

pub(crate) async fn logs(client: &Client, args: LogsArgs) -> Outcome {
    let on = |flag: bool| if flag { "1" } else { "" };
    let name = escape_name(&args.container);
    let inspected: ContainerInspectResponse =
        client.get(&format!("/containers/{name}/json")).await?;
    let query = query(&[
        ("stdout", "1"),
        ("stderr", "1"),
        ("follow", on(args.follow)),
        ("timestamps", on(args.timestamps)),
        ("details", on(args.details)),
        (
            "since",
            &moment(&args.since).map_err(|failure| {
                Failure::new(format!("invalid value for \"since\": {}", failure.text))
            })?,
        ),
        (
            "until",
            &moment(&args.until).map_err(|failure| {
                Failure::new(format!("invalid value for \"until\": {}", failure.text))
            })?,
        ),
        ("tail", &args.tail),
    ]);
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/containers/{name}/logs{query}"),
            &[],
            no_body(),
        )
        .await?;
    let tty = inspected.config.tty;
    let is_running = inspected.state.running;
    let hint = if is_running { KEEPS_RUNNING } else { "" };
    let container = args.container;
    // The body is copied to a pipe, because frames of the log may span chunks of the body.
    let (mut sender, mut receiver) = tokio::io::duplex(256 << 10);
    let feeding = tokio::spawn(async move {
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| lost("reading the logs of", &container, hint))?;
            if let Ok(data) = frame.into_data()
                && sender.write_all(&data).await.is_err()
            {
                break;
            }
        }
        Ok::<(), Failure>(())
    });
    copy_output(&mut receiver, tty).await?;
    match feeding.await {
        Ok(fed) => fed.map(|()| 0),
        Err(_) => Ok(0),
    }
}
