//! Shims for the engine's own tests: they speak the protocol and run no processes. A run ends by a
//! signal, or when the test says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc};
use whelk_shim::protocol::{ContainerLaunch, Event, Exit, Launched, Reply, Request, encode};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;
use whelk_text::signal;

use super::WarmPool;
use super::messages::read_message;
use crate::error::{Error, Result};
use crate::instance::through_descriptor;
use whelk_shim::logs::now;

/// A pid that no process has: the kernel's are below 2²².
const PID: i32 = 1 << 30;
/// Number of shims that wait for a launch: more than a test starts.
const READY: usize = 16;

/// What a shim does with a launch.
#[derive(Debug)]
pub(crate) enum Behaviour {
    Run,
    Refuse(whelk_runtime::Error),
    /// It ends before it answers.
    Vanish,
}

/// How a test ends a run.
#[derive(Debug)]
enum End {
    Exit(i32),
    /// The shim ends without having recorded an exit.
    Vanish,
}

/// The shims of an engine, or of several engines in turn.
#[derive(Debug, Default)]
pub(crate) struct FakeShims {
    /// What the next launches do; the others run.
    next: Mutex<VecDeque<Behaviour>>,
    /// Signals that do not end runs.
    ignored: Mutex<BTreeSet<i32>>,
    /// The runs by their id.
    running: Mutex<BTreeMap<String, mpsc::UnboundedSender<End>>>,
    /// Signals have no effect while this is locked for writing.
    signals: Arc<RwLock<()>>,
}

impl FakeShims {
    /// Returns a pool of these shims.
    pub(crate) fn pool(self: &Arc<Self>) -> Result<Arc<WarmPool>> {
        let mut ready = VecDeque::new();
        for _ in 0..READY {
            let (engine, shim) = UnixStream::pair().map_err(failed)?;
            ready.push_back(engine);
            let shims = self.clone();
            // An error means that the engine has gone, which the next one shall cope with.
            tokio::spawn(async move { shims.serve(shim).await.ok() });
        }
        WarmPool::of(ready)
    }

    /// Sets the behaviour of the next launch that has none yet.
    pub(crate) fn expect(&self, behaviour: Behaviour) {
        self.next.lock().ignore_poison().push_back(behaviour);
    }

    /// Lets runs ignore a signal from now on.
    pub(crate) fn ignore(&self, signal: i32) {
        self.ignored.lock().ignore_poison().insert(signal);
    }

    /// Delays the effect of all signals until the guard is dropped.
    pub(crate) async fn hold_signals(&self) -> OwnedRwLockWriteGuard<()> {
        self.signals.clone().write_owned().await
    }

    /// Ends a run with this exit code.
    pub(crate) fn exit(&self, id: &str, code: i32) {
        self.end(id, End::Exit(code));
    }

    /// Ends the shim of a run, and waits until it answers no more.
    pub(crate) async fn kill(&self, id: &str) {
        self.end(id, End::Vanish).closed().await;
    }

    fn end(&self, id: &str, end: End) -> mpsc::UnboundedSender<End> {
        let run = self.running.lock().ignore_poison().remove(id);
        let run = run.expect("it runs");
        run.send(end).expect("its shim is there");
        run
    }

    async fn serve(&self, mut engine: UnixStream) -> Result<()> {
        let launch: ContainerLaunch = read_message(&mut engine).await?;
        let behaviour = self.next.lock().ignore_poison().pop_front();
        match behaviour.unwrap_or(Behaviour::Run) {
            Behaviour::Run => {}
            Behaviour::Refuse(error) => return send(&mut engine, &Launched::Failed(error)).await,
            Behaviour::Vanish => return Ok(()),
        }
        let directory = fs::open(&launch.run_dir)?.into();
        let socket = through_descriptor(&directory, "shim.sock");
        let listener = UnixListener::bind(socket).map_err(failed)?;
        let (ender, mut end) = mpsc::unbounded_channel();
        self.running
            .lock()
            .ignore_poison()
            .insert(launch.id.clone(), ender);
        let launched = Launched::Running {
            pid: PID,
            started_at: now(),
            shim: 0,
        };
        send(&mut engine, &launched).await?;
        let mut run = Run {
            subscribers: vec![engine],
            is_paused: false,
        };
        let code = loop {
            tokio::select! {
                ordered = end.recv() => match ordered {
                    Some(End::Exit(code)) => break code,
                    Some(End::Vanish) | None => return Ok(()),
                },
                client = listener.accept() => {
                    let (client, _) = client.map_err(failed)?;
                    if let Some(number) = run.answer(client).await?
                        && (number == signal::KILL || !self.ignored.lock().ignore_poison().contains(&number))
                    {
                        drop(self.signals.read().await);
                        self.running.lock().ignore_poison().remove(&launch.id);
                        break 128 + number;
                    }
                }
            }
        };
        let exit = Exit {
            code,
            at: now(),
            ..Exit::default()
        };
        let record =
            serde_json::to_vec(&exit).map_err(|error| Error::internal(error.to_string()))?;
        fs::write(launch.run_dir.join("exit.json"), record)?;
        for subscriber in &mut run.subscribers {
            // Engines that have gone are among them.
            send(subscriber, &Event::Exited(exit.clone())).await.ok();
        }
        Ok(())
    }
}

/// What a shim runs.
struct Run {
    subscribers: Vec<UnixStream>,
    is_paused: bool,
}

impl Run {
    /// Answers a request. Returns the signal that it sends to the run.
    async fn answer(&mut self, mut client: UnixStream) -> Result<Option<i32>> {
        let (reply, signal) = match read_message(&mut client).await? {
            Request::Subscribe => {
                send(&mut client, &Reply::Done).await?;
                let state = Event::State {
                    pid: PID,
                    paused: self.is_paused,
                    execs: Vec::new(),
                };
                send(&mut client, &state).await?;
                self.subscribers.push(client);
                return Ok(None);
            }
            Request::Signal { exec: None, signal } => (Reply::Done, Some(signal)),
            Request::Pause => {
                self.is_paused = true;
                (Reply::Done, None)
            }
            Request::Resume => {
                self.is_paused = false;
                (Reply::Done, None)
            }
            Request::Exec(_) => (Reply::Started { pid: PID }, None),
            Request::Processes => (Reply::Processes(vec![PID]), None),
            request => {
                let text = format!("a fake shim has no {request:?}");
                (Reply::Failed(whelk_runtime::Error::Invalid(text)), None)
            }
        };
        send(&mut client, &reply).await?;
        // A frozen process is ended by SIGKILL only.
        Ok(signal.filter(|signal| !self.is_paused || *signal == signal::KILL))
    }
}

async fn send(socket: &mut UnixStream, message: &impl serde::Serialize) -> Result<()> {
    let message = encode(message).map_err(failed)?;
    socket.write_all(&message).await.map_err(failed)
}

fn failed(error: std::io::Error) -> Error {
    Error::internal(error.to_string())
}
