//! What connects containers: bridges and other interfaces, addresses, published ports, the rules
//! between them.
//!
//! Blocking code over netlink; the engine's records say what should be, this crate makes it so.
#![forbid(unsafe_code)]

mod conntrack;
pub mod dns;
mod error;
mod firewall;
pub mod ipam;
mod link;
pub mod names;
pub mod namespace;
mod netlink;
mod nft;
mod owner;
mod passage;
pub mod port;

pub use error::{Error, Result};
pub use firewall::{BridgeRules, Changes, Firewall, SenderRules};
pub use link::{LONGEST_NAME, Link, Links, Peer, Port};
pub use passage::Passage;
