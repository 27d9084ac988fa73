//! The processes of a container, as ps(1) lists them. The host may not have `ps`, so /proc is read
//! directly.

mod columns;
mod options;
mod process;
mod tree;

use std::collections::BTreeMap;

use whelk_shim::protocol::{Reply, Request};
use whelk_sys::fs;

use self::columns::Cell;
use self::options::Query;
use self::process::{Host, Process};
use super::Containers;
use crate::error::{Error, Result};

/// The column titles and one row per process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    pub titles: Vec<String>,
    pub processes: Vec<Vec<String>>,
}

impl Containers {
    /// Lists a container's processes; `arguments` are options of `ps`.
    ///
    /// # Errors
    /// Returns an error if the container does not run, or if an option of `ps` is not supported.
    pub async fn top(&self, name: &str, arguments: &str) -> Result<Top> {
        let container = self.find(name)?;
        container.running_pid()?;
        let query = options::parse(arguments)?;
        let (reply, _) = container.workload.request(&Request::Processes).await?;
        let Reply::Processes(pids) = reply else {
            return Err(Error::internal("cannot list the container's processes"));
        };
        let titles = query.columns.iter().map(|one| one.title.clone()).collect();
        // /proc/PID/cmdline reads the process's memory, which may be mapped from a file system that
        // does not answer.
        let processes = container
            .with_process_access(move || rows(&query, pids))
            .await?;
        self.publish(&container, "top", &[]);
        Ok(Top { titles, processes })
    }
}

/// Reads the processes that the options select, in the order that they request.
fn rows(query: &Query, mut pids: Vec<i32>) -> Vec<Vec<String>> {
    pids.sort_unstable();
    pids.retain(|pid| query.pids.is_empty() || query.pids.contains(pid));
    let host = Host::read();
    let mut processes: Vec<Process<'_>> = Vec::new();
    for pid in pids {
        if query.threads {
            processes.extend(
                threads(pid)
                    .into_iter()
                    .filter_map(|tid| Process::read(pid, Some(tid), &host)),
            );
        } else {
            processes.extend(Process::read(pid, None, &host));
        }
    }
    if query.running {
        processes.retain(|process| process.state.starts_with(['R', 'D']));
    }
    if query.environment {
        processes.iter_mut().for_each(Process::add_environment);
    }
    if !query.sort.is_empty() {
        let mut keyed: Vec<(Vec<Cell>, Process<'_>)> = processes
            .into_iter()
            .map(|process| {
                let keys = query.sort.iter().map(|key| (key.column.2)(&process));
                (keys.collect(), process)
            })
            .collect();
        keyed.sort_by(|(one, _), (other, _)| query.compare(one, other));
        processes = keyed.into_iter().map(|(_, process)| process).collect();
    }
    if let Some(style) = query.tree {
        processes = tree::arrange(processes, style);
    }
    let row = |process: &Process<'_>| {
        let cells = query.columns.iter().map(|one| (one.column.2)(process));
        cells.map(Cell::into_text).collect()
    };
    processes.iter().map(row).collect()
}

/// Returns the ids of a process's threads; none if it has ended.
fn threads(pid: i32) -> Vec<i32> {
    let entries = fs::list(format!("/proc/{pid}/task")).unwrap_or_default();
    let mut ids: Vec<i32> = entries
        .iter()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids
}

/// Reads the names of a file such as /etc/passwd by the ids in their third field.
fn names(path: &str) -> BTreeMap<u32, String> {
    let text = fs::read_at_most(path, 1 << 20).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        })
        .collect()
}
