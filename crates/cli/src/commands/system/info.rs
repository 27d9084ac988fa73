//! The `info` command.

use std::fmt::Display;

use serde::Serialize;
use serde_json::{Map, Value};
use whelk_api_types::{SystemInfo, read};
use whelk_text::size;

use crate::Outcome;
use crate::client::{ApiResult, Client, unreadable};
use crate::commands::version::{Build, FormatArgs, print_one};
use crate::format::template::{json, typed};
use crate::output::warn_line;

/// The client's part of the information.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ClientInfo<'i> {
    debug: bool,
    version: &'i str,
    #[serde(flatten)]
    build: Build<'i>,
    plugins: [&'i str; 0],
    warnings: Option<[&'i str; 0]>,
}

pub(crate) async fn info(client: &Client, args: FormatArgs) -> Outcome {
    // The client's part is printed even if the engine cannot be reached.
    let answer = client.get::<Map<String, Value>>("/info").await;
    let info: ApiResult<SystemInfo> = answer
        .clone()
        .and_then(|info| read(info.into()).map_err(unreadable));
    // Templates see the engine's part as it has sent it.
    let mut all = answer.unwrap_or_default();
    let own = ClientInfo {
        debug: client.debug(),
        version: env!("CARGO_PKG_VERSION"),
        build: Build::of(client),
        plugins: [],
        warnings: None,
    };
    all.insert("ClientInfo".into(), json(&own)?);
    let all = typed("system.dockerInfo", all.into());
    print_one(&all, "", &args.format, || {
        info_text(client, info.as_ref().ok())
    })?;
    if args.format.is_empty() {
        let warnings = info.as_ref().ok().and_then(|info| info.warnings.as_ref());
        for warning in warnings.into_iter().flatten() {
            warn_line!("{warning}");
        }
    }
    info.map(|_| 0).map_err(Into::into)
}

fn info_text(client: &Client, info: Option<&SystemInfo>) -> String {
    let mut text = format!(
        "Client:\n Version:    {}\n Context:    {}\n Debug Mode: {}\n\nServer:\n",
        env!("CARGO_PKG_VERSION"),
        client.context(),
        client.debug()
    );
    if let Some(info) = info {
        server(&mut text, info);
        if client.debug() || info.debug {
            debug(&mut text, info);
        }
        configuration(&mut text, info);
        text.push('\n');
    }
    text
}

/// Appends the first part of what Docker's CLI shows, in its order.
fn server(text: &mut String, info: &SystemInfo) {
    line(text, "Containers", &info.containers);
    line(text, " Running", &info.containers_running);
    line(text, " Paused", &info.containers_paused);
    line(text, " Stopped", &info.containers_stopped);
    line(text, "Images", &info.images);
    given(text, "Server Version", &info.server_version);
    given(text, "Storage Driver", &info.driver);
    pairs(text, &info.driver_status);
    given(text, "Logging Driver", &info.logging_driver);
    given(text, "Cgroup Driver", &info.cgroup_driver);
    given(text, "Cgroup Version", &info.cgroup_version);
    *text += " Plugins:\n";
    line(text, " Volume", &info.plugins.volume.join(" "));
    line(text, " Network", &info.plugins.network.join(" "));
    line(text, " Log", &info.plugins.log.join(" "));
    block(text, "CDI spec directories", &info.cdi_spec_dirs);
    let devices = info.discovered_devices.iter();
    let devices: Vec<String> = devices
        .map(|device| format!("{}: {}", device.source, device.id))
        .collect();
    block(text, "Discovered Devices", &devices);
    line(text, "Swarm", &info.swarm.local_node_state);
    let runtimes: Vec<&str> = info.runtimes.keys().map(String::as_str).collect();
    line(text, "Runtimes", &runtimes.join(" "));
    line(text, "Default Runtime", &info.default_runtime);
    line(text, "Init Binary", &info.init_binary);
    line(text, "containerd version", &info.containerd_commit.id);
    line(text, "runc version", &info.runc_commit.id);
    line(text, "init version", &info.init_commit.id);
    block(text, "Security Options", &security_options(info));
    given(text, "Kernel Version", &info.kernel_version);
    given(text, "Operating System", &info.operating_system);
    given(text, "OSType", &info.os_type);
    given(text, "Architecture", &info.architecture);
    line(text, "CPUs", &info.n_cpu);
    line(text, "Total Memory", &size::binary(info.mem_total));
    given(text, "Name", &info.name);
    given(text, "ID", &info.id);
    line(text, "Docker Root Dir", &info.docker_root_dir);
    line(text, "Debug Mode", &info.debug);
}

fn debug(text: &mut String, info: &SystemInfo) {
    line(text, " File Descriptors", &info.n_fd);
    line(text, " Goroutines", &info.n_goroutines);
    line(text, " System Time", &info.system_time);
    line(text, " EventsListeners", &info.n_events_listener);
}

fn configuration(text: &mut String, info: &SystemInfo) {
    given(text, "HTTP Proxy", &info.http_proxy);
    given(text, "HTTPS Proxy", &info.https_proxy);
    given(text, "No Proxy", &info.no_proxy);
    block(text, "Labels", &info.labels);
    line(text, "Experimental", &info.experimental_build);
    block(text, "Insecure Registries", &insecure(info));
    let mirrors = info.registry_config.mirrors.as_deref();
    block(text, "Registry Mirrors", mirrors.unwrap_or_default());
    line(text, "Live Restore Enabled", &info.live_restore_enabled);
    given(text, "Product License", &info.product_license);
    let pools = info.default_address_pools.iter();
    let pools = pools.map(|pool| format!(" Base: {}, Size: {}", pool.base, pool.size));
    block(text, "Default Address Pools", &pools.collect::<Vec<_>>());
    if let Some(firewall) = &info.firewall_backend {
        given(text, "Firewall Backend", &firewall.driver);
        pairs(text, &firewall.info);
    }
}

fn line(text: &mut String, label: &str, value: &dyn Display) {
    *text += &format!(" {label}: {value}\n");
}

/// Appends a line, unless the value is empty.
fn given(text: &mut String, label: &str, value: &str) {
    if !value.is_empty() {
        line(text, label, &value);
    }
}

fn pairs(text: &mut String, pairs: &[[String; 2]]) {
    for [label, value] in pairs {
        line(text, &format!(" {label}"), value);
    }
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

/// Returns the names and profiles of options such as `name=seccomp,profile=builtin`.
fn security_options(info: &SystemInfo) -> Vec<String> {
    let options = info.security_options.iter();
    let parts = options.flat_map(|option| option.split(','));
    parts
        .filter_map(|part| match part.split_once('=')? {
            ("name", name) => Some(name.to_owned()),
            ("profile", profile) => Some(format!(" Profile: {profile}")),
            _ => None,
        })
        .collect()
}

fn insecure(info: &SystemInfo) -> Vec<String> {
    let registries = &info.registry_config;
    let configs = registries.index_configs.iter();
    configs
        .filter(|(_, config)| !config.secure)
        .map(|(name, _)| name.clone())
        .chain(registries.insecure_registry_cidrs.iter().cloned())
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
            "Plugins": {"Volume": ["local", "keeper"], "Log": null}, "Runtimes": {"runc": {}}, "MemTotal": 1 << 30, "Labels": [],
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=apparmor"],
            "RegistryConfig": {"IndexConfigs": {"docker.io": {"Secure": true}, "h:5000": {"Secure": false}}, "InsecureRegistryCIDRs": ["::1/128"]},
            "DefaultAddressPools": [{"Base": "10.0.0.0/8", "Size": 24}], "FirewallBackend": {"Driver": "nftables", "Info": [["ReloadedAt", "x"]]},
            "NFd": 7, "SystemTime": "t",
        });
        let info = read(info).unwrap();
        let check = |part: fn(&mut String, &SystemInfo), expected: &str| {
            let mut text = String::new();
            part(&mut text, &info);
            let text: Vec<&str> = text.lines().map(str::trim_end).collect();
            assert_eq!(text, expected.lines().collect::<Vec<_>>());
        };
        check(
            server,
            " Containers: 0
  Running: 0
  Paused: 0
  Stopped: 0
 Images: 2
 Storage Driver: overlay2
  Supports d_type: true
 Plugins:
  Volume: local keeper
  Network:
  Log:
 Swarm:
 Runtimes: runc
 Default Runtime:
 Init Binary:
 containerd version:
 runc version:
 init version:
 Security Options:
  seccomp
   Profile: builtin
  apparmor
 CPUs: 0
 Total Memory: 1GiB
 Docker Root Dir:
 Debug Mode: false
",
        );
        check(
            debug,
            "  File Descriptors: 7
  Goroutines: 0
  System Time: t
  EventsListeners: 0
",
        );
        check(
            configuration,
            " Experimental: false
 Insecure Registries:
  h:5000
  ::1/128
 Live Restore Enabled: false
 Default Address Pools:
   Base: 10.0.0.0/8, Size: 24
 Firewall Backend: nftables
  ReloadedAt: x
",
        );
    }
}
