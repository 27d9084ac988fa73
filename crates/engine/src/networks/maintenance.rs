//! Periodic maintenance of networks and sandboxes while the engine runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::Notify;
use whelk_network::Links;
use whelk_sys::sync::IgnorePoison as _;

use super::{Networks, Sandboxes};

/// How often the rules are checked without a notification of changes.
const RULES_INTERVAL: Duration = Duration::from_secs(5);
/// How often the host's routes are compared with the networks' subnets.
const ROUTES_INTERVAL: Duration = Duration::from_secs(60);

/// The periodic duties to perform now.
#[derive(Clone, Copy, Debug)]
struct Due {
    rules: bool,
    routes: bool,
}

impl Sandboxes {
    /// Maintains networks and sandboxes for as long as the engine runs: deletes interfaces of ended
    /// containers, creates namespaces in advance, restores rules and reports routes that hide subnets.
    /// One after the other, because the kernel does most of it under one lock.
    pub async fn maintain(self: Arc<Self>) {
        let changes = self.networks().watch_rules();
        // The ruleset's generation when it was last found complete.
        let mut checked = None;
        let mut rules_changed = false;
        let mut last_rules_check = Instant::now();
        let mut last_routes_check = Instant::now();
        loop {
            let due = Due {
                rules: rules_changed || last_rules_check.elapsed() >= RULES_INTERVAL,
                routes: last_routes_check.elapsed() >= ROUTES_INTERVAL,
            };
            if due.rules {
                last_rules_check = Instant::now();
            }
            if due.routes {
                last_routes_check = Instant::now();
            }
            let sandboxes = self.clone();
            let work = tokio::task::spawn_blocking(move || {
                whelk_sys::in_background(|| sandboxes.run_duties(due, checked))
            });
            match work.await {
                Ok(generation) => checked = generation,
                Err(error) => tracing::error!("network maintenance failed: {error}"),
            }
            rules_changed = self.wait_for_duty(&changes, last_rules_check).await;
        }
    }

    /// Performs the duties that are always due, and those in `due`. Returns the generation at which
    /// the rules were last found complete. Blocks.
    fn run_duties(&self, due: Due, checked: Option<u32>) -> Option<u32> {
        let networks = self.networks();
        networks.stack.delete_pending_interfaces();
        self.refill();
        if due.routes {
            networks.report_hidden_subnets();
        }
        if due.rules {
            networks.redirect_ipv6_loopback();
            networks.restore_rules(checked)
        } else {
            checked
        }
    }

    /// Waits until a duty is due. Returns whether the reason is a change to the host's rules.
    async fn wait_for_duty(&self, changes: &Notify, last_rules_check: Instant) -> bool {
        // Other programs may change their rules in many small transactions.
        const MIN_RULES_INTERVAL: Duration = Duration::from_millis(100);
        let taken = &self.networks().stack.maintenance;
        tokio::select! {
            () = crate::shims::time_to_refill(taken, || self.is_low()) => false,
            () = tokio::time::sleep(RULES_INTERVAL) => false,
            () = changes.notified() => {
                tokio::time::sleep(MIN_RULES_INTERVAL.saturating_sub(last_rules_check.elapsed())).await;
                true
            }
        }
    }
}

impl Networks {
    /// Starts a thread that watches for changes to the host's rules by other processes, and returns
    /// what it notifies.
    fn watch_rules(&self) -> Arc<Notify> {
        let changes = Arc::new(Notify::new());
        match self.stack.firewall.watch_foreign_changes() {
            Ok(others) => drop(std::thread::spawn({
                let changes = changes.clone();
                move || loop {
                    others.wait();
                    changes.notify_one();
                }
            })),
            Err(error) => tracing::warn!(
                "watch nf_tables rules: {error}; they are checked every {} s only",
                RULES_INTERVAL.as_secs()
            ),
        }
        changes
    }

    /// Restores rules and elements that others deleted (`nft flush ruleset`, a firewall's reload).
    /// Checks only if the ruleset's generation differs from `checked`; returns the generation to
    /// compare with the next time.
    fn restore_rules(&self, checked: Option<u32>) -> Option<u32> {
        let generation = self.stack.firewall.generation();
        if generation.is_some() && generation == checked {
            return checked;
        }
        if !self.stack.firewall.is_complete()
            && let Err(error) = self.stack.firewall.restore()
        {
            tracing::error!("restore the nf_tables rules: {error}");
        }
        self.ensure_forward_accept();
        generation
    }

    /// Logs routes that were added after a network was created and take precedence over its bridge,
    /// such as a VPN's. Each is logged once.
    fn report_hidden_subnets(&self) {
        let Ok(routes) = Links::open().and_then(|mut links| links.routes_by_link()) else {
            return;
        };
        let bridges: Vec<(String, Vec<IpNet>, String)> = self
            .state()
            .values()
            .filter(|network| network.record.driver.facts().host_routes)
            .map(|network| {
                (
                    network.record.name.clone(),
                    network.record.subnets(),
                    self.stack.network_interface(&network.record),
                )
            })
            .collect();
        let mut links = self.stack.links();
        let mut index = |name: &str| links.find(name).ok().flatten().map_or(0, |link| link.index);
        let own: Vec<_> = bridges
            .into_iter()
            .map(|(network, subnets, bridge)| (network, subnets, index(&bridge)))
            .collect();
        drop(links);
        let mut known = self.hidden_subnets.lock().ignore_poison();
        let found = hiding_routes(&own, &routes);
        for text in found.difference(&known) {
            tracing::warn!("{text}");
        }
        *known = found;
    }
}

/// Returns warnings about routes that take precedence over a network's bridge. `networks` are name,
/// subnets and the bridge's interface index.
fn hiding_routes(
    networks: &[(String, Vec<IpNet>, u32)],
    routes: &[(IpNet, u32)],
) -> HashSet<String> {
    let mut found = HashSet::new();
    for (name, subnets, bridge) in networks {
        for subnet in subnets {
            // The kernel prefers the longest prefix, so that a shorter one does not hide the
            // subnet.
            let hides = |route: &IpNet| {
                route.prefix_len() >= subnet.prefix_len()
                    && whelk_network::ipam::overlaps(route, subnet)
            };
            for (route, _) in routes
                .iter()
                .filter(|(route, link)| link != bridge && hides(route))
            {
                found.insert(format!(
                    "network {name}: a route to {route} on the host hides addresses of its subnet {subnet}: remove the network and create it again"
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_routes_that_hide_a_subnet() {
        let net = |text: &str| text.parse::<IpNet>().unwrap_or_default();
        let networks = [(
            "app".to_owned(),
            vec![net("10.1.2.0/24"), net("fd00:1::/64")],
            7,
        )];
        let found = |routes: &[(&str, u32)]| {
            let routes: Vec<(IpNet, u32)> =
                routes.iter().map(|(to, link)| (net(to), *link)).collect();
            hiding_routes(&networks, &routes)
                .into_iter()
                .collect::<Vec<_>>()
        };
        // The network's own route, a neighbouring subnet's and one with a shorter prefix do not
        // hide it.
        assert!(
            found(&[
                ("10.1.2.0/24", 7),
                ("10.1.3.0/24", 2),
                ("10.0.0.0/8", 2),
                ("fd00:1::/64", 7)
            ])
            .is_empty()
        );
        for route in ["10.1.2.0/24", "10.1.2.128/25", "10.1.2.5/32", "fd00:1::/96"] {
            let said = found(&[(route, 2)]);
            assert!(said.len() == 1 && said[0].contains(route), "{said:?}");
        }
    }
}
