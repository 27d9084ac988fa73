//! Startup of a shim: detach from the engine, wait for a container to run, run it.
//!
//! A shim may wait for a long time: the engine keeps a few ready, so that starting a container does
//! not include loading a program. A shim whose engine exits before it got a container exits too.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, listen, recvmsg, socket_with,
};
use rustix::pipe::fcntl_setpipe_size;
use whelk_runtime::cgroup::{Cgroup, remove_hybrid};
use whelk_runtime::launch::{self, Gate};
use whelk_runtime::spec::NamespaceKind;
use whelk_runtime::{Error, Result, Rootfs};
use whelk_sys::process::{CloneFlags, Cloned, clone_process, exit_now};
use whelk_sys::{fs, signal};

use crate::bundle;
use crate::client::Role;
use crate::container::{INIT, Shim, pid_number, set_nonblocking};
use crate::external::External;
use crate::filter;
use crate::forward::Forward;
use crate::logs::{Writer, now};
use crate::losses::Losses;
use crate::poll::{Poll, Token};
use crate::process::{Process, open_pipes};
use crate::protocol::{self, ContainerLaunch, Launched};

/// Limit of descriptors in one message (SCM_MAX_FD), and so of clients that can be attached before
/// the start.
const MAX_DESCRIPTORS: usize = 253;

/// Size of the buffer for output and requests in bytes.
const BUFFER: usize = 64 << 10;

/// Runs a shim until its container has ended. `cgroup` is the cgroup of the shims, separate from
/// the engine's; standard input is the socket to the engine.
pub fn run(cgroup: Option<&str>) -> Result<()> {
    let step = |what: &'static str| {
        move |error: std::io::Error| Error::Os(format!("{what}: {}", whelk_sys::errno_text(&error)))
    };
    let own_cgroup = cgroup.map(shim_cgroup).transpose()?;
    // Becomes a child of init in a session of its own, so that nothing that happens to the engine
    // or its terminal affects it.
    match clone_process(
        CloneFlags::default(),
        own_cgroup.as_ref().and_then(Cgroup::clone_into),
    )
    .map_err(step("fork"))?
    {
        Cloned::Parent { .. } => exit_now(0),
        Cloned::Child => {}
    }
    let _ = rustix::process::setsid();
    // The shim was executed by descriptor (execveat), so its name in `ps` would be the descriptor's
    // number.
    let _ = rustix::thread::set_name(c"whelk-shim");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| Error::Os(format!("become subreaper: {error}")))?;
    // Non-dumpable: not accessible through /proc from a container that can see this process before
    // its program runs (CVE-2019-5736).
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| Error::Os(format!("prctl: {error}")))?;
    signal::ignore(rustix::process::Signal::PIPE.as_raw());
    let signals =
        signal::signal_fd(&[rustix::process::Signal::CHILD.as_raw()]).map_err(step("signalfd"))?;
    let poll = Poll::new().map_err(|error| Error::Os(format!("epoll: {error}")))?;
    if let Some(own_cgroup) = own_cgroup {
        own_cgroup.enter()?;
    }
    let engine = rustix::stdio::stdin()
        .try_clone_to_owned()
        .map_err(step("duplicate the engine's socket"))?;
    let Some((mut launch, mut attached)) = receive(&engine)? else {
        return Ok(());
    };
    // Kept open only until the container has joined it: its processes keep the namespace alive.
    let network = if launch.network && !attached.is_empty() {
        Some(attached.remove(0))
    } else {
        None
    };
    if let Some(network) = &network {
        launch.spec.linux.join(
            NamespaceKind::Network,
            format!("/proc/self/fd/{}", network.as_raw_fd()).into(),
        );
    }

    let ports = attached.drain(..launch.ports.min(attached.len())).collect();
    // Kept open only until the root is mounted.
    let layers: Vec<OwnedFd> = attached
        .drain(..launch.mounted_layers.len().min(attached.len()))
        .collect();
    use_mounts(&mut launch, &layers);

    let run_dir = launch.run_dir.clone();
    // Before processes are created, which would keep the engine's socket as theirs.
    close_stdin();
    let outcome = start(launch, attached, ports, poll, signals);
    drop((network, layers));
    let message = match &outcome {
        Ok((shim, started_at)) => Launched::Running {
            pid: shim
                .processes
                .get(&INIT)
                .map_or(0, |init| pid_number(init.pid)),
            started_at: *started_at,
            shim: pid_number(rustix::process::getpid()),
        },
        Err(error) => Launched::Failed(error.clone()),
    };
    // The engine may have exited meanwhile. The container runs nevertheless, and a new engine finds
    // it by its socket.
    let _ = protocol::write(SocketWriter(&engine), &message);
    // A container that did not start is reported by the engine.
    let Ok((mut shim, _)) = outcome else {
        return Ok(());
    };
    // The initial socket becomes a subscription, so that no event between start and subscription is
    // missed.
    if set_nonblocking(&engine).is_ok() {
        shim.add_client(engine, Role::Subscriber);
    }
    let result = shim.serve();
    let _ = fs::remove_if_exists(run_dir.join("shim.sock"));
    if let Err(error) = shim.cgroup.remove() {
        crate::log_error(&format!("container {}: {error}", shim.launch.id));
    }
    result
}

/// Replaces the paths of lower layers by those of their mounts.
fn use_mounts(launch: &mut ContainerLaunch, mounts: &[OwnedFd]) {
    let Rootfs::Overlay(overlay) = &mut launch.rootfs else {
        return;
    };
    for (index, mount) in launch.mounted_layers.iter().zip(mounts) {
        if let Some(layer) = overlay.lower.get_mut(*index) {
            *layer = format!("/proc/self/fd/{}", mount.as_raw_fd()).into();
        }
    }
}

/// Creates the cgroup of the shims. They have their own, so that stopping the engine's service does
/// not stop containers and their cost is not accounted to the engine.
fn shim_cgroup(path: &str) -> Result<Cgroup> {
    let mut cgroup = Cgroup::at(path)?;
    // Several shims may create it concurrently, so each creates all directories that are missing.
    cgroup.create(&Default::default())?;
    Ok(cgroup)
}

/// Replaces standard input, which is the engine's socket: while it is open, the engine does not see
/// the connection end.
fn close_stdin() {
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    {
        let _ = whelk_sys::process::dup_onto(null.as_fd(), 0);
    }
}

struct SocketWriter<'a>(&'a OwnedFd);

impl std::io::Write for SocketWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        rustix::net::send(self.0, bytes, rustix::net::SendFlags::NOSIGNAL).map_err(Into::into)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct SocketReader<'a>(&'a OwnedFd);

impl std::io::Read for SocketReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        rustix::io::read(self.0, bytes).map_err(Into::into)
    }
}

/// Waits for the container to run. Returns `None` if the engine has exited instead.
fn receive(engine: &OwnedFd) -> Result<Option<(ContainerLaunch, Vec<OwnedFd>)>> {
    let step = |error: std::io::Error| {
        Error::Os(format!(
            "receive container launch: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    let mut head = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(
            engine,
            &mut [IoSliceMut::new(&mut head)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            result => break result.map_err(|error| step(error.into()))?.bytes,
        }
    };
    if received < head.len() {
        return Ok(None);
    }
    let mut attached = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            attached.extend(fds);
        }
    }
    let mut body = vec![0; protocol::body_length(head).map_err(step)?];
    std::io::Read::read_exact(&mut SocketReader(engine), &mut body).map_err(step)?;
    Ok(Some((
        serde_json::from_slice(&body).map_err(|error| step(error.into()))?,
        attached,
    )))
}

/// Creates the container and the state to serve it. On an error everything is removed again.
fn start(
    launch: ContainerLaunch,
    attached: Vec<OwnedFd>,
    ports: Vec<OwnedFd>,
    poll: Poll,
    signals: OwnedFd,
) -> Result<(Shim, i64)> {
    let filter = launch.filter.as_deref().map(filter::read).transpose()?;
    let log = Writer::open(launch.log.clone())?;
    // Before a collector is waited for: without a socket, an engine that is started meanwhile would take
    // this start for one that has ended.
    let listener = listen_in(&launch.run_dir, "shim.sock")?;
    let forwarding = launch.log.forwarding.clone();
    let forward = forwarding.map(|forwarding| Forward::start(&launch.id, forwarding, &poll));
    let forward = forward
        .transpose()
        .inspect_err(|_| drop(fs::remove_if_exists(launch.run_dir.join("shim.sock"))))?;
    let mut cgroup = Cgroup::at(&launch.spec.linux.cgroups_path)?;
    let started = cgroup
        .create(&launch.spec.linux.resources)
        .and_then(|()| start_init(&launch, filter.as_ref(), &cgroup, &poll));
    let (init, started_at) = match started {
        Ok(started) => started,
        Err(error) => {
            // What another runtime has created may be left.
            let _ = cgroup.kill_all();
            let _ = cgroup.remove();
            if launch.runtime.is_some() {
                let _ = remove_hybrid(&launch.spec.linux.cgroups_path);
            }
            let _ = fs::remove_if_exists(launch.run_dir.join("shim.sock"));
            return Err(error);
        }
    };
    let oom = launch
        .spec
        .linux
        .resources
        .memory
        .limit
        .and_then(|_| cgroup.oom_watch().ok());
    for (fd, token) in [
        (Some(&listener), Token::Listener),
        (Some(&signals), Token::Signals),
        (oom.as_ref(), Token::OutOfMemory),
    ] {
        if let Some(fd) = fd {
            poll.add(fd, token, EventFlags::IN)
                .map_err(exhaustible("epoll"))?;
        }
    }
    let requests = launch.attached.clone();
    let unwritten = Losses::new(launch.log.driver.name());
    let mut shim = Shim {
        poll,
        listener,
        signals,
        oom,
        launch,
        cgroup,
        log,
        forward,
        unwritten,
        processes: [(INIT, init)].into(),
        starting: Default::default(),
        clients: Default::default(),
        next: INIT,
        paused: false,
        freezing: None,
        calls: Default::default(),
        oom_reported: false,
        compressor: None,
        finished: false,
        ports,
        buffer: vec![0; BUFFER],
    };
    for (stream, request) in attached.into_iter().zip(requests) {
        if set_nonblocking(&stream).is_ok() {
            let client = shim.add_client(stream, Role::AwaitingRequest);
            shim.attach(client, INIT, request);
        }
    }
    Ok((shim, started_at))
}

/// The size of the pipes for the output of a container that another runtime creates, in bytes: the largest
/// that the kernel gives to everyone.
const RUNTIME_OUTPUT: usize = 1 << 20;

/// Creates and starts the container's first process. Returns it and its start time.
fn start_init(
    launch: &ContainerLaunch,
    filter: Option<&whelk_runtime::seccomp::Filter>,
    cgroup: &Cgroup,
    poll: &Poll,
) -> Result<(Process, i64)> {
    let terminal = launch
        .spec
        .process
        .as_ref()
        .is_some_and(|process| process.terminal);
    let pipes = (!terminal).then(|| open_pipes(launch.stdin));
    let pipes = pipes.transpose().map_err(fs::at("create", "pipes"))?;
    let (streams, ours) = pipes.unzip();
    if let Some(external) = External::of(launch) {
        // Nobody reads what the runtime's own commands write there until the container exists.
        for end in ours
            .iter()
            .flat_map(|(_, outputs)| outputs.iter().flatten())
        {
            let _ = fcntl_setpipe_size(end, RUNTIME_OUTPUT);
        }
        let started = external.create(streams, cgroup).and_then(|made| {
            external.start()?;
            let mut init = Process::new(INIT, None, made.pid, made.pidfd);
            init.connect(made.terminal, ours, poll)
                .map_err(exhaustible("watch streams"))?;
            Ok((init, now()))
        });
        return started.inspect_err(|_| drop(external.delete()));
    }
    let runtime_launch = launch::Launch {
        id: &launch.id,
        spec: &launch.spec,
        bundle: &launch.run_dir,
        rootfs: &launch.rootfs,
        scratch: &launch.scratch,
        user: Some(&launch.user),
        make_cwd: true,
        filter,
        preserved: 0,
        nodes_of_user: &launch.nodes_of_user,
        streams,
        gate: Gate::Starter,
    };
    bundle::write(launch)?;
    let mut created = launch::create(&runtime_launch, Some(cgroup))?;
    // Only the program may hold its ends of the pipes; otherwise their end would never be seen.
    drop(runtime_launch);
    match created.start()? {
        Some(text) => crate::log_error(&format!("container {}: {text}", launch.id)),
        None => bundle::after_start(launch, created.pid).inspect_err(|_| {
            let _ = cgroup.kill_all();
            created.abandon();
        })?,
    }
    let started_at = now();
    let mut init = Process::new(INIT, None, created.pid, created.pidfd);
    init.connect(created.terminal, ours, poll)
        .map_err(exhaustible("watch streams"))?;
    Ok((init, started_at))
}

/// Returns a closure for `map_err` that converts the error of a step of a start.
fn exhaustible<E: Into<std::io::Error>>(what: &str) -> impl FnOnce(E) -> Error {
    move |error| {
        let error = error.into();
        Error::kernel(format!("{what}: {}", whelk_sys::errno_text(&error)), &error)
    }
}

/// Listens on a socket in the run directory. It is bound through a descriptor of the directory, because
/// the path may exceed the length of a socket address.
pub(crate) fn listen_in(run_dir: &std::path::Path, name: &str) -> Result<OwnedFd> {
    let what = format!("listen in {}", run_dir.display());
    let step = |error: rustix::io::Errno| exhaustible(&what)(error);
    let directory = rustix::fs::open(
        run_dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step)?;
    fs::remove_if_exists(run_dir.join(name))?;
    let listener = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(step)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
        .map_err(step)?;
    bind(&listener, &address).map_err(step)?;
    const BACKLOG: i32 = 64;
    listen(&listener, BACKLOG).map_err(step)?;
    Ok(listener)
}
