//! Sandboxes: network namespaces with their endpoints and published ports, one for each running
//! container that has networks of its own.

mod addresses;
mod adopt;
mod attach;
mod connect;
mod interfaces;
mod members;
mod ports;
mod resolver;
mod routes;

pub use connect::ConnectRequest;
pub(super) use interfaces::FIRST_INTERFACE;
pub(crate) use members::split_link;
pub(crate) use ports::{check as check_ports, check_exposed};
pub(crate) use resolver::{host_resolver, resolved_servers, uses_resolver};
