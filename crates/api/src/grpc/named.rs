//! Builds that clients have named (`POST /build?version=2&buildid=ID`), by which others of their requests find them: one that
//! has the context, and one that cancels the build.
//!
//! ```text
//! POST /build?buildid=ID&remote=upload-request ── waits ──► context ─► build ─► its progress
//! POST /build?buildid=upload-request:ID  ── the archive ──┘
//! POST /build/cancel?id=ID ──► the build ends
//! ```
//! Clients send the first two at the same time.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use whelk_build::Pieces;
use whelk_engine::{Error, Result};

/// Time limit for the two requests to find each other, which is Docker's.
const PATIENCE: Duration = Duration::from_secs(5);

/// The builds that run, by the names that clients have given them.
#[derive(Debug, Default)]
pub struct Named(watch::Sender<HashMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    canceled: Arc<Notify>,
    /// Takes the context, if the build waits for one.
    upload: Option<Upload>,
}

struct Upload(oneshot::Sender<Pieces>);

impl fmt::Debug for Upload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Upload")
    }
}

/// The name of a build, as long as this exists.
#[derive(Debug)]
pub struct Name {
    buildkit: Arc<super::Buildkit>,
    id: String,
    canceled: Arc<Notify>,
}

impl Drop for Name {
    fn drop(&mut self) {
        let names = &self.buildkit.named.0;
        names.send_modify(|known| drop(known.remove(&self.id)));
    }
}

impl Name {
    /// Names a build.
    ///
    /// # Errors
    /// Returns an error if another build has the name.
    pub fn new(buildkit: &Arc<super::Buildkit>, id: &str) -> Result<Self> {
        let canceled = Arc::new(Notify::new());
        let entry = Entry {
            canceled: canceled.clone(),
            upload: None,
        };
        let is_new = buildkit.named.0.send_if_modified(|known| {
            let is_new = !known.contains_key(id);
            if is_new {
                known.insert(id.to_owned(), entry);
            }
            is_new
        });
        match is_new {
            true => Ok(Self {
                buildkit: buildkit.clone(),
                id: id.to_owned(),
                canceled,
            }),
            false => Err(Error::conflict(format!("a build with the id {id:?} runs"))),
        }
    }

    /// Waits until the build is canceled.
    pub async fn canceled(&self) {
        self.canceled.notified().await;
    }

    /// Waits for the context that the client sends in another request.
    ///
    /// # Errors
    /// Returns an error if there is no such request in time.
    pub async fn context(&self) -> Result<Pieces> {
        let (sender, receiver) = oneshot::channel();
        self.buildkit.named.0.send_modify(|known| {
            if let Some(entry) = known.get_mut(&self.id) {
                entry.upload = Some(Upload(sender));
            }
        });
        let waited = tokio::time::timeout(PATIENCE, receiver).await;
        waited
            .ok()
            .and_then(std::result::Result::ok)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "the context of the build {:?} was not sent within {} seconds",
                    self.id,
                    PATIENCE.as_secs()
                ))
            })
    }
}

impl Named {
    /// Gives a build its context.
    ///
    /// # Errors
    /// Returns an error if no build of this name wants one in time.
    pub async fn upload(&self, id: &str, context: Pieces) -> Result<()> {
        let mut known = self.0.subscribe();
        let wants = |known: &HashMap<String, Entry>| {
            known.get(id).is_some_and(|entry| entry.upload.is_some())
        };
        let _ = tokio::time::timeout(PATIENCE, known.wait_for(wants)).await;
        let mut upload = None;
        // No receiver has to see this change.
        self.0.send_if_modified(|known| {
            upload = known.get_mut(id).and_then(|entry| entry.upload.take());
            false
        });
        let given = upload.map(|Upload(sender)| sender.send(context).is_ok());
        match given {
            Some(true) => Ok(()),
            _ => Err(Error::NotFound(format!(
                "no build with the id {id:?} waits for a context"
            ))),
        }
    }

    /// Cancels a build. One that does not run any more needs nothing.
    pub fn cancel(&self, id: &str) {
        if let Some(entry) = self.0.borrow().get(id) {
            entry.canceled.notify_one();
        }
    }
}
