//! The processes of a container, as ps(1) lists them. The host may not have `ps`, so /proc is read
//! directly.

use std::collections::HashMap;

use whelk_shim::protocol::{Reply, Request};
use whelk_sys::fs;
use whelk_sys::text::{command_line, printable};

use super::Containers;
use crate::error::{Error, Result};

/// The column titles and one row per process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    pub titles: Vec<&'static str>,
    pub processes: Vec<Vec<String>>,
}

/// A column: its title, the format specifiers that select it (ps(1)), and its content.
type Column = (&'static str, &'static [&'static str], fn(&Info) -> String);

const COLUMNS: &[Column] = &[
    ("PID", &["pid"], |info| info.pid.to_string()),
    ("PPID", &["ppid"], |info| info.ppid.to_string()),
    ("UID", &["uid", "euid"], |info| info.uid.to_string()),
    ("USER", &["user", "euser", "uname"], |info| {
        info.user.clone()
    }),
    ("GID", &["gid", "egid"], |info| info.gid.to_string()),
    ("C", &["c"], |info| {
        format!("{:.0}", info.cpu_percent().trunc())
    }),
    ("%CPU", &["%cpu", "pcpu"], |info| {
        format!("{:.1}", info.cpu_percent())
    }),
    ("%MEM", &["%mem", "pmem"], |info| {
        format!(
            "{:.1}",
            info.rss_kib as f64 * 100.0 / info.machine.memory_kib.max(1) as f64
        )
    }),
    ("VSZ", &["vsz", "vsize"], |info| info.vsz_kib.to_string()),
    ("RSS", &["rss", "rssize", "rsz"], |info| {
        info.rss_kib.to_string()
    }),
    ("TTY", &["tty", "tt", "tname"], |info| info.tty()),
    ("STAT", &["stat"], |info| info.state.clone()),
    ("S", &["s", "state"], |info| {
        info.state.chars().take(1).collect()
    }),
    ("NI", &["ni", "nice"], |info| info.nice.to_string()),
    ("PRI", &["pri"], |info| info.priority.to_string()),
    ("PGID", &["pgid", "pgrp"], |info| info.pgrp.to_string()),
    ("SID", &["sid", "sess", "session"], |info| {
        info.session.to_string()
    }),
    ("NLWP", &["nlwp", "thcount"], |info| {
        info.threads.to_string()
    }),
    ("STIME", &["stime"], |info| info.start_time()),
    ("START", &["start", "start_time"], |info| info.start_time()),
    ("TIME", &["time", "cputime"], |info| {
        clock(info.cpu_ticks / info.machine.ticks)
    }),
    ("ELAPSED", &["etime"], |info| clock(info.elapsed())),
    ("CMD", &["cmd"], |info| info.command.clone()),
    ("COMMAND", &["command", "args"], |info| info.command.clone()),
    ("COMMAND", &["comm", "ucmd", "ucomm"], |info| {
        info.name.clone()
    }),
];

const FULL_FORMAT: &[&str] = &["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
const USER_FORMAT: &[&str] = &[
    "user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "time", "command",
];

impl Containers {
    /// Lists a container's processes; `arguments` are options of `ps`.
    ///
    /// # Errors
    /// Returns an error if the container does not run, or if an option of `ps` is not supported.
    pub async fn top(&self, name: &str, arguments: &str) -> Result<Top> {
        let container = self.find(name)?;
        container.running_pid()?;
        let columns = columns(arguments)?;
        let (reply, _) = container.workload.request(&Request::Processes).await?;
        let Reply::Processes(mut pids) = reply else {
            return Err(Error::internal("cannot list the container's processes"));
        };
        pids.sort_unstable();
        // /proc/PID/cmdline reads the process's memory, which may be mapped from a file system that
        // does not answer.
        let read = move || {
            let (machine, users) = (Machine::read(), users());
            pids.into_iter()
                .filter_map(|pid| Info::read(pid, machine, &users))
                .collect::<Vec<_>>()
        };
        let infos = container.with_process_access(read).await?;
        let full = columns
            .iter()
            .map(|column| column.1[0])
            .eq(FULL_FORMAT.iter().copied());
        let processes = infos
            .iter()
            .map(|info| {
                // The full format (`-f`) shows the user's name in the column UID.
                columns
                    .iter()
                    .map(|(title, _, content)| {
                        if full && *title == "UID" {
                            info.user.clone()
                        } else {
                            content(info)
                        }
                    })
                    .collect()
            })
            .collect();
        self.publish(&container, "top", &[]);
        Ok(Top {
            titles: columns.iter().map(|column| column.0).collect(),
            processes,
        })
    }
}

/// Parses the options of `ps` that select columns.
fn columns(arguments: &str) -> Result<Vec<&'static Column>> {
    let find = |name: &str| {
        COLUMNS
            .iter()
            .find(|(_, names, _)| names.contains(&name.to_lowercase().as_str()))
            .ok_or_else(|| Error::invalid(format!("ps: unknown column {name:?}")))
    };
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let mut names: Option<Vec<String>> = None;
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let list = match word {
            "-o" | "o" | "-eo" | "-Ao" | "axo" | "--format" => words
                .next()
                .ok_or_else(|| Error::invalid("ps: -o needs a list of columns"))?,
            "-ef" | "-Af" | "-f" | "ef" => &FULL_FORMAT.join(","),
            "aux" | "-aux" | "axu" | "u" | "auxw" | "auxww" => &USER_FORMAT.join(","),
            "-e" | "-A" | "ax" | "-ax" | "x" | "a" | "-w" | "-ww" | "ww" => continue,
            word => match word
                .strip_prefix("-o")
                .or_else(|| word.strip_prefix("-eo"))
                .or_else(|| word.strip_prefix("--format="))
            {
                Some(list) => list,
                None => {
                    return Err(Error::invalid(format!(
                        "ps option {word:?} is not supported: use -ef, aux or -o COLUMNS"
                    )));
                }
            },
        };
        names.get_or_insert_default().extend(
            list.split(',')
                .map(|name| name.split(['=', ':']).next().unwrap_or_default().to_owned()),
        );
    }
    names
        .unwrap_or_else(|| FULL_FORMAT.iter().map(|&name| name.to_owned()).collect())
        .iter()
        .map(|name| find(name))
        .collect()
}

#[derive(Clone, Copy)]
struct Machine {
    ticks: u64,
    uptime: u64,
    memory_kib: u64,
    now: i64,
}

impl Machine {
    fn read() -> Self {
        let info = rustix::system::sysinfo();
        let uptime = u64::try_from(info.uptime).unwrap_or_default();
        // USER_HZ is 100 on all architectures that this runs on.
        Self {
            ticks: 100,
            uptime,
            memory_kib: info.totalram * u64::from(info.mem_unit) / 1024,
            now: crate::events::now() / 1_000_000_000,
        }
    }
}

struct Info {
    machine: Machine,
    pid: i32,
    ppid: i32,
    pgrp: i32,
    session: i32,
    tty_number: u32,
    uid: u32,
    gid: u32,
    user: String,
    name: String,
    command: String,
    state: String,
    nice: i64,
    priority: i64,
    threads: u64,
    cpu_ticks: u64,
    start_ticks: u64,
    vsz_kib: u64,
    rss_kib: u64,
}

impl Info {
    /// Reads a process's /proc files. Returns `None` if it has ended.
    fn read(pid: i32, machine: Machine, users: &HashMap<u32, String>) -> Option<Self> {
        // Not as text: the process's name, which both files contain, can have any bytes.
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}"));
        let stat = read("stat").ok()?;
        let end = stat.iter().rposition(|&byte| byte == b')')?;
        let begin = stat[..end].iter().position(|&byte| byte == b'(')?;
        let name = printable(&stat[begin + 1..end]);
        let tail = String::from_utf8_lossy(&stat[end + 1..]);
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        // Fields are numbered as in proc_pid_stat(5); the first after the name is 3.
        let number = |index: usize| {
            fields
                .get(index - 3)
                .and_then(|text| text.parse::<i64>().ok())
                .unwrap_or(0)
        };
        let id_of = |index: usize| i32::try_from(number(index)).unwrap_or(0);
        let unsigned = |index: usize| u64::try_from(number(index)).unwrap_or(0);
        let status = read("status").ok()?;
        let status = String::from_utf8_lossy(&status);
        let id = |key: &str| {
            status
                .lines()
                .find_map(|line| {
                    line.strip_prefix(key)?
                        .split_whitespace()
                        .nth(1)?
                        .parse::<u32>()
                        .ok()
                })
                .unwrap_or(0)
        };
        let uid = id("Uid:");
        let command = command_line(read("cmdline").unwrap_or_default());
        let mut state = fields.first().copied().unwrap_or("?").to_owned();
        if number(6) == i64::from(pid) {
            state.push('s');
        }
        if number(20) > 1 {
            state.push('l');
        }
        if number(8) == number(5) && number(7) != 0 {
            state.push('+');
        }
        const PAGE_KIB: u64 = 4;
        Some(Self {
            machine,
            pid,
            ppid: id_of(4),
            pgrp: id_of(5),
            session: id_of(6),
            tty_number: u32::try_from(number(7)).unwrap_or(0),
            uid,
            gid: id("Gid:"),
            user: users.get(&uid).cloned().unwrap_or_else(|| uid.to_string()),
            command: if command.is_empty() {
                format!("[{name}]")
            } else {
                command
            },
            name,
            state,
            priority: number(18),
            nice: number(19),
            threads: unsigned(20),
            cpu_ticks: unsigned(14) + unsigned(15),
            start_ticks: unsigned(22),
            vsz_kib: unsigned(23) / 1024,
            rss_kib: unsigned(24) * PAGE_KIB,
        })
    }

    fn elapsed(&self) -> u64 {
        self.machine
            .uptime
            .saturating_sub(self.start_ticks / self.machine.ticks)
    }

    fn cpu_percent(&self) -> f64 {
        self.cpu_ticks as f64 / self.machine.ticks as f64 * 100.0 / self.elapsed().max(1) as f64
    }

    fn tty(&self) -> String {
        let (major, minor) = (
            self.tty_number >> 8 & 0xfff,
            self.tty_number & 0xff | self.tty_number >> 12 & 0xfff00,
        );
        match major {
            0 => "?".into(),
            136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
            _ => format!("tty{minor}"),
        }
    }

    /// Formats the start time in UTC: the time of day if it is less than 24 h ago, else the date.
    fn start_time(&self) -> String {
        let started = self.machine.now - i64::try_from(self.elapsed()).unwrap_or_default();
        let time = jiff::Timestamp::from_second(started).unwrap_or_default();
        let format = if self.elapsed() < 24 * 3600 {
            "%H:%M"
        } else {
            "%b%d"
        };
        time.strftime(format).to_string()
    }
}

fn clock(seconds: u64) -> String {
    let (days, hours, minutes, seconds) = (
        seconds / 86400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    if days > 0 {
        format!("{days}-{hours:02}:{minutes:02}:{seconds:02}")
    } else {
        format!("{hours:02}:{minutes:02}:{seconds:02}")
    }
}

/// Returns the host's users by uid, whose names `ps` on the host would show.
fn users() -> HashMap<u32, String> {
    let passwd = fs::read_at_most("/etc/passwd", 1 << 20).unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(arguments: &str) -> String {
        columns(arguments).map_or_else(
            |error| error.to_string(),
            |columns| {
                columns
                    .iter()
                    .map(|column| column.0)
                    .collect::<Vec<_>>()
                    .join(" ")
            },
        )
    }

    #[test]
    fn parses_options_of_ps() {
        assert_eq!(titles(""), "UID PID PPID C STIME TTY TIME CMD");
        assert_eq!(
            titles("aux"),
            "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND"
        );
        assert_eq!(titles("-o pid,user,comm,args"), "PID USER COMMAND COMMAND");
        assert_eq!(titles("-o bogus"), "ps: unknown column \"bogus\"");
        assert!(titles("--forest").contains("not supported"));
    }
}
