//! Reads the options of ps(1).

use std::cmp::Ordering;

use super::columns::{Cell, Column, NAMED_UID, find};
use super::tree::Style;
use crate::error::{Error, Result};

/// What the options of `ps` request.
#[derive(Default)]
pub(super) struct Query {
    pub columns: Vec<Selected>,
    pub sort: Vec<Key>,
    /// Only these processes; all if there are none.
    pub pids: Vec<i32>,
    /// Only running processes.
    pub running: bool,
    /// A row for each thread.
    pub threads: bool,
    pub tree: Option<Style>,
    /// The command is followed by the environment.
    pub environment: bool,
}

/// A column with its title.
pub(super) struct Selected {
    pub title: String,
    pub column: &'static Column,
}

/// A column to sort by.
pub(super) struct Key {
    pub column: &'static Column,
    descending: bool,
}

impl Query {
    /// Compares two processes by the contents of the columns to sort by.
    pub fn compare(&self, one: &[Cell], other: &[Cell]) -> Ordering {
        let mut keys = self.sort.iter().zip(one.iter().zip(other));
        keys.find_map(|(key, (one, other))| {
            let order = one.compare(other);
            let order = if key.descending {
                order.reverse()
            } else {
                order
            };
            (order != Ordering::Equal).then_some(order)
        })
        .unwrap_or(Ordering::Equal)
    }
}

/// The options that have been read.
#[derive(Default)]
struct Parser {
    query: Query,
    /// The UNIX options that select columns or threads.
    unix: String,
    /// The BSD options; `Some` if there is any.
    bsd: Option<String>,
    /// The columns of `-o`.
    chosen: Vec<Selected>,
}

/// Parses the options of `ps`.
///
/// # Errors
/// Returns an error if one is not supported.
pub(super) fn parse(arguments: &str) -> Result<Query> {
    let mut parser = Parser::default();
    let mut words = arguments.split_whitespace();
    while let Some(word) = words.next() {
        match word.strip_prefix("--") {
            Some(long) => parser.long(word, long, &mut words)?,
            // As ps(1) does: there is hardly a user of the name `x`.
            None if word.starts_with("-au") => parser.cluster(&word[1..], false, &mut words)?,
            None => match word.strip_prefix('-') {
                Some(letters) => parser.cluster(letters, true, &mut words)?,
                None if word.starts_with(|first: char| first.is_ascii_digit()) => {
                    parser.select(word)?;
                }
                None => parser.cluster(word, false, &mut words)?,
            },
        }
    }
    parser.finish(arguments.trim().is_empty())
}

fn refused(option: &str) -> Error {
    Error::invalid(format!(
        "ps option {option:?} is not supported: the engine lists processes itself, with -e -A -a -f -F -l -j -c -y -L -T -H -o -p -w, a x u l j s f e c H r o p k w, --sort, --format, --forest and --pid"
    ))
}

fn column(name: &str) -> Result<&'static Column> {
    find(&name.to_lowercase())
        .filter(|_| name != NAMED_UID)
        .ok_or_else(|| Error::invalid(format!("ps: unknown column {name:?}")))
}

impl Parser {
    fn long<'a>(
        &mut self,
        word: &str,
        long: &'a str,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let mut value = || {
            let value = value.or_else(|| words.next());
            value.ok_or_else(|| Error::invalid(format!("ps: --{name} needs a value")))
        };
        match name {
            "sort" => self.sort(value()?),
            "format" => self.choose(value()?),
            "pid" | "quick-pid" => {
                let pids = value()?;
                self.select(pids)
            }
            "forest" => {
                self.query.tree = Some(Style::Lines);
                Ok(())
            }
            _ => Err(refused(word)),
        }
    }

    /// Reads a word of options of one letter each, the last of which may have a value.
    fn cluster<'a>(
        &mut self,
        letters: &'a str,
        is_unix: bool,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        if !is_unix {
            self.bsd.get_or_insert_default();
        }
        for (index, letter) in letters.char_indices() {
            if matches!(
                (letter, is_unix),
                ('o' | 'p', _) | ('q', true) | ('k', false)
            ) {
                let rest = &letters[index + letter.len_utf8()..];
                let value = Some(rest).filter(|rest| !rest.is_empty());
                let value = value.or_else(|| words.next());
                let value = value
                    .ok_or_else(|| Error::invalid(format!("ps: option {letter} needs a list")))?;
                return match letter {
                    'o' => self.choose(value),
                    'k' => self.sort(value),
                    _ => self.select(value),
                };
            }
            if is_unix {
                self.unix_letter(letter)?;
            } else {
                self.bsd_letter(letter)?;
            }
        }
        Ok(())
    }

    fn unix_letter(&mut self, letter: char) -> Result<()> {
        match letter {
            // All processes of the container are listed anyway; widths are those of the client.
            'e' | 'A' | 'a' | 'x' | 'w' => {}
            'f' | 'F' | 'l' | 'j' | 'c' | 'y' => self.unix.push(letter),
            'L' | 'T' => {
                self.unix.push(letter);
                self.query.threads = true;
            }
            'H' => self.query.tree = Some(Style::Indented),
            _ => return Err(refused(&format!("-{letter}"))),
        }
        Ok(())
    }

    fn bsd_letter(&mut self, letter: char) -> Result<()> {
        match letter {
            'a' | 'x' | 'g' | 'w' => {}
            'u' | 'l' | 'j' | 's' | 'c' => self.bsd.get_or_insert_default().push(letter),
            'e' => self.query.environment = true,
            'f' => self.query.tree = Some(Style::Lines),
            'r' => self.query.running = true,
            'H' => self.query.threads = true,
            // Clients could not tell titles from a process.
            'h' => return Err(Error::invalid("Couldn't find PID field in ps output")),
            _ => return Err(refused(&letter.to_string())),
        }
        Ok(())
    }

    fn sort(&mut self, keys: &str) -> Result<()> {
        for key in keys.split(',') {
            let name = key.trim_start_matches(['+', '-']);
            let column = column(name)
                .map_err(|_| Error::invalid(format!("ps: unknown sort specifier {key:?}")))?;
            self.query.sort.push(Key {
                column,
                descending: key.starts_with('-'),
            });
        }
        Ok(())
    }

    /// Adds columns: `pid,user=OWNER,comm:20`.
    fn choose(&mut self, list: &str) -> Result<()> {
        for entry in list.split(',') {
            let (name, title) = match entry.split_once('=') {
                Some((name, title)) => (name, Some(title)),
                None => (entry, None),
            };
            let name = name.split(':').next().unwrap_or_default();
            let column = column(name)?;
            let title = title.unwrap_or(column.0);
            if title.is_empty() {
                return Err(Error::invalid(format!("ps: column {name:?} needs a title")));
            }
            self.chosen.push(Selected {
                title: title.to_owned(),
                column,
            });
        }
        Ok(())
    }

    fn select(&mut self, pids: &str) -> Result<()> {
        for pid in pids.split(',') {
            let pid = pid
                .parse()
                .map_err(|_| Error::invalid(format!("ps: invalid process id {pid:?}")))?;
            self.query.pids.push(pid);
        }
        Ok(())
    }

    fn finish(mut self, is_default: bool) -> Result<Query> {
        let bsd = self.bsd.as_deref();
        let formats = |letters: &str| -> usize {
            letters.chars().filter(|one| "uljs".contains(*one)).count()
        };
        let unix_format = self.unix.contains(['f', 'F', 'l', 'j']);
        let bsd_formats = bsd.map_or(0, formats);
        if bsd_formats > 1 || bsd_formats == 1 && unix_format {
            return Err(Error::invalid("ps: conflicting format options"));
        }
        if self.query.threads && self.query.tree.is_some() {
            return Err(Error::invalid(
                "ps: thread display conflicts with forest display",
            ));
        }
        self.query.columns = if !self.chosen.is_empty() {
            self.chosen
        } else if is_default {
            // Docker's default is `-ef`.
            selected(&unix_columns("f"))
        } else if let Some(bsd) = bsd.filter(|_| !unix_format) {
            selected(&bsd_columns(bsd))
        } else {
            selected(&unix_columns(&self.unix))
        };
        Ok(self.query)
    }
}

fn selected(names: &[&str]) -> Vec<Selected> {
    names
        .iter()
        .filter_map(|name| find(name))
        .map(|column| Selected {
            title: column.0.to_owned(),
            column,
        })
        .collect()
}

/// Returns the columns of the UNIX options, in the order of ps(1).
fn unix_columns(letters: &str) -> Vec<&'static str> {
    let has = |letter: char| letters.contains(letter);
    let (extra, long) = (has('F'), has('l'));
    let full = has('f') || extra;
    let columns: [(&'static str, bool); 25] = [
        ("f", long && !has('y')),
        ("s", long),
        (NAMED_UID, full),
        ("uid", long && !full),
        ("pid", true),
        ("spid", has('T')),
        ("ppid", full || long),
        ("pgid", has('j')),
        ("sid", has('j')),
        ("lwp", has('L')),
        ("c", (full || long) && !has('c')),
        ("nlwp", has('L') && full),
        ("cls", has('c')),
        ("pri", has('c')),
        ("opri", long && !has('c')),
        ("ni", long && !has('c')),
        ("addr", long && !has('y')),
        ("rss", long && has('y')),
        ("sz", long || extra),
        ("rss", extra),
        ("wchan", long),
        ("psr", extra),
        ("stime", full),
        ("tname", true),
        ("time", true),
    ];
    let columns = columns.iter().filter(|(_, is_shown)| *is_shown);
    columns
        .map(|(name, _)| *name)
        .chain([if full { "cmd" } else { "ucmd" }])
        .collect()
}

/// Returns the columns of the BSD options.
fn bsd_columns(letters: &str) -> Vec<&'static str> {
    let mut columns = match letters.chars().find(|letter| "uljs".contains(*letter)) {
        Some('u') => vec![
            "user", "pid", "%cpu", "%mem", "vsz", "rss", "tname", "stat", "bsdstart",
        ],
        Some('l') => vec![
            "f", "uid", "pid", "ppid", "priority", "ni", "vsz", "rss", "wchan", "stat", "tname",
        ],
        Some('j') => vec![
            "ppid", "pid", "pgid", "sid", "tname", "tpgid", "stat", "uid",
        ],
        Some('s') => vec![
            "uid", "pid", "pending", "blocked", "ignored", "caught", "stat", "tname",
        ],
        _ => vec!["pid", "tname", "stat"],
    };
    let command = if letters.contains('c') {
        "comm"
    } else {
        "command"
    };
    columns.extend(["bsdtime", command]);
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(arguments: &str) -> String {
        match parse(arguments) {
            Ok(query) => {
                let titles: Vec<String> = query.columns.into_iter().map(|one| one.title).collect();
                titles.join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    /// The titles are those of procps-ng 4.0.2.
    #[test]
    fn options_select_the_columns_of_ps() {
        for (arguments, expected) in [
            ("", "UID PID PPID C STIME TTY TIME CMD"),
            ("-ef", "UID PID PPID C STIME TTY TIME CMD"),
            (
                "aux",
                "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
            ),
            (
                "-auxww",
                "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
            ),
            (
                "axuH",
                "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
            ),
            ("-eLf", "UID PID PPID LWP C NLWP STIME TTY TIME CMD"),
            ("-eL", "PID LWP TTY TIME CMD"),
            ("-eT", "PID SPID TTY TIME CMD"),
            ("-eTf", "UID PID SPID PPID C STIME TTY TIME CMD"),
            ("-ejH", "PID PGID SID TTY TIME CMD"),
            ("-ejf", "UID PID PPID PGID SID C STIME TTY TIME CMD"),
            (
                "-el",
                "F S UID PID PPID C PRI NI ADDR SZ WCHAN TTY TIME CMD",
            ),
            (
                "-elf",
                "F S UID PID PPID C PRI NI ADDR SZ WCHAN STIME TTY TIME CMD",
            ),
            (
                "-elL",
                "F S UID PID PPID LWP C PRI NI ADDR SZ WCHAN TTY TIME CMD",
            ),
            (
                "-elc",
                "F S UID PID PPID CLS PRI ADDR SZ WCHAN TTY TIME CMD",
            ),
            (
                "-elj",
                "F S UID PID PPID PGID SID C PRI NI ADDR SZ WCHAN TTY TIME CMD",
            ),
            ("-ely", "S UID PID PPID C PRI NI RSS SZ WCHAN TTY TIME CMD"),
            ("-eF", "UID PID PPID C SZ RSS PSR STIME TTY TIME CMD"),
            (
                "-eFL",
                "UID PID PPID LWP C NLWP SZ RSS PSR STIME TTY TIME CMD",
            ),
            ("-ec", "PID CLS PRI TTY TIME CMD"),
            ("-e", "PID TTY TIME CMD"),
            ("ax", "PID TTY STAT TIME COMMAND"),
            ("axf", "PID TTY STAT TIME COMMAND"),
            (
                "axl",
                "F UID PID PPID PRI NI VSZ RSS WCHAN STAT TTY TIME COMMAND",
            ),
            ("axj", "PPID PID PGID SID TTY TPGID STAT UID TIME COMMAND"),
            (
                "axs",
                "UID PID PENDING BLOCKED IGNORED CAUGHT STAT TTY TIME COMMAND",
            ),
            ("-o pid,user,comm,args", "PID USER COMMAND COMMAND"),
            ("-eo pid,lstart,etimes -ocmd", "PID STARTED ELAPSED CMD"),
            ("axo pid:9,comm=NAME", "PID NAME"),
            ("-ef -o pid", "PID"),
            ("--format=pid --sort=-rss,+pid", "PID"),
            ("-o bogus", "ps: unknown column \"bogus\""),
            ("-o pid=", "ps: column \"pid\" needs a title"),
            ("--sort bogus", "ps: unknown sort specifier \"bogus\""),
            ("aux -f", "ps: conflicting format options"),
            ("-eLH", "ps: thread display conflicts with forest display"),
            ("-p x", "ps: invalid process id \"x\""),
            ("axh", "Couldn't find PID field in ps output"),
            ("-o", "ps: option o needs a list"),
        ] {
            assert_eq!(titles(arguments), expected, "{arguments}");
        }
        for option in ["-eZ", "axm", "--no-headers", "-N", "-u root"] {
            let text = titles(option);
            assert!(text.contains("is not supported"), "{option}: {text}");
        }
    }
}
