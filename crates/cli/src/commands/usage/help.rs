//! Help texts.

use clap::{Arg, Command};

use crate::commands::usage::{find, program, usage_line};
use crate::output::{print, warn_line};
use crate::{Failure, Outcome};

/// Prints the help of a command.
pub(crate) fn help(tree: &Command, path: &[String], deprecated_shorthand: bool) -> Outcome {
    let Some(command) = find(tree, path) else {
        let known = (0..path.len())
            .rev()
            .find(|&most| find(tree, &path[..most]).is_some());
        let unknown = &path[known.unwrap_or(0)..];
        return Err(Failure::new(format!(
            "unknown help topic: {}",
            unknown.join(" ")
        )));
    };
    if deprecated_shorthand {
        warn_line!("Flag shorthand -h has been deprecated, use --help");
    }
    // Arguments without a help text are shown in the usage line only.
    let told = |argument: Arg| {
        if argument.is_positional() && argument.get_help().is_none() {
            argument.hide(true)
        } else {
            argument
        }
    };
    let text = command.clone().mut_args(told).render_help().to_string();
    print(&text).map(|()| 0)
}

pub(super) fn run_help(path: &[String]) -> String {
    format!("Run '{} --help' for more information", program(path))
}

/// Returns the usage line of a command and a hint at its help. As with Docker, the line of a group of
/// commands is its name here.
pub(super) fn hint(tree: &Command, path: &[String]) -> String {
    let line = match find(tree, path) {
        Some(root) if path.is_empty() => usage_line(root, &program(path)) + " [ARG...]",
        Some(group) if group.has_subcommands() => program(path),
        Some(command) => usage_line(command, &program(path)),
        None => String::new(),
    };
    format!("Usage:  {line}\n\n{}", run_help(path))
}
