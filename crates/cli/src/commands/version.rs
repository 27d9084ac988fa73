//! The `version` command, and the output of a single object that it shares with `info`.

use clap::Args;
use serde_json::{Value, json};

use crate::Outcome;
use crate::client::{API_VERSION, Client};
use crate::format::template::{Mode, Template, Typed, failure, typed};
use crate::output::print;

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(super) format: String,
}

/// Prints an object as `--format` says, or as `text` without a format.
pub(crate) fn print_one(
    object: &Typed,
    name: &'static str,
    format: &str,
    text: impl FnOnce() -> String,
) -> Outcome<()> {
    let text = match format {
        "" => text(),
        "json" => format!("{}\n", object.json),
        format => {
            let template = Template::named(name, format)
                .map_err(|mistake| failure(&mistake, 64, "template parsing error: "))?;
            let (text, outcome) = template.execute_until(object, Mode::Values);
            print(&(text + "\n"))?;
            return outcome.map_err(|mistake| failure(&mistake, 1, ""));
        }
    };
    print(&text)
}

pub(crate) async fn version(client: &Client, args: FormatArgs) -> Outcome {
    // The client's part is printed even if the engine cannot be reached.
    let server = client.get("/version").await;
    let negotiated = server
        .as_ref()
        .ok()
        .and_then(|server| server["ApiVersion"].as_str())
        .map_or(API_VERSION, |theirs| older(theirs, API_VERSION));
    let spoken = client.fixed_version().unwrap_or(negotiated);
    let own = json!({
        "Version": env!("CARGO_PKG_VERSION"), "ApiVersion": spoken, "DefaultAPIVersion": API_VERSION, "GitCommit": "", "GoVersion": "",
        "Os": std::env::consts::OS, "Arch": architecture(), "BuildTime": "", "Context": client.context(),
    });
    let both = typed(
        "system.versionInfo",
        json!({"Client": own, "Server": server.as_ref().ok()}),
    );
    print_one(&both, "version", &args.format, || {
        version_text(&own, server.as_ref().ok())
    })?;
    server.map(|_| 0).map_err(Into::into)
}

/// Returns the older of two versions `1.N`.
fn older<'v>(one: &'v str, other: &'v str) -> &'v str {
    let minor = |version: &str| {
        version
            .split_once('.')
            .and_then(|(_, minor)| minor.parse::<u32>().ok())
            .unwrap_or(0)
    };
    if minor(one) < minor(other) {
        one
    } else {
        other
    }
}

fn version_text(own: &Value, server: Option<&Value>) -> String {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut lines = String::from("Client:\n");
    let mut line = |label: &str, value: String, indent: usize| {
        let indent = " ".repeat(indent);
        lines += format!("{indent}{:<19}{value}", format!("{label}:")).trim_end();
        lines.push('\n');
    };
    let api = |value: &Value| match (text(value, "ApiVersion"), text(value, "MinAPIVersion")) {
        (api, least) if least.is_empty() => api,
        (api, least) => format!("{api} (minimum version {least})"),
    };
    line("Version", text(own, "Version"), 1);
    let version = match (text(own, "ApiVersion"), text(own, "DefaultAPIVersion")) {
        (spoken, newest) if spoken == newest => spoken,
        (spoken, newest) => format!("{spoken} (downgraded from {newest})"),
    };
    line("API version", version, 1);
    line(
        "OS/Arch",
        format!("{}/{}", text(own, "Os"), text(own, "Arch")),
        1,
    );
    line("Context", text(own, "Context"), 1);
    let Some(server) = server else { return lines };
    let components = server["Components"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    lines += "\nServer:\n";
    let mut line = |label: &str, value: &str, indent: usize| {
        let (indent, width) = (" ".repeat(indent), 20 - indent);
        lines += format!("{indent}{:<width$}{value}", format!("{label}:")).trim_end();
        lines.push('\n');
    };
    line("Engine", "", 1);
    line("Version", &text(server, "Version"), 2);
    line("API version", &api(server), 2);
    line(
        "OS/Arch",
        &format!("{}/{}", text(server, "Os"), text(server, "Arch")),
        2,
    );
    line("Kernel", &text(server, "KernelVersion"), 2);
    line(
        "Experimental",
        &server["Experimental"]
            .as_bool()
            .unwrap_or(false)
            .to_string(),
        2,
    );
    for component in components
        .iter()
        .filter(|component| component["Name"] != "Engine")
    {
        line(&text(component, "Name"), "", 1);
        line("Version", &text(component, "Version"), 2);
        for (key, value) in component["Details"].as_object().into_iter().flatten() {
            line(key, value.as_str().unwrap_or_default(), 2);
        }
    }
    lines
}

/// Returns the machine's architecture as Go names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
