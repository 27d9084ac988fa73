//! The keys that whelk supports: those of Docker's daemon.json, and its own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use whelk_api::{NEWEST, OLDEST};
use whelk_build::{AllowedEntitlements, GcSettings};
use whelk_engine::instance::{
    DEFAULT_CDI_DIRECTORIES, ImageGc, Instance, LayerForm, LiveSettings, NetworkDefaults,
    RegistrySettings, Runtimes,
};
use whelk_engine::model::LogDriver;
use whelk_engine::networks::Pool;
use whelk_registry::Proxies;
use whelk_sys::fs;
use whelk_trust::{Policy, PolicyFile};

use super::builder::BuilderSettings;
use super::containers::ContainerSettings;
use super::image_gc::ImageGcSettings;
use super::refused;
use super::runtimes::{self, RuntimeSettings};
use crate::listen::TlsSettings;

/// The configuration file's content.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct File {
    pub data_root: Option<PathBuf>,
    pub exec_root: Option<PathBuf>,
    pub hosts: Vec<String>,
    /// Whelk's own key: where BuildKit's protocol is served without the API.
    pub buildkit_hosts: Vec<String>,
    pub group: Option<String>,
    pub pidfile: Option<PathBuf>,
    pub debug: bool,
    pub log_level: Option<LogLevel>,
    pub log_format: LogFormat,
    labels: Vec<String>,
    #[serde(deserialize_with = "features")]
    features: BTreeMap<String, bool>,
    shutdown_timeout: Option<i64>,
    #[serde(flatten)]
    containers: ContainerSettings,
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
    host_gateway_ips: Vec<IpAddr>,
    dns: Vec<IpAddr>,
    dns_search: Vec<String>,
    dns_opts: Vec<String>,
    insecure_registries: Vec<String>,
    /// Mirrors of Docker Hub.
    registry_mirrors: Vec<String>,
    /// Whelk's own key: mirrors by the registries that they are for.
    mirrors: BTreeMap<String, Vec<String>>,
    proxies: ProxySettings,
    // 0 stands for the default, as with Docker.
    max_concurrent_downloads: i64,
    max_concurrent_uploads: i64,
    max_download_attempts: i64,
    cdi_spec_dirs: Option<Vec<PathBuf>>,
    runtimes: BTreeMap<String, RuntimeSettings>,
    default_runtime: Option<String>,
    /// Whelk's own key: the file with the policy for pulled images.
    signature_policy: Option<PathBuf>,
    /// Whelk's own key: when unused images are removed.
    image_gc: Option<ImageGcSettings>,
    builder: Option<BuilderSettings>,
    min_api_version: Option<String>,
    /// 0 for the one that it was started with, as with Docker.
    pub oom_score_adjust: i64,
    /// Keys that are none of the above, which are rejected.
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, Value>,
}

/// The least severe messages that the engine logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLevel(pub &'static str);

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Ok(Self(match text.to_lowercase().as_str() {
            "trace" => "trace",
            "debug" => "debug",
            "" | "info" => "info",
            "warn" => "warn",
            // There are no messages above errors: the engine's last words are always printed.
            "error" | "fatal" | "panic" => "error",
            _ => return Err(D::Error::custom(format!("invalid logging level: {text}"))),
        }))
    }
}

/// The format of the engine's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    /// An object per line, with the names that Docker uses.
    Json,
}

impl<'de> Deserialize<'de> for LogFormat {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(D::Error::custom(format!("invalid log format: {other}"))),
        }
    }
}

/// Features of Docker, with the values that describe what whelk does in any case.
fn features<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, bool>, D::Error> {
    let features = BTreeMap::<String, bool>::deserialize(from)?;
    for (name, on) in &features {
        match (name.as_str(), on) {
            ("buildkit" | "cdi", _) => {}
            ("containerd-snapshotter" | "containerd-migration" | "windows-dns-proxy", false) => {}
            _ => {
                return Err(D::Error::custom(format!("{name}: {on} is not supported")));
            }
        }
    }
    Ok(features)
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

fn log_driver<'de, D: Deserializer<'de>>(from: D) -> Result<Option<LogDriver>, D::Error> {
    let name = Option::<String>::deserialize(from)?.filter(|name| !name.is_empty());
    let driver = name.map(|name| name.parse()).transpose();
    driver.map_err(|error: whelk_engine::Error| D::Error::custom(error))
}

/// Checks the value of a key, which may be a member of another one (`proxies.http-proxy`).
///
/// # Errors
/// Returns an error that does not name the key.
pub(super) fn check_member(key: &str, value: &Value) -> anyhow::Result<()> {
    let (key, value) = match key.split_once('.') {
        Some((object, key)) => (object, json!({key: value})),
        None => (key, value.clone()),
    };
    let mut alone = Map::from_iter([(key.to_owned(), value)]);
    refused::check(&mut alone)?;
    let error = serde_json::from_value::<File>(alone.into()).err();
    let Some(error) = error.map(|error| error.to_string()) else {
        return Ok(());
    };
    // Names of Rust's types say nothing to those who write the file.
    let mut text = ["usize", "u64", "u32", "u16", "u8", "i64"]
        .iter()
        .fold(error, |text, name| {
            text.replace(&format!("expected {name}"), "expected a whole number")
        });
    if let Some(at) = text.find("expected struct ") {
        text.replace_range(at.., "expected an object");
    }
    if may_be_secret(key, &text) {
        text = without_value(&text);
    }
    Err(anyhow::anyhow!(text))
}

/// Returns whether a key's value, or an error that shows it, may have a password or a token; URLs may.
pub(super) fn may_be_secret(key: &str, text: &str) -> bool {
    const KEYS: [&str; 5] = [
        "insecure-registries",
        "log-opts",
        "mirrors",
        "proxies",
        "registry-mirrors",
    ];
    KEYS.contains(&key) || text.contains('@')
}

/// Leaves out the value that serde shows in an error.
fn without_value(error: &str) -> String {
    for kind in ["invalid type", "invalid value", "unknown variant"] {
        if error.starts_with(kind) {
            let expected = error
                .rsplit_once(", expected ")
                .map(|(_, expected)| expected);
            return expected.map_or_else(|| kind.into(), |what| format!("expected {what}"));
        }
    }
    error.to_owned()
}

impl File {
    /// Makes paths absolute, as seen from `directory`.
    pub(super) fn resolve(&mut self, directory: &Path) {
        for path in [&mut self.signature_policy, &mut self.pidfile] {
            *path = path.take().map(|path| directory.join(path));
        }
        self.containers.resolve(directory);
    }

    /// Checks what depends on several settings, or on other files.
    ///
    /// # Errors
    /// Returns an error that names the key. Where Docker checks the same, the text is Docker's.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        check_labels(&self.labels).context("labels")?;
        check_gateways(self.host_gateway_ip, &self.host_gateway_ips)?;
        if let Some(driver) = self
            .default_network_opts
            .keys()
            .find(|driver| !matches!(driver.as_str(), "bridge" | "macvlan" | "ipvlan"))
        {
            bail!("default-network-opts: unknown network driver {driver}");
        }
        self.networks()
            .check()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        self.image_gc()?;
        self.build_gc()?;
        self.oldest_api()?;
        if !(-1000..=1000).contains(&self.oom_score_adjust) {
            bail!(
                "oom-score-adjust: {} is not between -1000 and 1000",
                self.oom_score_adjust
            );
        }
        self.live().map(drop)
    }

    /// Returns the settings that can be changed while the engine runs.
    ///
    /// # Errors
    /// Returns an error that names the key whose value is invalid.
    pub(crate) fn live(&self) -> anyhow::Result<LiveSettings> {
        let known = LiveSettings::default();
        Ok(LiveSettings {
            debug: self.debug,
            labels: self.labels.clone(),
            containers: self.containers.defaults()?,
            registries: self.registries()?,
            runtimes: self.runtimes()?,
            features: self.features.clone(),
            shutdown_timeout: self.shutdown_timeout.unwrap_or(known.shutdown_timeout),
        })
    }

    /// Applies the file's settings to the instance.
    ///
    /// # Errors
    /// Returns an error if a setting is invalid.
    pub(crate) fn apply(self, instance: &mut Instance) -> anyhow::Result<()> {
        instance.live.set(self.live()?);
        instance.networks = self.networks();
        instance.image_gc = self.image_gc()?;
        instance.respect_host_firewall = self.firewall == FirewallMode::RespectHost;
        instance.layers = match self.layers {
            Layers::Auto => None,
            Layers::Directories => Some(LayerForm::Directories),
            Layers::Erofs => Some(LayerForm::Images),
        };
        instance.oldest_api = self.oldest_api()?;
        instance.cdi_directories = self.cdi_directories();
        instance.default_log.options = self.log_opts;
        if self.log_driver.is_some() {
            instance.default_log.driver = self.log_driver;
        }
        Ok(())
    }

    /// Returns the oldest version of the API that is served.
    ///
    /// # Errors
    /// Returns Docker's text if it is not a version, or not a supported one.
    fn oldest_api(&self) -> anyhow::Result<Option<(u32, u32)>> {
        let Some(text) = &self.min_api_version else {
            return Ok(None);
        };
        let fail = |why: String| bail!("min-api-version: {why}");
        let parsed = text.split_once('.').and_then(|(major, minor)| {
            let number = |digits: &str| digits.parse::<u32>().ok();
            number(major).zip(number(minor))
        });
        let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        match parsed {
            _ if text.is_empty() => fail("value is empty".into()),
            _ if text.starts_with(['v', 'V']) => {
                fail("API version must be provided without \"v\" prefix".into())
            }
            None => fail(format!("{text:?} is not a version of the API")),
            Some(parsed) if parsed < OLDEST => fail(format!(
                "minimum supported API version is {}: {text}",
                version(OLDEST)
            )),
            Some(parsed) if parsed > NEWEST => fail(format!(
                "maximum supported API version is {}: {text}",
                version(NEWEST)
            )),
            Some(parsed) => Ok(Some(parsed)),
        }
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
        let number = |what: &str, number: i64| {
            u32::try_from(number).with_context(|| format!("invalid {what}: {number}"))
        };
        let attempts = number("max download attempts", self.max_download_attempts)?;
        if attempts != 0 {
            client.attempts = attempts;
        }
        let downloads = number("max concurrent downloads", self.max_concurrent_downloads)?;
        if downloads != 0 {
            settings.downloads = downloads.try_into()?;
        }
        let uploads = number("max concurrent uploads", self.max_concurrent_uploads)?;
        if uploads != 0 {
            settings.uploads = uploads.try_into()?;
        }
        if let Some(path) = &self.signature_policy {
            settings.policy = Some(signature_policy(path).context("signature-policy")?);
        }
        Ok(settings)
    }

    fn runtimes(&self) -> anyhow::Result<Runtimes> {
        runtimes::read(&self.runtimes, self.default_runtime.as_deref())
    }

    /// Returns the directories of CDI specifications; none if the feature is off, if the list is empty,
    /// or if the only directory has no name.
    pub(super) fn cdi_directories(&self) -> Vec<PathBuf> {
        if self.features.get("cdi") == Some(&false) {
            return Vec::new();
        }
        match self.cdi_spec_dirs.as_deref() {
            None => DEFAULT_CDI_DIRECTORIES.map(PathBuf::from).into(),
            Some([only]) if only.as_os_str().is_empty() => Vec::new(),
            Some(given) => given.to_vec(),
        }
    }

    /// Returns how the build cache is kept to a budget.
    ///
    /// # Errors
    /// Returns an error that names the key whose value is invalid.
    pub(crate) fn build_gc(&self) -> anyhow::Result<GcSettings> {
        let settings = self.builder.as_ref().map(BuilderSettings::settings);
        let settings = settings.transpose().context("builder")?;
        Ok(settings.unwrap_or_default())
    }

    /// Returns what builds may ask for.
    pub(crate) fn build_entitlements(&self) -> AllowedEntitlements {
        let settings = self.builder.as_ref().map(BuilderSettings::allowed);
        settings.unwrap_or_default()
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
            mtu: self.mtu.filter(|mtu| *mtu != 0),
            icc: self.icc.unwrap_or(true),
            masquerade: self.ip_masq.unwrap_or(true),
            forward: self.ip_forward.unwrap_or(true),
            binding: self.ip,
            host_gateway: self
                .host_gateway_ip
                .into_iter()
                .chain(self.host_gateway_ips.clone())
                .collect(),
            servers: self.dns.clone(),
            search: self.dns_search.clone(),
            resolver_options: self.dns_opts.clone(),
        }
    }
}

fn check_labels(labels: &[String]) -> anyhow::Result<()> {
    let mut known = BTreeMap::new();
    for label in labels {
        let pair = label.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = pair.with_context(|| format!("bad attribute format: {label}"))?;
        if let Some(other) = known.insert(key, value).filter(|other| *other != value) {
            bail!("conflict labels for {key}={value} and {key}={other}");
        }
    }
    Ok(())
}

fn check_gateways(one: Option<IpAddr>, list: &[IpAddr]) -> anyhow::Result<()> {
    if one.is_some() && !list.is_empty() {
        bail!("host-gateway-ip and host-gateway-ips must not both be specified in the config file");
    }
    for (version, is_v4) in [("IPv4", true), ("IPv6", false)] {
        if list
            .iter()
            .filter(|address| address.is_ipv4() == is_v4)
            .count()
            > 1
        {
            bail!("only one {version} host gateway IP address can be specified");
        }
    }
    Ok(())
}

/// Reads a signature policy and the keys that it names.
fn signature_policy(path: &Path) -> anyhow::Result<Policy> {
    let mut file = PolicyFile::parse(&fs::read(path)?)?;
    file.embed_keys(|key| fs::read(key).map_err(|error| error.source))?;
    Ok(file.try_into()?)
}
