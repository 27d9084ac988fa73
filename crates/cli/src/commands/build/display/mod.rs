//! Shows the progress of a build on the standard error.

mod plain;
mod raw;
mod terminal;
mod trace;

use whelk_buildkit::pb::control::StatusResponse;

use crate::output::{warn, warn_bytes};
use crate::{Failure, Outcome};

use plain::Plain;
use terminal::{Terminal, printable};
use trace::{Step, Trace};

/// The form in which progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Quiet,
    Plain,
    Terminal,
    Raw,
}

impl Mode {
    /// Reads `--progress`, whose default is `BUILDKIT_PROGRESS`.
    pub fn new(text: &str, quiet: bool) -> Outcome<Self> {
        use std::io::IsTerminal as _;
        if quiet {
            return match text {
                "auto" | "quiet" | "none" => Ok(Self::Quiet),
                other => Err(Failure::new(format!(
                    "progress={other} and quiet cannot be used together"
                ))),
            };
        }
        let default = std::env::var("BUILDKIT_PROGRESS").unwrap_or_default();
        let text = match text {
            "auto" if !default.is_empty() => &default,
            text => text,
        };
        let is_terminal = || std::io::stderr().is_terminal();
        match text {
            "quiet" | "none" => Ok(Self::Quiet),
            "plain" => Ok(Self::Plain),
            "auto" if is_terminal() => Ok(Self::Terminal),
            "auto" => Ok(Self::Plain),
            "tty" if is_terminal() => Ok(Self::Terminal),
            "tty" => Err(Failure::new(
                "failed to get console: provided file is not a console",
            )),
            "rawjson" => Ok(Self::Raw),
            other => Err(Failure::new(format!("invalid progress mode {other}"))),
        }
    }
}

/// The progress of a build, as it is shown.
pub(crate) struct Display {
    trace: Trace,
    view: View,
    debug: bool,
    is_explained: bool,
}

enum View {
    Quiet,
    Plain(Plain),
    Terminal(Terminal),
    Raw,
}

impl Display {
    /// `builder` is named in the head, if it has a name, and `debug` shows the details of warnings.
    pub fn new(mode: Mode, builder: &str, debug: bool) -> Self {
        let view = match mode {
            Mode::Quiet => View::Quiet,
            Mode::Plain => {
                if !builder.is_empty() {
                    warn(&format!(
                        "#0 building with \"{builder}\" instance using docker driver\n\n"
                    ));
                }
                View::Plain(Plain::default())
            }
            Mode::Terminal => View::Terminal(Terminal::new(builder)),
            Mode::Raw => View::Raw,
        };
        Self {
            trace: Trace::default(),
            view,
            debug,
            is_explained: false,
        }
    }

    /// If all was cached, the end says so.
    pub fn explaining(self, is_explained: bool) -> Self {
        Self {
            is_explained,
            ..self
        }
    }

    /// Takes news of a build.
    pub fn update(&mut self, response: &StatusResponse) {
        if matches!(self.view, View::Raw) {
            raw::print(response);
        }
        let updated = self.trace.update(response);
        match &self.view {
            // They are printed with the next tick.
            View::Plain(_) => Plain::note(&mut self.trace, &updated),
            // What has failed is told by the last lines.
            View::Quiet | View::Terminal(_) | View::Raw => self.trace.forget_output(&updated),
        }
    }

    /// Shows the news that have come since, and the time that has passed.
    pub fn tick(&mut self) {
        match &mut self.view {
            View::Terminal(terminal) => terminal.draw(&self.trace, false),
            View::Plain(plain) => warn_bytes(&plain.print(&mut self.trace)),
            View::Quiet | View::Raw => {}
        }
    }

    /// Shows the end: the output of a step that has failed, and warnings.
    pub fn finish(mut self) {
        let (last, is_terminal) = match &mut self.view {
            View::Quiet | View::Raw => return,
            View::Plain(plain) => {
                warn_bytes(&plain.end(&mut self.trace));
                (SHOWN_AGAIN, false)
            }
            View::Terminal(terminal) => {
                terminal.draw(&self.trace, true);
                (usize::MAX, true)
            }
        };
        let failed = self.trace.steps.iter();
        for step in failed.filter(|step| step.has_failed()) {
            warn(&failed_output(step, last, is_terminal));
        }
        warn(&self.trace.warnings(self.debug));
        warn(&self.trace.reasons());
        if self.is_explained && self.trace.is_all_cached() {
            warn("\nEverything was cached.\n");
        }
    }
}

/// Number of lines of a failed step that are shown again at the end, after all of them were shown.
const SHOWN_AGAIN: usize = 10;

/// Returns the name of a failed step, and its last lines, if it has written any; without what would control a terminal if they are for one.
fn failed_output(step: &Step, most: usize, is_terminal: bool) -> String {
    let lines = step.last_lines(most);
    let mut text = format!("------\n > {}:\n", printable(&step.name));
    if step.left_out() > 0 && most == usize::MAX {
        let count = step.left_out();
        text += &format!("({count} earlier lines: --progress plain shows all)\n");
    }
    for line in lines {
        match is_terminal {
            true => text += &printable(&line),
            false => text += &line,
        }
        text.push('\n');
    }
    text + "------\n"
}
