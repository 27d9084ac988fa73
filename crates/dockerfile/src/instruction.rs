//! Parsing of the instructions that change an image's configuration.

use crate::parser::{Line, fields, words};
use whelk_text::duration;

use crate::{Error, Lexer, Result};

/// An instruction. Variables are already replaced in those instructions that support them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    Cmd(Command),
    Entrypoint(Command),
    Env(Vec<Pair>),
    /// Ports as written: `80`, `80-90/udp`, `$PORTS` already replaced and split.
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<Pair>),
    /// The instruction to run in a later build.
    Onbuild(String),
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
}

/// A health check. Times are in nanoseconds; 0 means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", LINE]`.
    pub test: Vec<String>,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i32,
}

impl Instruction {
    /// Whether `name`, in upper or lower case, is an instruction that [`Instruction::read`]
    /// supports.
    pub fn is_known(name: &str) -> bool {
        const NAMES: [&str; 11] = [
            "CMD",
            "ENTRYPOINT",
            "ENV",
            "EXPOSE",
            "HEALTHCHECK",
            "LABEL",
            "ONBUILD",
            "STOPSIGNAL",
            "USER",
            "VOLUME",
            "WORKDIR",
        ];
        NAMES.contains(&name.to_uppercase().as_str())
    }

    /// Parses a line as an instruction and replaces its variables.
    ///
    /// # Errors
    /// Returns an error with BuildKit's text for an unknown instruction or flag, or invalid
    /// arguments.
    pub fn read(line: &Line, lexer: &Lexer<'_>) -> Result<Self> {
        let name = line.instruction.to_uppercase();
        let rest = line.rest.as_str();
        let flags = match name.as_str() {
            "HEALTHCHECK" => &[
                "interval",
                "timeout",
                "start-period",
                "start-interval",
                "retries",
            ][..],
            _ => &[],
        };
        let flags = Flags::read(&line.flags, flags)?;
        let one = || {
            if rest.is_empty() {
                Err(Error::new(format!("{name} requires exactly one argument")))
            } else {
                Ok(rest)
            }
        };
        match name.as_str() {
            "CMD" => command(rest).map(Self::Cmd),
            "ENTRYPOINT" => command(rest).map(Self::Entrypoint),
            "ENV" | "LABEL" => {
                let pairs = pairs(rest, &name, lexer)?;
                Ok(if name == "ENV" {
                    Self::Env(pairs)
                } else {
                    Self::Label(pairs)
                })
            }
            "EXPOSE" => {
                let mut written: Vec<&str> = fields(rest).collect();
                if written.is_empty() {
                    return Err(needs_argument(&name));
                }
                written.sort_unstable();
                let ports = written
                    .into_iter()
                    .map(|port| lexer.words(port))
                    .collect::<Result<Vec<_>>>()?;
                Ok(Self::Expose(ports.concat()))
            }
            "HEALTHCHECK" => healthcheck(rest, &flags).map(Self::Healthcheck),
            "ONBUILD" => onbuild(line).map(Self::Onbuild),
            "STOPSIGNAL" => lexer.word(one()?).map(Self::StopSignal),
            "USER" => lexer.word(one()?).map(Self::User),
            "VOLUME" => volumes(rest, lexer).map(Self::Volume),
            "WORKDIR" => match lexer.word(one()?)? {
                path if path.is_empty() => Err(Error::new("cannot normalize nothing")),
                path => Ok(Self::Workdir(path)),
            },
            _ => Err(Error::new(format!(
                "unknown instruction: {}",
                line.instruction
            ))),
        }
    }
}

fn needs_argument(name: &str) -> Error {
    Error::new(format!("{name} requires at least one argument"))
}

/// The flags of a line by name.
struct Flags<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Flags<'a> {
    fn read(flags: &'a [String], known: &[&str]) -> Result<Self> {
        let mut read: Vec<(&str, &str)> = Vec::new();
        for flag in flags {
            let (name, value) = flag
                .split_once('=')
                .map_or((flag.as_str(), None), |(name, value)| (name, Some(value)));
            let short = name.trim_start_matches("--");
            if !known.contains(&short) {
                return Err(Error::new(format!("unknown flag: {name}")));
            }
            if read.iter().any(|(read, _)| *read == short) {
                return Err(Error::new(format!("duplicate flag specified: {name}")));
            }
            let value =
                value.ok_or_else(|| Error::new(format!("missing a value on flag: {name}")))?;
            read.push((short, value));
        }
        Ok(Self(read))
    }

    fn get(&self, name: &str) -> &'a str {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map_or("", |(_, value)| value)
    }

    fn duration(&self, name: &str) -> Result<i64> {
        const SHORTEST: i64 = 1_000_000;
        match self.get(name) {
            "" => Ok(0),
            text => match duration::parse(text)? {
                short if short != 0 && short < SHORTEST => Err(Error::new(format!(
                    "Interval {name:?} cannot be less than 1ms"
                ))),
                duration => Ok(duration),
            },
        }
    }
}

/// Parses a JSON list of strings. Returns `None` if `text` is not a JSON list.
///
/// # Errors
/// Returns an error if the list has elements that are not strings.
fn json_list(text: &str) -> Result<Option<Vec<String>>> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Ok(None);
    };
    let strings = list.into_iter().map(|value| {
        if let serde_json::Value::String(text) = value {
            Some(text)
        } else {
            None
        }
    });
    strings
        .collect::<Option<Vec<_>>>()
        .map(Some)
        .ok_or_else(|| {
            Error::new("when using JSON array syntax, arrays must be comprised of strings only")
        })
}

fn command(rest: &str) -> Result<Command> {
    Ok(match json_list(rest)? {
        Some(list) => Command::Exec(list),
        None => Command::Shell(
            Some(rest)
                .filter(|line| !line.is_empty())
                .map(str::to_owned),
        ),
    })
}

/// Parses `A=1 B="two words"`, or the old form `A the rest`.
fn pairs(rest: &str, name: &str, lexer: &Lexer<'_>) -> Result<Vec<Pair>> {
    let words = words(rest, lexer.escape);
    let first = words.first().ok_or_else(|| needs_argument(name))?;
    let written: Vec<(&str, &str)> = if first.contains('=') {
        let pair = |word: &'_ str| -> Result<usize> {
            word.find('=').ok_or_else(|| {
                Error::new(format!(
                    "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
                ))
            })
        };
        words
            .iter()
            .map(|word| pair(word).map(|at| (&word[..at], &word[at + 1..])))
            .collect::<Result<_>>()?
    } else {
        let end = rest
            .find([' ', '\t', '\x0b', '\x0c', '\r'])
            .ok_or_else(|| Error::new(format!("{name} must have two arguments")))?;
        vec![(&rest[..end], rest[end..].trim_start())]
    };
    if written.iter().any(|(key, _)| key.is_empty()) {
        return Err(Error::new(format!("{name} names can not be blank")));
    }
    written
        .into_iter()
        .map(|(key, value)| {
            Ok(Pair {
                key: lexer.word(key)?,
                value: lexer.word(value)?,
            })
        })
        .collect()
}

fn volumes(rest: &str, lexer: &Lexer<'_>) -> Result<Vec<String>> {
    let written = match json_list(rest)? {
        Some(list) => list,
        None => fields(rest).map(str::to_owned).collect(),
    };
    if written.is_empty() {
        return Err(needs_argument("VOLUME"));
    }
    let one = |path: &String| match lexer.word(path.trim())? {
        path if path.is_empty() => Err(Error::new("VOLUME specified can not be an empty string")),
        path => Ok(path),
    };
    written.iter().map(one).collect()
}

fn onbuild(line: &Line) -> Result<String> {
    let first = fields(&line.rest)
        .next()
        .ok_or_else(|| needs_argument("ONBUILD"))?
        .to_uppercase();
    match first.as_str() {
        "ONBUILD" => Err(Error::new(
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        )),
        "MAINTAINER" | "FROM" => Err(Error::new(format!(
            "{first} isn't allowed as an ONBUILD trigger"
        ))),
        _ => Ok(line.original.trim_start()[line.instruction.len()..]
            .trim_start()
            .to_owned()),
    }
}

fn healthcheck(rest: &str, flags: &Flags<'_>) -> Result<Healthcheck> {
    let (kind, arguments) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let arguments = arguments.trim_start();
    match kind.to_uppercase().as_str() {
        "" => return Err(needs_argument("HEALTHCHECK")),
        "NONE" if arguments.is_empty() => {
            return Ok(Healthcheck {
                test: vec!["NONE".into()],
                ..Healthcheck::default()
            });
        }
        "NONE" => return Err(Error::new("HEALTHCHECK NONE takes no arguments")),
        "CMD" => {}
        other => {
            return Err(Error::new(format!(
                "Unknown type {other:?} in HEALTHCHECK (try CMD)"
            )));
        }
    }
    let test = match json_list(arguments)? {
        Some(list) if !list.is_empty() => std::iter::once("CMD".to_owned()).chain(list).collect(),
        None if !arguments.is_empty() => vec!["CMD-SHELL".to_owned(), arguments.to_owned()],
        _ => return Err(Error::new("Missing command after HEALTHCHECK CMD")),
    };
    let retries = match flags.get("retries") {
        "" => 0,
        text => text.parse::<i32>().map_err(|error| {
            let cause = if matches!(
                error.kind(),
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow
            ) {
                "value out of range"
            } else {
                "invalid syntax"
            };
            Error::new(format!("strconv.ParseInt: parsing {text:?}: {cause}"))
        })?,
    };
    if retries < 0 {
        return Err(Error::new(format!(
            "--retries cannot be negative ({retries})"
        )));
    }
    Ok(Healthcheck {
        test,
        interval: flags.duration("interval")?,
        timeout: flags.duration("timeout")?,
        start_period: flags.duration("start-period")?,
        start_interval: flags.duration("start-interval")?,
        retries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Budget, Environment, parse};

    fn read(text: &str) -> Result<Instruction> {
        let environment = Environment::new(["X=80 443", "P=/a:/b"]);
        let dockerfile = parse(text)?;
        Instruction::read(
            &dockerfile.lines[0],
            &Lexer {
                escape: dockerfile.escape,
                environment: &environment,
                budget: &Budget::default(),
            },
        )
    }

    fn pair(key: &str, value: &str) -> Pair {
        Pair {
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn parses_arguments_like_docker() {
        let strings = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        let check = Healthcheck {
            test: strings(&["CMD-SHELL", "echo a  b"]),
            interval: 5_000_000_000,
            retries: 3,
            ..Healthcheck::default()
        };
        for (text, expected) in [
            (
                "cmd [\"a\", \"b c\"]",
                Instruction::Cmd(Command::Exec(strings(&["a", "b c"]))),
            ),
            (
                "CMD ['a']",
                Instruction::Cmd(Command::Shell(Some("['a']".into()))),
            ),
            ("CMD", Instruction::Cmd(Command::Shell(None))),
            ("ENV A=1 B=\"two words\" C=x\\ y P=$P:/c", {
                Instruction::Env(vec![
                    pair("A", "1"),
                    pair("B", "two words"),
                    pair("C", "x y"),
                    pair("P", "/a:/b:/c"),
                ])
            }),
            (
                "ENV OLD the  rest",
                Instruction::Env(vec![pair("OLD", "the  rest")]),
            ),
            (
                "LABEL \"c d\"=e",
                Instruction::Label(vec![pair("c d", "e")]),
            ),
            (
                "EXPOSE $X 53/udp",
                Instruction::Expose(strings(&["80", "443", "53/udp"])),
            ),
            (
                "HEALTHCHECK --interval=5s --retries=3 CMD echo a  b",
                Instruction::Healthcheck(check),
            ),
            ("ONBUILD RUN x  y", Instruction::Onbuild("RUN x  y".into())),
            (
                "VOLUME /a /b$N",
                Instruction::Volume(strings(&["/a", "/b"])),
            ),
            ("USER $X", Instruction::User("80 443".into())),
            ("WORKDIR a b", Instruction::Workdir("a b".into())),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn errors_have_buildkits_texts() {
        for (text, expected) in [
            ("ENV A", "ENV must have two arguments"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV =x", "ENV names can not be blank"),
            (
                "ENV A=1 B",
                "Syntax error - can't find = in \"B\". Must be of the form: name=value",
            ),
            (
                "ENV A=\"open",
                "failed to process \"\\\"open\": unexpected end of statement while looking for matching double-quote",
            ),
            (
                "CMD [\"a\", 1]",
                "when using JSON array syntax, arrays must be comprised of strings only",
            ),
            ("CMD --x y", "unknown flag: --x"),
            ("EXPOSE", "EXPOSE requires at least one argument"),
            ("WORKDIR", "WORKDIR requires exactly one argument"),
            ("VOLUME []", "VOLUME requires at least one argument"),
            (
                "VOLUME [\"\"]",
                "VOLUME specified can not be an empty string",
            ),
            ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
            (
                "HEALTHCHECK FOO x",
                "Unknown type \"FOO\" in HEALTHCHECK (try CMD)",
            ),
            ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
            ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
            (
                "HEALTHCHECK --interval=1us CMD x",
                "Interval \"interval\" cannot be less than 1ms",
            ),
            (
                "HEALTHCHECK --interval=x CMD x",
                "time: invalid duration \"x\"",
            ),
            (
                "HEALTHCHECK --retries=-1 CMD x",
                "--retries cannot be negative (-1)",
            ),
            ("HEALTHCHECK --bogus=1 CMD x", "unknown flag: --bogus"),
            (
                "ONBUILD ONBUILD RUN x",
                "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
            ),
            ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected, "{text}");
        }
    }
}
