//! Lines of the log that were lost, until the engine is told of them.

use std::time::{Duration, Instant};

use crate::client::Role;
use crate::container::Shim;
use crate::protocol::{Event, LostLines};

/// Minimum time between two events about lost lines.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// The time between two events about lost lines, while lines are lost all the time: each is twice as long as
/// the one before. The engine remembers a limited number of events.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Lines that did not reach one place.
pub(crate) struct Losses {
    /// The name of the log driver that stands for the place.
    driver: &'static str,
    /// Lines that were not published yet, and why the last of them was lost.
    lines: u64,
    cause: String,
    publish_at: Instant,
    pause: Duration,
}

impl Losses {
    pub(crate) fn new(driver: &'static str) -> Self {
        Self {
            driver,
            lines: 0,
            cause: String::new(),
            publish_at: Instant::now(),
            pause: SHORTEST_PAUSE,
        }
    }

    pub(crate) fn add(&mut self, lines: u64, cause: &str) {
        if lines == 0 {
            return;
        }
        if self.lines == 0 && Instant::now() > self.publish_at + LONGEST_PAUSE {
            self.pause = SHORTEST_PAUSE;
        }
        self.lines += lines;
        cause.clone_into(&mut self.cause);
    }

    /// Returns when there is something to publish.
    fn deadline(&self) -> Option<Instant> {
        (self.lines > 0).then_some(self.publish_at)
    }

    /// Returns what is to be published at this time.
    fn take_due(&mut self, now: Instant) -> Option<LostLines> {
        if self.publish_at > now {
            return None;
        }
        let lost = self.take()?;
        self.publish_at = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Some(lost)
    }

    fn take(&mut self) -> Option<LostLines> {
        let lines = std::mem::take(&mut self.lines);
        (lines > 0).then(|| LostLines {
            lines,
            driver: self.driver.to_owned(),
            cause: self.cause.clone(),
        })
    }
}

impl Shim {
    /// Counts lines that could not be written to the log's file since the last call.
    pub(crate) fn count_unwritten(&mut self) {
        if let Some((lines, cause)) = self.log.take_lost() {
            self.unwritten.add(lines, &cause);
        }
    }

    /// Returns when [`Shim::publish_losses`] has something to do.
    pub(crate) fn losses_deadline(&self) -> Option<Instant> {
        let to_collector = self.forward.as_ref().map(|forward| &forward.losses);
        let all = [Some(&self.unwritten), to_collector].into_iter().flatten();
        all.filter_map(Losses::deadline)
            .min()
            .filter(|_| self.has_subscriber())
    }

    /// Tells the engine of losses, if it is time to.
    pub(crate) fn publish_losses(&mut self) {
        let now = Instant::now();
        self.publish_each(|losses| losses.take_due(now));
    }

    /// Tells the engine of all losses when the container has ended. Returns those that no engine was told of.
    pub(crate) fn end_losses(&mut self) -> Vec<LostLines> {
        self.count_unwritten();
        self.publish_each(Losses::take);
        let to_collector = self.forward.take().map(|forward| forward.losses);
        let own = self.unwritten.take();
        own.into_iter()
            .chain(to_collector.and_then(|mut losses| losses.take()))
            .collect()
    }

    fn publish_each(&mut self, mut take: impl FnMut(&mut Losses) -> Option<LostLines>) {
        if !self.has_subscriber() {
            return;
        }
        let to_collector = self.forward.as_mut().map(|forward| &mut forward.losses);
        let all = [Some(&mut self.unwritten), to_collector];
        let found: Vec<LostLines> = all.into_iter().flatten().filter_map(&mut take).collect();
        for lost in found {
            self.publish(&Event::LogLost(lost));
        }
    }

    fn has_subscriber(&self) -> bool {
        let mut roles = self.clients.values().map(|client| &client.role);
        roles.any(|role| matches!(role, Role::Subscriber))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_that_go_on_are_told_of_less_often() {
        let mut losses = Losses::new("local");
        let start = losses.publish_at;
        assert_eq!(losses.deadline(), None);
        assert_eq!(losses.take_due(start), None);
        losses.add(0, "nothing");
        assert_eq!(losses.deadline(), None);
        let mut now = start;
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            losses.add(1, "first");
            losses.add(2, "second");
            assert_eq!(losses.deadline(), Some(now));
            assert_eq!(losses.take_due(now - Duration::from_millis(1)), None);
            let lost = losses.take_due(now).unwrap();
            assert_eq!(
                (lost.lines, &*lost.driver, &*lost.cause),
                (3, "local", "second")
            );
            now += Duration::from_secs(pause);
        }
    }
}
