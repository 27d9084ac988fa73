//! The engine and the machine.

use std::collections::BTreeMap;

use whelk_api_types::{
    BuildCache, Commit, ComponentVersion, ContainerSummary, DeviceInfo, DiskUsage, FirewallInfo,
    ImageSummary, IndexInfo, LogUsage, NetworkAddressPool, PluginsInfo, RegistryServiceConfig,
    Runtime, SwarmInfo, SystemCheckMessage, SystemChecked, SystemInfo, SystemVersion,
    SystemVersionPlatform, Volume, VolumeUsageData,
};
use whelk_build::gc::Record;
use whelk_engine::containers;
use whelk_engine::events::now;
use whelk_engine::instance::{ContainerDefaults, LayerForm, Runtimes};
use whelk_engine::model::LogDriver;
use whelk_engine::model::network::NetworkDriverKind;
use whelk_engine::networks::Pool;
use whelk_engine::system::{CdiDevices, Info, RUNTIME_SPEC, VERSION};
use whelk_engine::{Checked, Engine, Problem};
use whelk_registry::{Insecure, Settings};
use whelk_text::build;

use super::{Convert as _, null_if_empty, signed, time};
use crate::NEWEST;

fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).into()
}

/// Returns the versions of the engine's components. All of them are this program. Docker's CLI
/// prints those other than `Engine`.
pub(crate) fn version(info: &Info, oldest: (u32, u32)) -> SystemVersion {
    let api_version = format!("{}.{}", NEWEST.0, NEWEST.1);
    let min_api_version = format!("{}.{}", oldest.0, oldest.1);
    let arch = if info.architecture == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    let component = |name: &str, details: &[(&str, &str)]| ComponentVersion {
        name: name.into(),
        version: VERSION.into(),
        details: details
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let engine = [
        ("ApiVersion", api_version.as_str()),
        ("Arch", arch),
        ("BuildTime", build::TIME),
        ("Experimental", "false"),
        ("GitCommit", build::COMMIT),
        ("GoVersion", ""),
        ("KernelVersion", &info.kernel),
        ("MinAPIVersion", &min_api_version),
        ("Os", "linux"),
    ];
    SystemVersion {
        platform: SystemVersionPlatform {
            name: "Whelk".into(),
        },
        components: vec![
            component("Engine", &engine),
            component(
                "whelk-oci",
                &[("GitCommit", build::COMMIT), ("RuntimeSpec", RUNTIME_SPEC)],
            ),
            component("whelk-init", &[("GitCommit", build::COMMIT)]),
        ],
        version: VERSION.into(),
        git_commit: build::COMMIT.into(),
        go_version: String::new(),
        os: "linux".into(),
        arch: arch.into(),
        kernel_version: info.kernel.clone(),
        experimental: false,
        build_time: build::TIME.into(),
        api_version,
        min_api_version,
    }
}

/// Returns what `info` shows of the storage driver. Layers that are kept as Docker keeps them are not
/// mentioned.
fn driver_status(engine: &Engine, info: &Info) -> Vec<[String; 2]> {
    let mut status = vec![
        [
            "Backing Filesystem".into(),
            info.backing_file_system.to_owned(),
        ],
        ["Supports d_type".into(), "true".into()],
    ];
    if engine.images.store().snapshots.form() == LayerForm::Images {
        status.push(["Layers".into(), "erofs".into()]);
    }
    status
}

pub(crate) fn info(engine: &Engine, info: Info, cdi: CdiDevices) -> SystemInfo {
    let warnings = info
        .problems
        .iter()
        .chain(&info.warnings)
        .map(|problem| format!("WARNING: {problem}"))
        .chain(cdi.errors.iter().map(|(path, error)| {
            let path = path.display();
            format!("CDI: Error associated with spec file {path}: {error}")
        }))
        .collect();
    let settings = engine.instance.live.get();
    let registries = &settings.registries.client;
    SystemInfo {
        containers: info.running + info.paused + info.stopped,
        containers_running: info.running,
        containers_paused: info.paused,
        containers_stopped: info.stopped,
        images: info.images,
        driver: "overlay2".into(),
        driver_status: driver_status(engine, &info),
        plugins: PluginsInfo {
            volume: engine.volumes.drivers(),
            network: strings(NetworkDriverKind::ALL.map(NetworkDriverKind::name)),
            authorization: None,
            log: strings(LogDriver::ALL.map(LogDriver::as_str)),
        },
        memory_limit: info.limits.memory,
        swap_limit: info.has_swap_limit,
        kernel_memory: None,
        cpu_cfs_period: info.limits.cpu_period,
        cpu_cfs_quota: info.limits.cpu_quota,
        cpu_shares: info.limits.cpu_shares,
        cpu_set: info.limits.cpuset,
        pids_limit: info.limits.pids,
        ipv4_forwarding: info.ipv4_forwarding,
        bridge_nf_iptables: None,
        bridge_nf_ip6tables: None,
        debug: settings.debug,
        n_fd: info.open_files,
        oom_kill_disable: info.limits.oom_kill_disable,
        n_goroutines: 0,
        system_time: time(now()),
        logging_driver: engine.instance.default_log.driver.convert(),
        cgroup_driver: "cgroupfs".into(),
        cgroup_version: info.cgroup_version.to_string(),
        n_events_listener: info.event_listeners,
        kernel_version: info.kernel.clone(),
        operating_system: info.operating_system.clone(),
        os_version: info.os_version.clone(),
        os_type: "linux".into(),
        architecture: info.architecture.clone(),
        index_server_address: "https://index.docker.io/v1/".into(),
        registry_config: registry_config(registries),
        http_proxy: without_credentials(&registries.proxies.http),
        https_proxy: without_credentials(&registries.proxies.https),
        no_proxy: registries.proxies.none.clone(),
        n_cpu: info.cpus,
        mem_total: info.memory,
        generic_resources: None,
        docker_root_dir: info.root.clone(),
        name: info.name.clone(),
        labels: settings.labels.clone(),
        experimental_build: false,
        server_version: VERSION.into(),
        runtimes: runtimes(&settings.runtimes),
        default_runtime: settings.runtimes.default.clone(),
        swarm: SwarmInfo {
            local_node_state: "inactive".into(),
            ..SwarmInfo::default()
        },
        live_restore_enabled: true,
        init_binary: "whelk".into(),
        containerd_commit: Commit::default(),
        runc_commit: Commit::default(),
        init_commit: Commit::default(),
        firewall_backend: Some(FirewallInfo {
            driver: "nftables".into(),
            info: Vec::new(),
        }),
        security_options: security_options(&info, &settings.containers),
        product_license: String::new(),
        default_address_pools: engine.instance.networks.pools.iter().map(pool).collect(),
        warnings: null_if_empty(warnings),
        cdi_spec_dirs: engine
            .instance
            .cdi_directories
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect(),
        discovered_devices: cdi.names.into_iter().map(device).collect(),
        id: info.id,
        ..SystemInfo::default()
    }
}

/// Returns the runtimes by name; the engine's own one has the names of Docker's default.
fn runtimes(runtimes: &Runtimes) -> BTreeMap<String, Runtime> {
    let own = ["io.containerd.runc.v2", "runc"].map(|name| {
        let path = "whelk".into();
        let runtime = Runtime {
            path,
            ..Runtime::default()
        };
        (name.to_owned(), runtime)
    });
    let others = runtimes.others.iter().map(|(name, runtime)| {
        let shown = Runtime {
            path: runtime.path.to_string_lossy().into_owned(),
            runtime_args: runtime.args.clone(),
        };
        (name.clone(), shown)
    });
    own.into_iter().chain(others).collect()
}

fn pool(pool: &Pool) -> NetworkAddressPool {
    NetworkAddressPool {
        base: pool.base.to_string(),
        size: pool.size.into(),
    }
}

fn device(id: String) -> DeviceInfo {
    DeviceInfo {
        source: "cdi".into(),
        id,
    }
}

fn security_options(info: &Info, defaults: &ContainerDefaults) -> Vec<String> {
    let profile = match defaults.seccomp.as_str() {
        "" => "builtin",
        "unconfined" => "unconfined",
        _ => "custom",
    };
    let mut options = vec![format!("name=seccomp,profile={profile}")];
    if info.apparmor {
        options.insert(0, "name=apparmor".into());
    }
    if info.cgroup_version != 1 {
        options.push("name=cgroupns".into());
    }
    if defaults.no_new_privileges {
        options.push("name=no-new-privileges".into());
    }
    options
}

fn registry_config(settings: &Settings) -> RegistryServiceConfig {
    const HUB: &str = "docker.io";
    // As Docker shows them.
    let mirrors: Vec<String> = settings
        .mirrors_of(HUB)
        .iter()
        .map(|url| format!("{}/", url.trim_end_matches('/')))
        .collect();
    let index = |name: &str, mirrors: &[String], is_hub: bool| {
        let index = IndexInfo {
            name: name.to_owned(),
            mirrors: mirrors.to_vec(),
            secure: is_hub,
            official: is_hub,
        };
        (name.to_owned(), index)
    };
    let mut networks = strings(["::1/128", "127.0.0.0/8"]);
    let mut indexes = vec![index(HUB, &mirrors, true)];
    for insecure in &settings.insecure {
        match insecure {
            Insecure::Host(host) => indexes.push(index(host, &[], false)),
            Insecure::Network(network) => networks.push(network.to_string()),
        }
    }
    RegistryServiceConfig {
        insecure_registry_cidrs: networks,
        index_configs: indexes.into_iter().collect(),
        mirrors: null_if_empty(mirrors),
        ..RegistryServiceConfig::default()
    }
}

/// Replaces the credentials in a proxy's URL, as Docker does.
fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://xxxxx:xxxxx@{host}"),
        (None, Some((_, host))) => format!("xxxxx:xxxxx@{host}"),
        (_, None) => url.to_owned(),
    }
}

fn count<T>(items: &[T]) -> i64 {
    i64::try_from(items.len()).unwrap_or(i64::MAX)
}

pub(crate) fn check_problem(problem: Problem) -> SystemCheckMessage {
    let (repaired, error) = match problem.repair {
        None => (String::new(), String::new()),
        Some(Ok(done)) => (done, String::new()),
        Some(Err(error)) => (String::new(), error),
    };
    SystemCheckMessage {
        problem: problem.text,
        repaired,
        error,
        checked: None,
    }
}

pub(crate) fn check_result(result: whelk_engine::Result<Checked>) -> SystemCheckMessage {
    match result {
        Err(error) => SystemCheckMessage {
            error: error.to_string(),
            ..SystemCheckMessage::default()
        },
        Ok(checked) => SystemCheckMessage {
            checked: Some(SystemChecked {
                containers: checked.containers,
                images: checked.images,
                layers: checked.layers,
                blobs: checked.blobs,
                bytes: checked.bytes,
                volumes: checked.volumes,
                networks: checked.networks,
                problems: checked.problems,
            }),
            ..SystemCheckMessage::default()
        },
    }
}

/// `total` is the size of all layers in bytes.
pub(crate) fn image_usage(items: Vec<ImageSummary>, total: u64) -> DiskUsage<ImageSummary> {
    let (used, unused): (Vec<_>, Vec<_>) = items.iter().partition(|image| image.containers > 0);
    let own = |image: &&ImageSummary| signed(image.size).saturating_sub(image.shared_size);
    DiskUsage {
        active_count: count(&used),
        reclaimable: unused.iter().map(own).sum(),
        total_count: count(&items),
        total_size: signed(total),
        items,
    }
}

pub(crate) fn container_usage(items: Vec<ContainerSummary>) -> DiskUsage<ContainerSummary> {
    let (used, unused): (Vec<_>, Vec<_>) = items.iter().partition(|container| {
        matches!(
            container.state.as_str(),
            "running" | "paused" | "restarting"
        )
    });
    let size = |containers: &[&ContainerSummary]| {
        let sizes = containers.iter().filter_map(|container| container.size_rw);
        signed(sizes.sum())
    };
    DiskUsage {
        active_count: count(&used),
        reclaimable: size(&unused),
        total_count: count(&items),
        total_size: size(&used) + size(&unused),
        items,
    }
}

pub(crate) fn build_cache_usage(records: Vec<Record>) -> DiskUsage<BuildCache> {
    // What images share is counted there.
    let (mut all, mut unused) = (0, 0);
    for record in records.iter().filter(|record| !record.shared) {
        all += record.size;
        if !record.in_use {
            unused += record.size;
        }
    }
    let used: Vec<_> = records.iter().filter(|record| record.in_use).collect();
    DiskUsage {
        active_count: count(&used),
        reclaimable: signed(unused),
        total_count: count(&records),
        total_size: signed(all),
        items: records.into_iter().map(build_cache).collect(),
    }
}

fn build_cache(record: Record) -> BuildCache {
    BuildCache {
        id: record.id,
        parents: record.parent.into_iter().collect(),
        kind: record.kind.name().into(),
        description: record.description,
        in_use: record.in_use,
        shared: record.shared,
        size: record.size,
        created_at: time(record.created),
        last_used_at: (record.used != 0).then(|| time(record.used)),
        usage_count: record.uses,
    }
}

pub(crate) fn log_usage(usage: Vec<containers::LogUsage>) -> DiskUsage<LogUsage> {
    let running: Vec<_> = usage.iter().filter(|log| log.is_running).collect();
    let total: u64 = usage.iter().map(|log| log.size).sum();
    let active: u64 = running.iter().map(|log| log.size).sum();
    DiskUsage {
        active_count: count(&running),
        reclaimable: signed(total - active),
        total_count: count(&usage),
        total_size: signed(total),
        items: usage
            .into_iter()
            .map(|log| LogUsage {
                id: log.id,
                name: log.name,
                size: signed(log.size),
            })
            .collect(),
    }
}

pub(crate) fn volume_usage(items: Vec<Volume>) -> DiskUsage<Volume> {
    let usage: Vec<_> = items
        .iter()
        .filter_map(|volume| volume.usage_data)
        .collect();
    let (used, unused): (Vec<_>, Vec<_>) = usage
        .iter()
        .copied()
        .partition(|usage: &VolumeUsageData| usage.ref_count > 0);
    let size = |usage: &[VolumeUsageData]| usage.iter().map(|usage| usage.size).sum::<i64>();
    DiskUsage {
        active_count: count(&used),
        reclaimable: size(&unused),
        total_count: count(&items),
        total_size: size(&usage),
        items,
    }
}
