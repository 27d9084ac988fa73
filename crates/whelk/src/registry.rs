//! `whelk registry`: a registry of one's own.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::net::TcpListener;
use whelk_distribution::{Access, Passwords, Registry, Tls};

use crate::daemon::{reload_requested, stop_requested};
use crate::systemd;

/// Run a registry
#[derive(Debug, Parser)]
#[command(name = "whelk registry", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve images that are pushed to this registry
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// Directory for the registry's content; not an engine's
    #[arg(long)]
    root: PathBuf,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:5000", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// File of users and passwords, written by `htpasswd -B`; without it, everyone who can connect
    /// may push and delete
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// Certificate of the server, in PEM form, followed by those between it and its authority
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Allow other hosts to connect although there are no passwords, or connections are not encrypted
    #[arg(long)]
    insecure: bool,
    /// Enable debug logging
    #[arg(short = 'D', long)]
    debug: bool,
}

/// Returns the command's definition, for its manual page.
pub(crate) fn definitions() -> clap::Command {
    Arguments::command()
}

pub(crate) fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words = match whelk_cli::read_flags(definitions(), words) {
        Ok(words) => words,
        Err(text) => {
            return super::report(
                "registry",
                Err(format!("{text}\nSee 'whelk registry --help'")),
            );
        }
    };
    let program = std::iter::once("whelk registry".to_owned());
    let Command::Serve(settings) = Arguments::parse_from(program.chain(words)).command;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime.context("start the runtime").and_then(|runtime| {
        let result = runtime.block_on(serve(settings));
        // Blocking work that has not ended must not keep the process alive.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    });
    super::report("registry", result.map_err(|error| format!("{error:#}")))
}

async fn serve(settings: Serve) -> anyhow::Result<()> {
    let filter = if settings.debug { "debug" } else { "info" };
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("WHELK_LOG").unwrap_or_else(|_| filter.to_owned()))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    settings.check_exposure()?;
    let passwords = settings.htpasswd.map(Passwords::load).transpose();
    let passwords = passwords
        .map_err(|error| anyhow!("--htpasswd {error}"))?
        .map(Arc::new);
    let tls = settings.tls_cert.zip(settings.tls_key);
    let tls = tls
        .map(|(certificate, key)| Tls::load(certificate, key))
        .transpose();
    let tls = tls.map_err(|error| anyhow!("TLS: {error}"))?.map(Arc::new);
    whelk_sys::process::raise_file_limit();
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.with_context(|| format!("listen at {}", settings.listen))?;
    let registry = Registry::open(&settings.root).map_err(|error| anyhow!("--root {error}"))?;
    let stop = stop_requested()?;
    let reload = reload_requested(async || {
        let outcomes = [
            passwords.as_ref().map(|passwords| passwords.reload()),
            tls.as_ref().map(|tls| tls.reload()),
        ];
        for outcome in outcomes.into_iter().flatten() {
            match outcome {
                Ok(()) => tracing::info!("passwords and certificates are read again"),
                Err(error) => tracing::error!("reload: {error}"),
            }
        }
    })?;
    tracing::info!("listening at {}", listener.local_addr()?);
    systemd::notify_ready();
    let access = Access {
        passwords: passwords.clone(),
        tls: tls.clone(),
    };
    tokio::select! {
        () = whelk_distribution::serve(registry, listener, access) => {}
        () = reload => {}
        () = stop => tracing::info!("stopping"),
    }
    Ok(())
}

impl Serve {
    /// Checks that other hosts can connect only if passwords are asked for, and not sent in the clear.
    fn check_exposure(&self) -> anyhow::Result<()> {
        let is_protected = self.htpasswd.is_some() && self.tls_cert.is_some();
        let is_local = self.listen.ip().to_canonical().is_loopback();
        if is_local || is_protected || self.insecure {
            return Ok(());
        }
        bail!(
            "--listen {}: other hosts could connect; use --htpasswd, --tls-cert and --tls-key, or --insecure to allow that without them",
            self.listen
        );
    }
}
