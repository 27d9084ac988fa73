//! The `null` driver: containers have nothing but a loopback interface.

use super::{Facts, Gateway, Joining, NetworkDriver};
use crate::networks::model::NetworkRecord;

#[derive(Debug)]
pub(super) struct Null;

impl NetworkDriver for Null {
    fn facts(&self) -> Facts {
        Facts {
            joining: Joining::Alone,
            only: Some("none"),
            host_routes: false,
            parents_mac: false,
            warm: false,
        }
    }

    fn gateway(&self, _network: &NetworkRecord, _ipv4: bool) -> Gateway {
        Gateway::None
    }
}
