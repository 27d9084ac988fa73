//! The user's terminal: raw mode while a container uses it, and its size.

use std::io::{IsTerminal, Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Returns a text whose control characters, but for the ends of lines and tabs, are replaced: what an engine knows may come from
/// anybody, and must not control the terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.replace(is_harmful, "\u{fffd}")
}

fn is_harmful(letter: char) -> bool {
    letter.is_control() && !matches!(letter, '\n' | '\t')
}

/// Returns a text as [`harmless`] does, and on one line: as the cell of a table, or behind a heading.
pub(crate) fn one_line(text: &str) -> String {
    harmless(&text.replace(['\n', '\t', '\r'], " "))
}

/// Returns JSON without control characters: those that `serde_json` leaves in texts, and those of what is no JSON, as a frontend may
/// answer.
pub(crate) fn harmless_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            // It is between values.
            '\r' => shown.push(' '),
            _ if is_harmful(letter) => shown += &format!("\\u{:04x}", u32::from(letter)),
            _ => shown.push(letter),
        }
    }
    shown
}

/// Raw mode of standard input; restored on drop.
pub(crate) struct Raw(Termios);

impl Raw {
    pub(crate) fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Standard input without echo, while a secret is typed; restored on drop.
pub(crate) struct Hidden(Termios);

impl Hidden {
    pub(crate) fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Asks for a secret on the terminal. The question is on the standard error.
///
/// # Errors
/// Returns an error if the answer cannot be read.
pub(crate) async fn ask_hidden(question: &str) -> Result<String, crate::Failure> {
    let ask = |text: &str| {
        let mut errors = std::io::stderr();
        errors
            .write_all(text.as_bytes())
            .and_then(|()| errors.flush())
    };
    let hidden = Hidden::enter();
    ask(question)?;
    let read = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        std::io::stdin().read_line(&mut text).map(|_| text)
    });
    let read = read.await;
    drop(hidden);
    ask("\n")?;
    let text = read.map_err(|error| crate::Failure::new(error.to_string()))??;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

pub(crate) fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

pub(crate) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Returns the terminal's height and width in characters.
pub(crate) fn size() -> Option<(u16, u16)> {
    tcgetwinsize(std::io::stdout())
        .ok()
        .filter(|size| size.ws_row > 0 && size.ws_col > 0)
        .map(|size| (size.ws_row, size.ws_col))
}

/// Parses detach keys such as `ctrl-p,ctrl-q` to the bytes that the terminal sends. An empty text
/// gives the default, ctrl-p ctrl-q.
pub(crate) fn detach_keys(text: &str) -> Result<Vec<u8>, crate::Failure> {
    if text.is_empty() {
        return Ok(vec![16, 17]);
    }
    text.split(',')
        .map(|key| match key.strip_prefix("ctrl-").map(str::as_bytes) {
            Some([letter]) if letter.is_ascii_alphabetic() => {
                Ok(letter.to_ascii_lowercase() - b'a' + 1)
            }
            Some([symbol @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(symbol - b'@'),
            None if key.len() == 1 => Ok(key.as_bytes()[0]),
            _ => Err(crate::Failure::new(format!(
                "Invalid detach keys ({text}) provided"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        let shown = harmless("a\tb\n\u{1b}]0;title\u{7}\rc\u{9b}");
        assert_eq!(shown, "a\tb\n\u{fffd}]0;title\u{fffd}\u{fffd}c\u{fffd}");
        assert_eq!(one_line("a\tb\r\n\u{1b}[2Jc"), "a b  \u{fffd}[2Jc");
    }

    #[test]
    fn json_keeps_its_values() {
        let text = "a\u{1b}\u{7f}\u{9b}<é";
        let json = serde_json::to_string(text).unwrap();
        let shown = harmless_json(&json);
        assert_eq!(shown, r#""a\u001b\u007f\u009b<é""#);
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        let shown = harmless_json("{\r\n\t\"a\": \u{1b}[2J");
        assert_eq!(shown, "{ \n\t\"a\": \\u001b[2J");
    }
}
