//! Where one engine keeps what. Several live side by side on a machine, each with its own of
//! everything.

use std::path::{Path, PathBuf};

use whelk_sys::fs;
use whelk_sys::overlay::{self, Writable};

use crate::error::{Error, Result};
use crate::model::LogConfig;
use crate::networks::NetworkDefaults;
use crate::spec::OpenFiles;

/// The name of an instance that was not given one.
pub const DEFAULT_INSTANCE: &str = "whelk";

/// `f_type` of overlayfs (statfs(2)).
const OVERLAYFS_SUPER_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// Root directory, run directory and name of an engine.
#[derive(Clone, Debug)]
pub struct Instance {
    /// What must outlive the machine: images, containers, the store.
    pub root: PathBuf,
    /// What lives as long as the machine: sockets, exit records.
    pub run: PathBuf,
    /// Part of the name of everything that others can see: cgroups first of all.
    pub name: String,
    /// Whether rules of the host's other firewalls are left as they are, also where they keep
    /// containers from the network.
    pub respect_host_firewall: bool,
    /// The log of containers that do not say which they want.
    pub default_log: LogConfig,
    /// Whether the engine logs what helps only those who look for faults.
    pub debug: bool,
    pub networks: NetworkDefaults,
    /// How many files a process of a container may have open that does not say otherwise: what the
    /// engine was started with.
    pub open_files: OpenFiles,
}

impl Instance {
    /// # Errors
    /// A name that could not be a directory's.
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
            kind: "local".into(),
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
            debug: false,
            networks,
            open_files,
        })
    }

    /// Makes the directories. Nobody but root gets below them: images hold set-id programs
    /// (CVE-2021-41091). The run directory lets others through, but not look around, since the
    /// socket that a group may use lies in it.
    ///
    /// # Errors
    /// The root lies where containers' writable layers cannot be.
    pub fn prepare(&self) -> Result<()> {
        for directory in [
            &self.root,
            &self.root.join("containers"),
            &self.run,
            &self.run.join("containers"),
            &self.run.join("seccomp"),
            &self.scratch(),
        ] {
            fs::create_dir_all(directory, 0o700)?;
        }
        fs::set_mode(&self.run, 0o711)?;
        self.try_overlay()
    }

    /// Mounts an overlay that writes to the root directory, and lets go of it: what is wrong with
    /// the file system is said now, not by each container's start.
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

    /// The writable layer, log and generated files of a container.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// The socket and the exit record of a container.
    pub fn run_dir(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }

    /// An empty directory on which containers attach their roots, each in its own mount namespace.
    pub fn scratch(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    /// The file of a compiled seccomp filter.
    pub fn filter_path(&self, key: &str) -> PathBuf {
        self.run.join("seccomp").join(key)
    }

    /// The cgroup that containers are in, unless they ask for another.
    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.name)
    }

    pub fn shims_cgroup(&self) -> String {
        format!("/{}/shims", self.name)
    }

    pub fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The content of a volume, whose name was checked.
    pub fn volume_path(&self, name: &str) -> PathBuf {
        self.volumes_dir().join(name).join("_data")
    }

    /// Where plugins are looked for: in a directory of the instance's own, and by the one that
    /// everybody means also where Docker does.
    pub fn plugin_places(&self) -> whelk_plugin::Places {
        let own = self.run.join("plugins");
        let mut places = whelk_plugin::Places {
            sockets: vec![own.clone()],
            descriptions: vec![own],
        };
        if self.name == DEFAULT_INSTANCE {
            places.sockets.push("/run/docker/plugins".into());
            places.descriptions.extend([
                "/etc/docker/plugins".into(),
                "/usr/lib/docker/plugins".into(),
            ]);
        }
        places
    }

    pub fn database(&self) -> PathBuf {
        self.root.join(crate::store::FILE)
    }
}

/// Where a root keeps what nothing knows any more, so that nobody's data is deleted.
pub(crate) fn lost_and_found(root: &Path) -> PathBuf {
    root.join("lost+found")
}

/// A descriptor's path, for addresses that are longer than a socket's may be.
pub(crate) fn through_descriptor(directory: &std::os::fd::OwnedFd, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name)
}
