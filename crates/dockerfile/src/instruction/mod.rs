//! The instructions, typed.

mod files;
mod flags;
mod health;
mod run;

pub use files::{Add, Copy, Files};
pub use health::Healthcheck;
pub use run::{Device, Mount, MountKind, Network, Run, Sharing};

use crate::error::{Error, Result};
use crate::expand::Lexer;
use crate::parser::Line;
use flags::Flags;

const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// An instruction other than FROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    Add(Add),
    Arg(Vec<Arg>),
    Cmd(Command),
    Copy(Copy),
    Entrypoint(Command),
    Env(Vec<Pair>),
    /// Ports as written: `80`, `80-90/udp`, `$PORTS`.
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<Pair>),
    Maintainer(String),
    /// The instruction to run in a later build.
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Exec form: a JSON list of strings.
    Exec(Vec<String>),
    /// Shell form: a line for the image's shell; `None` if it is empty.
    Shell(Option<String>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
    /// Whether they are separated by white space, in the old form.
    pub legacy: bool,
}

/// A build argument.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arg {
    pub key: String,
    /// The default.
    pub value: Option<String>,
    /// From a comment above it that begins with the name.
    pub description: String,
}

impl Instruction {
    /// Parses a line as an instruction other than FROM. Variables are not replaced.
    ///
    /// # Errors
    /// Returns an error with BuildKit's text for an unknown instruction or flag, or invalid
    /// arguments.
    pub fn parse(line: &Line) -> Result<Self> {
        Self::of(line).map_err(|error| error.at(line.lines))
    }

    /// Parses a line as an instruction and replaces its variables.
    ///
    /// # Errors
    /// Returns the errors of [`Instruction::parse`] and [`Instruction::expand`].
    pub fn read(line: &Line, lexer: &Lexer<'_>) -> Result<Self> {
        let mut instruction = Self::parse(line)?;
        instruction
            .expand(lexer, &mut Vec::new())
            .map_err(|error| error.at(line.lines))?;
        Ok(instruction)
    }

    fn of(line: &Line) -> Result<Self> {
        let name = line.instruction.to_uppercase();
        let one = || match line.arguments.as_slice() {
            [argument] => Ok(argument.clone()),
            _ => Err(Error::new(format!("{name} requires exactly one argument"))),
        };
        let no_flags = || Flags::read(&line.flags, &[]).map(drop);
        match name.as_str() {
            // BuildKit reads no flags of ARG and STOPSIGNAL.
            "ARG" => args(line).map(Self::Arg),
            "STOPSIGNAL" => one().map(Self::StopSignal),
            "ADD" => Add::parse(line).map(Self::Add),
            "COPY" => Copy::parse(line).map(Self::Copy),
            "RUN" => Run::parse(line).map(Self::Run),
            "HEALTHCHECK" => health::parse(line).map(Self::Healthcheck),
            "CMD" => no_flags().map(|()| Self::Cmd(command(line))),
            "ENTRYPOINT" => no_flags().map(|()| Self::Entrypoint(command(line))),
            "ENV" => no_flags().and_then(|()| pairs(line, "ENV").map(Self::Env)),
            "LABEL" => no_flags().and_then(|()| pairs(line, "LABEL").map(Self::Label)),
            "SHELL" => no_flags().and_then(|()| shell(line).map(Self::Shell)),
            "EXPOSE" | "VOLUME" | "ONBUILD" => {
                if line.arguments.is_empty() {
                    return Err(needs_argument(&name));
                }
                no_flags()?;
                match name.as_str() {
                    "EXPOSE" => {
                        let mut ports = line.arguments.clone();
                        ports.sort_unstable();
                        Ok(Self::Expose(ports))
                    }
                    "VOLUME" => volumes(line).map(Self::Volume),
                    _ => onbuild(line).map(Self::Onbuild),
                }
            }
            "MAINTAINER" | "USER" | "WORKDIR" => {
                let argument = one()?;
                no_flags()?;
                Ok(match name.as_str() {
                    "MAINTAINER" => Self::Maintainer(argument),
                    "USER" => Self::User(argument),
                    _ => Self::Workdir(argument),
                })
            }
            "FROM" => Err(Error::new("FROM is not a command type")),
            _ => {
                let error = Error::new(format!("unknown instruction: {}", line.instruction));
                Err(error.suggest(&line.instruction, NAMES, false))
            }
        }
    }

    /// Replaces the variables of instructions that support them, except those of ARG, whose defaults depend
    /// on the arguments before them. Adds the names of variables that are not set to `unset`, once for each word
    /// that they are in, also if it fails.
    ///
    /// # Errors
    /// Returns an error for words that cannot be expanded, and for mounts, paths and volumes that are
    /// invalid afterwards.
    pub fn expand(&mut self, lexer: &Lexer<'_>, unset: &mut Vec<String>) -> Result<()> {
        let mut words = Expander {
            lexer: *lexer,
            unset,
        };
        match self {
            Self::Env(pairs) | Self::Label(pairs) => {
                for pair in pairs {
                    words.word(&mut pair.key)?;
                    words.word(&mut pair.value)?;
                }
            }
            Self::Add(add) => {
                words.word(&mut add.checksum)?;
                add.files.expand(&mut words)?;
            }
            Self::Copy(copy) => copy.files.expand(&mut words)?,
            Self::Run(run) => run.expand(&mut words)?,
            Self::User(text) | Self::StopSignal(text) | Self::Workdir(text) => {
                words.word(text)?;
            }
            Self::Volume(paths) => {
                for path in paths {
                    words.word(path)?;
                    if path.is_empty() {
                        return Err(empty_volume());
                    }
                }
            }
            Self::Expose(ports) => {
                let expanded: Vec<Vec<String>> = ports
                    .iter()
                    .map(|port| lexer.words(port))
                    .collect::<Result<_>>()?;
                *ports = expanded.concat();
            }
            Self::Arg(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Healthcheck(_)
            | Self::Maintainer(_)
            | Self::Onbuild(_)
            | Self::Shell(_) => {}
        }
        Ok(())
    }
}

/// Replaces words, and collects the names of variables that are not set.
struct Expander<'a> {
    lexer: Lexer<'a>,
    unset: &'a mut Vec<String>,
}

impl Expander<'_> {
    fn word(&mut self, word: &mut String) -> Result<()> {
        *word = self.lexer.word_noting(word, self.unset)?;
        Ok(())
    }
}

/// Returns the value of FROM's only flag.
pub(crate) fn from_platform(line: &Line) -> Result<String> {
    let flags = Flags::read(&line.flags, &[("platform", flags::Kind::One)])?;
    Ok(flags.get("platform").to_owned())
}

fn needs_argument(name: &str) -> Error {
    Error::new(format!("{name} requires at least one argument"))
}

fn empty_volume() -> Error {
    Error::new("VOLUME specified can not be an empty string")
}

fn command(line: &Line) -> Command {
    if line.json {
        Command::Exec(line.arguments.clone())
    } else {
        Command::Shell(line.arguments.first().cloned())
    }
}

fn pairs(line: &Line, name: &str) -> Result<Vec<Pair>> {
    if line.arguments.is_empty() {
        return Err(needs_argument(name));
    }
    let groups = line.arguments.chunks(3).map(|group| match group {
        [key, ..] if key.is_empty() => Err(Error::new(format!("{name} names can not be blank"))),
        [key, value, separator] => Ok(Pair {
            key: key.clone(),
            value: value.clone(),
            legacy: separator.is_empty(),
        }),
        _ => Err(Error::new(format!(
            "Bad input to {name}, too many arguments"
        ))),
    });
    groups.collect()
}

fn args(line: &Line) -> Result<Vec<Arg>> {
    if line.arguments.is_empty() {
        return Err(needs_argument("ARG"));
    }
    let parsed = line.arguments.iter().map(|argument| {
        let (key, value) = match argument.split_once('=') {
            Some(("", _)) => return Err(Error::new("ARG names can not be blank")),
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        Ok(Arg {
            key: key.to_owned(),
            value,
            description: description(&line.comments, key),
        })
    });
    parsed.collect()
}

/// Returns what a comment of the form `NAME DESCRIPTION` says about a name.
pub(crate) fn description(comments: &[String], name: &str) -> String {
    let mut found = comments
        .iter()
        .filter_map(|comment| comment.strip_prefix(name)?.strip_prefix(' '));
    found
        .next()
        .filter(|_| !name.is_empty())
        .unwrap_or_default()
        .to_owned()
}

fn shell(line: &Line) -> Result<Vec<String>> {
    if line.arguments.is_empty() {
        Err(needs_argument("SHELL"))
    } else if line.json {
        Ok(line.arguments.clone())
    } else {
        Err(Error::new(
            "SHELL requires the arguments to be in JSON form",
        ))
    }
}

fn volumes(line: &Line) -> Result<Vec<String>> {
    let paths = line.arguments.iter().map(|path| match path.trim() {
        "" => Err(empty_volume()),
        path => Ok(path.to_owned()),
    });
    paths.collect()
}

fn onbuild(line: &Line) -> Result<String> {
    let name = match &line.trigger {
        Some(trigger) => trigger.instruction.to_uppercase(),
        None => "ONBUILD".into(),
    };
    match name.as_str() {
        "ONBUILD" => Err(Error::new(
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        )),
        "MAINTAINER" | "FROM" => Err(Error::new(format!(
            "{name} isn't allowed as an ONBUILD trigger"
        ))),
        _ => {
            let written = line.original.trim_start();
            let rest = written.get(line.instruction.len()..).unwrap_or_default();
            let mut trigger = rest.trim_start().to_owned();
            for doc in &line.heredocs {
                trigger = trigger + "\n" + &doc.content + &doc.name;
            }
            Ok(trigger)
        }
    }
}

#[cfg(test)]
mod tests;
