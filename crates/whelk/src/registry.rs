//! `whelk registry`: a registry of one's own.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use whelk_distribution::{Keep, Passwords, Registry, Rights, Schedule, Settings, Tls, Upstream};
use whelk_registry::Proxies;

use crate::daemon::{Hangups, stop_requested};
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
    /// Serve images that are pushed to this registry, or those of another one
    Serve(Box<Serve>),
    /// Verify the content of a registry that does not run
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    /// Directory of the registry's content
    #[arg(long)]
    root: PathBuf,
    /// Move damaged content out of the way, so that a push sends it again
    #[arg(long)]
    repair: bool,
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
    /// File of rights, with lines WHO ACTIONS REPOSITORIES, such as "ann pull,push team/*"; without it,
    /// every user may do everything
    #[arg(long, value_name = "FILE", requires = "htpasswd")]
    access: Option<PathBuf>,
    /// Let everyone pull, without a password
    #[arg(long, requires = "htpasswd", conflicts_with = "access")]
    anonymous_pull: bool,
    /// Certificate of the server, in PEM form, followed by those between it and its authority
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Be a cache of the registry at this URL, such as https://registry-1.docker.io: what is pulled is
    /// fetched from there and kept, and nothing can be pushed
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// File with USER:PASSWORD for that registry, which only its owner may read
    #[arg(long, value_name = "FILE", requires = "proxy")]
    proxy_credentials: Option<PathBuf>,
    /// How long the cache keeps what nobody pulls, such as 72h
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration, requires = "proxy")]
    proxy_keep: Duration,
    /// Maximum size of the cache, such as 50GB; what was pulled longest ago is removed
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "proxy")]
    proxy_size: Option<u64>,
    /// Time between two collections of garbage; SIGUSR1 begins one at once
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    collect_every: Duration,
    /// How long uploads that nobody continues, and blobs that no manifest names, are kept
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    collect_after: Duration,
    /// Allow other hosts to connect although there are no passwords, or connections are not encrypted
    #[arg(long)]
    insecure: bool,
    /// Enable debug logging
    #[arg(short = 'D', long)]
    debug: bool,
}

/// Parses a duration as Go writes it.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = whelk_text::duration::parse(text).map_err(|error| error.to_string())?;
    match u64::try_from(parsed) {
        Ok(nanoseconds) if nanoseconds > 0 => Ok(Duration::from_nanos(nanoseconds)),
        _ => Err("want a duration above zero".into()),
    }
}

/// Parses a cache's size such as `50GB`. One without a unit is most likely meant otherwise.
fn size(text: &str) -> Result<u64, String> {
    let parsed = whelk_text::size::parse_binary(text).map_err(|error| error.to_string())?;
    match u64::try_from(parsed) {
        Ok(size) if size >= 1 << 20 => Ok(size),
        _ => Err("want at least 1MB".into()),
    }
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
    let settings = match Arguments::parse_from(program.chain(words)).command {
        Command::Serve(settings) => settings,
        Command::Check(settings) => return super::report("registry", check(&settings)),
    };
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

/// Prints the problems of a registry, and what was verified. Problems are an error, also if they were repaired:
/// images that miss content have to be pushed again.
fn check(settings: &Check) -> Result<(), String> {
    let print = |text: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").map_err(|error| format!("write the result: {error}"))
    };
    let registry = Registry::open_existing(&settings.root);
    let registry = registry.map_err(|error| format!("--root {error}"))?;
    let mut printed = Ok(());
    let checked = registry.check(settings.repair, |problem| {
        if printed.is_ok() {
            printed = print(problem);
        }
    })?;
    printed?;
    print(&format!(
        "{} repositories, {} manifests, {} blobs of {} bytes verified",
        checked.repositories, checked.manifests, checked.blobs, checked.bytes
    ))?;
    match checked.problems {
        0 => Ok(()),
        count => Err(format!(
            "check {}: {count} problems",
            settings.root.display()
        )),
    }
}

async fn serve(settings: Box<Serve>) -> anyhow::Result<()> {
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
    let rights = settings.access.map(Rights::load).transpose();
    let rights = rights
        .map_err(|error| anyhow!("--access {error}"))?
        .or_else(|| settings.anonymous_pull.then(Rights::anonymous_pull))
        .map(Arc::new);
    warn_of_unknown_users(passwords.as_deref(), rights.as_deref());
    let keep = Keep {
        time: settings.proxy_keep,
        size: settings.proxy_size,
    };
    let credentials = settings.proxy_credentials;
    let schedule = Schedule {
        every: settings.collect_every,
        age: settings.collect_after,
    };
    let upstream = settings.proxy;
    let upstream = upstream.map(|url| open_upstream(&url, credentials));
    let upstream = upstream.transpose()?;
    let tls = settings.tls_cert.zip(settings.tls_key);
    let tls = tls
        .map(|(certificate, key)| Tls::load(certificate, key))
        .transpose();
    let tls = tls.map_err(|error| anyhow!("TLS: {error}"))?.map(Arc::new);
    whelk_sys::process::raise_file_limit();
    // A signal would end the process until its handler is there: before clients can connect.
    let requests = signal(SignalKind::user_defined1())?;
    let hangups = Hangups::receive()?;
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.map_err(|error| {
        let text = whelk_sys::errno_text(&error);
        anyhow!("listen at {}: {text}", settings.listen)
    })?;
    let source = upstream.as_ref().map(|upstream| upstream.url());
    let registry = Registry::open(&settings.root, source);
    let registry = registry.map_err(|error| anyhow!("--root {error}"))?;
    let collect = collect_on_request(registry.clone(), requests);
    let stop = stop_requested()?;
    let reload = hangups.each(async || {
        let outcomes = [
            ("passwords", passwords.as_ref().map(|file| file.reload())),
            ("rights", rights.as_ref().map(|file| file.reload())),
            ("certificate", tls.as_ref().map(|file| file.reload())),
            ("credentials", upstream.as_ref().map(|file| file.reload())),
        ];
        for (name, outcome) in outcomes {
            match outcome {
                None => {}
                Some(Ok(())) => tracing::info!("reloaded {name}"),
                Some(Err(error)) => tracing::error!("reload {name}: {error}"),
            }
        }
        warn_of_unknown_users(passwords.as_deref(), rights.as_deref());
    });
    tracing::info!("listening at {}", listener.local_addr()?);
    systemd::notify_ready();
    let settings = Settings {
        passwords: passwords.clone(),
        rights: rights.clone(),
        tls: tls.clone(),
        schedule,
        upstream: upstream.clone().map(|upstream| (upstream, keep)),
    };
    tokio::select! {
        () = whelk_distribution::serve(registry, listener, settings) => {}
        () = collect => {}
        () = reload => {}
        () = stop => tracing::info!("stopping"),
    }
    Ok(())
}

/// Rights without a user are no error, so that users can be removed from one file alone.
fn warn_of_unknown_users(passwords: Option<&Passwords>, rights: Option<&Rights>) {
    let users = passwords
        .zip(rights)
        .map(|(passwords, rights)| rights.unknown_users(passwords));
    for user in users.unwrap_or_default() {
        tracing::warn!("--access: {user:?} is not a user of --htpasswd");
    }
}

/// Collects garbage at each SIGUSR1.
async fn collect_on_request(registry: Arc<Registry>, mut requests: Signal) {
    while requests.recv().await.is_some() {
        registry.collect_soon();
    }
}

/// Returns the registry that this one is a cache of.
fn open_upstream(url: &str, credentials: Option<PathBuf>) -> anyhow::Result<Arc<Upstream>> {
    let settings = whelk_registry::Settings {
        proxies: Proxies::from_environment(|name| std::env::var(name).ok()),
        user_agent: format!("whelk-registry/{}", env!("CARGO_PKG_VERSION")),
        ..whelk_registry::Settings::default()
    };
    settings.check()?;
    let upstream = Upstream::new(url, credentials, settings);
    Ok(Arc::new(
        upstream.map_err(|error| anyhow!("--proxy {error}"))?,
    ))
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
