//! Parses command lines by the rules of Docker's CLI (the pflag library).
//!
//! Commands are defined with clap, but clap only gets normalized words: `--flag=value` for each
//! flag, `--`, and the arguments. This module handles what clap treats differently: attached short
//! values (`-p80:80`, `-m=1g`), explicit booleans (`--rm=false`), repeated flags (the last one
//! wins), Go's integer notations, and error texts.

mod level;
mod values;

use clap::{Arg, ArgAction, Command};

use level::{Level, Stop};

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

/// Returns the flags of a command, except `--help`.
pub(crate) fn flags_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| {
        !argument.is_positional() && !matches!(argument.get_action(), ArgAction::Help)
    })
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
}
