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
/// Number of past events of health checks kept beside them. There can be hundreds a second.
const REMEMBERED_CHECKS: usize = 256;
/// Number of events that a subscriber may lag behind before it loses some.
const BACKLOG: usize = 4096;

#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    past: Mutex<Past>,
}

/// The buffered events, with their numbers. Those of health checks do not push out the others.
#[derive(Debug, Default)]
struct Past {
    count: u64,
    events: VecDeque<(u64, Arc<Event>)>,
    checks: VecDeque<(u64, Arc<Event>)>,
}

impl Past {
    fn add(&mut self, event: Arc<Event>, is_check: bool) {
        let (kept, most) = if is_check {
            (&mut self.checks, REMEMBERED_CHECKS)
        } else {
            (&mut self.events, REMEMBERED)
        };
        if kept.len() == most {
            kept.pop_front();
        }
        kept.push_back((self.count, event));
        self.count += 1;
    }

    /// Returns the events in the order in which they were published.
    fn all(&self) -> Vec<Arc<Event>> {
        let both = self.events.iter().chain(&self.checks);
        let mut numbered: Vec<&(u64, Arc<Event>)> = both.collect();
        numbered.sort_unstable_by_key(|(number, _)| *number);
        numbered
            .into_iter()
            .map(|(_, event)| event.clone())
            .collect()
    }
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
        self.publish_event(kind, action.into(), id.into(), attributes, false);
    }

    /// Publishes an event of a health check of a container.
    pub(crate) fn publish_check(
        &self,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) {
        self.publish_event("container", action.into(), id.into(), attributes, true);
    }

    fn publish_event(
        &self,
        kind: &'static str,
        action: String,
        id: String,
        attributes: BTreeMap<String, String>,
        is_check: bool,
    ) {
        let event = Arc::new(Event {
            time: now(),
            kind,
            action,
            id,
            attributes,
        });
        let mut past = self.past.lock().ignore_poison();
        past.add(event.clone(), is_check);
        // Sent under the lock, so that a new subscriber gets each event exactly once: from the
        // buffer or from the channel.
        let _ = self.sender.send(event);
    }

    /// Returns the buffered events, and a receiver of all later ones.
    pub fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let past = self.past.lock().ignore_poison();
        (past.all(), self.sender.subscribe())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_do_not_push_out_other_events() {
        let events = Events::default();
        let publish = |action: &str, is_check: bool| {
            if is_check {
                events.publish_check(action, "x", BTreeMap::new());
            } else {
                events.publish("container", action, "x", BTreeMap::new());
            }
        };
        publish("create", false);
        for _ in 0..5000 {
            publish("exec_start", true);
        }
        publish("die", false);
        publish("exec_die", true);
        let (past, _) = events.subscribe();
        let actions: Vec<&str> = past.iter().map(|event| event.action.as_str()).collect();
        assert_eq!(actions.len(), 2 + REMEMBERED_CHECKS);
        assert_eq!((actions[0], actions[1]), ("create", "exec_start"));
        assert_eq!(actions[actions.len() - 2..], ["die", "exec_die"]);
        for _ in 0..REMEMBERED {
            publish("start", false);
        }
        let (past, _) = events.subscribe();
        assert_eq!(past.len(), REMEMBERED + REMEMBERED_CHECKS);
        assert!(past.iter().all(|event| event.action != "die"));
    }
}
