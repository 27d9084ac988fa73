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
    if let Some(info) = info {
        print_rows(&mut text, info, SERVER);
        if client.debug() || info["Debug"] == true {
            print_rows(&mut text, info, DEBUG);
        }
        print_rows(&mut text, info, CONFIGURATION);
        text.push('\n');
    }
    text
}

/// A part of the text. The paths are JSON pointers (RFC 6901).
enum Row {
    Always(&'static str, &'static str),
    /// Omitted if the value is empty.
    Given(&'static str, &'static str),
    Title(&'static str),
    /// A list in one line.
    Words(&'static str, &'static str),
    /// A list with a line for each entry, omitted if it is empty.
    Lines(&'static str, &'static str),
    /// Pairs of a label and a value.
    Pairs(&'static str),
    /// The names of an object's members.
    Keys(&'static str, &'static str),
    /// A number of bytes.
    Size(&'static str, &'static str),
    SecurityOptions,
    InsecureRegistries,
    AddressPools,
}

use Row::{Always, Given, Keys, Lines, Pairs, Size, Title, Words};

/// What Docker's CLI shows, in its order.
const SERVER: &[Row] = &[
    Always("Containers", "/Containers"),
    Always(" Running", "/ContainersRunning"),
    Always(" Paused", "/ContainersPaused"),
    Always(" Stopped", "/ContainersStopped"),
    Always("Images", "/Images"),
    Given("Server Version", "/ServerVersion"),
    Given("Storage Driver", "/Driver"),
    Pairs("/DriverStatus"),
    Given("Logging Driver", "/LoggingDriver"),
    Given("Cgroup Driver", "/CgroupDriver"),
    Given("Cgroup Version", "/CgroupVersion"),
    Title("Plugins"),
    Words(" Volume", "/Plugins/Volume"),
    Words(" Network", "/Plugins/Network"),
    Words(" Log", "/Plugins/Log"),
    Lines("CDI spec directories", "/CDISpecDirs"),
    Always("Swarm", "/Swarm/LocalNodeState"),
    Keys("Runtimes", "/Runtimes"),
    Always("Default Runtime", "/DefaultRuntime"),
    Always("Init Binary", "/InitBinary"),
    Always("containerd version", "/ContainerdCommit/ID"),
    Always("runc version", "/RuncCommit/ID"),
    Always("init version", "/InitCommit/ID"),
    Row::SecurityOptions,
    Given("Kernel Version", "/KernelVersion"),
    Given("Operating System", "/OperatingSystem"),
    Given("OSType", "/OSType"),
    Given("Architecture", "/Architecture"),
    Always("CPUs", "/NCPU"),
    Size("Total Memory", "/MemTotal"),
    Given("Name", "/Name"),
    Given("ID", "/ID"),
    Always("Docker Root Dir", "/DockerRootDir"),
    Always("Debug Mode", "/Debug"),
];

const DEBUG: &[Row] = &[
    Always(" File Descriptors", "/NFd"),
    Always(" Goroutines", "/NGoroutines"),
    Always(" System Time", "/SystemTime"),
    Always(" EventsListeners", "/NEventsListener"),
];

const CONFIGURATION: &[Row] = &[
    Given("HTTP Proxy", "/HttpProxy"),
    Given("HTTPS Proxy", "/HttpsProxy"),
    Given("No Proxy", "/NoProxy"),
    Lines("Labels", "/Labels"),
    Always("Experimental", "/ExperimentalBuild"),
    Row::InsecureRegistries,
    Lines("Registry Mirrors", "/RegistryConfig/Mirrors"),
    Always("Live Restore Enabled", "/LiveRestoreEnabled"),
    Given("Product License", "/ProductLicense"),
    Row::AddressPools,
    Given("Firewall Backend", "/FirewallBackend/Driver"),
    Pairs("/FirewallBackend/Info"),
];

fn print_rows(text: &mut String, info: &Value, rows: &[Row]) {
    for row in rows {
        match row {
            Always(label, path) => line(text, label, &shown(at(info, path))),
            Given(label, path) => {
                let value = shown(at(info, path));
                if !value.is_empty() {
                    line(text, label, &value);
                }
            }
            Title(label) => *text += &format!(" {label}:\n"),
            Words(label, path) => line(text, label, &strings(at(info, path)).join(" ")),
            Keys(label, path) => {
                let members = at(info, path).as_object().into_iter().flatten();
                let names: Vec<&str> = members.map(|(name, _)| name.as_str()).collect();
                line(text, label, &names.join(" "));
            }
            Size(label, path) => {
                let bytes = at(info, path).as_u64().unwrap_or(0);
                line(text, label, &size::binary(bytes));
            }
            Lines(label, path) => block(text, label, &strings(at(info, path))),
            Pairs(path) => {
                for pair in at(info, path).as_array().into_iter().flatten() {
                    *text += &format!("  {}: {}\n", shown(&pair[0]), shown(&pair[1]));
                }
            }
            Row::SecurityOptions => block(text, "Security Options", &security_options(info)),
            Row::InsecureRegistries => block(text, "Insecure Registries", &insecure(info)),
            Row::AddressPools => block(text, "Default Address Pools", &address_pools(info)),
        }
    }
}

fn line(text: &mut String, label: &str, value: &str) {
    *text += &format!(" {label}: {value}\n");
}

/// Appends a label and a line for each entry; nothing without entries.
fn block(text: &mut String, label: &str, entries: &[String]) {
    if !entries.is_empty() {
        *text += &format!(" {label}:\n");
    }
    for entry in entries {
        *text += &format!("  {entry}\n");
    }
}

fn at<'v>(info: &'v Value, path: &str) -> &'v Value {
    info.pointer(path).unwrap_or(&Value::Null)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(shown).collect()
}

/// Returns the names and profiles of options such as `name=seccomp,profile=builtin`.
fn security_options(info: &Value) -> Vec<String> {
    let options = strings(&info["SecurityOptions"]);
    let parts = options.iter().flat_map(|option| option.split(','));
    parts
        .filter_map(|part| match part.split_once('=')? {
            ("name", name) => Some(name.to_owned()),
            ("profile", profile) => Some(format!(" Profile: {profile}")),
            _ => None,
        })
        .collect()
}

fn insecure(info: &Value) -> Vec<String> {
    let registries = &info["RegistryConfig"];
    let configs = registries["IndexConfigs"].as_object().into_iter().flatten();
    configs
        .filter(|(_, config)| config["Secure"] != true)
        .map(|(name, _)| name.clone())
        .chain(strings(&registries["InsecureRegistryCIDRs"]))
        .collect()
}

fn address_pools(info: &Value) -> Vec<String> {
    let pools = info["DefaultAddressPools"].as_array().into_iter().flatten();
    pools
        .map(|pool| format!(" Base: {}, Size: {}", shown(&pool["Base"]), pool["Size"]))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_those_of_dockers_cli() {
        let info = json!({
            "Images": 2, "Driver": "overlay2", "DriverStatus": [["Supports d_type", "true"]], "Name": "",
            "Plugins": {"Volume": ["local", "keeper"]}, "Runtimes": {"runc": {}}, "MemTotal": 1 << 30, "Labels": [],
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=apparmor"],
            "RegistryConfig": {"IndexConfigs": {"docker.io": {"Secure": true}, "h:5000": {"Secure": false}}, "InsecureRegistryCIDRs": ["::1/128"]},
            "DefaultAddressPools": [{"Base": "10.0.0.0/8", "Size": 24}],
        });
        let rows = [
            Always("Images", "/Images"),
            Given("Storage Driver", "/Driver"),
            Pairs("/DriverStatus"),
            Given("Name", "/Name"),
            Title("Plugins"),
            Words(" Volume", "/Plugins/Volume"),
            Keys("Runtimes", "/Runtimes"),
            Always("runc version", "/RuncCommit/ID"),
            Row::SecurityOptions,
            Size("Total Memory", "/MemTotal"),
            Lines("Labels", "/Labels"),
            Row::InsecureRegistries,
            Row::AddressPools,
        ];
        let mut text = String::new();
        print_rows(&mut text, &info, &rows);
        assert_eq!(
            text,
            " Images: 2
 Storage Driver: overlay2
  Supports d_type: true
 Plugins:
  Volume: local keeper
 Runtimes: runc
 runc version: \n Security Options:
  seccomp
   Profile: builtin
  apparmor
 Total Memory: 1GiB
 Insecure Registries:
  h:5000
  ::1/128
 Default Address Pools:
   Base: 10.0.0.0/8, Size: 24
"
        );
    }
}
