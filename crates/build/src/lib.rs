//! The builder: solves low-level builds, caches their results, and exports them as images.
//!
//! ```text
//! classic (POST /build) ─┐
//!                        ├─► convert ─► plan ─► solve ─► ops ─► layers ─► export      (request)
//! BuildKit's protocol   ─┘                │                      │
//!                                        cache ◄──── sealed ─────┘
//! ```
//! Each API of builds makes a [`Request`], with a [`Client`] that sends directories and credentials, calls [`Builder::convert`],
//! [`Builder::plan`], [`Builder::solve`] and [`Builder::export`], and reads [`Progress`] meanwhile.
//!
//! A result of a step is a stack of layers. What a step has written is in a directory at first, which the next steps
//! already stand on; beside them it is sealed: stored as a layer of the image store. Then it is recorded in the
//! cache, so that a result that is found there is complete.
#![forbid(unsafe_code)]

mod accompanied;
mod attest;
mod bundle;
mod cache;
mod caches;
pub mod classic;
mod client;
mod directory;
pub mod emulation;
mod entitlements;
mod error;
mod explain;
mod exporter;
mod failed;
mod frontend;
pub mod gc;
mod index;
mod layers;
mod listing;
mod log;
mod ops;
mod padding;
pub mod policy;
mod progress;
pub mod provenance;
mod publish;
mod request;
mod sbom;
mod select;
mod snapshot;
mod solver;
mod sources;
mod spool;
mod statement;
mod supplement;
mod transfer;
mod tree;
mod usage;

use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Semaphore, watch};
use whelk_engine::Engine;

pub use attest::{Attest, Sbom};
pub use bundle::{Attestation, SPDX};
pub use cache::Cache;
pub use client::{Client, Pieces};
pub use directory::{Content, Directory, Index, WeakDirectory};
pub use entitlements::{AllowedEntitlements, Devices, Entitlements};
pub use error::{Error, Result};
pub use exporter::{Finished, StoredManifest};
pub use failed::{Failed, FailedPart, FailedSteps, Remains};
pub use frontend::Frontend;
pub use index::{IndexSettings, Member, StoredIndex};
pub use layers::View;
pub use log::{Frames, Log};
pub use ops::{
    Container, ContainerRequest, Process, ProcessControl, ProcessExit, ProcessOutput,
    ProcessRequest, Settings,
};
pub use progress::{Event, EventKind, Follower, FrontendWarning, Progress, Work};
pub use publish::PackedImage;
pub use request::{Converted, Request, ResolvedImage, Solved, parse_reference};
pub use sbom::Scanned;
pub use snapshot::Snapshot;
pub use solver::Job;
pub use sources::{Images, Resolved, has_metadata};
pub use statement::{Bill, Encoded, Statement, Subject, subject};
pub use transfer::{Export as CacheExport, Import as CacheImport, Imports, OutgoingBlob};
pub use usage::{HeldCache, Locals, Pruned, StoredDirectory};

use caches::Caches;
use solver::Flights;
use sources::fetched::FetchedDirectories;
use sources::http::WebFiles;
use usage::Collected;

/// Processes that run at the same time for each processor: some wait for the network or the disk.
const STEPS_PER_PROCESSOR: usize = 4;

/// Packs and layers that are unpacked as they come, at the same time.
const TRANSFERS: usize = 32;

/// How the cache is kept to a budget.
#[derive(Clone, Debug)]
pub struct GcSettings {
    pub is_collected: bool,
    /// The space of Docker's policies; none for one that depends on the disk.
    pub space: Option<gc::Policy>,
    /// Replace Docker's policies.
    pub policies: Vec<gc::Policy>,
}

impl Default for GcSettings {
    fn default() -> Self {
        Self {
            is_collected: true,
            space: None,
            policies: Vec::new(),
        }
    }
}

/// The builder of an engine.
#[derive(Debug)]
pub struct Builder {
    engine: Arc<Engine>,
    cache: Arc<Cache>,
    /// Steps that are being executed, or sealed.
    flights: Mutex<Flights>,
    /// Changes when a result is recorded.
    recorded: watch::Sender<()>,
    caches: Caches,
    web: WebFiles,
    /// Checkouts of git repositories.
    git: FetchedDirectories,
    /// Limits the processes that run at the same time.
    steps: Arc<Semaphore>,
    /// Limits the threads that wait for the bytes of packs and layers.
    transfers: Arc<Semaphore>,
    /// Limits the frontends that run at the same time.
    frontends: Arc<Semaphore>,
    /// Limits the containers of frontends.
    containers: Arc<Semaphore>,
    gc: GcSettings,
    /// What requests may ask for.
    pub allowed: AllowedEntitlements,
    collected: Mutex<Collected>,
    locals: Mutex<Option<Weak<dyn Locals>>>,
    settled: classic::Settled,
}

impl Builder {
    /// Returns the builder of an engine, whose cache was opened before the engine ([`Cache::open`]).
    pub fn new(
        engine: Arc<Engine>,
        cache: Cache,
        gc: GcSettings,
        allowed: AllowedEntitlements,
    ) -> Arc<Self> {
        // A killed engine leaves them.
        if let Err(error) = ops::remove_secrets(&engine.instance.run) {
            tracing::warn!("remove secrets of builds: {error}");
        }
        let fetched = |kind: &str| {
            let path = engine.instance.root.join("build").join(kind);
            let staging = engine.images.store().staging.clone();
            FetchedDirectories::new(path, staging, cache.boot())
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            caches: Caches::new(&engine.instance.root),
            web: WebFiles::new(fetched("http")),
            git: fetched("git"),
            engine,
            cache: Arc::new(cache),
            flights: Mutex::default(),
            recorded: watch::Sender::default(),
            steps: Arc::new(Semaphore::new(STEPS_PER_PROCESSOR * processors)),
            transfers: Arc::new(Semaphore::new(TRANSFERS)),
            frontends: Arc::new(Semaphore::new(frontend::MOST)),
            containers: Arc::new(Semaphore::new(ops::MAX_CONTAINERS)),
            gc,
            allowed,
            collected: Mutex::default(),
            locals: Mutex::default(),
            settled: classic::Settled::default(),
        })
    }

    /// The id of this boot: what was written in another one may not be whole.
    pub fn boot(&self) -> &str {
        self.cache.boot()
    }

    /// The engine's images and layers.
    pub fn store(&self) -> &whelk_image::Store {
        self.engine.images.store()
    }
}

/// Decoders of untrusted input, for fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    /// Reads bytes as what servers of git repositories send: packets, trees, commits, and `.gitmodules`.
    pub fn repository(bytes: &[u8]) {
        crate::sources::git::decode(bytes);
    }

    /// Reads bytes as the manifest and the records of a build cache, and looks all records up.
    pub fn cache(bytes: &[u8]) {
        crate::transfer::decode(bytes);
    }
}

/// Runs work on a thread that may block.
///
/// # Errors
/// Returns the error of the work, and one if it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("a thread of the build: {error}")))?
}
