//! The event loop of the shim: the container's output, the exits of its processes, and its clients.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use rustix::process::{Pid, Signal, WaitStatus};
use rustix::termios::Winsize;
use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::exec::{self, Progress, Starting};
use whelk_runtime::spec::Linux;
use whelk_runtime::{Error, Result};
use whelk_sys::{fs, signal};

use crate::calls::PendingCall;
use crate::client::{Attached, Client, HIGH_WATER, Role, Sent};
use crate::filter;
use crate::forward::Forward;
use crate::logs::{Stream, Writer};
use crate::losses::Losses;
use crate::pause::Freezing;
use crate::poll::{Poll, Token};
use crate::process::{Process, open_pipes};
use crate::protocol::{self, Attach, ContainerLaunch, Event, ExecLaunch, Reply, Request};

/// How long to wait for clients to receive the last output after the container has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of the container's first process among the shim's processes.
pub(crate) const INIT: u64 = 0;

pub(crate) struct Shim {
    pub poll: Poll,
    pub listener: OwnedFd,
    pub signals: OwnedFd,
    pub oom: Option<OwnedFd>,
    pub launch: ContainerLaunch,
    pub cgroup: Cgroup,
    pub log: Writer,
    /// Sends the log to a collector.
    pub forward: Option<Forward>,
    /// Lines that could not be written to the log's file.
    pub unwritten: Losses,
    pub processes: BTreeMap<u64, Process>,
    /// Execs that have not executed their program yet, and may fail to.
    pub starting: BTreeMap<u64, StartingExec>,
    pub clients: BTreeMap<u64, Client>,
    pub next: u64,
    pub paused: bool,
    /// A pause or its end that the kernel has not completed yet.
    pub freezing: Option<Freezing>,
    /// Commands of another runtime that are under way.
    pub calls: BTreeMap<u64, PendingCall>,
    pub oom_reported: bool,
    /// The child process that compresses rotated log files.
    pub compressor: Option<Pid>,
    /// Set when the container has ended and its exit event has been queued for all subscribers.
    pub finished: bool,
    /// Sockets of published ports, which keep the ports reserved while the container runs.
    pub ports: Vec<OwnedFd>,
    pub buffer: Vec<u8>,
}

/// An exec that is being started, and the client that waits for it.
pub(crate) struct StartingExec {
    id: String,
    pub starting: Starting,
    /// Exit status of the process, if it exited before its start was known to be complete.
    pub ended: Option<WaitStatus>,
    streams: Option<(Option<OwnedFd>, [Option<OwnedFd>; 2])>,
    pub client: u64,
    attach: Option<Attach>,
    pub bound: bool,
    tells_exit: bool,
}

impl Shim {
    /// Runs until the container has ended and all clients have received what is queued for them, or
    /// [`FLUSH_TIMEOUT`] has passed.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let mut flush_deadline: Option<Instant> = None;
        loop {
            if self.finished {
                let flush_deadline =
                    *flush_deadline.get_or_insert_with(|| Instant::now() + FLUSH_TIMEOUT);
                if !self.clients.values().any(|client| client.pending() > 0)
                    || Instant::now() >= flush_deadline
                {
                    return Ok(());
                }
            }
            let timeout = self
                .next_deadline(flush_deadline)
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let ready = self
                .poll
                .wait(timeout)
                .map_err(|error| Error::Os(format!("epoll_wait: {error}")))?;
            for (token, flags) in ready {
                self.handle(token, flags);
            }
            self.finish_overdue();
            self.end_overdue_calls();
            self.poll_pause();
            self.tend_forward();
            self.publish_losses();
        }
    }

    /// Returns when the loop has to wake up even if nothing becomes ready.
    fn next_deadline(&self, flush_deadline: Option<Instant>) -> Option<Instant> {
        let lingering = self
            .processes
            .values()
            .filter_map(|process| process.deadline)
            .min();
        let freezing = self.freezing.as_ref().map(|freezing| freezing.next_check);
        let calls = self.calls.values().map(PendingCall::deadline).min();
        let log = [self.forward_deadline(), self.losses_deadline()];
        let others = [flush_deadline, lingering, freezing, calls];
        others.into_iter().chain(log).flatten().min()
    }

    fn init(&self) -> Option<&Process> {
        self.processes.get(&INIT)
    }

    pub(crate) fn linux(&self) -> &Linux {
        &self.launch.spec.linux
    }

    fn handle(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => {
                signal::drain(&self.signals);
                self.reap();
            }
            Token::OutOfMemory => self.out_of_memory(),
            Token::Output(number) => self.output_ready(number, 1),
            Token::ErrorOutput(number) => self.output_ready(number, 2),
            Token::Terminal(number) => {
                if flags.contains(EventFlags::OUT) {
                    self.pump_input(number);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.output_ready(number, 1);
                }
            }
            Token::Input(number) => self.pump_input(number),
            Token::Client(number) => self.client_ready(number, flags),
            Token::Starting(number) => self.advance_exec(number),
            Token::Sender => self.sender_ready(),
            Token::Call(number) => self.call_logged(number),
        }
    }

    fn accept(&mut self) {
        while let Ok(stream) =
            accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            // The directory's permissions keep other users out, but a leaked descriptor of it must
            // not let them in.
            let allowed = rustix::net::sockopt::socket_peercred(&stream)
                .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
            if allowed {
                self.add_client(stream, Role::AwaitingRequest);
            }
        }
    }

    pub(crate) fn add_client(&mut self, stream: OwnedFd, role: Role) -> u64 {
        self.next += 1;
        let number = self.next;
        if self
            .poll
            .add(&stream, Token::Client(number), EventFlags::IN)
            .is_ok()
        {
            self.clients.insert(number, Client::new(stream, role));
        }
        number
    }

    fn client_ready(&mut self, number: u64, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            let sent = self
                .clients
                .get_mut(&number)
                .map_or(Sent::Closed, Client::flush);
            self.after_send(number, sent);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read_client(number);
        }
    }

    /// Reads what a client has sent: a request, or input for the process it is attached to.
    fn read_client(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let received =
            recv(&client.stream, &mut buffer[..], RecvFlags::DONTWAIT).map(|(count, _)| count);
        match received {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) => self.client_ended(number),
            Err(_) => self.drop_client(number),
            Ok(count) => match &mut client.role {
                Role::AwaitingRequest => {
                    client.inbox.extend_from_slice(&buffer[..count]);
                    match protocol::take::<Request>(&mut client.inbox) {
                        Ok(None) => {}
                        Ok(Some(request)) => self.request(number, request),
                        Err(_) => self.drop_client(number),
                    }
                }
                Role::Subscriber => {}
                Role::Attached(attached) => {
                    let (input, detached) = attached.filter_input(&buffer[..count]);
                    let (process, wanted) = (attached.process, attached.request.stdin);
                    if wanted {
                        self.write_input(process, &input);
                    }
                    if detached {
                        let exec = self
                            .processes
                            .get(&process)
                            .and_then(|process| process.exec.clone());
                        self.publish(&Event::Detached { exec });
                        self.drop_client(number);
                    }
                }
            },
        }
        self.buffer = buffer;
    }

    fn write_input(&mut self, process: u64, input: &[u8]) {
        let Some(target) = self.processes.get_mut(&process) else {
            return;
        };
        target.write_input(input, &self.poll);
        // While a program does not read its input, its clients are not read from.
        self.watch_clients_of(process);
    }

    fn pump_input(&mut self, process: u64) {
        if let Some(target) = self.processes.get_mut(&process) {
            target.pump_input(&self.poll);
        }
        self.watch_clients_of(process);
    }

    /// Updates the events that the clients of a process are polled for.
    fn watch_clients_of(&mut self, process: u64) {
        let accepts = self
            .processes
            .get(&process)
            .is_none_or(Process::takes_input);
        for (&number, client) in &self.clients {
            if matches!(&client.role, Role::Attached(attached) if attached.process == process) {
                let reading = if accepts {
                    EventFlags::IN
                } else {
                    EventFlags::empty()
                };
                let writing = if client.pending() > 0 {
                    EventFlags::OUT
                } else {
                    EventFlags::empty()
                };
                let _ = self
                    .poll
                    .modify(&client.stream, Token::Client(number), reading | writing);
            }
        }
    }

    /// Handles the end of a client's input. It still receives output. With `stdin_once`, and for an
    /// exec, the process's input ends too.
    fn client_ended(&mut self, number: u64) {
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        let Role::Attached(attached) = &client.role else {
            return self.drop_client(number);
        };
        let (process, wanted_input) = (attached.process, attached.request.stdin);
        if client.has_hung_up() {
            return self.drop_client(number);
        }
        // Half-closed: stop polling for input, which level-triggered epoll would report all the
        // time.
        let writing = if client.pending() > 0 {
            EventFlags::OUT
        } else {
            EventFlags::empty()
        };
        let _ = self
            .poll
            .modify(&client.stream, Token::Client(number), writing);
        if wanted_input {
            self.input_ended(process);
        }
    }

    fn input_ended(&mut self, process: u64) {
        let once = process != INIT || self.launch.stdin_once;
        if let Some(target) = self.processes.get_mut(&process).filter(|_| once) {
            target.end_input(&self.poll);
        }
    }

    fn drop_client(&mut self, number: u64) {
        let Some(client) = self.clients.remove(&number) else {
            return;
        };
        self.poll.remove(&client.stream);
        match client.role {
            Role::Attached(attached) => {
                if attached.request.stdin {
                    self.input_ended(attached.process);
                }
                self.release_output(attached.process);
                if !client.closing {
                    self.kill_if_bound(attached.process);
                }
            }
            Role::AwaitingRequest => self.cancel_bound_start(number),
            Role::Subscriber => {}
        }
    }

    pub(crate) fn send(&mut self, number: u64, parts: &[&[u8]]) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let sent = client.send(parts);
        self.after_send(number, sent);
    }

    fn after_send(&mut self, number: u64, sent: Sent) {
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        let process = if let Role::Attached(attached) = &client.role {
            Some(attached.process)
        } else {
            None
        };
        match sent {
            Sent::Closed => return self.drop_client(number),
            Sent::All if client.closing => return self.drop_client(number),
            Sent::All | Sent::Partly => {}
        }
        match process {
            Some(process) => {
                self.watch_clients_of(process);
                self.release_output(process);
            }
            None => {
                let writing = if client.pending() > 0 {
                    EventFlags::OUT
                } else {
                    EventFlags::empty()
                };
                let _ = self.poll.modify(
                    &client.stream,
                    Token::Client(number),
                    EventFlags::IN | writing,
                );
            }
        }
    }

    pub(crate) fn reply(&mut self, number: u64, reply: &Reply) {
        if let Ok(bytes) = protocol::encode(reply) {
            self.send(number, &[&bytes]);
        }
    }

    pub(crate) fn publish(&mut self, event: &Event) {
        let Ok(bytes) = protocol::encode(event) else {
            return;
        };
        let subscribers: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| matches!(client.role, Role::Subscriber))
            .map(|(&number, _)| number)
            .collect();
        for number in subscribers {
            self.send(number, &[&bytes]);
        }
    }

    fn request(&mut self, number: u64, request: Request) {
        // The engine gave the request up, and may have done something else instead: sent a signal
        // itself, or answered that an exec has failed. It does not give up a Resume, but thaws the
        // container itself, which leaves `paused` set.
        let is_abandoned = self.clients.get(&number).is_some_and(Client::has_hung_up);
        if is_abandoned && !matches!(request, Request::Resume) {
            return self.drop_client(number);
        }
        let reply = match request {
            Request::Subscribe => {
                if let Some(client) = self.clients.get_mut(&number) {
                    client.role = Role::Subscriber;
                }
                self.reply(number, &Reply::Done);
                if let Ok(bytes) = protocol::encode(&self.state()) {
                    self.send(number, &[&bytes]);
                }
                return;
            }
            Request::Attach(request) => {
                self.reply(number, &Reply::Done);
                return self.attach(number, INIT, request);
            }
            Request::Exec(request) => return self.exec(number, *request),
            // SIGKILL needs no runtime, and must not depend on one.
            Request::Signal { exec: None, signal }
                if self.launch.runtime.is_some() && signal != Signal::KILL.as_raw() =>
            {
                return self.signal_by_runtime(number, signal);
            }
            Request::Signal { exec, signal } => self.signal(exec.as_deref(), signal),
            Request::Resize {
                exec,
                height,
                width,
            } => self.resize(exec.as_deref(), height, width),
            Request::Pause => return self.pause(number),
            Request::Resume => return self.resume(number),
            Request::Update(resources) => self.cgroup.apply(&resources).map(|()| Reply::Done),
            Request::Processes => self.cgroup.processes().map(Reply::Processes),
        };
        self.reply(number, &reply.unwrap_or_else(Reply::Failed));
    }

    fn state(&self) -> Event {
        let execs = self
            .processes
            .values()
            .filter(|process| process.exit.is_none());
        Event::State {
            pid: self
                .init()
                .map_or(0, |init| init.pid.as_raw_nonzero().get()),
            paused: self.paused,
            execs: execs
                .filter_map(|process| {
                    Some((process.exec.clone()?, process.pid.as_raw_nonzero().get()))
                })
                .collect(),
        }
    }

    pub(crate) fn attach(&mut self, client: u64, process: u64, request: Attach) {
        let terminal = self.has_terminal(process);
        if let Some(client) = self.clients.get_mut(&client) {
            client.role = Role::Attached(Attached::new(process, request, terminal));
        }
    }

    fn has_terminal(&self, process: u64) -> bool {
        self.processes
            .get(&process)
            .is_some_and(|process| process.terminal.is_some())
    }

    pub(crate) fn find(&self, exec: Option<&str>) -> Result<&Process> {
        let found = self
            .processes
            .values()
            .find(|process| process.exec.as_deref() == exec && process.exit.is_none());
        found.ok_or_else(|| {
            Error::State(exec.map_or("the container has ended".to_owned(), |id| {
                format!("exec {id} is not running")
            }))
        })
    }

    pub(crate) fn signal(&self, exec: Option<&str>, signal: i32) -> Result<Reply> {
        if signal == Signal::KILL.as_raw() && self.kill_bound(exec) {
            return Ok(Reply::Done);
        }
        let process = self.find(exec)?;
        signal::pidfd_send(&process.pidfd, signal).map_err(|error| {
            Error::Os(format!(
                "signal {signal}: {}",
                whelk_sys::errno_text(&error)
            ))
        })?;
        Ok(Reply::Done)
    }

    /// Sets the size of a process's terminal. Does nothing without one, as with Docker.
    fn resize(&self, exec: Option<&str>, height: u16, width: u16) -> Result<Reply> {
        let Some(terminal) = &self.find(exec)?.terminal else {
            return Ok(Reply::Done);
        };
        let size = Winsize {
            ws_row: height,
            ws_col: width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|error| Error::Os(format!("resize terminal: {error}")))?;
        Ok(Reply::Done)
    }

    fn exec(&mut self, client: u64, request: ExecLaunch) {
        if let Err(error) = self.start_exec(client, request) {
            self.reply(client, &Reply::Failed(error));
        }
    }

    fn start_exec(&mut self, client: u64, request: ExecLaunch) -> Result<()> {
        // Also while a pause or its end is in progress: the new process would be frozen before it
        // executes its program.
        if self.paused || self.freezing.is_some() || self.cgroup.is_frozen() {
            return Err(Error::State("the container is paused".into()));
        }
        let init = self.find(None)?;
        let filter = request.filter.as_deref().map(filter::read).transpose()?;
        let pipes = (!request.process.terminal).then(|| open_pipes(request.stdin));
        let pipes = pipes.transpose().map_err(fs::at("create", "pipes"))?;
        let (theirs, streams) = pipes.unzip();
        if self.launch.runtime.is_some() {
            return self.exec_by_runtime(client, request, theirs, streams);
        }
        let mut starting = exec::start(
            &exec::ExecRequest {
                init: &init.pidfd,
                container: &self.launch.id,
                linux: self.linux(),
                process: &request.process,
                user: Some(&request.user),
                filter: filter.as_ref(),
                streams: theirs,
                preserved: 0,
            },
            Some(&self.cgroup),
        )?;
        self.next += 1;
        let number = self.next;
        self.poll
            .add(
                starting.descriptor(),
                Token::Starting(number),
                EventFlags::IN,
            )
            .map_err(|error| {
                starting.kill();
                Error::Os(format!("watch a process: {error}"))
            })?;
        self.starting.insert(
            number,
            StartingExec {
                id: request.id,
                starting,
                ended: None,
                streams,
                client,
                attach: request.attach,
                bound: request.bound,
                tells_exit: request.tells_exit,
            },
        );
        Ok(())
    }

    /// Processes the messages of an exec that is being started, and replies to its client when it
    /// has started or failed.
    pub(crate) fn advance_exec(&mut self, number: u64) {
        let Some(exec) = self.starting.get_mut(&number) else {
            return;
        };
        let outcome = exec.starting.advance(false);
        if matches!(outcome, Ok(Progress::Pending)) {
            return;
        }
        let Some(StartingExec {
            id,
            mut starting,
            ended,
            streams,
            client,
            attach,
            bound,
            tells_exit,
        }) = self.starting.remove(&number)
        else {
            return;
        };
        self.poll.remove(starting.descriptor());
        let connected = outcome.and_then(|_| {
            let (pid, pidfd) = starting
                .process()
                .ok_or_else(|| Error::State("the process is gone".into()))?;
            let pidfd = pidfd
                .try_clone()
                .map_err(|error| Error::Os(format!("duplicate a descriptor: {error}")))?;
            let mut process = Process::new(number, Some(id), *pid, pidfd);
            process.bound = bound;
            process.tells_exit = tells_exit;
            let connected = process.connect(starting.take_terminal(), streams, &self.poll);
            connected
                .map(|()| process)
                .map_err(|error| Error::Os(format!("watch streams: {error}")))
        });
        let process = match connected {
            Ok(process) => process,
            Err(error) => {
                starting.kill();
                return self.reply(client, &Reply::Failed(error));
            }
        };
        self.exec_started(process, client, attach);
        if let Some(status) = ended {
            self.process_ended(number, status);
        }
    }

    /// Adds an exec's process, and tells the client that it has started.
    pub(crate) fn exec_started(&mut self, process: Process, client: u64, attach: Option<Attach>) {
        let (number, pid) = (process.number, pid_number(process.pid));
        self.processes.insert(number, process);
        self.reply(client, &Reply::Started { pid });
        if let Some(request) = attach {
            self.attach(client, number, request);
        }
    }

    fn output_ready(&mut self, number: u64, stream: u8) {
        self.read_output(number, stream);
        self.finish_if_complete(number);
    }

    /// Reads a chunk of output and forwards it. Returns false if there was none.
    pub(crate) fn read_output(&mut self, number: u64, stream: u8) -> bool {
        let Some(process) = self.processes.get_mut(&number) else {
            return false;
        };
        let Some(fd) = process.output(stream) else {
            return false;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = rustix::io::read(fd, &mut buffer[..]);
        match read {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal returns EIO when its last user has closed it.
            Ok(0) | Err(_) => process.close_output(stream, &self.poll),
            Ok(count) => self.forward_output(number, stream, &buffer[..count]),
        }
        self.buffer = buffer;
        matches!(read, Ok(count) if count > 0)
    }

    fn forward_output(&mut self, number: u64, stream: u8, data: &[u8]) {
        if number == INIT {
            self.log.write(
                if stream == 1 {
                    Stream::Stdout
                } else {
                    Stream::Stderr
                },
                data,
            );
            self.count_unwritten();
            self.compress_logs();
            self.forward_log();
        }
        let header = protocol::output_header(stream, data.len());
        let receivers: Vec<(u64, bool)> = self
            .clients
            .iter()
            .filter_map(|(&client, state)| match &state.role {
                Role::Attached(attached)
                    if attached.process == number
                        && (if stream == 1 {
                            attached.request.stdout
                        } else {
                            attached.request.stderr
                        }) =>
                {
                    Some((client, attached.raw))
                }
                _ => None,
            })
            .collect();
        let mut is_behind = number == INIT && self.is_collector_behind();
        for (client, raw) in receivers {
            if raw {
                self.send(client, &[data])
            } else {
                self.send(client, &[&header, data])
            }
            is_behind |= self
                .clients
                .get(&client)
                .is_some_and(|client| client.pending() > HIGH_WATER);
        }
        if is_behind && let Some(process) = self.processes.get_mut(&number) {
            process.hold(true, &self.poll);
        }
    }

    /// Resumes reading a process's output when no client is behind any more.
    pub(crate) fn release_output(&mut self, number: u64) {
        let is_behind = self.clients.values().any(|client| {
            matches!(&client.role, Role::Attached(attached) if attached.process == number)
                && client.pending() > HIGH_WATER / 2
        }) || number == INIT && self.is_collector_behind();
        if let Some(process) = self.processes.get_mut(&number).filter(|_| !is_behind) {
            process.hold(false, &self.poll);
        }
    }

    fn out_of_memory(&mut self) {
        if let Some(oom) = &self.oom {
            let mut scratch = [0; 512];
            while rustix::io::read(oom.as_fd(), &mut scratch).is_ok_and(|count| count > 0) {}
        }
        if !self.cgroup.was_out_of_memory() {
            return;
        }
        // The event is sent once per container; the exit record repeats it.
        if !std::mem::replace(&mut self.oom_reported, true) {
            self.publish(&Event::OutOfMemory);
        }
    }
}

/// Makes a descriptor non-blocking for the event loop.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

pub(crate) fn pid_number(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}
