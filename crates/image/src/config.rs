//! The image configuration: defaults for the image's containers, and the layers the image consists
//! of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounded::{self, MAX_HISTORY, MAX_LAYERS, null_is_default, words};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};

/// An image configuration in the format common to OCI and Docker. Unknown fields are ignored; the
/// original bytes are stored and hashed.
///
/// Docker's has more than the specification: `comment`, `docker_version`, and in the defaults of
/// containers the health check, `OnBuild`, `Shell` and `ArgsEscaped`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub docker_version: String,
    pub rootfs: RootFs,
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_HISTORY>")]
    pub history: Vec<History>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    /// SHA-256 digests: layers are known by them, as in Docker's and containerd's stores.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_LAYERS>")]
    pub diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub empty_layer: bool,
}

/// Defaults for containers of an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub volumes: BTreeMap<String, serde_json::Value>,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub on_build: Vec<String>,
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
}

impl ImageConfig {
    /// Parses and validates a configuration.
    ///
    /// # Errors
    /// Returns an error if the JSON is malformed, a digest is invalid, or the rootfs type is not
    /// `layers`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid(format!("invalid image configuration: {error}")))?;
        if config.rootfs.kind != "layers" {
            return Err(Error::invalid(format!(
                "invalid image configuration: unknown rootfs type {:?}",
                config.rootfs.kind
            )));
        }
        let mut diff_ids = config.rootfs.diff_ids.iter();
        if let Some(other) = diff_ids.find(|id| id.algorithm() != Algorithm::Sha256) {
            return Err(Error::invalid(format!(
                "invalid image configuration: unsupported digest algorithm of a layer in {other:?}"
            )));
        }
        let layers = config
            .history
            .iter()
            .filter(|entry| !entry.empty_layer)
            .count();
        if !config.history.is_empty() && layers > config.rootfs.diff_ids.len() {
            return Err(Error::invalid(format!(
                "invalid image configuration: the history names {layers} layers, there are {}",
                config.rootfs.diff_ids.len()
            )));
        }
        Ok(config)
    }
}

/// This engine's architecture, as image configurations name it.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_nulls_and_unknown_fields() {
        let config = ImageConfig::parse(br#"{"os":"linux","config":{"Cmd":null,"Env":["A=1"],"New":5},"rootfs":{"type":"layers","diff_ids":null},"history":null,"extra":{}}"#).unwrap();
        assert_eq!(config.config.env, ["A=1"]);
        assert!(config.config.cmd.is_empty());
    }

    #[test]
    fn commands_may_be_strings() {
        let text = br#"{"config":{"Cmd":"a b","Entrypoint":["c","d"],"Shell":"e"},"rootfs":{"type":"layers"}}"#;
        let config = ImageConfig::parse(text).unwrap().config;
        assert_eq!(config.cmd, ["a b"]);
        assert_eq!(config.entrypoint, ["c", "d"]);
        assert_eq!(config.shell, ["e"]);
        for wrong in ["5", "[5]", "{}"] {
            let text = format!(r#"{{"config":{{"Cmd":{wrong}}},"rootfs":{{"type":"layers"}}}}"#);
            assert!(ImageConfig::parse(text.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rejects_invalid_configurations() {
        for (text, expected) in [
            ("", "EOF while parsing a value"),
            ("{}", "missing field `rootfs`"),
            (
                r#"{"rootfs":{"type":"aufs"}}"#,
                "unknown rootfs type \"aufs\"",
            ),
            (
                &format!(
                    r#"{{"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                    Algorithm::Sha512.digest(b"")
                ),
                "unsupported digest algorithm of a layer in sha512:cf83e1",
            ),
            (
                r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}"#,
                "invalid checksum digest length or character in \"sha256:../../x\"",
            ),
            (
                r#"{"rootfs":{"type":"layers"},"history":[{}]}"#,
                "the history names 1 layers, there are 0",
            ),
        ] {
            let error = ImageConfig::parse(text.as_bytes()).unwrap_err();
            let expected = format!("invalid image configuration: {expected}");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn rejects_too_many_layers_or_history_entries() {
        let config = |history: &str, diff_ids: &str| {
            let text = format!(
                r#"{{"rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}},"history":[{history}]}}"#
            );
            ImageConfig::parse(text.as_bytes()).unwrap_err().to_string()
        };
        let many = |one: &str, count: usize| vec![one; count].join(",");
        let steps = config(&many(r#"{"empty_layer":true}"#, MAX_HISTORY + 1), "");
        assert!(
            steps.contains("a list of more than 10000 elements"),
            "{steps}"
        );
        let layers = config(
            "",
            &many(&format!("\"{}\"", Digest::of(b"")), MAX_LAYERS + 1),
        );
        assert!(
            layers.contains("a list of more than 500 elements"),
            "{layers}"
        );
    }
}
