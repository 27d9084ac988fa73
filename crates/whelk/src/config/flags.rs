//! The flags of `whelk daemon` that stand for keys of the configuration file, as `dockerd` names them.

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Map, Value, json};

use super::{file, refused};

/// What a flag's value is, and what it becomes in the configuration.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Switch,
    Text,
    Number,
    List,
    /// A list of which one flag may give several items, separated by commas.
    Commas,
    /// `KEY=VALUE`, an object.
    Map,
    /// `NAME=BOOL`, an object.
    Switches,
    /// `DRIVER=KEY=VALUE`, an object of objects.
    ByDriver,
    /// `base=NETWORK,size=LENGTH`, a list of objects.
    Pools,
    /// `NAME=SOFT[:HARD]`, an object of objects.
    Limits,
    /// `NAME=PATH`, an object of objects.
    Programs,
}

use Kind::{ByDriver, Commas, Limits, List, Number, Pools, Programs, Switch, Switches, Text};

#[derive(Clone, Copy, Debug)]
struct Flag {
    long: &'static str,
    short: Option<char>,
    alias: Option<&'static str>,
    /// The key; after a dot that of an object's member.
    key: &'static str,
    kind: Kind,
    help: &'static str,
    is_hidden: bool,
}

const fn flag(long: &'static str, key: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag {
        long,
        short: None,
        alias: None,
        key,
        kind,
        help,
        is_hidden: help.is_empty(),
    }
}

impl Flag {
    const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }

    fn argument(&self) -> Arg {
        let argument = Arg::new(self.long)
            .long(self.long)
            .help(self.help)
            .hide(self.is_hidden);
        let argument = match self.short {
            Some(letter) => argument.short(letter),
            None => argument,
        };
        let argument = match self.alias {
            Some(alias) => argument.alias(alias),
            None => argument,
        };
        match self.kind {
            Switch => argument
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_possible_values(true)
                .value_name("BOOL")
                .value_parser(value_parser!(bool)),
            Number => argument
                .value_name("NUMBER")
                .value_parser(value_parser!(i64)),
            Text => argument.value_name("VALUE"),
            _ => argument.value_name("VALUE").action(ArgAction::Append),
        }
    }

    /// Returns the flag's value in the configuration; `None` if it was not given.
    fn value(&self, matches: &ArgMatches) -> anyhow::Result<Option<Value>> {
        let one = match self.kind {
            Switch => matches.get_one::<bool>(self.long).map(|&on| on.into()),
            Number => matches
                .get_one::<i64>(self.long)
                .map(|&number| number.into()),
            Text => matches
                .get_one::<String>(self.long)
                .map(|text| text.as_str().into()),
            _ => None,
        };
        if matches!(self.kind, Switch | Number | Text) {
            return Ok(one);
        }
        let Some(given) = matches.get_many::<String>(self.long) else {
            return Ok(None);
        };
        let mut collected = match self.kind {
            List | Commas | Pools => json!([]),
            _ => json!({}),
        };
        for text in given {
            self.add(&mut collected, text).with_context(|| {
                format!("invalid argument {text:?} for \"--{}\" flag", self.long)
            })?;
        }
        Ok(Some(collected))
    }

    /// Adds one value to those given before.
    fn add(&self, collected: &mut Value, text: &str) -> anyhow::Result<()> {
        let pair = |text: &str, form: &str| -> anyhow::Result<(String, String)> {
            let pair = text.split_once('=');
            let (key, value) = pair.with_context(|| format!("must be formatted as {form}"))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        if let Some(list) = collected.as_array_mut() {
            match self.kind {
                Commas => list.extend(text.split(',').map(|item| Value::from(item.trim()))),
                Pools => list.push(pool(text)?),
                _ => list.push(text.into()),
            }
            return Ok(());
        }
        match self.kind {
            ByDriver => {
                let (driver, option) = pair(text, "driver=opt=val")?;
                let (key, value) = pair(&option, "driver=opt=val")?;
                collected[driver][key] = value.into();
            }
            Limits => {
                let (name, values) = pair(text, "type=soft[:hard]")?;
                let (soft, hard) = values.split_once(':').unwrap_or((&values, &values));
                let (soft, hard): (i64, i64) = (soft.parse()?, hard.parse()?);
                collected[&name] = json!({"Name": name, "Soft": soft, "Hard": hard});
            }
            Programs => {
                let (name, path) = pair(text, "name=path")?;
                collected[name] = json!({"path": path});
            }
            Switches => {
                // As with Docker, a name alone enables the feature.
                let (name, on) = text.split_once('=').unwrap_or((text, "true"));
                let on = whelk_text::parse_bool(on);
                collected[name] = on.context("must be formatted as name=boolean")?.into();
            }
            _ => {
                let (key, value) = text.split_once('=').unwrap_or((text, ""));
                collected[key] = value.into();
            }
        }
        Ok(())
    }
}

fn pool(text: &str) -> anyhow::Result<Value> {
    let mut pool = Map::new();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("base", base)) => pool.insert("base".into(), base.into()),
            Some(("size", size)) => pool.insert("size".into(), size.parse::<u8>()?.into()),
            _ => bail!("must be formatted as base=NETWORK,size=LENGTH"),
        };
    }
    Ok(pool.into())
}

#[rustfmt::skip]
const FLAGS: &[Flag] = &[
    flag("host", "hosts", List, "Where to listen, any number of times: unix:///PATH, tcp://[ADDRESS][:PORT], or fd:// for the sockets passed by systemd [default: unix:///run/whelk/whelk.sock]").short('H'),
    flag("buildkit-host", "buildkit-hosts", List, "Where to serve BuildKit's protocol without the API, for buildctl and remote drivers of buildx, any number of times: unix:///PATH or tcp://[ADDRESS][:PORT]"),
    flag("tls", "tls", Switch, "Use TLS, and verify the clients' certificates unless --tlsverify=false; --tls=false allows tcp:// hosts on loopback addresses without TLS"),
    flag("tlsverify", "tlsverify", Switch, "Use TLS and accept only clients with a certificate signed by the CA"),
    flag("tlscacert", "tlscacert", Text, "File with the certificates of the CAs that sign clients' certificates [default: ~/.docker/ca.pem]"),
    flag("tlscert", "tlscert", Text, "File with the engine's certificate [default: ~/.docker/cert.pem]"),
    flag("tlskey", "tlskey", Text, "File with the key of the engine's certificate [default: ~/.docker/key.pem]"),
    flag("root", "data-root", Text, "Directory for images, containers and the engine's records [default: /var/lib/whelk]").alias("data-root"),
    flag("run", "exec-root", Text, "Directory for sockets and other state that does not survive a reboot; must be unique to each engine [default: /run/whelk]").alias("exec-root"),
    flag("instance", "instance", Text, "Name of this engine, which must be unique on the machine; part of its cgroups' names [default: whelk]"),
    flag("group", "group", Text, "Group that may connect to the socket").short('G'),
    flag("pidfile", "pidfile", Text, "File for the engine's process id").short('p'),
    flag("cdi-spec-dir", "cdi-spec-dirs", List, "Directory with CDI specifications, any number of times [default: /etc/cdi, /var/run/cdi]"),
    flag("add-runtime", "runtimes", Programs, "OCI runtime besides the engine's own, name=path"),
    flag("default-runtime", "default-runtime", Text, "OCI runtime of containers that do not choose one [default: runc, the engine's own]"),
    flag("label", "labels", List, "Label of the engine, key=value"),
    flag("debug", "debug", Switch, "Enable debug logging").short('D'),
    flag("log-level", "log-level", Text, "Level of the engine's log: debug, info, warn, error or fatal").short('l'),
    flag("log-format", "log-format", Text, "Format of the engine's log: text or json"),
    flag("log-driver", "log-driver", Text, "Default log driver of containers"),
    flag("log-opt", "log-opts", Kind::Map, "Default option of the log driver, key=value"),
    flag("default-ulimit", "default-ulimits", Limits, "Default ulimit of containers, type=soft[:hard]"),
    flag("default-shm-size", "default-shm-size", Text, "Default size of /dev/shm in containers [default: 64M]"),
    flag("default-ipc-mode", "default-ipc-mode", Text, "Default IPC mode of containers: private or shareable"),
    flag("default-cgroupns-mode", "default-cgroupns-mode", Text, "Default cgroup namespace mode of containers: private or host"),
    flag("cgroup-parent", "cgroup-parent", Text, "Parent cgroup of containers"),
    flag("init", "init", Switch, "Run an init process in containers by default"),
    flag("no-new-privileges", "no-new-privileges", Switch, "Set no-new-privileges for containers by default"),
    flag("seccomp-profile", "seccomp-profile", Text, "Default seccomp profile of containers: a file, builtin or unconfined"),
    flag("exec-opt", "exec-opts", List, "Only native.cgroupdriver=cgroupfs"),
    flag("feature", "features", Switches, "Enable or disable a feature, name[=boolean]"),
    flag("oom-score-adjust", "oom-score-adjust", Number, "The engine's own oom_score_adj, -1000 to 1000"),
    flag("shutdown-timeout", "shutdown-timeout", Number, ""),
    flag("bip", "bip", Text, "IPv4 address of the default bridge with its prefix length"),
    flag("bip6", "bip6", Text, "IPv6 address of the default bridge with its prefix length"),
    flag("fixed-cidr", "fixed-cidr", Text, "Range of IPv4 addresses on the default network"),
    flag("fixed-cidr-v6", "fixed-cidr-v6", Text, "Range of IPv6 addresses on the default network"),
    flag("ipv6", "ipv6", Switch, "Enable IPv6 on the default network"),
    flag("mtu", "mtu", Number, "MTU of the default network"),
    flag("icc", "icc", Switch, "Let containers on the default network reach each other"),
    flag("ip", "ip", Text, "Host address for published ports of the default network"),
    flag("ip-forward", "ip-forward", Switch, "Enable IP forwarding on the host"),
    flag("ip-masq", "ip-masq", Switch, "Masquerade outgoing traffic of the default network"),
    flag("default-address-pool", "default-address-pools", Pools, "Pool to allocate subnets from, base=NETWORK,size=LENGTH"),
    flag("default-network-opt", "default-network-opts", ByDriver, "Default option of new networks, driver=key=value"),
    flag("dns", "dns", Commas, "DNS server of containers"),
    flag("dns-search", "dns-search", List, "DNS search domain of containers"),
    flag("dns-opt", "dns-opts", List, "DNS option of containers"),
    flag("host-gateway-ip", "host-gateway-ips", List, "Address that host-gateway in --add-host stands for"),
    flag("insecure-registry", "insecure-registries", List, "Registry that may be used without TLS or with any certificate"),
    flag("registry-mirror", "registry-mirrors", List, "Mirror of Docker Hub"),
    flag("http-proxy", "proxies.http-proxy", Text, "Proxy for http:// URLs"),
    flag("https-proxy", "proxies.https-proxy", Text, "Proxy for https:// URLs"),
    flag("no-proxy", "proxies.no-proxy", Text, "Hosts that are reached without a proxy, separated by commas"),
    flag("max-concurrent-downloads", "max-concurrent-downloads", Number, "Layers that are downloaded at the same time [default: 3]"),
    flag("max-concurrent-uploads", "max-concurrent-uploads", Number, "Layers that are uploaded at the same time [default: 5]"),
    flag("max-download-attempts", "max-download-attempts", Number, "Attempts of a download without progress [default: 5]"),
    flag("storage-driver", "storage-driver", Text, "").short('s'),
    flag("firewall-backend", "firewall-backend", Text, ""),
];

/// All flags, with those whose values are fixed or refused.
fn flags() -> impl Iterator<Item = Flag> {
    let switches = refused::switches().map(|key| flag(key, key, Switch, ""));
    let refused = refused::flags().map(|(long, key)| match long {
        "bridge" => flag(long, key, List, "").short('b'),
        _ => flag(long, key, List, ""),
    });
    FLAGS.iter().copied().chain(switches).chain(refused)
}

/// Adds the flags to a command.
pub(crate) fn define(command: Command) -> Command {
    command.args(flags().map(|flag| flag.argument()))
}

/// The values of the flags that were given, by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given(Vec<(&'static str, Value)>);

impl Given {
    /// # Errors
    /// Returns an error that names the first flag whose value is invalid.
    pub(crate) fn read(matches: &ArgMatches) -> anyhow::Result<Self> {
        let mut given = Vec::new();
        for flag in flags() {
            if let Some(value) = flag.value(matches)? {
                file::check_member(flag.key, &value).with_context(|| {
                    format!(
                        "invalid argument {} for \"--{}\" flag",
                        shown(flag.key, &value),
                        flag.long
                    )
                })?;
                given.push((flag.key, value));
            }
        }
        Ok(Self(given))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps the flags for these keys only.
    pub(super) fn retain(&mut self, keys: &[&str]) {
        self.0.retain(|(key, _)| keys.contains(key));
    }

    /// Replaces members of the configuration file.
    pub(super) fn override_members(&self, members: &mut Map<String, Value>) {
        for (key, value) in &self.0 {
            *place(members, key) = value.clone();
        }
    }

    /// Adds the flags to the members of the configuration file.
    ///
    /// # Errors
    /// Returns Docker's error if a key is set by a flag and by the file.
    pub(super) fn merge(&self, members: &mut Map<String, Value>) -> anyhow::Result<()> {
        let conflicts: Vec<String> = self
            .0
            .iter()
            .filter_map(|(key, from_flag)| {
                let from_file = find(members, key)?;
                let (_, name) = key.rsplit_once('.').unwrap_or(("", key));
                Some(format!(
                    "{name}: (from flag: {}, from file: {})",
                    shown(key, from_flag),
                    shown(key, from_file)
                ))
            })
            .collect();
        if !conflicts.is_empty() {
            bail!(
                "the following directives are specified both as a flag and in the configuration file: {}",
                conflicts.join(", ")
            );
        }
        self.override_members(members);
        Ok(())
    }
}

fn find<'m>(members: &'m Map<String, Value>, key: &str) -> Option<&'m Value> {
    match key.split_once('.') {
        Some((object, key)) => members.get(object)?.get(key),
        None => members.get(key),
    }
}

fn place<'m>(members: &'m mut Map<String, Value>, key: &str) -> &'m mut Value {
    match key.split_once('.') {
        Some((object, key)) => &mut members.entry(object).or_insert_with(|| json!({}))[key],
        None => members.entry(key).or_insert(Value::Null),
    }
}

/// Returns a value as Go prints it, without the credentials of a URL.
fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => match text.rsplit_once('@') {
            Some((_, host)) if key.starts_with("proxies") => format!("xxxxx:xxxxx@{host}"),
            _ => text.clone(),
        },
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| shown(key, item)).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(members) => {
            let members = members.iter();
            let members: Vec<String> = members
                .map(|(name, value)| format!("{name}:{}", shown(key, value)))
                .collect();
            format!("map[{}]", members.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(words: &[&str]) -> anyhow::Result<Given> {
        let command = define(Command::new("daemon"));
        Given::read(&command.get_matches_from([&["daemon"], words].concat()))
    }

    fn merged(words: &[&str], file: Value) -> String {
        let mut members = file.as_object().unwrap().clone();
        match given(words).and_then(|given| given.merge(&mut members)) {
            Ok(()) => Value::from(members).to_string(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn flags_become_members_of_the_file() {
        let words = [
            "--host=unix:///a",
            "-Htcp://b",
            "--dns=10.0.0.1,10.0.0.2",
            "--log-opt=max-size=1m",
            "--log-opt=tag",
            "--default-ulimit=nofile=1:2",
            "--default-ulimit=core=0",
            "--default-network-opt=bridge=a=b",
            "--default-address-pool=base=10.0.0.0/8,size=24",
            "--feature=cdi",
            "--feature=buildkit=false",
            "--add-runtime=a=/b",
            "--http-proxy=http://p",
            "--icc=false",
            "--mtu=1400",
            "--data-root=/r",
            "-D",
        ];
        let expected = json!({
            "hosts": ["unix:///a", "tcp://b"], "data-root": "/r", "debug": true, "log-opts": {"max-size": "1m", "tag": ""},
            "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}, "core": {"Name": "core", "Soft": 0, "Hard": 0}},
            "features": {"cdi": true, "buildkit": false}, "runtimes": {"a": {"path": "/b"}}, "mtu": 1400, "icc": false,
            "default-address-pools": [{"base": "10.0.0.0/8", "size": 24}],
            "default-network-opts": {"bridge": {"a": "b"}}, "dns": ["10.0.0.1", "10.0.0.2"],
            "proxies": {"no-proxy": "x", "http-proxy": "http://p"},
        });
        let found: Value =
            serde_json::from_str(&merged(&words, json!({"proxies": {"no-proxy": "x"}}))).unwrap();
        assert_eq!(found, expected);
    }

    /// Docker's texts.
    #[test]
    fn a_key_is_set_by_a_flag_or_by_the_file() {
        const BOTH: &str =
            "the following directives are specified both as a flag and in the configuration file: ";
        let file =
            json!({"debug": true, "labels": ["a=b"], "log-opts": {"a": "b"}, "data-root": "/x"});
        assert_eq!(
            merged(
                &[
                    "--debug",
                    "--label=c=d",
                    "--log-opt=max-size=1m",
                    "--root=/y"
                ],
                file
            ),
            format!(
                "{BOTH}data-root: (from flag: /y, from file: /x), labels: (from flag: [c=d], from file: [a=b]), debug: (from flag: true, from file: true), log-opts: (from flag: map[max-size:1m], from file: map[a:b])"
            )
        );
        assert_eq!(
            merged(
                &["--https-proxy=http://u:secret@p"],
                json!({"proxies": {"https-proxy": "http://q"}})
            ),
            format!("{BOTH}https-proxy: (from flag: xxxxx:xxxxx@p, from file: http://q)")
        );
    }

    #[test]
    fn an_invalid_value_is_named_with_its_flag() {
        let error = |words: &[&str]| format!("{:#}", given(words).unwrap_err());
        for (word, text) in [
            (
                "--log-level=loud",
                "invalid argument loud for \"--log-level\" flag: invalid logging level: loud",
            ),
            (
                "--default-shm-size=1x",
                "\"--default-shm-size\" flag: invalid suffix: 'x'",
            ),
            (
                "--default-ulimit=nofile",
                "\"--default-ulimit\" flag: must be formatted as type=soft[:hard]",
            ),
            (
                "--authorization-plugin=x",
                "\"--authorization-plugin\" flag: authorization-plugins is not supported: whoever",
            ),
            (
                "--selinux-enabled",
                "selinux-enabled: true is not supported: ",
            ),
            (
                "--storage-driver=zfs",
                "storage-driver: \"zfs\" is not supported: ",
            ),
            ("-b=br0", "\"--bridge\" flag: bridge is not supported: "),
        ] {
            let error = error(&[word]);
            assert!(error.contains(text), "{word}: {error}");
        }
        assert!(
            given(&[
                "--selinux-enabled=false",
                "--iptables",
                "--storage-driver=overlay2"
            ])
            .is_ok()
        );
    }
}
