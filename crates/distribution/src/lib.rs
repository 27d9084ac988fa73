//! A registry: the server side of the OCI distribution protocol, version 1.1.
//!
//! ```text
//! <root>/blobs/…, tmp/, trash/    the content of blobs and manifests (`whelk_image::Store`)
//!       /cache                                         of a cache: its upstream's URL
//!       /damaged/<digits>                              blobs whose content has changed
//!       /repositories/NAME/_blobs/<digits>             empty: the repository has this blob
//!                         /_manifests/<digits>         a manifest's media type
//!                         /_tags/<tag>                 a manifest's digest
//!                         /_referrers/<digits>/<digits>  by subject: a manifest's descriptor
//!                         /_uploads/<id>               the beginning of a blob
//! ```
//! A component of a repository's name does not begin with `_`. Content is shared by all repositories.
//! The links say which content a repository has; each is renamed into place after its content is on disk
//! ([`records`]). A change is on disk before its request succeeds.
//!
//! [`server`] accepts connections, [`routes`] decodes requests; [`upstream`] makes the registry a cache
//! of another one. The rest is blocking code that runs on threads that may block.
#![forbid(unsafe_code)]

mod auth;
mod blobs;
mod blocking;
mod body;
mod check;
mod damage;
mod error;
mod garbage;
mod manifests;
mod names;
mod records;
mod rights;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod uploads;
mod upstream;

pub use auth::Passwords;
pub use check::Checked;
pub use garbage::{Keep, Schedule};
pub use records::Registry;
pub use rights::Rights;
pub use server::{Settings, serve};
pub use tls::Tls;
pub use upstream::Upstream;
