//! Changing settings while the engine runs.

use crate::Engine;
use crate::error::Result;
use crate::instance::LiveSettings;

impl Engine {
    /// Replaces the settings that can be changed while the engine runs, and publishes the event `reload`.
    /// Blocks: certificates are read.
    ///
    /// # Errors
    /// Returns an error if the settings for registries cannot be used. The previous settings stay then.
    pub fn reload(&self, settings: LiveSettings) -> Result<()> {
        self.images.reload(&settings.registries)?;
        let mut attributes = settings.attributes(self.containers.host.cgroup_v2);
        self.instance.live.set(settings);
        let name = rustix::system::uname();
        let name = name.nodename().to_string_lossy().into_owned();
        attributes.insert("name".into(), name);
        self.events
            .publish("daemon", "reload", self.id.clone(), attributes);
        Ok(())
    }
}
