//! Making a container: a record and a directory; nothing is mounted and no process started.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use whelk_image::{ImageConfig, Platform};
use whelk_sys::fs;

use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::events::now;
use crate::model::{Config, HostConfig, Record, State};
use crate::networks::Endpoint;
use crate::store::SCHEMA_VERSION;
use crate::{names, validate};

#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Empty for a random one.
    pub name: String,
    /// `os[/arch[/variant]]`; empty for any.
    pub platform: String,
    pub config: Config,
    pub host: HostConfig,
    /// Its places in networks, by the name or id of each.
    pub networks: BTreeMap<String, Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub id: String,
    pub warnings: Vec<String>,
}

/// How often a random name is tried before a number is put behind it.
const ATTEMPTS: u32 = 6;

impl Containers {
    /// # Errors
    /// Settings that make no sense, an image that is not here, a name that is taken.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<Created> {
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
        let pinned = if config.image.is_empty() {
            None
        } else {
            Some(self.images.pin(&config.image)?)
        };
        let image = pinned.as_ref().map(|(image, _)| image);
        crate::networks::check_exposed(&config, &host)?;
        if let Some(image) = image {
            let wanted = if platform.is_empty() {
                None
            } else {
                Some(platform.parse::<Platform>()?)
            };
            image.check_platform(wanted.as_ref(), &config.image)?;
            inherit(&mut config, &image.config);
        }
        // How clients take the image's entrypoint away, and what they send where nothing is to be
        // mounted.
        config.entrypoint.take_if(|entrypoint| *entrypoint == [""]);
        config.volumes.take_if(|volumes| volumes.is_empty());
        if crate::spec::command(&config).next().is_none() {
            return Err(Error::invalid("no command specified"));
        }
        let warnings = validate::settings(&mut config, &mut host, &self.host)?;
        let networks = self.place(&config, &mut host, networks)?;
        let id = names::random_id();
        config.hostname = self.hostname(&config, &host, &id);
        fill_paths(&mut host);
        let image = image.map(|image| image.id.to_string()).unwrap_or_default();
        let (mounts, _pins) = self.resolve_mounts_aside(&id, &config, &host).await?;
        let mut record = Record {
            version: SCHEMA_VERSION,
            id: id.clone(),
            name: String::new(),
            created_at: now(),
            image,
            config,
            host,
            state: State::default(),
            networks,
            mounts,
            ports: Vec::new(),
        };
        if let Err(error) = self.settle_in(&mut record, wanted_name).await {
            self.release_volumes(&id, &record.mounts, true);
            return Err(error);
        }
        let container = Container::new(record);
        self.add(container.clone());
        self.publish(&container, "create", &[]);
        Ok(Created { id, warnings })
    }

    /// The host name of a new container: who shares a network shares the name in it.
    fn hostname(&self, config: &Config, host: &HostConfig, id: &str) -> String {
        match host
            .network_mode
            .strip_prefix("container:")
            .and_then(|donor| self.find(donor).ok())
        {
            Some(donor) => donor.record().config.hostname.clone(),
            None if host.network_mode == "host" && config.hostname.is_empty() => {
                rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned()
            }
            None => crate::spec::hostname(config, id),
        }
    }

    /// Gives a container its name, its files and its place in the store.
    async fn settle_in(
        self: &Arc<Self>,
        record: &mut Record,
        wanted_name: Option<String>,
    ) -> Result<()> {
        self.reserve_name(record, wanted_name)?;
        let mut made = self.make_files(&record.id);
        if made.is_ok() {
            made = self
                .fill_volumes(record)
                .await
                .and_then(|()| self.store.insert_container(record));
        }
        if made.is_err() {
            self.index
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .by_name
                .remove(&record.name);
            let _ = fs::remove_tree(self.instance.container_dir(&record.id));
        }
        made
    }

    /// Takes a name for the container, so that nobody else can meanwhile.
    fn reserve_name(&self, record: &mut Record, wanted: Option<String>) -> Result<()> {
        let mut index = self
            .index
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        record.name = match wanted {
            Some(name) => match index.by_name.get(&name) {
                Some(owner) => return Err(name_taken(&name, owner)),
                None => name,
            },
            None => (0..)
                .map(|attempt: u32| names::random(attempt.saturating_sub(ATTEMPTS)))
                .find(|name| !index.by_name.contains_key(name))
                .unwrap_or_default(),
        };
        index.by_name.insert(record.name.clone(), record.id.clone());
        Ok(())
    }

    /// The writable layer: what differs from the image.
    pub(super) fn make_files(&self, id: &str) -> Result<()> {
        let directory = self.instance.container_dir(id);
        fs::create_dir(&directory, 0o700)?;
        fs::create_dir(directory.join("upper"), 0o755)?;
        Ok(fs::create_dir(directory.join("work"), 0o700)?)
    }
}

pub(super) fn name_taken(name: &str, owner: &str) -> Error {
    Error::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
    ))
}

/// Fills what the request leaves open with what the image says.
fn inherit(config: &mut Config, image: &ImageConfig) {
    let image = &image.config;
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    if config.stop_signal.is_empty() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    let mut env = config.env.take().unwrap_or_default();
    let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut names: HashSet<String> = env.iter().map(|entry| name_of(entry)).collect();
    env.extend(
        image
            .env
            .iter()
            .filter(|entry| names.insert(name_of(entry)))
            .cloned(),
    );
    config.env = Some(env).filter(|env| !env.is_empty());
    // An entrypoint given here replaces the image's together with its arguments; an empty one only
    // the entrypoint.
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
    let ports: BTreeMap<_, _> = image.exposed_ports.clone();
    for (port, value) in ports {
        config.exposed_ports.entry(port).or_insert(value);
    }
    if !image.volumes.is_empty() {
        let volumes = config.volumes.get_or_insert_default();
        for (path, value) in &image.volumes {
            volumes.entry(path.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// Writes the paths that are covered into the settings, where `inspect` shows them.
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
