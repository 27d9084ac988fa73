//! Starts an engine if none listens at the default socket, so that a first `whelk run` needs no
//! preparation.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::endpoint::DEFAULT_SOCKET;
use crate::output::warn_line;
use crate::{Failure, Outcome};

/// How long a new engine may take until it accepts connections.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts an engine if none listens at the default socket.
pub(crate) async fn ensure(client: &Client) -> Outcome<()> {
    match client.connect().await {
        Ok(_) => return Ok(()),
        Err(error)
            if !matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(Failure::new(client.unreachable(&error)));
        }
        Err(_) => {}
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(format!(
            "no whelk engine listens at {DEFAULT_SOCKET}, and only root may start one: run \"sudo whelk daemon\""
        )));
    }
    warn_line!("whelk: no engine at {DEFAULT_SOCKET}, starting one");
    let program = std::env::current_exe()?;
    let log = log_file()?;
    // With `--background` the engine leaves this session, so it outlives this command and its
    // terminal.
    let mut engine = Command::new("/proc/self/exe");
    engine
        .arg0(program)
        .args(["daemon", "--background"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut engine = engine
        .spawn()
        .map_err(|error| Failure::new(format!("start an engine: {error}")))?;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if client.connect().await.is_ok() {
            return Ok(());
        }
        if let Ok(Some(status)) = engine.try_wait() {
            return Err(Failure::new(format!(
                "the engine exited during start ({status}); see {LOG}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(Failure::new(format!(
        "the engine does not accept connections; see {LOG}"
    )))
}

const LOG: &str = "/var/log/whelk.log";

fn log_file() -> Outcome<Stdio> {
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(LOG);
    file.map(Stdio::from)
        .map_err(|error| Failure::new(format!("open {LOG}: {error}")))
}
