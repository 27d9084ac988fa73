//! The `port` command.

use super::ports::with_port;
use clap::Args;
use whelk_api_types::{ContainerInspectResponse, PortBinding};

use crate::client::{Client, escape_name};
use crate::commands::container::create::ports::number;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    container: String,
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    port: Option<String>,
}

pub(crate) async fn port(client: &Client, args: PortArgs) -> Outcome {
    let container: ContainerInspectResponse = client
        .get(&format!(
            "/containers/{}/json",
            escape_name(&args.container)
        ))
        .await?;
    let ports = container.network_settings.ports;
    let addresses = |bindings: &Option<Vec<PortBinding>>| -> Vec<String> {
        let bindings = bindings.iter().flatten();
        bindings
            .map(|binding| with_port(&binding.host_ip, &binding.host_port))
            .collect()
    };
    if let Some(wanted) = args.port.as_ref().filter(|wanted| !wanted.is_empty()) {
        let (port, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
        let number = number(port)
            .map_err(|error| Failure::new(format!("Error: invalid port ({port}): {error}")))?;
        let found = ports
            .get(&format!("{number}/{protocol}"))
            .map(addresses)
            .unwrap_or_default();
        if found.is_empty() {
            return Err(Failure::new(format!(
                "Error: No public port '{wanted}' published for {}",
                args.container
            )));
        }
        for address in found {
            print_line!("{address}")?;
        }
        return Ok(0);
    }
    let mut lines: Vec<(u16, String)> = Vec::new();
    for (port, bindings) in &ports {
        let number = port
            .split('/')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        lines.extend(
            addresses(bindings)
                .into_iter()
                .map(|address| (number, format!("{port} -> {address}"))),
        );
    }
    lines.sort();
    for (_, line) in lines {
        print_line!("{line}")?;
    }
    Ok(0)
}
