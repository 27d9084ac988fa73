//! The space that the logs of containers take.

use whelk_sys::fs;

use super::Containers;

/// The space that a container's log takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogUsage {
    pub id: String,
    pub name: String,
    pub is_running: bool,
    /// The bytes of all files, also of rotated ones.
    pub size: u64,
}

impl Containers {
    /// Returns the usage of each container that has a log, also of one that is only a cache of what was sent to a
    /// collector. Blocks.
    pub fn log_usage(&self) -> Vec<LogUsage> {
        let usage = self.all().into_iter().filter_map(|container| {
            let (name, is_running) = {
                let record = container.record();
                (record.name.clone(), record.state.status.is_running())
            };
            let files = fs::list(self.instance.container_dir(&container.id)).ok()?;
            let own = format!("{}-json.log", container.id);
            // Rotated files have a suffix.
            let sizes = files.iter().filter_map(|entry| {
                let name = entry.file_name();
                let name = name.to_str()?;
                let is_log = name.starts_with(&own) || name.starts_with("container.log");
                let metadata = entry.metadata().ok().filter(|_| is_log)?;
                metadata.is_file().then_some(metadata.len())
            });
            Some(LogUsage {
                size: sizes.sum(),
                id: container.id.clone(),
                name,
                is_running,
            })
        });
        usage.filter(|usage| usage.size > 0).collect()
    }
}
