//! Shows the messages of a streamed response, as Docker's package `jsonmessage` does.
//!
//! On a terminal, each item with a progress has a line, which its next message overwrites. Elsewhere
//! progress is not shown.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use whelk_text::progress;

use crate::output::print;
use crate::{Failure, Outcome, terminal};

/// Prints the messages of a response while they arrive.
pub(super) async fn print_messages(response: hyper::Response<Incoming>) -> Outcome {
    let mut body = response.into_body();
    let mut display = Display::new(terminal::stdout_is_terminal());
    let mut unread: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::new(format!(
                "connection to the engine lost during its response: {error}"
            ))
        })?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        unread.extend_from_slice(bytes);
        // Each message is a line: line breaks inside of strings are escaped.
        if let Some(end) = unread.iter().rposition(|byte| *byte == b'\n') {
            show(&mut display, &unread[..=end])?;
            unread.drain(..=end);
        }
    }
    show(&mut display, &unread)?;
    Ok(0)
}

fn show(display: &mut Display, lines: &[u8]) -> Outcome<()> {
    let width = terminal::size().map_or(progress::WIDTH, |(_, columns)| columns.into());
    for message in serde_json::Deserializer::from_slice(lines).into_iter::<Value>() {
        let message = message
            .map_err(|error| Failure::new(format!("read the engine's response: {error}")))?;
        if let Some(error) = message["error"].as_str() {
            return Err(Failure::new(error));
        }
        print(&display.text(&message, width))?;
    }
    Ok(())
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
    fn text(&mut self, message: &Value, width: usize) -> String {
        let text = |name: &str| message[name].as_str().unwrap_or_default();
        let (id, stream, status) = (text("id"), text("stream"), text("status"));
        let number = |name: &str| message["progressDetail"][name].as_u64().unwrap_or(0);
        let bar = progress::bar(number("current"), number("total"), width);
        let has_progress = message["progressDetail"].is_object();
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
    use serde_json::json;

    use super::*;

    fn loading(id: &str, current: u64) -> Value {
        json!({"id": id, "status": "Loading layer", "progressDetail": {"current": current, "total": 100}})
    }

    #[test]
    fn each_item_has_its_line_on_a_terminal() {
        let mut display = Display::new(true);
        let mut check = |message: Value, expected: &str| {
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
        check(json!({"stream": "Loaded image: c\n"}), "Loaded image: c\n");
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
            (json!({"stream": "Loaded image: c\n"}), "Loaded image: c\n"),
            (json!({"status": "sha256:00"}), "sha256:00\n"),
            (
                json!({"status": "Waiting", "id": "a", "progressDetail": {}}),
                "a: Waiting\n",
            ),
        ] {
            assert_eq!(display.text(&message, 80), expected);
        }
    }
}
