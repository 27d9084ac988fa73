//! `create`, and what `run` shares with it.

mod attachment;
mod body;
mod devices;
pub(crate) mod environment;
mod flags;
mod gpus;
mod health;
mod host_config;
mod id_file;
pub(crate) mod limits;
pub(crate) mod mounts;
mod networking;
pub(crate) mod ports;
mod security;

use whelk_api_types::{BindOptions, ContainerCreateResponse, Mount};

use self::body::body;
pub(crate) use self::flags::CreateContainerArgs;
use self::id_file::IdFile;
use crate::client::{ApiError, Client, query};
use crate::commands::image::{is_about_grammar, pull};
use crate::format::units::parse_size;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome};

pub(crate) async fn create(client: &Client, args: CreateContainerArgs) -> Outcome {
    let id = make(client, &args, args.attach.is_empty(), None).await?;
    print_line!("{id}")?;
    Ok(0)
}

/// Creates a container and returns its ID. Prints warnings to standard error.
pub(crate) async fn make(
    client: &Client,
    args: &CreateContainerArgs,
    attach_all: bool,
    detach: Option<bool>,
) -> Outcome<String> {
    if !matches!(args.pull.as_str(), "always" | "missing" | "never") {
        return Err(invalid(format!(
            "invalid pull option: '{}': must be one of \"always\", \"missing\" or \"never\"",
            args.pull
        )));
    }
    check_supported(args)?;
    let mut body = body(args, &client.proxies(), attach_all, detach)?;
    if args.use_api_socket {
        let socket = client.socket().map_err(|host| {
            Failure::new(format!("flag --use-api-socket can only be used with unix sockets: docker endpoint {host} incompatible"))
        })?;
        let mounts = &mut body.host_config.mounts;
        mounts.get_or_insert_default().push(Mount {
            kind: "bind".into(),
            source: socket.to_owned(),
            target: "/var/run/docker.sock".into(),
            bind_options: Some(BindOptions::default()),
            ..Mount::default()
        });
    }
    let id_file = args.cidfile.as_deref().map(IdFile::create).transpose()?;
    let platform = pull::platform(args.platform.as_deref());
    let name = args.name.as_deref().unwrap_or_default();
    let path = format!(
        "/containers/create{}",
        query(&[("name", name), ("platform", &platform)])
    );
    let image = args.image_and_command.first().map_or("", String::as_str);
    if args.pull == "always" && pull::is_name(image) {
        pull::pull_for_create(client, image, &platform, args.quiet).await?;
    }
    let created: ContainerCreateResponse = match client.post_json(&path, &body).await {
        Err(error) if args.pull == "missing" && is_about_image(&error) && pull::is_name(image) => {
            if !args.quiet {
                let name = pull::with_default_tag(image);
                let name = pull::familiar(&name);
                warn_line!("Unable to find image '{name}' locally");
            }
            pull::pull_for_create(client, image, &platform, args.quiet).await?;
            client.post_json(&path, &body).await?
        }
        // Docker's client validates the reference and the platform itself.
        Err(error) if is_about_grammar(&error) => return Err(Failure::new(error.message)),
        Err(error) if error.message.ends_with(UNKNOWN_PLATFORM) => {
            let text = format!("error parsing specified platform: {}", error.message);
            return Err(Failure::new(text));
        }
        created => created?,
    };
    for warning in created.warnings {
        warn_line!("WARNING: {warning}");
    }
    if let Some(file) = id_file {
        file.write(&created.id)?;
    }
    Ok(created.id)
}

/// How the engine's error for a platform's name ends.
const UNKNOWN_PLATFORM: &str = ": unknown operating system or architecture: invalid argument";

/// Returns whether a container could not be created because the engine does not have its image, or
/// only for another platform.
fn is_about_image(error: &ApiError) -> bool {
    let texts = ["No such image: ", "image with reference "];
    error.status == hyper::StatusCode::NOT_FOUND
        && texts.iter().any(|text| error.message.starts_with(text))
}

/// Rejects flags of Docker's CLI that are not supported.
fn check_supported(args: &CreateContainerArgs) -> Outcome<()> {
    let windows = [
        ("--cpu-count", args.cpu_count.is_some()),
        ("--cpu-percent", args.cpu_percent.is_some()),
        ("--io-maxbandwidth", args.io_maxbandwidth.is_some()),
        ("--io-maxiops", args.io_maxiops.is_some()),
    ];
    if let Some((flag, _)) = windows.iter().find(|(_, given)| *given) {
        return Err(Failure::new(format!(
            "{flag:?} is only supported on a Docker daemon running on windows, but the Docker daemon is running on linux"
        )));
    }
    if !args.disable_content_trust {
        return Err(Failure::with_code(
            125,
            "--disable-content-trust=false: content trust is not available in this version of whelk",
        ));
    }
    if let Some(limit) = &args.kernel_memory {
        named(parse_size(limit), limit, "--kernel-memory")?;
        warn_line!("WARNING: --kernel-memory is ignored: kernels have no such limit any more");
    }
    Ok(())
}

/// Returns the error for an invalid command line.
pub(super) fn invalid(text: impl Into<String>) -> Failure {
    Failure::with_code(125, text)
}

/// Adds the flag and its value to an error.
pub(crate) fn named<T>(outcome: Outcome<T>, value: &str, flag: &str) -> Outcome<T> {
    outcome.map_err(|failure| {
        Failure::with_code(
            125,
            format!(
                "invalid argument {value:?} for {flag:?} flag: {}",
                failure.text
            ),
        )
    })
}
