//! The content of volumes on its way: out as an archive, in from one, and over into other volumes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use whelk_sys::{copy, errno_text, fs};

use super::{CreateVolume, SNAPSHOT_OF, VolumeRecord, Volumes, local, new_record};
use crate::error::{Error, Result};
use crate::random_names;

/// Keeps a volume, and its content where it can be read, for as long as it lives.
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
    /// Writes the volume's content as an archive. Blocks.
    pub fn export(&self, output: impl Write) -> Result<()> {
        Ok(whelk_image::export_directory(
            &self.volumes.path(&self.record.name),
            output,
        )?)
    }

    /// Copies the content into the directory `target`; files share their data where the file system
    /// can.
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
    /// Keeps a volume for whoever is about to read its content. Mounts what is to be mounted.
    /// Blocks.
    pub fn hold(self: &Arc<Self>, name: &str) -> Result<Hold> {
        let mark = random_names::random_id();
        let record = self.begin_use(name, &mark)?;
        Ok(Hold {
            volumes: self.clone(),
            record,
            mark,
        })
    }

    /// Unpacks an archive into a volume, beside what it has; one that is missing is made, and only
    /// if all goes well. Blocks.
    ///
    /// # Errors
    /// Somebody uses the volume: files that change meanwhile could lead the unpacking elsewhere.
    pub fn import(&self, name: &str, input: impl Read + Send) -> Result<VolumeRecord> {
        let during = |error: whelk_image::Error| {
            Error::from(error).prefixed(&format!("import into volume {name}"))
        };
        if self.find(name).is_err() {
            // One that only a plugin knows so far.
            drop(self.discover(name));
        }
        let Ok(record) = self.find(name) else {
            let record = new_record(CreateVolume {
                name: name.to_owned(),
                ..CreateVolume::default()
            })?;
            return self.create_filled(record, |directory| {
                whelk_image::layer::unpack(input, directory).map_err(during)
            });
        };
        if record.is_snapshot() {
            return Err(Error::conflict(format!(
                "volume {name} is a snapshot, which stays as it is: clone it"
            )));
        }
        if record.option("type") == "tmpfs" {
            return Err(Error::conflict(format!(
                "volume {name} is a tmpfs, which holds nothing but while a container runs with it"
            )));
        }
        let importer = random_names::random_id();
        self.begin_use(name, &importer)?;
        // Whoever wants to use it is told to wait: an import takes as long as its sender takes.
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
            let outcome = whelk_image::layer::unpack(input, &self.path(name)).map_err(during);
            if let Some(volume) = self.state_mut().get_mut(name) {
                volume.busy = None;
            }
            outcome
        });
        drop(self.end_use(name, &importer));
        outcome.map(|()| record)
    }

    /// Makes a new volume with the content and the labels of a held one, and further labels. A
    /// snapshot can only be read. Blocks.
    ///
    /// # Errors
    /// The name is taken.
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
        request.labels.remove(super::ANONYMOUS);
        request.labels.extend(labels);
        if !source.record.size().is_empty() {
            request
                .options
                .insert(local::SIZE.into(), source.record.size().to_owned());
        }
        let mut record = new_record(request)?;
        if snapshot {
            record
                .options
                .get_or_insert_default()
                .insert(SNAPSHOT_OF.into(), source.record.name.clone());
        }
        self.create_filled(record, |directory| source.copy_to(directory))
    }
}
