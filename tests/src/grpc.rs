//! BuildKit's protocol as a test speaks it itself: calls on `POST /grpc`, and sessions that answer the calls of the engine.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use whelk_buildkit::grpc::{self, Call, Channel, Result, Status};
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse, StatusRequest, StatusResponse};
use whelk_buildkit::pb::{Message, gateway};
use whelk_buildkit::session;

use crate::{Engine, PATIENCE};

const CONTROL: &str = "moby.buildkit.v1.Control";
const BRIDGE: &str = "moby.buildkit.v1.frontend.LLBBridge";

/// A connection of BuildKit's protocol to an engine.
#[derive(Clone, Debug)]
pub struct Grpc {
    runtime: Arc<Runtime>,
    channel: Channel,
}

/// A call in progress, which is cancelled when it is dropped.
#[derive(Debug)]
pub struct Pending<T> {
    runtime: Arc<Runtime>,
    task: JoinHandle<Result<T>>,
}

impl<T> Pending<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if it does not come.
    #[track_caller]
    pub fn wait(mut self) -> Result<T> {
        let task = &mut self.task;
        let answer = async { tokio::time::timeout(PATIENCE, task).await };
        let answer = self.runtime.block_on(answer);
        answer.expect("an answer in time").expect("a whole call")
    }

    pub fn is_done(&self) -> bool {
        self.task.is_finished()
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The messages of an answer that does not end. The call is cancelled when it is dropped.
#[derive(Debug)]
pub struct Heard<M> {
    messages: Arc<Mutex<Vec<M>>>,
    task: JoinHandle<Result<()>>,
}

impl<M: Clone> Heard<M> {
    /// Returns the messages so far.
    pub fn so_far(&self) -> Vec<M> {
        let messages = self.messages.lock();
        messages.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<M> Drop for Heard<M> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that the engine has upgraded.
#[track_caller]
fn upgraded(engine: &Engine, path: &str, headers: &[(&str, String)]) -> UnixStream {
    let mut stream = UnixStream::connect(engine.socket()).expect("connect to the engine");
    let headers = headers.iter();
    let headers: String = headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: \r\nConnection: Upgrade\r\nUpgrade: h2c\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).expect("send a request");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("read an answer");
        answer.push(byte[0]);
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    stream.set_nonblocking(true).expect("a stream");
    stream
}

fn metadata_of(entries: &[(&str, &str)]) -> HeaderMap {
    let entries = entries.iter().map(|(name, value)| {
        let name = HeaderName::try_from(*name).expect("a name of metadata");
        let value = HeaderValue::try_from(*value).expect("a value of metadata");
        (name, value)
    });
    entries.collect()
}

impl Grpc {
    #[track_caller]
    pub fn connect(engine: &Engine) -> Self {
        Self::connect_at(engine, "/grpc")
    }

    /// Like [`connect`](Self::connect), with the path of the request.
    #[track_caller]
    pub fn connect_at(engine: &Engine, path: &str) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let stream = upgraded(engine, path, &[]);
        let channel = runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).expect("a stream");
            let opened = Channel::open(TokioIo::new(stream)).await;
            let (channel, driver) = opened.expect("HTTP/2");
            tokio::spawn(driver);
            channel
        });
        Self {
            runtime: Arc::new(runtime),
            channel,
        }
    }

    /// Begins a call with one message each way. `method` is `SERVICE/METHOD`.
    pub fn begin<M: Message + Default + 'static>(
        &self,
        method: &str,
        metadata: &[(&str, &str)],
        request: &(impl Message + Clone + 'static),
    ) -> Pending<M> {
        let (channel, request) = (self.channel.clone(), request.clone());
        let (method, metadata) = (method.to_owned(), metadata_of(metadata));
        let task = self.runtime.spawn(async move {
            let mut stream = channel.stream(&method, metadata)?;
            // An answer without a look at the request is an answer too.
            let _ = stream.requests.send(&request).await;
            stream.requests.close();
            let answer = stream.next().await?;
            let answer = answer.ok_or_else(|| Status::unavailable("the call has no answer"))?;
            match stream.next::<M>().await? {
                None => Ok(answer),
                Some(_) => Err(Status::unknown("the call has more than one answer")),
            }
        });
        Pending {
            runtime: self.runtime.clone(),
            task,
        }
    }

    /// Makes a call of `Control`.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    #[track_caller]
    pub fn control<M: Message + Default + 'static>(
        &self,
        method: &str,
        request: &(impl Message + Clone + 'static),
    ) -> Result<M> {
        self.begin(&format!("{CONTROL}/{method}"), &[], request)
            .wait()
    }

    /// Returns all messages of an answer of `Control`, to its end.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if it does not end.
    #[track_caller]
    pub fn control_stream<M: Message + Default + 'static>(
        &self,
        method: &str,
        request: &(impl Message + 'static),
    ) -> Result<Vec<M>> {
        self.stream(&format!("{CONTROL}/{method}"), request)
    }

    /// Returns all messages of an answer, to its end. `method` is `SERVICE/METHOD`.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if it does not end.
    #[track_caller]
    pub fn stream<M: Message + Default + 'static>(
        &self,
        method: &str,
        request: &(impl Message + 'static),
    ) -> Result<Vec<M>> {
        let told = async {
            let mut stream = self.channel.stream(method, HeaderMap::new())?;
            stream.requests.send(request).await?;
            stream.requests.close();
            let mut all = Vec::new();
            while let Some(more) = stream.next::<M>().await? {
                all.push(more);
            }
            Ok(all)
        };
        let told = async { tokio::time::timeout(PATIENCE, told).await };
        self.runtime.block_on(told).expect("an end in time")
    }

    /// Begins a call of `Control` whose answer does not end.
    pub fn listen<M: Message + Default + Clone + 'static>(
        &self,
        method: &str,
        request: &(impl Message + Clone + 'static),
    ) -> Heard<M> {
        let messages: Arc<Mutex<Vec<M>>> = Arc::default();
        let (channel, request, heard) = (self.channel.clone(), request.clone(), messages.clone());
        let method = format!("{CONTROL}/{method}");
        let task = self.runtime.spawn(async move {
            let mut stream = channel.stream(&method, HeaderMap::new())?;
            stream.requests.send(&request).await?;
            stream.requests.close();
            while let Some(more) = stream.next::<M>().await? {
                heard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(more);
            }
            Ok(())
        });
        Heard { messages, task }
    }

    /// Returns all that the engine tells of a build, to its end.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if it does not end.
    #[track_caller]
    pub fn status(&self, build: &str) -> Result<StatusResponse> {
        let request = StatusRequest {
            r#ref: build.to_owned(),
        };
        let mut all = StatusResponse::default();
        for more in self.control_stream::<StatusResponse>("Status", &request)? {
            all.vertexes.extend(more.vertexes);
            all.statuses.extend(more.statuses);
            all.logs.extend(more.logs);
            all.warnings.extend(more.warnings);
        }
        Ok(all)
    }

    /// Begins calls of this method, and sends nothing. They are cancelled when the result is dropped.
    pub fn silent_calls(&self, method: &str, count: usize) -> Vec<grpc::Stream> {
        let _entered = self.runtime.enter();
        let begin = |_| self.channel.stream(method, HeaderMap::new());
        let calls = (0..count).map(begin).collect::<Result<_>>();
        calls.expect("calls")
    }

    /// Begins a build, whose frontend is the test unless the request has another one.
    pub fn build(&self, id: &str, request: SolveRequest) -> Bridge {
        let request = SolveRequest {
            r#ref: id.to_owned(),
            ..request
        };
        Bridge {
            solving: self.begin(&format!("{CONTROL}/Solve"), &[], &request),
            frontend: self.frontend(id),
        }
    }

    /// Returns the calls of a frontend for a build, which another one may have begun.
    pub fn frontend(&self, build: &str) -> Frontend {
        Frontend {
            grpc: self.clone(),
            build: build.to_owned(),
        }
    }

    /// Opens a session with these methods, and answers the engine's calls as long as the connection exists.
    #[track_caller]
    pub fn session<F>(
        &self,
        engine: &Engine,
        id: &str,
        methods: &[&str],
        answer: impl Fn(Call) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let headers = session::headers(id, "", methods);
        let stream = upgraded(engine, "/session", &headers);
        self.runtime.spawn(async move {
            let stream = tokio::net::UnixStream::from_std(stream).expect("a stream");
            let limits = grpc::Limits::default();
            let _ = grpc::serve(TokioIo::new(stream), limits, HeaderMap::new, answer).await;
        });
    }
}

/// The calls of a build's frontend.
#[derive(Clone, Debug)]
pub struct Frontend {
    grpc: Grpc,
    build: String,
}

impl Frontend {
    /// Makes a call of `LLBBridge`.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    #[track_caller]
    pub fn call<M: Message + Default + 'static>(
        &self,
        method: &str,
        request: &(impl Message + Clone + 'static),
    ) -> Result<M> {
        self.begin(method, request).wait()
    }

    /// Begins a call of `LLBBridge`.
    pub fn begin<M: Message + Default + 'static>(
        &self,
        method: &str,
        request: &(impl Message + Clone + 'static),
    ) -> Pending<M> {
        let metadata = [("buildkit-controlapi-buildid", &*self.build)];
        self.grpc
            .begin(&format!("{BRIDGE}/{method}"), &metadata, request)
    }

    /// Asks for the result of a definition, and returns its reference.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if the result is no reference.
    #[track_caller]
    pub fn solve(&self, definition: &whelk_llb::pb::Definition) -> Result<gateway::Ref> {
        let request = gateway::SolveRequest {
            definition: Some(definition.clone()),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        };
        let answer: gateway::SolveResponse = self.call("Solve", &request)?;
        match answer.result.and_then(|result| result.kind) {
            Some(gateway::result::Kind::Ref(reference)) => Ok(reference),
            other => panic!("no reference: {other:?}"),
        }
    }

    /// Asks for the result of a definition, waits for it, and returns the id of its reference.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    #[track_caller]
    pub fn evaluate(&self, definition: &whelk_llb::pb::Definition) -> Result<String> {
        let id = self.solve(definition)?.id;
        let request = gateway::EvaluateRequest { r#ref: id.clone() };
        let _: whelk_buildkit::pb::Unused = self.call("Evaluate", &request)?;
        Ok(id)
    }

    /// Returns a file of a reference.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    #[track_caller]
    pub fn read(&self, reference: &str, path: &str) -> Result<String> {
        let request = gateway::ReadFileRequest {
            r#ref: reference.to_owned(),
            file_path: path.to_owned(),
            range: None,
        };
        let answer: gateway::ReadFileResponse = self.call("ReadFile", &request)?;
        Ok(String::from_utf8_lossy(&answer.data).into_owned())
    }
}

/// Processes in containers of a frontend, in one call (`LLBBridge.ExecProcess`), which is cancelled when this is dropped.
#[derive(Debug)]
pub struct Processes {
    runtime: Arc<Runtime>,
    stream: grpc::Stream,
    /// What was received of processes that nobody has asked for yet.
    received: Vec<gateway::ExecMessage>,
}

/// How a process in a container of a frontend has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub code: u32,
    /// The text of the error.
    pub error: Option<String>,
}

impl Frontend {
    /// Creates a container with these mounts.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    #[track_caller]
    pub fn container(&self, name: &str, mounts: &[whelk_llb::pb::Mount]) -> Result<()> {
        let request = gateway::NewContainerRequest {
            container_id: name.to_owned(),
            mounts: mounts.to_vec(),
            ..gateway::NewContainerRequest::default()
        };
        let _: whelk_buildkit::pb::Unused = self.call("NewContainer", &request)?;
        Ok(())
    }

    /// Releases a container.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    #[track_caller]
    pub fn release(&self, name: &str) -> Result<()> {
        let request = gateway::ReleaseContainerRequest {
            container_id: name.to_owned(),
        };
        let _: whelk_buildkit::pb::Unused = self.call("ReleaseContainer", &request)?;
        Ok(())
    }

    /// Begins a call for processes.
    ///
    /// # Panics
    /// Panics if the connection is lost.
    #[track_caller]
    pub fn processes(&self) -> Processes {
        let metadata = metadata_of(&[("buildkit-controlapi-buildid", &*self.build)]);
        let _entered = self.grpc.runtime.enter();
        let stream = self
            .grpc
            .channel
            .stream(&format!("{BRIDGE}/ExecProcess"), metadata);
        Processes {
            runtime: self.grpc.runtime.clone(),
            stream: stream.expect("a call"),
            received: Vec::new(),
        }
    }
}

impl Processes {
    /// Sends a message about a process.
    pub fn send(&mut self, process: &str, input: gateway::exec::Input) {
        let message = gateway::ExecMessage {
            process_id: process.to_owned(),
            input: Some(input),
        };
        // Of a call that has ended, the status tells why.
        let _ = self.runtime.block_on(self.stream.requests.send(&message));
    }

    /// Sends nothing more.
    pub fn close(&mut self) {
        self.stream.requests.close();
    }

    /// Begins a process with these streams.
    pub fn begin(&mut self, container: &str, process: &str, command: &[&str], fds: &[u32]) {
        let init = gateway::InitMessage {
            container_id: container.to_owned(),
            meta: Some(whelk_llb::pb::Meta {
                args: command.iter().map(|&word| word.to_owned()).collect(),
                ..whelk_llb::pb::Meta::default()
            }),
            fds: fds.to_vec(),
            ..gateway::InitMessage::default()
        };
        self.send(process, gateway::exec::Input::Init(init));
    }

    /// Writes to the standard input of a process.
    pub fn write(&mut self, process: &str, text: &str, eof: bool) {
        let file = gateway::FdMessage {
            fd: 0,
            eof,
            data: text.as_bytes().to_vec(),
        };
        self.send(process, gateway::exec::Input::File(file));
    }

    /// Returns the next message of a process.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if there is none.
    #[track_caller]
    pub fn next(&mut self, process: &str) -> Result<gateway::exec::Input> {
        loop {
            let mut received = self.received.iter();
            if let Some(at) = received.position(|message| message.process_id == process) {
                return Ok(self.received.remove(at).input.expect("a kind of message"));
            }
            let stream = &mut self.stream;
            let next = async { tokio::time::timeout(PATIENCE, stream.next()).await };
            let next = self.runtime.block_on(next).expect("a message in time")?;
            self.received.push(next.expect("a further message"));
        }
    }

    /// Waits for the end of the call.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if it does not end.
    #[track_caller]
    pub fn end(&mut self) -> Result<()> {
        let stream = &mut self.stream;
        let rest = async {
            while stream.next::<gateway::ExecMessage>().await?.is_some() {}
            Ok(())
        };
        let rest = async { tokio::time::timeout(PATIENCE, rest).await };
        self.runtime.block_on(rest).expect("an end in time")
    }

    /// Waits until the standard output of a process has had this text. Returns all output until then.
    ///
    /// # Panics
    /// Panics if it does not come.
    #[track_caller]
    pub fn shows(&mut self, process: &str, text: &str) -> String {
        let mut shown = String::new();
        while !shown.contains(text) {
            match self.next(process).expect("a call that goes on") {
                gateway::exec::Input::File(file) if !file.eof => {
                    shown.push_str(&String::from_utf8_lossy(&file.data));
                }
                gateway::exec::Input::Started(_) => {}
                other => panic!("{other:?} before {text:?}; so far {shown:?}"),
            }
        }
        shown
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// Returns the status of a call that has failed.
    ///
    /// # Panics
    /// Panics if it does not end, or if messages are missing.
    #[track_caller]
    pub fn wait(&mut self, process: &str) -> Result<Ended> {
        let mut ended = Ended::default();
        let mut has_exited = false;
        loop {
            match self.next(process)? {
                gateway::exec::Input::Started(_) => {}
                gateway::exec::Input::File(file) => {
                    let stream = match file.fd {
                        1 => &mut ended.stdout,
                        _ => &mut ended.stderr,
                    };
                    stream.push_str(&String::from_utf8_lossy(&file.data));
                }
                gateway::exec::Input::Exit(exit) => {
                    ended.code = exit.code;
                    ended.error = exit.error.map(|error| error.message);
                    has_exited = true;
                }
                gateway::exec::Input::Done(_) => {
                    assert!(has_exited, "done without an exit");
                    return Ok(ended);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs a process to its end, with its output.
    ///
    /// # Panics
    /// Panics if the call fails.
    #[track_caller]
    pub fn run(&mut self, container: &str, process: &str, command: &[&str]) -> Ended {
        self.begin(container, process, command, &[1, 2]);
        self.wait(process).expect("a call that goes on")
    }
}

/// A build whose frontend is the test.
#[derive(Debug)]
pub struct Bridge {
    /// The call that the build belongs to.
    pub solving: Pending<SolveResponse>,
    pub frontend: Frontend,
}

impl Bridge {
    /// Returns a reference, or nothing, as the result of the build, and waits for its end.
    ///
    /// # Errors
    /// Returns the status of a build that has failed.
    #[track_caller]
    pub fn finish(self, reference: Option<&str>) -> Result<SolveResponse> {
        let kind = reference.map(|id| {
            gateway::result::Kind::Ref(gateway::Ref {
                id: id.to_owned(),
                def: None,
            })
        });
        let result = gateway::Result {
            kind,
            ..gateway::Result::default()
        };
        let request = gateway::ReturnRequest {
            result: Some(result),
            error: None,
        };
        let _: whelk_buildkit::pb::Unused = self.frontend.call("Return", &request)?;
        self.solving.wait()
    }
}

impl std::ops::Deref for Bridge {
    type Target = Frontend;

    fn deref(&self) -> &Frontend {
        &self.frontend
    }
}

/// How long the engine waits for a build or a session that a call names, at most.
pub const LATE: Duration = Duration::from_secs(6);
