//! How the engine uses registries.

use whelk_registry::Settings;
use whelk_trust::Policy;

/// How the engine uses registries.
#[derive(Clone, Debug)]
pub struct RegistrySettings {
    pub client: Settings,
    /// Maximum number of layers that are downloaded at the same time.
    pub downloads: usize,
    /// The same for those that are uploaded.
    pub uploads: usize,
    /// What is required of images that are pulled.
    pub policy: Option<Policy>,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            client: Settings {
                user_agent: concat!("whelk/", env!("CARGO_PKG_VERSION")).into(),
                ..Settings::default()
            },
            downloads: 3,
            uploads: 5,
            policy: None,
        }
    }
}
