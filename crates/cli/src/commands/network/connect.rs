//! The `network connect` command.

use std::collections::BTreeMap;

use clap::Args;
use whelk_api_types::{EndpointIpamConfig, EndpointSettings, NetworkConnectRequest};

use crate::client::{Client, escape_name};
use crate::commands::arguments::given;
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
    let driver_opts = driver_opts(&args.driver_opt)?;
    check_container(&args.network, &args.container)?;
    let path = format!("/networks/{}/connect", escape_name(&args.network));
    let body = NetworkConnectRequest {
        endpoint_config: endpoint(&args, driver_opts),
        container: args.container,
    };
    client.post_json_no_content(&path, &body).await?;
    Ok(0)
}

/// Returns the endpoint of the request. As with Docker's CLI, links that are not given are `null`, but
/// aliases and options are empty: `inspect` shows them so.
fn endpoint(args: &ConnectArgs, driver_opts: BTreeMap<String, String>) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: args.ip.clone(),
            ipv6_address: args.ip6.clone(),
            link_local_ips: given(args.link_local_ip.clone()),
        }),
        links: given(args.link.clone()),
        aliases: Some(args.alias.clone()),
        driver_opts: Some(driver_opts),
        gw_priority: args.gw_priority,
        ..EndpointSettings::default()
    }
}

/// Parses `key=value` options. As in Docker's CLI, white space around both is removed.
fn driver_opts(given: &[String]) -> Outcome<BTreeMap<String, String>> {
    let parsed = given.iter().map(|option| {
        let (key, value) = option.split_once('=').unwrap_or_default();
        match key.trim() {
            "" => Err(Failure::new(
                "invalid key/value pair format in driver options",
            )),
            key => Ok((key.to_owned(), value.trim().to_owned())),
        }
    });
    parsed.collect()
}

/// Checks that a container is given. A missing network is reported first, as the request's path
/// contains it.
pub(super) fn check_container(network: &str, container: &str) -> Outcome<()> {
    if !network.trim().is_empty() && container.trim().is_empty() {
        return Err(Failure::new("invalid container name or ID: value is empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_options_are_trimmed() {
        let parse = |options: &[&str]| {
            let given: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            driver_opts(&given).map_err(|error| error.text)
        };
        let expected = [("a", "b c"), ("d", ""), ("e", "f=g")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(parse(&[" a = b c ", "d=", "e=f=g"]), Ok(expected.into()));
        for option in ["", "a", "=b", " =b"] {
            let error = "invalid key/value pair format in driver options";
            assert_eq!(parse(&[option]), Err(error.into()), "{option:?}");
        }
    }
}
