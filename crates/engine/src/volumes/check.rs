//! Compares the volumes with their directories and mounts.

use std::sync::Arc;

use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::drivers::{delete_stray, is_mount_point, is_temporary};
use super::{DATA, STAGING_PREFIX, VolumeRecord, Volumes};
use crate::error::{Error, Result};
use crate::findings::Findings;
use crate::model::volume::check_name;
use crate::records::{DESCRIPTION, describe_volume, read_volume_description};

impl Volumes {
    /// Looks at all volumes of the local driver, and for directories that belong to none. Blocks.
    pub(crate) fn check(self: &Arc<Self>, findings: &mut Findings) {
        let records: Vec<VolumeRecord> = {
            let state = self.state();
            let idle = state.values().filter(|volume| volume.busy.is_none());
            idle.map(|volume| volume.record.clone()).collect()
        };
        for record in records.iter().filter(|record| record.is_local()) {
            self.check_volume(record, findings);
        }
        let unknown = self.check_unknown(findings);
        findings.add_failure("directories of volumes", unknown);
    }

    /// Returns the number of volumes.
    pub(crate) fn count(&self) -> usize {
        self.state().len()
    }

    fn check_volume(self: &Arc<Self>, record: &VolumeRecord, findings: &mut Findings) {
        let name = &record.name;
        let directory = self.instance.volumes_dir().join(name);
        let content = directory.join(DATA);
        // A mounted one may be on a server that does not answer.
        if !record.is_mounted() && !fs::exists(&content) || !fs::exists(&directory) {
            findings.add_unrepairable(format!(
                "volume {name}: {} is missing; mount its disk, or remove the volume",
                content.display()
            ));
            return;
        }
        let description = directory.join(DESCRIPTION);
        if matches!(read_volume_description(&description), Ok(None)) {
            let (volumes, name) = (self.clone(), name.clone());
            let problem = format!("volume {name} has lost the copy of its record");
            findings.add(problem, move || {
                let record = volumes.find(&name)?;
                fs::replace(&description, describe_volume(&record)?, 0o600)?;
                Ok("written again".into())
            });
        }
        // Locked while it is mounted, unmounted or filled.
        let mount_lock = self.mount_lock(name).ok();
        let is_still = mount_lock.is_some_and(|lock| lock.try_lock().is_ok());
        if !record.is_mounted() || !is_still {
            return;
        }
        match (self.is_in_use(name), is_mount_point(&content)) {
            (true, true) | (false, false) => {}
            (true, false) => findings.add_unrepairable(format!(
                "volume {name} is not mounted, though containers use it; restart them"
            )),
            (false, true) => {
                let (volumes, name) = (self.clone(), name.clone());
                let problem = format!("volume {name} is mounted, though nothing uses it");
                findings.add(problem, move || {
                    let mount_lock = volumes.mount_lock(&name)?;
                    let _mount_guard = mount_lock.lock().ignore_poison();
                    if volumes.is_in_use(&name) {
                        return Err(Error::conflict("it is used now"));
                    }
                    let record = volumes.find(&name)?;
                    volumes
                        .drivers
                        .get(&record.driver)?
                        .unmount(&record, "", true)?;
                    Ok("unmounted".into())
                });
            }
        }
    }

    fn check_unknown(self: &Arc<Self>, findings: &mut Findings) -> Result<()> {
        for entry in fs::list(self.instance.volumes_dir())? {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = entry.path();
            let problem = format!("{} belongs to no volume", path.display());
            if name.starts_with(STAGING_PREFIX) {
                if !is_temporary(&path) {
                    findings.add(problem, move || {
                        delete_stray(&path)?;
                        Ok("removed: it is a part of a volume's creation or removal".into())
                    });
                }
            } else if check_name(&name).is_ok() && !self.state().contains_key(&name) {
                let volumes = self.clone();
                findings.add(problem, move || {
                    let mut state = volumes.state_mut();
                    if state.contains_key(&name) {
                        return Err(Error::conflict("it belongs to one now"));
                    }
                    volumes.restore(&mut state, name)?;
                    Ok("it is a volume again".into())
                });
            }
        }
        Ok(())
    }
}
