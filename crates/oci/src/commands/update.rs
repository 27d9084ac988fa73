//! The `update` command.

use std::path::Path;

use whelk_runtime::spec::{Pids, Resources};
use whelk_runtime::{Error, Result};
use whelk_sys::fs;

use crate::Update;
use crate::state::StateFile;

/// Changes the limits of a container.
pub(super) fn update(root: &Path, args: Update) -> Result<()> {
    let state = StateFile::load(root, &args.id)?;
    let mut resources: Resources = match &args.resources {
        Some(file) => {
            let bytes = if file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin())
                    .map(String::into_bytes)
                    .map_err(|error| Error::Os(error.to_string()))?
            } else {
                fs::read(file)?
            };
            serde_json::from_slice(&bytes)
                .map_err(|error| Error::invalid(format!("{}: {error}", file.display())))?
        }
        None => Resources::default(),
    };
    resources.devices.clear();
    let (memory, cpu) = (&mut resources.memory, &mut resources.cpu);
    memory.limit = args.memory.or(memory.limit);
    memory.swap = args.memory_swap.or(memory.swap);
    memory.reservation = args.memory_reservation.or(memory.reservation);
    cpu.shares = args.cpu_share.or(cpu.shares);
    cpu.quota = args.cpu_quota.or(cpu.quota);
    cpu.period = args.cpu_period.or(cpu.period);
    for (field, value) in [
        (&mut cpu.cpus, args.cpuset_cpus),
        (&mut cpu.mems, args.cpuset_mems),
    ] {
        if !value.is_empty() {
            *field = value;
        }
    }
    resources.pids = args
        .pids_limit
        .map(|limit| Pids { limit })
        .or(resources.pids.take());
    state.cgroup()?.apply(&resources)
}
