//! The commands of `whelk oci`, one function each.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use serde_json::json;
use whelk_runtime::cgroup::{Cgroup, DEFAULT_RULES};
use whelk_runtime::launch::{self, Gate, Launch};
use whelk_runtime::spec::{DeviceRule, Pids, Process, Resources, Spec, VERSION};
use whelk_runtime::{Error, Result, Rootfs, caps, exec, hooks, seccomp, state_json};
use whelk_sys::{fs, signal};

use crate::state::{StateFile, Status, directory, process};
use crate::{Cli, Command, Create, Delete, ExecOptions, Kill, List, Log, Ps, Update};

pub(crate) fn run(cli: Cli, log: &Log) -> Result<u8> {
    if cli.systemd_cgroup {
        return Err(Error::invalid(
            "--systemd-cgroup: the systemd cgroup driver is not supported by this version of whelk",
        ));
    }
    let root = cli.root.as_path();
    match cli.command {
        Command::Create(args) => create(root, &args, log).map(|()| 0),
        Command::Start { id } => start(root, &id).map(|()| 0),
        Command::Run(args) => {
            // Orphans of the container become children of this process, which reaps them.
            let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
            create(root, &args.create, log)?;
            start(root, &args.create.id)?;
            if args.detach {
                return Ok(0);
            }
            let state = StateFile::load(root, &args.create.id)?;
            let code = wait_for(state.pid)?;
            delete(
                root,
                &Delete {
                    force: true,
                    id: args.create.id,
                },
                log,
            )?;
            Ok(code)
        }
        Command::State { id } => {
            let state = describe(root, &StateFile::load(root, &id)?)?;
            print(&format!("{state:#}\n")).map(|()| 0)
        }
        Command::Kill(args) => kill(root, &args).map(|()| 0),
        Command::Delete(args) => delete(root, &args, log).map(|()| 0),
        Command::Exec(args) => exec(root, args, log),
        Command::Ps(args) => ps(root, &args).map(|()| 0),
        Command::List(args) => list(root, &args).map(|()| 0),
        Command::Pause { id } => freeze(root, &id, true).map(|()| 0),
        Command::Resume { id } => freeze(root, &id, false).map(|()| 0),
        Command::Update(args) => update(root, args).map(|()| 0),
        Command::Features => print(&format!("{:#}\n", features())).map(|()| 0),
        Command::Spec(args) => {
            let path = args.bundle.join("config.json");
            if fs::exists(&path) {
                return Err(Error::invalid(format!("{} exists already", path.display())));
            }
            fs::write(&path, format!("{:#}\n", example()))?;
            Ok(0)
        }
    }
}

fn describe(root: &Path, state: &StateFile) -> Result<serde_json::Value> {
    let directory = directory(root, &state.id)?;
    let status = state.status(&directory)?;
    let pid = if status == Status::Stopped {
        0
    } else {
        state.pid
    };
    let spec = state.spec(&directory)?;
    let mut value = state_json(
        &state.id,
        status.as_str(),
        pid,
        &state.bundle,
        &spec.annotations,
    );
    value["created"] = json!(state.created);
    Ok(value)
}

fn create(root: &Path, args: &Create, log: &Log) -> Result<()> {
    let bundle = fs::canonicalize(&args.bundle.bundle)?;
    let config = fs::read(bundle.join("config.json"))?;
    let mut spec: Spec = serde_json::from_slice(&config)
        .map_err(|error| Error::invalid(format!("config.json: {error}")))?;
    if !spec.oci_version.starts_with("1.") {
        return Err(Error::invalid(format!(
            "config.json has ociVersion {:?}, but this runtime supports 1.x only",
            spec.oci_version
        )));
    }
    let terminal = spec
        .process
        .as_ref()
        .is_some_and(|process| process.terminal);
    if terminal != args.console_socket.is_some() {
        return Err(Error::invalid(if terminal {
            "a terminal needs --console-socket"
        } else {
            "--console-socket needs a terminal in the configuration"
        }));
    }
    spec.process
        .iter_mut()
        .for_each(|process| remove_unknown_capabilities(process, log));
    check_preserved(args.preserve_fds)?;
    whelk_sys::mount::check_root_directory().map_err(|error| Error::Os(error.to_string()))?;
    let path = cgroup_path(&args.id, &spec);
    let mut cgroup = Cgroup::at(&path)?;
    let directory = directory(root, &args.id)?;
    fs::create_dir_all(root, 0o700)?;
    fs::create_dir(&directory, 0o700).map_err(|error| {
        if error.source.kind() == std::io::ErrorKind::AlreadyExists {
            Error::State(format!(
                "container with given ID {} already exists",
                args.id
            ))
        } else {
            error.into()
        }
    })?;
    let made = fs::write(directory.join("config.json"), &config)
        .map_err(Error::from)
        .and_then(|()| create_process(args, &spec, &bundle, &directory, &mut cgroup, path));
    if made.is_err() {
        let _ = cgroup.remove();
        let _ = fs::remove_tree(&directory);
    }
    made
}

fn cgroup_path(id: &str, spec: &Spec) -> String {
    if spec.linux.cgroups_path.is_empty() {
        format!("/{id}")
    } else {
        format!("/{}", spec.linux.cgroups_path.trim_start_matches('/'))
    }
}

/// Removes unknown capabilities and logs a warning: by the OCI specification they are not an error.
fn remove_unknown_capabilities(process: &mut Process, log: &Log) {
    let Some(sets) = &mut process.capabilities else {
        return;
    };
    let mut unknown = BTreeSet::new();
    for set in [
        &mut sets.bounding,
        &mut sets.effective,
        &mut sets.permitted,
        &mut sets.inheritable,
        &mut sets.ambient,
    ] {
        unknown.extend(set.extract_if(.., |name| caps::number(name).is_none()));
    }
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.into_iter().collect();
        log.write(
            "warning",
            &format!(
                "ignoring unknown or unavailable capabilities: [{}]",
                names.join(" ")
            ),
        );
    }
}

/// Checks the descriptors of `--preserve-fds`.
///
/// # Errors
/// Returns an error if a descriptor to preserve is not open.
fn check_preserved(count: u32) -> Result<()> {
    match (3..3u32.saturating_add(count))
        .find(|number| !fs::exists(format!("/proc/self/fd/{number}")))
    {
        Some(number) => Err(Error::invalid(format!(
            "--preserve-fds {count}: descriptor {number} is not open"
        ))),
        None => Ok(()),
    }
}

/// Creates the cgroup and the first process of a container, and writes its state.
fn create_process(
    args: &Create,
    spec: &Spec,
    bundle: &Path,
    directory: &Path,
    cgroup: &mut Cgroup,
    path: String,
) -> Result<()> {
    let root_path = spec
        .root
        .as_ref()
        .map(|root| bundle.join(&root.path))
        .ok_or_else(|| Error::invalid("the configuration has no root"))?;
    let rootfs = Rootfs::Directory(fs::canonicalize(root_path)?);
    let filter = spec
        .linux
        .seccomp
        .as_ref()
        .map(seccomp::compile)
        .transpose()?;
    let fifo_path = directory.join("exec.fifo");
    let step =
        |error: rustix::io::Errno| Error::Os(format!("create {}: {error}", fifo_path.display()));
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo_path, Mode::from_raw_mode(0o600)).map_err(step)?;
    // Opened for reading and writing: a reader then waits for a byte instead of returning when a
    // writer closes the FIFO.
    let fifo = rustix::fs::open(&fifo_path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(step)?;
    cgroup.create(&with_default_devices(&spec.linux.resources))?;
    let launch = Launch {
        id: &args.id,
        spec,
        bundle,
        rootfs: &rootfs,
        scratch: directory,
        user: None,
        make_cwd: true,
        filter: filter.as_ref(),
        streams: None,
        preserved: args.preserve_fds,
        gate: Gate::Fifo(fifo),
    };
    let created = launch::create(&launch, Some(cgroup))?;
    let pid = created.pid.as_raw_nonzero().get();
    let finish = || -> Result<()> {
        if let (Some(terminal), Some(socket)) = (&created.terminal, &args.console_socket) {
            send_terminal(terminal, socket)?;
        }
        let (_, start_time) = process(pid)
            .ok_or_else(|| Error::Os("the container's first process has ended".into()))?;
        StateFile {
            id: args.id.clone(),
            pid,
            start_time,
            bundle: bundle.to_owned(),
            cgroup: path,
            created: jiff::Timestamp::now().to_string(),
        }
        .save(directory)?;
        args.pid_file.as_ref().map_or(Ok(()), |file| {
            fs::replace(file, pid.to_string(), 0o644).map_err(Into::into)
        })
    };
    finish().inspect_err(|_| {
        let _ = signal::pidfd_send(&created.pidfd, 9);
        let _ = waitpid(Some(created.pid), WaitOptions::empty());
    })
}

/// Returns the limits with the default device rules added, which are allowed for every container.
fn with_default_devices(resources: &Resources) -> Resources {
    let mut resources = resources.clone();
    if !resources.devices.is_empty() {
        resources
            .devices
            .extend(
                DEFAULT_RULES
                    .iter()
                    .map(|&(kind, major, minor, access)| DeviceRule {
                        allow: true,
                        kind: Some(kind),
                        major,
                        minor,
                        access: access.to_owned(),
                    }),
            );
    }
    resources
}

/// Sends the master end of a terminal to the listener at the socket `path`.
fn send_terminal(terminal: &OwnedFd, path: &Path) -> Result<()> {
    let step = |error: rustix::io::Errno| {
        Error::Os(format!("send the terminal to {}: {error}", path.display()))
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(step)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(step)?).map_err(step)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [terminal.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        &socket,
        &[IoSlice::new(b"/dev/ptmx")],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(step)
}

fn start(root: &Path, id: &str) -> Result<()> {
    let state = StateFile::load(root, id)?;
    let directory = directory(root, id)?;
    let status = state.status(&directory)?;
    if status != Status::Created {
        return Err(Error::State(format!(
            "cannot start a container that is {}",
            status.as_str()
        )));
    }
    let path = directory.join("exec.fifo");
    let step = |error: rustix::io::Errno| Error::Os(format!("start container {id}: {error}"));
    let fifo = rustix::fs::open(
        &path,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step)?;
    // If this process is killed from here on, the container runs and can be started once more,
    // which has no effect.
    rustix::io::write(&fifo, b"0").map_err(step)?;
    fs::remove_file(&path)?;
    let spec = state.spec(&directory)?;
    hooks::run(&spec.hooks.poststart, &describe(root, &state)?)
}

/// Waits for a child and returns its exit code, or 128 plus the number of the signal that
/// terminated it.
fn wait_for(pid: i32) -> Result<u8> {
    let pid = Pid::from_raw(pid).ok_or_else(|| Error::Os("no process to wait for".into()))?;
    let status: Option<(Pid, WaitStatus)> = waitpid(Some(pid), WaitOptions::empty())
        .map_err(|error| Error::Os(format!("wait for process {pid}: {error}")))?;
    let code = status.and_then(|(_, status)| {
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
    });
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX))
}

fn kill(root: &Path, args: &Kill) -> Result<()> {
    let number = whelk_text::signal::parse(&args.signal)
        .map_err(|_| Error::invalid(format!("unknown signal {:?}", args.signal)))?;
    let state = StateFile::load(root, &args.id)?;
    if args.all {
        for pid in state.cgroup()?.processes()? {
            let _ = signal::kill(pid, number);
        }
        return Ok(());
    }
    signal::pidfd_send(state.open_process()?, number).map_err(|error| {
        Error::Os(format!(
            "signal container {}: {}",
            args.id,
            whelk_sys::errno_text(&error)
        ))
    })
}

fn delete(root: &Path, args: &Delete, log: &Log) -> Result<()> {
    let state = match StateFile::load(root, &args.id) {
        Err(Error::State(_)) if args.force => {
            return remove_incomplete(&args.id, &directory(root, &args.id)?);
        }
        state => state?,
    };
    let directory = directory(root, &args.id)?;
    let status = state.status(&directory)?;
    if matches!(status, Status::Running | Status::Paused) && !args.force {
        return Err(Error::State(format!(
            "cannot delete container {} that is not stopped: {}",
            args.id,
            status.as_str()
        )));
    }
    let cgroup = state.cgroup()?;
    if status != Status::Stopped {
        let _ = cgroup.freeze(false);
        cgroup.kill_all()?;
        if let Ok(process) = state.open_process() {
            let _ = signal::pidfd_send(process, 9);
        }
        // Poll, because the process may be the child of another process, which reaps it.
        const ATTEMPTS: u32 = 2_000;
        for _ in 0..ATTEMPTS {
            if state.status(&directory)? == Status::Stopped {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let spec = state.spec(&directory)?;
    cgroup.remove()?;
    fs::remove_tree(&directory)?;
    // poststop hooks run after the container is deleted, and their failure does not keep it (OCI
    // runtime specification).
    let state = state_json(&state.id, "stopped", 0, &state.bundle, &spec.annotations);
    for hook in &spec.hooks.poststop {
        if let Err(error) = hooks::run(std::slice::from_ref(hook), &state) {
            log.write("warning", &format!("poststop {error}"));
        }
    }
    Ok(())
}

/// Removes what a killed `create` has left behind: it had not written its state yet.
fn remove_incomplete(id: &str, directory: &Path) -> Result<()> {
    if let Ok(config) = fs::read(directory.join("config.json"))
        && let Ok(spec) = serde_json::from_slice::<Spec>(&config)
    {
        let cgroup = Cgroup::at(&cgroup_path(id, &spec))?;
        cgroup.kill_all()?;
        cgroup.remove()?;
    }
    Ok(fs::remove_tree(directory)?)
}

fn exec(root: &Path, args: ExecOptions, log: &Log) -> Result<u8> {
    let state = StateFile::load(root, &args.id)?;
    let directory = directory(root, &args.id)?;
    let status = state.status(&directory)?;
    let is_allowed = matches!(status, Status::Running | Status::Created)
        || status == Status::Paused && args.ignore_paused;
    if !is_allowed {
        return Err(Error::State(format!(
            "cannot exec in a container that is {}",
            status.as_str()
        )));
    }
    let spec = state.spec(&directory)?;
    let mut wanted = wanted_process(&spec, &args)?;
    remove_unknown_capabilities(&mut wanted, log);
    check_preserved(args.preserve_fds)?;
    let filter = spec
        .linux
        .seccomp
        .as_ref()
        .map(seccomp::compile)
        .transpose()?;
    let request = exec::ExecRequest {
        init: &state.open_process()?,
        container: &args.id,
        linux: &spec.linux,
        process: &wanted,
        user: None,
        filter: filter.as_ref(),
        streams: None,
        preserved: args.preserve_fds,
    };
    let executed = exec::exec(&request, Some(&state.cgroup()?))?;
    let pid = executed.pid.as_raw_nonzero().get();
    if let (Some(terminal), Some(socket)) = (&executed.terminal, &args.console_socket) {
        send_terminal(terminal, socket)?;
    }
    if let Some(file) = &args.pid_file {
        fs::replace(file, pid.to_string(), 0o644)?;
    }
    if args.detach { Ok(0) } else { wait_for(pid) }
}

fn wanted_process(spec: &Spec, args: &ExecOptions) -> Result<Process> {
    let mut wanted = match &args.process {
        Some(file) => serde_json::from_slice(&fs::read(file)?)
            .map_err(|error| Error::invalid(format!("{}: {error}", file.display())))?,
        None => {
            let mut wanted = spec.process.clone().unwrap_or_default();
            wanted.args.clone_from(&args.command);
            wanted.terminal = args.tty;
            wanted.env.extend(args.env.iter().cloned());
            if let Some(cwd) = &args.cwd {
                wanted.cwd.clone_from(cwd);
            }
            if let Some(user) = &args.user {
                let invalid =
                    || Error::invalid(format!("invalid user {user:?}: UID[:GID] is needed"));
                let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
                (wanted.user.uid, wanted.user.gid) = (
                    uid.parse().map_err(|_| invalid())?,
                    gid.parse().map_err(|_| invalid())?,
                );
            }
            wanted
        }
    };
    wanted.terminal |= args.tty;
    if !args.cap.is_empty() {
        let sets = wanted.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(
                args.cap
                    .iter()
                    .filter(|cap| !set.contains(cap))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
    }
    if wanted.args.is_empty() {
        return Err(Error::invalid("no command to execute"));
    }
    if wanted.terminal && args.console_socket.is_none() {
        return Err(Error::invalid("a terminal needs --console-socket"));
    }
    Ok(wanted)
}

/// Writes text to standard output. Unlike `println!`, it does not panic on a closed pipe.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| {
            Error::Os(format!(
                "write to standard output: {}",
                whelk_sys::errno_text(&error)
            ))
        })
}

fn ps(root: &Path, args: &Ps) -> Result<()> {
    let mut pids = StateFile::load(root, &args.id)?.cgroup()?.processes()?;
    pids.sort_unstable();
    match args.format.as_str() {
        "json" => print(&format!("{}\n", json!(pids))),
        "table" => {
            let mut text = "PID     COMMAND\n".to_owned();
            for pid in pids {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                text += &format!("{pid:<7} {}\n", whelk_sys::text::command_line(command));
            }
            print(&text)
        }
        other => Err(Error::invalid(format!(
            "unknown format {other:?}: table or json"
        ))),
    }
}

fn list(root: &Path, args: &List) -> Result<()> {
    let entries = if fs::exists(root) {
        fs::list(root)?
    } else {
        Vec::new()
    };
    let mut found = Vec::new();
    for entry in entries {
        // Skip containers that are being created or deleted.
        if let Some(state) = entry
            .file_name()
            .to_str()
            .and_then(|id| StateFile::load(root, id).ok())
            && let Ok(described) = describe(root, &state)
        {
            found.push(described);
        }
    }
    let text = |value: &serde_json::Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    match args.format.as_str() {
        _ if args.quiet => {
            let ids = found.iter().map(|state| text(&state["id"]) + "\n");
            print(&ids.collect::<String>())
        }
        "json" => print(&format!("{}\n", json!(found))),
        "table" => {
            let mut table = format!(
                "{:<24} {:<8} {:<9} {:<32} CREATED\n",
                "ID", "PID", "STATUS", "BUNDLE"
            );
            for state in &found {
                table += &format!(
                    "{:<24} {:<8} {:<9} {:<32} {}\n",
                    text(&state["id"]),
                    text(&state["pid"]),
                    text(&state["status"]),
                    text(&state["bundle"]),
                    text(&state["created"])
                );
            }
            print(&table)
        }
        other => Err(Error::invalid(format!(
            "unknown format {other:?}: table or json"
        ))),
    }
}

fn freeze(root: &Path, id: &str, frozen: bool) -> Result<()> {
    let state = StateFile::load(root, id)?;
    let status = state.status(&directory(root, id)?)?;
    let is_allowed = if frozen {
        matches!(status, Status::Running | Status::Created)
    } else {
        status == Status::Paused
    };
    if !is_allowed {
        return Err(Error::State(format!(
            "cannot {} a container that is {}",
            if frozen { "pause" } else { "resume" },
            status.as_str()
        )));
    }
    state.cgroup()?.freeze(frozen)
}

fn update(root: &Path, args: Update) -> Result<()> {
    let state = StateFile::load(root, &args.id)?;
    let mut resources: Resources = match &args.resources {
        Some(file) => {
            let bytes = if file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin())
                    .map(String::into_bytes)
                    .map_err(|error| Error::Os(error.to_string()))?
            } else {
                fs::read(file)?
            };
            serde_json::from_slice(&bytes)
                .map_err(|error| Error::invalid(format!("{}: {error}", file.display())))?
        }
        None => Resources::default(),
    };
    resources.devices.clear();
    let (memory, cpu) = (&mut resources.memory, &mut resources.cpu);
    memory.limit = args.memory.or(memory.limit);
    memory.swap = args.memory_swap.or(memory.swap);
    memory.reservation = args.memory_reservation.or(memory.reservation);
    cpu.shares = args.cpu_share.or(cpu.shares);
    cpu.quota = args.cpu_quota.or(cpu.quota);
    cpu.period = args.cpu_period.or(cpu.period);
    for (field, value) in [
        (&mut cpu.cpus, args.cpuset_cpus),
        (&mut cpu.mems, args.cpuset_mems),
    ] {
        if !value.is_empty() {
            *field = value;
        }
    }
    resources.pids = args
        .pids_limit
        .map(|limit| Pids { limit })
        .or(resources.pids.take());
    state.cgroup()?.apply(&resources)
}

fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0", "ociVersionMax": VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": caps::NAMES.as_slice(),
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false},
            "seccomp": {"enabled": true, "archs": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"]},
            "apparmor": {"enabled": true}, "selinux": {"enabled": true}, "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    })
}

/// Returns a configuration that runs a shell in `rootfs`.
fn example() -> serde_json::Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": VERSION,
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["sh"], "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"], "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}, "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "whelk",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
