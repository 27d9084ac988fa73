//! The TLS handshakes that are under way on a listener, and the log of those that failed. Neither may
//! grow with the number of clients that connect and never finish.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use whelk_sys::sync::IgnorePoison;

/// Maximum number of clients of one listener that have not completed the TLS handshake.
const MAX_HANDSHAKES: usize = 128;

/// The handshakes of a listener's clients, oldest first. If there are too many, the oldest one of the
/// network that has most of them is aborted: neither idle connections nor a flood from one place keeps
/// others away.
#[derive(Debug, Default)]
pub(crate) struct Handshakes(VecDeque<(IpAddr, oneshot::Sender<()>)>);

impl Handshakes {
    /// Registers a handshake. It is to be aborted when the future resolves, and ends when the
    /// future is dropped.
    pub(crate) fn begin(&mut self, client: IpAddr) -> oneshot::Receiver<()> {
        self.0.retain(|(_, handshake)| !handshake.is_closed());
        let (handshake, aborted) = oneshot::channel();
        self.0.push_back((network(client), handshake));
        if self.0.len() > MAX_HANDSHAKES
            && let Some(position) = self.most_expendable()
        {
            self.0.remove(position);
        }
        aborted
    }

    fn most_expendable(&self) -> Option<usize> {
        let mut counts = HashMap::<_, usize>::new();
        for (network, _) in &self.0 {
            *counts.entry(network).or_default() += 1;
        }
        let most = counts.values().max().copied();
        self.0
            .iter()
            .position(|(network, _)| counts.get(network).copied() == most)
    }
}

/// Returns what stands for a client: its IPv4 address, or its IPv6 network, of which it can use all
/// 2^64 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

/// The log of failed handshakes, limited to [`MAX_LINES`] in [`PERIOD`], so that clients without a
/// certificate cannot fill it. At debug level, all of them are logged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures(Arc<Mutex<Quota>>);

const MAX_LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Quota {
    /// When the period began, and the number of failures in it.
    period: Option<(Instant, u32)>,
}

impl Failures {
    pub(crate) fn log(&self, client: SocketAddr, error: &std::io::Error) {
        let (is_logged, omitted) = self.0.lock().ignore_poison().admit(Instant::now());
        if omitted > 0 {
            tracing::info!("TLS: {omitted} more handshakes have failed");
        }
        if is_logged {
            tracing::info!("TLS handshake with {client}: {error}");
        } else {
            tracing::debug!("TLS handshake with {client}: {error}");
        }
    }
}

impl Quota {
    /// Counts a failure. Returns whether it is logged, and the number of those of the previous period
    /// that were not.
    fn admit(&mut self, now: Instant) -> (bool, u32) {
        match &mut self.period {
            Some((begin, count)) if now.saturating_duration_since(*begin) < PERIOD => {
                *count = count.saturating_add(1);
                (*count <= MAX_LINES, 0)
            }
            period => {
                let count = period.map_or(0, |(_, count)| count);
                *period = Some((now, 1));
                (true, count.saturating_sub(MAX_LINES))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: oneshot::error::TryRecvError = oneshot::error::TryRecvError::Empty;
    const ABORTED: oneshot::error::TryRecvError = oneshot::error::TryRecvError::Closed;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn the_oldest_handshake_is_ended_at_the_limit() {
        let mut handshakes = Handshakes::default();
        let mut oldest = handshakes.begin(address(1));
        drop(handshakes.begin(address(1)));
        let mut second = handshakes.begin(address(1));
        let rest: Vec<_> = (2..MAX_HANDSHAKES)
            .map(|_| handshakes.begin(address(1)))
            .collect();
        assert_eq!(
            oldest.try_recv(),
            Err(EMPTY),
            "one that has ended does not count"
        );
        let newest = handshakes.begin(address(1));
        assert_eq!(oldest.try_recv(), Err(ABORTED));
        assert_eq!(second.try_recv(), Err(EMPTY));
        drop((rest, newest));
    }

    #[test]
    fn a_flood_from_one_address_does_not_block_others() {
        let mut handshakes = Handshakes::default();
        let mut honest = handshakes.begin(address(1));
        let mut flood: Vec<_> = (0..1000).map(|_| handshakes.begin(address(9))).collect();
        assert_eq!(honest.try_recv(), Err(EMPTY));
        let aborted = flood
            .iter_mut()
            .map(|handshake| handshake.try_recv())
            .filter(|state| *state == Err(ABORTED))
            .count();
        assert_eq!(aborted, 1000 - (MAX_HANDSHAKES - 1));
        // A client that connects later keeps its place, too.
        let mut late = handshakes.begin(address(2));
        let more: Vec<_> = (0..1000).map(|_| handshakes.begin(address(9))).collect();
        assert_eq!(
            (honest.try_recv(), late.try_recv()),
            (Err(EMPTY), Err(EMPTY))
        );
        drop((flood, more));
    }

    #[test]
    fn ipv6_addresses_of_a_64_bit_prefix_count_as_one() {
        for (one, other, is_same) in [
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::1", "2001:db8::ffff:0:0:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let network = |text: &str| text.parse().map(network);
            assert_eq!(network(one) == network(other), is_same, "{one} {other}");
        }
    }

    #[test]
    fn the_log_of_failures_is_limited() {
        let mut quota = Quota::default();
        let begin = Instant::now();
        for index in 0..100 {
            let (is_logged, omitted) = quota.admit(begin + PERIOD / 200 * index);
            assert_eq!((is_logged, omitted), (index < MAX_LINES, 0), "{index}");
        }
        assert_eq!(quota.admit(begin + PERIOD), (true, 100 - MAX_LINES));
        assert_eq!(quota.admit(begin + PERIOD * 3), (true, 0));
    }
}
