//! `whelk daemon`: the engine's process.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, FromArgMatches as _};
use whelk_engine::Engine;
use whelk_engine::instance::{DEFAULT_INSTANCE, Instance};
use whelk_sys::fs;

use crate::config::{self, Given, Source};
use crate::listen::{self, Hosts, listen};
use crate::log::Log;
use crate::pidfile::PidFile;
use crate::reload::Reload;
use crate::systemd;

pub(crate) const DEFAULT_SOCKET: &str = "/run/whelk/whelk.sock";

/// The flags that are not settings: those are in [`config`].
#[derive(Debug, Args)]
struct Arguments {
    /// Configuration file with the keys of Docker's daemon.json [default: /etc/whelk/daemon.json]
    // The default file need not exist.
    #[arg(long)]
    config_file: Option<PathBuf>,
    /// Remove the bridges, firewall rules and cgroups of this instance from the host and exit; its
    /// directories are kept
    #[arg(long)]
    uninstall: bool,
    /// Check the flags and the configuration file, and exit
    #[arg(long, conflicts_with = "uninstall")]
    validate: bool,
    /// Detach from the terminal and the working directory
    #[arg(long, hide = true)]
    background: bool,
}

const MAX_FILE_SIZE: u64 = 1 << 20;
/// Worker threads of the runtime. Blocking work runs on other threads; besides the API, these
/// answer the DNS queries of all containers.
const WORKERS: usize = 4;
/// Heaps of the C library's allocator. With more, the engine keeps up to three times as much memory after a build; with one,
/// threads wait for each other.
const HEAPS: u16 = 2;

/// Returns the command's definition, also for its manual page.
pub(crate) fn definitions() -> clap::Command {
    let command = clap::Command::new("whelk daemon").version(env!("CARGO_PKG_VERSION"));
    // After the arguments, whose documentation it would be otherwise.
    Arguments::augment_args(config::define(command))
        .about("Run the whelk engine")
        .long_about(None)
}

pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let words = arguments.skip(usize::from(
        std::env::args_os()
            .nth(1)
            .is_some_and(|word| word == "daemon"),
    ));
    let see_help =
        |text: String| super::report("daemon", Err(format!("{text}\nSee 'whelk daemon --help'")));
    let words = match whelk_cli::read_flags(definitions(), words) {
        Ok(words) => words,
        Err(text) => return see_help(text),
    };
    let matches =
        definitions().get_matches_from(std::iter::once("whelk daemon".to_owned()).chain(words));
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let given = match Given::read(&matches) {
        Ok(given) => given,
        Err(error) => return see_help(format!("{error:#}")),
    };
    if arguments.background {
        // Fails for a process group leader, which has a session of its own already.
        let _ = rustix::process::setsid();
    }
    // Must run before anything else opens a descriptor.
    let inherited = systemd::sockets();
    // Files that containers see must not depend on the umask of the shell that started the engine.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    whelk_sys::process::limit_heaps(HEAPS);
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("start the runtime")
        .and_then(|runtime| {
            let result = runtime.block_on(run(arguments, given, inherited));
            // Blocking work that has not ended must not keep the process alive.
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        });
    super::report("daemon", result.map_err(|error| format!("{error:#}")))
}

async fn run(
    arguments: Arguments,
    given: Given,
    inherited: anyhow::Result<Vec<systemd::Socket>>,
) -> anyhow::Result<()> {
    if !arguments.validate && !rustix::process::geteuid().is_root() {
        bail!("the engine must run as root: it creates namespaces, mounts and network interfaces");
    }
    let source = Source::new(arguments.config_file.as_deref(), given)?;
    if arguments.uninstall {
        let mut file = source.read_place()?;
        let _log = Log::start(&file)?;
        return uninstall(&instance(&mut file)?);
    }
    let mut settings = source.read()?;
    let log = Log::start(&settings.file)?;
    let file = &mut settings.file;
    let mut hosts = Hosts {
        api: std::mem::take(&mut file.hosts),
        buildkit: std::mem::take(&mut file.buildkit_hosts),
    };
    if hosts.api.is_empty() {
        hosts.api.push(format!("unix://{DEFAULT_SOCKET}"));
    }
    let (tls, pidfile) = (file.tls(), file.pidfile.take());
    let oom_score = file.oom_score_adjust;
    let group = file.group.take().map(|name| group_id(&name));
    let group = group.transpose()?.or_else(|| group_id("whelk").ok());
    let mut instance = instance(file)?;
    let (build_gc, build_rights) = (file.build_gc()?, file.build_entitlements());
    std::mem::take(file).apply(&mut instance)?;
    // Its errors name the driver's option.
    instance.check().context("log-driver and log-opts")?;
    if arguments.validate {
        listen::check(&hosts, &tls)?;
        // As Docker does it.
        return Ok(writeln!(std::io::stderr(), "configuration OK")?);
    }
    whelk_sys::mount::check_root_directory()?;
    let _instance = lock_instance(&instance)?;
    let (_root, _run) = lock_directories(&instance)?;
    // Before others learn this process's id from the file, for SIGHUP would end it.
    let hangups = Hangups::receive()?;
    let _pidfile = pidfile.map(PidFile::write).transpose()?;
    whelk_sys::process::raise_file_limit();
    if oom_score != 0 {
        fs::write("/proc/self/oom_score_adj", oom_score.to_string()).context("oom-score-adjust")?;
    }
    whelk_sys::signal::ignore(rustix::process::Signal::PIPE.as_raw());
    let executable = std::env::current_exe().context("find this program")?;
    let listeners = listen(&hosts, inherited, &tls, group).await?;
    let listeners = Arc::new(listeners);
    // All paths are absolute from here on. Shims inherit this working directory, so they keep no
    // other one busy.
    rustix::process::chdir("/")?;
    let root = instance.root.clone();
    let hold = |store: &_| whelk_build::Cache::open(&root, store);
    let (engine, cache) = Engine::open_with(instance, executable, hold).await?;
    let builder = whelk_build::Builder::new(engine.clone(), cache?, build_gc, build_rights);
    let api = whelk_api::Api::open(engine.clone(), builder);
    let stop = stop_requested()?;
    let reload = Arc::new(Reload {
        source,
        started_with: settings,
        log,
        engine: engine.clone(),
        listeners: listeners.clone(),
    });
    let reload = hangups.each(async || reload.run().await);
    for socket in &listeners.api {
        tracing::info!("listening at {}", socket.name());
    }
    for socket in &listeners.buildkit {
        tracing::info!("listening at {} with BuildKit's protocol", socket.name());
    }
    systemd::notify_ready();
    tokio::select! {
        () = api.serve(&listeners.api, &listeners.buildkit) => {}
        () = reload => {}
        () = stop => tracing::info!("stopping; containers keep running"),
    }
    systemd::notify_stopping();
    Ok(engine.close().await?)
}

/// Returns the instance that the settings are for, with default settings.
fn instance(file: &mut config::File) -> anyhow::Result<Instance> {
    Ok(Instance::new(
        file.data_root
            .take()
            .unwrap_or_else(|| "/var/lib/whelk".into()),
        file.exec_root.take().unwrap_or_else(|| "/run/whelk".into()),
        file.instance
            .take()
            .unwrap_or_else(|| DEFAULT_INSTANCE.into()),
    )?)
}

/// Removes what an instance has on the host besides its directories.
fn uninstall(instance: &Instance) -> anyhow::Result<()> {
    let is_known = fs::exists(instance_lock(instance));
    if !is_known && !fs::exists(instance.database()) {
        bail!(
            "instance {:?} with root {} does not exist on this host",
            instance.name,
            instance.root.display()
        );
    }
    let _instance = lock_instance(instance)?;
    let locked = lock_directories(instance);
    if locked.is_err() && !is_known {
        let _ = fs::remove_file(instance_lock(instance));
    }
    let (root, _run) = locked?;
    Engine::uninstall(instance)?;
    // The root may be used under another instance name from now on.
    rustix::fs::ftruncate(&root, 0)?;
    Ok(fs::remove_file(instance_lock(instance))?)
}

/// Locks an instance's root, which must belong to it, and its run directory.
fn lock_directories(instance: &Instance) -> anyhow::Result<(std::fs::File, std::fs::File)> {
    let (root, run) = (lock(&instance.root)?, lock(&instance.run)?);
    Ok((check_owner(root, instance)?, run))
}

/// Creates and locks a data or run directory, so that no second engine uses it.
pub(crate) fn lock(directory: &Path) -> anyhow::Result<std::fs::File> {
    fs::create_dir_all(directory, 0o700)?;
    let file = fs::append(directory.join("lock"), 0o600)?;
    if is_locked(&file) {
        bail!(
            "{} is in use by another engine{}",
            directory.display(),
            describe_holder(&file)
        );
    }
    Ok(file)
}

/// Tries to lock a file. Returns whether another process keeps it locked; a process that was just
/// killed may need a moment to release it.
fn is_locked(file: &std::fs::File) -> bool {
    // Counted, because on a machine that stops for seconds the other process has no time either.
    const TRIES: usize = 100;
    const POLL: Duration = Duration::from_millis(20);
    for _ in 0..TRIES {
        if rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Returns the process that holds a lock and how to replace it, for an error's text: when systemd
/// starts an engine, it may be one that a command has started.
pub(crate) fn describe_holder(lock: &std::fs::File) -> String {
    let locks = fs::read_at_most("/proc/locks", MAX_FILE_SIZE).unwrap_or_default();
    let metadata = lock.metadata().ok();
    let Some(pid) =
        metadata.and_then(|metadata| holder(&String::from_utf8_lossy(&locks), &metadata))
    else {
        return "; stop that engine first (its containers keep running)".into();
    };
    format!(
        " (process {pid}); to replace it, stop it first: `kill {pid}` (its containers keep running)"
    )
}

/// Returns the process that holds a lock on a file: the one of `/proc/locks` (proc(5)) that has the
/// file open with a lock. The file's place there is of no use, because some file systems (btrfs,
/// overlayfs) show other device and inode numbers in it than stat(2) returns.
fn holder(locks: &str, file: &std::fs::Metadata) -> Option<i32> {
    // 1: FLOCK  ADVISORY  WRITE 708 00:13:1087 0 EOF
    // Lines of processes that wait for a lock have "->" before FLOCK.
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, ..] = fields[..] else {
            return None;
        };
        // Not positive for a process outside this pid namespace.
        let pid: i32 = pid.parse().ok()?;
        (pid > 0 && has_locked(pid, file)).then_some(pid)
    })
}

/// Whether a process has a descriptor of the file with a lock on it: its `/proc/PID/fdinfo/FD` has a
/// line such as `lock: 1: FLOCK  ADVISORY  WRITE 708 00:13:1087 0 EOF`.
fn has_locked(pid: i32, file: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |file: &std::fs::Metadata| (file.dev(), file.ino());
    let descriptors = fs::list(format!("/proc/{pid}/fd")).unwrap_or_default();
    descriptors.iter().any(|descriptor| {
        // Follows the link, unlike `fs::metadata`.
        let is_file = std::fs::metadata(descriptor.path()).is_ok_and(|open| id(&open) == id(file));
        let info = Path::new("/proc")
            .join(pid.to_string())
            .join("fdinfo")
            .join(descriptor.file_name());
        is_file
            && fs::read_to_string(info).is_ok_and(|info| {
                info.lines()
                    .any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
            })
    })
}

/// Checks that a root belongs to this instance, whose name is stored in the root's lock file: the
/// names of bridges, rules and cgroups of its containers are derived from it.
fn check_owner(mut lock: std::fs::File, instance: &Instance) -> anyhow::Result<std::fs::File> {
    use std::io::Write;
    let known = fs::read_at_most(instance.root.join("lock"), MAX_FILE_SIZE)?;
    let known = String::from_utf8_lossy(&known);
    if known.is_empty() {
        lock.write_all(instance.name.as_bytes())?;
    } else if known != instance.name {
        bail!(
            "{} belongs to instance {known:?}, not {:?}: use `--instance {known}`, or uninstall that instance first (`--uninstall`)",
            instance.root.display(),
            instance.name
        );
    }
    Ok(lock)
}

fn instance_lock(instance: &Instance) -> std::path::PathBuf {
    format!("/run/whelk-instance-{}.lock", instance.name).into()
}

/// Locks an instance's name, so that no second engine uses the same names for cgroups, interfaces
/// and rules.
fn lock_instance(instance: &Instance) -> anyhow::Result<std::fs::File> {
    use std::io::Write;
    let path = instance_lock(instance);
    let mut file = fs::append(&path, 0o600)?;
    if is_locked(&file) {
        let root = fs::read_at_most(&path, MAX_FILE_SIZE).unwrap_or_default();
        let root = String::from_utf8_lossy(&root);
        bail!(
            "instance {:?} is in use by another engine with root {}{}",
            instance.name,
            root.trim(),
            describe_holder(&file)
        );
    }
    // `--uninstall` removes the file, possibly between opening and locking it.
    let inode = |metadata: std::fs::Metadata| std::os::unix::fs::MetadataExt::ino(&metadata);
    if file.metadata().map(inode).ok() != fs::metadata(&path).map(inode).ok() {
        bail!("instance {:?} is being uninstalled", instance.name);
    }
    // The root is shown in the error of a second engine.
    rustix::fs::ftruncate(&file, 0).and_then(|()| {
        file.write_all(instance.root.display().to_string().as_bytes())
            .map_err(|_| rustix::io::Errno::IO)
    })?;
    Ok(file)
}

fn group_id(name: &str) -> anyhow::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = fs::read_at_most("/etc/group", MAX_FILE_SIZE)?;
    let groups = String::from_utf8_lossy(&groups);
    let found = groups.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(':')?
            .split(':')
            .nth(1)?
            .parse()
            .ok()
    });
    found.with_context(|| format!("group {name} does not exist"))
}

/// Returns a future that resolves on SIGTERM or SIGINT, including those received before it is
/// polled.
pub(crate) fn stop_requested() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// SIGHUP, which does not end the process any more.
pub(crate) struct Hangups(tokio::signal::unix::Signal);

impl Hangups {
    pub(crate) fn receive() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::hangup()).map(Self)
    }

    /// Calls `reload` on each, also if it came earlier, until the future is dropped.
    pub(crate) async fn each(mut self, reload: impl AsyncFn()) {
        while self.0.recv().await.is_some() {
            reload().await;
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_holder_of_a_lock() {
        let scratch = whelk_sys::Scratch::temporary("lock").unwrap();
        let path = scratch.path().join("lock");
        let file = fs::append(&path, 0o600).unwrap();
        let metadata = file.metadata().unwrap();
        let read =
            || String::from_utf8(fs::read_at_most("/proc/locks", MAX_FILE_SIZE).unwrap()).unwrap();
        assert_eq!(holder(&read(), &metadata), None);
        // A lock of this process on another file.
        let other = fs::append(path.with_extension("other"), 0o600).unwrap();
        rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
        assert_eq!(holder(&read(), &metadata), None);
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(holder(&read(), &metadata), Some(own));
        // As on file systems whose device numbers differ there.
        assert_eq!(
            holder(
                &format!("1: FLOCK  ADVISORY  WRITE {own} 00:99:1 0 EOF"),
                &metadata
            ),
            Some(own)
        );
        for unknown in [
            "1: FLOCK  ADVISORY  WRITE 0 00:99:1 0 EOF".to_owned(),
            "1: FLOCK  ADVISORY  WRITE 1 00:99:1 0 EOF".to_owned(),
            format!("1: -> FLOCK  ADVISORY  WRITE {own} 00:99:1 0 EOF"),
        ] {
            assert_eq!(holder(&unknown, &metadata), None, "{unknown}");
        }
    }
}
