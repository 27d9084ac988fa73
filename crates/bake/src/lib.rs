//! Bake files: definitions of images to build, in HCL, in JSON and in Compose's YAML.
//!
//! ```text
//! files ─► syntax, compose ─► definitions ─► resolve ─► targets, groups
//!                               ▲    ▲          ▲
//!            environment ───────┘    │          └── names of targets, overrides (`--set`)
//!                     names, eval, functions
//! ```
//!
//! All of it is computed from what is passed in: there is no disk, clock or environment here. What Docker's bake has and this has not
//! is rejected by its name. Files may come from anywhere: sizes, depths and numbers of steps are bounded.
#![forbid(unsafe_code)]

mod compose;
mod definitions;
mod dot_env;
mod entries;
mod error;
mod eval;
mod functions;
mod names;
mod number;
mod overrides;
pub mod paths;
mod place;
mod resolve;
mod syntax;
mod target;
mod types;
mod value;

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

pub use definitions::{Definitions, VariableInfo};
pub use entries::{Attestation, Cache, Entry, Output, Secret, Ssh};
pub use error::Error;
pub use overrides::Granted;
pub use resolve::Resolved;
pub use target::{Group, Target};

/// Names of files that are read if none is given, in this order.
pub const DEFAULT_FILES: [&str; 8] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
    "docker-bake.json",
    "docker-bake.hcl",
    "docker-bake.override.json",
    "docker-bake.override.hcl",
];

/// A file with definitions.
#[derive(Clone, Debug)]
pub struct File {
    pub name: String,
    pub content: String,
}

/// Reads a file that a file of Compose names, by its path relative to the working directory. Returns `None` if there is none.
pub type ReadFile<'a> = dyn Fn(&str) -> Result<Option<String>, String> + 'a;

/// What definitions may see.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Variables, which replace the defaults of those with the same name.
    pub variables: BTreeMap<String, String>,
    /// `BAKE_CMD_CONTEXT` and `BAKE_LOCAL_PLATFORM`.
    pub builtin: BTreeMap<String, String>,
    /// The content of the file `.env`, which Compose's files see.
    pub dot_env: String,
    /// Seconds since 1970.
    pub now: i64,
    pub home: String,
    /// What random values are made of.
    pub seed: [u8; 32],
}

impl Environment {
    /// Returns bytes that cannot be guessed without the seed, and are others for each number.
    fn random(&self, number: usize) -> [u8; 16] {
        let digest = Sha256::new_with_prefix(self.seed).chain_update(number.to_le_bytes());
        let mut bytes = [0; 16];
        for (byte, own) in bytes.iter_mut().zip(digest.finalize()) {
            *byte = own;
        }
        bytes
    }
}

/// Returns the attestation of a flag `--provenance` or `--sbom`: whether there is one, or its attributes.
pub fn attestation(kind: &str, text: &str) -> String {
    match whelk_text::parse_bool(text) {
        Some(wanted) => format!("type={kind},disabled={}", !wanted),
        None => format!("type={kind},{text}"),
    }
}
