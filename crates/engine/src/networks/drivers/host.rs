//! The `host` driver: containers run in the host's network namespace. There is nothing to create.

use super::{Facts, Gateway, Joining, NetworkDriver};
use crate::networks::model::NetworkRecord;

#[derive(Debug)]
pub(super) struct Host;

impl NetworkDriver for Host {
    fn facts(&self) -> Facts {
        Facts {
            joining: Joining::HostNamespace,
            only: Some("host"),
            host_routes: false,
            parents_mac: false,
            warm: false,
        }
    }

    fn gateway(&self, _network: &NetworkRecord, _ipv4: bool) -> Gateway {
        Gateway::None
    }
}
