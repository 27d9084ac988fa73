//! Reads the messages of a streamed response, and prints progress messages as Docker's package
//! `jsonmessage` does.
//!
//! On a terminal, each item with a progress has a line, which its next message overwrites. Elsewhere
//! progress is not shown.

use std::collections::VecDeque;
use std::io::IsTerminal as _;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;
use whelk_api_types::{Aux, PushedPartOfIndex, StreamMessage, read};
use whelk_text::progress;

use crate::client::{lost, unreadable};
use crate::output::{print, warn};
use crate::{Failure, Outcome, terminal};

/// The messages of a streamed response: JSON objects, each on a line.
pub(super) struct Messages {
    body: Incoming,
    lines: Lines,
}

impl Messages {
    pub(super) fn of(response: hyper::Response<Incoming>) -> Self {
        Self {
            body: response.into_body(),
            lines: Lines::default(),
        }
    }

    /// Waits for the next message. Returns `None` at the end of the response.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Outcome<Option<T>> {
        loop {
            if let Some(message) = self.lines.ready.pop_front() {
                let message = message.and_then(read).map_err(unreadable)?;
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.map_err(|error| lost(&error))?;
                    if let Some(bytes) = frame.data_ref() {
                        self.lines.push(bytes);
                    }
                }
                None if self.lines.unread.is_empty() => return Ok(None),
                None => self.lines.push(b"\n"),
            }
        }
    }
}

/// Splits the received bytes into messages.
#[derive(Default)]
struct Lines {
    /// The beginning of a line that has not arrived completely.
    unread: Vec<u8>,
    /// The messages of the lines before it.
    ready: VecDeque<serde_json::Result<Value>>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        // Line breaks inside of strings are escaped.
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            self.unread.extend_from_slice(bytes);
            return;
        };
        let (complete, rest) = bytes.split_at(end + 1);
        self.unread.extend_from_slice(complete);
        for message in serde_json::Deserializer::from_slice(&self.unread).into_iter() {
            let is_broken = message.is_err();
            self.ready.push_back(message);
            if is_broken {
                break;
            }
        }
        self.unread = rest.to_vec();
    }
}

/// Where messages are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Output,
    /// Standard error.
    Errors,
    /// Nothing is printed; only errors in the messages are returned.
    Nowhere,
}

impl Target {
    fn is_terminal(self) -> bool {
        match self {
            Self::Output => terminal::stdout_is_terminal(),
            Self::Errors => std::io::stderr().is_terminal(),
            Self::Nowhere => false,
        }
    }

    fn print(self, text: &str) -> Outcome<()> {
        match self {
            Self::Output => print(text),
            Self::Errors => {
                warn(text);
                Ok(())
            }
            Self::Nowhere => Ok(()),
        }
    }
}

/// Prints the messages of a response while they arrive.
pub(super) async fn print_messages(response: hyper::Response<Incoming>) -> Outcome {
    print_messages_to(response, Target::Output).await?;
    Ok(0)
}

/// Like [`print_messages`], to another target. Returns the manifests that were pushed instead of an
/// index.
pub(super) async fn print_messages_to(
    response: hyper::Response<Incoming>,
    target: Target,
) -> Outcome<Vec<PushedPartOfIndex>> {
    let mut parts = Vec::new();
    let mut messages = Messages::of(response);
    let mut display = Display::new(target.is_terminal());
    while let Some(mut message) = messages.next::<StreamMessage>().await? {
        if let Some(error) = take_error(&mut message) {
            return Err(Failure::new(error));
        }
        let width = terminal::size().map_or(progress::WIDTH, |(_, columns)| columns.into());
        target.print(&display.text(&message, width))?;
        if let Some(Aux::PartOfIndex(part)) = message.aux {
            parts.push(*part);
        }
    }
    Ok(parts)
}

/// Takes the error that a message reports. As with Docker's CLI, `errorDetail` comes first; older
/// engines send `error` alone.
fn take_error(message: &mut StreamMessage) -> Option<String> {
    let text = message.error.take();
    match message.error_detail.take() {
        Some(detail) if !detail.message.is_empty() => Some(detail.message),
        Some(_) => Some(text.unwrap_or_default()),
        None => text,
    }
}

/// The lines of the items on the terminal.
struct Display {
    is_terminal: bool,
    /// Items in the order of their lines. The cursor is on the line below the last.
    items: Vec<String>,
}

impl Display {
    fn new(is_terminal: bool) -> Self {
        Self {
            is_terminal,
            items: Vec::new(),
        }
    }

    /// Returns what a message writes to a terminal of `width` columns, or to a file.
    fn text(&mut self, message: &StreamMessage, width: usize) -> String {
        // `aux` is for programs.
        if message.aux.is_some() {
            return String::new();
        }
        let id = message.id.as_deref().unwrap_or_default();
        let stream = message.stream.as_deref().unwrap_or_default();
        let status = message.status.as_deref().unwrap_or_default();
        let has_progress = message.progress_detail.is_some();
        let detail = message.progress_detail.unwrap_or_default();
        let bar = progress::bar(detail.current, detail.total, width);
        if !self.is_terminal && !bar.is_empty() {
            return String::new();
        }
        let mut output = String::new();
        let mut down = 0;
        if !id.is_empty() && has_progress {
            let line = self.items.iter().position(|item| item == id);
            let line = line.unwrap_or_else(|| {
                self.items.push(id.to_owned());
                if self.is_terminal {
                    output.push('\n');
                }
                self.items.len() - 1
            });
            down = self.items.len() - line;
        } else {
            // Lines above this one are not written to any more.
            self.items.clear();
        }
        let overwrites = self.is_terminal && stream.is_empty() && has_progress;
        if self.is_terminal && down > 0 {
            output += &format!("\x1b[{down}A");
        }
        if overwrites {
            output += "\x1b[2K\r";
        }
        if !id.is_empty() {
            output += &format!("{id}: ");
        }
        if overwrites {
            output += &format!("{status} {bar}\r");
        } else if stream.is_empty() {
            output += &format!("{status}\n");
        } else {
            output += stream;
        }
        if self.is_terminal && down > 0 {
            output += &format!("\x1b[{down}B");
        }
        output
    }
}

#[cfg(test)]
mod tests {
    use whelk_api_types::ProgressDetail;

    use super::*;

    fn loading(id: &str, current: u64) -> StreamMessage {
        StreamMessage {
            id: Some(id.into()),
            status: Some("Loading layer".into()),
            progress_detail: Some(ProgressDetail {
                current,
                total: 100,
            }),
            ..StreamMessage::default()
        }
    }

    fn loaded() -> StreamMessage {
        StreamMessage {
            stream: Some("Loaded image: c\n".into()),
            ..StreamMessage::default()
        }
    }

    #[test]
    fn messages_are_read_as_their_lines_arrive() {
        let mut lines = Lines::default();
        let mut check = |bytes: &str, expected: &[&str]| {
            lines.push(bytes.as_bytes());
            let ready = lines.ready.drain(..);
            let ready: Vec<String> = ready
                .map(|message| message.map_or("broken".into(), |message| message.to_string()))
                .collect();
            assert_eq!(ready, expected, "{bytes}");
        };
        check(r#"{"a":"#, &[]);
        check("1}\r\n{\"b\":2}\n{\"c", &[r#"{"a":1}"#, r#"{"b":2}"#]);
        check("\":", &[]);
        check("3}\n\n", &[r#"{"c":3}"#]);
        check("{}{}\nx\n{}\n", &["{}", "{}", "broken"]);
        check("{\"d\":4}", &[]);
        check("\n", &[r#"{"d":4}"#]);
    }

    #[test]
    fn takes_the_error_of_error_detail_first() {
        for (message, expected) in [
            (
                r#"{"errorDetail": {"message": "a"}, "error": "b"}"#,
                Some("a"),
            ),
            (r#"{"errorDetail": {"code": 1, "message": "a"}}"#, Some("a")),
            (r#"{"errorDetail": {}, "error": "b"}"#, Some("b")),
            (r#"{"errorDetail": {}}"#, Some("")),
            (r#"{"errorDetail": null, "error": "b"}"#, Some("b")),
            (r#"{"error": "b"}"#, Some("b")),
            (r#"{"status": "x", "error": null}"#, None),
        ] {
            let mut read: StreamMessage = read(serde_json::from_str(message).unwrap()).unwrap();
            assert_eq!(take_error(&mut read).as_deref(), expected, "{message}");
        }
    }

    #[test]
    fn each_item_has_its_line_on_a_terminal() {
        let mut display = Display::new(true);
        let mut check = |message: StreamMessage, expected: &str| {
            assert_eq!(display.text(&message, 80), expected);
        };
        check(
            loading("a", 1),
            "\n\x1b[1A\x1b[2K\ra: Loading layer       1B/100B\r\x1b[1B",
        );
        check(
            loading("b", 2),
            "\n\x1b[1A\x1b[2K\rb: Loading layer       2B/100B\r\x1b[1B",
        );
        check(
            loading("a", 3),
            "\x1b[2A\x1b[2K\ra: Loading layer       3B/100B\r\x1b[2B",
        );
        check(loaded(), "Loaded image: c\n");
        // The lines of earlier items are left alone after that.
        check(
            loading("a", 4),
            "\n\x1b[1A\x1b[2K\ra: Loading layer       4B/100B\r\x1b[1B",
        );
    }

    #[test]
    fn a_file_gets_no_progress() {
        let mut display = Display::new(false);
        for (message, expected) in [
            (loading("a", 1), ""),
            (loaded(), "Loaded image: c\n"),
            (
                StreamMessage {
                    status: Some("sha256:00".into()),
                    ..StreamMessage::default()
                },
                "sha256:00\n",
            ),
            (
                StreamMessage {
                    id: Some("a".into()),
                    status: Some("Waiting".into()),
                    progress_detail: Some(ProgressDetail::default()),
                    ..StreamMessage::default()
                },
                "a: Waiting\n",
            ),
        ] {
            assert_eq!(display.text(&message, 80), expected);
        }
    }
}
