//! The `info` command.

use serde_json::{Value, json};
use whelk_text::size;

use crate::Outcome;
use crate::client::{API_VERSION, Client};
use crate::commands::version::{FormatArgs, architecture, print_one};
use crate::format::template::typed;
use crate::output::warn_line;

pub(crate) async fn info(client: &Client, args: FormatArgs) -> Outcome {
    // The client's part is printed even if the engine cannot be reached.
    let answer = client.get("/info").await;
    let mut info = answer.as_ref().ok().cloned().unwrap_or_else(|| json!({}));
    info["ClientInfo"] = json!({
        "Debug": client.debug(), "Version": env!("CARGO_PKG_VERSION"), "DefaultAPIVersion": API_VERSION, "GitCommit": "", "GoVersion": "",
        "Os": std::env::consts::OS, "Arch": architecture(), "BuildTime": "", "Context": client.context(), "Plugins": [], "Warnings": null,
    });
    print_one(
        &typed("system.dockerInfo", info.clone()),
        "",
        &args.format,
        || info_text(client, answer.as_ref().ok()),
    )?;
    if args.format.is_empty() {
        for warning in info["Warnings"].as_array().into_iter().flatten() {
            warn_line!("{}", warning.as_str().unwrap_or_default());
        }
    }
    answer.map(|_| 0).map_err(Into::into)
}

fn info_text(client: &Client, info: Option<&Value>) -> String {
    let mut text = format!(
        "Client:\n Version:    {}\n Context:    {}\n Debug Mode: {}\n\nServer:\n",
        env!("CARGO_PKG_VERSION"),
        client.context(),
        client.debug()
    );
    let Some(info) = info else { return text };
    let line = |label: &str, key: &str| {
        format!(
            " {label}: {}\n",
            info[key]
                .as_str()
                .map_or_else(|| info[key].to_string(), str::to_owned)
        )
    };
    for (label, key) in [
        ("Containers", "Containers"),
        (" Running", "ContainersRunning"),
        (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ] {
        text += &line(label, key);
    }
    text += &format!(
        " Total Memory: {}\n",
        size::binary(info["MemTotal"].as_u64().unwrap_or(0))
    );
    text + &line("Name", "Name") + &line("ID", "ID") + &line("Docker Root Dir", "DockerRootDir")
}
