//! Starts an engine if none listens at the default socket, so that a first `whelk run` needs no
//! preparation.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::client::Client;
use crate::endpoint::{DEFAULT_SOCKET, Host};
use crate::output::warn_line;
use crate::{Failure, Outcome, files};

/// Time limit for the first answer of an engine that was started.
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
    if let Some(hosts) = other_hosts(&files::read(CONFIGURATION.as_ref()).unwrap_or_default()) {
        return Err(Failure::new(format!(
            "no whelk engine listens at {DEFAULT_SOCKET}, nor would one that is started now: {CONFIGURATION} has the hosts {hosts}; start it with \"whelk daemon\", and use one of them with --host or DOCKER_HOST"
        )));
    }
    warn_line!("whelk: no engine at {DEFAULT_SOCKET}, starting one");
    let program = std::env::current_exe()?;
    let log = log_file()?;
    let begin_of_log = log.metadata()?.len();
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
    wait_for_answer(client, PATIENCE, || {
        let status = engine.try_wait().ok()??;
        let cause = read_log(begin_of_log).as_deref().and_then(cause);
        Some(cause.unwrap_or_else(|| status.to_string()))
    })
    .await
}

/// Waits until an engine that was started answers requests.
///
/// # Errors
/// Returns an error if it does not answer within `patience`, or if it exits. `exited` returns why it
/// has exited.
async fn wait_for_answer(
    client: &Client,
    patience: Duration,
    mut exited: impl FnMut() -> Option<String>,
) -> Outcome<()> {
    let answered = async {
        // It listens before it opens its root, which may fail; it answers afterwards.
        while client.ping().await.is_err() {
            if let Some(cause) = exited() {
                return Err(Failure::new(format!(
                    "the engine exited during start: {cause} (log: {LOG})"
                )));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    let answered = tokio::time::timeout(patience, answered).await;
    answered.unwrap_or_else(|_| {
        Err(Failure::new(format!(
            "the engine does not answer; see {LOG}"
        )))
    })
}

const LOG: &str = "/var/log/whelk.log";
/// The engine's configuration file.
const CONFIGURATION: &str = "/etc/whelk/daemon.json";

/// Returns the hosts of an engine's configuration, unless it listens at the default socket. The
/// engine reports errors in the file.
fn other_hosts(configuration: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Configuration {
        hosts: Vec<String>,
    }

    let Configuration { hosts } = serde_json::from_slice(configuration).ok()?;
    let is_default = |host: &String| Host::parse(host, false) == Ok(Host::default());
    (!hosts.is_empty() && !hosts.iter().any(is_default)).then(|| hosts.join(", "))
}

/// Returns the error that an engine has ended with, which is the last of its log.
fn cause(log: &str) -> Option<String> {
    let (_, cause) = log.rsplit_once("whelk daemon: ")?;
    Some(cause.trim().to_owned()).filter(|cause| !cause.is_empty())
}

fn log_file() -> Outcome<File> {
    let file = File::options().append(true).create(true).open(LOG);
    file.map_err(|error| Failure::new(format!("open {LOG}: {error}")))
}

/// Returns what was written to the log after its first bytes.
fn read_log(skipped: u64) -> Option<String> {
    let mut log = File::open(LOG).ok()?;
    log.seek(SeekFrom::Start(skipped)).ok()?;
    let mut text = Vec::new();
    log.take(files::MAX_SIZE).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_listens_but_does_not_answer_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Host::Tcp(listener.local_addr().unwrap().to_string());
        let client = Client::new(host, None, "default".into(), false);
        let answered = wait_for_answer(&client, Duration::from_millis(50), || None).await;
        let error = answered.unwrap_err().text;
        assert_eq!(error, format!("the engine does not answer; see {LOG}"));
        // The engine has exited.
        drop(listener);
        let exited = || Some("open x".to_owned());
        let answered = wait_for_answer(&client, PATIENCE, exited).await;
        let error = answered.unwrap_err().text;
        let expected = format!("the engine exited during start: open x (log: {LOG})");
        assert_eq!(error, expected);
    }

    #[test]
    fn hosts_without_the_default_socket_are_found() {
        for (configuration, expected) in [
            ("", None),
            ("{}", None),
            (r#"{"hosts": []}"#, None),
            (
                r#"{"hosts": ["tcp://h", "unix:///run/whelk/whelk.sock"]}"#,
                None,
            ),
            (r#"{"hosts": ["unix://"]}"#, None),
            (
                r#"{"hosts": ["unix:///x", "tcp://h"]}"#,
                Some("unix:///x, tcp://h"),
            ),
        ] {
            let found = other_hosts(configuration.as_bytes());
            assert_eq!(found.as_deref(), expected, "{configuration}");
        }
    }

    #[test]
    fn the_last_error_is_the_cause() {
        let log = "INFO whelk::daemon: listening\nwhelk daemon: open x: y\n";
        assert_eq!(cause(log).as_deref(), Some("open x: y"));
        assert_eq!(cause("INFO whelk::daemon: listening\n"), None);
    }
}
