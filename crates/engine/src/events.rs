//! The engine's events: one broadcast channel for all subscribers, and a buffer of recent events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use whelk_sys::sync::IgnorePoison as _;

use tokio::sync::broadcast;

/// One event, as `GET /events` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since the epoch.
    pub time: i64,
    /// The kind of the object: `container`, `image`.
    pub kind: &'static str,
    /// The action: `start`, `exec_create: sh -c true`.
    pub action: String,
    /// The object's id; for an image its id or name.
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

/// Number of past events kept for `since`.
const REMEMBERED: usize = 1024;
/// Number of events that a subscriber may lag behind before it loses some.
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
        let mut past = self.past.lock().ignore_poison();
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Sent under the lock, so that a new subscriber gets each event exactly once: from the
        // buffer or from the channel.
        let _ = self.sender.send(event);
    }

    /// Returns the buffered events, and a receiver of all later ones.
    pub fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let past = self.past.lock().ignore_poison();
        (past.iter().cloned().collect(), self.sender.subscribe())
    }

    /// Returns the number of subscribers.
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }
}

/// Returns the current time in nanoseconds since the epoch.
pub fn now() -> i64 {
    whelk_shim::logs::now()
}
