//! Renaming a container.

use std::sync::Arc;

use super::create::name_taken;
use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::validate;
use whelk_sys::sync::IgnorePoison as _;

impl Containers {
    /// Renames a container.
    ///
    /// # Errors
    /// Returns an error if the name is invalid, unchanged or taken.
    pub async fn rename(self: &Arc<Self>, name: &str, new_name: &str) -> Result<()> {
        let (containers, name, new_name) = (self.clone(), name.to_owned(), new_name.to_owned());
        to_its_end(async move { containers.rename_now(&name, &new_name).await }).await
    }

    async fn rename_now(&self, name: &str, new_name: &str) -> Result<()> {
        if new_name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        let container = self.find(name)?;
        let new_name = validate::name(new_name)
            .map_err(|_| {
                Error::invalid(format!(
                    "Error when allocating new name: Invalid container name (/{}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
                    new_name.trim_start_matches('/')
                ))
            })?
            .to_owned();
        let _operation = container.lock_operation(name).await?;
        let old_name = container.name();
        if old_name == new_name {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        {
            let mut index = self.index.write().ignore_poison();
            if let Some(owner) = index.by_name.get(&new_name) {
                return Err(Error::conflict(format!(
                    "Error when allocating new name: {}",
                    name_taken(&new_name, owner)
                )));
            }
            index.by_name.insert(new_name.clone(), container.id.clone());
        }
        container.record().name.clone_from(&new_name);
        self.rename_in_networks(&container);
        let saved = self.save_with_copy(&container);
        let renamed = {
            let mut index = self.index.write().ignore_poison();
            // A --rm container may have been removed meanwhile, under either name.
            let exists = index.by_id.contains_key(&container.id);
            let renamed = saved.and_then(|()| {
                if exists {
                    Ok(())
                } else {
                    Err(Error::no_such_container(name))
                }
            });
            let kept = if renamed.is_ok() {
                Some(&new_name)
            } else {
                Some(&old_name).filter(|_| exists)
            };
            for unused in [&old_name, &new_name]
                .into_iter()
                .filter(|name| Some(*name) != kept)
            {
                if index.by_name.get(unused) == Some(&container.id) {
                    index.by_name.remove(unused);
                }
            }
            renamed
        };
        if renamed.is_err() {
            container.record().name = old_name;
            self.rename_in_networks(&container);
            return renamed;
        }
        self.publish(&container, "rename", &[("oldName", format!("/{old_name}"))]);
        Ok(())
    }

    /// Updates the container's DNS names in its networks.
    fn rename_in_networks(&self, container: &Container) {
        let _networking = container.networking();
        let (config, mut sandbox) = container.sandbox();
        self.sandboxes.rename(&config, &mut sandbox);
        container.keep_sandbox(sandbox);
    }
}
