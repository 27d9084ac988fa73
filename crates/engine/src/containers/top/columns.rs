//! The columns of ps(1).

use std::cmp::Ordering;

use super::process::Process;

/// The content of a column for one process.
pub(super) enum Cell {
    Number(i64),
    Text(String),
    /// A text with the number that it is sorted by.
    Shown(i64, String),
}

impl Cell {
    pub fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) | Self::Shown(_, text) => text,
        }
    }

    pub fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (
                Self::Number(one) | Self::Shown(one, _),
                Self::Number(other) | Self::Shown(other, _),
            ) => one.cmp(other),
            (Self::Text(one), Self::Text(other)) => one.cmp(other),
            _ => Ordering::Equal,
        }
    }
}

/// A column: its title, the format specifiers that select it, and its content.
pub(super) type Column = (
    &'static str,
    &'static [&'static str],
    fn(&Process<'_>) -> Cell,
);

/// Finds a column by its format specifier.
pub(super) fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|(_, names, _)| names.contains(&name))
}

const EFFECTIVE: usize = 1;

const COLUMNS: &[Column] = &[
    ("PID", &["pid"], |of| number(of.pid)),
    ("TGID", &["tgid"], |of| number(of.pid)),
    ("PPID", &["ppid"], |of| Cell::Number(of.stat(4))),
    ("PGID", &["pgid"], |of| Cell::Number(of.stat(5))),
    ("PGRP", &["pgrp"], |of| Cell::Number(of.stat(5))),
    ("SID", &["sid"], |of| Cell::Number(of.stat(6))),
    ("SESS", &["sess", "session"], |of| Cell::Number(of.stat(6))),
    ("TPGID", &["tpgid"], |of| Cell::Number(of.stat(8))),
    ("LWP", &["lwp"], |of| number(of.tid)),
    ("TID", &["tid"], |of| number(of.tid)),
    ("SPID", &["spid"], |of| number(of.tid)),
    ("NLWP", &["nlwp"], |of| Cell::Number(of.stat(20))),
    ("THCNT", &["thcount"], |of| Cell::Number(of.stat(20))),
    ("UID", &["uid"], |of| number(of.uids[EFFECTIVE])),
    ("EUID", &["euid"], |of| number(of.uids[EFFECTIVE])),
    ("RUID", &["ruid"], |of| number(of.uids[0])),
    ("SUID", &["suid"], |of| number(of.uids[2])),
    ("FUID", &["fuid"], |of| number(of.uids[3])),
    ("USER", &["user", "uname"], |of| {
        Cell::Text(of.user(EFFECTIVE))
    }),
    ("EUSER", &["euser"], |of| Cell::Text(of.user(EFFECTIVE))),
    ("RUSER", &["ruser"], |of| Cell::Text(of.user(0))),
    ("SUSER", &["suser"], |of| Cell::Text(of.user(2))),
    ("FUSER", &["fuser"], |of| Cell::Text(of.user(3))),
    // The user's name under the title UID, as `-f` shows it.
    ("UID", &[NAMED_UID], |of| Cell::Text(of.user(EFFECTIVE))),
    ("GID", &["gid"], |of| number(of.gids[EFFECTIVE])),
    ("EGID", &["egid"], |of| number(of.gids[EFFECTIVE])),
    ("RGID", &["rgid"], |of| number(of.gids[0])),
    ("SGID", &["sgid"], |of| number(of.gids[2])),
    ("FGID", &["fgid"], |of| number(of.gids[3])),
    ("GROUP", &["group"], |of| Cell::Text(of.group(EFFECTIVE))),
    ("EGROUP", &["egroup"], |of| Cell::Text(of.group(EFFECTIVE))),
    ("RGROUP", &["rgroup"], |of| Cell::Text(of.group(0))),
    ("SGROUP", &["sgroup"], |of| Cell::Text(of.group(2))),
    ("FGROUP", &["fgroup"], |of| Cell::Text(of.group(3))),
    ("SUPGID", &["supgid"], |of| list(of.status("Groups"))),
    ("C", &["c"], |of| {
        let percent = of.cpu_percent().trunc().min(99.0);
        Cell::Shown(permille(percent), format!("{percent:.0}"))
    }),
    ("%CPU", &["%cpu", "pcpu"], |of| percent(of.cpu_percent())),
    ("%MEM", &["%mem", "pmem"], |of| {
        let total = of.host.memory_kib.max(1) as f64;
        percent(of.resident_kib() as f64 * 100.0 / total)
    }),
    ("VSZ", &["vsz", "vsize"], |of| unsigned(of.virtual_kib())),
    ("RSS", &["rss", "rssize"], |of| unsigned(of.resident_kib())),
    ("RSZ", &["rsz"], |of| unsigned(of.resident_kib())),
    ("SZ", &["sz"], |of| unsigned(of.virtual_pages())),
    ("MINFLT", &["minflt"], |of| Cell::Number(of.stat(10))),
    ("MINFL", &["min_flt"], |of| Cell::Number(of.stat(10))),
    ("MAJFLT", &["majflt"], |of| Cell::Number(of.stat(12))),
    ("MAJFL", &["maj_flt"], |of| Cell::Number(of.stat(12))),
    ("TTY", &["tname"], |of| Cell::Text(of.tty())),
    ("TT", &["tty", "tt"], |of| Cell::Text(of.tty())),
    ("STAT", &["stat"], |of| Cell::Text(of.state.clone())),
    ("S", &["s", "state"], |of| {
        Cell::Text(of.state.chars().take(1).collect())
    }),
    ("F", &["f", "flag", "flags"], |of| {
        // Without those that only the kernel knows.
        Cell::Number(of.stat(9) >> 6 & 7)
    }),
    ("NI", &["ni", "nice"], |of| match of.policy() {
        "TS" | "B" => Cell::Number(of.stat(19)),
        _ => Cell::Shown(0, "-".into()),
    }),
    ("PRI", &["pri"], |of| Cell::Number(39 - of.stat(18))),
    ("PRI", &["opri", "intpri"], |of| {
        Cell::Number(60 + of.stat(18))
    }),
    ("PRI", &["priority"], |of| Cell::Number(of.stat(18))),
    ("RTPRIO", &["rtprio"], |of| match of.stat(41) {
        0 => Cell::Shown(0, "-".into()),
        _ => Cell::Number(of.stat(40)),
    }),
    ("CLS", &["cls", "class"], |of| {
        Cell::Text(of.policy().into())
    }),
    ("POL", &["policy"], |of| Cell::Text(of.policy().into())),
    ("SCH", &["sched"], |of| Cell::Number(of.stat(41))),
    ("PSR", &["psr"], |of| Cell::Number(of.stat(39))),
    ("ADDR", &["addr"], |_| Cell::Text("-".into())),
    ("WCHAN", &["wchan"], |of| Cell::Text(of.line_of("wchan"))),
    ("PENDING", &["pending", "sig"], |of| {
        Cell::Text(of.status("ShdPnd").into())
    }),
    ("BLOCKED", &["blocked", "sigmask"], |of| {
        Cell::Text(of.status("SigBlk").into())
    }),
    ("IGNORED", &["ignored", "sigignore"], |of| {
        Cell::Text(of.status("SigIgn").into())
    }),
    ("CAUGHT", &["caught", "sigcatch"], |of| {
        Cell::Text(of.status("SigCgt").into())
    }),
    ("STIME", &["stime"], |of| start(of, "%H:%M", "%b%d")),
    ("START", &["start_time"], |of| start(of, "%H:%M", "%b%d")),
    ("START", &["bsdstart"], |of| start(of, "%H:%M", "%b %d")),
    ("STARTED", &["start"], |of| start(of, "%H:%M:%S", "%b %d")),
    ("STARTED", &["lstart"], |of| {
        const FULL: &str = "%a %b %e %H:%M:%S %Y";
        start(of, FULL, FULL)
    }),
    ("TIME", &["time", "cputime"], |of| {
        let seconds = of.cpu_seconds();
        shown(seconds, clock(seconds))
    }),
    ("TIME", &["bsdtime"], |of| {
        let seconds = of.cpu_seconds();
        shown(seconds, format!("{}:{:02}", seconds / 60, seconds % 60))
    }),
    ("TIME", &["times", "cputimes"], |of| {
        unsigned(of.cpu_seconds())
    }),
    ("ELAPSED", &["etime"], |of| {
        let seconds = of.elapsed();
        let text = clock(seconds);
        let text = text.strip_prefix("00:").map(str::to_owned).unwrap_or(text);
        shown(seconds, text)
    }),
    ("ELAPSED", &["etimes"], |of| unsigned(of.elapsed())),
    ("CGROUP", &["cgroup"], |of| Cell::Text(of.cgroups())),
    ("LABEL", &["label"], |of| {
        Cell::Text(of.line_of("attr/current"))
    }),
    ("IPCNS", &["ipcns"], |of| Cell::Number(of.namespace("ipc"))),
    ("MNTNS", &["mntns"], |of| Cell::Number(of.namespace("mnt"))),
    ("NETNS", &["netns"], |of| Cell::Number(of.namespace("net"))),
    ("PIDNS", &["pidns"], |of| Cell::Number(of.namespace("pid"))),
    ("USERNS", &["userns"], |of| {
        Cell::Number(of.namespace("user"))
    }),
    ("UTSNS", &["utsns"], |of| Cell::Number(of.namespace("uts"))),
    ("CGROUPNS", &["cgroupns"], |of| {
        Cell::Number(of.namespace("cgroup"))
    }),
    ("CMD", &["cmd"], |of| branch(of, &of.command)),
    ("COMMAND", &["command", "args"], |of| {
        branch(of, &of.command)
    }),
    ("CMD", &["ucmd"], |of| branch(of, &of.name)),
    ("COMMAND", &["comm", "ucomm"], |of| branch(of, &of.name)),
];

/// The name of a column that users cannot select.
pub(super) const NAMED_UID: &str = "user as uid";

fn number(number: impl Into<i64>) -> Cell {
    Cell::Number(number.into())
}

fn unsigned(number: u64) -> Cell {
    Cell::Number(i64::try_from(number).unwrap_or(i64::MAX))
}

fn shown(number: u64, text: String) -> Cell {
    Cell::Shown(i64::try_from(number).unwrap_or(i64::MAX), text)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a sort key of at most some millions"
)]
fn permille(percent: f64) -> i64 {
    (percent * 10.0) as i64
}

fn percent(percent: f64) -> Cell {
    Cell::Shown(permille(percent), format!("{percent:.1}"))
}

fn list(words: &str) -> Cell {
    let words: Vec<&str> = words.split_whitespace().collect();
    Cell::Text(if words.is_empty() {
        "-".into()
    } else {
        words.join(",")
    })
}

fn start(of: &Process<'_>, recent: &str, old: &str) -> Cell {
    Cell::Shown(of.started(), of.start_time(recent, old))
}

fn branch(of: &Process<'_>, command: &str) -> Cell {
    Cell::Text(format!("{}{command}", of.branch))
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
