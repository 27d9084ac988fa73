//! Parses command lines by the rules of Docker's CLI (the pflag library).
//!
//! Commands are defined with clap, but clap only gets normalized words: `--flag=value` for each
//! flag, `--`, and the arguments. This module handles what clap treats differently: attached short
//! values (`-p80:80`, `-m=1g`), explicit booleans (`--rm=false`), repeated flags (the last one
//! wins), Go's integer notations, and error texts.

use std::any::TypeId;

use clap::{Arg, ArgAction, Command};

/// A valid command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The words in normalized form for clap, without the program's name.
    Words(Vec<String>),
    /// The help of a command was requested.
    Help {
        path: Vec<String>,
        deprecated_shorthand: bool,
    },
}

/// An invalid command line: the command it concerns, and the error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub path: Vec<String>,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Flag(String),
    /// Wrong number of arguments, with the expected number.
    Count(String),
    UnknownCommand(String),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(text) | Self::Count(text) => f.write_str(text),
            Self::UnknownCommand(name) => write!(f, "unknown command: {name}"),
        }
    }
}

/// Parses the words after the program's name.
pub(crate) fn read(root: &Command, words: &[String]) -> Result<Line, Mistake> {
    let (mut command, mut rest, mut path, mut line) = (root, words, Vec::new(), Vec::new());
    loop {
        let fail = |path: &[String], kind| {
            Err(Mistake {
                path: path.to_vec(),
                kind,
            })
        };
        let level = match Level::read(command, rest) {
            Ok(level) => level,
            Err(Stop::Help {
                deprecated_shorthand,
            }) => {
                return Ok(Line::Help {
                    path,
                    deprecated_shorthand,
                });
            }
            Err(Stop::Mistake(text) | Stop::NeedsValue { text, .. }) => {
                return fail(&path, Kind::Flag(text));
            }
        };
        line.extend(level.words());
        if !command.has_subcommands() {
            let (least, most) = arity(command);
            if level.arguments.len() < least
                || most.is_some_and(|most| level.arguments.len() > most)
            {
                return fail(&path, Kind::Count(count_text(least, most)));
            }
            line.push("--".into());
            line.extend(level.arguments);
            return Ok(Line::Words(line));
        }
        let Some(name) = level.arguments.first() else {
            let asked = line.iter().any(|word| word == "--version");
            return Ok(if asked {
                Line::Words(line)
            } else {
                Line::Help {
                    path,
                    deprecated_shorthand: false,
                }
            });
        };
        if path.is_empty() && name == "help" {
            return Ok(Line::Help {
                path: level.arguments[1..].to_vec(),
                deprecated_shorthand: false,
            });
        }
        match command.find_subcommand(name) {
            Some(found) => command = found,
            None => return fail(&path, Kind::UnknownCommand(name.clone())),
        }
        path.push(command.get_name().to_owned());
        line.push(command.get_name().to_owned());
        rest = &rest[rest.len() - level.arguments.len() + 1..];
    }
}

/// The position of the next word on a command line.
#[derive(Debug)]
pub(crate) struct NextWord<'c> {
    pub command: &'c Command,
    pub path: Vec<String>,
    /// The flags before the command, normalized for clap.
    pub root_flags: Vec<String>,
    pub arguments: Vec<String>,
    /// Set if the word is the value of this flag.
    pub value_of: Option<&'c Arg>,
    /// Whether the word cannot be a flag.
    pub closed: bool,
}

/// Returns the position of the word after `words`; `None` if `words` are invalid.
pub(crate) fn next_word<'c>(root: &'c Command, words: &[String]) -> Option<NextWord<'c>> {
    let empty = NextWord {
        command: root,
        path: Vec::new(),
        root_flags: Vec::new(),
        arguments: Vec::new(),
        value_of: None,
        closed: false,
    };
    let (mut place, mut rest) = (empty, words);
    loop {
        let level = match Level::read(place.command, rest) {
            Ok(level) => level,
            Err(Stop::NeedsValue { argument, .. }) => {
                place.value_of = Some(argument);
                return Some(place);
            }
            Err(_) => return None,
        };
        if place.path.is_empty() {
            place.root_flags = level.words();
        }
        let name = level
            .arguments
            .first()
            .filter(|_| place.command.has_subcommands());
        let Some(name) = name else {
            (place.arguments, place.closed) = (level.arguments, level.closed);
            return Some(place);
        };
        place.command = place.command.find_subcommand(name)?;
        place.path.push(place.command.get_name().to_owned());
        rest = &rest[rest.len() - level.arguments.len() + 1..];
    }
}

/// The flags of one command with their values, and the words that are not flags.
struct Level<'c> {
    command: &'c Command,
    given: Vec<(&'c Arg, String)>,
    arguments: Vec<String>,
    /// Whether no flags can follow.
    closed: bool,
}

/// Why parsing a command's flags stopped.
enum Stop<'c> {
    Help {
        deprecated_shorthand: bool,
    },
    Mistake(String),
    /// The words end where a flag's value is expected.
    NeedsValue {
        argument: &'c Arg,
        text: String,
    },
}

impl<'c> Level<'c> {
    fn read(command: &'c Command, words: &[String]) -> Result<Self, Stop<'c>> {
        // After their first argument, everything is passed on: it is a subcommand or a command line
        // to execute.
        let stops_at_argument = command.has_subcommands()
            || command.get_positionals().any(Arg::is_trailing_var_arg_set);
        let mut level = Self {
            command,
            given: Vec::new(),
            arguments: Vec::new(),
            closed: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                level.closed = true;
                level.arguments.extend(words.cloned());
                break;
            }
            if let Some(flag) = word.strip_prefix("--") {
                level.long(flag, &mut words)?;
            } else if let Some(letters) =
                word.strip_prefix('-').filter(|letters| !letters.is_empty())
            {
                level.shorthands(letters, &mut words)?;
            } else {
                level.arguments.push(word.clone());
                if stops_at_argument {
                    level.closed = true;
                    level.arguments.extend(words.cloned());
                    break;
                }
            }
        }
        Ok(level)
    }

    fn long<'w>(
        &mut self,
        flag: &str,
        words: &mut impl Iterator<Item = &'w String>,
    ) -> Result<(), Stop<'c>> {
        if flag.starts_with(['-', '=']) {
            return Err(Stop::Mistake(format!("bad flag syntax: --{flag}")));
        }
        let (name, value) = flag
            .split_once('=')
            .map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        if name == "help" {
            return Err(Stop::Help {
                deprecated_shorthand: false,
            });
        }
        let named = |argument: &&Arg| {
            argument.get_long() == Some(name)
                || argument
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&name))
        };
        let Some(argument) = flags_of(self.command).find(named) else {
            return Err(Stop::Mistake(format!("unknown flag: --{name}")));
        };
        let value = value
            .or_else(|| implied(argument))
            .or_else(|| words.next().cloned());
        match value {
            Some(value) => self.set(argument, value),
            None => Err(Stop::NeedsValue {
                argument,
                text: format!("flag needs an argument: --{name}"),
            }),
        }
    }

    /// Parses `-it`, `-p80:80`, `-m=1g`, `-e A=b`.
    fn shorthands<'w>(
        &mut self,
        letters: &str,
        words: &mut impl Iterator<Item = &'w String>,
    ) -> Result<(), Stop<'c>> {
        let mut rest = letters;
        while let Some(letter) = rest.chars().next() {
            let behind = &rest[letter.len_utf8()..];
            let Some(argument) =
                flags_of(self.command).find(|argument| argument.get_short() == Some(letter))
            else {
                return Err(if letter == 'h' {
                    Stop::Help {
                        deprecated_shorthand: true,
                    }
                } else {
                    Stop::Mistake(format!("unknown shorthand flag: {letter:?} in -{rest}"))
                });
            };
            // As in pflag, `-f=` alone has no value.
            if let Some(value) = behind.strip_prefix('=').filter(|value| !value.is_empty()) {
                return self.set(argument, value.to_owned());
            }
            if let Some(value) = implied(argument) {
                self.set(argument, value)?;
                rest = behind;
                continue;
            }
            let value = if behind.is_empty() {
                words.next().cloned()
            } else {
                Some(behind.to_owned())
            };
            return match value {
                Some(value) => self.set(argument, value),
                None => Err(Stop::NeedsValue {
                    argument,
                    text: format!("flag needs an argument: {letter:?} in -{rest}"),
                }),
            };
        }
        Ok(())
    }

    fn set(&mut self, argument: &'c Arg, value: String) -> Result<(), Stop<'c>> {
        let kind = argument.get_value_parser().type_id();
        let checked = if is_switch(argument) {
            parse_bool(&value).map(|value| value.to_string())
        } else if kind == TypeId::of::<i64>() {
            parse_integer(&value, "ParseInt", i64::MIN.into(), i64::MAX.into())
        } else if kind == TypeId::of::<u16>() {
            parse_integer(&value, "ParseUint", 0, u16::MAX.into())
        } else {
            Ok(value.clone())
        };
        let value = checked.map_err(|reason| {
            Stop::Mistake(invalid_argument(&value, &both_forms(argument), &reason))
        })?;
        self.given.push((argument, value));
        Ok(())
    }

    /// Returns the flags for clap: the last value of single-valued flags, every value of the
    /// others.
    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (index, (argument, value)) in self.given.iter().enumerate() {
            let is_repeated = || {
                self.given[index + 1..]
                    .iter()
                    .any(|(later, _)| later.get_id() == argument.get_id())
            };
            let long = argument.get_long().unwrap_or_default();
            match argument.get_action() {
                ArgAction::Append => words.push(format!("--{long}={value}")),
                _ if is_repeated() => {}
                ArgAction::SetTrue | ArgAction::Version if value == "true" => {
                    words.push(format!("--{long}"))
                }
                ArgAction::SetTrue | ArgAction::Version => {}
                _ => words.push(format!("--{long}={value}")),
            }
        }
        words
    }
}

/// Returns the flags of a command, except `--help`.
pub(crate) fn flags_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| {
        !argument.is_positional() && !matches!(argument.get_action(), ArgAction::Help)
    })
}

fn is_switch(argument: &Arg) -> bool {
    implied(argument).is_some()
}

/// Returns the value that a flag without a value implies, if its value is optional.
fn implied(argument: &Arg) -> Option<String> {
    let optional = argument
        .get_num_args()
        .is_some_and(|count| count.min_values() == 0);
    optional.then(|| "true".to_owned())
}

/// Returns the minimum and maximum number of arguments of a command.
fn arity(command: &Command) -> (usize, Option<usize>) {
    command
        .get_positionals()
        .fold((0, Some(0)), |(least, most), argument| {
            let count = argument.get_num_args().unwrap_or_default();
            let required = if argument.is_required_set() {
                count.min_values().max(1)
            } else {
                0
            };
            let most = most
                .filter(|_| count.max_values() < usize::MAX)
                .map(|most| most + count.max_values());
            (least + required, most)
        })
}

fn count_text(least: usize, most: Option<usize>) -> String {
    let arguments = |count: usize| format!("{count} argument{}", if count == 1 { "" } else { "s" });
    match (least, most) {
        (_, Some(0)) => "accepts no arguments".into(),
        (least, None) => format!("requires at least {}", arguments(least)),
        (least, Some(most)) if least == most => format!("requires {}", arguments(most)),
        (0, Some(most)) => format!("requires at most {}", arguments(most)),
        (least, Some(most)) => format!("requires at least {least} and at most {}", arguments(most)),
    }
}

/// Returns the error text for an invalid flag value.
pub(crate) fn invalid_argument(value: &str, flag: &str, reason: &str) -> String {
    format!("invalid argument {value:?} for {flag:?} flag: {reason}")
}

/// Formats a flag as `-t, --timeout`, or `--timeout` if there is no short form.
fn both_forms(argument: &Arg) -> String {
    let long = argument.get_long().unwrap_or_default();
    argument.get_short().map_or_else(
        || format!("--{long}"),
        |short| format!("-{short}, --{long}"),
    )
}

/// Parses a boolean in any form that Go's `strconv.ParseBool` accepts.
fn parse_bool(text: &str) -> Result<bool, String> {
    whelk_text::parse_bool(text)
        .ok_or_else(|| format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))
}

/// Parses an integer literal as Go does (`10`, `0x1f`, `0b1`, `0o17`, `017`, `1_000`). Returns it
/// in decimal.
fn parse_integer(text: &str, function: &str, least: i128, most: i128) -> Result<String, String> {
    let wrong = |what: &str| format!("strconv.{function}: parsing {text:?}: {what}");
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) if least < 0 => (text.starts_with('-'), digits),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some(octal) if octal.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    let plain =
        if digits.contains("__") || digits.ends_with('_') || radix == 10 && digits.starts_with('_')
        {
            String::new()
        } else {
            digits.replace('_', "")
        };
    if plain.is_empty() || !plain.chars().all(|digit| digit.is_digit(radix)) {
        return Err(wrong("invalid syntax"));
    }
    let number = i128::from_str_radix(&plain, radix)
        .ok()
        .map(|number| if negative { -number } else { number });
    number
        .filter(|number| (least..=most).contains(number))
        .map(|number| number.to_string())
        .ok_or_else(|| wrong("value out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Command {
        let flag = |short: char, long: &'static str| Arg::new(long).short(short).long(long);
        let switch = |short: char, long: &'static str| flag(short, long).action(ArgAction::SetTrue);
        let mut root = Command::new("whelk")
            .disable_help_flag(true)
            .arg(switch('D', "debug"))
            .arg(flag('H', "host").action(ArgAction::Append))
            .subcommand(
                Command::new("run")
                    .disable_help_flag(true)
                    .args([
                        switch('i', "interactive"),
                        switch('t', "tty"),
                        flag('m', "memory"),
                        flag('h', "hostname"),
                    ])
                    .arg(flag('e', "env").action(ArgAction::Append))
                    .arg(flag('c', "cpu-shares").value_parser(clap::value_parser!(i64)))
                    .arg(
                        Arg::new("weight")
                            .long("weight")
                            .value_parser(clap::value_parser!(u16)),
                    )
                    .arg(
                        Arg::new("sig-proxy")
                            .long("sig-proxy")
                            .num_args(0..=1)
                            .require_equals(true)
                            .default_missing_value("true"),
                    )
                    .arg(
                        Arg::new("image")
                            .required(true)
                            .num_args(1..)
                            .trailing_var_arg(true)
                            .allow_hyphen_values(true),
                    ),
            )
            .subcommand(
                Command::new("ps")
                    .disable_help_flag(true)
                    .arg(switch('a', "all"))
                    .arg(flag('n', "last").alias("latest-n")),
            )
            .subcommand(
                Command::new("rm")
                    .disable_help_flag(true)
                    .arg(switch('f', "force"))
                    .arg(Arg::new("names").required(true).num_args(1..)),
            )
            .subcommand(Command::new("net").subcommand(Command::new("ls").disable_help_flag(true)));
        root.build();
        root
    }

    fn line(words: &str) -> String {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        match read(&tree(), &words) {
            Ok(Line::Words(words)) => words.join(" "),
            Ok(Line::Help {
                path,
                deprecated_shorthand,
            }) => format!("help of {path:?} {deprecated_shorthand}"),
            Err(Mistake {
                kind: Kind::Flag(text) | Kind::Count(text),
                ..
            }) => text,
            Err(Mistake {
                kind: Kind::UnknownCommand(name),
                ..
            }) => format!("unknown command {name}"),
        }
    }

    #[test]
    fn parses_flags_in_all_forms() {
        assert_eq!(
            line("run -it -m64m -eA=b -e=C=d --env E=f x -m y"),
            "run --interactive --tty --memory=64m --env=A=b --env=C=d --env=E=f -- x -m y"
        );
        assert_eq!(
            line("run --tty=true --interactive=0 -m 1 -m=2 x"),
            "run --tty --memory=2 -- x"
        );
        assert_eq!(
            line("run -i=false -i x --tty"),
            "run --interactive -- x --tty"
        );
        assert_eq!(
            line("run -hname --sig-proxy=F --sig-proxy x"),
            "run --hostname=name --sig-proxy=true -- x"
        );
        assert_eq!(
            line("run --memory= --weight 0x10 -c -0b11 x"),
            "run --memory= --weight=16 --cpu-shares=-3 -- x"
        );
        assert_eq!(line("run -m -1 -- -x"), "run --memory=-1 -- -x");
        assert_eq!(
            line("-DH=h rm a -f b -"),
            "--debug --host=h rm --force -- a b -"
        );
        assert_eq!(line("ps -an5 --latest-n=6"), "ps --all --last=6 --");
    }

    #[test]
    fn recognizes_help_requests() {
        assert_eq!(line(""), "help of [] false");
        assert_eq!(line("run --help x"), "help of [\"run\"] false");
        assert_eq!(line("ps -h"), "help of [\"ps\"] true");
        assert_eq!(line("help net ls"), "help of [\"net\", \"ls\"] false");
        assert_eq!(line("net"), "help of [\"net\"] false");
        assert_eq!(line("run x --help"), "run -- x --help");
    }

    #[test]
    fn errors_have_dockers_texts() {
        for (words, text) in [
            ("run --nosuch x", "unknown flag: --nosuch"),
            ("ps -aZ", "unknown shorthand flag: 'Z' in -Z"),
            ("ps -Za", "unknown shorthand flag: 'Z' in -Za"),
            ("run -m", "flag needs an argument: 'm' in -m"),
            ("run -itm", "flag needs an argument: 'm' in -m"),
            ("run --memory", "flag needs an argument: --memory"),
            ("ps ---x", "bad flag syntax: ---x"),
            ("ps --=x", "bad flag syntax: --=x"),
            ("--nosuch ps", "unknown flag: --nosuch"),
            (
                "run --tty=2 x",
                "invalid argument \"2\" for \"-t, --tty\" flag: strconv.ParseBool: parsing \"2\": invalid syntax",
            ),
            (
                "run -c abc x",
                "invalid argument \"abc\" for \"-c, --cpu-shares\" flag: strconv.ParseInt: parsing \"abc\": invalid syntax",
            ),
            (
                "run -c= x",
                "invalid argument \"=\" for \"-c, --cpu-shares\" flag: strconv.ParseInt: parsing \"=\": invalid syntax",
            ),
            (
                "run --weight 70000 x",
                "invalid argument \"70000\" for \"--weight\" flag: strconv.ParseUint: parsing \"70000\": value out of range",
            ),
            (
                "run --weight -1 x",
                "invalid argument \"-1\" for \"--weight\" flag: strconv.ParseUint: parsing \"-1\": invalid syntax",
            ),
            ("run", "requires at least 1 argument"),
            ("ps x", "accepts no arguments"),
            ("nosuch", "unknown command nosuch"),
            ("net nosuch", "unknown command nosuch"),
        ] {
            assert_eq!(line(words), text, "{words}");
        }
    }

    #[test]
    fn formats_expected_argument_counts() {
        assert_eq!(count_text(2, Some(2)), "requires 2 arguments");
        assert_eq!(count_text(1, Some(1)), "requires 1 argument");
        assert_eq!(count_text(0, Some(1)), "requires at most 1 argument");
        assert_eq!(
            count_text(1, Some(2)),
            "requires at least 1 and at most 2 arguments"
        );
        assert_eq!(count_text(2, None), "requires at least 2 arguments");
    }

    #[test]
    fn parses_gos_integer_notations() {
        let parse =
            |text: &str| parse_integer(text, "ParseInt", i64::MIN.into(), i64::MAX.into()).ok();
        for (text, number) in [
            ("0", "0"),
            ("017", "15"),
            ("0x1F", "31"),
            ("1_000", "1000"),
            ("+5", "5"),
            ("-0o7", "-7"),
            ("0x_f", "15"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(number), "{text}");
        }
        for text in [
            "",
            "-",
            "1.5",
            "08",
            "1__0",
            "_1",
            "1_",
            "0x",
            "9223372036854775808",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
