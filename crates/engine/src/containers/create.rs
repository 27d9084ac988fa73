//! Creating a container: its record and directory. Nothing is mounted and no process is started.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use whelk_sys::sync::IgnorePoison as _;

use whelk_image::{ImageConfig, Platform};
use whelk_sys::fs;
use whelk_text::signal;

use super::volumes::NewMounts;
use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::events::now;
use crate::model::{
    Config, ContainerPort, ContainerRecord, ContainerState, HostConfig, LogDriver, NetworkMode,
};
use crate::networks::EndpointRequest;
use crate::quota::{self, Refusal};
use crate::rollback::Rollback;
use crate::workload::blocking;
use crate::{logging, mounts, random_names, validate};

#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Empty for a random name.
    pub name: String,
    /// `os[/arch[/variant]]`; empty for any.
    pub platform: String,
    pub config: Config,
    pub host: HostConfig,
    /// The endpoints, by the network's name or id.
    pub networks: BTreeMap<String, EndpointRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub id: String,
    pub warnings: Vec<String>,
}

/// Docker's error for `--storage-opt` on a file system without project quotas.
const NO_QUOTAS: &str =
    "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";

/// Number of random names that are tried before a number is appended.
const ATTEMPTS: u32 = 6;

impl Containers {
    /// Creates a container.
    ///
    /// # Errors
    /// Returns an error if settings are invalid, if the image does not exist, or if the name is
    /// taken.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<Created> {
        let containers = self.clone();
        to_its_end(async move { containers.create_now(request).await }).await
    }

    async fn create_now(self: &Arc<Self>, request: CreateRequest) -> Result<Created> {
        let CreateRequest {
            name,
            platform,
            mut config,
            mut host,
            networks,
        } = request;
        let wanted_name = if name.is_empty() {
            None
        } else {
            Some(validate::name(&name)?.to_owned())
        };
        let platform = match platform.as_str() {
            "" => None,
            text => Some(text.parse::<Platform>()?),
        };
        let pinned = if config.image.is_empty() {
            None
        } else {
            Some(self.images.pin(&config.image, platform.as_ref())?)
        };
        let image = pinned.as_ref().map(|(image, _)| image);
        validate::check_exposed(&config, &host)?;
        if let Some(image) = image {
            inherit(&mut config, &image.config);
        }
        // Clients send `[""]` to clear the image's entrypoint, and `{}` for no volumes.
        config.entrypoint.take_if(|entrypoint| *entrypoint == [""]);
        config.volumes.take_if(|volumes| volumes.is_empty());
        if crate::spec::command(&config).next().is_none() {
            return Err(Error::invalid("no command specified"));
        }
        let settings = self.instance.live.get();
        host.runtime = settings.runtimes.resolve(&host.runtime)?;
        let defaults = &settings.containers;
        let mut warnings = validate::settings(&mut config, &mut host, &self.host, defaults)?;
        if platform.is_none() {
            warnings.extend(image.and_then(|image| warning_of_platform(&image.config)));
        }
        if host.log_config.driver.is_some_and(LogDriver::is_remote) {
            // A path may be on a file system that does not respond.
            let log = host.log_config.clone();
            blocking(move || logging::check_socket(&log)).await?;
        }
        let networks = self.resolve_endpoints(&config, &mut host, networks)?;
        let id = random_names::random_id();
        config.hostname = self.hostname(&config, &host, &id);
        fill_paths(&mut host);
        let image = image.map(|image| image.id.to_string()).unwrap_or_default();
        let mounts = self.resolve_mounts_async(&id, &config, &host).await?;
        let mut record = ContainerRecord {
            id: id.clone(),
            name: String::new(),
            created_at: now(),
            image,
            config,
            host,
            state: ContainerState::default(),
            networks,
            mounts: mounts.plans.clone(),
            ports: Vec::new(),
        };
        if let Err(error) = self.store_new(&mut record, wanted_name, &mounts).await {
            let _ = tokio::task::spawn_blocking(|| drop(mounts)).await;
            return Err(error);
        }
        let container = Container::new(record, &self.instance);
        self.add(container.clone());
        self.publish(&container, "create", &[]);
        Ok(Created { id, warnings })
    }

    /// Returns the host name of a new container: its own, that of the container whose network it
    /// shares, or the host's.
    pub(super) fn hostname(&self, config: &Config, host: &HostConfig, id: &str) -> String {
        match host
            .network_mode
            .container()
            .and_then(|donor| self.find(donor).ok())
        {
            Some(donor) => donor.record().config.hostname.clone(),
            None if host.network_mode == NetworkMode::Host && config.hostname.is_empty() => {
                rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned()
            }
            None => crate::spec::hostname(config, id),
        }
    }

    /// Reserves the name, creates the files, and inserts the record into the store. Undoes all of
    /// it on an error.
    async fn store_new(
        self: &Arc<Self>,
        record: &mut ContainerRecord,
        wanted_name: Option<String>,
        mounts: &Arc<NewMounts>,
    ) -> Result<()> {
        self.reserve_name(record, wanted_name)?;
        let mut record = Rollback::new("create container", record);
        record.push_undo("release the name", |record| {
            let mut index = self.index.write().ignore_poison();
            index.by_name.remove(&record.name);
            Ok(())
        });
        record.push_undo("delete the files", |record| {
            let directory = self.instance.container_dir(&record.id);
            quota::remove_limit(&directory.join("upper"));
            Ok(fs::remove_tree(directory)?)
        });
        self.make_files(&record)?;
        self.fill_volumes(&record, mounts).await?;
        self.store.insert_container(&record)?;
        mounts.keep();
        record.commit();
        Ok(())
    }

    /// Reserves the requested name, or a random one that is not in use.
    fn reserve_name(&self, record: &mut ContainerRecord, wanted: Option<String>) -> Result<()> {
        let mut index = self.index.write().ignore_poison();
        record.name = match wanted {
            Some(name) => match index.by_name.get(&name) {
                Some(owner) => return Err(name_taken(&name, owner)),
                None => name,
            },
            None => (0..)
                .map(|attempt: u32| random_names::random(attempt.saturating_sub(ATTEMPTS)))
                .find(|name| !index.by_name.contains_key(name))
                .unwrap_or_default(),
        };
        index.by_name.insert(record.name.clone(), record.id.clone());
        Ok(())
    }

    /// Creates a container's directory with an empty writable layer.
    pub(super) fn make_files(&self, record: &ContainerRecord) -> Result<()> {
        let directory = self.instance.container_dir(&record.id);
        fs::create_dir(&directory, 0o700)?;
        let [upper, work] = ["upper", "work"].map(|name| directory.join(name));
        fs::create_dir(&upper, 0o755)?;
        fs::create_dir(&work, 0o700)?;
        match validate::layer_size(&record.host)? {
            0 => Ok(()),
            // Overlayfs moves files from one to the other, which must be of the same project.
            size => quota::limit(&[upper.as_path(), work.as_path()], size).map_err(|refusal| {
                match refusal {
                    Refusal::Unsupported => Error::invalid(NO_QUOTAS),
                    Refusal::Other(error) => error,
                }
            }),
        }
    }
}

pub(super) fn name_taken(name: &str, owner: &str) -> Error {
    Error::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
    ))
}

/// Returns Docker's warning for an image that is for another platform than the host's.
fn warning_of_platform(image: &ImageConfig) -> Option<String> {
    let (host, platform) = (Platform::detected(), Platform::of(image));
    if host.runs(&platform) {
        return None;
    }
    let shown = match (image.os.as_str(), image.architecture.as_str()) {
        ("", _) => "unknown".to_owned(),
        (os, "") => os.to_owned(),
        _ => platform.to_string(),
    };
    Some(format!(
        "The requested image's platform ({}) does not match the detected host platform ({host}) and no specific platform was requested",
        shown.escape_debug()
    ))
}

/// Fills in the image's settings where the request has none.
fn inherit(config: &mut Config, image: &ImageConfig) {
    let image = &image.config;
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    // Docker does not check an image's settings. Those that cannot be used are left out.
    if config.stop_signal.is_empty() && signal::parse(&image.stop_signal).is_ok() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    inherit_health(config, image.healthcheck.as_ref());
    let mut env = config.env.take().unwrap_or_default();
    let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut names: HashSet<String> = env.iter().map(|entry| name_of(entry)).collect();
    env.extend(
        image
            .env
            .iter()
            .filter(|entry| !entry.is_empty() && !entry.starts_with('='))
            .filter(|entry| names.insert(name_of(entry)))
            .cloned(),
    );
    config.env = Some(env).filter(|env| !env.is_empty());
    // A given entrypoint replaces the image's entrypoint and command; an empty one only the
    // entrypoint.
    if config.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd = Some(image.cmd.clone()).filter(|cmd| !cmd.is_empty());
        }
        if config.entrypoint.is_none() {
            config.entrypoint =
                Some(image.entrypoint.clone()).filter(|entrypoint| !entrypoint.is_empty());
        }
    }
    for (key, value) in &image.labels {
        config
            .labels
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
    let exposed = image.exposed_ports.keys();
    let exposed = exposed.flat_map(|entry| ContainerPort::exposed_by(entry));
    config
        .exposed_ports
        .extend(exposed.take(ContainerPort::COUNT));
    if !image.volumes.is_empty() {
        let volumes = config.volumes.get_or_insert_default();
        // `VOLUME data` in a Dockerfile is relative to the root, whatever the working directory.
        volumes.extend(image.volumes.keys().map(|path| {
            if path.starts_with('/') {
                path.clone()
            } else {
                mounts::clean(path)
            }
        }));
    }
}

/// Fills in the image's health check. One that cannot be read is none, as in Docker.
fn inherit_health(config: &mut Config, image: Option<&serde_json::Value>) {
    let Some(check) = image else {
        return;
    };
    match crate::records::image_healthcheck(check) {
        Ok(check) => match &mut config.healthcheck {
            Some(own) => own.inherit(check.corrected()),
            None => config.healthcheck = Some(check.corrected()),
        },
        Err(error) => tracing::warn!("the health check of image {}: {error}", config.image),
    }
}

/// Writes the default masked and read-only paths into the settings, where `inspect` shows them.
fn fill_paths(host: &mut HostConfig) {
    if host.privileged {
        return;
    }
    let strings = |list: &[&str]| Some(list.iter().map(|&path| path.to_owned()).collect());
    if host.masked_paths.is_none() {
        host.masked_paths = strings(&crate::spec::MASKED_PATHS);
    }
    if host.readonly_paths.is_none() {
        host.readonly_paths = strings(&crate::spec::READONLY_PATHS);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_for_other_platforms_are_warned_of() {
        let warning = |os: &str, architecture: &str| {
            let image =
                json!({"os": os, "architecture": architecture, "rootfs": {"type": "layers"}});
            warning_of_platform(&ImageConfig::parse(image.to_string().as_bytes()).unwrap())
        };
        let host = Platform::detected();
        assert_eq!(warning("linux", &host.architecture), None);
        for (os, architecture, shown) in [
            ("linux", "s390x", "linux/s390x"),
            ("linux", "", "linux"),
            ("", "", "unknown"),
            ("linux", "\u{1b}", "linux/\\u{1b}"),
        ] {
            let expected = format!(
                "The requested image's platform ({shown}) does not match the detected host platform ({host}) and no specific platform was requested"
            );
            assert_eq!(warning(os, architecture), Some(expected));
        }
    }

    #[test]
    fn settings_of_an_image_that_cannot_be_used_are_left_out() {
        let image = json!({
            "config": {
                "Env": ["", "=x", "A=b"], "StopSignal": "FOO", "ExposedPorts": {"http": {}, "7-8/udp": {}}, "Volumes": {"data": {}},
                "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1, "Timeout": -5, "Retries": -1},
            },
            "rootfs": {"type": "layers"},
        });
        let image = ImageConfig::parse(image.to_string().as_bytes()).unwrap();
        let mut config = Config::default();
        inherit(&mut config, &image);
        assert_eq!(config.env, Some(vec!["A=b".to_owned()]));
        assert_eq!(config.stop_signal, "");
        assert_eq!(config.volumes, Some(["/data".to_owned()].into()));
        let ports: Vec<String> = config
            .exposed_ports
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ports, ["7/udp", "8/udp"]);
        let check = config.healthcheck.unwrap();
        assert_eq!(
            (
                check.interval,
                check.timeout,
                check.start_period,
                check.retries
            ),
            (1_000_000, 1_000_000, 0, 0)
        );
    }
}
