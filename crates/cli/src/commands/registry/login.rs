//! The `login` command.

use std::io::Read;
use std::path::Path;

use clap::Args;
use hyper::StatusCode;
use tokio::signal::unix::{SignalKind, signal};
use whelk_api_types::{AuthConfig, AuthResponse};

use crate::client::{ApiResult, Client};
use crate::credentials::{self, HUB};
use crate::output::{print, print_line, warn_line};
use crate::terminal::{Hidden, stdin_is_terminal};
use crate::{Failure, Outcome};

/// Maximum length of a password in bytes.
const MAX_PASSWORD: u64 = 64 << 10;
/// The exit code of shells for SIGINT.
const INTERRUPTED: u8 = 130;

#[derive(Args)]
pub(crate) struct LoginArgs {
    /// Username
    #[arg(short, long)]
    username: Option<String>,
    /// Password or Personal Access Token (PAT), or "-" to read from stdin
    #[arg(short, long)]
    password: Option<String>,
    /// Take the Password or Personal Access Token (PAT) from stdin
    #[arg(long)]
    password_stdin: bool,
    /// HOST[:PORT]; default: Docker Hub
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

impl std::fmt::Debug for LoginArgs {
    /// Does not print the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginArgs")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

pub(crate) async fn login(client: &Client, args: LoginArgs) -> Outcome {
    let config = client
        .config()
        .ok_or_else(|| Failure::new("login: set HOME, or give --config"))?;
    let (user, password) = given(&args)?;
    let server = match args.server.as_deref() {
        None | Some("" | "docker.io") => HUB,
        Some(HUB) => HUB,
        Some(server) => credentials::host_of(server),
    };
    let mut known_user = String::new();
    if user.is_empty() && password.is_empty() {
        let known = credentials::find(config, server)?;
        known_user.clone_from(&known.username);
        if !known.username.is_empty() && !known.password.is_empty() {
            let known = AuthConfig {
                serveraddress: server.to_owned(),
                ..known
            };
            warn_line!(
                "Authenticating with existing credentials... [Username: {}]",
                known.username
            );
            match verify(client, &known).await {
                Ok(answer) => return succeed(config, known, answer),
                Err(error) if error.status == StatusCode::UNAUTHORIZED => {
                    warn_line!("Stored credentials invalid or expired");
                }
                Err(error) => warn_line!("Login did not succeed, error: {error}"),
            }
        }
    }
    if (user.is_empty() || password.is_empty()) && !stdin_is_terminal() {
        return Err(Failure::new(
            "cannot perform an interactive login from a non-TTY device: give --username and --password-stdin",
        ));
    }
    let user = match user {
        user if !user.is_empty() => user,
        _ => ask_user(server, &known_user).await?,
    };
    let password = match password {
        password if !password.is_empty() => password,
        _ => ask_password().await?,
    };
    let auth = AuthConfig {
        username: user,
        password,
        serveraddress: server.to_owned(),
        ..AuthConfig::default()
    };
    let answer = verify(client, &auth).await?;
    succeed(config, auth, answer)
}

/// Returns the user name and the password of the flags; empty if not given.
fn given(args: &LoginArgs) -> Outcome<(String, String)> {
    let is_piped = args.password_stdin || args.password.as_deref() == Some("-");
    if is_piped {
        if args.password.as_deref().is_some_and(|text| text != "-") {
            return Err(Failure::new(
                "conflicting options: cannot specify both --password and --password-stdin",
            ));
        }
        if args.username.is_none() {
            return Err(Failure::new(
                "the --password-stdin option requires --username to be set",
            ));
        }
    }
    let user = match args.username.as_deref().map(str::trim) {
        Some("") => return Err(Failure::new("username is empty")),
        user => user.unwrap_or_default().to_owned(),
    };
    if is_piped {
        let mut text = String::new();
        std::io::stdin()
            .take(MAX_PASSWORD)
            .read_to_string(&mut text)
            .map_err(|_| Failure::new("the password on standard input is not UTF-8"))?;
        let password = without_line_end(&text);
        if password.trim().is_empty() {
            return Err(Failure::new("password is empty"));
        }
        return Ok((user, password.to_owned()));
    }
    match args.password.as_deref() {
        Some("") => Err(Failure::new("password is empty")),
        Some(password) => {
            warn_line!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            Ok((user, password.to_owned()))
        }
        None => Ok((user, String::new())),
    }
}

/// Removes the line break at the end. Other white space may be part of a password.
fn without_line_end(text: &str) -> &str {
    ["\r\n", "\n", "\r"]
        .iter()
        .find_map(|end| text.strip_suffix(end))
        .unwrap_or(text)
}

async fn ask_user(server: &str, known: &str) -> Outcome<String> {
    if server == HUB {
        print_line!(
            "Log in with your Docker ID or email address to push and pull images from Docker Hub. If you don't have a Docker ID, head over to https://hub.docker.com/ to create one."
        )?;
    }
    if known.is_empty() {
        print("Username: ")?;
    } else {
        print(&format!("Username ({known}): "))?;
    }
    let answer = line().await?;
    match (answer.trim(), known) {
        ("", "") => Err(Failure::new("error: username is required")),
        ("", known) => Ok(known.to_owned()),
        (user, _) => Ok(user.to_owned()),
    }
}

async fn ask_password() -> Outcome<String> {
    let hidden = Hidden::enter();
    print("Password: ")?;
    let answer = line().await;
    drop(hidden);
    print_line!("")?;
    let answer = answer?;
    let password = without_line_end(&answer);
    if password.is_empty() {
        Err(Failure::new("error: password is required"))
    } else {
        Ok(password.to_owned())
    }
}

/// Reads a line from the terminal. ^C ends the command after the terminal's mode was restored.
async fn line() -> Outcome<String> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let read = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        std::io::stdin().read_line(&mut text).map(|_| text)
    });
    tokio::select! {
        read = read => Ok(read.map_err(|error| Failure::new(error.to_string()))??),
        _ = interrupts.recv() => Err(Failure::with_code(INTERRUPTED, "")),
    }
}

async fn verify(client: &Client, auth: &AuthConfig) -> ApiResult<AuthResponse> {
    client.post_json("/auth", auth).await
}

/// Stores the credentials after the registry has accepted them.
fn succeed(config: &Path, mut auth: AuthConfig, answer: AuthResponse) -> Outcome {
    if !answer.identity_token.is_empty() {
        auth.password.clear();
        auth.identitytoken = answer.identity_token;
    }
    credentials::store(config, &auth)?;
    print_line!("{}", answer.status)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(username: Option<&str>, password: Option<&str>, password_stdin: bool) -> LoginArgs {
        LoginArgs {
            username: username.map(str::to_owned),
            password: password.map(str::to_owned),
            password_stdin,
            server: None,
        }
    }

    #[test]
    fn flags_are_checked_before_anything_is_read() {
        for (args, expected) in [
            (
                args(Some("u"), Some("p"), true),
                "conflicting options: cannot specify both --password and --password-stdin",
            ),
            (
                args(None, None, true),
                "the --password-stdin option requires --username to be set",
            ),
            (args(Some(" "), Some("-"), false), "username is empty"),
            (args(Some("u"), Some(""), false), "password is empty"),
        ] {
            assert_eq!(given(&args).unwrap_err().text, expected);
        }
        assert_eq!(
            given(&args(Some("u"), Some("p"), false)).unwrap(),
            ("u".into(), "p".into())
        );
        assert!(!format!("{:?}", args(Some("u"), Some("secret"), false)).contains("secret"));
    }

    #[test]
    fn only_the_end_of_the_line_is_no_part_of_a_password() {
        for (text, expected) in [("p \r\n", "p "), ("p\n\n", "p\n"), ("p\r", "p"), ("", "")] {
            assert_eq!(without_line_end(text), expected);
        }
    }
}
