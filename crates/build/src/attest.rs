//! Which attestations are asked for: the attributes `attest:provenance` and `attest:sbom` of a build, and the build arguments
//! `BUILDKIT_ATTEST_…`.

use std::collections::BTreeMap;

use whelk_dockerfile::csv;
use whelk_text::parse_bool;

use crate::error::{Error, Result};
use crate::provenance::Options;

/// The image that makes bills of materials, unless another one is named.
const GENERATOR: &str = "docker/buildkit-syft-scanner:stable-1";

/// The attestations of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attest {
    pub provenance: Option<Options>,
    pub sbom: Option<Sbom>,
}

/// How a bill of materials is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sbom {
    /// The image.
    pub generator: String,
    /// Further settings of it.
    pub parameters: BTreeMap<String, String>,
}

impl Attest {
    /// Reads the attributes of a build.
    ///
    /// # Errors
    /// Returns an error that names an attestation or an attribute that is not supported, or not valid.
    pub fn parse(attributes: &BTreeMap<String, String>) -> Result<Self> {
        let mut attest = Self::default();
        for (name, value) in attributes {
            let kind = name
                .strip_prefix("attest:")
                .or_else(|| name.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
            let Some(kind) = kind.map(str::to_lowercase) else {
                continue;
            };
            let fields = fields(&kind, value)?;
            match kind.as_str() {
                "provenance" => attest.provenance = fields.map(provenance).transpose()?,
                "sbom" => attest.sbom = fields.map(sbom).transpose()?,
                _ => {
                    let text = format!("unknown attestation type {kind:?}");
                    return Err(Error::invalid(text));
                }
            }
        }
        Ok(attest)
    }
}

/// Reads `key=value,…`, or a boolean value alone. Returns `None` if the attestation is not wanted.
fn fields(kind: &str, value: &str) -> Result<Option<BTreeMap<String, String>>> {
    let mut found = BTreeMap::new();
    if let Some(wanted) = parse_bool(value) {
        return Ok(wanted.then_some(found));
    }
    let fields = match value {
        "" => Vec::new(),
        value => csv::fields(value)
            .map_err(|error| Error::invalid(format!("failed to parse {kind}: {error}")))?,
    };
    for field in fields {
        let (name, value) = field.split_once('=').unwrap_or((&field, ""));
        found.insert(name.to_owned(), value.to_owned());
    }
    found.remove("type");
    let disabled = found.remove("disabled");
    let is_disabled = disabled.is_some_and(|value| parse_bool(&value) != Some(false));
    Ok((!is_disabled).then_some(found))
}

fn flag(name: &str, value: &str) -> Result<bool> {
    parse_bool(value).ok_or_else(|| {
        let text = format!("failed to parse {name} flag {value:?}: it is no boolean value");
        Error::invalid(text)
    })
}

fn provenance(fields: BTreeMap<String, String>) -> Result<Options> {
    let mut options = Options::default();
    for (name, value) in fields {
        match name.as_str() {
            "mode" => {
                options.is_max = match value.as_str() {
                    "max" | "full" => true,
                    "min" => false,
                    other => return Err(Error::invalid(format!("invalid mode {other:?}"))),
                };
            }
            "version" => {
                options.is_v1 = match value.as_str() {
                    "v1" => true,
                    "v0.2" => false,
                    other => {
                        let text = format!("invalid provenance SLSA version: {other}");
                        return Err(Error::invalid(text));
                    }
                };
            }
            "inline-only" => options.is_inline_only = flag(&name, &value)?,
            "reproducible" => options.is_reproducible = flag(&name, &value)?,
            "complete-materials" => options.must_be_complete = flag(&name, &value)?,
            "builder-id" => options.builder = value,
            "filename" => options.filename = file_name(&value)?,
            // The usage of the processor and the memory is not measured.
            "capture-usage" => {
                if flag(&name, &value)? {
                    let text = "the attribute capture-usage of provenance";
                    return Err(Error::Unsupported(text.into()));
                }
            }
            _ => {
                let known = "mode, version, inline-only, reproducible, complete-materials, builder-id, filename";
                let text = format!("unknown attribute {name} of provenance; it can have {known}");
                return Err(Error::invalid(text));
            }
        }
    }
    Ok(options)
}

fn sbom(mut fields: BTreeMap<String, String>) -> Result<Sbom> {
    let generator = fields.remove("generator").filter(|name| !name.is_empty());
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if let Some(name) = fields
        .keys()
        .find(|name| name.is_empty() || !name.chars().all(is_name))
    {
        let text = format!("invalid attribute {name:?} of the attestation sbom");
        return Err(Error::invalid(text));
    }
    if let Some((name, _)) = fields.iter().find(|(_, value)| value.contains('\0')) {
        let text = format!("invalid value of the attribute {name} of the attestation sbom");
        return Err(Error::invalid(text));
    }
    Ok(Sbom {
        generator: generator.unwrap_or_else(|| GENERATOR.to_owned()),
        parameters: fields,
    })
}

/// Returns the last part of a path.
fn file_name(path: &str) -> Result<String> {
    let name = path.trim_end_matches('/').rsplit('/').next();
    match name.unwrap_or_default() {
        "" | "." | ".." => Err(Error::invalid(format!("invalid filename {path:?}"))),
        name if name.contains('\0') || name.len() > 255 => {
            Err(Error::invalid(format!("invalid filename {path:?}")))
        }
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str, value: &str) -> Result<Attest> {
        Attest::parse(&[(name.to_owned(), value.to_owned())].into())
    }

    #[test]
    fn attributes_of_clients() {
        let provenance = |value: &str| {
            let attest = parsed("attest:provenance", value);
            attest.unwrap_or_else(|error| panic!("{error}")).provenance
        };
        for value in [
            "",
            "true",
            "type=provenance",
            "type=provenance,disabled=false",
            "mode=max",
        ] {
            assert_eq!(provenance(value), Some(Options::default()), "{value}");
        }
        for value in ["false", "type=provenance,disabled=true"] {
            assert_eq!(provenance(value), None, "{value}");
        }
        let usual = provenance("mode=min,inline-only=true").unwrap_or_default();
        assert!(!usual.is_max && usual.is_inline_only && !usual.is_v1);
        let other = provenance("version=v1,builder-id=me,filename=a/p.json").unwrap_or_default();
        assert!(other.is_v1);
        assert_eq!(
            (other.builder.as_str(), other.filename.as_str()),
            ("me", "p.json")
        );
        let attest = parsed(
            "build-arg:BUILDKIT_ATTEST_SBOM",
            "generator=me/scan,LEVEL=3",
        );
        let sbom = attest.ok().and_then(|attest| attest.sbom);
        let expected = Sbom {
            generator: "me/scan".into(),
            parameters: [("LEVEL".to_owned(), "3".to_owned())].into(),
        };
        assert_eq!(sbom, Some(expected));
        let usual = parsed("attest:sbom", "type=sbom").ok();
        let usual = usual
            .and_then(|attest| attest.sbom)
            .map(|sbom| sbom.generator);
        assert_eq!(usual.as_deref(), Some(GENERATOR));
    }

    #[test]
    fn what_is_not_valid_is_named() {
        for (name, value, expected) in [
            ("attest:other", "", "unknown attestation type \"other\""),
            ("attest:provenance", "mode=most", "invalid mode \"most\""),
            (
                "attest:provenance",
                "version=v9",
                "invalid provenance SLSA version: v9",
            ),
            (
                "attest:provenance",
                "reproducible=x",
                "reproducible flag \"x\"",
            ),
            ("attest:provenance", "capture-usage=true", "capture-usage"),
            (
                "attest:provenance",
                "x=y",
                "unknown attribute x of provenance",
            ),
            ("attest:provenance", "filename=..", "invalid filename"),
            ("attest:provenance", "a=\"b", "failed to parse provenance"),
            ("attest:sbom", "A=B=C,b c=d", "invalid attribute \"b c\""),
            ("attest:sbom", "A=\0", "invalid value"),
        ] {
            let error =
                parsed(name, value).map_or_else(|error| error.to_string(), |_| String::new());
            assert!(error.contains(expected), "{name}={value}: {error}");
        }
    }
}
