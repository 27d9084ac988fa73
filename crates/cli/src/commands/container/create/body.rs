//! The body of the create request.

use super::mounts;
use whelk_api_types::{ContainerConfig, ContainerCreateRequest, NetworkingConfig};

use crate::commands::arguments::given;
use crate::commands::container::create::CreateContainerArgs;
use crate::commands::container::create::environment::{environment, labels, with_proxies};
use crate::commands::container::create::health::healthcheck;
use crate::commands::container::create::host_config::host_config;
use crate::{Failure, Outcome};

/// Returns the body of the create request.
pub(super) fn body(
    args: &CreateContainerArgs,
    proxies: &[(String, String)],
    attach_all: bool,
    detach: Option<bool>,
) -> Outcome<ContainerCreateRequest> {
    let (image, command) = args
        .image_and_command
        .split_first()
        .ok_or_else(|| Failure::new("no image specified"))?;
    if image.is_empty() {
        return Err(Failure::new("invalid reference format"));
    }
    let attached = |stream: &str| {
        args.attach
            .iter()
            .any(|given| given.eq_ignore_ascii_case(stream))
    };
    if let Some(wrong) = args
        .attach
        .iter()
        .find(|stream| !["stdin", "stdout", "stderr"].contains(&stream.to_lowercase().as_str()))
    {
        return Err(Failure::with_code(
            125,
            format!(
                "invalid argument {wrong:?} for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
            ),
        ));
    }
    let networking = args.networks.parse()?;
    let (binds, anonymous) = mounts::parse_volumes(&args.volume)?;
    let detached = detach == Some(true);
    let all = attach_all && args.attach.is_empty() && !detached;
    let stdin = !detached && (attached("stdin") || all && args.interactive && detach.is_some());
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let config = ContainerConfig {
        hostname: text(&args.hostname),
        domainname: text(&args.domainname),
        user: text(&args.user),
        attach_stdin: stdin,
        attach_stdout: all || attached("stdout"),
        attach_stderr: all || attached("stderr"),
        tty: args.tty,
        open_stdin: args.interactive,
        stdin_once: args.interactive && !detached,
        env: environment(&with_proxies(&args.env, proxies), &args.env_file)?,
        cmd: given(command.to_vec()),
        image: image.clone(),
        working_dir: text(&args.workdir),
        entrypoint: args.entrypoint.clone().map(|entrypoint| vec![entrypoint]),
        exposed_ports: networking.exposed,
        labels: labels(args)?,
        stop_signal: text(&args.stop_signal),
        stop_timeout: args.stop_timeout,
        healthcheck: healthcheck(args)?,
        volumes: Some(anonymous),
        ..ContainerConfig::default()
    };
    Ok(ContainerCreateRequest {
        config,
        host_config: host_config(args, networking.mode, networking.bindings, binds)?,
        networking_config: NetworkingConfig {
            endpoints_config: networking.endpoints,
        },
    })
}
