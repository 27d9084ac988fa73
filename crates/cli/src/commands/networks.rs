//! The `network` commands.

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::inspect::{Inspection, inspect};
use super::{confirmed, filters, for_each, key_values, labels_of, not_available, prune_filters};
use crate::client::{Client, escape_name, query};
use crate::format::natural;
use crate::format::table::Table;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Connect a container to a network
    Connect(ConnectArgs),
    /// Create a network
    Create(CreateNetworkArgs),
    /// Disconnect a container from a network
    Disconnect(DisconnectArgs),
    /// Display detailed information on one or more networks
    Inspect(InspectArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove all unused networks
    Prune(PruneArgs),
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

pub(crate) async fn network(client: &Client, command: NetworkCommand) -> Outcome {
    match command {
        NetworkCommand::Connect(args) => connect(client, args).await,
        NetworkCommand::Create(args) => create(client, args).await,
        NetworkCommand::Disconnect(args) => disconnect(client, args).await,
        NetworkCommand::Inspect(args) => inspect(client, args).await,
        NetworkCommand::Ls(args) => ls(client, args).await,
        NetworkCommand::Prune(args) => prune(client, args).await,
        NetworkCommand::Rm(args) => rm(client, args).await,
    }
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
    /// Verbose output for diagnostics
    #[arg(short, long)]
    verbose: bool,
    /// Names or ids of networks
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// `--verbose` is ignored: it concerns swarm services.
impl From<InspectArgs> for Inspection {
    fn from(args: InspectArgs) -> Self {
        Self {
            format: args.format,
            names: args.names,
            kind: Some("network".into()),
            ..Self::default()
        }
    }
}

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

async fn create(client: &Client, args: CreateNetworkArgs) -> Outcome {
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

async fn connect(client: &Client, args: ConnectArgs) -> Outcome {
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
    let body = json!({
        "Container": args.container,
        "EndpointConfig": {
            "IPAMConfig": {"IPv4Address": args.ip, "IPv6Address": args.ip6, "LinkLocalIPs": args.link_local_ip},
            "Aliases": args.alias, "Links": args.link, "DriverOpts": key_values(&args.driver_opt), "GwPriority": args.gw_priority,
        },
    });
    client
        .post(
            &format!("/networks/{}/connect", escape_name(&args.network)),
            Some(&body),
        )
        .await?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct DisconnectArgs {
    /// Force the container to disconnect from a network
    #[arg(short, long)]
    force: bool,
    /// Name or id of the network
    network: String,
    /// Name or id of the container
    container: String,
}

/// Checks that a container is named, once a network is, which the request's path contains.
fn check_container(network: &str, container: &str) -> Outcome<()> {
    if !network.trim().is_empty() && container.trim().is_empty() {
        return Err(Failure::new("invalid container name or ID: value is empty"));
    }
    Ok(())
}

async fn disconnect(client: &Client, args: DisconnectArgs) -> Outcome {
    check_container(&args.network, &args.container)?;
    let body = json!({"Container": args.container, "Force": args.force});
    client
        .post(
            &format!("/networks/{}/disconnect", escape_name(&args.network)),
            Some(&body),
        )
        .await?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Provide filter values (e.g. "driver=bridge")
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

const TABLE: Table = Table {
    row: "*network.networkContext",
    id: "ID",
    columns: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
};

async fn ls(client: &Client, args: LsArgs) -> Outcome {
    let networks = client
        .get(&format!(
            "/networks{}",
            query(&[("filters", &filters(&args.filter)?)])
        ))
        .await?;
    let mut networks = networks.as_array().cloned().unwrap_or_default();
    networks.sort_by(|one, other| natural(one["Name"].as_str(), other["Name"].as_str()));
    let row = |network: &Value| {
        let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
        let switch = |key: &str| network[key].as_bool().unwrap_or(false).to_string();
        let id = text("Id");
        let labels = network["Labels"].as_object().cloned().unwrap_or_default();
        let created = text("Created")
            .parse::<jiff::Timestamp>()
            .map(|time| time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string());
        let fields = json!({
            "ID": if args.no_trunc { id } else { id.chars().take(12).collect() },
            "Name": text("Name"), "Driver": text("Driver"), "Scope": text("Scope"), "IPv4": switch("EnableIPv4"), "IPv6": switch("EnableIPv6"),
            "Internal": switch("Internal"), "Labels": labels, "CreatedAt": created.unwrap_or_default(),
        });
        fields.as_object().cloned().unwrap_or_default()
    };
    let rows = networks.iter().map(row).collect();
    TABLE.print(
        &args.format,
        args.quiet,
        "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
        rows,
    )?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    if !args.force && !confirmed("all custom networks not used by at least one container") {
        return Ok(0);
    }
    let answer = client
        .post(
            &format!(
                "/networks/prune{}",
                query(&[("filters", &prune_filters(&args.filter)?)])
            ),
            None,
        )
        .await?;
    let deleted: Vec<&str> = answer["NetworksDeleted"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !deleted.is_empty() {
        print_line!("Deleted Networks:\n{}\n", deleted.join("\n"))?;
    }
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
    /// Names or ids of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

async fn rm(client: &Client, args: RmArgs) -> Outcome {
    for_each(&args.networks, async |name| {
        match client
            .delete(&format!("/networks/{}", escape_name(name)))
            .await
        {
            Err(error) if args.force && error.status == hyper::StatusCode::NOT_FOUND => {
                return Ok(());
            }
            result => result?,
        };
        print_line!("{name}")?;
        Ok(())
    })
    .await
}
