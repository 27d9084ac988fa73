//! Finds the images and networks that containers use, and removes those that they do not. (Volumes
//! count their users themselves, since not only containers use them.)

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use whelk_image::{Digest, Platform};

use crate::containers::Containers;
use crate::error::Result;
use crate::filters::Filters;
use crate::images::{ImageUser, Images, Removed};
use crate::instance::ImageGc;
use crate::model::ContainerRecord;
use crate::model::mount::MountPlan;
use crate::model::network::NetworkRecord;
use crate::networks::Networks;

/// The uses of images and networks by containers.
#[derive(Debug)]
pub struct Usage {
    containers: Arc<Containers>,
    images: Arc<Images>,
    networks: Arc<Networks>,
}

impl Usage {
    pub(crate) fn new(
        containers: Arc<Containers>,
        images: Arc<Images>,
        networks: Arc<Networks>,
    ) -> Self {
        Self {
            containers,
            images,
            networks,
        }
    }

    /// Returns the ids of containers by the id of their image, without those that mount it.
    pub fn containers_by_image(&self) -> HashMap<String, Vec<String>> {
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for container in self.containers.all() {
            let record = container.record();
            users
                .entry(record.image.clone())
                .or_default()
                .push(record.id.clone());
        }
        users
    }

    /// Removes the names of an image, or the whole image if `name` is an id or its last name; with
    /// `platforms` only what is for these.
    ///
    /// # Errors
    /// Returns an error if there is no such image, if a container uses it, or if `force` is
    /// necessary.
    pub fn remove_image(
        &self,
        name: &str,
        force: bool,
        platforms: &[Platform],
    ) -> Result<Vec<Removed>> {
        self.images
            .remove(name, force, platforms, |id| self.image_users(id))
    }

    /// Removes the images that no container uses: those without a name or, with `all`, also those
    /// with names. Returns what was removed and the bytes that were freed.
    ///
    /// # Errors
    /// Returns an error if a filter is invalid, or if the store fails.
    pub fn prune_images(&self, all: bool, filters: &Filters) -> Result<(Vec<Removed>, u64)> {
        self.images.prune(all, filters, |id| self.image_users(id))
    }

    /// Removes unused images, the least recently used first, whenever they take more than they may.
    pub(crate) async fn keep_images_to_budget(self: Arc<Self>, gc: ImageGc) {
        loop {
            tokio::time::sleep(gc.interval).await;
            let usage = self.clone();
            let work = move || {
                let users = |id: &Digest| usage.image_users(id);
                usage.images.keep_to_budget(&gc, users)
            };
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!("image-gc: {error}"),
                Err(error) => tracing::error!("image-gc: {error}"),
            }
        }
    }

    /// Removes the networks that no container, running or not, has an endpoint in. Returns their
    /// names.
    pub fn prune_networks(&self, matches: impl Fn(&NetworkRecord) -> bool) -> Vec<String> {
        let used = self.networks_in_use();
        self.networks
            .prune(|record| matches(record) && !used.contains(&record.name))
    }

    /// Returns the containers that were created from an image or mount it.
    fn image_users(&self, id: &Digest) -> Vec<ImageUser> {
        self.containers
            .all()
            .iter()
            .map(|container| container.record())
            .filter(|record| uses_image(record, id))
            .map(|record| ImageUser {
                container: record.id.clone(),
                is_running: record.state.status.is_running(),
            })
            .collect()
    }

    /// Returns the names of the networks with endpoints of containers.
    fn networks_in_use(&self) -> HashSet<String> {
        let mut names = HashSet::new();
        for container in self.containers.all() {
            names.extend(container.record().networks.keys().cloned());
        }
        names
    }
}

fn uses_image(record: &ContainerRecord, id: &Digest) -> bool {
    let mut mounted = record.mounts.iter().filter_map(MountPlan::image);
    record.image == id.as_str() || mounted.any(|image| image.id == id.as_str())
}
