//! What a result was made of: its sources, and what its processes have used.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use whelk_llb::Graph;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{ExecOp, MountType, NetMode, Platform, SourceOp};

use super::purl::{package_url, without_credentials};
use crate::sources::Sources;

/// What a result was made of.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// URIs, and digests by their algorithm.
    materials: BTreeMap<String, Option<(String, String)>>,
    pub(super) locals: BTreeSet<String>,
    /// Ids, and whether they are optional.
    pub(super) secrets: BTreeMap<String, bool>,
    pub(super) ssh: BTreeMap<String, bool>,
    pub(super) uses_network: bool,
}

impl Capture {
    /// Looks at the operations that a result consists of.
    pub(crate) fn of(graph: &Graph, sources: &Sources) -> Self {
        let mut capture = Self::default();
        let needed = graph.needed();
        for (node, _) in graph.nodes.iter().zip(needed).filter(|(_, needed)| *needed) {
            match &node.op.kind {
                Some(Kind::Source(source)) => {
                    let content = sources.content_name(node, source);
                    capture.source(source, node.op.platform.as_ref(), content);
                }
                Some(Kind::Exec(exec)) => capture.exec(exec),
                _ => {}
            }
        }
        capture
    }

    /// Adds what something else was made of that the build has read, such as a remote context with the Dockerfile.
    pub fn add(&mut self, other: &Self) {
        self.materials.extend(other.materials.clone());
        self.locals.extend(other.locals.iter().cloned());
        for (known, more) in [
            (&mut self.secrets, &other.secrets),
            (&mut self.ssh, &other.ssh),
        ] {
            for (id, is_optional) in more {
                *known.entry(id.clone()).or_insert(true) &= is_optional;
            }
        }
        self.uses_network |= other.uses_network;
    }

    fn source(&mut self, source: &SourceOp, platform: Option<&Platform>, content: Option<String>) {
        let identifier = source.identifier.as_str();
        let get = |name: &str| source.attrs.get(name).map_or("", String::as_str);
        if let Some(name) = identifier.strip_prefix("local://") {
            self.locals.insert(name.to_owned());
            return;
        }
        let (uri, content) = if let Some(reference) = identifier.strip_prefix("docker-image://") {
            (package_url("docker", reference, platform), content)
        } else if let Some(reference) = identifier.strip_prefix("oci-layout://") {
            (package_url("oci", reference, platform), content)
        } else if let Some(rest) = identifier.strip_prefix("git://") {
            let reference = rest.split_once('#').map_or("", |(_, reference)| reference);
            let reference = reference.split(':').next().unwrap_or_default();
            let full = match get("git.fullurl") {
                "" => format!("https://{}", rest.split('#').next().unwrap_or_default()),
                full => full.to_owned(),
            };
            let separator = if reference.is_empty() { "" } else { "#" };
            let url = without_credentials(&full);
            (format!("{url}{separator}{reference}"), content)
        } else {
            (without_credentials(identifier), content)
        };
        let digest = content.and_then(|content| {
            let (algorithm, digits) = content.split_once(':')?;
            Some((algorithm.to_owned(), digits.to_owned()))
        });
        self.materials.insert(uri, digest);
    }

    fn exec(&mut self, exec: &ExecOp) {
        let note = |known: &mut BTreeMap<String, bool>, id: &str, is_optional: bool| {
            *known.entry(id.to_owned()).or_insert(true) &= is_optional;
        };
        for mount in &exec.mounts {
            match (
                MountType::try_from(mount.mount_type),
                &mount.secret_opt,
                &mount.ssh_opt,
            ) {
                (Ok(MountType::Secret), Some(secret), _) => {
                    note(&mut self.secrets, &secret.id, secret.optional);
                }
                (Ok(MountType::Ssh), _, Some(agent)) => {
                    let id = if agent.id.is_empty() {
                        "default"
                    } else {
                        &agent.id
                    };
                    note(&mut self.ssh, id, agent.optional);
                }
                _ => {}
            }
        }
        for secret in &exec.secretenv {
            note(&mut self.secrets, &secret.id, secret.optional);
        }
        self.uses_network |= NetMode::try_from(exec.network) != Ok(NetMode::None);
    }

    /// Returns the materials: URIs with digests.
    pub(super) fn materials(&self) -> Vec<Value> {
        let materials = self.materials.iter();
        let materials = materials.map(|(uri, digest)| match digest {
            Some((algorithm, digits)) => json!({"uri": uri, "digest": {algorithm: digits}}),
            None => json!({"uri": uri}),
        });
        materials.collect()
    }

    /// Returns the digest of a material; `None` if there is no such material.
    pub(super) fn material(&self, uri: &str) -> Option<Value> {
        let (algorithm, digits) = self.materials.get(uri)?.as_ref()?;
        Some(json!({algorithm: digits}))
    }
}
