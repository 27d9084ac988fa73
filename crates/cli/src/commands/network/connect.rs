//! The `network connect` command.

use clap::Args;
use whelk_api_types::{EndpointIpamConfig, EndpointSettings, NetworkConnectRequest};

use crate::client::{Client, escape_name};
use crate::commands::arguments::{given, key_values};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Add network-scoped alias for the container
    #[arg(long, value_delimiter = ',')]
    alias: Vec<String>,
    /// driver options for the network
    #[arg(long, value_delimiter = ',')]
    driver_opt: Vec<String>,
    /// Highest gw-priority provides the default gateway
    #[arg(long, allow_hyphen_values = true, default_value_t = 0)]
    gw_priority: i64,
    /// IPv4 address (e.g., "172.30.100.104")
    #[arg(long, default_value = "", hide_default_value = true)]
    ip: String,
    /// IPv6 address (e.g., "2001:db8::33")
    #[arg(long, default_value = "", hide_default_value = true)]
    ip6: String,
    /// Add link to another container
    #[arg(long)]
    link: Vec<String>,
    /// Add a link-local address for the container
    #[arg(long, value_delimiter = ',')]
    link_local_ip: Vec<String>,
    /// Name or id of the network
    network: String,
    /// Name or id of the container
    container: String,
}

pub(super) async fn connect(client: &Client, args: ConnectArgs) -> Outcome {
    let without_value = |option: &String| {
        let key = option.split_once('=').map(|(key, _)| key.trim());
        key.is_none_or(str::is_empty)
    };
    if args.driver_opt.iter().any(without_value) {
        return Err(Failure::new(
            "invalid key/value pair format in driver options",
        ));
    }
    check_container(&args.network, &args.container)?;
    let path = format!("/networks/{}/connect", escape_name(&args.network));
    let body = NetworkConnectRequest {
        endpoint_config: endpoint(&args),
        container: args.container,
    };
    client.post_json_no_content(&path, &body).await?;
    Ok(0)
}

/// Returns the endpoint of the request. As with Docker's CLI, links that are not given are `null`, but
/// aliases and options are empty: `inspect` shows them so.
fn endpoint(args: &ConnectArgs) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: args.ip.clone(),
            ipv6_address: args.ip6.clone(),
            link_local_ips: given(args.link_local_ip.clone()),
        }),
        links: given(args.link.clone()),
        aliases: Some(args.alias.clone()),
        driver_opts: Some(key_values(&args.driver_opt)),
        gw_priority: args.gw_priority,
        ..EndpointSettings::default()
    }
}

/// Checks that a container is named, once a network is, which the request's path contains.
pub(super) fn check_container(network: &str, container: &str) -> Outcome<()> {
    if !network.trim().is_empty() && container.trim().is_empty() {
        return Err(Failure::new("invalid container name or ID: value is empty"));
    }
    Ok(())
}
