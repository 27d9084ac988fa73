//! Bridges and other interfaces, address management, published ports, DNS answers and firewall
//! rules for containers.
//!
//! All calls block; most talk netlink. The engine's records describe the desired state; this crate
//! applies it to the host.
#![forbid(unsafe_code)]

mod conntrack;
pub mod dns;
pub mod dns_sockets;
mod error;
mod firewall;
mod forward_accept;
#[doc(hidden)]
pub mod fuzzing;
pub mod ipam;
mod link;
pub mod namespace;
mod netlink;
mod nft;
mod owner;
pub mod port;

pub use error::{Error, Result};
pub use firewall::{BridgeRules, Firewall, RulesetChanges, SenderRules};
pub use forward_accept::ForwardAccept;
pub use link::{Link, Links, MAX_INTERFACE_NAME, Peer, Port};
