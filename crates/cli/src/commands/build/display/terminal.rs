//! Progress on a terminal: a line for each step, drawn again as they change.
//!
//! ```text
//! [+] Building 1.2s (3/5)                                   docker:default
//!  => [internal] load build definition from Dockerfile                0.0s
//!  => => transferring dockerfile: 31B                                 0.0s
//!  => [2/3] RUN make                                                  1.0s
//!  => => # the last lines of its output
//! ```

use std::io::IsTerminal as _;
use std::time::Instant;

use super::trace::{Step, Trace};
use crate::output::warn;

/// Number of lines of a running step's output that are shown.
const LINES: usize = 6;

const DEFAULT_WIDTH: usize = 80;
const DEFAULT_HEIGHT: usize = 24;

/// Whether colors are wanted on the standard error.
pub(super) fn has_colors() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::io::stderr().is_terminal()
}

pub(super) struct Terminal {
    builder: String,
    began: Instant,
    /// Number of lines that are on the screen, and will be drawn again.
    drawn: usize,
    colors: bool,
}

/// A line, and how important it is to see it.
struct Line {
    text: String,
    is_done: bool,
    is_detail: bool,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        warn("\x1b[?25h");
    }
}

impl Terminal {
    pub fn new(builder: &str) -> Self {
        warn("\x1b[?25l");
        Self {
            builder: builder.to_owned(),
            began: Instant::now(),
            drawn: 0,
            colors: has_colors(),
        }
    }

    /// Draws all steps; at the end with all that was left out for lack of space.
    pub fn draw(&mut self, trace: &Trace, is_end: bool) {
        let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
        let or = |number: u16, default: usize| match number {
            0 => default,
            number => usize::from(number),
        };
        let width = size.map_or(DEFAULT_WIDTH, |size| or(size.ws_col, DEFAULT_WIDTH));
        let height = size.map_or(DEFAULT_HEIGHT, |size| or(size.ws_row, DEFAULT_HEIGHT));
        let now = trace.now();
        let mut lines = Vec::new();
        for step in trace.steps.iter().filter(|step| step.started.is_some()) {
            lines.extend(self.step(step, now, width));
        }
        if !is_end {
            shorten(&mut lines, height.saturating_sub(3));
        }
        let mut text = String::new();
        if self.drawn > 0 {
            text += &format!("\x1b[{}A\r", self.drawn);
        }
        text += &format!("{}\x1b[K\n", self.head(trace, width, is_end));
        for line in &lines {
            text += &format!("{}\x1b[K\n", line.text);
        }
        text += "\x1b[J";
        warn(&text);
        self.drawn = if is_end { 0 } else { lines.len() + 1 };
    }

    fn head(&self, trace: &Trace, width: usize, is_end: bool) -> String {
        let (done, all) = trace.counts();
        let end = if is_end && done == all {
            " FINISHED"
        } else {
            ""
        };
        let seconds = self.began.elapsed().as_secs_f64();
        let text = format!("[+] Building {seconds:.1}s ({done}/{all}){end}");
        let line = aligned(&text, &format!("docker:{}", self.builder), width);
        self.colored(&line, if is_end { "34" } else { "" })
    }

    fn colored(&self, text: &str, color: &str) -> String {
        match self.colors && !color.is_empty() {
            true => format!("\x1b[{color}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn step(&self, step: &Step, now: f64, width: usize) -> Vec<Line> {
        let is_done = step.completed.is_some();
        let (prefix, color) = match step.error.as_str() {
            "" if step.is_cached => ("CACHED ", "34"),
            "" if is_done => ("", "34"),
            "" => ("", ""),
            _ if step.was_cancelled() => ("CANCELED ", "33"),
            _ => ("ERROR ", "31"),
        };
        let line = |text: String, is_detail: bool| Line {
            text: self.colored(&text, color),
            is_done,
            is_detail,
        };
        let time = format!("{:.1}s", step.duration(now));
        let name = printable(&step.name);
        let mut lines = vec![line(
            aligned(&format!(" => {prefix}{name}"), &time, width),
            false,
        )];
        for part in &step.parts {
            let end = part.completed.unwrap_or(now);
            let time = part.started.map_or(0.0, |started| (end - started).max(0.0));
            let amount = part.amount();
            // The time is at the end of the line.
            let amount = match amount.rsplit_once(' ') {
                Some((bytes, time)) if time.ends_with('s') => bytes,
                _ => &amount,
            };
            let text = format!(" => => {}{amount}", printable(&part.name));
            lines.push(line(aligned(&text, &format!("{time:.1}s"), width), true));
        }
        if !is_done {
            for output in step.last_lines(LINES) {
                let output = output.split_once(' ').map_or("", |(_, text)| text);
                let text = cut(&format!(" => => # {}", printable(output)), width);
                lines.push(line(text, true));
            }
        }
        lines
    }
}

/// Leaves lines out until no more than `most` are left: first the details of what is done, then what is done.
fn shorten(lines: &mut Vec<Line>, most: usize) {
    let rules: [fn(&Line) -> bool; 3] = [
        |line| line.is_done && line.is_detail,
        |line| line.is_done,
        |_| true,
    ];
    for may_go in rules {
        let mut over = lines.len().saturating_sub(most);
        lines.retain(|line| {
            let goes = over > 0 && may_go(line);
            over -= usize::from(goes);
            !goes
        });
    }
}

/// Returns a text without what would move the cursor.
pub(super) fn printable(text: &str) -> String {
    let last = text
        .rsplit('\r')
        .find(|part| !part.is_empty())
        .unwrap_or(text);
    let mut shown = String::new();
    let mut letters = last.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\t' => shown.push_str("    "),
            '\x1b' => match letters.next() {
                // Settings, such as the title, end with BEL or ESC \.
                Some(']') => {
                    let is_end = |letter: char| matches!(letter, '\x07' | '\\');
                    letters.by_ref().find(|letter| is_end(*letter));
                }
                // Colors and movements end with a letter.
                Some(letter) if !letter.is_ascii_alphabetic() => {
                    let is_end = |letter: char| letter.is_ascii_alphabetic();
                    letters.by_ref().find(|letter| is_end(*letter));
                }
                _ => {}
            },
            letter if letter.is_control() => shown.push(' '),
            letter => shown.push(letter),
        }
    }
    shown
}

/// Cuts a text to a number of columns.
fn cut(text: &str, most: usize) -> String {
    if columns(text) <= most {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut left = most.saturating_sub(1);
    for letter in text.chars() {
        match left.checked_sub(width(letter)) {
            Some(rest) => left = rest,
            None => break,
        }
        shown.push(letter);
    }
    shown.push('…');
    shown
}

fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// Returns the number of columns of a letter: those of East Asian scripts and pictures are wide, marks that are combined
/// with the letter before have none (Unicode, annex 11).
fn width(letter: char) -> usize {
    match u32::from(letter) {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f | 0x20d0..=0x20ff => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xa960..=0xa97f
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f680..=0x1f6ff
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Returns a line with two texts, of which one is at its end.
fn aligned(left: &str, right: &str, width: usize) -> String {
    let space = width.saturating_sub(columns(right) + 1);
    let left = cut(left, space);
    let fill = space.saturating_sub(columns(&left));
    format!("{left}{:fill$} {right}", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_the_terminal() {
        assert_eq!(aligned(" => a", "0.1s", 12), " => a   0.1s");
        assert_eq!(aligned(" => abcdef", "0.1s", 12), " => ab… 0.1s");
        assert_eq!(aligned("建", "1s", 7), "建   1s");
        assert_eq!(aligned("建建建", "1s", 7), "建…  1s");
        assert_eq!(printable("10 %\r50 %\r"), "50 %");
        assert_eq!(printable("\x1b[1;31mred\x1b[0m\tx\u{7}"), "red    x ");
    }

    #[test]
    fn what_is_done_is_left_out_first() {
        let line = |text: &str, is_done: bool, is_detail: bool| Line {
            text: text.into(),
            is_done,
            is_detail,
        };
        let mut lines = vec![
            line("a", true, false),
            line("a detail", true, true),
            line("b", false, false),
            line("b detail", false, true),
            line("c", true, false),
        ];
        for (most, expected) in [
            (9, "a|a detail|b|b detail|c"),
            (4, "a|b|b detail|c"),
            (3, "b|b detail|c"),
            (2, "b|b detail"),
            (1, "b detail"),
        ] {
            shorten(&mut lines, most);
            let texts: Vec<&str> = lines.iter().map(|line| &*line.text).collect();
            assert_eq!(texts.join("|"), expected);
        }
    }
}
