//! Decides whether an image may be used: a policy names, for each repository, whether it is accepted,
//! rejected, or must be signed with certain keys.
//!
//! Policies have the format of `containers-policy.json(5)`, which Podman, Skopeo and CRI-O read.
//! Signatures are those of `cosign sign --key`: a payload that names a manifest's digest and a
//! repository, signed with a private key. Nothing here uses the network or a clock.
#![forbid(unsafe_code)]

mod identity;
mod key;
mod policy;
mod signature;

pub use identity::Identity;
pub use key::PublicKey;
pub use policy::{Policy, PolicyFile, Requirement};
pub use signature::{PAYLOAD, SIGNATURE, Signature, decode_signature};

/// Why a policy cannot be used, or rejects an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The policy or one of its keys is invalid.
    #[error("signature policy: {0}")]
    Policy(String),
    /// The policy rejects the image.
    #[error("{0}")]
    Rejected(String),
}

pub type Result<T> = std::result::Result<T, Error>;
