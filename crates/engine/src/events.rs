//! What happened, to whoever wants to know: one bus for the whole engine, with a memory of the
//! recent past.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since the epoch.
    pub time: i64,
    /// What kind of object: `container`, `image`.
    pub kind: &'static str,
    /// What happened to it: `start`, `exec_create: sh -c true`.
    pub action: String,
    /// The object's id (an image's name, where it has one).
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

/// How many events are remembered for those who ask about the past.
const REMEMBERED: usize = 1024;
/// How far behind a listener may be before it misses some.
const BACKLOG: usize = 4096;

#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    past: Mutex<VecDeque<Arc<Event>>>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            past: Mutex::default(),
        }
    }
}

impl Events {
    pub fn publish(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) {
        let event = Arc::new(Event {
            time: now(),
            kind,
            action: action.into(),
            id: id.into(),
            attributes,
        });
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Sent under the lock, so that a new listener sees each event either in the past or live,
        // never in both.
        let _ = self.sender.send(event);
    }

    /// The remembered events, and all later ones.
    pub fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        (past.iter().cloned().collect(), self.sender.subscribe())
    }

    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }
}

/// Nanoseconds since the epoch, now.
pub fn now() -> i64 {
    whelk_shim::logs::now()
}
