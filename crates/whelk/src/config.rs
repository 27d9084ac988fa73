//! The configuration file: keys of Docker's daemon.json that whelk supports, and keys of whelk's own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};
use whelk_engine::instance::{
    DEFAULT_CDI_DIRECTORIES, ImageGc, Instance, LayerForm, NetworkDefaults, RegistrySettings,
};
use whelk_engine::model::LogDriver;
use whelk_engine::networks::Pool;
use whelk_registry::Proxies;
use whelk_sys::fs;
use whelk_text::{duration, size};
use whelk_trust::{Policy, PolicyFile};

use crate::listen::TlsSettings;

/// The configuration file's content.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct File {
    pub data_root: Option<PathBuf>,
    pub exec_root: Option<PathBuf>,
    pub hosts: Vec<String>,
    pub group: Option<String>,
    pub debug: bool,
    pub instance: Option<String>,
    tls: Option<bool>,
    tlsverify: Option<bool>,
    tlscacert: Option<PathBuf>,
    tlscert: Option<PathBuf>,
    tlskey: Option<PathBuf>,
    #[serde(deserialize_with = "log_driver")]
    log_driver: Option<LogDriver>,
    log_opts: BTreeMap<String, String>,
    /// Whelk's own key.
    firewall: FirewallMode,
    /// Whelk's own key.
    layers: Layers,
    bip: Option<IpNet>,
    bip6: Option<IpNet>,
    fixed_cidr: Option<IpNet>,
    fixed_cidr_v6: Option<IpNet>,
    ipv6: bool,
    default_address_pools: Vec<Pool>,
    default_network_opts: BTreeMap<String, BTreeMap<String, String>>,
    mtu: Option<u32>,
    icc: Option<bool>,
    ip: Option<IpAddr>,
    ip_forward: Option<bool>,
    ip_masq: Option<bool>,
    host_gateway_ip: Option<IpAddr>,
    dns: Vec<IpAddr>,
    dns_search: Vec<String>,
    dns_opts: Vec<String>,
    live_restore: Option<bool>,
    userland_proxy: Option<bool>,
    insecure_registries: Vec<String>,
    /// Mirrors of Docker Hub.
    registry_mirrors: Vec<String>,
    /// Whelk's own key: mirrors by the registries that they are for.
    mirrors: BTreeMap<String, Vec<String>>,
    proxies: ProxySettings,
    max_concurrent_downloads: Option<usize>,
    max_concurrent_uploads: Option<usize>,
    max_download_attempts: Option<u32>,
    cdi_spec_dirs: Option<Vec<PathBuf>>,
    features: BTreeMap<String, bool>,
    /// Whelk's own key: the file with the policy for pulled images.
    signature_policy: Option<PathBuf>,
    /// Whelk's own key: when unused images are removed.
    image_gc: Option<ImageGcSettings>,
    /// Keys that are none of the above, which are rejected.
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// Keys of Docker's daemon.json that whelk does not support.
const UNSUPPORTED: &[&str] = &[
    "allow-direct-routing",
    "allow-nondistributable-artifacts",
    "api-cors-header",
    "authorization-plugins",
    "bridge",
    "bridge-accept-fwmark",
    "builder",
    "cgroup-parent",
    "containerd",
    "containerd-namespace",
    "containerd-plugins-namespace",
    "cri-containerd",
    "default-cgroupns-mode",
    "default-gateway",
    "default-gateway-v6",
    "default-init",
    "default-ipc-mode",
    "default-runtime",
    "default-shm-size",
    "default-stop-timeout",
    "default-ulimits",
    "exec-opts",
    "experimental",
    "firewall-backend",
    "host-gateway-ips",
    "init",
    "init-path",
    "ip-forward-no-drop",
    "ip6tables",
    "iptables",
    "labels",
    "log-format",
    "log-level",
    "metrics-addr",
    "min-api-version",
    "no-new-privileges",
    "node-generic-resources",
    "nri-opts",
    "oom-score-adjust",
    "pidfile",
    "raw-logs",
    "rootless",
    "runtimes",
    "seccomp-profile",
    "selinux-enabled",
    "shutdown-timeout",
    "storage-driver",
    "storage-opts",
    "swarm-default-advertise-addr",
    "userland-proxy-path",
    "userns-remap",
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct ImageGcSettings {
    max_used_space: Option<String>,
    high_threshold: Option<u8>,
    low_threshold: Option<u8>,
    minimum_age: Option<String>,
    interval: Option<String>,
}

impl ImageGcSettings {
    fn settings(&self) -> anyhow::Result<ImageGc> {
        let size = |text: &String| -> anyhow::Result<u64> {
            let bytes = size::parse_binary(text).map_err(|error| anyhow::anyhow!("{error}"));
            Ok(bytes.context("max-used-space")?.try_into()?)
        };
        let time = |key: &'static str, text: &Option<String>, default: Duration| {
            let Some(text) = text else { return Ok(default) };
            let time = duration::parse(text).map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
            let time = u64::try_from(time).context(key)?;
            anyhow::Ok(Duration::from_nanos(time))
        };
        let high = self.high_threshold;
        let gc = ImageGc {
            max_used: self.max_used_space.as_ref().map(size).transpose()?,
            high_threshold: high,
            low_threshold: self
                .low_threshold
                .unwrap_or(high.unwrap_or(0).saturating_sub(5)),
            minimum_age: time("minimum-age", &self.minimum_age, Duration::from_secs(120))?,
            interval: time("interval", &self.interval, Duration::from_secs(300))?,
        };
        if gc.interval < Duration::from_secs(1) {
            bail!("interval: must be at least 1s");
        }
        gc.check().map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(gc)
    }
}

/// The HTTP proxies for connections to registries. Those that are not set are taken from the
/// environment.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct ProxySettings {
    http_proxy: Option<String>,
    https_proxy: Option<String>,
    no_proxy: Option<String>,
}

impl fmt::Debug for ProxySettings {
    /// Leaves out the URLs, which may have credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxySettings")
    }
}

/// How the rules of the host's other firewalls apply to containers' traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FirewallMode {
    /// Other firewalls accept containers' traffic; only the engine's own rules filter it, as with
    /// Docker.
    #[default]
    Own,
    /// Other firewalls filter containers' traffic as well.
    RespectHost,
}

/// How the files of layers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Layers {
    /// EROFS images where the kernel can mount them.
    #[default]
    Auto,
    Directories,
    Erofs,
}

fn log_driver<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<LogDriver>, D::Error> {
    let name = Option::<String>::deserialize(from)?.filter(|name| !name.is_empty());
    let driver = name.map(|name| name.parse()).transpose();
    driver.map_err(|error: whelk_engine::Error| serde::de::Error::custom(error))
}

const MAX_FILE_SIZE: u64 = 1 << 20;

/// The keys that say which instance the file is for.
const PLACE: [&str; 3] = ["data-root", "exec-root", "instance"];

/// Which keys of a file are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    All,
    /// [`PLACE`] only: to uninstall an instance, its other settings need not be valid.
    Place,
}

/// Reads the given configuration file, or the default one, which need not exist.
pub(crate) fn read(path: Option<&Path>, keys: Keys) -> anyhow::Result<File> {
    let default = Path::new("/etc/whelk/daemon.json");
    let content = match fs::read_at_most(path.unwrap_or(default), MAX_FILE_SIZE) {
        Err(error) if error.is_not_found() && path.is_none() => return Ok(File::default()),
        content => content?,
    };
    parse(&content, keys)
        .with_context(|| format!("configuration file {}", path.unwrap_or(default).display()))
}

fn parse(content: &[u8], keys: Keys) -> anyhow::Result<File> {
    if content.trim_ascii().is_empty() {
        return Ok(File::default());
    }
    // Serde would also accept an array, by position.
    if !content.trim_ascii().starts_with(b"{") {
        bail!("expected a JSON object");
    }
    if keys == Keys::Place {
        let mut members: Map<String, Value> = serde_json::from_slice(content)?;
        members.retain(|key, _| PLACE.contains(&key.as_str()));
        return from_members(members);
    }
    let file: File = match serde_json::from_slice(content) {
        Ok(file) => file,
        Err(error) => {
            // The error does not name the key.
            if let Ok(members) = serde_json::from_slice(content) {
                from_members(members)?;
            }
            return Err(error.into());
        }
    };
    if !file.unknown.is_empty() {
        let (unsupported, unknown): (Vec<&str>, Vec<&str>) = file
            .unknown
            .keys()
            .map(String::as_str)
            .partition(|key| UNSUPPORTED.contains(key));
        let mut problems = Vec::new();
        if !unsupported.is_empty() {
            problems.push(format!(
                "keys that whelk does not support: {}",
                unsupported.join(", ")
            ));
        }
        if !unknown.is_empty() {
            problems.push(format!("unknown keys: {}", unknown.join(", ")));
        }
        bail!("{}", problems.join("; "));
    }
    if file.userland_proxy == Some(true) {
        bail!("userland-proxy: not supported; ports are published by the kernel only");
    }
    if file.live_restore == Some(false) {
        bail!(
            "live-restore: cannot be disabled; containers always keep running when the engine stops"
        );
    }
    if let Some(feature) = file.features.keys().find(|feature| *feature != "cdi") {
        bail!("features: whelk has no feature {feature:?}");
    }
    if let Some(driver) = file
        .default_network_opts
        .keys()
        .find(|driver| !matches!(driver.as_str(), "bridge" | "macvlan" | "ipvlan"))
    {
        bail!("default-network-opts: unknown network driver {driver}");
    }
    file.networks()
        .check()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    file.registries()?;
    file.image_gc()?;
    Ok(file)
}

/// Returns the settings of a JSON object.
///
/// # Errors
/// Returns an error that names the first key whose value is invalid.
fn from_members(members: Map<String, Value>) -> anyhow::Result<File> {
    for (key, value) in &members {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        let valid = serde_json::from_value::<File>(alone.into());
        valid.map_err(|error| match value {
            Value::String(text) => anyhow::anyhow!("{key}: {text:?}: {error}"),
            // A list or object may contain a password.
            _ => anyhow::anyhow!("{key}: {error}"),
        })?;
    }
    Ok(serde_json::from_value(members.into())?)
}

impl File {
    /// Applies the file's settings to the instance.
    ///
    /// # Errors
    /// Returns an error if a setting for registries is invalid.
    pub(crate) fn apply(self, instance: &mut Instance) -> anyhow::Result<()> {
        instance.networks = self.networks();
        instance.registries = self.registries()?;
        instance.image_gc = self.image_gc()?;
        instance.respect_host_firewall = self.firewall == FirewallMode::RespectHost;
        instance.layers = match self.layers {
            Layers::Auto => None,
            Layers::Directories => Some(LayerForm::Directories),
            Layers::Erofs => Some(LayerForm::Images),
        };
        instance.cdi_directories = self.cdi_directories();
        instance.default_log.options = self.log_opts;
        if self.log_driver.is_some() {
            instance.default_log.driver = self.log_driver;
        }
        Ok(())
    }

    pub(crate) fn tls(&self) -> TlsSettings {
        TlsSettings {
            tls: self.tls,
            tlsverify: self.tlsverify,
            tlscacert: self.tlscacert.clone(),
            tlscert: self.tlscert.clone(),
            tlskey: self.tlskey.clone(),
        }
    }

    fn registries(&self) -> anyhow::Result<RegistrySettings> {
        let mut settings = RegistrySettings::default();
        let client = &mut settings.client;
        let invalid = |key: &str| {
            let key = key.to_owned();
            move |error: String| anyhow::anyhow!("{key}: {error}")
        };
        for text in &self.insecure_registries {
            let insecure = text.parse().map_err(invalid("insecure-registries"))?;
            client.insecure.push(insecure);
        }
        if !self.registry_mirrors.is_empty() {
            let hub = "docker.io".parse().map_err(invalid("registry-mirrors"))?;
            client.mirrors.push((hub, self.registry_mirrors.clone()));
        }
        // The longest pattern comes first, because the first one that matches is used.
        let mut patterns: Vec<_> = self.mirrors.iter().collect();
        patterns
            .sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.trim_start_matches('*').len()));
        for (pattern, urls) in patterns {
            let parsed = pattern.parse().map_err(invalid("mirrors"))?;
            client.mirrors.push((parsed, urls.clone()));
        }
        let environment = Proxies::from_environment(|name| std::env::var(name).ok());
        let proxies = &self.proxies;
        client.proxies = Proxies {
            http: proxies.http_proxy.clone().unwrap_or(environment.http),
            https: proxies.https_proxy.clone().unwrap_or(environment.https),
            none: proxies.no_proxy.clone().unwrap_or(environment.none),
        };
        client.check().map_err(|error| anyhow::anyhow!("{error}"))?;
        if let Some(attempts) = self.max_download_attempts {
            if attempts == 0 {
                bail!("max-download-attempts: must be at least 1");
            }
            client.attempts = attempts;
        }
        if let Some(downloads) = self.max_concurrent_downloads {
            if downloads == 0 {
                bail!("max-concurrent-downloads: must be at least 1");
            }
            settings.downloads = downloads;
        }
        if let Some(uploads) = self.max_concurrent_uploads {
            if uploads == 0 {
                bail!("max-concurrent-uploads: must be at least 1");
            }
            settings.uploads = uploads;
        }
        if let Some(path) = &self.signature_policy {
            settings.policy = Some(signature_policy(path).context("signature-policy")?);
        }
        Ok(settings)
    }

    /// Returns the directories of CDI specifications; none if the feature is off, or if the only
    /// directory has no name.
    fn cdi_directories(&self) -> Vec<PathBuf> {
        if self.features.get("cdi") == Some(&false) {
            return Vec::new();
        }
        match self.cdi_spec_dirs.as_deref().unwrap_or_default() {
            [] => DEFAULT_CDI_DIRECTORIES.map(PathBuf::from).into(),
            [only] if only.as_os_str().is_empty() => Vec::new(),
            given => given.to_vec(),
        }
    }

    fn image_gc(&self) -> anyhow::Result<Option<ImageGc>> {
        let settings = self.image_gc.as_ref().map(ImageGcSettings::settings);
        settings.transpose().context("image-gc")
    }

    fn networks(&self) -> NetworkDefaults {
        NetworkDefaults {
            bridge_addresses: [self.bip, self.bip6].into_iter().flatten().collect(),
            ranges: [self.fixed_cidr, self.fixed_cidr_v6]
                .into_iter()
                .flatten()
                .collect(),
            ipv6: self.ipv6,
            pools: self.default_address_pools.clone(),
            options: self.default_network_opts.clone(),
            mtu: self.mtu,
            icc: self.icc.unwrap_or(true),
            masquerade: self.ip_masq.unwrap_or(true),
            forward: self.ip_forward.unwrap_or(true),
            binding: self.ip,
            host_gateway: self.host_gateway_ip,
            servers: self.dns.clone(),
            search: self.dns_search.clone(),
            resolver_options: self.dns_opts.clone(),
        }
    }
}

/// Reads a signature policy and the keys that it names.
fn signature_policy(path: &Path) -> anyhow::Result<Policy> {
    let mut file = PolicyFile::parse(&fs::read(path)?)?;
    file.embed_keys(|key| fs::read(key).map_err(|error| error.source))?;
    Ok(file.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(content: &str, text: &str) {
        let error = format!("{:#}", parse(content.as_bytes(), Keys::All).unwrap_err());
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn accepts_dockers_keys() {
        let content = r#"{"bip": "10.1.2.1/24", "fixed-cidr": "10.1.2.128/25", "mtu": 1400, "icc": false, "dns": ["10.0.0.2"],
            "default-address-pools": [{"base": "10.200.0.0/16", "size": 26}], "live-restore": true, "userland-proxy": false,
            "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1400"}}}"#;
        let networks = parse(content.as_bytes(), Keys::All).unwrap().networks();
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
    fn rejects_unsupported_keys_and_values() {
        assert!(parse(b" \n", Keys::All).is_ok());
        refused("[]", "expected a JSON object");
        refused(
            r#"{"nosuch": [], "debug": true, "builder": {}, "other": 1, "storage-driver": "overlay2"}"#,
            "keys that whelk does not support: builder, storage-driver; unknown keys: nosuch, other",
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
            r#"{"max-concurrent-downloads": 0}"#,
            "max-concurrent-downloads",
        );
        refused(
            r#"{"max-concurrent-uploads": 0}"#,
            "max-concurrent-uploads: must be at least 1",
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
        refused(r#"{"max-download-attempts": 0}"#, "max-download-attempts");
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
        refused(r#"{"mtu": "x", "debug": true}"#, "mtu: ");
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
        refused(
            r#"{"features": {"cdi": true, "x": true}}"#,
            "features: whelk has no feature \"x\"",
        );
    }

    #[test]
    fn directories_of_cdi_specifications_can_be_disabled() {
        let check = |content: &str, expected: &[&str]| {
            let file = parse(content.as_bytes(), Keys::All).unwrap();
            let found = file.cdi_directories();
            assert!(
                found
                    .iter()
                    .map(PathBuf::as_path)
                    .eq(expected.iter().map(Path::new)),
                "{content}"
            );
        };
        check("{}", &["/etc/cdi", "/var/run/cdi"]);
        check(
            r#"{"features": {"cdi": true}, "cdi-spec-dirs": []}"#,
            &["/etc/cdi", "/var/run/cdi"],
        );
        check(r#"{"cdi-spec-dirs": ["/a"]}"#, &["/a"]);
        check(r#"{"cdi-spec-dirs": [""]}"#, &[]);
        check(
            r#"{"features": {"cdi": false}, "cdi-spec-dirs": ["/a"]}"#,
            &[],
        );
    }

    #[test]
    fn reads_the_instance_of_a_file_with_invalid_settings() {
        let content = br#"{"instance": "i", "data-root": "/r", "bip": "x", "unknown": 1}"#;
        let file = parse(content, Keys::Place).unwrap();
        assert_eq!(file.instance.as_deref(), Some("i"));
        assert_eq!(file.data_root.as_deref(), Some(Path::new("/r")));
        for (content, text) in [
            (
                r#"{"instance": 1}"#,
                "invalid type: integer `1`, expected a string",
            ),
            (r#"{"instance": "i""#, "EOF while parsing an object"),
        ] {
            let error = parse(content.as_bytes(), Keys::Place).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
