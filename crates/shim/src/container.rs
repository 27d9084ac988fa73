//! The shim at work: one loop over the container's streams, its processes' ends, and its clients.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use rustix::process::{Pid, WaitStatus};
use rustix::termios::Winsize;
use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::exec::{self, Progress, Starting};
use whelk_runtime::spec::Linux;
use whelk_runtime::{Error, Result};
use whelk_sys::signal;

use crate::client::{Attached, Client, HIGH_WATER, Role, Sent};
use crate::filter;
use crate::logs::{Stream, Writer};
use crate::pause::Freezing;
use crate::poll::{Poll, Token};
use crate::process::{Pipes, Process};
use crate::protocol::{self, Attach, Event, Exec, Launch, Reply, Request};

/// How long clients may take to fetch the last output once the container has ended.
const FAREWELL: Duration = Duration::from_secs(10);

/// The number of the container's first process among the shim's processes.
pub(crate) const INIT: u64 = 0;

pub(crate) struct Shim {
    pub poll: Poll,
    pub listener: OwnedFd,
    pub signals: OwnedFd,
    pub oom: Option<OwnedFd>,
    pub launch: Launch,
    pub cgroup: Cgroup,
    pub log: Writer,
    pub processes: BTreeMap<u64, Process>,
    /// Those that have not reached their program yet, and may never be among them.
    pub starting: BTreeMap<u64, StartingExec>,
    pub clients: BTreeMap<u64, Client>,
    pub next: u64,
    pub paused: bool,
    /// A pause that the kernel has not completed yet.
    pub freezing: Option<Freezing>,
    pub oom_told: bool,
    /// The child that compresses rotated log files.
    pub compressor: Option<Pid>,
    /// The container has ended, and everybody was told.
    pub finished: bool,
    /// Published ports: nobody else gets them while the container runs.
    pub ports: Vec<OwnedFd>,
    pub buffer: Vec<u8>,
}

/// A process on its way to its program, and who waits for that.
pub(crate) struct StartingExec {
    id: String,
    pub starting: Starting,
    /// How its process has ended, when that was before its start was known to be over.
    pub ended: Option<WaitStatus>,
    streams: Option<(Option<OwnedFd>, [Option<OwnedFd>; 2])>,
    client: u64,
    attach: Option<Attach>,
}

impl Shim {
    /// Runs until the container has ended and everybody who wanted to know has been told.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let mut farewell: Option<Instant> = None;
        loop {
            if self.finished {
                let farewell = *farewell.get_or_insert_with(|| Instant::now() + FAREWELL);
                if !self.clients.values().any(|client| client.waiting() > 0)
                    || Instant::now() >= farewell
                {
                    return Ok(());
                }
            }
            let timeout = self
                .next_deadline(farewell)
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let ready = self
                .poll
                .wait(timeout)
                .map_err(|error| Error::Os(format!("epoll_wait: {error}")))?;
            for (token, flags) in ready {
                self.handle(token, flags);
            }
            self.finish_overdue();
            self.continue_pause();
        }
    }

    /// When something is to be done at the latest even if nothing becomes ready.
    fn next_deadline(&self, farewell: Option<Instant>) -> Option<Instant> {
        let lingering = self
            .processes
            .values()
            .filter_map(|process| process.deadline)
            .min();
        let freezing = self.freezing.as_ref().map(|freezing| freezing.again);
        [farewell, lingering, freezing].into_iter().flatten().min()
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
            Token::Starting(number) => self.settle(number),
        }
    }

    fn accept(&mut self) {
        while let Ok(stream) =
            accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            // The directory keeps others out already; a descriptor that leaked must not let them
            // in.
            let allowed = rustix::net::sockopt::socket_peercred(&stream)
                .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
            if allowed {
                self.add_client(stream, Role::Asking);
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
                .map_or(Sent::Gone, Client::flush);
            self.after_send(number, sent);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read_client(number);
        }
    }

    /// Reads what a client sent: a request, or input for the program it is attached to.
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
                Role::Asking => {
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
                    let (process, wanted) = (attached.process, attached.wants.stdin);
                    if wanted {
                        self.give_input(process, &input);
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

    fn give_input(&mut self, process: u64, input: &[u8]) {
        let Some(target) = self.processes.get_mut(&process) else {
            return;
        };
        target.write_input(input, &self.poll);
        // A program that is behind makes its clients wait.
        self.watch_clients_of(process);
    }

    fn pump_input(&mut self, process: u64) {
        if let Some(target) = self.processes.get_mut(&process) {
            target.pump_input(&self.poll);
        }
        self.watch_clients_of(process);
    }

    /// Sets what each client of a process is watched for.
    fn watch_clients_of(&mut self, process: u64) {
        let takes = self
            .processes
            .get(&process)
            .is_none_or(Process::takes_input);
        for (&number, client) in &self.clients {
            if matches!(&client.role, Role::Attached(attached) if attached.process == process) {
                let reading = if takes {
                    EventFlags::IN
                } else {
                    EventFlags::empty()
                };
                let writing = if client.waiting() > 0 {
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

    /// A client sends no more. Its output goes on; input of a "once" container ends with it.
    fn client_ended(&mut self, number: u64) {
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        let Role::Attached(attached) = &client.role else {
            return self.drop_client(number);
        };
        let (process, wanted_input) = (attached.process, attached.wants.stdin);
        let hung_up = rustix::event::poll(
            &mut [rustix::event::PollFd::new(
                &client.stream,
                rustix::event::PollFlags::empty(),
            )],
            Some(&rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .is_ok_and(|n| n > 0);
        if hung_up {
            return self.drop_client(number);
        }
        // Half closed: stop watching for input, or level triggering would never rest.
        let writing = if client.waiting() > 0 {
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
        if let Role::Attached(attached) = client.role {
            if attached.wants.stdin {
                self.input_ended(attached.process);
            }
            self.release_output(attached.process);
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
            Sent::Gone => return self.drop_client(number),
            Sent::All if client.closing => return self.drop_client(number),
            Sent::All | Sent::Partly => {}
        }
        match process {
            Some(process) => {
                self.watch_clients_of(process);
                self.release_output(process);
            }
            None => {
                let writing = if client.waiting() > 0 {
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
            Request::Attach(wants) => {
                self.reply(number, &Reply::Done);
                return self.attach(number, INIT, wants);
            }
            Request::Exec(request) => return self.exec(number, *request),
            Request::Signal { exec, signal } => self.signal(exec.as_deref(), signal),
            Request::Resize {
                exec,
                height,
                width,
            } => self.resize(exec.as_deref(), height, width),
            Request::Pause => return self.pause(number),
            Request::Resume => self.resume(),
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

    pub(crate) fn attach(&mut self, client: u64, process: u64, wants: Attach) {
        let terminal = self.launch_has_terminal(process);
        if let Some(client) = self.clients.get_mut(&client) {
            client.role = Role::Attached(Attached::new(process, wants, terminal));
        }
    }

    fn launch_has_terminal(&self, process: u64) -> bool {
        self.processes
            .get(&process)
            .is_some_and(|process| process.terminal.is_some())
    }

    fn find(&self, exec: Option<&str>) -> Result<&Process> {
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

    fn signal(&self, exec: Option<&str>, signal: i32) -> Result<Reply> {
        let process = self.find(exec)?;
        signal::pidfd_send(&process.pidfd, signal).map_err(|error| {
            Error::Os(format!(
                "signal {signal}: {}",
                whelk_sys::errno_text(&error)
            ))
        })?;
        Ok(Reply::Done)
    }

    /// Sets the size of a process's terminal. Without one there is nothing to do, as with Docker.
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
            .map_err(|error| Error::Os(format!("resize the terminal: {error}")))?;
        Ok(Reply::Done)
    }

    fn exec(&mut self, client: u64, request: Exec) {
        if let Err(error) = self.start_exec(client, request) {
            self.reply(client, &Reply::Failed(error));
        }
    }

    fn start_exec(&mut self, client: u64, request: Exec) -> Result<()> {
        // Also while a pause is under way: the new process would be stopped on its way to its
        // program.
        if self.paused || self.freezing.is_some() || self.cgroup.is_frozen() {
            return Err(Error::State("the container is paused".into()));
        }
        let init = self.find(None)?;
        let filter = request.filter.as_deref().map(filter::read).transpose()?;
        let pipes = if request.process.terminal {
            None
        } else {
            Some(Pipes::open(request.stdin).map_err(|error| Error::Os(format!("pipe: {error}")))?)
        };
        let (theirs, streams) = match pipes {
            Some(Pipes {
                theirs,
                input,
                outputs,
            }) => (Some(theirs), Some((input, outputs))),
            None => (None, None),
        };
        let mut starting = exec::start(
            &exec::Exec {
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
            },
        );
        Ok(())
    }

    /// Goes on with a process that is being started, as far as it has come.
    pub(crate) fn settle(&mut self, number: u64) {
        let Some(exec) = self.starting.get_mut(&number) else {
            return;
        };
        let settled = exec.starting.advance(false);
        if matches!(settled, Ok(Progress::Pending)) {
            return;
        }
        let Some(StartingExec {
            id,
            mut starting,
            ended,
            streams,
            client,
            attach,
        }) = self.starting.remove(&number)
        else {
            return;
        };
        self.poll.remove(starting.descriptor());
        let connected = settled.and_then(|_| {
            let (pid, pidfd) = starting
                .process()
                .ok_or_else(|| Error::State("the process is gone".into()))?;
            let pidfd = pidfd
                .try_clone()
                .map_err(|error| Error::Os(format!("duplicate a descriptor: {error}")))?;
            let mut process = Process::new(number, Some(id), *pid, pidfd);
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
        let pid = pid_number(process.pid);
        self.processes.insert(number, process);
        self.reply(client, &Reply::Started { pid });
        if let Some(wants) = attach {
            self.attach(client, number, wants);
        }
        if let Some(status) = ended {
            self.process_ended(number, status);
        }
    }

    fn output_ready(&mut self, number: u64, stream: u8) {
        self.read_output(number, stream);
        self.finish_if_over(number);
    }

    /// Reads one piece of output and passes it on. False when there was none.
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
            // A terminal whose last user is gone answers EIO.
            Ok(0) | Err(_) => process.close_output(stream, &self.poll),
            Ok(count) => self.pass_on(number, stream, &buffer[..count]),
        }
        self.buffer = buffer;
        matches!(read, Ok(count) if count > 0)
    }

    fn pass_on(&mut self, number: u64, stream: u8, data: &[u8]) {
        if number == INIT {
            self.log.write(
                if stream == 1 {
                    Stream::Stdout
                } else {
                    Stream::Stderr
                },
                data,
            );
            self.compress_logs();
        }
        let header = protocol::output_header(stream, data.len());
        let receivers: Vec<(u64, bool)> = self
            .clients
            .iter()
            .filter_map(|(&client, state)| match &state.role {
                Role::Attached(attached)
                    if attached.process == number
                        && (if stream == 1 {
                            attached.wants.stdout
                        } else {
                            attached.wants.stderr
                        }) =>
                {
                    Some((client, attached.raw))
                }
                _ => None,
            })
            .collect();
        let mut behind = false;
        for (client, raw) in receivers {
            if raw {
                self.send(client, &[data])
            } else {
                self.send(client, &[&header, data])
            }
            behind |= self
                .clients
                .get(&client)
                .is_some_and(|client| client.waiting() > HIGH_WATER);
        }
        if behind && let Some(process) = self.processes.get_mut(&number) {
            process.hold(true, &self.poll);
        }
    }

    /// Goes on reading a process's output when none of its clients is behind any more.
    fn release_output(&mut self, number: u64) {
        let behind = self.clients.values().any(|client| {
            matches!(&client.role, Role::Attached(attached) if attached.process == number)
                && client.waiting() > HIGH_WATER / 2
        });
        if let Some(process) = self.processes.get_mut(&number).filter(|_| !behind) {
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
        // Told once a life; the end's record says it again.
        if !std::mem::replace(&mut self.oom_told, true) {
            self.publish(&Event::OutOfMemory);
        }
    }
}

/// Makes a socket non-blocking for the loop.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

pub(crate) fn pid_number(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}
