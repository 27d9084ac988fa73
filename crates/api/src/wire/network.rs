//! Networks.

use std::collections::BTreeMap;

use whelk_api_types::{
    ConfigReference, EndpointResource, IpamStatus, NetworkInspect, NetworkStatus, SubnetStatus,
};
use whelk_engine::model::network::NetworkRecord;
use whelk_engine::networks::{Member, SubnetUsage};

use super::convert::Convert;
use super::time;

pub(crate) fn network(
    record: NetworkRecord,
    members: Option<BTreeMap<String, Member>>,
) -> NetworkInspect {
    NetworkInspect {
        name: record.name,
        id: record.id,
        created: time(record.created_at),
        scope: "local".into(),
        driver: record.driver.to_string(),
        enable_ipv4: record.enable_ipv4,
        enable_ipv6: record.enable_ipv6,
        ipam: record.ipam.convert(),
        internal: record.internal,
        attachable: record.attachable,
        ingress: false,
        config_from: ConfigReference::default(),
        config_only: false,
        containers: members.map(|members| {
            members
                .into_iter()
                .map(|(id, member)| (id, endpoint(member)))
                .collect()
        }),
        options: record.options,
        labels: record.labels,
        status: None,
    }
}

pub(crate) fn network_status(usage: Vec<SubnetUsage>) -> NetworkStatus {
    let subnet = |usage: SubnetUsage| {
        let status = SubnetStatus {
            ips_in_use: usage.in_use,
            dynamic_ips_available: usage.available,
        };
        (usage.subnet.to_string(), status)
    };
    NetworkStatus {
        ipam: IpamStatus {
            subnets: usage.into_iter().map(subnet).collect(),
        },
    }
}

fn endpoint(member: Member) -> EndpointResource {
    let address = |ipv4: bool| {
        member
            .addresses
            .iter()
            .find(|net| net.addr().is_ipv4() == ipv4)
            .map_or_else(String::new, ToString::to_string)
    };
    EndpointResource {
        ipv4_address: address(true),
        ipv6_address: address(false),
        name: member.name,
        endpoint_id: member.endpoint_id,
        mac_address: member.mac,
    }
}
