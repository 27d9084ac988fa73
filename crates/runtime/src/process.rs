//! The last steps from a process in its namespaces to its program: limits, user, capabilities,
//! seccomp filter, and the search for the executable.
//!
//! Shared by the first process of a container and by exec. The order of the steps matters; comments
//! give the reasons.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    Gid, Uid, set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use whelk_sys::process::{
    SchedAttr, allow_keyring_joins, cloexec_from, dup_onto, exec, exit_now, join_session_keyring,
    set_io_priority, set_personality, set_scheduler,
};
use whelk_sys::{errno_text, in_root, seccomp, signal};

use crate::caps::Sets;
use crate::error::{Error, Result, os, os_at};
use crate::masks::write_proc;
use crate::seccomp::Filter;
use crate::spec::{Personality, Process, Rlimit as RlimitSpec};
use crate::sync::SyncChannel;
use crate::user::{self, Identity, UserRequest};

/// Returns the user a process will run as: looked up by name if `request` is given, otherwise the
/// ids of the configuration.
pub(crate) fn identity(
    root: &OwnedFd,
    process: &Process,
    request: Option<&UserRequest>,
) -> Result<Identity> {
    match request {
        Some(request) => user::resolve(root, request),
        None => {
            let home = if process.env.iter().any(|entry| entry.starts_with("HOME=")) {
                String::new()
            } else {
                user::home_of(root, process.user.uid)
            };
            Ok(Identity {
                uid: process.user.uid,
                gid: process.user.gid,
                groups: process.user.additional_gids.clone(),
                home,
            })
        }
    }
}

/// Replaces standard input, output and error.
pub(crate) fn replace_streams(streams: [&OwnedFd; 3]) -> Result<()> {
    (0..).zip(streams).try_for_each(|(number, stream)| {
        dup_onto(stream.as_fd(), number).map_err(os("replace standard stream"))
    })
}

/// Makes the process's user the owner of standard streams that are pipes, so that it can reopen
/// them as `/dev/stdout`.
pub(crate) fn chown_streams(uid: u32) {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams.into_iter().filter(|_| uid != 0) {
        if rustix::fs::fstat(stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        {
            let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// Changes to the working directory while still root: as with other engines, a directory that only
/// root may enter works.
pub(crate) fn enter_directory(cwd: &str) -> Result<()> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    rustix::process::chdir(cwd).map_err(|errno| {
        let error = errno.into();
        let text = format!(
            "chdir to cwd ({cwd:?}) set in config.json failed: {}",
            errno_text(&error)
        );
        match errno {
            Errno::NOENT => Error::NoWorkingDirectory(text),
            _ => Error::kernel(text, &error),
        }
    })?;
    // getcwd(2) fails or returns a relative path for a directory outside the root, which is reached
    // through a leaked descriptor (CVE-2024-21626).
    let here = rustix::process::getcwd(Vec::new())
        .map_err(os("current working directory is outside of container mount namespace root -- possible container breakout detected"))?;
    if here.to_bytes().first() == Some(&b'/') {
        Ok(())
    } else {
        Err(Error::Os(
            "current working directory is outside of container mount namespace root -- possible container breakout detected".into(),
        ))
    }
}

/// Creates the working directory if the image lacks it.
pub(crate) fn create_working_directory(root: &OwnedFd, cwd: &str) -> Result<()> {
    match in_root::create_dir_all(root, cwd, Mode::from_raw_mode(0o755)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Err(
            Error::NotADirectory(format!("Cannot mkdir: {cwd} is not a directory")),
        ),
        // The room of a tmpfs or volume that the container has mounted does not grow by waiting.
        Err(error) if is_full(&error) && !is_on_file_system_of(root, cwd) => {
            let text = errno_text(&error);
            Err(Error::Os(format!("mkdir {cwd}: {text}")))
        }
        Err(error) => Err(os_at("mkdir", cwd)(error)),
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOSPC | Errno::DQUOT)
    )
}

/// Whether the deepest existing directory of a path is on the file system of `root`.
fn is_on_file_system_of(root: &OwnedFd, path: &str) -> bool {
    let device = |directory: &OwnedFd| rustix::fs::fstat(directory).map(|stat| stat.st_dev).ok();
    let deepest = Path::new(path).ancestors().find_map(|directory| {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        in_root::open(root, directory, flags, Mode::empty()).ok()
    });
    deepest.is_none_or(|deepest| device(&deepest) == device(root))
}

/// Number of standard streams.
pub(crate) const STREAMS: u32 = 3;

/// Exit status when execve fails after the container counts as started; the same as with other
/// runtimes.
const NOT_EXECUTED: i32 = 255;

/// A process after all steps that can fail with a clear message: its executable is found, its
/// arguments are converted, its limits are set.
pub(crate) struct Prepared<'a> {
    process: &'a Process,
    identity: Identity,
    sets: Option<Sets>,
    filter: Option<&'a Filter>,
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    preserved: u32,
}

/// Parameters of [`prepare`] besides the process's own configuration.
pub(crate) struct PrepareOptions<'a> {
    pub identity: Identity,
    pub filter: Option<&'a Filter>,
    pub personality: Option<&'a Personality>,
    /// Number of descriptors after the three standard streams that the program inherits.
    pub preserved: u32,
}

/// Opens `/proc/self` of the host's procfs. Must be called before anything of the container is
/// entered: what is mounted at `/proc` there is the container's choice, and the host's procfs
/// mounted in it would number the processes differently.
pub(crate) fn own_proc() -> Result<OwnedFd> {
    rustix::fs::open(
        "/proc/self",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(os_at("open", "/proc/self"))
}

/// Sets `oom_score_adj` of the process, which its children inherit.
pub(crate) fn set_oom_score(own_proc: &OwnedFd, process: &Process) -> Result<()> {
    process.oom_score_adj.map_or(Ok(()), |score| {
        write_proc(own_proc, "oom_score_adj", &score.to_string())
    })
}

/// Sets limits and priorities, changes the working directory and the user, and finds the
/// executable.
pub(crate) fn prepare<'a>(
    process: &'a Process,
    options: PrepareOptions<'a>,
) -> Result<Prepared<'a>> {
    let PrepareOptions {
        identity,
        filter,
        personality,
        preserved,
    } = options;
    let sets = process
        .capabilities
        .as_ref()
        .map(Sets::resolve)
        .transpose()?;
    process.rlimits.iter().try_for_each(set_limit)?;
    if let Some(personality) = personality {
        set_personality(personality_domain(personality)?).map_err(os("set personality"))?;
    }
    if let Some(priority) = &process.io_priority {
        set_io_priority(io_class(&priority.class)?, priority.priority)
            .map_err(os("set I/O priority"))?;
    }
    if let Some(scheduler) = &process.scheduler {
        set_scheduler(scheduler_attr(scheduler)?).map_err(os("set scheduler"))?;
    }
    enter_directory(&process.cwd)?;
    let environment = environment(process, &identity)?;
    let arguments = process
        .args
        .iter()
        .map(|argument| c_string(argument))
        .collect::<Result<Vec<_>>>()?;
    if process.no_new_privileges {
        set_no_new_privs(true).map_err(os("set no_new_privs"))?;
    }
    let mut prepared = Prepared {
        process,
        identity,
        sets,
        filter,
        program: CString::default(),
        arguments,
        environment,
        preserved,
    };
    prepared.become_user()?;
    // As the target user, so that a file that only root may execute is reported as not executable.
    prepared.program = find_program(process)?;
    Ok(prepared)
}

impl Prepared<'_> {
    fn become_user(&self) -> Result<()> {
        let Identity {
            uid, gid, groups, ..
        } = &self.identity;
        if let Some(sets) = &self.sets {
            sets.apply_bounding()?;
        }
        set_keep_capabilities(true).map_err(os("keep capabilities"))?;
        let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        match set_thread_groups(&groups) {
            // EPERM: the user namespace's `setgroups` file says "deny"; there is nothing to set
            // then.
            Err(Errno::PERM) if groups.is_empty() => {}
            result => result.map_err(os("setgroups"))?,
        }
        let (gid, uid) = (Gid::from_raw(*gid), Uid::from_raw(*uid));
        set_thread_res_gid(gid, gid, gid).map_err(os("setgid"))?;
        set_thread_res_uid(uid, uid, uid).map_err(os("setuid"))?;
        rustix::process::umask(Mode::from_raw_mode(
            self.process.user.umask.unwrap_or(0o022),
        ));
        Ok(())
    }

    /// Installs the seccomp filter, sets the final capabilities, and calls execve. Returns only if
    /// a step before execve fails. If execve itself fails, writes the reason to standard error and
    /// to `starter`, if one waits for the program, and exits with [`NOT_EXECUTED`]: the container
    /// counts as started by then.
    pub(crate) fn execute(self, starter: Option<&SyncChannel>) -> Error {
        match self.try_execute(starter) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_execute(self, starter: Option<&SyncChannel>) -> Result<std::convert::Infallible> {
        set_keep_capabilities(false).map_err(os("drop keep-capabilities"))?;
        // These come before the filter, because a profile need not allow their system calls.
        cloexec_from(STREAMS + self.preserved).map_err(os("close_range"))?;
        signal::reset_all().map_err(os("reset signals"))?;
        // Installing a filter needs CAP_SYS_ADMIN unless no_new_privs is set. So without
        // no_new_privs it is installed before the capabilities are dropped, and otherwise as late
        // as possible. Changing the user has cleared the effective set: raise it for this step.
        if !self.process.no_new_privileges {
            self.raise_effective()?;
            self.install_filter()?;
        }
        if let Some(sets) = &self.sets {
            sets.apply()?;
        }
        if self.process.no_new_privileges {
            self.install_filter()?;
        }
        let error = exec(&self.program, &self.arguments, &self.environment);
        let text = format!(
            "exec {}: {}",
            self.program.to_string_lossy(),
            errno_text(&error)
        );
        let _ = rustix::io::write(rustix::stdio::stderr(), format!("{text}\n").as_bytes());
        if let Some(starter) = starter {
            starter.not_executed(&text);
        }
        exit_now(NOT_EXECUTED)
    }

    fn raise_effective(&self) -> Result<()> {
        use rustix::thread::{capabilities, set_capabilities};
        if self.filter.is_none() {
            return Ok(());
        }
        let mut sets = capabilities(None).map_err(os("read capabilities"))?;
        sets.effective = sets.permitted;
        set_capabilities(None, sets).map_err(os("raise capabilities"))
    }

    fn install_filter(&self) -> Result<()> {
        let Some(filter) = self.filter else {
            return Ok(());
        };
        let listener = seccomp::install(&filter.program, filter.flags)
            .map_err(os("install seccomp filter"))?;
        match (listener, &filter.listener) {
            (Some(fd), Some((path, metadata))) => send_listener(&fd, path, metadata),
            _ => Ok(()),
        }
    }
}

/// Sends the seccomp notification descriptor to the agent that the configuration names
/// (`listenerPath` of the OCI runtime specification).
fn send_listener(fd: &OwnedFd, path: &str, metadata: &str) -> Result<()> {
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType, connect, sendmsg, socket_with,
    };
    let step = || os_at::<Errno>("send seccomp listener to", path);
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(step())?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(step())?).map_err(step())?;
    let state = serde_json::json!({"ociVersion": crate::spec::VERSION, "fds": ["seccompFd"], "pid": rustix::process::getpid().as_raw_nonzero(), "metadata": metadata});
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        &socket,
        &[std::io::IoSlice::new(state.to_string().as_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(step())
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("argument {text:?} contains a NUL byte")))
}

/// Returns the environment of the program, with `HOME` added if the configuration does not set it.
/// Of a repeated name the last value is used.
///
/// # Errors
/// Returns an error if an entry has no `=` or no name.
fn environment(process: &Process, identity: &Identity) -> Result<Vec<CString>> {
    let mut has_home = false;
    let mut last = HashMap::with_capacity(process.env.len());
    for (index, entry) in process.env.iter().enumerate() {
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                has_home |= name == "HOME" && !value.is_empty();
                last.insert(name, index);
            }
            _ => {
                return Err(Error::invalid(format!(
                    "invalid environment variable {entry:?}"
                )));
            }
        }
    }
    let mut environment = Vec::with_capacity(process.env.len() + 1);
    for (index, entry) in process.env.iter().enumerate() {
        let counts = entry
            .split_once('=')
            .is_some_and(|(name, _)| last.get(name) == Some(&index));
        if counts && entry != "HOME=" {
            environment.push(c_string(entry)?);
        }
    }
    if !has_home {
        environment.push(c_string(&format!("HOME={}", identity.home))?);
    }
    Ok(environment)
}

/// Finds the executable in the `PATH` of the process's own environment, like execvp(3).
fn find_program(process: &Process) -> Result<CString> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => c_string(name),
            Err(Errno::ACCESS) => Err(permission_denied(name)),
            Err(Errno::ISDIR) => Err(Error::ProgramIsDirectory(format!(
                "exec: {name:?}: is a directory"
            ))),
            Err(error) => Err(Error::CommandNotFound(format!(
                "exec: {name:?}: stat {name}: {}",
                errno_text(&error.into())
            ))),
        };
    }
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut refused = None;
    for directory in path.split(':').filter(|_| !name.is_empty()) {
        let candidate = format!(
            "{}/{name}",
            if directory.is_empty() { "." } else { directory }
        );
        match executable(&candidate) {
            Ok(()) => return c_string(&candidate),
            Err(Errno::ACCESS) => refused = Some(candidate),
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(_) => permission_denied(name),
        None => Error::CommandNotFound(format!(
            "exec: {name:?}: executable file not found in $PATH"
        )),
    })
}

fn executable(path: &str) -> std::result::Result<(), Errno> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    // AT_EACCESS: check for the effective user, which is the container's by now.
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn permission_denied(name: &str) -> Error {
    Error::NotExecutable(format!("exec: {name:?}: permission denied"))
}

fn set_limit(limit: &RlimitSpec) -> Result<()> {
    let resource = match limit.kind.as_str() {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        other => return Err(Error::invalid(format!("invalid rlimit type {other:?}"))),
    };
    let value = |number: u64| (number != u64::MAX).then_some(number);
    setrlimit(
        resource,
        Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        },
    )
    .map_err(os_at("error setting rlimit type", &limit.kind))
}

/// Sets the AppArmor profile and the SELinux label for the next execve. A label that no security
/// module of this host accepts is an error, so that it cannot be mistaken for protection.
pub(crate) fn label(own_proc: &OwnedFd, process: &Process) -> Result<()> {
    if !process.apparmor_profile.is_empty() && process.apparmor_profile != "unconfined" {
        const OWN_DIRECTORY: &str = "attr/apparmor/exec";
        let path = if rustix::fs::statat(own_proc, OWN_DIRECTORY, AtFlags::empty()).is_ok() {
            OWN_DIRECTORY
        } else {
            "attr/exec"
        };
        write_proc(
            own_proc,
            path,
            &format!("exec {}", process.apparmor_profile),
        )
        .map_err(|error| error.during("apply apparmor profile"))?;
    }
    if !process.selinux_label.is_empty() {
        write_proc(own_proc, "attr/exec", &process.selinux_label)
            .map_err(|error| error.during("apply selinux label"))?;
    }
    Ok(())
}

fn personality_domain(personality: &Personality) -> Result<u64> {
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(Error::invalid(format!(
            "unknown personality domain {other:?}"
        ))),
    }
}

fn io_class(class: &str) -> Result<u32> {
    match class {
        "IOPRIO_CLASS_RT" => Ok(1),
        "IOPRIO_CLASS_BE" => Ok(2),
        "IOPRIO_CLASS_IDLE" => Ok(3),
        other => Err(Error::invalid(format!(
            "unknown I/O priority class {other:?}"
        ))),
    }
}

fn scheduler_attr(scheduler: &crate::spec::Scheduler) -> Result<SchedAttr> {
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => {
            return Err(Error::invalid(format!(
                "unknown scheduler policy {other:?}"
            )));
        }
    };
    let flags = scheduler.flags.iter().try_fold(0u64, |flags, name| {
        Ok(flags
            | match name.as_str() {
                "SCHED_FLAG_RESET_ON_FORK" => 0x01,
                "SCHED_FLAG_RECLAIM" => 0x02,
                "SCHED_FLAG_DL_OVERRUN" => 0x04,
                "SCHED_FLAG_KEEP_POLICY" => 0x08,
                "SCHED_FLAG_KEEP_PARAMS" => 0x10,
                "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
                "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
                other => return Err(Error::invalid(format!("unknown scheduler flag {other:?}"))),
            })
    })?;
    Ok(SchedAttr {
        policy,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    })
}

/// Becomes root of the current user namespace.
pub(crate) fn become_root() -> Result<()> {
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(os("become root of the user namespace"))?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(os("become root of the user namespace"))
}

/// Joins the container's session keyring, which `first` creates. Without kernel support for
/// keyrings this does nothing.
pub(crate) fn join_keyring(container: &str, first: bool) -> Result<()> {
    let joined = join_session_keyring(&c_string(&format!("_ses.{container}"))?);
    match joined.and_then(|serial| {
        if first {
            allow_keyring_joins(serial)
        } else {
            Ok(())
        }
    }) {
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => Ok(()),
        result => result.map_err(os("join the container's session keyring")),
    }
}
