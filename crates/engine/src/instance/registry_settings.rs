//! The settings for pulling from and pushing to registries.

use whelk_registry::Settings;
use whelk_trust::Policy;

/// The settings for pulling from and pushing to registries.
#[derive(Clone, Debug)]
pub struct RegistrySettings {
    pub client: Settings,
    /// Maximum number of layers that are downloaded at the same time.
    pub downloads: usize,
    /// Maximum number of layers that are uploaded at the same time.
    pub uploads: usize,
    /// The signature policy that pulled images must satisfy.
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
