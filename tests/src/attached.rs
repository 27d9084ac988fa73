//! Long-lived streams: a container's input and output over the API, and the engine's events.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::PATIENCE;
use crate::http::Connection;

/// A client attached to a container or to an exec, over the raw API.
#[derive(Debug)]
pub struct Attached {
    connection: Connection,
    /// Whether output has Docker's frame headers, which name the stream; with a terminal it is raw.
    framed: bool,
    /// Received bytes of an incomplete frame.
    pending: Vec<u8>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Offset in `stdout` up to which text was found already.
    seen: usize,
}

impl Attached {
    /// Sends a request that upgrades the connection, and waits for the response: everything the
    /// container writes from then on arrives here.
    ///
    /// # Panics
    /// Panics if the engine refuses.
    #[track_caller]
    pub(crate) fn open(socket: &Path, path: &str, body: Option<&Value>, framed: bool) -> Self {
        let mut connection = Connection::open(socket).expect("connect to the engine");
        let body = body.map(Value::to_string).unwrap_or_default();
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "tcp"),
            ("Content-Type", "application/json"),
        ];
        connection
            .send("POST", path, &headers, body.as_bytes())
            .expect("request the stream");
        let (status, headers) = connection
            .head()
            .expect("receive the response to an attach");
        assert_eq!(status, 101, "POST {path}: {headers:?}");
        Self {
            connection,
            framed,
            pending: Vec::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            seen: 0,
        }
    }

    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.connection
            .send_raw(bytes)
            .expect("write to the container");
    }

    /// Closes the container's input.
    #[track_caller]
    pub fn close_input(&self) {
        self.connection
            .half_close()
            .expect("close the container's input");
    }

    /// Waits until standard output contains `text` after what was found before.
    ///
    /// # Panics
    /// Panics if the output ends first, or after [`PATIENCE`].
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let begin = Instant::now();
        loop {
            let rest = &self.stdout[self.seen..];
            if let Some(at) = rest
                .windows(text.len())
                .position(|window| window == text.as_bytes())
            {
                self.seen += at + text.len();
                return;
            }
            let so_far = String::from_utf8_lossy(rest).into_owned();
            assert!(
                begin.elapsed() < PATIENCE,
                "timed out waiting for {text:?} in {so_far:?}"
            );
            assert!(
                self.receive(),
                "the stream ended before {text:?}: {so_far:?}"
            );
        }
    }

    /// Reads to the end and returns standard output and standard error.
    ///
    /// # Panics
    /// Panics if the stream does not end within [`PATIENCE`].
    #[track_caller]
    pub fn to_end(mut self) -> (String, String) {
        while self.receive() {}
        assert!(
            self.pending.is_empty(),
            "incomplete frame at the end: {:?}",
            self.pending
        );
        (
            String::from_utf8_lossy(&self.stdout).into_owned(),
            String::from_utf8_lossy(&self.stderr).into_owned(),
        )
    }

    #[track_caller]
    fn receive(&mut self) -> bool {
        let Some(piece) = self.connection.part().expect("read the stream") else {
            return false;
        };
        if !self.framed {
            self.stdout.extend(piece);
            return true;
        }
        const HEAD: usize = 8;
        self.pending.extend(piece);
        while self.pending.len() >= HEAD {
            let length = u32::from_be_bytes([
                self.pending[4],
                self.pending[5],
                self.pending[6],
                self.pending[7],
            ]) as usize;
            let stream = self.pending[0];
            assert!(
                (1..=2).contains(&stream) && self.pending[1..4] == [0, 0, 0],
                "not a frame: {:?}",
                &self.pending[..HEAD]
            );
            if self.pending.len() < HEAD + length {
                break;
            }
            let target = if stream == 1 {
                &mut self.stdout
            } else {
                &mut self.stderr
            };
            target.extend_from_slice(&self.pending[HEAD..HEAD + length]);
            self.pending.drain(..HEAD + length);
        }
        true
    }
}

/// The stream of the engine's events.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
    text: Vec<u8>,
}

impl Events {
    /// Subscribes to events. Returns once the engine has answered: every later event arrives here.
    #[track_caller]
    pub(crate) fn open(socket: &Path, path: &str) -> Self {
        let mut connection = Connection::open(socket).expect("connect to the engine");
        connection
            .send("GET", path, &[], b"")
            .expect("request events");
        let (status, headers) = connection
            .head()
            .expect("receive the response to a request for events");
        assert_eq!(status, 200, "GET {path}: {headers:?}");
        Self {
            connection,
            text: Vec::new(),
        }
    }

    /// Returns the next event, or `None` if the engine ended the stream.
    ///
    /// # Panics
    /// Panics if none arrives within [`PATIENCE`].
    #[track_caller]
    pub fn next_event(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event is JSON"));
            }
            self.text
                .extend(self.connection.part().expect("read events")?);
        }
    }

    /// Returns type and action of each event up to the first whose action is `last`.
    ///
    /// # Panics
    /// Panics if that event does not arrive.
    #[track_caller]
    pub fn until(&mut self, last: &str) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            let event = self
                .next_event()
                .unwrap_or_else(|| panic!("no event {last}, only {found:?}"));
            let action = event["Action"].as_str().unwrap_or_default().to_owned();
            found.push(format!(
                "{} {action}",
                event["Type"].as_str().unwrap_or_default()
            ));
            if action == last {
                return found;
            }
        }
    }

    /// Returns type and action of all events up to the end of the stream.
    #[track_caller]
    pub fn all(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(event) = self.next_event() {
            found.push(format!(
                "{} {}",
                event["Type"].as_str().unwrap_or_default(),
                event["Action"].as_str().unwrap_or_default()
            ));
        }
        found
    }
}
