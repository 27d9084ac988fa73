//! Policies: what is required of an image, by its repository.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use whelk_image::{Digest, Reference};

use crate::identity::Identity;
use crate::key::PublicKey;
use crate::signature::{Claim, Signature};
use crate::{Error, Result};

/// The transport of images in registries. Requirements of other transports are ignored.
const REGISTRY: &str = "docker";

/// A policy as it is written in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyFile {
    default: Vec<Rule>,
    /// By transport, then by scope: part of a name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    transports: BTreeMap<String, BTreeMap<String, Vec<Rule>>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Rule {
    InsecureAcceptAnything {},
    Reject {},
    SigstoreSigned(Signed),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Signed {
    #[serde(skip_serializing_if = "Option::is_none")]
    key_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_paths: Vec<PathBuf>,
    /// A PEM file in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_data: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_datas: Vec<String>,
    signed_identity: Identity,
}

impl PolicyFile {
    /// Parses a policy in JSON.
    ///
    /// # Errors
    /// Returns an error that names the field if something is missing, unknown or not supported.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(|error| Error::Policy(error.to_string()))
    }

    /// Replaces the paths of keys by the keys, which `read` returns.
    ///
    /// # Errors
    /// Returns an error that names the file that cannot be read.
    pub fn embed_keys(&mut self, read: impl Fn(&Path) -> io::Result<Vec<u8>>) -> Result<()> {
        let scoped = self.transports.values_mut().flat_map(BTreeMap::values_mut);
        for rule in scoped.chain([&mut self.default]).flatten() {
            let Rule::SigstoreSigned(signed) = rule else {
                continue;
            };
            signed.check_sources()?;
            let embed = |path: &PathBuf| {
                let pem = read(path)
                    .map_err(|error| Error::Policy(format!("key {}: {error}", path.display())))?;
                Ok(STANDARD.encode(pem))
            };
            if let Some(path) = signed.key_path.take() {
                signed.key_data = Some(embed(&path)?);
            }
            for path in std::mem::take(&mut signed.key_paths) {
                signed.key_datas.push(embed(&path)?);
            }
        }
        Ok(())
    }
}

impl Signed {
    fn check_sources(&self) -> Result<()> {
        let sources = [
            self.key_path.is_some(),
            !self.key_paths.is_empty(),
            self.key_data.is_some(),
            !self.key_datas.is_empty(),
        ];
        if sources.iter().filter(|is_set| **is_set).count() == 1 {
            Ok(())
        } else {
            Err(Error::Policy(
                "sigstoreSigned: exactly one of keyPath, keyPaths, keyData and keyDatas must be set"
                    .into(),
            ))
        }
    }
}

/// What is required of images, with the keys loaded.
#[derive(Clone, Debug)]
pub struct Policy {
    default: Vec<Requirement>,
    scopes: BTreeMap<String, Vec<Requirement>>,
}

/// One condition. An image must meet all conditions of its scope.
#[derive(Clone, Debug)]
pub enum Requirement {
    Accept,
    Reject,
    /// A signature by one of these keys.
    Signed(Vec<PublicKey>, Identity),
}

impl TryFrom<PolicyFile> for Policy {
    type Error = Error;

    /// Loads a policy whose keys are embedded.
    fn try_from(mut file: PolicyFile) -> Result<Self> {
        let registry = file.transports.remove(REGISTRY).unwrap_or_default();
        let scopes = registry
            .into_iter()
            .map(|(scope, rules)| Ok((scope.clone(), requirements(&scope, rules)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            default: requirements("default", file.default)?,
            scopes,
        })
    }
}

fn requirements(scope: &str, rules: Vec<Rule>) -> Result<Vec<Requirement>> {
    if rules.is_empty() {
        return Err(Error::Policy(format!("{scope}: no requirement")));
    }
    let requirement = |rule| {
        Ok(match rule {
            Rule::InsecureAcceptAnything {} => Requirement::Accept,
            Rule::Reject {} => Requirement::Reject,
            Rule::SigstoreSigned(signed) => {
                signed.check_sources()?;
                signed.signed_identity.check()?;
                if signed.key_path.is_some() || !signed.key_paths.is_empty() {
                    return Err(Error::Policy(format!(
                        "{scope}: keys must be embedded (keyData, keyDatas)"
                    )));
                }
                let keys = signed
                    .key_data
                    .iter()
                    .chain(&signed.key_datas)
                    .map(|data| key(scope, data))
                    .collect::<Result<_>>()?;
                Requirement::Signed(keys, signed.signed_identity)
            }
        })
    };
    rules.into_iter().map(requirement).collect()
}

fn key(scope: &str, data: &str) -> Result<PublicKey> {
    let invalid = |problem: String| Error::Policy(format!("{scope}: key: {problem}"));
    let pem = STANDARD
        .decode(data)
        .map_err(|error| invalid(error.to_string()))?;
    PublicKey::from_pem(&pem).map_err(invalid)
}

impl Policy {
    /// Returns what is required of an image: the requirements of its most specific scope.
    fn requirements(&self, image: &Reference) -> &[Requirement] {
        let scopes = scopes(image);
        let mut found = scopes.iter().filter_map(|scope| self.scopes.get(scope));
        found.next().unwrap_or(&self.default)
    }

    /// Returns whether the image's signatures are needed to decide.
    pub fn needs_signatures(&self, image: &Reference) -> bool {
        let mut requirements = self.requirements(image).iter();
        requirements.any(|requirement| matches!(requirement, Requirement::Signed(..)))
    }

    /// Checks that an image meets all requirements. `digests` are those of its manifest and of the
    /// indexes by which it was found: a signature of an index counts for the images in it.
    ///
    /// # Errors
    /// Returns [`Error::Rejected`] with the reason if it does not.
    pub fn check(
        &self,
        image: &Reference,
        digests: &[Digest],
        signatures: &[Signature],
    ) -> Result<()> {
        for requirement in self.requirements(image) {
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => {
                    return Err(Error::Rejected("the signature policy rejects it".into()));
                }
                Requirement::Signed(keys, identity) => {
                    is_signed(keys, identity, image, digests, signatures)
                        .map_err(Error::Rejected)?;
                }
            }
        }
        Ok(())
    }
}

/// Checks that one of the signatures is valid for the image.
fn is_signed(
    keys: &[PublicKey],
    identity: &Identity,
    image: &Reference,
    digests: &[Digest],
    signatures: &[Signature],
) -> std::result::Result<(), String> {
    if signatures.is_empty() {
        return Err("the signature policy requires a signature, but the image has none".into());
    }
    let mut problems = Vec::new();
    for signature in signatures {
        let is_valid = |key: &PublicKey| key.verifies(&signature.payload, &signature.signature);
        if !keys.iter().any(is_valid) {
            problems.push("it is not by one of the policy's keys".into());
            continue;
        }
        match Claim::parse(&signature.payload) {
            Err(problem) => problems.push(problem),
            Ok(claim) if !digests.contains(&claim.digest) => {
                problems.push(format!("it is for the digest {}", claim.digest));
            }
            Ok(claim) if !identity.accepts(image, &claim.reference) => {
                problems.push(format!("it is for {}", claim.reference));
            }
            Ok(_) => return Ok(()),
        }
    }
    problems.dedup();
    Err(format!(
        "the signature policy accepts none of its {} signature(s): {}",
        signatures.len(),
        problems.join("; ")
    ))
}

/// Returns the scopes of an image, the most specific first: its name with tag or digest, its
/// repository, the namespaces around it, its registry, and `*.DOMAIN` for the domains above that.
fn scopes(image: &Reference) -> Vec<String> {
    let mut scopes = vec![image.to_string()];
    let mut name = image.name();
    loop {
        if scopes.last() != Some(&name) {
            scopes.push(name.clone());
        }
        match name.rfind('/') {
            Some(slash) => name.truncate(slash),
            None => break,
        }
    }
    let host = match image.domain.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => &image.domain,
    };
    let mut rest = host;
    while let Some((_, parent)) = rest.split_once('.') {
        scopes.push(format!("*.{parent}"));
        rest = parent;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
