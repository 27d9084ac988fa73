//! Sessions with clients that are not what they should be.

#![allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use whelk_buildkit::files::{self, Chosen, Directory, Received};
use whelk_buildkit::grpc::{self, Call, Code, Status};
use whelk_buildkit::output;
use whelk_buildkit::pb::BytesMessage;
use whelk_buildkit::pb::Message as _;
use whelk_buildkit::pb::files::{Packet, PacketType, Stat};
use whelk_buildkit::pb::session::{
    CredentialsRequest, CredentialsResponse, GetSecretRequest, GetSecretResponse,
};
use whelk_buildkit::session::{FilesRequest, Session, Sessions};
use whelk_buildkit::turns::OUTPUTS;
use whelk_sys::{Scratch, fs};

const BOOT: &str = "this one";
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

/// A client: its files in order, and how many packets it sends before it is gone.
#[derive(Clone, Default)]
struct Client {
    files: Vec<(Stat, Bytes)>,
    most: Option<usize>,
    asked: Arc<AtomicUsize>,
    /// Whether it does not say that it is there.
    is_silent: bool,
    /// Whether it sends nothing behind its list of files.
    stalls: bool,
    /// How long it waits before it takes an output; it takes none if there is none.
    pause: Option<Duration>,
}

fn stat(path: &str, mode: u32, size: usize) -> Stat {
    Stat {
        path: path.into(),
        mode,
        size: i64::try_from(size).unwrap(),
        mod_time: 1_600_000_000_000_000_001,
        uid: 1000,
        gid: 1000,
        ..Stat::default()
    }
}

fn file(path: &str, content: &'static str) -> (Stat, Bytes) {
    let content = Bytes::from_static(content.as_bytes());
    (stat(path, 0o640, content.len()), content)
}

fn directory(path: &str) -> (Stat, Bytes) {
    (stat(path, DIRECTORY | 0o750, 0), Bytes::new())
}

fn link(path: &str, mode: u32, target: &str) -> (Stat, Bytes) {
    let stat = Stat {
        linkname: target.into(),
        ..stat(path, mode, 0)
    };
    (stat, Bytes::new())
}

impl Client {
    fn new(files: Vec<(Stat, Bytes)>) -> Self {
        Self {
            files,
            ..Self::default()
        }
    }

    /// Opens a session of this client.
    async fn connect(&self, sessions: &Arc<Sessions>) -> Arc<Session> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let client = self.clone();
        tokio::spawn(grpc::serve(
            TokioIo::new(theirs),
            grpc::Limits::default(),
            HeaderMap::new,
            move |call| client.clone().answer(call),
        ));
        let id = format!("session-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut headers = HeaderMap::new();
        headers.insert("x-docker-expose-session-uuid", id.parse().unwrap());
        for method in [
            "/moby.filesync.v1.FileSync/DiffCopy",
            "/moby.buildkit.secrets.v1.Secrets/GetSecret",
            "/moby.filesync.v1.Auth/Credentials",
        ] {
            let name = "x-docker-expose-session-grpc-method";
            headers.append(name, method.parse().unwrap());
        }
        if self.pause.is_some() {
            let name = "x-docker-expose-session-grpc-method";
            let method = "/moby.filesync.v1.FileSend/DiffCopy";
            headers.append(name, method.parse().unwrap());
        }
        let serving = sessions.clone();
        tokio::spawn(async move { serving.serve(&headers, TokioIo::new(ours)).await });
        sessions.get(&format!("prefix:{id}")).await.unwrap()
    }

    async fn answer(self, mut call: Call) -> grpc::Result<()> {
        match call.method.as_str() {
            "moby.filesync.v1.FileSync/DiffCopy" => self.send(call).await,
            "moby.buildkit.secrets.v1.Secrets/GetSecret" => {
                let request: GetSecretRequest = call.request().await?;
                match request.id.as_str() {
                    "known" => {
                        let data = b"secret".to_vec();
                        call.responses.send(&GetSecretResponse { data }).await
                    }
                    "slow" => std::future::pending().await,
                    "broken" => Err(Status::unknown("open /x: permission denied")),
                    _ => Err(Status::not_found("not found")),
                }
            }
            "moby.filesync.v1.Auth/Credentials" => {
                let request: CredentialsRequest = call.request().await?;
                let answer = CredentialsResponse {
                    username: request.host,
                    secret: "password".into(),
                };
                call.responses.send(&answer).await
            }
            "moby.filesync.v1.FileSend/DiffCopy" => {
                tokio::time::sleep(self.pause.unwrap_or_default()).await;
                while let Some(message) = call.requests.next::<BytesMessage>().await? {
                    self.asked.fetch_add(message.data.len(), Ordering::Relaxed);
                }
                Ok(())
            }
            "grpc.health.v1.Health/Check" if self.is_silent => std::future::pending().await,
            other => Err(Status::unimplemented(format!("unknown method {other}"))),
        }
    }

    /// Sends its files as fsutil does.
    async fn send(self, mut call: Call) -> grpc::Result<()> {
        assert_eq!(call.entry("dir-name"), Some("context"));
        let mut sent = 0;
        let stats = self.files.iter().map(|(stat, _)| Some(stat.clone()));
        for stat in stats.chain([None]) {
            let packet = Packet {
                stat,
                ..Packet::default()
            };
            self.put(&call, &mut sent, packet).await?;
        }
        if self.stalls {
            std::future::pending::<()>().await;
        }
        while let Some(packet) = call.requests.next::<Packet>().await? {
            match PacketType::try_from(packet.kind).unwrap() {
                PacketType::Req => {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    let content = self.files[packet.id as usize].1.clone();
                    for data in [content, Bytes::new()] {
                        let data = Packet {
                            kind: PacketType::Data.into(),
                            id: packet.id,
                            data,
                            ..Packet::default()
                        };
                        self.put(&call, &mut sent, data).await?;
                    }
                }
                PacketType::Fin => {
                    self.put(&call, &mut sent, packet).await?;
                    return Ok(());
                }
                PacketType::Err => return Err(Status::unknown("the receiver has failed")),
                PacketType::Stat | PacketType::Data => panic!("{packet:?}"),
            }
        }
        Err(Status::unknown("the receiver has ended"))
    }

    async fn put(&self, call: &Call, sent: &mut usize, packet: Packet) -> grpc::Result<()> {
        if self.most.is_some_and(|most| *sent >= most) {
            return Err(Status::unavailable("cut"));
        }
        *sent += 1;
        call.responses.send(&packet).await
    }

    /// Sends its files to a directory.
    async fn receive(&self, directory: Directory) -> files::Result<(Directory, Received)> {
        let session = self.connect(&Arc::default()).await;
        let stream = session.files(&wanted()).unwrap();
        let received = files::receive(stream, directory, |_| ());
        tokio::time::timeout(Duration::from_secs(20), received)
            .await
            .unwrap()
    }
}

fn wanted() -> FilesRequest {
    FilesRequest {
        name: "context".into(),
        exclude: vec!["*.log".into(), "é b+c".into()],
        ..FilesRequest::default()
    }
}

/// Returns what is below a directory: mode, owner, time, links, and content of each path.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::list(&directory).unwrap() {
            let path = entry.path();
            let metadata = entry.metadata().unwrap();
            let content = if metadata.is_dir() {
                directories.push(path.clone());
                String::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                format!(
                    "{} {}",
                    metadata.nlink(),
                    fs::read_to_string(&path).unwrap()
                )
            };
            let mode = metadata.permissions().mode() & 0o7777;
            assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
            assert_eq!(metadata.mtime_nsec(), 1, "{}", path.display());
            let path = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(path, format!("{mode:o} {content}"));
        }
    }
    found
}

#[tokio::test]
async fn a_list_of_all_files_is_received_with_what_is_chosen() {
    const LIST: &str = ".fsutil-metadata";
    let scratch = Scratch::temporary("sessions-list").unwrap();
    let place = scratch.path();
    let mut files = vec![
        file("data", "d"),
        directory("dir"),
        file("dir/file1", "1"),
        file("dir/file2", "2"),
        directory("empty"),
        file("foo", "f"),
    ];
    let choose = |mut directory: Directory| {
        directory.choose(Chosen::new(|path| path.ends_with('1') || path == "foo"));
        directory
    };
    let names = |directory: &Directory| {
        let names = directory.entries().keys();
        names.cloned().collect::<Vec<String>>().join(" ")
    };
    let client = Client::new(files.clone());
    let new = choose(Directory::create(place).unwrap());
    let (made, received) = client.receive(new).await.unwrap();
    assert_eq!((received.files, received.bytes), (2, 2));
    assert_eq!(names(&made), format!("{LIST} dir dir/file1 foo"));
    let list = fs::read(made.files().join(LIST)).unwrap();
    let (mut rest, mut told) = (&list[..], Vec::new());
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
        told.push(Stat::decode(&more[..length]).unwrap());
        rest = &more[length..];
    }
    let sent: Vec<Stat> = files.iter().map(|(stat, _)| stat.clone()).collect();
    assert_eq!(told, sent);
    made.remember(BOOT).unwrap();

    let known = choose(Directory::open(place, BOOT).unwrap().unwrap());
    let (_, received) = client.receive(known).await.unwrap();
    assert_eq!(received, Received::default());

    // Another file that is not chosen, and a list that the client has itself.
    files[3] = file("dir/file2", "longer");
    files.insert(0, file(LIST, "own"));
    let client = Client::new(files);
    let known = choose(Directory::open(place, BOOT).unwrap().unwrap());
    let (made, received) = client.receive(known).await.unwrap();
    assert_eq!((received.files, received.is_changed), (0, true));
    assert_eq!(names(&made), format!("{LIST} dir dir/file1 foo"));
    assert_eq!(fs::read(made.files().join("foo")).unwrap(), b"f");
    made.remember(BOOT).unwrap();

    // Everything again.
    let known = Directory::open(place, BOOT).unwrap().unwrap();
    let (made, _) = client.receive(known).await.unwrap();
    assert_eq!(made.entries().len(), 7);
    assert_eq!(fs::read(made.files().join(LIST)).unwrap(), b"own");
}

#[tokio::test]
async fn only_what_has_changed_is_asked_for() {
    let scratch = Scratch::temporary("sessions").unwrap();
    let files = vec![
        directory("a"),
        file("a/one", "1"),
        directory("a/deep"),
        file("a/deep/x", "x"),
        file("b", "two"),
        link("c", 0o640, "b"),
        link("d", SYMLINK | 0o777, "/outside"),
        file("empty", ""),
    ];
    let mut files = files;
    files[1..4].rotate_left(1);
    let client = Client::new(files.clone());
    let place = scratch.path();
    let (made, received) = client
        .receive(Directory::create(place).unwrap())
        .await
        .unwrap();
    assert_eq!(
        (received.files, received.bytes, received.is_changed),
        (3, 5, true)
    );
    let found = tree(&made.files());
    assert_eq!(found["a/deep/x"], "640 1 x");
    assert_eq!(found["b"], "640 2 two");
    assert_eq!(found["c"], "640 2 two");
    assert_eq!(found["d"], "777 /outside");
    assert_eq!(found["a"], "750 ");
    assert_eq!(found.len(), files.len());
    // Not complete until it is said to be.
    assert!(Directory::open(place, BOOT).unwrap().is_none());
    assert_eq!(Directory::size_at(place, BOOT), None);
    made.remember(BOOT).unwrap();
    assert!(Directory::open(place, "another one").unwrap().is_none());
    assert_eq!(Directory::size_at(place, BOOT), Some(5));
    assert_eq!(Directory::size_at(place, "another one"), None);

    let known = Directory::open(place, BOOT).unwrap().unwrap();
    let (_, received) = client.receive(known).await.unwrap();
    assert_eq!(received, Received::default());
    assert_eq!(client.asked.load(Ordering::Relaxed), 3);

    // A directory becomes a file, a file a link, a link a directory; one has changed, and one is gone.
    let changed = vec![
        file("a", "file"),
        file("b", "other"),
        link("c", 0o640, "b"),
        directory("d"),
        file("d/e", "e"),
        link("empty", SYMLINK, "b"),
    ];
    let client = Client::new(changed);
    let known = Directory::open(place, BOOT).unwrap().unwrap();
    let (made, received) = client.receive(known).await.unwrap();
    assert_eq!(received.files, 3);
    assert!(Directory::open(place, BOOT).unwrap().is_none());
    assert_eq!(Directory::size_at(place, BOOT), None);
    let found = tree(&made.files());
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("a", "640 1 file"),
            ("b", "640 2 other"),
            ("c", "640 2 other"),
            ("d", "750 "),
            ("d/e", "640 1 e"),
            ("empty", "777 b"),
        ]
    );
    assert!(fs::list(place.join("incoming")).unwrap().is_empty());
}

/// What a client says of the size of a file is not believed: what counts is what has come.
#[tokio::test]
async fn sizes_are_those_that_came() {
    let claimed = |path: &str, size: i64| {
        let (mut stat, content) = file(path, "123");
        stat.size = size;
        (stat, content)
    };
    let scratch = Scratch::temporary("sessions").unwrap();
    let files = vec![
        claimed("a", i64::MAX),
        claimed("b", i64::MAX),
        file("c", "4"),
    ];
    let client = Client::new(files);
    let place = scratch.path();
    let known = Directory::create(place).unwrap();
    let (made, received) = client.receive(known).await.unwrap();
    assert_eq!((made.size(), received.bytes), (7, 7));
    made.remember(BOOT).unwrap();
    // Those that were changed meanwhile are asked for again.
    let known = Directory::open(place, BOOT).unwrap().unwrap();
    let (_, received) = client.receive(known).await.unwrap();
    assert_eq!(received.files, 2);
}

/// Clients that send nothing do not keep threads from others.
#[test]
fn clients_that_stall_need_no_threads() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let scratch = Scratch::temporary("sessions").unwrap();
        let sessions: Arc<Sessions> = Arc::default();
        let mut stalled = Vec::new();
        for number in 0..8 {
            let client = Client {
                stalls: true,
                ..Client::new(vec![file("a", "1")])
            };
            let session = client.connect(&sessions).await;
            let place = scratch.path().join(number.to_string());
            fs::create_dir(&place, 0o700).unwrap();
            let known = Directory::create(&place).unwrap();
            let stream = session.files(&wanted()).unwrap();
            let receiving = files::receive(stream, known, |_| ());
            stalled.push(tokio::spawn(async move { receiving.await.map(drop) }));
        }
        let place = scratch.path().join("other");
        fs::create_dir(&place, 0o700).unwrap();
        let other = Client::new(vec![file("a", "1")]);
        other
            .receive(Directory::create(&place).unwrap())
            .await
            .unwrap();
        assert!(stalled.iter().all(|receiving| !receiving.is_finished()));
    });
}

#[tokio::test]
async fn hostile_files_are_refused_with_their_path() {
    let outside = Scratch::temporary("outside").unwrap();
    let target = outside.path().display().to_string();
    for (files, path) in [
        (vec![file("../x", "x")], "../x"),
        (vec![file("/x", "x")], "/x"),
        (vec![file("b", ""), file("a", "")], "a"),
        (vec![link("a", 0o600, "/etc/passwd")], "a"),
        (vec![link("a", SYMLINK, &target), file("a/x", "x")], "a/x"),
        (
            vec![(stat("null", 1 << 26 | 1 << 21, 0), Bytes::new())],
            "null",
        ),
        (vec![file("a/b", "")], "a/b"),
    ] {
        let scratch = Scratch::temporary("sessions").unwrap();
        let known = Directory::create(scratch.path()).unwrap();
        let hostile = Client::new(files);
        let failed = hostile.receive(known).await.map(drop);
        let text = failed.unwrap_err().to_string();
        assert!(text.contains(&format!("{path:?}")), "{text}");
        assert!(!fs::exists(scratch.path().join("index")));
        // A directory that was complete is as it was, or not complete any more.
        let scratch = Scratch::temporary("sessions").unwrap();
        let client = Client::new(vec![file("kept", "1")]);
        let new = Directory::create(scratch.path()).unwrap();
        let (made, _) = client.receive(new).await.unwrap();
        made.remember(BOOT).unwrap();
        let known = Directory::open(scratch.path(), BOOT).unwrap().unwrap();
        assert!(hostile.receive(known).await.is_err());
        if let Some(known) = Directory::open(scratch.path(), BOOT).unwrap() {
            let found = tree(&known.files());
            assert_eq!((found.len(), &*found["kept"]), (1, "640 1 1"));
        }
        assert!(fs::list(outside.path()).unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_session_may_be_cut_at_each_packet() {
    let files = vec![directory("a"), file("a/b", "1"), file("c", "2")];
    // Four of files and their end, two of each content, and the last.
    for most in 0..9 {
        let scratch = Scratch::temporary("sessions").unwrap();
        let client = Client {
            most: Some(most),
            ..Client::new(files.clone())
        };
        let known = Directory::create(scratch.path()).unwrap();
        let failed = client.receive(known).await;
        let error = failed.map(drop).unwrap_err();
        assert!(
            matches!(&error, files::Error::Call(status) if status.code == Code::Unavailable),
            "{most}: {error:?}"
        );
    }
    let scratch = Scratch::temporary("sessions").unwrap();
    let client = Client {
        most: Some(9),
        ..Client::new(files)
    };
    let known = Directory::create(scratch.path()).unwrap();
    client.receive(known).await.unwrap();
}

#[tokio::test]
async fn services_are_called() {
    let sessions = Arc::default();
    let session = Client::default().connect(&sessions).await;
    let secret = session.secret("known").await.unwrap();
    assert_eq!(secret.as_deref(), Some(&b"secret"[..]));
    assert_eq!(session.secret("other").await.unwrap(), None);
    let failed = session.secret("broken").await.unwrap_err();
    assert_eq!(failed.message, "secret broken: open /x: permission denied");
    let hasty = Arc::new(Sessions::new(Duration::from_secs(60), Duration::ZERO));
    let hurried = Client::default().connect(&hasty).await;
    let failed = hurried.secret("slow").await.unwrap_err();
    assert_eq!(failed.message, "secret slow: no answer for 0 s");
    let (user, password) = session.credentials("registry").await.unwrap();
    assert_eq!((user.as_str(), password.as_str()), ("registry", "password"));
    let failed = session.export(0, &BTreeMap::new()).unwrap_err();
    assert!(failed.message.contains("FileSend/DiffCopy not supported"));
}

#[tokio::test]
async fn a_client_that_pauses_gets_its_output() {
    const SIZE: usize = 64 << 20;
    let client = Client {
        pause: Some(Duration::from_millis(300)),
        ..Client::default()
    };
    let session = client.connect(&Arc::default()).await;
    let produce = |output: &mut dyn std::io::Write| output.write_all(&vec![7; SIZE]);
    let turn = OUTPUTS.begin().await;
    let stream = session.export(0, &BTreeMap::new()).unwrap();
    let written = output::write(stream, turn, produce, |_| ());
    written.await.unwrap();
    assert_eq!(client.asked.load(Ordering::Relaxed), SIZE);
}

#[tokio::test]
async fn sessions_are_waited_for() {
    let sessions = Sessions::default();
    let failed = sessions.get("x").await.map(drop).unwrap_err();
    assert!(failed.message.starts_with("no active session for x"));
}

#[tokio::test]
async fn sessions_have_names_of_their_own() {
    let sessions: Arc<Sessions> = Arc::default();
    let session = Client::default().connect(&sessions).await;
    let (ours, _theirs) = tokio::io::duplex(1 << 10);
    let mut headers = HeaderMap::new();
    let missing = sessions.serve(&headers, TokioIo::new(ours)).await;
    assert_eq!(missing.unwrap_err().code, Code::InvalidArgument);
    headers.insert("x-docker-expose-session-uuid", session.id.parse().unwrap());
    let (ours, _theirs) = tokio::io::duplex(1 << 10);
    let twice = sessions.serve(&headers, TokioIo::new(ours)).await;
    assert_eq!(twice.unwrap_err().code, Code::AlreadyExists);
    sessions.get(&session.id).await.unwrap();
}

#[tokio::test]
async fn a_call_whose_caller_is_gone_is_dropped() {
    struct Dropped(tokio::sync::mpsc::Sender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.try_send(());
        }
    }
    let (sender, mut dropped) = tokio::sync::mpsc::channel(1);
    let (ours, mut one) = tokio::io::duplex(1 << 16);
    let (mut other, theirs) = tokio::io::duplex(1 << 16);
    let copied = async move { tokio::io::copy_bidirectional(&mut one, &mut other).await };
    let wire = tokio::spawn(copied);
    tokio::spawn(grpc::serve(
        TokioIo::new(theirs),
        grpc::Limits::default(),
        HeaderMap::new,
        move |call: Call| {
            let guard = Dropped(sender.clone());
            async move {
                call.responses.send(&Packet::default()).await?;
                std::future::pending::<()>().await;
                drop(guard);
                Ok(())
            }
        },
    ));
    let (channel, driver) = grpc::Channel::open(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(driver);
    let mut call = channel.stream("a/b", HeaderMap::new()).unwrap();
    call.next::<Packet>().await.unwrap().unwrap();
    drop(call);
    dropped.recv().await.unwrap();
    // Its connection may end too.
    let mut call = channel.stream("a/b", HeaderMap::new()).unwrap();
    call.next::<Packet>().await.unwrap().unwrap();
    wire.abort();
    dropped.recv().await.unwrap();
    assert!(call.next::<Packet>().await.is_err());
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_gone() {
    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);
    // One that answers has time for it, however busy this machine is.
    for (is_silent, patience, limit) in [(false, LONG, 10 * SHORT), (true, SHORT, LONG)] {
        let sessions = Arc::new(Sessions::new(SHORT, patience));
        let client = Client {
            is_silent,
            ..Client::default()
        };
        let session = client.connect(&sessions).await;
        let id = format!("prefix:{}", session.id);
        let ended = tokio::time::timeout(limit, sessions.ended(&id)).await;
        assert_eq!(ended.is_ok(), is_silent);
    }
}
