//! A network driver for the engine's own tests, which changes nothing on the host.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use whelk_sys::sync::IgnorePoison as _;

use super::{Facts, Joining, NetworkDriver};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::instance::Instance;
use crate::networks::Networks;
use crate::networks::model::{NetworkDriverKind, NetworkRecord};
use crate::networks::stack::HostStack;
use crate::store::RecordStore;

/// The option that makes the creation of a network fail after half of it was done.
const FAIL: &str = "fail";

/// The ids of the networks that exist, in all tests of the process.
static CREATED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

#[derive(Debug)]
pub(super) struct Fake;

fn created() -> MutexGuard<'static, BTreeSet<String>> {
    CREATED.lock().ignore_poison()
}

impl NetworkDriver for Fake {
    fn facts(&self) -> Facts {
        Facts {
            joining: Joining::Interface,
            only: None,
            host_routes: false,
            parents_mac: false,
            warm: false,
        }
    }

    fn check_option(&self, key: &str, _value: &str) -> Result<bool> {
        Ok(key == FAIL)
    }

    fn create(&self, _stack: &HostStack, network: &NetworkRecord) -> Result<()> {
        created().insert(network.id.clone());
        match network.options.get(FAIL) {
            Some(text) => Err(Error::internal(text.as_str())),
            None => Ok(()),
        }
    }

    fn remove(
        &self,
        _stack: &HostStack,
        network: &NetworkRecord,
        _others: &[NetworkRecord],
    ) -> Result<()> {
        created().remove(&network.id);
        Ok(())
    }
}

impl Networks {
    /// Opens the networks of an engine whose default network is a fake one.
    pub(crate) fn with_fakes(
        instance: &Instance,
        store: Arc<RecordStore>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>> {
        let networks = Self::restore(instance, store, events)?;
        for (name, driver) in [
            ("bridge", NetworkDriverKind::Fake),
            ("host", NetworkDriverKind::Host),
            ("none", NetworkDriverKind::Null),
        ] {
            if networks.find(name).is_err() {
                let record = NetworkRecord {
                    name: name.into(),
                    id: crate::random_names::random_id(),
                    driver,
                    ..NetworkRecord::default()
                };
                networks.store.put_network(&record)?;
                networks.restore_network(record)?;
            }
        }
        Ok(networks)
    }

    /// Returns whether a fake network exists outside of the engine.
    pub(crate) fn fake_exists(id: &str) -> bool {
        created().contains(id)
    }
}
