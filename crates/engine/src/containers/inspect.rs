//! Inspecting and exporting a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use super::Containers;
use super::copy::view::Use;
use super::readers::FileReader;
use crate::error::{Error, Result};
use crate::images::HeldLayers;
use crate::model::ContainerRecord;
use crate::mounts::{MountPlan, Source};
use crate::volumes::LOCAL;
use crate::workload::blocking;

/// A container as `inspect` shows it.
#[derive(Clone, Debug)]
pub struct Inspected {
    pub record: ContainerRecord,
    pub directory: PathBuf,
    /// The directory of the `hosts`, `hostname` and `resolv.conf` that it mounts.
    pub names: PathBuf,
    /// Whether its generated files exist, which is so after its first start.
    pub has_generated_files: bool,
    pub log_path: PathBuf,
    /// The image's layer directories, the topmost first.
    pub lower: Vec<PathBuf>,
    pub mounts: Vec<MountPoint>,
    pub execs: Vec<String>,
    pub size: Option<(u64, u64)>,
    /// The signal of a stop that waits for it, if its main process has no handler for it.
    pub unhandled_signal: Option<i32>,
}

/// A mount as `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub kind: &'static str,
    /// The volume's name; empty for other kinds.
    pub name: String,
    pub driver: String,
    pub source: String,
    pub destination: String,
    pub mode: String,
    pub writable: bool,
    pub propagation: String,
}

impl Containers {
    /// Returns everything about a container; with `size` also its sizes, which takes longer.
    ///
    /// # Errors
    /// Returns an error if there is no such container.
    pub async fn inspect(&self, name: &str, size: bool) -> Result<Inspected> {
        let container = self.find(name)?;
        let mut record = container.record().clone();
        record.host.links = self.shown_links(&record);
        let directory = self.instance.container_dir(&record.id);
        let log = crate::logging::config(&record.host.log_config, &directory, &record.id)?;
        let size = if size {
            Some(self.sizes(&record).await)
        } else {
            None
        };
        Ok(Inspected {
            has_generated_files: record.state.started_at != 0,
            names: self
                .names_dir(&record)
                .unwrap_or_else(|_| directory.clone()),
            log_path: log.path,
            lower: self.layers(&record.image).unwrap_or_default(),
            mounts: self.mount_points(&record),
            execs: self.running_execs(&record.id),
            directory,
            size,
            unhandled_signal: container.unhandled_signal(),
            record,
        })
    }
}

impl Containers {
    /// Returns a container's mounts as `inspect` and lists show them.
    pub fn mount_points(&self, record: &ContainerRecord) -> Vec<MountPoint> {
        let listed = |plan: &MountPlan| {
            let mut point = MountPoint {
                kind: "bind",
                name: String::new(),
                driver: String::new(),
                source: String::new(),
                destination: plan.target.clone(),
                mode: plan.mode.clone(),
                writable: !plan.read_only,
                propagation: plan.propagation.clone(),
            };
            match &plan.source {
                Source::Bind { path, .. } => point.source.clone_from(path),
                Source::Volume(volume) => {
                    point.kind = "volume";
                    point.name.clone_from(&volume.name);
                    point.driver = self
                        .volumes
                        .find(&volume.name)
                        .map_or_else(|_| LOCAL.into(), |record| record.driver.to_string());
                    point.source = self
                        .volumes
                        .path(&volume.name)
                        .to_string_lossy()
                        .into_owned();
                }
                Source::Image(image) => {
                    point.kind = "image";
                    point.name.clone_from(&image.name);
                }
                // --tmpfs has a field of its own; only tmpfs mounts of --mount are listed.
                Source::Tmpfs if record.host.tmpfs.contains_key(&plan.target) => return None,
                Source::Tmpfs => {
                    point.kind = "tmpfs";
                    point.mode.clear();
                }
            }
            Some(point)
        };
        record.mounts.iter().filter_map(listed).collect()
    }
}

impl Containers {
    /// Returns a container's current file system, for export. Like a copy, an export ends with the next start.
    ///
    /// # Errors
    /// Returns an error if there is no such container.
    pub async fn exported(self: &Arc<Self>, name: &str) -> Result<Exported> {
        let container = self.find(name)?;
        let reader = FileReader::new(&container.layer_readers);
        let layers = self.hold_layers(&container);
        let (gate, of_run, of_layers) = container.views.begin_export().await;
        if container.progress.borrow().removed {
            return Err(Error::no_such_container(name));
        }
        let (containers, target) = (self.clone(), container.clone());
        let mounted = blocking(move || {
            let mounted = target
                .running_pid()
                .ok()
                .and_then(|pid| super::copy::view::process(pid, &target.id))
                .and_then(|process| whelk_sys::overlay::clone_root(process.as_fd()).ok());
            drop(gate);
            Ok(match mounted {
                Some(root) => (ExportedFiles::Mounted(root), of_run),
                None => {
                    let directory = containers.instance.container_dir(&target.id);
                    let image = target.record().image.clone();
                    let mut layers = vec![directory.join("upper")];
                    layers.extend(containers.root_layers(&image, &directory)?);
                    (ExportedFiles::Layers(layers), of_layers)
                }
            })
        });
        let (files, usage) = mounted.await?;
        self.publish(&container, "export", &[]);
        Ok(Exported {
            files,
            usage,
            _reader: reader,
            _layers: layers,
        })
    }
}

/// A container's files.
#[derive(Debug)]
pub struct Exported {
    files: ExportedFiles,
    usage: Use,
    _reader: FileReader,
    _layers: HeldLayers,
}

#[derive(Debug)]
enum ExportedFiles {
    /// The layer directories of a container that does not run, the topmost first.
    Layers(Vec<PathBuf>),
    /// The root of a running container, without the mounts in it.
    Mounted(OwnedFd),
}

impl Exported {
    /// Writes all files as a tar archive. `send` gets it in pieces. Blocks.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or if `send` fails.
    pub fn write(self, send: impl FnMut(Vec<u8>) -> std::io::Result<()>) -> Result<()> {
        let output = Sending(send);
        match self.files {
            ExportedFiles::Layers(layers) => whelk_image::snapshots::export(&layers, output)?,
            ExportedFiles::Mounted(root) => whelk_image::snapshots::export_root(&root, output)?,
        }
        Ok(())
    }

    /// Waits until the export has to end.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.usage.ended()
    }
}

/// Passes on what is written.
struct Sending<F>(F);

impl<F: FnMut(Vec<u8>) -> std::io::Result<()>> std::io::Write for Sending<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        (self.0)(bytes.to_vec())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
