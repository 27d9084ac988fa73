//! The lines that wait for the process that sends them.

use crate::logs::record_length;

/// Complete records that the sender does not have completely.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Where the first of them begins. What is before it is removed now and then, because that moves the
    /// rest.
    begin: usize,
    /// What the sender does not have begins here: at most in the middle of the first record.
    unsent: usize,
    records: u64,
}

impl Outbox {
    /// What stays allocated, in bytes, and what is not worth to be moved.
    const SMALL: usize = 64 << 10;

    pub(super) fn is_empty(&self) -> bool {
        self.begin == self.bytes.len()
    }

    /// Returns the size of the records in bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() - self.begin
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Appends a record.
    pub(super) fn push(&mut self, record: &[u8]) {
        self.bytes.extend(record);
        self.records += 1;
    }

    /// Returns what the sender does not have.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.unsent..]
    }

    /// Removes records that the sender has, after it has taken `count` more bytes. Returns their number.
    pub(super) fn take(&mut self, count: usize) -> u64 {
        self.unsent += count;
        let mut complete = 0;
        while let Some(length) = record_length(&self.bytes[self.begin..])
            && self.begin + length <= self.unsent
        {
            self.begin += length;
            complete += 1;
        }
        self.records -= complete;
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(Self::SMALL);
            (self.begin, self.unsent) = (0, 0);
        } else if self.begin > Self::SMALL.max(self.bytes.len() / 2) {
            self.bytes.drain(..self.begin);
            self.unsent -= self.begin;
            self.begin = 0;
        }
        complete
    }

    /// Encodes the records, for [`Outbox::decode`].
    pub(super) fn encode(&self) -> Vec<u8> {
        let sent = (self.unsent - self.begin) as u64;
        [&sent.to_le_bytes()[..], &self.bytes[self.begin..]].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let mut outbox = Self::default();
        if let Some((sent, rest)) = bytes.split_first_chunk() {
            records(rest).for_each(|record| outbox.push(record));
            let sent = usize::try_from(u64::from_le_bytes(*sent)).unwrap_or(0);
            outbox.take(sent.min(outbox.size()));
        }
        outbox
    }

    /// Begins again with the first record, for another sender.
    pub(super) fn rewind(&mut self) {
        self.unsent = self.begin;
    }
}

/// Splits bytes into records.
pub(super) fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = record_length(bytes).filter(|length| *length <= bytes.len())?;
        let (record, rest) = bytes.split_at(length);
        bytes = rest;
        Some(record)
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::logs::{LogRecord, Stream, encode_record};

    fn record(line: &str) -> Vec<u8> {
        encode_record(&LogRecord {
            time: 1,
            stream: Stream::Stdout,
            data: line.as_bytes().to_vec(),
            attributes: Default::default(),
        })
    }

    #[test]
    fn records_are_taken_and_sent_again_from_the_beginning() {
        let mut outbox = Outbox::default();
        let (first, second) = (record("one\n"), record("second\n"));
        outbox.push(&first);
        outbox.push(&second);
        assert_eq!(outbox.records(), 2);
        assert_eq!(outbox.take(first.len() - 1), 0);
        assert_eq!(outbox.take(3), 1);
        assert_eq!(outbox.unsent(), &second[2..]);
        let copy = Outbox::decode(&outbox.encode());
        assert_eq!((copy.unsent(), copy.records()), (&second[2..], 1));
        outbox.rewind();
        assert_eq!(outbox.unsent(), second);
        assert_eq!(outbox.size(), second.len());
        assert_eq!(outbox.take(second.len()), 1);
        assert!(outbox.is_empty() && outbox.records() == 0);
        let both = [first.clone(), second.clone(), second[..3].to_vec()].concat();
        assert!(records(&both).eq([&first[..], &second[..]]));
    }

    /// Removing from the front of the whole buffer each time took minutes.
    #[test]
    fn a_large_buffer_is_emptied_in_small_pieces_quickly() {
        let line = record(&format!("{}\n", "x".repeat(1000)));
        let mut outbox = Outbox::default();
        let count = 100_000;
        for _ in 0..count {
            outbox.push(&line);
        }
        let begin = Instant::now();
        let mut taken = 0;
        while !outbox.is_empty() {
            taken += outbox.take(line.len());
        }
        assert_eq!(taken, count);
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{:?}",
            begin.elapsed()
        );
        assert!(outbox.bytes.capacity() <= Outbox::SMALL);
    }
}
