//! The directories and names of an engine instance. Several instances can run on one host; they
//! share nothing.

use std::path::{Path, PathBuf};

use whelk_sys::fs;
use whelk_sys::overlay::{self, Writable};

use crate::error::{Error, Result};
use crate::model::{LogConfig, LogDriver};

mod container_defaults;
mod image_gc;
mod live;
mod network_defaults;
mod registry_settings;
mod runtimes;

pub use container_defaults::ContainerDefaults;
pub(crate) use image_gc::DiskUse;
pub use image_gc::ImageGc;
pub use live::{Live, LiveSettings};
pub use network_defaults::NetworkDefaults;
pub use registry_settings::RegistrySettings;
pub use runtimes::Runtimes;
pub(crate) use runtimes::find_program;
pub use whelk_image::snapshots::Form as LayerForm;

/// The instance name used when none is given.
pub const DEFAULT_INSTANCE: &str = "whelk";

/// The name of the store's database in the root directory.
pub(crate) const STORE_FILE: &str = "store.db";

/// The directories of CDI specifications that are used if none are given.
pub const DEFAULT_CDI_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// `f_type` of overlayfs (statfs(2)).
const OVERLAYFS_SUPER_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// The configuration of an instance: its directories, its name and the daemon's settings.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The persistent state: images, containers, the store (`--root`).
    pub root: PathBuf,
    /// The state that is lost at a reboot: sockets, exit records (`--run`).
    pub run: PathBuf,
    /// Part of the name of everything that is visible on the host, such as cgroups.
    pub name: String,
    /// Whether the rules of the host's other firewalls are left unchanged even if they block
    /// containers' traffic.
    pub respect_host_firewall: bool,
    /// The log configuration of containers that do not give one.
    pub default_log: LogConfig,
    /// How the files of layers are kept that are added; as images where possible if it is not set.
    pub layers: Option<LayerForm>,
    pub networks: NetworkDefaults,
    pub live: Live,
    /// When unused images are removed; never if it is not set.
    pub image_gc: Option<ImageGc>,
    /// The directories of CDI specifications; later ones come before earlier ones. Empty if CDI devices
    /// are disabled.
    pub cdi_directories: Vec<PathBuf>,
    /// The oldest version of the API that is served; all of them if it is not set.
    pub oldest_api: Option<(u32, u32)>,
    /// The default `RLIMIT_NOFILE` of containers: the limit that the engine was started with.
    pub open_files: OpenFiles,
}

/// The soft and hard limit of open files (`RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug)]
pub struct OpenFiles {
    pub soft: u64,
    pub hard: u64,
}

impl Instance {
    /// Returns an instance with default settings.
    ///
    /// # Errors
    /// Returns an error if the name is invalid, or if a path is empty.
    pub fn new(root: PathBuf, run: PathBuf, name: String) -> Result<Self> {
        let valid = !name.is_empty()
            && name.len() <= 32
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
            });
        if !valid {
            return Err(Error::invalid(format!(
                "invalid instance name {name:?}: use up to 32 of a-z, 0-9, - and _"
            )));
        }
        let absolute = |path: PathBuf| {
            std::path::absolute(&path)
                .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
        };
        let (root, run) = (absolute(root)?, absolute(run)?);
        let default_log = LogConfig {
            driver: Some(LogDriver::JsonFile),
            ..LogConfig::default()
        };
        let (soft, hard) = whelk_sys::process::file_limit();
        let (open_files, networks) = (OpenFiles { soft, hard }, NetworkDefaults::default());
        Ok(Self {
            root,
            run,
            name,
            respect_host_firewall: false,
            default_log,
            layers: None,
            networks,
            live: Live::default(),
            image_gc: None,
            cdi_directories: DEFAULT_CDI_DIRECTORIES.map(PathBuf::from).into(),
            oldest_api: None,
            open_files,
        })
    }

    /// Checks settings that do not depend on the host.
    ///
    /// # Errors
    /// Returns an error if the default log driver has no such option, or if an option is invalid.
    pub fn check(&self) -> Result<()> {
        crate::logging::config(&self.default_log, Path::new(""), "")?;
        crate::logging::destination(&self.default_log).map(drop)
    }

    /// Creates the directories. Only root can enter them: images contain set-user-ID programs
    /// (CVE-2021-41091). The run directory has mode 0711, because the API socket that a group may
    /// use is in it.
    ///
    /// # Errors
    /// Returns an error if the root directory's file system cannot hold the upper layer of an
    /// overlay.
    pub fn prepare(&self) -> Result<()> {
        self.make_directories()?;
        self.try_overlay()
    }

    pub(crate) fn make_directories(&self) -> Result<()> {
        for directory in [
            &self.root,
            &self.root.join("containers"),
            &self.run,
            &self.run.join("containers"),
            &self.run.join("workloads"),
            &self.run.join("seccomp"),
            &self.scratch(),
        ] {
            fs::create_dir_all(directory, 0o700)?;
        }
        Ok(fs::set_mode(&self.run, 0o711)?)
    }

    /// Mounts and unmounts an overlay whose upper layer is in the root directory, so that an
    /// unsuitable file system is reported now and not by each container's start.
    fn try_overlay(&self) -> Result<()> {
        let place = self
            .root
            .join("tmp")
            .join(format!("overlay-{}", std::process::id()));
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| place.join(name));
        for directory in [&lower, &upper, &work] {
            fs::create_dir_all(directory, 0o700)?;
        }
        let tried = overlay::writable(
            std::slice::from_ref(&lower),
            Writable {
                upper: &upper,
                work: &work,
                volatile: false,
            },
        )
        .map(drop);
        fs::remove_tree(&place)?;
        tried.map_err(|error| {
            let on_overlay = rustix::fs::statfs(&self.root).is_ok_and(|found| found.f_type == OVERLAYFS_SUPER_MAGIC);
            let what = if on_overlay { "is on overlayfs" } else { "is on a file system" };
            Error::invalid(format!(
                "the root directory {} {what}, which cannot hold containers' writable layers (mount overlay: {}): choose another one (--root)",
                self.root.display(),
                whelk_sys::errno_text(&error.into())
            ))
        })
    }

    /// Returns the directory of a container's writable layer, log and generated files.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// Returns the directory of a container's shim socket and exit record.
    pub fn run_dir(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }

    /// Returns the same for a workload that is no container.
    pub fn workload_dir(&self, id: &str) -> PathBuf {
        self.run.join("workloads").join(id)
    }

    /// Returns the empty directory on which each container mounts its root, in its own mount
    /// namespace.
    pub fn scratch(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    /// Returns the path of a compiled seccomp filter.
    pub fn filter_path(&self, key: &str) -> PathBuf {
        self.run.join("seccomp").join(key)
    }

    /// Returns the default parent cgroup of containers.
    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.name)
    }

    pub fn shims_cgroup(&self) -> String {
        format!("/{}/shims", self.name)
    }

    pub fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Returns the directory of a local volume's content. `name` must be valid.
    pub fn volume_path(&self, name: &str) -> PathBuf {
        self.volumes_dir().join(name).join("_data")
    }

    /// Returns where plugins are searched: in the instance's own directory and, for the default
    /// instance, also in Docker's directories.
    pub fn plugin_places(&self) -> whelk_plugin::SearchPaths {
        let own = self.run.join("plugins");
        let mut paths = whelk_plugin::SearchPaths {
            sockets: vec![own.clone()],
            descriptions: vec![own],
        };
        if self.name == DEFAULT_INSTANCE {
            paths.sockets.push("/run/docker/plugins".into());
            paths.descriptions.extend([
                "/etc/docker/plugins".into(),
                "/usr/lib/docker/plugins".into(),
            ]);
        }
        paths
    }

    pub fn database(&self) -> PathBuf {
        self.root.join(STORE_FILE)
    }
}

/// Returns the directory for files that no record refers to. They are moved there instead of being
/// deleted.
pub(crate) fn lost_and_found(root: &Path) -> PathBuf {
    root.join("lost+found")
}

/// Returns a path by /proc/self/fd, for socket addresses longer than `sun_path` allows (108 bytes).
pub(crate) fn through_descriptor(directory: &std::os::fd::OwnedFd, name: &str) -> PathBuf {
    fs::descriptor_path(directory).join(name)
}
