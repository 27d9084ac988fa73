//! Settings of a conversion.

use std::collections::BTreeMap;

use whelk_llb::Graph;
use whelk_llb::pb::{CdiDevice, Definition, LinuxResources, NetMode, Platform, Ulimit};

use crate::lint;

/// Parses image references. The grammar is that of image names, which this crate does not know.
pub type ParseReference = fn(&str) -> Result<Reference, String>;

/// A parsed image reference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// The normal form, with the default tag if there is neither a tag nor a digest.
    pub full: String,
    /// The short form, without a default tag.
    pub familiar: String,
}

/// When images are pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveMode {
    #[default]
    Default,
    Pull,
    Local,
}

impl std::str::FromStr for ResolveMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "default" => Ok(Self::Default),
            "pull" => Ok(Self::Pull),
            "local" => Ok(Self::Local),
            _ => Err(format!("invalid image-resolve-mode: {text}")),
        }
    }
}

impl ResolveMode {
    /// Returns the attribute's value; the default has none.
    pub(super) fn attribute(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Pull => Some("pull"),
            Self::Local => Some("local"),
        }
    }
}

/// The context that COPY and ADD copy from.
#[derive(Clone, Debug, PartialEq)]
pub enum MainContext {
    /// A client's directory with this name, of which what matches the patterns is not sent.
    Local { name: String, ignore: Vec<String> },
    /// Sources or an archive; an empty graph has no files.
    Graph(Graph),
}

impl Default for MainContext {
    fn default() -> Self {
        Self::Local {
            name: "context".into(),
            ignore: Vec::new(),
        }
    }
}

/// A definition that the client has sent as a named context, with the configuration of its image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContextInput {
    pub graph: Graph,
    pub config: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// The stage to build; empty for the last one.
    pub target: String,
    pub build_args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// The platform to build for; without one, that of the machine or of the base image.
    pub platform: Option<Platform>,
    /// The platform of the machine that builds.
    pub build_platform: Platform,
    /// Whether names of steps contain platforms.
    pub multi_platform: bool,
    pub network: NetMode,
    /// The stages that are built without the cache; an empty list means all.
    pub no_cache: Option<Vec<String>>,
    pub resolve_mode: ResolveMode,
    /// Names and addresses.
    pub extra_hosts: Vec<(String, String)>,
    pub hostname: String,
    /// Size of `/dev/shm` in bytes; 0 for the default.
    pub shm_size: i64,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: String,
    pub resources: Option<LinuxResources>,
    pub devices: Vec<CdiDevice>,
    /// Prefix of the names of caches.
    pub cache_namespace: String,
    pub context: MainContext,
    /// Named contexts: `NAME` or `NAME::PLATFORM`, and `docker-image:…`, `local:…`, `input:…` or a URL.
    pub contexts: BTreeMap<String, String>,
    /// Keys of directories that are named contexts, by the context's name.
    pub shared_keys: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, ContextInput>,
    /// The session that sends local directories.
    pub session: String,
    /// Other sessions, by the name of the directory.
    pub sessions: BTreeMap<String, String>,
    /// The name of the Dockerfile.
    pub filename: String,
    /// The definition of the directory that the Dockerfile was read from, which is told with its lines.
    pub file_definition: Option<Definition>,
    /// Replaces the checks that the Dockerfile asks for.
    pub lint: Option<lint::Config>,
    /// Converts also stages that the target does not need, to check them.
    pub all_stages: bool,
    /// Whether warnings are not told: those of another platform are the same.
    pub is_quiet: bool,
    /// Whether a bill of materials is made.
    pub is_scanned: bool,
    pub parse_reference: ParseReference,
}

impl Options {
    /// Returns the defaults for a machine.
    pub fn new(build_platform: Platform, parse_reference: ParseReference) -> Self {
        Self {
            target: String::new(),
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platform: None,
            build_platform,
            multi_platform: false,
            network: NetMode::Unset,
            no_cache: None,
            resolve_mode: ResolveMode::Default,
            extra_hosts: Vec::new(),
            hostname: String::new(),
            shm_size: 0,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            resources: None,
            devices: Vec::new(),
            cache_namespace: String::new(),
            context: MainContext::default(),
            contexts: BTreeMap::new(),
            shared_keys: BTreeMap::new(),
            inputs: BTreeMap::new(),
            session: String::new(),
            sessions: BTreeMap::new(),
            filename: "Dockerfile".into(),
            file_definition: None,
            lint: None,
            all_stages: false,
            is_quiet: false,
            is_scanned: false,
            parse_reference,
        }
    }

    pub(super) fn session_of(&self, local: &str) -> String {
        self.sessions.get(local).unwrap_or(&self.session).clone()
    }

    /// Whether a stage is built without the cache.
    pub(super) fn ignores_cache(&self, stage: &str) -> bool {
        self.no_cache.as_ref().is_some_and(|stages| {
            stages.is_empty() || stages.iter().any(|name| name.eq_ignore_ascii_case(stage))
        })
    }
}
