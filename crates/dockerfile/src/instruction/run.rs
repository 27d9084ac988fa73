//! RUN, with its mounts and devices.

use whelk_text::{parse_bool, size};

use super::flags::{Flags, Kind};
use super::{Command, Expander, command};
use crate::csv;
use crate::error::{Error, Result};
use crate::heredoc::Heredoc;
use crate::parser::Line;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub documents: Vec<Heredoc>,
    pub mounts: Vec<Mount>,
    pub network: Network,
    /// `--security=insecure`.
    pub insecure: bool,
    pub devices: Vec<Device>,
    /// Mounts as written: they are parsed again when variables have values.
    written: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    #[default]
    Default,
    None,
    Host,
}

/// A CDI device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub required: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];

impl MountKind {
    fn name(self) -> &'static str {
        let known = KINDS.iter().find(|(_, kind)| *kind == self);
        known.map_or("", |(name, _)| name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    Private,
    Locked,
}

const SHARINGS: [(&str, Sharing); 3] = [
    ("shared", Sharing::Shared),
    ("private", Sharing::Private),
    ("locked", Sharing::Locked),
];

/// A mount of a RUN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    /// A stage, an image or a named context.
    pub from: String,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// Limit of a tmpfs in bytes; 0 means none.
    pub size: i64,
    pub id: String,
    pub sharing: Option<Sharing>,
    pub required: bool,
    /// The variable that a secret is given in.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl Run {
    pub(super) fn parse(line: &Line) -> Result<Self> {
        let known = [
            ("device", Kind::Many),
            ("mount", Kind::Many),
            ("network", Kind::One),
            ("security", Kind::One),
        ];
        let flags = Flags::read(&line.flags, &known)?;
        let written = flags.list("mount");
        let network = match flags.get("network") {
            "default" => Network::Default,
            "none" => Network::None,
            "host" => Network::Host,
            "" if flags.values("network").next().is_none() => Network::Default,
            other => return Err(Error::new(format!("invalid network mode {other:?}"))),
        };
        let insecure = match flags.get("security") {
            "insecure" => true,
            "sandbox" => false,
            "" if flags.values("security").next().is_none() => false,
            other => return Err(Error::new(format!("security {other:?} is not valid"))),
        };
        Ok(Self {
            command: command(line),
            documents: line.heredocs.clone(),
            mounts: written
                .iter()
                .map(|mount| outline_mount(mount))
                .collect::<Result<_>>()?,
            network,
            insecure,
            devices: flags.values("device").map(device).collect::<Result<_>>()?,
            written,
        })
    }

    pub(super) fn expand(&mut self, lexer: &mut Expander<'_>) -> Result<()> {
        self.mounts = self
            .written
            .iter()
            .map(|written| mount(written, lexer))
            .collect::<Result<_>>()?;
        Ok(())
    }
}

/// Splits `KEY=VALUE`; keys are in lower case.
fn key_value(field: &str) -> (String, Option<&str>) {
    match field.split_once('=') {
        Some((key, value)) => (key.to_lowercase(), Some(value)),
        None => (field.to_lowercase(), None),
    }
}

/// Parses what is needed of a mount before variables have values: where it is from.
fn outline_mount(written: &str) -> Result<Mount> {
    let mut mount = Mount::default();
    for field in mount_fields(written)? {
        if let (key, Some(value)) = key_value(&field)
            && key == "from"
        {
            if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                return Err(Error::new(
                    "'from' doesn't support variable expansion, define alias stage instead",
                ));
            }
            mount.from = value.to_owned();
        }
    }
    Ok(mount)
}

fn mount_fields(written: &str) -> Result<Vec<String>> {
    csv::fields(written).map_err(|error| error.context("failed to parse csv mounts"))
}

fn mount(written: &str, lexer: &mut Expander<'_>) -> Result<Mount> {
    let mut mount = Mount::default();
    let mut read_only = None;
    for field in mount_fields(written)? {
        let (key, value) = key_value(&field);
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => read_only = Some(true),
                "readwrite" | "rw" => read_only = Some(false),
                "required" => {
                    mount.allow(&key, &[MountKind::Secret, MountKind::Ssh])?;
                    mount.required = true;
                }
                _ => {
                    return Err(Error::new(format!(
                        "invalid field '{field}' must be a key=value pair"
                    )));
                }
            }
            continue;
        };
        let mut value = value.to_owned();
        lexer.word(&mut value)?;
        let flag = || {
            parse_bool(&value)
                .ok_or_else(|| Error::new(format!("invalid value for {key}: {value}")))
        };
        match key.as_str() {
            "readonly" | "ro" => read_only = Some(flag()?),
            "readwrite" | "rw" => read_only = Some(!flag()?),
            "required" => {
                mount.allow(&key, &[MountKind::Secret, MountKind::Ssh])?;
                mount.required = flag()?;
            }
            _ => mount.set(&key, value, &field)?,
        }
    }
    let writable = matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs);
    mount.read_only = read_only.unwrap_or(!writable);
    mount.check()?;
    Ok(mount)
}

impl Mount {
    /// Returns an error if a key is not one of this kind of mounts, as far as `type` was read.
    fn allow(&self, key: &str, kinds: &[MountKind]) -> Result<()> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        Err(Error::new(format!(
            "unexpected key '{key}' for mount type '{}'",
            self.kind.name()
        )))
    }

    fn set(&mut self, key: &str, value: String, field: &str) -> Result<()> {
        let number = |radix: u32| {
            Some(&value)
                .filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|value| u32::from_str_radix(value, radix).ok())
                .map(Some)
                .ok_or_else(|| Error::new(format!("invalid value {value} for {key}")))
        };
        match key {
            "type" => self.kind = one_of("mount type", &value, &KINDS)?,
            "from" => self.from = value,
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "size" => {
                self.allow(key, &[MountKind::Tmpfs])?;
                self.size = size::parse_binary(&value)
                    .map_err(|_| Error::new(format!("invalid value for {key}: {value}")))?;
            }
            "id" => self.id = value,
            "sharing" => self.sharing = Some(one_of("sharing value", &value, &SHARINGS)?),
            "mode" => self.mode = number(8)?,
            "uid" => self.uid = number(10)?,
            "gid" => self.gid = number(10)?,
            "env" => self.env = Some(value),
            _ => {
                let known = [
                    "type",
                    "from",
                    "source",
                    "target",
                    "readonly",
                    "id",
                    "sharing",
                    "required",
                    "size",
                    "mode",
                    "uid",
                    "gid",
                    "src",
                    "dst",
                    "destination",
                    "ro",
                    "rw",
                    "readwrite",
                    "env",
                ];
                let error = Error::new(format!("unexpected key '{key}' in '{field}'"));
                return Err(error.suggest(key, known, true));
            }
        }
        Ok(())
    }

    /// Checks what depends on the kind.
    fn check(&self) -> Result<()> {
        let name = self.kind.name();
        if matches!(self.kind, MountKind::Bind | MountKind::Tmpfs) {
            for (key, value) in [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)] {
                if value.is_some() {
                    return Err(Error::new(format!(
                        "{key} not allowed for {name:?} type mounts"
                    )));
                }
            }
        }
        if self.kind == MountKind::Secret {
            let invalid = if !self.from.is_empty() {
                "secret mount should not have a from"
            } else if self.sharing.is_some() {
                "secret mount should not define sharing"
            } else if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                "invalid secret mount. one of source, target required"
            } else if !self.source.is_empty() && !self.id.is_empty() {
                "both source and id can't be set"
            } else {
                ""
            };
            if !invalid.is_empty() {
                return Err(Error::new(invalid));
            }
        }
        if self.sharing.is_some() && self.kind != MountKind::Cache {
            return Err(Error::new(format!(
                "invalid cache sharing set for {name} mount"
            )));
        }
        Ok(())
    }
}

fn one_of<T: Copy>(what: &str, value: &str, known: &[(&'static str, T)]) -> Result<T> {
    let wanted = value.to_lowercase();
    let found = known.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let error = Error::new(format!("unsupported {what} {value:?}"));
        error.suggest(value, known.iter().map(|(name, _)| *name), true)
    })
}

fn device(written: &str) -> Result<Device> {
    let fields =
        csv::fields(written).map_err(|error| error.context("failed to parse csv devices"))?;
    let mut device = Device::default();
    for field in fields {
        match key_value(&field) {
            (key, None) if key == "required" => device.required = true,
            (key, Some(value)) if key == "required" => {
                device.required = parse_bool(value)
                    .ok_or_else(|| Error::new(format!("invalid value for {key}: {value}")))?;
            }
            (key, Some(value)) if key == "name" => {
                if !device.name.is_empty() {
                    return Err(Error::new(format!(
                        "device name already set to {}",
                        device.name
                    )));
                }
                device.name = value.to_owned();
            }
            _ if device.name.is_empty() => device.name = field,
            (_, None) => {
                return Err(Error::new(format!(
                    "invalid field '{field}' must be a key=value pair"
                )));
            }
            (key, Some(_)) => {
                let error = Error::new(format!("unexpected key '{key}' in '{field}'"));
                return Err(error.suggest(&key, ["name", "required"], true));
            }
        }
    }
    Ok(device)
}
