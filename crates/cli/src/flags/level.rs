//! The flags of one command: long and short forms, values, and repetitions.

use std::any::TypeId;

use clap::{Arg, ArgAction, Command};

use super::values::{parse_bool, parse_integer};
use super::{flags_of, implied, invalid_argument};

/// The flags of one command with their values, and the words that are not flags.
pub(super) struct Level<'c> {
    command: &'c Command,
    given: Vec<(&'c Arg, String)>,
    pub(super) arguments: Vec<String>,
    /// Whether flag parsing has ended: all further words are arguments.
    pub(super) closed: bool,
}

/// Why parsing a command's flags stopped.
pub(super) enum Stop<'c> {
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
    /// Parses the words after a command's name, up to a subcommand.
    pub(super) fn read(command: &'c Command, words: &[String]) -> Result<Self, Stop<'c>> {
        // After the first argument, all words belong to a subcommand or to the command line to execute.
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
            // `-f=` without anything behind it has no value, as in pflag.
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
    pub(super) fn words(&self) -> Vec<String> {
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

fn is_switch(argument: &Arg) -> bool {
    implied(argument).is_some()
}

/// Formats a flag as `-t, --timeout`, or `--timeout` if there is no short form.
fn both_forms(argument: &Arg) -> String {
    let long = argument.get_long().unwrap_or_default();
    argument.get_short().map_or_else(
        || format!("--{long}"),
        |short| format!("-{short}, --{long}"),
    )
}
