//! The body of the create request.

use super::mounts;
use serde_json::{Value, json};

use crate::commands::container::create::CreateContainerArgs;
use crate::commands::container::create::environment::{environment, labels};
use crate::commands::container::create::host_config::host_config;
use crate::{Failure, Outcome};

/// Returns the body of the create request.
pub(super) fn body(
    args: &CreateContainerArgs,
    attach_all: bool,
    detach: Option<bool>,
) -> Outcome<Value> {
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
    Ok(json!({
        "Hostname": args.hostname.clone().unwrap_or_default(),
        "Domainname": args.domainname.clone().unwrap_or_default(),
        "User": args.user.clone().unwrap_or_default(),
        "AttachStdin": stdin, "AttachStdout": all || attached("stdout"), "AttachStderr": all || attached("stderr"),
        "Tty": args.tty, "OpenStdin": args.interactive, "StdinOnce": args.interactive && !detached,
        "Env": environment(&args.env, &args.env_file)?,
        "Cmd": if command.is_empty() { Value::Null } else { json!(command) },
        "Image": image,
        "WorkingDir": args.workdir.clone().unwrap_or_default(),
        "Entrypoint": args.entrypoint.as_ref().map(|entrypoint| vec![entrypoint]),
        "ExposedPorts": networking.exposed,
        "Labels": labels(args)?,
        "StopSignal": args.stop_signal.clone().unwrap_or_default(),
        "StopTimeout": args.stop_timeout,
        "Healthcheck": healthcheck(args),
        "Volumes": anonymous,
        "HostConfig": host_config(args, networking.mode, networking.bindings, binds)?,
        "NetworkingConfig": {"EndpointsConfig": networking.endpoints},
    }))
}

fn healthcheck(args: &CreateContainerArgs) -> Value {
    match &args.health_cmd {
        Some(command) => json!({"Test": ["CMD-SHELL", command]}),
        None if args.no_healthcheck => json!({"Test": ["NONE"]}),
        None => Value::Null,
    }
}

pub(super) fn list(values: &[String]) -> Value {
    if values.is_empty() {
        Value::Null
    } else {
        json!(values)
    }
}
