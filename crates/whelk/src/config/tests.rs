use clap::Command;
use whelk_engine::instance::{Instance, LiveSettings};
use whelk_engine::model::{CgroupnsMode, IpcMode};
use whelk_engine::networks::Pool;
use whelk_sys::Scratch;

use super::*;

fn read(content: &str) -> anyhow::Result<File> {
    parse(members(content.as_bytes())?, Path::new("/nonexistent"))
}

fn live(content: &str) -> LiveSettings {
    read(content).and_then(|file| file.live()).unwrap()
}

fn networks(content: &str) -> whelk_engine::instance::NetworkDefaults {
    let mut instance = Instance::new("/r".into(), "/x".into(), "test".into()).unwrap();
    read(content).unwrap().apply(&mut instance).unwrap();
    instance.networks
}

#[track_caller]
fn refused(content: &str, text: &str) {
    let error = format!("{:#}", read(content).unwrap_err());
    assert!(error.contains(text), "{content}: {error}");
}

#[test]
fn accepts_dockers_keys() {
    let content = r#"{"bip": "10.1.2.1/24", "fixed-cidr": "10.1.2.128/25", "mtu": 1400, "icc": false, "dns": ["10.0.0.2"],
        "default-address-pools": [{"base": "10.200.0.0/16", "size": 26}], "live-restore": true, "userland-proxy": false,
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1400"}}}"#;
    let networks = networks(content);
    assert_eq!(networks.bridge_addresses, ["10.1.2.1/24".parse().unwrap()]);
    assert_eq!(
        networks.pools,
        [Pool {
            base: "10.200.0.0/16".parse().unwrap(),
            size: 26
        }]
    );
    assert!(!networks.icc && networks.masquerade && networks.forward);
}

#[test]
fn keys_within_objects_have_any_case_as_in_go() {
    let gc = r#"{"builder": {"GC": {"Enabled": false}}}"#;
    assert!(!read(gc).unwrap().build_gc().unwrap().is_collected);
    refused(r#"{"Builder": {"gc": {}}}"#, "Builder");
    refused(r#"{"builder": {"gc": {}, "GC": {}}}"#, "GC");
}

#[test]
fn rejects_unsupported_keys_and_values() {
    assert!(read(" \n").is_ok());
    refused("[]", "expected a JSON object");
    refused(
        r#"{"nosuch": [], "debug": true, "bridge": "br0", "other": 1, "storage-driver": "zfs"}"#,
        "storage-driver: \"zfs\" is not supported: layers are mounted with overlayfs; bridge is not supported: the default network is the engine's own; the following directives don't match any configuration option: nosuch, other",
    );
    refused(
        r#"{"insecure-registries": ["http://x"]}"#,
        "insecure-registries: ",
    );
    refused(
        r#"{"registry-mirrors": ["mirror"]}"#,
        "want http:// or https://",
    );
    refused(
        r#"{"mirrors": {"a/b": []}}"#,
        "mirrors: invalid registry \"a/b\"",
    );
    refused(
        r#"{"max-concurrent-downloads": -1}"#,
        "invalid max concurrent downloads: -1",
    );
    refused(
        r#"{"max-concurrent-uploads": -1}"#,
        "invalid max concurrent uploads: -1",
    );
    refused(
        r#"{"image-gc": {}}"#,
        "image-gc: max-used-space or high-threshold is required",
    );
    refused(
        r#"{"image-gc": {"max-used-space": "much"}}"#,
        "image-gc: max-used-space: ",
    );
    refused(
        r#"{"image-gc": {"high-threshold": 101}}"#,
        "high-threshold: want 1 to 100",
    );
    refused(
        r#"{"image-gc": {"high-threshold": 80, "low-threshold": 80}}"#,
        "low-threshold: must be below",
    );
    refused(
        r#"{"image-gc": {"high-threshold": 80, "interval": "1ms"}}"#,
        "interval: must be at least 1s",
    );
    refused(r#"{"image-gc": {"max-age": "1h"}}"#, "max-age");
    refused(
        r#"{"max-download-attempts": -1}"#,
        "invalid max download attempts: -1",
    );
    refused(r#"{"proxies": {"ftp-proxy": "x"}}"#, "ftp-proxy");
    refused(
        r#"{"proxies": {"https-proxy": "socks5://proxy"}}"#,
        "proxy for https:// URLs \"socks5://proxy\": want http://",
    );
    refused(r#"{"userland-proxy": true}"#, "userland-proxy");
    refused(r#"{"live-restore": false}"#, "live-restore");
    refused(r#"{"bip": "10.1.2.0/24"}"#, "bip 10.1.2.0/24");
    refused(r#"{"bip": }"#, "line 1");
    refused(
        r#"{"debug": true, "bip": "10.99.0.1/33"}"#,
        "bip: \"10.99.0.1/33\": invalid IP",
    );
    refused(
        r#"{"mtu": "x", "debug": true}"#,
        "mtu: \"x\": invalid type: string \"x\", expected a whole number",
    );
    refused(
        r#"{"dns": ["10.0.0.2", "x"]}"#,
        "dns: [\"10.0.0.2\",\"x\"]: ",
    );
    refused(r#"{"firewall": "none"}"#, "firewall: ");
    refused(r#"{"layers": "image"}"#, "layers: ");
    refused(r#"{"log-driver": "awslogs"}"#, "log-driver: ");
    refused(
        r#"{"bip": "10.1.2.1/24", "fixed-cidr": "10.9.0.0/24"}"#,
        "fixed-cidr 10.9.0.0/24",
    );
    refused(
        r#"{"default-address-pools": [{"base": "10.0.0.0/16", "size": 12}]}"#,
        "10.0.0.0/16",
    );
    refused(r#"{"default-network-opts": {"nosuch": {}}}"#, "nosuch");
    refused(r#"{"mtu": 10}"#, "mtu 10");
}

/// The texts are Docker's.
#[test]
fn values_are_checked_as_docker_checks_them() {
    for (content, text) in [
        (r#"{"log-level": "loud"}"#, "invalid logging level: loud"),
        (r#"{"log-format": "xml"}"#, "invalid log format: xml"),
        (r#"{"labels": ["a"]}"#, "bad attribute format: a"),
        (
            r#"{"labels": ["a=1", "a=2"]}"#,
            "conflict labels for a=2 and a=1",
        ),
        (
            r#"{"default-ipc-mode": "host"}"#,
            "IPC mode \"host\" is not supported as default value; use \"shareable\" or \"private\"",
        ),
        (
            r#"{"default-ipc-mode": "x"}"#,
            "default IPC mode setting (x) is invalid; use \"shareable\" or \"private\"",
        ),
        (
            r#"{"default-cgroupns-mode": "x"}"#,
            "invalid default cgroup namespace (x): use \"host\" or \"private\"",
        ),
        (
            r#"{"exec-opts": ["a=b"]}"#,
            "invalid exec-opt (a=b): unknown option: 'a'",
        ),
        (
            r#"{"exec-opts": ["a"]}"#,
            "invalid exec-opt (a): must be formatted 'opt=value'",
        ),
        (
            r#"{"default-shm-size": "x"}"#,
            "default-shm-size: \"x\": invalid size: 'x'",
        ),
        (
            r#"{"host-gateway-ips": ["10.0.0.1", "10.0.0.2"]}"#,
            "only one IPv4 host gateway IP address can be specified",
        ),
        (
            r#"{"host-gateway-ips": ["10.0.0.1"], "host-gateway-ip": "10.0.0.2"}"#,
            "host-gateway-ip and host-gateway-ips must not both be specified in the config file",
        ),
        // These are not checked by Docker.
        (
            r#"{"exec-opts": ["native.cgroupdriver=systemd"]}"#,
            "native.cgroupdriver=systemd): not supported",
        ),
        (
            r#"{"default-ulimits": {"files": {"Name": "files", "Hard": 1, "Soft": 1}}}"#,
            "default-ulimits: invalid ulimit type: files",
        ),
        (
            r#"{"default-ulimits": {"core": {"Name": "cpu", "Hard": 1, "Soft": 1}}}"#,
            "default-ulimits: core: has the name \"cpu\"",
        ),
        (
            r#"{"features": {"containerd-snapshotter": true}}"#,
            "features: containerd-snapshotter: true is not supported",
        ),
        (
            r#"{"seccomp-profile": "none.json"}"#,
            "/nonexistent/none.json",
        ),
    ] {
        refused(content, text);
    }
}

#[test]
fn settings_of_containers_and_the_engine_are_read() {
    let settings = live(
        r#"{"default-shm-size": "128M", "default-ipc-mode": "shareable", "default-cgroupns-mode": "private",
        "cgroup-parent": "/x", "init": true, "no-new-privileges": true, "seccomp-profile": "unconfined",
        "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 1024}, "core": {"hard": 0, "soft": 0}},
        "exec-opts": ["native.cgroupdriver=cgroupfs"], "labels": ["a=b"], "shutdown-timeout": 30,
        "features": {"buildkit": true, "containerd-snapshotter": false}, "max-concurrent-downloads": 7}"#,
    );
    let containers = settings.containers;
    assert_eq!(containers.shm_size, 128 << 20);
    assert_eq!(containers.ipc_mode, IpcMode::Shareable);
    assert_eq!(containers.cgroupns_mode, CgroupnsMode::Private);
    assert_eq!(containers.cgroup_parent, "/x");
    assert!(containers.init && containers.no_new_privileges);
    assert_eq!(containers.seccomp, "unconfined");
    let limits = containers.ulimits.iter();
    let limits: Vec<_> = limits
        .map(|limit| (limit.name.as_str(), limit.soft, limit.hard))
        .collect();
    assert_eq!(limits, [("core", 0, 0), ("nofile", 1024, 64000)]);
    assert_eq!(settings.labels, ["a=b"]);
    assert_eq!(settings.shutdown_timeout, 30);
    assert_eq!(settings.registries.downloads, 7);
    // 0 stands for the default.
    let settings = live(r#"{"max-concurrent-downloads": 0, "default-shm-size": "0", "mtu": 0}"#);
    assert_eq!(settings.registries.downloads, 3);
    assert_eq!(settings.containers.shm_size, 64 << 20);
    let networks = networks(r#"{"host-gateway-ips": ["10.0.0.1", "fd00::1"]}"#);
    assert_eq!(networks.host_gateway.len(), 2);
}

#[test]
fn keys_that_describe_what_the_engine_does_are_accepted() {
    let content = r#"{"storage-driver": "overlay2", "storage-opts": [], "live-restore": true, "iptables": true,
        "ip6tables": true, "selinux-enabled": false, "experimental": false, "raw-logs": true, "rootless": false,
        "firewall-backend": "nftables", "userland-proxy": false, "authorization-plugins": [], "runtimes": {},
        "bridge": "", "debug": null}"#;
    assert!(read(content).is_ok());
    // A byte order mark.
    assert!(read(&format!("\u{feff}{content}")).is_ok());
    for (content, text) in [
        (
            r#"{"iptables": false}"#,
            "iptables: false is not supported: ",
        ),
        (r#"{"selinux-enabled": true}"#, "selinux-enabled: true"),
        (r#"{"rootless": "yes"}"#, "rootless: \"yes\""),
        (
            r#"{"authorization-plugins": ["x"]}"#,
            "authorization-plugins is",
        ),
        (r#"{"metrics-addr": "127.0.0.1:1"}"#, "metrics-addr is"),
        (r#"{"userns-remap": "default"}"#, "userns-remap is"),
    ] {
        refused(content, text);
    }
}

#[test]
fn runtimes_are_programs() {
    let read = |content: &str| read(content).unwrap().live().unwrap().runtimes;
    // As NVIDIA's toolkit writes it.
    let runtimes = read(
        r#"{"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}, "default-runtime": "nvidia"}"#,
    );
    assert_eq!(runtimes.default, "nvidia");
    assert_eq!(
        runtimes.others["nvidia"].path,
        Path::new("nvidia-container-runtime")
    );
    assert_eq!(read(r#"{"default-runtime": ""}"#).default, "runc");
    for (content, text) in [
        (
            r#"{"runtimes": {"runc": {"path": "/x"}}}"#,
            "runtimes: runtime name 'runc' is reserved",
        ),
        (r#"{"runtimes": {"a": {}}}"#, "runtimes: runtime a: no path"),
        (
            r#"{"runtimes": {"a": {"path": "b/c"}}}"#,
            "runtimes: runtime a: path b/c: want an absolute path or the name of a program",
        ),
        (
            r#"{"runtimes": {"a": {"path": "/x", "args": ["y"]}}}"#,
            "runtimes: a: args is not supported: use runtimeArgs",
        ),
        (
            r#"{"runtimes": {"a": {"runtimeType": "io.containerd.runsc.v1"}}}"#,
            "runtimes: a: runtimeType and options are not supported",
        ),
        (r#"{"runtimes": {"a": {"nosuch": 1}}}"#, "nosuch"),
        (
            r#"{"default-runtime": "gone"}"#,
            "specified default runtime 'gone' does not exist",
        ),
    ] {
        refused(content, text);
    }
}

fn source(content: &str, words: &[&str]) -> (Scratch, Source) {
    let scratch = Scratch::temporary("settings").unwrap();
    let file = scratch.path().join("daemon.json");
    fs::replace(&file, content, 0o600).unwrap();
    let command = define(Command::new("daemon"));
    let matches = command.get_matches_from([&["daemon"], words].concat());
    let source = Source::new(Some(&file), Given::read(&matches).unwrap()).unwrap();
    (scratch, source)
}

#[test]
fn flags_and_file_are_merged() {
    let (_scratch, flags) = source(r#"{"labels": ["a=b"]}"#, &["--debug", "--run=/x"]);
    let settings = flags.read().unwrap();
    assert!(settings.file.debug);
    assert_eq!(settings.file.exec_root.as_deref(), Some(Path::new("/x")));
    let (scratch, both) = source(r#"{"bip": "10.1.2.1/24"}"#, &["--bip=10.1.3.1/24"]);
    let error = format!("{:#}", both.read().unwrap_err());
    let file = scratch.path().join("daemon.json");
    assert_eq!(
        error,
        format!(
            "configuration file {}: the following directives are specified both as a flag and in the configuration file: bip: (from flag: 10.1.3.1/24, from file: 10.1.2.1/24)",
            file.display()
        )
    );
    // Keys that contradict each other.
    let (_scratch, contradiction) =
        source(r#"{"bip": "10.1.2.1/24"}"#, &["--fixed-cidr=10.9.0.0/24"]);
    assert!(contradiction.read().is_err());
}

#[test]
fn changes_that_need_a_restart_are_found() {
    let (_scratch, old) = source(
        r#"{"mtu": 1400, "labels": ["a=b"], "storage-driver": "overlay2", "runtimes": {}}"#,
        &["--icc=false"],
    );
    let (_scratch, new) = source(r#"{"bip": "10.1.2.1/24", "debug": true}"#, &["--icc=false"]);
    let (old, new) = (old.read().unwrap(), new.read().unwrap());
    assert_eq!(old.changed_keys(&new), ["bip", "mtu"]);
    assert!(old.changed_keys(&old).is_empty());
}

#[test]
fn errors_show_no_secrets() {
    let url = "http://user:secret, expected @proxy";
    for (content, expected) in [
        (
            format!(r#"{{"proxies": "{url}"}}"#),
            "proxies: expected an object",
        ),
        (
            format!(r#"{{"proxies": {{"http-proxy": ["{url}"]}}}}"#),
            "proxies: expected a string",
        ),
        (
            format!(r#"{{"registry-mirrors": "{url}"}}"#),
            "registry-mirrors: expected a sequence",
        ),
        (
            format!(r#"{{"mirrors": {{"docker.io": "{url}"}}}}"#),
            "mirrors: expected a sequence",
        ),
        (
            r#"{"log-opts": ["token=secret"]}"#.to_owned(),
            "log-opts: expected a map",
        ),
        (
            r#"{"log-opts": "secret"}"#.to_owned(),
            "log-opts: expected a map",
        ),
        (
            format!(r#"{{"mtu": "{url}"}}"#),
            "mtu: expected a whole number",
        ),
    ] {
        let error = format!("{:#}", read(&content).unwrap_err());
        assert!(
            error.contains(expected) && !error.contains("secret"),
            "{content}: {error}"
        );
    }
}

#[test]
fn reads_the_instance_of_a_file_with_invalid_settings() {
    let content = r#"{"instance": "i", "data-root": "/r", "bip": "x", "unknown": 1}"#;
    let (_scratch, found) = source(content, &["--root=/other", "--debug"]);
    let file = found.read_place().unwrap();
    assert_eq!(file.instance.as_deref(), Some("i"));
    assert_eq!(file.data_root.as_deref(), Some(Path::new("/other")));
    for (content, text) in [
        (
            r#"{"instance": 1}"#,
            "invalid type: integer `1`, expected a string",
        ),
        (r#"{"instance": "i""#, "EOF while parsing an object"),
    ] {
        let (_scratch, wrong) = source(content, &[]);
        let error = format!("{:#}", wrong.read_place().unwrap_err());
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn directories_of_cdi_specifications_can_be_disabled() {
    let check = |content: &str, expected: &[&str]| {
        let found = read(content).unwrap().cdi_directories();
        let found = found.iter().map(PathBuf::as_path);
        assert!(found.eq(expected.iter().map(Path::new)), "{content}");
    };
    check("{}", &["/etc/cdi", "/var/run/cdi"]);
    check(
        r#"{"features": {"cdi": true}}"#,
        &["/etc/cdi", "/var/run/cdi"],
    );
    check(r#"{"features": {"cdi": true}, "cdi-spec-dirs": []}"#, &[]);
    check(r#"{"cdi-spec-dirs": ["/a"]}"#, &["/a"]);
    check(r#"{"cdi-spec-dirs": [""]}"#, &[]);
    check(
        r#"{"features": {"cdi": false}, "cdi-spec-dirs": ["/a"]}"#,
        &[],
    );
}

#[test]
fn each_key_of_dockers_that_is_not_supported_is_refused_by_name() {
    let keys: Vec<&str> = refused::keys().collect();
    assert!(keys.len() > 25, "{keys:?}");
    for key in keys {
        for value in ["\"x\"", "true", "7", "[\"x\"]", "{\"x\": {}}"] {
            refused(
                &format!("{{\"{key}\": {value}}}"),
                &format!("{key} is not supported: "),
            );
        }
        for empty in ["\"\"", "0", "[]", "{}", "null"] {
            let read = read(&format!("{{\"{key}\": {empty}}}"));
            assert!(read.is_ok(), "{key}: {empty}: {read:?}");
        }
    }
    for (flag, key) in refused::flags() {
        let flag = format!("--{flag}=x");
        let matches = define(Command::new("daemon")).get_matches_from(["daemon", &flag]);
        let error = format!("{:#}", Given::read(&matches).unwrap_err());
        assert!(
            error.contains(&format!("{key} is not supported: ")),
            "{flag}: {error}"
        );
    }
}
