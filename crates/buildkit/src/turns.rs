//! Turns: the right to a thread that waits for the other side of a stream.
//!
//! A runtime has a limited number of threads for blocking work, which all operations of the engine need. A peer that neither
//! sends nor takes anything holds the thread of its stream, so there is a maximum of such streams; when it is reached, those
//! end whose peers do nothing.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use whelk_sys::sync::IgnorePoison as _;

/// How long a peer may neither send nor take anything when others need its turn.
pub const MAX_STALL: Duration = Duration::from_secs(120);

/// How long is waited for a turn that was taken from such a peer, and between two looks for one.
const HANDOVER: Duration = Duration::from_secs(5);

/// Why the stream of such a peer ended.
pub const STALLED: &str =
    "the client has sent or taken nothing for minutes, and others need its place";

/// The turns of outputs and blobs that clients take.
pub static OUTPUTS: Turns = Turns::new(64);

/// A number of turns.
#[derive(Debug)]
pub struct Turns {
    free: Semaphore,
    peers: Mutex<Vec<Weak<Peer>>>,
}

/// The other side of a stream.
#[derive(Debug, Default)]
pub struct Peer {
    /// When it has begun to be waited for, if it is.
    awaited_since: Mutex<Option<Instant>>,
    end: Notify,
}

/// The right to a thread, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    pub peer: Arc<Peer>,
    runtime: Handle,
    _permit: SemaphorePermit<'static>,
}

impl Turns {
    pub const fn new(most: usize) -> Self {
        Self {
            free: Semaphore::const_new(most),
            peers: Mutex::new(Vec::new()),
        }
    }

    /// Takes a turn. Waits until there is one.
    pub async fn begin(&'static self) -> Turn {
        loop {
            if let Some(turn) = self.begin_soon().await {
                return turn;
            }
            if let Ok(Ok(permit)) = tokio::time::timeout(HANDOVER, self.free.acquire()).await {
                return self.turn(permit);
            }
        }
    }

    /// Takes a turn. If there is none, one is taken from a peer that does nothing; returns `None` if all do something.
    pub async fn begin_soon(&'static self) -> Option<Turn> {
        let mut permit = self.free.try_acquire().ok();
        if permit.is_none() && self.end_stalled(MAX_STALL) {
            let handed_over = tokio::time::timeout(HANDOVER, self.free.acquire()).await;
            permit = handed_over.ok().and_then(Result::ok);
        }
        permit.map(|permit| self.turn(permit))
    }

    fn turn(&'static self, permit: SemaphorePermit<'static>) -> Turn {
        Turn {
            peer: self.add(),
            runtime: Handle::current(),
            _permit: permit,
        }
    }

    fn add(&self) -> Arc<Peer> {
        let peer = Arc::<Peer>::default();
        let mut peers = self.peers.lock().ignore_poison();
        peers.retain(|peer| peer.strong_count() > 0);
        peers.push(Arc::downgrade(&peer));
        peer
    }

    /// Ends the streams of peers that are waited for since `stall` ago or longer. Returns whether there are any.
    fn end_stalled(&self, stall: Duration) -> bool {
        let peers = self.peers.lock().ignore_poison();
        let stalled = peers
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|peer| peer.has_stalled(stall));
        stalled.map(|peer| peer.end()).count() > 0
    }
}

/// Waiting for a peer, also if that is given up.
struct Waiting<'a>(&'a Peer);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.awaited_since.lock().ignore_poison() = None;
    }
}

impl Turn {
    /// Waits for the peer on this thread, which may block. Returns `None` if that takes so long that others get the turn.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.runtime.block_on(self.peer.wait(work))
    }
}

impl Peer {
    /// Waits for the peer. Returns `None` if that takes so long that others get its turn.
    pub async fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        *self.awaited_since.lock().ignore_poison() = Some(Instant::now());
        let _waiting = Waiting(self);
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.end.notified() => None,
        }
    }

    /// Ends the stream, as if others needed the turn.
    pub fn end(&self) {
        self.end.notify_one();
    }

    fn has_stalled(&self, stall: Duration) -> bool {
        let since = *self.awaited_since.lock().ignore_poison();
        since.is_some_and(|since| since.elapsed() >= stall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_peer_that_is_waited_for_loses_its_turn() {
        let turns = Turns::new(2);
        let (idle, busy) = (turns.add(), turns.add());
        assert!(!turns.end_stalled(Duration::ZERO), "nobody is waited for");
        let waits = idle.wait(std::future::pending::<()>());
        let ends = async {
            assert!(!turns.end_stalled(Duration::from_secs(60)));
            assert!(turns.end_stalled(Duration::ZERO));
        };
        let (ended, ()) = tokio::join!(waits, ends);
        assert_eq!(ended, None);
        assert_eq!(busy.wait(std::future::ready(1)).await, Some(1));
        assert!(!turns.end_stalled(Duration::ZERO));
        let given_up = busy.wait(std::future::pending::<()>());
        assert!(
            tokio::time::timeout(Duration::ZERO, given_up)
                .await
                .is_err()
        );
        assert!(!turns.end_stalled(Duration::ZERO));
    }

    #[tokio::test]
    async fn a_turn_is_waited_for() {
        static TURNS: Turns = Turns::new(1);
        let turn = TURNS.begin().await;
        assert!(TURNS.begin_soon().await.is_none());
        let waiting = tokio::spawn(async { drop(TURNS.begin().await) });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(turn);
        waiting.await.unwrap();
    }
}
