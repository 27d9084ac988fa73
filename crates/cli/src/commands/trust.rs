//! The commands of Docker's content trust, which are rejected by name: signatures are cosign's, and
//! what may be used is up to the policy of signatures.

use clap::{Args, Subcommand};

use crate::{Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum TrustCommand {
    /// Return low-level information about keys and signatures
    Inspect(Inspect),
    /// Manage keys for signing Docker images
    #[command(subcommand)]
    Key(Key),
    /// Remove trust for an image
    Revoke(Revoke),
    /// Sign an image
    Sign(Sign),
    /// Manage entities who can sign Docker images
    #[command(subcommand)]
    Signer(Signer),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Generate and load a signing key-pair
    Generate(Generate),
    /// Load a private key file for signing
    Load(Load),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Signer {
    /// Add a signer
    Add(Add),
    /// Remove a signer
    Remove(Remove),
}

/// Arguments that are checked by their form only.
macro_rules! arguments {
    ($($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* })*) => {$(
        #[derive(Debug, Args)]
        #[allow(dead_code, reason = "the command is rejected whatever its arguments are")]
        pub(crate) struct $name {
            $($(#[$attribute])* $field: $type,)*
        }
    )*};
}

arguments! {
    Inspect {
        /// Print the information in a human friendly format
        #[arg(long)]
        pretty: bool,
        #[arg(required = true, value_name = "IMAGE[:TAG]")]
        images: Vec<String>,
    }
    Revoke {
        /// Do not prompt for confirmation
        #[arg(short, long)]
        yes: bool,
        #[arg(value_name = "IMAGE[:TAG]")]
        image: String,
    }
    Sign {
        /// Sign a locally tagged image
        #[arg(long)]
        local: bool,
        #[arg(value_name = "IMAGE:TAG")]
        image: String,
    }
    Generate {
        /// Directory to generate key in, defaults to current directory
        #[arg(long)]
        dir: Option<String>,
        name: String,
    }
    Load {
        /// Name for the loaded key
        #[arg(long)]
        name: Option<String>,
        keyfile: String,
    }
    Add {
        /// Path to the signer's public key file
        #[arg(long)]
        key: Vec<String>,
        name: String,
        #[arg(required = true, value_name = "REPOSITORY")]
        repositories: Vec<String>,
    }
    Remove {
        /// Do not prompt for confirmation before removing the most recent signer
        #[arg(short, long)]
        force: bool,
        name: String,
        #[arg(required = true, value_name = "REPOSITORY")]
        repositories: Vec<String>,
    }
}

/// Rejects a command of `whelk trust`.
pub(crate) fn group(_: TrustCommand) -> Outcome {
    Err(Failure::new(
        "whelk: trust: content trust is not available in this version of whelk; cosign signs images, and `whelk pull --verify` verifies them",
    ))
}
