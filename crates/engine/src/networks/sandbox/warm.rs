//! Network namespaces that are created before a sandbox needs one.

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard};

use whelk_network::dns_sockets::{self, DnsSockets};
use whelk_network::namespace::{Interface, Namespace};
use whelk_sys::sync::IgnorePoison as _;

use super::interfaces::FIRST_INTERFACE;
use crate::networks::stack::{HostStack, alias};
use crate::random_names::random_id;

/// The number of namespaces that are kept ready.
const WARM_NAMESPACES: usize = 3;

/// Namespaces that are ready for sandboxes.
#[derive(Debug, Default)]
pub(super) struct WarmNamespaces(Mutex<Vec<WarmNamespace>>);

/// A network namespace created in advance, with a veth pair and the sockets of a DNS server.
#[derive(Debug)]
pub(super) struct WarmNamespace {
    pub(super) namespace: Namespace,
    /// The inner end of the pair. The outer end has the name that belongs to `endpoint_id`.
    pub(super) interface: Interface,
    pub(super) endpoint_id: String,
    pub(super) dns: DnsSockets,
}

impl WarmNamespaces {
    fn ready(&self) -> MutexGuard<'_, Vec<WarmNamespace>> {
        self.0.lock().ignore_poison()
    }

    pub(super) fn take(&self) -> Option<WarmNamespace> {
        self.ready().pop()
    }

    /// Returns whether the pool should be refilled at once.
    pub(super) fn is_low(&self) -> bool {
        self.ready().len() < 2
    }

    /// Creates namespaces until there are enough. Errors are logged.
    pub(super) fn refill(&self, stack: &HostStack) {
        while self.ready().len() < WARM_NAMESPACES {
            match WarmNamespace::create(stack) {
                Ok(namespace) => self.ready().push(namespace),
                Err(error) => {
                    tracing::warn!("create a network namespace in advance: {error}");
                    break;
                }
            }
        }
    }
}

impl WarmNamespace {
    fn create(stack: &HostStack) -> whelk_network::Result<Self> {
        let endpoint_id = random_id();
        let outer = stack.endpoint_interface(&endpoint_id);
        let (namespace, interface) = Namespace::create_with_interface(FIRST_INTERFACE, &outer)?;
        stack
            .links()
            .set_alias(&outer, &alias(&stack.instance, "warm pool"))?;
        // Now, because the DNAT rules take the kernel about ten milliseconds.
        let dns = dns_sockets::open(namespace.as_fd())?;
        Ok(Self {
            namespace,
            interface,
            endpoint_id,
            dns,
        })
    }
}
