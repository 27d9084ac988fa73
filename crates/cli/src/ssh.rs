//! `ssh://` hosts: the user's `ssh` runs `docker system dial-stdio` on the other host, which
//! connects its standard input and output to the engine there. ssh reads its own configuration,
//! keys and known hosts.

use std::os::unix::process::CommandExt;

use whelk_client::Program;
use whelk_text::url;

use crate::{Failure, plain};

/// The other host: `ssh://[USER@]HOST[:PORT][/SOCKET]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ssh {
    text: String,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    /// The path of the engine's socket there; empty for that program's default.
    socket: String,
}

/// The programs on the other host that can connect to its engine, in the order in which they are
/// tried.
pub(crate) const REMOTE_PROGRAMS: [&str; 2] = ["docker", "whelk"];

/// The subcommand that runs ssh in a session of its own.
pub(crate) const SESSION: &str = "__session";

impl Ssh {
    /// Parses a URL.
    ///
    /// # Errors
    /// Returns an error with Docker's text if it is invalid.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let invalid =
            |why: &str| format!("ssh host connection is not valid: invalid SSH URL: {why}");
        let rest = text.strip_prefix("ssh://").unwrap_or(text);
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, socket) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(invalid("plain-text password is not supported"));
        }
        let bad_port =
            |port: &str| invalid(&format!("invalid port {:?} after host", format!(":{port}")));
        let (host, port) = match address.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest
                    .split_once(']')
                    .ok_or_else(|| invalid("missing ']' in host"))?;
                (host, rest.strip_prefix(':'))
            }
            None => match address.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        let port = match port.filter(|port| !port.is_empty()) {
            Some(port) => Some(port.parse().map_err(|_| bad_port(port))?),
            None => None,
        };
        if host.is_empty() {
            return Err(invalid("hostname is empty"));
        }
        if text.contains(|letter: char| letter.is_control() || letter.is_whitespace()) {
            return Err(invalid("it contains white space or control characters"));
        }
        if !query.is_empty() {
            return Err(invalid(&format!(
                "query parameters are not allowed: {query:?}"
            )));
        }
        if !fragment.is_empty() {
            return Err(invalid(&format!("fragments are not allowed: {fragment:?}")));
        }
        let decoded = |part: &str| {
            let decoded = url::unescape(part)
                .map_err(|escape| invalid(&format!("invalid URL escape {escape:?}")))?;
            if decoded.contains(char::is_control) {
                return Err(invalid("it contains white space or control characters"));
            }
            Ok(decoded)
        };
        let user = user.filter(|user| !user.is_empty());
        let host = decoded(host)?;
        // ssh would take it as a flag, if it were not for the `--` before it.
        if host.starts_with('-') {
            return Err(invalid("hostname begins with a hyphen"));
        }
        Ok(Self {
            text: text.to_owned(),
            user: user.map(decoded).transpose()?,
            host,
            port,
            socket: decoded(if socket == "/" { "" } else { socket })?,
        })
    }

    /// Returns the command line that connects to the engine with a program on the other host.
    pub(crate) fn program(&self, remote: &str) -> Program {
        let mut words = vec!["ssh".to_owned()];
        if let Some(user) = &self.user {
            words.extend(["-l".into(), user.clone()]);
        }
        if let Some(port) = self.port {
            words.extend(["-p".into(), port.to_string()]);
        }
        words.extend(["-o", "ConnectTimeout=30", "-T", "--"].map(str::to_owned));
        words.extend([self.host.clone(), remote.to_owned()]);
        if !self.socket.is_empty() {
            // The shell there reads it.
            words.push(quoted(&format!("--host=unix://{}", self.socket)));
        }
        words.extend(["system", "dial-stdio"].map(str::to_owned));
        let shown = words.join(" ");
        let own = ["/proc/self/exe", SESSION].map(str::to_owned);
        Program {
            words: own.into_iter().chain(words).collect(),
            shown,
        }
    }
}

impl std::fmt::Display for Ssh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns a word in quotes of a shell.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r#"'"'"'"#))
}

/// Executes a program in a session of its own: ^C concerns the container's process, and ssh must not
/// ask questions on a terminal that shows a container's output.
pub(crate) fn execute_in_session(words: &[String]) -> Failure {
    /// As of a shell that cannot execute a command, but not 127, which the other host's shell may
    /// return.
    const NOT_EXECUTED: u8 = 126;
    let Some((name, arguments)) = words.split_first() else {
        return Failure::new("no program");
    };
    // Fails only if this process leads a session already.
    let _ = rustix::process::setsid();
    // Signals to the command line do not reach this session, so ssh would keep running until the other
    // host sends something.
    let parent = rustix::process::getppid();
    let signal = Some(rustix::process::Signal::TERM);
    if rustix::process::set_parent_process_death_signal(signal).is_err()
        || rustix::process::getppid() != parent
    {
        return Failure::new("the command line has ended");
    }
    let error = std::process::Command::new(name).args(arguments).exec();
    let reason = match error.kind() {
        std::io::ErrorKind::NotFound => "executable file not found in $PATH".to_owned(),
        _ => plain(&error),
    };
    Failure::with_code(NOT_EXECUTED, format!("exec: {name:?}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_command_lines() {
        for (url, shown) in [
            (
                "ssh://h",
                "ssh -o ConnectTimeout=30 -T -- h docker system dial-stdio",
            ),
            (
                "ssh://h/",
                "ssh -o ConnectTimeout=30 -T -- h docker system dial-stdio",
            ),
            (
                "ssh://me@h:22",
                "ssh -l me -p 22 -o ConnectTimeout=30 -T -- h docker system dial-stdio",
            ),
            (
                "ssh://a%40b@h/my%20dir/x%25.sock",
                "ssh -l a@b -o ConnectTimeout=30 -T -- h docker '--host=unix:///my dir/x%.sock' system dial-stdio",
            ),
            (
                "ssh://[::1]:5/run/my'.sock",
                r#"ssh -p 5 -o ConnectTimeout=30 -T -- ::1 docker '--host=unix:///run/my'"'"'.sock' system dial-stdio"#,
            ),
        ] {
            let program = Ssh::parse(url).unwrap().program("docker");
            assert_eq!(program.shown, shown);
            assert_eq!(program.words[2..].join(" "), shown);
        }
    }

    #[test]
    fn invalid_urls_are_refused() {
        for (url, why) in [
            ("ssh://", "hostname is empty"),
            ("ssh://u@", "hostname is empty"),
            ("ssh://:22", "hostname is empty"),
            ("ssh://u:p@h", "plain-text password is not supported"),
            ("ssh://h?x=1", "query parameters are not allowed: \"x=1\""),
            ("ssh://h#f", "fragments are not allowed: \"f\""),
            ("ssh://-oProxyCommand=x", "hostname begins with a hyphen"),
            (
                "ssh://u@-oProxyCommand=x:22",
                "hostname begins with a hyphen",
            ),
            ("ssh://h:x", "invalid port \":x\" after host"),
            ("ssh://h:65536", "invalid port \":65536\" after host"),
            ("ssh://[::1", "missing ']' in host"),
            ("ssh://%2doProxyCommand=x", "hostname begins with a hyphen"),
            ("ssh://h/%zz", "invalid URL escape \"%zz\""),
            (
                "ssh://h/a%0Ab",
                "it contains white space or control characters",
            ),
            ("ssh://h h", "it contains white space or control characters"),
        ] {
            let text = format!("ssh host connection is not valid: invalid SSH URL: {why}");
            assert_eq!(Ssh::parse(url), Err(text), "{url}");
        }
    }
}
