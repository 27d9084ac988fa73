//! Transfers the content of volumes: export, import, clones and snapshots.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use whelk_sys::{copy, errno_text, fs};

use super::{CreateVolume, VolumeRecord, Volumes};
use crate::error::{Error, Result};
use crate::model::volume::{ANONYMOUS, SIZE, SNAPSHOT_OF};
use crate::random_names;

/// Keeps a volume in use and mounted as long as it exists.
#[derive(Debug)]
pub struct Hold {
    volumes: Arc<Volumes>,
    record: VolumeRecord,
    mark: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.volumes.end_use(&self.record.name, &self.mark));
    }
}

impl Hold {
    /// Writes the volume's content as a tar archive. Blocks.
    pub fn export(&self, output: impl Write) -> Result<()> {
        Ok(whelk_image::snapshots::export_directory(
            &self.volumes.path(&self.record.name),
            output,
        )?)
    }

    /// Copies the content into the directory `target`, by reflinks where the file system supports
    /// them.
    fn copy_to(&self, target: &Path) -> Result<()> {
        let source = self.volumes.path(&self.record.name);
        let failed = |error: rustix::io::Errno| {
            Error::internal(format!(
                "copy {}: {}",
                source.display(),
                errno_text(&error.into())
            ))
        };
        let (from, to) = (fs::open(&source)?, fs::open(target)?);
        copy::tree(&from, &to, copy::Source::InUse)
            .and_then(|()| copy::directory_attributes(&from, &to))
            .map_err(failed)
    }
}

impl Volumes {
    /// Mounts a volume and keeps it in use while its content is read. Blocks.
    pub fn hold(self: &Arc<Self>, name: &str) -> Result<Hold> {
        let mark = random_names::random_id();
        let record = self.begin_use(name, &mark)?;
        Ok(Hold {
            volumes: self.clone(),
            record,
            mark,
        })
    }

    /// Extracts an archive into a volume, which keeps its other content. A missing volume is
    /// created, only if the import succeeds. Blocks.
    ///
    /// # Errors
    /// Returns an error if the volume is in use: a process that changes files meanwhile could make
    /// the extraction follow a link out of the volume. Also if it is a snapshot or a tmpfs.
    pub fn import(&self, name: &str, input: impl Read + Send) -> Result<VolumeRecord> {
        let during = |error: whelk_image::Error| {
            Error::from(error).prefixed(&format!("import into volume {name}"))
        };
        if self.find(name).is_err() {
            // It may be known to a plugin only.
            drop(self.discover(name));
        }
        let Ok(record) = self.find(name) else {
            let (record, _) = self.new_record(CreateVolume {
                name: name.to_owned(),
                ..CreateVolume::default()
            })?;
            return self.create_filled(record, |directory| {
                whelk_image::snapshots::unpack(input, directory).map_err(during)
            });
        };
        if record.is_snapshot() {
            return Err(Error::conflict(format!(
                "volume {name} is a snapshot, which is read-only: import into a clone of it"
            )));
        }
        if record.option("type") == "tmpfs" {
            return Err(Error::conflict(format!(
                "volume {name} is a tmpfs, which has content only while a container uses it"
            )));
        }
        let importer = random_names::random_id();
        self.begin_use(name, &importer)?;
        // New users get an error instead of waiting: an import takes as long as the client sends
        // data.
        let begun = {
            let mut state = self.state_mut();
            match state.get_mut(name) {
                Some(volume) if volume.running.len() == 1 => {
                    volume.busy = Some("imported into");
                    Ok(())
                }
                _ => Err(Error::conflict(format!(
                    "volume {name} is in use: stop the containers that use it first"
                ))),
            }
        };
        let outcome = begun.and_then(|()| {
            let outcome = whelk_image::snapshots::unpack(input, &self.path(name)).map_err(during);
            if let Some(volume) = self.state_mut().get_mut(name) {
                volume.busy = None;
            }
            outcome
        });
        drop(self.end_use(name, &importer));
        outcome.map(|()| record)
    }

    /// Creates a volume with the content and labels of a held one, and additional labels. A
    /// snapshot is read-only. Blocks.
    ///
    /// # Errors
    /// Returns an error if the name is in use.
    pub fn copy(
        &self,
        source: &Hold,
        name: &str,
        labels: BTreeMap<String, String>,
        snapshot: bool,
    ) -> Result<VolumeRecord> {
        let mut request = CreateVolume {
            name: name.to_owned(),
            ..CreateVolume::default()
        };
        request.labels = source.record.labels.clone().unwrap_or_default();
        request.labels.remove(ANONYMOUS);
        request.labels.extend(labels);
        if !source.record.size().is_empty() {
            request
                .options
                .insert(SIZE.into(), source.record.size().to_owned());
        }
        let (mut record, _) = self.new_record(request)?;
        if snapshot {
            record
                .options
                .get_or_insert_default()
                .insert(SNAPSHOT_OF.into(), source.record.name.clone());
        }
        self.create_filled(record, |directory| source.copy_to(directory))
    }
}
