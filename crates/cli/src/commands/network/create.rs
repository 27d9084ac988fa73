//! The `network create` command.

use clap::Args;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

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
    let body = json!({
        "Name": args.network, "Driver": args.driver, "Scope": args.scope, "EnableIPv4": args.ipv4, "EnableIPv6": args.ipv6,
        "IPAM": {"Driver": args.ipam_driver, "Options": key_values(&args.ipam_opt), "Config": config},
        "Internal": args.internal, "Attachable": args.attachable, "Options": key_values(&args.opt), "Labels": labels_of(&args.label, "--label")?,
    });
    let created = client.post("/networks/create", Some(&body)).await?;
    print_line!("{}", created["Id"].as_str().unwrap_or_default())?;
    Ok(0)
}

/// Returns the IPAM configuration of each subnet, with its range, gateway and auxiliary addresses.
fn ipam(args: &CreateNetworkArgs) -> Outcome<Vec<Value>> {
    if args.subnet.len() < args.ip_range.len() || args.subnet.len() < args.gateway.len() {
        return Err(Failure::new(
            "every ip-range or gateway must have a corresponding subnet",
        ));
    }
    let mut subnets: Vec<(Option<IpNet>, Map<String, Value>)> = Vec::new();
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
        subnets.push((
            subnet,
            [("Subnet".to_owned(), json!(text))].into_iter().collect(),
        ));
    }
    let mut put = |what: &str, key: &str, text: &str, name: Option<&str>| {
        let address = text
            .split('/')
            .next()
            .and_then(|address| address.parse::<std::net::IpAddr>().ok());
        let within = |subnet: &Option<IpNet>| {
            subnet.is_some_and(|subnet| address.is_some_and(|address| subnet.contains(&address)))
        };
        let Some((_, config)) = subnets.iter_mut().find(|(subnet, _)| within(subnet)) else {
            return Err(Failure::new(format!(
                "no matching subnet for {what} {text}"
            )));
        };
        match name {
            Some(name) => config.entry(key).or_insert_with(|| json!({}))[name] = json!(text),
            None if config.contains_key(key) => {
                return Err(Failure::new(format!(
                    "cannot configure multiple {what}s ({text}, {}) on the same subnet",
                    config[key]
                )));
            }
            None => drop(config.insert(key.to_owned(), json!(text))),
        }
        Ok(())
    };
    for text in &args.ip_range {
        put("range", "IPRange", text, None)?;
    }
    for text in &args.gateway {
        put("gateway", "Gateway", text, None)?;
    }
    for text in &args.aux_address {
        let (name, address) = text.split_once('=').unwrap_or((text, ""));
        put("aux-address", "AuxiliaryAddresses", address, Some(name))?;
    }
    Ok(subnets
        .into_iter()
        .map(|(_, config)| Value::Object(config))
        .collect())
}
