//! Provenance: how a result was made, as a predicate of SLSA, with BuildKit's members.
//!
//! What a result consists of is noted when it is solved ([`Capture`]). The predicate is a function of that, of the request of
//! the frontend and of the definition; it is made for attestations that are asked for, and for the history of builds.

mod capture;
mod op;
mod purl;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use whelk_image::descriptor::Descriptor;
use whelk_llb::{Digest, Graph};

pub use capture::Capture;
pub use purl::attribute_without_credentials;
pub(crate) use purl::package_url;
pub(crate) use purl::without_credentials;

/// The types of the predicates.
pub const V02: &str = "https://slsa.dev/provenance/v0.2";
pub const V1: &str = "https://slsa.dev/provenance/v1";

const BUILD_TYPE_02: &str = "https://mobyproject.org/buildkit@v1";
const BUILD_TYPE_1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const METADATA_02: &str = "https://mobyproject.org/buildkit@v1#metadata";
const HERMETIC_02: &str = "https://mobyproject.org/buildkit@v1#hermetic";

/// Attributes that say something of the machine, or nothing of the result.
const LEFT_OUT: [&str; 5] = [
    "cgroup-parent",
    "image-resolve-mode",
    "platform",
    "cache-imports",
    "frontend.caps",
];

/// What is said of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Everything, with the definition, arguments, and ids of secrets.
    pub is_max: bool,
    /// Version 1 of SLSA's predicate instead of 0.2.
    pub is_v1: bool,
    /// Only for images.
    pub is_inline_only: bool,
    pub is_reproducible: bool,
    /// It is an error if not all materials are known.
    pub must_be_complete: bool,
    pub builder: String,
    /// The name of the file, of outputs that are files.
    pub filename: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            is_max: true,
            is_v1: false,
            is_inline_only: false,
            is_reproducible: false,
            must_be_complete: false,
            builder: String::new(),
            filename: "provenance.json".into(),
        }
    }
}

/// The request of a frontend.
#[derive(Clone, Debug, Default)]
pub struct FrontendCall {
    /// `dockerfile.v0`; empty for a definition.
    pub frontend: String,
    pub attributes: BTreeMap<String, String>,
    /// Directories of the client that the frontend has read.
    pub locals: Vec<String>,
}

/// How a result was made.
#[derive(Clone, Debug)]
pub struct Provenance {
    pub capture: Capture,
    pub call: FrontendCall,
    pub graph: Arc<Graph>,
    /// Of the last operation, which is none.
    pub last: Digest,
    /// The name of the build.
    pub invocation: String,
    /// In nanoseconds since the epoch.
    pub started: i64,
    pub finished: i64,
}

/// The request of a frontend, as the predicate has it.
struct DescribedRequest {
    source: Map<String, Value>,
    request: Map<String, Value>,
    vcs: Map<String, Value>,
    is_complete: bool,
}

impl Provenance {
    /// Returns the type of the predicate.
    pub fn kind(options: &Options) -> &'static str {
        if options.is_v1 { V1 } else { V02 }
    }

    /// Returns whether all materials are known: directories of the client are not.
    pub fn is_complete(&self) -> bool {
        self.capture.locals.is_empty() && self.call.locals.is_empty()
    }

    /// Returns the predicate as JSON. `layers` are those of the result, if their blobs are known.
    pub fn predicate(&self, options: &Options, layers: Option<&[Descriptor]>) -> Value {
        let described = self.request(options);
        let is_complete = self.is_complete();
        let (config, metadata) = self.details(options, layers, described.vcs);
        let is_hermetic = is_complete && !self.capture.uses_network;
        let materials = self.capture.materials();
        let platform = crate::emulation::host().short();
        let mut environment = Map::new();
        match options.is_v1 {
            true => {
                set(&mut environment, "buildConfig", config);
                environment.insert("builderPlatform".into(), platform.into());
                let mut run = json!({
                    "invocationID": self.invocation,
                    "startedOn": time(self.started),
                    "finishedOn": time(self.finished),
                    "buildkit_metadata": metadata,
                    "buildkit_completeness": {
                        "request": described.is_complete, "resolvedDependencies": is_complete,
                    },
                });
                flag(&mut run, "buildkit_hermetic", is_hermetic);
                flag(&mut run, "buildkit_reproducible", options.is_reproducible);
                let mut definition = json!({
                    "buildType": BUILD_TYPE_1,
                    "externalParameters": {"configSource": described.source, "request": described.request},
                    "internalParameters": environment,
                });
                if let Value::Object(definition) = &mut definition {
                    set(definition, "resolvedDependencies", materials.into());
                }
                json!({
                    "buildDefinition": definition,
                    "runDetails": {"builder": {"id": options.builder}, "metadata": run},
                })
            }
            false => {
                environment.insert("platform".into(), platform.into());
                let mut source = described.source;
                if let Some(path) = source.remove("path") {
                    source.insert("entryPoint".into(), path);
                }
                let mut run = json!({
                    "buildInvocationID": self.invocation,
                    "buildStartedOn": time(self.started),
                    "buildFinishedOn": time(self.finished),
                    "completeness": {
                        "parameters": described.is_complete, "environment": true, "materials": is_complete,
                    },
                    "reproducible": options.is_reproducible,
                    METADATA_02: metadata,
                });
                flag(&mut run, HERMETIC_02, is_hermetic);
                let mut predicate = json!({
                    "builder": {"id": options.builder},
                    "buildType": BUILD_TYPE_02,
                    "invocation": {
                        "configSource": source,
                        "parameters": described.request,
                        "environment": environment,
                    },
                    "metadata": run,
                });
                if let Value::Object(predicate) = &mut predicate {
                    set(predicate, "materials", materials.into());
                    set(predicate, "buildConfig", config);
                }
                predicate
            }
        }
    }

    /// Returns the definition, and BuildKit's own metadata.
    fn details(
        &self,
        options: &Options,
        layers: Option<&[Descriptor]>,
        vcs: Map<String, Value>,
    ) -> (Value, Map<String, Value>) {
        let mut metadata = Map::new();
        if !vcs.is_empty() {
            metadata.insert("vcs".into(), vcs.into());
        }
        if !options.is_max {
            return (Value::Null, metadata);
        }
        let steps = steps::Steps::of(&self.graph, &self.last);
        set(&mut metadata, "source", steps.source(&self.graph));
        let layers = layers.map_or(Value::Null, |layers| steps.layers(&self.graph, layers));
        set(&mut metadata, "layers", layers);
        (steps.config(&self.graph), metadata)
    }

    /// Returns the request, with less in the mode `min`.
    fn request(&self, options: &Options) -> DescribedRequest {
        let mut arguments = self.call.attributes.clone();
        let mut described = DescribedRequest {
            source: Map::new(),
            request: Map::new(),
            vcs: Map::new(),
            is_complete: !self.call.frontend.is_empty(),
        };
        let context = match arguments.get("contextkey") {
            Some(key) if !key.is_empty() => key.clone(),
            _ => "context".to_owned(),
        };
        if let Some(uri) = arguments.remove(&context).filter(|uri| !uri.is_empty()) {
            let uri = without_credentials(&uri);
            set(
                &mut described.source,
                "digest",
                self.capture.material(&uri).into(),
            );
            described.source.insert("uri".into(), uri.into());
        }
        if let Some(name) = arguments.remove("filename").filter(|name| !name.is_empty()) {
            described.source.insert("path".into(), name.into());
        }
        let mut kept = Map::new();
        for (name, value) in arguments {
            if let Some(name) = name.strip_prefix("vcs:") {
                if !value.is_empty() {
                    described
                        .vcs
                        .insert(name.to_owned(), without_credentials(&value).into());
                }
                continue;
            }
            let is_private = name.starts_with("attest:")
                || name.starts_with("local-sessionid:")
                || name.starts_with("whelk.")
                || LEFT_OUT.contains(&name.as_str());
            let is_detail = name.starts_with("build-arg:") || name.starts_with("label:");
            if is_private {
                continue;
            }
            if is_detail && !options.is_max {
                described.is_complete = false;
                continue;
            }
            let value = attribute_without_credentials(&name, &value);
            kept.insert(name, value.into());
        }
        set(
            &mut described.request,
            "frontend",
            self.call.frontend.clone().into(),
        );
        if !kept.is_empty() {
            described.request.insert("args".into(), kept.into());
        }
        let ids = |ids: &BTreeMap<String, bool>| {
            let ids = ids.iter().map(|(id, is_optional)| {
                let mut entry = json!({"id": id});
                flag(&mut entry, "optional", *is_optional);
                entry
            });
            Value::Array(ids.collect())
        };
        if options.is_max {
            set(
                &mut described.request,
                "secrets",
                ids(&self.capture.secrets),
            );
            set(&mut described.request, "ssh", ids(&self.capture.ssh));
        }
        let mut locals = self.capture.locals.clone();
        locals.extend(self.call.locals.iter().cloned());
        let locals = locals.into_iter().map(|name| json!({"name": name}));
        set(
            &mut described.request,
            "locals",
            Value::Array(locals.collect()),
        );
        described
    }
}

/// Adds a member, unless it is empty.
fn set(object: &mut Map<String, Value>, name: &str, value: Value) {
    let is_empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    if !is_empty {
        object.insert(name.to_owned(), value);
    }
}

/// Adds a member if it is true.
fn flag(object: &mut Value, name: &str, value: bool) {
    if let (true, Value::Object(object)) = (value, object) {
        object.insert(name.to_owned(), true.into());
    }
}

fn time(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map(|time| time.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
