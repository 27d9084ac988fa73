//! A process or thread as /proc describes it (proc(5)).

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use whelk_sys::fs;
use whelk_sys::text::{command_line, printable};

/// USER_HZ, which is 100 on all architectures that this runs on.
const TICKS: u64 = 100;

const PAGE_KIB: u64 = 4;

/// What is the same for all processes.
pub(super) struct Host {
    uptime: u64,
    pub memory_kib: u64,
    /// Seconds since the epoch.
    now: i64,
    zone: TimeZone,
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Host {
    pub fn read() -> Self {
        let info = rustix::system::sysinfo();
        Self {
            uptime: u64::try_from(info.uptime).unwrap_or_default(),
            memory_kib: info.totalram * u64::from(info.mem_unit) / 1024,
            now: crate::events::now() / 1_000_000_000,
            zone: TimeZone::system(),
            users: super::names("/etc/passwd"),
            groups: super::names("/etc/group"),
        }
    }
}

/// The real, effective, saved and file system ids of a process.
type Ids = [u32; 4];

pub(super) struct Process<'h> {
    pub host: &'h Host,
    pub pid: i32,
    /// The thread's id; that of the process if threads are not listed.
    pub tid: i32,
    /// The fields of /proc/PID/stat after the name, the first of which is number 3.
    fields: Vec<String>,
    /// The lines of /proc/PID/status.
    status: BTreeMap<String, String>,
    pub uids: Ids,
    pub gids: Ids,
    pub name: String,
    pub command: String,
    pub state: String,
    /// What is before the command in a tree.
    pub branch: String,
}

impl<'h> Process<'h> {
    /// Reads the /proc files of a process, or of one of its threads. Returns `None` if it has ended.
    pub fn read(pid: i32, tid: Option<i32>, host: &'h Host) -> Option<Self> {
        let place = match tid {
            Some(tid) => format!("/proc/{pid}/task/{tid}"),
            None => format!("/proc/{pid}"),
        };
        // Not as text: the process's name, which both files contain, can have any bytes.
        let read = |file: &str| fs::read(format!("{place}/{file}"));
        let stat = read("stat").ok()?;
        let end = stat.iter().rposition(|&byte| byte == b')')?;
        let begin = stat[..end].iter().position(|&byte| byte == b'(')?;
        let name = printable(&stat[begin + 1..end]);
        let tail = String::from_utf8_lossy(&stat[end + 1..]);
        let fields: Vec<String> = tail.split_ascii_whitespace().map(str::to_owned).collect();
        let status = read("status").ok()?;
        let status: BTreeMap<String, String> = String::from_utf8_lossy(&status)
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        let ids = |key: &str| {
            let mut ids = Ids::default();
            let values = status.get(key).map(String::as_str).unwrap_or_default();
            for (id, value) in ids.iter_mut().zip(values.split_whitespace()) {
                *id = value.parse().unwrap_or_default();
            }
            ids
        };
        let command = command_line(read("cmdline").unwrap_or_default());
        let mut process = Self {
            host,
            pid,
            tid: tid.unwrap_or(pid),
            uids: ids("Uid"),
            gids: ids("Gid"),
            command: if command.is_empty() {
                format!("[{name}]")
            } else {
                command
            },
            name,
            state: String::new(),
            branch: String::new(),
            fields,
            status,
        };
        process.state = process.full_state();
        Some(process)
    }

    /// Returns a field of /proc/PID/stat by its number in proc_pid_stat(5).
    pub fn stat(&self, number: usize) -> i64 {
        let field = number
            .checked_sub(3)
            .and_then(|index| self.fields.get(index));
        field.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn unsigned(&self, number: usize) -> u64 {
        u64::try_from(self.stat(number)).unwrap_or(0)
    }

    /// Returns the value of a line of /proc/PID/status.
    pub fn status(&self, key: &str) -> &str {
        self.status.get(key).map_or("", String::as_str)
    }

    fn full_state(&self) -> String {
        let first = self.fields.first().map_or("?", String::as_str);
        let nice = self.stat(19);
        let marks = [
            ("<", nice < 0),
            ("N", nice > 0),
            ("L", !matches!(self.status("VmLck"), "" | "0 kB")),
            ("s", self.stat(6) == i64::from(self.pid)),
            ("l", self.stat(20) > 1),
            ("+", self.stat(8) == self.stat(5) && self.stat(7) != 0),
        ];
        let marks = marks.iter().filter(|(_, has)| *has);
        std::iter::once(first)
            .chain(marks.map(|(mark, _)| *mark))
            .collect()
    }

    pub fn user(&self, which: usize) -> String {
        Self::named(&self.host.users, self.uids[which])
    }

    pub fn group(&self, which: usize) -> String {
        Self::named(&self.host.groups, self.gids[which])
    }

    fn named(names: &BTreeMap<u32, String>, id: u32) -> String {
        names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// Returns the first line of a file in the process's directory, or `-`.
    pub fn line_of(&self, file: &str) -> String {
        let bytes = fs::read(format!("/proc/{}/{file}", self.pid)).unwrap_or_default();
        match bytes.split(|byte| matches!(byte, 0 | b'\n')).next() {
            None | Some(b"" | b"0") => "-".into(),
            Some(line) => printable(line),
        }
    }

    /// Returns its cgroups: `0::/path`, or one entry for each hierarchy of version 1.
    pub fn cgroups(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        let lines: Vec<String> = bytes
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(printable)
            .collect();
        lines.join(",")
    }

    /// Returns the number of a namespace, such as `net`.
    pub fn namespace(&self, kind: &str) -> i64 {
        let target = fs::read_link(format!("/proc/{}/ns/{kind}", self.pid)).unwrap_or_default();
        let target = target.to_string_lossy();
        let number = target.rsplit('[').next().unwrap_or_default();
        number.trim_end_matches(']').parse().unwrap_or(0)
    }

    /// Adds its environment to the command (the BSD option `e`).
    pub fn add_environment(&mut self) {
        let bytes = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        let environment = command_line(bytes);
        if !environment.is_empty() {
            self.command = format!("{} {environment}", self.command);
        }
    }

    pub fn elapsed(&self) -> u64 {
        let started = self.unsigned(22) / TICKS;
        self.host.uptime.saturating_sub(started)
    }

    pub fn cpu_seconds(&self) -> u64 {
        (self.unsigned(14) + self.unsigned(15)) / TICKS
    }

    pub fn cpu_percent(&self) -> f64 {
        let ticks = (self.unsigned(14) + self.unsigned(15)) as f64;
        ticks / TICKS as f64 * 100.0 / self.elapsed().max(1) as f64
    }

    pub fn virtual_kib(&self) -> u64 {
        self.unsigned(23) / 1024
    }

    pub fn resident_kib(&self) -> u64 {
        self.unsigned(24) * PAGE_KIB
    }

    pub fn virtual_pages(&self) -> u64 {
        self.virtual_kib() / PAGE_KIB
    }

    pub fn tty(&self) -> String {
        let number = u32::try_from(self.stat(7)).unwrap_or(0);
        let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
        match major {
            0 => "?".into(),
            136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
            _ => format!("tty{minor}"),
        }
    }

    /// Returns the start in seconds since the epoch.
    pub fn started(&self) -> i64 {
        self.host.now - i64::try_from(self.elapsed()).unwrap_or_default()
    }

    /// Formats the start in the host's time zone: by `recent` if it is less than a day ago, else by `old`.
    pub fn start_time(&self, recent: &str, old: &str) -> String {
        let time = jiff::Timestamp::from_second(self.started()).unwrap_or_default();
        let is_recent = self.elapsed() < 24 * 3600;
        time.to_zoned(self.host.zone.clone())
            .strftime(if is_recent { recent } else { old })
            .to_string()
    }

    /// Returns the scheduling policy of sched(7).
    pub fn policy(&self) -> &'static str {
        match self.stat(41) {
            0 => "TS",
            1 => "FF",
            2 => "RR",
            3 => "B",
            5 => "IDL",
            6 => "DLN",
            _ => "?",
        }
    }
}
