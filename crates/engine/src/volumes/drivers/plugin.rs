//! Volumes of plugins that implement `VolumeDriver`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use whelk_plugin::SearchPaths;
use whelk_sys::sync::IgnorePoison as _;

use super::{Created, VolumeDriver, VolumeRecord, creating};
use crate::error::{Error, Result};

/// How long a plugin may take to answer a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a plugin may take to create, mount, unmount or remove a volume.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// The volume plugins that have been activated.
#[derive(Debug)]
pub(in crate::volumes) struct Plugins {
    search_paths: SearchPaths,
    known: Arc<Known>,
}

type Known = Mutex<BTreeMap<String, Arc<Plugin>>>;

#[derive(Debug)]
pub(in crate::volumes) struct Plugin {
    plugin: whelk_plugin::Plugin,
    pub(in crate::volumes) scope: &'static str,
    /// The plugins from which it is removed when it does not answer.
    known: Arc<Known>,
}

/// A volume in a plugin's answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::volumes) struct Described {
    pub(in crate::volumes) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(in crate::volumes) mountpoint: PathBuf,
    #[serde(deserialize_with = "or_default")]
    pub(in crate::volumes) created_at: String,
    pub(in crate::volumes) status: Option<Value>,
}

/// Deserializes `null` to the default: Go encodes missing values as `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    value: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

impl Plugins {
    pub(super) fn new(search_paths: SearchPaths) -> Self {
        Self {
            search_paths,
            known: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Plugin>>> {
        self.known.lock().ignore_poison()
    }

    /// Returns a plugin by name, and activates it at its first use.
    ///
    /// # Errors
    /// Returns an error if there is no such plugin, or it does not answer as a volume driver.
    pub(in crate::volumes) fn get(&self, name: &str) -> Result<Arc<Plugin>> {
        if let Some(driver) = self.known().get(name) {
            return Ok(driver.clone());
        }
        let looked_up = |error: whelk_plugin::Error| {
            let text = format!("error looking up volume plugin {name}: {error}");
            match error {
                whelk_plugin::Error::NotFound(_) => Error::NotFound(text),
                whelk_plugin::Error::Broken(_) => Error::Unavailable(text),
                whelk_plugin::Error::Refused(_) => Error::internal(text),
            }
        };
        let plugin = self
            .search_paths
            .activate(name, "VolumeDriver")
            .map_err(looked_up)?;
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            capabilities: Capabilities,
        }
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Capabilities {
            scope: String,
        }
        // Older plugins do not implement this call.
        let answer: Answer = plugin
            .call("VolumeDriver.Capabilities", &json!({}), QUERY_TIMEOUT)
            .unwrap_or_default();
        let scope = if answer.capabilities.scope.eq_ignore_ascii_case("global") {
            "global"
        } else {
            "local"
        };
        let known = self.known.clone();
        let driver = Arc::new(Plugin {
            plugin,
            scope,
            known,
        });
        self.known().insert(name.to_owned(), driver.clone());
        Ok(driver)
    }

    /// Returns all volume plugins that can be discovered, and those that were used before.
    pub(in crate::volumes) fn all(&self) -> Vec<Arc<Plugin>> {
        for name in self.search_paths.names() {
            if let Err(error) = self.get(&name) {
                tracing::debug!("{error}");
            }
        }
        self.known().values().cloned().collect()
    }

    /// Returns the names of the plugins that were used.
    pub(in crate::volumes) fn names(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Returns the scope of a plugin's volumes, if it was used.
    pub(in crate::volumes) fn known_scope(&self, name: &str) -> Option<&'static str> {
        self.known().get(name).map(|driver| driver.scope)
    }

    /// Returns a plugin's volume with this name, or `None` if it has none.
    pub(in crate::volumes) fn find(&self, plugin: &str, name: &str) -> Result<Option<Described>> {
        self.get(plugin)?.find(name)
    }

    /// Returns whether there are no plugins at all.
    pub(in crate::volumes) fn is_empty(&self) -> bool {
        self.known().is_empty() && self.search_paths.names().is_empty()
    }
}

impl VolumeDriver for Plugin {
    fn check(&self, _options: &BTreeMap<String, String>) -> Result<()> {
        // The plugin checks them when it creates the volume.
        Ok(())
    }

    fn create(&self, record: &VolumeRecord) -> Result<Created> {
        // A plugin that fails to look it up may still be able to create it.
        let is_new = self.find(&record.name).unwrap_or_default().is_none();
        if is_new {
            let body = json!({"Name": record.name, "Opts": record.options});
            self.change("Create", &body)
                .map_err(|error| self.failed(error))
                .map_err(creating(&record.name))?;
        }
        Ok(Created::Published { is_new })
    }

    fn mount(&self, record: &VolumeRecord, user: &str) -> Result<PathBuf> {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            #[serde(deserialize_with = "or_default")]
            mountpoint: PathBuf,
        }
        let body = json!({"Name": record.name, "ID": user});
        let mounted = self
            .plugin
            .call("VolumeDriver.Mount", &body, CHANGE_TIMEOUT)
            .and_then(|Answer { mountpoint }| {
                if mountpoint.is_absolute() {
                    Ok(mountpoint)
                } else {
                    Err(whelk_plugin::Error::Broken(format!(
                        "plugin {}: mountpoint {mountpoint:?} is not an absolute path",
                        self.name()
                    )))
                }
            });
        if let Err(whelk_plugin::Error::Broken(_)) = mounted {
            // It may have mounted the volume nevertheless.
            drop(
                self.plugin
                    .call::<Value>("VolumeDriver.Unmount", &body, QUERY_TIMEOUT),
            );
        }
        mounted.map_err(|error| self.failed(error))
    }

    fn unmount(&self, record: &VolumeRecord, user: &str, _is_last: bool) -> Result<()> {
        let body = json!({"Name": record.name, "ID": user});
        match self.change("Unmount", &body) {
            // The plugin has answered that the volume is not mounted: there is nothing to try
            // again.
            Err(error @ whelk_plugin::Error::Refused(_)) => {
                tracing::warn!(volume = record.name, "error unmounting volume: {error}");
                Ok(())
            }
            outcome => outcome.map_err(|error| self.failed(error)),
        }
    }

    fn release(&self, record: &VolumeRecord) -> Result<()> {
        self.change("Remove", &json!({"Name": record.name}))
            .map_err(|error| self.failed(error))
            .map_err(|error| error.prefixed(&format!("remove {}", record.name)))
    }

    fn delete(&self, _record: &VolumeRecord) -> Result<()> {
        // The plugin has deleted the content.
        Ok(())
    }
}

impl Plugin {
    pub(in crate::volumes) fn name(&self) -> &str {
        self.plugin.name()
    }

    /// Returns the plugin's volume with this name, or `None` if the plugin answers with an error.
    pub(in crate::volumes) fn find(&self, name: &str) -> Result<Option<Described>> {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            volume: Option<Described>,
        }
        match self.query("Get", &json!({"Name": name})) {
            Ok(Answer { volume }) => Ok(volume.filter(|volume| volume.name == name)),
            Err(whelk_plugin::Error::Refused(_)) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Returns all volumes of the plugin, whether the engine knows them or not.
    pub(in crate::volumes) fn list(&self) -> Result<Vec<Described>> {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            volumes: Option<Vec<Described>>,
        }
        let answer: Answer = self
            .query("List", &json!({}))
            .map_err(|error| self.failed(error))?;
        Ok(answer.volumes.unwrap_or_default())
    }

    fn query<T: DeserializeOwned>(&self, method: &str, body: &Value) -> whelk_plugin::Result<T> {
        let method = format!("VolumeDriver.{method}");
        self.plugin.call(&method, body, QUERY_TIMEOUT)
    }

    fn change(&self, method: &str, body: &Value) -> whelk_plugin::Result<()> {
        let method = format!("VolumeDriver.{method}");
        self.plugin
            .call::<Value>(&method, body, CHANGE_TIMEOUT)
            .map(drop)
    }

    /// Converts an error. A plugin that did not answer is forgotten: it may return at another
    /// address, or with other capabilities, so it is activated again at its next use.
    fn failed(&self, error: whelk_plugin::Error) -> Error {
        match error {
            whelk_plugin::Error::Broken(text) => {
                self.known.lock().ignore_poison().remove(self.name());
                Error::Unavailable(text)
            }
            other => Error::internal(other.to_string()),
        }
    }
}
