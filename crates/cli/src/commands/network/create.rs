//! The `network create` command.

use clap::Args;
use ipnet::IpNet;
use whelk_api_types::{Ipam, IpamConfig, NetworkCreateRequest, NetworkCreateResponse};

use crate::client::Client;
use crate::commands::arguments::{key_values, labels_of, not_available};
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct CreateNetworkArgs {
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Auxiliary IPv4 or IPv6 addresses used by Network driver (NAME=ADDRESS)
    #[arg(long)]
    aux_address: Vec<String>,
    /// The network from which to copy the configuration
    #[arg(long)]
    config_from: Option<String>,
    /// Create a configuration only network
    #[arg(long)]
    config_only: bool,
    /// Create swarm routing-mesh network
    #[arg(long)]
    ingress: bool,
    /// Driver to manage the Network
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// IPv4 or IPv6 Gateway for the master subnet
    #[arg(long, value_delimiter = ',')]
    gateway: Vec<String>,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Allocate container ip from a sub-range
    #[arg(long, value_delimiter = ',')]
    ip_range: Vec<String>,
    /// IP Address Management Driver
    #[arg(long, default_value = "default")]
    ipam_driver: String,
    /// Set IPAM driver specific options
    #[arg(long)]
    ipam_opt: Vec<String>,
    /// Enable or disable IPv4 address assignment
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    ipv4: Option<bool>,
    /// Enable or disable IPv6 address assignment
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    ipv6: Option<bool>,
    /// Set metadata on a network
    #[arg(long)]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long)]
    opt: Vec<String>,
    /// Control the network's scope
    #[arg(long, default_value = "", hide_default_value = true)]
    scope: String,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_delimiter = ',')]
    subnet: Vec<String>,
    /// Name of the network
    network: String,
}

pub(super) async fn create(client: &Client, args: CreateNetworkArgs) -> Outcome {
    not_available(
        &[
            ("--config-only", args.config_only),
            ("--config-from", args.config_from.is_some()),
        ],
        "configuration networks are",
    )?;
    not_available(&[("--ingress", args.ingress)], "networks of a swarm are")?;
    let config = ipam(&args)?;
    let body = NetworkCreateRequest {
        name: args.network,
        driver: args.driver,
        scope: args.scope,
        enable_ipv4: args.ipv4,
        enable_ipv6: args.ipv6,
        ipam: Ipam {
            driver: args.ipam_driver,
            options: Some(key_values(&args.ipam_opt)),
            config,
        },
        internal: args.internal,
        attachable: args.attachable,
        options: key_values(&args.opt),
        labels: labels_of(&args.label, "--label")?,
        ..NetworkCreateRequest::default()
    };
    let created: NetworkCreateResponse = client.post_json("/networks/create", &body).await?;
    print_line!("{}", created.id)?;
    Ok(0)
}

/// Returns the IPAM configuration of each subnet, with its range, gateway and auxiliary addresses.
fn ipam(args: &CreateNetworkArgs) -> Outcome<Vec<IpamConfig>> {
    if args.subnet.len() < args.ip_range.len() || args.subnet.len() < args.gateway.len() {
        return Err(Failure::new(
            "every ip-range or gateway must have a corresponding subnet",
        ));
    }
    let mut subnets: Vec<(Option<IpNet>, IpamConfig)> = Vec::new();
    for text in &args.subnet {
        // An invalid subnet is rejected by the engine.
        let subnet: Option<IpNet> = text.parse().ok();
        let overlaps = |other: &IpNet| {
            subnet.is_some_and(|subnet| other.contains(&subnet) || subnet.contains(other))
        };
        if subnets
            .iter()
            .filter_map(|(other, _)| other.as_ref())
            .any(overlaps)
        {
            return Err(Failure::new(
                "multiple overlapping subnet configuration is not supported",
            ));
        }
        let config = IpamConfig {
            subnet: text.clone(),
            ..IpamConfig::default()
        };
        subnets.push((subnet, config));
    }
    for text in &args.ip_range {
        set_once(
            &mut config_of(&mut subnets, "range", text)?.ip_range,
            "range",
            text,
        )?;
    }
    for text in &args.gateway {
        set_once(
            &mut config_of(&mut subnets, "gateway", text)?.gateway,
            "gateway",
            text,
        )?;
    }
    for text in &args.aux_address {
        let (name, address) = text.split_once('=').unwrap_or((text, ""));
        let config = config_of(&mut subnets, "aux-address", address)?;
        let addresses = &mut config.auxiliary_addresses;
        addresses.insert(name.to_owned(), address.to_owned());
    }
    Ok(subnets.into_iter().map(|(_, config)| config).collect())
}

/// Returns the configuration of the subnet that contains an address.
fn config_of<'s>(
    subnets: &'s mut [(Option<IpNet>, IpamConfig)],
    what: &str,
    text: &str,
) -> Outcome<&'s mut IpamConfig> {
    let address = text
        .split('/')
        .next()
        .and_then(|address| address.parse::<std::net::IpAddr>().ok());
    let within = |subnet: &Option<IpNet>| {
        subnet.is_some_and(|subnet| address.is_some_and(|address| subnet.contains(&address)))
    };
    match subnets.iter_mut().find(|(subnet, _)| within(subnet)) {
        Some((_, config)) => Ok(config),
        None => Err(Failure::new(format!(
            "no matching subnet for {what} {text}"
        ))),
    }
}

/// Sets a part of a subnet's configuration that can be given only once.
fn set_once(field: &mut String, what: &str, text: &str) -> Outcome<()> {
    if !field.is_empty() {
        return Err(Failure::new(format!(
            "cannot configure multiple {what}s ({text}, {field:?}) on the same subnet"
        )));
    }
    text.clone_into(field);
    Ok(())
}
