//! Members of networks: the DNS names by which sandboxes in a network find each other.

use std::collections::HashSet;

use crate::networks::model::{Assigned, EndpointRequest};
use crate::networks::{Endpoint, Member, SandboxConfig};

impl Endpoint {
    /// Computes the DNS names again, if it has any. `config` has the sandbox's new name.
    pub(super) fn rename(&mut self, config: &SandboxConfig) {
        self.dns_names = self
            .dns_names
            .is_some()
            .then(|| names_of(config, &self.requested));
    }
}

/// Returns a sandbox's DNS names in a user-defined network.
pub(super) fn names_of(config: &SandboxConfig, endpoint: &EndpointRequest) -> Vec<String> {
    let short: String = config.id.chars().take(12).collect();
    let mut known = HashSet::new();
    let names = [&config.name]
        .into_iter()
        .chain(endpoint.aliases.iter().flatten())
        .chain([&short, &config.hostname]);
    names
        .filter(|name| !name.is_empty() && known.insert(*name))
        .cloned()
        .collect()
}

pub(super) fn member(config: &SandboxConfig, endpoint: &Endpoint, assigned: &Assigned) -> Member {
    Member {
        name: config.name.clone(),
        endpoint_id: assigned.endpoint_id.clone(),
        mac: assigned.mac_address.clone(),
        addresses: assigned.nets().collect(),
        names: endpoint
            .dns_names
            .iter()
            .flatten()
            .map(|name| name.to_ascii_lowercase())
            .collect(),
        links: endpoint
            .requested
            .links
            .iter()
            .flatten()
            .map(|link| split_link(link))
            .map(|(target, alias)| (target, alias.to_ascii_lowercase()))
            .collect(),
    }
}

/// Splits `container[:alias]`.
pub(crate) fn split_link(link: &str) -> (String, String) {
    let (target, alias) = link.split_once(':').unwrap_or((link, link));
    (
        target.trim_start_matches('/').to_owned(),
        alias.rsplit('/').next().unwrap_or(alias).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::model::AssignedAddress;

    fn config(hostname: &str) -> SandboxConfig {
        SandboxConfig {
            id: "0123456789abcdef".into(),
            name: "Web".into(),
            hostname: hostname.into(),
            ..SandboxConfig::default()
        }
    }

    fn aliased(aliases: &[&str]) -> EndpointRequest {
        EndpointRequest {
            aliases: Some(aliases.iter().map(|&alias| alias.to_owned()).collect()),
            ..EndpointRequest::default()
        }
    }

    #[test]
    fn names_are_listed_once_and_in_order() {
        let check = |hostname: &str, aliases: &[&str], expected: &str| {
            let names = names_of(&config(hostname), &aliased(aliases));
            assert_eq!(names.join(" "), expected);
        };
        check("", &[], "Web 0123456789ab");
        check("0123456789ab", &["www", "Web"], "Web www 0123456789ab");
        check("host", &["www", "www"], "Web www 0123456789ab host");
    }

    #[test]
    fn a_member_has_names_in_lower_case_and_the_endpoints_links() {
        let endpoint = Endpoint {
            requested: EndpointRequest {
                links: Some(vec!["/db:/web/DB".into(), "cache".into()]),
                ..EndpointRequest::default()
            },
            dns_names: Some(vec!["Web".into(), "www".into()]),
            ..Endpoint::default()
        };
        let assigned = Assigned {
            ipv4: Some(AssignedAddress {
                net: "10.0.0.2/24".parse().unwrap(),
                gateway: None,
            }),
            ..Assigned::default()
        };
        let member = member(&config(""), &endpoint, &assigned);
        assert_eq!(
            (member.name.as_str(), member.names.join(" ").as_str()),
            ("Web", "web www")
        );
        assert_eq!(member.addresses, ["10.0.0.2/24".parse().unwrap()]);
        let links: Vec<String> = member
            .links
            .iter()
            .map(|(target, alias)| format!("{target}:{alias}"))
            .collect();
        assert_eq!(links.join(" "), "db:db cache:cache");
    }
}
