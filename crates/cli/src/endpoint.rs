//! Resolves the engine's address from the global flags, the environment, and Docker's contexts.

use std::path::{Path, PathBuf};

use clap::Args;
use whelk_client::Tls;

use crate::certificates::{Files, TlsFlags, if_exists};
use crate::config_file::current_context;
use crate::context::{ContextStore, DEFAULT, ENDPOINT};
use crate::ssh::Ssh;
use crate::{Failure, Outcome};

/// The flags before the command.
#[derive(Debug, Default, Args)]
pub(crate) struct RootFlags {
    /// Location of client config files [default: ~/.docker]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Name of the context to use to connect to the engine (overrides WHELK_HOST, DOCKER_HOST and
    /// the current context)
    #[arg(short, long)]
    context: Option<String>,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    debug: bool,
    /// Engine socket to connect to: unix:///PATH, tcp://HOST:PORT or ssh://[USER@]HOST
    #[arg(short = 'H', long)]
    host: Vec<String>,
    /// Set the logging level ("debug", "info", "warn", "error", "fatal")
    #[arg(short, long, default_value = "info")]
    log_level: String,
    #[command(flatten)]
    tls: TlsFlags,
}

/// The engine's address, and where it comes from.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub host: Host,
    /// Set for connections over TLS.
    pub tls: Option<Tls>,
    /// The name of the context in use.
    pub context: String,
    /// Whether the host is the default socket. The command line starts an engine only there.
    pub is_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Unix(String),
    Tcp(String),
    Ssh(Ssh),
}

pub(crate) const DEFAULT_SOCKET: &str = "/run/whelk/whelk.sock";

impl RootFlags {
    /// Returns whether debug output is enabled.
    ///
    /// # Errors
    /// Returns an error if the log level is unknown.
    pub(crate) fn debug(&self) -> Outcome<bool> {
        match self.log_level.to_lowercase().as_str() {
            "debug" | "trace" => Ok(true),
            "info" | "warn" | "warning" | "error" | "fatal" | "panic" => Ok(self.debug),
            _ => Err(Failure::new(format!(
                "Unable to parse logging level: {}",
                self.log_level
            ))),
        }
    }

    /// Resolves the engine's address, in this order: `--host` or `--context`, `WHELK_HOST` or
    /// `DOCKER_HOST`, `DOCKER_CONTEXT`, the current context, the default socket.
    pub(crate) fn endpoint(&self) -> Outcome<Endpoint> {
        self.endpoint_in(&variable)
    }

    fn endpoint_in(&self, variable: &dyn Fn(&str) -> Option<String>) -> Outcome<Endpoint> {
        self.check()?;
        let config = self.config_in(variable);
        let name = self.context_in(variable);
        if name != DEFAULT {
            // Docker ignores the flag.
            if let Some(flag) = self.tls.given() {
                return Err(Failure::new(format!(
                    "{flag}: the context {name:?} has TLS settings of its own; use --host"
                )));
            }
            let (host, files) =
                context_host(config.as_deref(), &name).map_err(|reason| unresolved(&reason))?;
            return Ok(Endpoint {
                host,
                tls: files.map(|files| files.load()).transpose()?,
                context: name,
                is_default: false,
            });
        }
        let (host, files) = self.default_host_in(variable);
        let host = host?;
        let without_tls = match &host {
            Host::Unix(_) => Some("on unix sockets"),
            Host::Ssh(_) => Some("over SSH"),
            Host::Tcp(_) => None,
        };
        if let (Some(which), Some(flag)) = (without_tls, self.tls.given()) {
            return Err(Failure::new(format!(
                "{flag}: TLS is not used {which}: {host}"
            )));
        }
        let tls = files?.map(|files| files.load()).transpose()?;
        let is_default = host == Host::Unix(DEFAULT_SOCKET.into()) && tls.is_none();
        Ok(Endpoint {
            host,
            tls,
            context: DEFAULT.into(),
            is_default,
        })
    }
}

impl RootFlags {
    /// Checks that the flags name at most one engine.
    pub(crate) fn check(&self) -> Outcome<()> {
        if !self.host.is_empty() && self.given_context().is_some() {
            return Err(Failure::new(
                "conflicting options: cannot specify both --host and --context",
            ));
        }
        if self.host.len() > 1 {
            return Err(unresolved("Specify only one -H"));
        }
        Ok(())
    }

    /// Returns the context of the flag; an empty name counts as none.
    fn given_context(&self) -> Option<&str> {
        self.context.as_deref().filter(|name| !name.is_empty())
    }

    /// Returns the directory of the client's configuration, if it is known.
    pub(crate) fn config(&self) -> Option<PathBuf> {
        self.config_in(&variable)
    }

    fn config_in(&self, variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
        self.config
            .clone()
            .or_else(|| variable("DOCKER_CONFIG").map(PathBuf::from))
            .or_else(|| Some(Path::new(&variable("HOME")?).join(".docker")))
    }

    /// Returns the name of the context in use. It may not exist.
    pub(crate) fn context(&self) -> String {
        self.context_in(&variable)
    }

    fn context_in(&self, variable: &dyn Fn(&str) -> Option<String>) -> String {
        let name = match self.given_context() {
            Some(name) => Some(name.to_owned()),
            None if !self.host.is_empty() || overriding_in(variable).is_some() => None,
            None => variable("DOCKER_CONTEXT").or_else(|| {
                let config = self.config_in(variable);
                config.as_deref().and_then(current_context)
            }),
        };
        name.unwrap_or_else(|| DEFAULT.to_owned())
    }

    /// Returns the host of the default context, and its certificates if it is used with TLS.
    ///
    /// # Errors
    /// Returns an error if the flags or the environment are invalid.
    pub(crate) fn default_host(&self) -> Outcome<(Host, Option<Files>)> {
        let (host, files) = self.default_host_in(&variable);
        Ok((host?, files?))
    }

    /// Returns the host of the default context, and its certificates. Errors of these are none for
    /// hosts that are not used with TLS.
    fn default_host_in(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> (Outcome<Host>, Outcome<Option<Files>>) {
        let files = self.tls.files(variable);
        let uses_tls = !matches!(files, Ok(None));
        let host = Host::parse(&self.host_in(variable), uses_tls);
        let files = match host {
            Ok(Host::Tcp(_)) => files.map_err(|reason| unresolved(&reason)),
            _ => Ok(None),
        };
        (host.map_err(|reason| unresolved(&reason)), files)
    }

    fn host_in(&self, variable: &dyn Fn(&str) -> Option<String>) -> String {
        let host = self.host.first().cloned();
        host.or_else(|| overriding_in(variable).and_then(variable))
            .unwrap_or_default()
    }
}

/// Returns the environment variable that overrides the context, if one is set.
pub(crate) fn overriding_variable() -> Option<&'static str> {
    overriding_in(&variable)
}

fn overriding_in(variable: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
    ["WHELK_HOST", "DOCKER_HOST"]
        .into_iter()
        .find(|name| variable(name).is_some())
}

/// Returns an environment variable; an empty one is not set.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

pub(crate) fn unresolved(reason: &str) -> Failure {
    let what = match reason.starts_with("ssh host connection") {
        true => "",
        false => "unable to resolve docker endpoint: ",
    };
    Failure::new(format!("Failed to initialize: {what}{reason}"))
}

impl Default for Host {
    fn default() -> Self {
        Self::Unix(DEFAULT_SOCKET.into())
    }
}

impl Host {
    /// Parses a host from `--host`, `DOCKER_HOST` or a context. The default of a connection over TLS
    /// is this host's port 2376, as in Docker.
    pub(crate) fn parse(text: &str, is_tls: bool) -> Result<Self, String> {
        let text = text.trim();
        match text.split_once("://") {
            None if text.is_empty() && is_tls => Ok(Self::tcp("", is_tls)),
            None if text.is_empty() => Ok(Self::default()),
            None => Ok(Self::tcp(text, is_tls)),
            Some(("unix", "")) => Ok(Self::default()),
            Some(("unix", path)) => Ok(Self::Unix(path.to_owned())),
            Some(("tcp", address)) => Ok(Self::tcp(address, is_tls)),
            Some(("ssh", _)) => Ssh::parse(text).map(Self::Ssh),
            Some((scheme @ ("https" | "npipe" | "fd"), _)) => Err(format!(
                "{scheme}:// hosts are not available in this version of whelk: {text}"
            )),
            Some(_) => Err(format!("invalid bind address format: {text}")),
        }
    }

    /// Completes `[HOST][:PORT]` with Docker's defaults.
    fn tcp(address: &str, is_tls: bool) -> Self {
        let default_port: u16 = if is_tls { 2376 } else { 2375 };
        let address = address.trim_end_matches('/');
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port))
                if port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) =>
            {
                (host, port.to_owned())
            }
            _ => (address, default_port.to_string()),
        };
        Self::Tcp(format!(
            "{}:{port}",
            if host.is_empty() { "localhost" } else { host }
        ))
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Ssh(ssh) => ssh.fmt(f),
        }
    }
}

/// Returns the host of a context, and the certificates if it is used with TLS.
fn context_host(config: Option<&Path>, name: &str) -> Result<(Host, Option<Files>), String> {
    let Some(config) = config else {
        return Err(format!(
            "context {name:?}: context not found: $HOME is not defined"
        ));
    };
    let store = ContextStore::new(config);
    let context = store.read(name)?;
    let in_context = |reason: String| format!("context {name:?}: {reason}");
    let directory = store.tls_directory(name).join(ENDPOINT);
    let skip_verify = context.skip_verify();
    let host = Host::parse(context.host(), false).map_err(in_context)?;
    let has_files = if_exists(directory.clone()).map_err(in_context)?.is_some();
    if !matches!(host, Host::Tcp(_)) || !(has_files || skip_verify) {
        return Ok((host, None));
    }
    let existing = |name: &str| if_exists(directory.join(name)).map_err(in_context);
    let files = Files {
        authorities: existing("ca.pem")?,
        certificate: existing("cert.pem")?,
        key: existing("key.pem")?,
        skip_verify,
    };
    Ok((host, Some(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration directory with contexts, removed on drop.
    struct Config(PathBuf);

    impl Config {
        fn new(name: &str, current: &str, contexts: &[(&str, &str)]) -> Self {
            let dir =
                std::env::temp_dir().join(format!("whelk-contexts-{}-{name}", std::process::id()));
            for (name, endpoint) in contexts {
                let meta = ContextStore::new(&dir).metadata_directory(name);
                std::fs::create_dir_all(&meta).unwrap();
                let text = format!(
                    r#"{{"Name": {name:?}, "Metadata": {{}}, "Endpoints": {{"docker": {endpoint}}}}}"#
                );
                std::fs::write(meta.join("meta.json"), text).unwrap();
            }
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("config.json"), current).unwrap();
            Self(dir)
        }

        fn choose(
            &self,
            flags: RootFlags,
            variables: &[(&str, &str)],
        ) -> Result<(String, bool), String> {
            let variable = |name: &str| match name {
                "DOCKER_CONFIG" => Some(self.0.display().to_string()),
                _ => variables
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned()),
            };
            flags
                .endpoint_in(&variable)
                .map(|endpoint| (endpoint.host.to_string(), endpoint.is_default))
                .map_err(|failure| failure.text)
        }
    }

    impl Drop for Config {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn with_host(host: &str) -> RootFlags {
        RootFlags {
            host: vec![host.into()],
            ..RootFlags::default()
        }
    }

    fn with_context(name: &str) -> RootFlags {
        RootFlags {
            context: Some(name.into()),
            ..RootFlags::default()
        }
    }

    #[test]
    fn resolves_the_endpoint_in_order() {
        let config = Config::new(
            "order",
            r#"{"currentContext": "one"}"#,
            &[
                ("one", r#"{"Host": "unix:///one"}"#),
                ("two", r#"{"Host": "unix:///two"}"#),
            ],
        );
        let chosen = |flags, variables: &[(&str, &str)]| {
            config.choose(flags, variables).map(|(host, _)| host)
        };
        let all = [
            ("DOCKER_CONTEXT", "two"),
            ("DOCKER_HOST", "unix:///docker"),
            ("WHELK_HOST", "unix:///whelk"),
        ];
        assert_eq!(
            chosen(with_host("unix:///flag"), &all),
            Ok("unix:///flag".into())
        );
        assert_eq!(chosen(with_context("one"), &all), Ok("unix:///one".into()));
        assert_eq!(
            chosen(RootFlags::default(), &all),
            Ok("unix:///whelk".into())
        );
        assert_eq!(
            chosen(RootFlags::default(), &all[..2]),
            Ok("unix:///docker".into())
        );
        assert_eq!(
            chosen(RootFlags::default(), &all[..1]),
            Ok("unix:///two".into())
        );
        assert_eq!(chosen(RootFlags::default(), &[]), Ok("unix:///one".into()));
        assert_eq!(
            config.choose(with_context("default"), &[]),
            Ok((format!("unix://{DEFAULT_SOCKET}"), true))
        );
        assert_eq!(
            config.choose(with_context("default"), &all),
            Ok(("unix:///whelk".into(), false))
        );
    }

    #[test]
    fn rejects_unusable_contexts() {
        let config = Config::new(
            "bad",
            "{",
            &[
                ("tls", r#"{"Host": "tcp://h:2376", "SkipTLSVerify": true}"#),
                ("ssh", r#"{"Host": "ssh://u:p@h"}"#),
                ("none", "{}"),
            ],
        );
        let refused = |flags, text: &str| {
            let error = config.choose(flags, &[]).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        assert_eq!(
            config.choose(with_context("tls"), &[]),
            Ok(("tcp://h:2376".into(), false))
        );
        refused(with_context("ssh"), "plain-text password is not supported");
        // The directory name is the SHA-256 of the context's name, as in Docker.
        refused(
            with_context("foo"),
            "unable to resolve docker endpoint: context \"foo\": context not found: open ",
        );
        refused(
            with_context("foo"),
            "/contexts/meta/2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae/meta.json: no such file or directory",
        );
        assert_eq!(
            config.choose(with_context("none"), &[]),
            Ok((format!("unix://{DEFAULT_SOCKET}"), false))
        );
        refused(
            RootFlags {
                host: vec!["a".into()],
                ..with_context("b")
            },
            "conflicting options: cannot specify both --host and --context",
        );
        refused(
            RootFlags {
                host: vec!["a".into(), "b".into()],
                ..RootFlags::default()
            },
            "Specify only one -H",
        );
        // A malformed file causes a warning and selects no context.
        assert_eq!(
            config.choose(RootFlags::default(), &[]),
            Ok((format!("unix://{DEFAULT_SOCKET}"), true))
        );
    }

    #[test]
    fn tls_is_for_tcp_hosts() {
        let config = Config::new("tls", "{}", &[]);
        let with_tls = |flags: RootFlags| RootFlags {
            tls: TlsFlags {
                tlsverify: Some(true),
                tlscacert: Some("/nonexistent/ca.pem".into()),
                ..TlsFlags::default()
            },
            ..flags
        };
        assert_eq!(
            config.choose(with_tls(with_host("unix:///x")), &[]),
            Err("--tlsverify: TLS is not used on unix sockets: unix:///x".into())
        );
        let missing = "Failed to initialize: unable to resolve docker endpoint: open /nonexistent/ca.pem: no such file or directory";
        for flags in [with_host("tcp://h"), RootFlags::default()] {
            assert_eq!(config.choose(with_tls(flags), &[]), Err(missing.into()));
        }
        let verify = [("DOCKER_TLS_VERIFY", "1")];
        let told = config.choose(with_host("tcp://h"), &verify).unwrap_err();
        assert!(
            told.contains(&format!("open {}/ca.pem", config.0.display())),
            "{told}"
        );
        assert!(config.choose(with_host("unix:///x"), &verify).is_ok());
        let none = TlsFlags {
            tls: Some(true),
            tlscacert: Some(PathBuf::new()),
            ..TlsFlags::default()
        };
        let default = RootFlags {
            tls: none,
            ..RootFlags::default()
        };
        assert_eq!(
            config.choose(default, &[]),
            Ok(("tcp://localhost:2376".into(), false))
        );
    }

    #[test]
    fn errors_of_a_search_for_files_are_not_missing_files() {
        let host = r#"{"Host": "tcp://h:2376"}"#;
        let config = Config::new("unreadable", "{}", &[("one", host), ("two", host)]);
        let refused = |flags, variables: &[(&str, &str)], text: &str| {
            let error = config.choose(flags, variables).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        assert!(config.choose(with_context("one"), &[]).is_ok(), "no TLS");
        let tls = |name: &str| ContextStore::new(&config.0).tls_directory(name);
        // As with a directory that may not be searched, which root may.
        std::fs::create_dir_all(tls("one").parent().unwrap()).unwrap();
        std::fs::write(tls("one"), "no directory").unwrap();
        refused(with_context("one"), &[], "/docker: not a directory");
        // An empty file does not count as missing.
        std::fs::create_dir_all(tls("two").join("docker")).unwrap();
        std::fs::write(tls("two").join("docker/ca.pem"), "").unwrap();
        refused(
            with_context("two"),
            &[],
            "failed to retrieve context tls info: ca.pem seems invalid (",
        );
        let file = config.0.join("config.json").display().to_string();
        let variables = [("DOCKER_TLS", "1"), ("DOCKER_CERT_PATH", file.as_str())];
        for flags in [with_host("tcp://h"), RootFlags::default()] {
            refused(flags, &variables, "/cert.pem: not a directory");
        }
        assert!(config.choose(with_host("unix:///x"), &variables).is_ok());
    }

    #[test]
    fn files_without_tls_are_refused() {
        let config = Config::new("plain", "{}", &[]);
        let with_file = |flags: RootFlags, tls| RootFlags {
            tls: TlsFlags {
                tls,
                tlscert: Some("cert.pem".into()),
                ..TlsFlags::default()
            },
            ..flags
        };
        let tcp = || with_host("tcp://h:1");
        let error = config.choose(with_file(tcp(), None), &[]).unwrap_err();
        assert!(
            error.contains("--tlscert: without TLS, the file is not used"),
            "{error}"
        );
        assert_eq!(
            config.choose(with_file(tcp(), Some(false)), &[]),
            Ok(("tcp://h:1".into(), false))
        );
        assert_eq!(
            config.choose(with_file(with_host("unix:///x"), None), &[]),
            Err("--tlscert: TLS is not used on unix sockets: unix:///x".into())
        );
    }

    #[test]
    fn parses_hosts() {
        let parsed = |text: &str| Host::parse(text, false).map(|host| host.to_string());
        for (text, host) in [
            ("unix:///x.sock", "unix:///x.sock"),
            ("tcp://h:1", "tcp://h:1"),
            ("tcp://h", "tcp://h:2375"),
            ("tcp://h/", "tcp://h:2375"),
            ("tcp://:5", "tcp://localhost:5"),
            ("tcp://[::1]:5", "tcp://[::1]:5"),
            ("tcp://[::1]", "tcp://[::1]:2375"),
            ("h:80", "tcp://h:80"),
            ("unix://", "unix:///run/whelk/whelk.sock"),
            ("", "unix:///run/whelk/whelk.sock"),
        ] {
            assert_eq!(parsed(text), Ok(host.into()), "{text}");
        }
        for text in ["foo://x", "http://x"] {
            let refused = format!("invalid bind address format: {text}");
            assert_eq!(parsed(text), Err(refused));
        }
    }
}
