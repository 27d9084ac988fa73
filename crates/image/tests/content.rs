//! Blobs that are streamed in and out: resumed, damaged, and from senders that lie.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test stops where something fails"
)]

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, SystemTime};

use common::{Bench, noise};
use whelk_image::content::{MAX_PARTIAL_AGE, Writer};
use whelk_image::{Algorithm, Digest, Error, Store, Used};
use whelk_sys::fs;

const SIZE: usize = 1_000_000;

struct Blob {
    bench: Bench,
    content: Vec<u8>,
    digest: Digest,
}

impl Blob {
    fn new() -> Self {
        Self::with(Algorithm::Sha256)
    }

    fn with(algorithm: Algorithm) -> Self {
        let content = noise(SIZE);
        Self {
            bench: Bench::new(),
            digest: algorithm.digest(&content),
            content,
        }
    }

    fn writer(&self) -> Writer {
        self.sized(Some(SIZE as u64))
    }

    fn sized(&self, size: Option<u64>) -> Writer {
        let store = &self.bench.store;
        let lease = store.leases.take();
        store.content.writer(&lease, &self.digest, size).unwrap()
    }

    /// Starts the blob with `content` and leaves it.
    fn start(&self, content: &[u8]) {
        self.writer().write_all(content).unwrap();
        self.check(content.len());
    }

    /// Checks that there is no blob under the name, and that its partial file has `length` bytes; 0
    /// for no file.
    #[track_caller]
    fn check(&self, length: usize) {
        let store = &self.bench.store;
        assert!(!fs::exists(store.content.path(&self.digest)));
        assert_eq!(self.bench.names("blobs/sha256"), [""; 0]);
        assert_eq!(self.bench.names("blobs/sha512"), [""; 0]);
        match length {
            0 => assert_eq!(self.bench.names("blobs/partial"), [""; 0]),
            length => {
                let partial = self.bench.base.join("store/blobs/partial");
                let file = fs::metadata(partial.join(self.digest.hex())).unwrap();
                assert_eq!(file.len(), length as u64);
            }
        }
        assert_eq!(self.bench.names("tmp"), [""; 0]);
    }

    #[track_caller]
    fn check_complete(&self) {
        let mut content = Vec::new();
        let mut reader = self.bench.store.content.reader(&self.digest).unwrap();
        assert_eq!(reader.size(), SIZE as u64);
        reader.read_to_end(&mut content).unwrap();
        assert!(content == self.content);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert_eq!(self.bench.names("blobs/partial"), [""; 0]);
        assert_eq!(self.bench.names("tmp"), [""; 0]);
    }
}

#[track_caller]
fn invalid(outcome: whelk_image::Result<()>, text: &str) {
    match outcome {
        Err(Error::Invalid(error)) => assert!(error.contains(text), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_blob_has_a_digest_of_either_algorithm() {
    let blob = Blob::with(Algorithm::Sha512);
    blob.start(&blob.content[..500_000]);
    let mut writer = blob.writer();
    assert_eq!(writer.offset(), 500_000);
    writer.write_all(&blob.content[500_000..]).unwrap();
    writer.commit().unwrap();
    blob.check_complete();
    let store = &blob.bench.store;
    assert_eq!(
        store.content.list().unwrap(),
        std::slice::from_ref(&blob.digest)
    );
    assert_eq!(blob.bench.names("blobs/sha256"), [""; 0]);
    assert_eq!(blob.bench.names("blobs/sha512"), [blob.digest.hex()]);
    // The same content under both digests, of which one is used.
    let lease = store.leases.take();
    let short = store.content.put(&lease, b"small").unwrap();
    let long = store.content.put_as(&lease, Algorithm::Sha512, b"small");
    let long = long.unwrap();
    assert_eq!(store.content.read(&long).unwrap(), b"small");
    drop(lease);
    let used = || Used {
        blobs: [long.clone()].into(),
        ..Used::default()
    };
    store.gc(MAX_PARTIAL_AGE, used).unwrap();
    assert_eq!(store.content.list().unwrap(), std::slice::from_ref(&long));
    fs::write(store.content.path(&long), "large").unwrap();
    invalid(store.content.read(&long).map(drop), "is damaged");
    assert!(store.content.read(&short).is_err());
}

#[test]
fn a_blob_is_written_in_several_attempts() {
    let blob = Blob::new();
    let ends = [1, 4096, 500_000, SIZE];
    let mut start = 0;
    for end in ends {
        let mut writer = blob.writer();
        assert_eq!(writer.offset(), start as u64);
        writer.write_all(&blob.content[start..end]).unwrap();
        if end == SIZE {
            writer.commit().unwrap();
        } else {
            drop(writer);
            blob.check(end);
        }
        start = end;
    }
    blob.check_complete();
}

#[test]
fn a_killed_writer_leaves_what_the_next_engine_continues() {
    let blob = Blob::new();
    let mut start = 0;
    for end in [0, 1, 300_000] {
        // A killed process drops nothing, and the next one knows nothing of its writers.
        let store = Store::open(&blob.bench.base.join("store")).unwrap();
        assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 0);
        let lease = store.leases.take();
        let mut writer = store.content.writer(&lease, &blob.digest, None).unwrap();
        assert_eq!(writer.offset(), start as u64);
        writer.write_all(&blob.content[start..end]).unwrap();
        // A second writer, whose file nobody can continue.
        let mut second = store.content.writer(&lease, &blob.digest, None).unwrap();
        second.write_all(b"abc").unwrap();
        std::mem::forget((writer, second));
        start = end;
    }
    let store = Store::open(&blob.bench.base.join("store")).unwrap();
    blob.check(start);
    store.staging.empty_trash().unwrap();
    store.staging.wait_for_disposal();
    let mut writer = blob.writer();
    writer.write_all(&blob.content[start..]).unwrap();
    writer.commit().unwrap();
    blob.check_complete();
}

#[test]
fn content_that_is_not_the_blob_is_refused_and_removed() {
    let blob = Blob::new();
    let mut other = blob.content.clone();
    other[SIZE / 2] ^= 1;
    let mut writer = blob.writer();
    writer.write_all(&other).unwrap();
    invalid(writer.commit(), &Digest::of(&other).to_string());
    blob.check(0);
    // The same without a size.
    let mut writer = blob.sized(None);
    writer.write_all(&blob.content[..10]).unwrap();
    invalid(
        writer.commit(),
        &Digest::of(&blob.content[..10]).to_string(),
    );
    blob.check(0);
}

#[test]
fn content_resumed_from_another_beginning_is_refused_and_removed() {
    let blob = Blob::new();
    blob.start(&vec![7; SIZE / 2]);
    let mut writer = blob.writer();
    writer.write_all(&blob.content[SIZE / 2..]).unwrap();
    invalid(writer.commit(), "has the digest");
    blob.check(0);
    // So the next attempt succeeds.
    let mut writer = blob.writer();
    writer.write_all(&blob.content).unwrap();
    writer.commit().unwrap();
    blob.check_complete();
}

#[test]
fn too_much_content_is_refused_and_removed() {
    let blob = Blob::new();
    for sent in [SIZE, SIZE - 1] {
        let mut writer = blob.writer();
        writer.write_all(&blob.content[..sent]).unwrap();
        let error = writer.write_all(b"ab").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("longer than its 1000000 bytes"));
        drop(writer);
        blob.check(0);
    }
    // A partial file that is longer than the blob, from a sender that gave another size.
    let mut writer = blob.sized(None);
    writer.write_all(&vec![7; SIZE + 1]).unwrap();
    drop(writer);
    blob.check(SIZE + 1);
    let mut writer = blob.writer();
    assert_eq!(writer.offset(), 0);
    writer.write_all(&blob.content).unwrap();
    writer.commit().unwrap();
    blob.check_complete();
}

#[test]
fn truncated_content_is_refused_and_can_be_continued() {
    let blob = Blob::new();
    let mut writer = blob.writer();
    writer.write_all(&blob.content[..SIZE - 1]).unwrap();
    invalid(writer.commit(), "truncated: 999999 of 1000000 bytes");
    blob.check(SIZE - 1);
    let mut writer = blob.writer();
    writer.write_all(&blob.content[SIZE - 1..]).unwrap();
    writer.commit().unwrap();
    blob.check_complete();
}

#[test]
fn a_sender_that_cannot_continue_starts_again() {
    let blob = Blob::new();
    blob.start(&blob.content[..1000]);
    let mut writer = blob.writer();
    writer.restart().unwrap();
    assert_eq!(writer.offset(), 0);
    writer.write_all(&blob.content).unwrap();
    writer.commit().unwrap();
    blob.check_complete();
}

#[test]
fn an_aborted_writer_leaves_nothing() {
    let blob = Blob::new();
    let mut writer = blob.writer();
    writer.write_all(b"abc").unwrap();
    writer.abort();
    blob.check(0);
}

#[test]
fn concurrent_writers_of_a_blob_do_not_share_a_file() {
    let blob = Blob::new();
    let (mut first, mut second) = (blob.writer(), blob.writer());
    first.write_all(&blob.content[..1000]).unwrap();
    assert_eq!(second.offset(), 0);
    second.write_all(&blob.content).unwrap();
    second.commit().unwrap();
    first.write_all(&blob.content[1000..]).unwrap();
    first.commit().unwrap();
    blob.check_complete();
}

#[test]
fn a_reader_detects_damaged_content() {
    let blob = Blob::new();
    let store = &blob.bench.store;
    assert!(matches!(
        store.content.reader(&blob.digest),
        Err(Error::NotFound(_))
    ));
    let mut writer = blob.writer();
    writer.write_all(&blob.content).unwrap();
    writer.commit().unwrap();
    let mut damaged = blob.content.clone();
    damaged[SIZE - 1] ^= 1;
    for content in [&damaged[..], &blob.content[1..], &[]] {
        fs::write(store.content.path(&blob.digest), content).unwrap();
        let mut reader = store.content.reader(&blob.digest).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("is damaged"));
    }
}

#[test]
fn old_partial_blobs_are_collected() {
    let blob = Blob::new();
    let store = &blob.bench.store;
    let path = blob
        .bench
        .base
        .join("store/blobs/partial")
        .join(blob.digest.hex());
    let age = |age: Duration| {
        let changed = SystemTime::now() - age;
        File::open(&path).unwrap().set_modified(changed).unwrap();
    };
    blob.start(&blob.content[..1000]);
    age(MAX_PARTIAL_AGE - Duration::from_secs(60));
    assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 0);
    age(MAX_PARTIAL_AGE + Duration::from_secs(60));
    let writer = blob.writer();
    assert_eq!(
        store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(),
        0,
        "it is written"
    );
    drop(writer);
    assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 1);
    blob.check(0);
    // What no writer can have made goes at once.
    fs::write(blob.bench.base.join("store/blobs/partial/x"), "x").unwrap();
    assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 1);
}

#[test]
fn a_lease_keeps_the_blob_that_was_written_under_it() {
    let blob = Blob::new();
    let store = &blob.bench.store;
    let lease = store.leases.take();
    let mut writer = store.content.writer(&lease, &blob.digest, None).unwrap();
    writer.write_all(&blob.content).unwrap();
    writer.commit().unwrap();
    assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 0);
    blob.check_complete();
    drop(lease);
    assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 1);
}

/// An input that gives `content` and then fails.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::ConnectionAborted.into()),
            count => Ok(count),
        }
    }
}

#[test]
fn a_blob_that_is_read_while_it_comes_in_is_continued_and_not_kept() {
    let blob = Blob::new();
    let mut tee = blob.writer().tee(Broken(&blob.content[..1000])).unwrap();
    invalid(tee.drain(), "connection aborted");
    assert!(tee.is_interrupted());
    drop(tee);
    blob.check(1000);
    let mut tee = blob.writer().tee(&blob.content[1000..]).unwrap();
    let mut content = Vec::new();
    tee.read_to_end(&mut content).unwrap();
    assert!(content == blob.content && !tee.is_interrupted());
    tee.drain().unwrap();
    tee.finish().unwrap();
    blob.check(0);
}

#[test]
fn a_blob_that_is_read_while_it_comes_in_is_verified() {
    let blob = Blob::new();
    let mut wrong = blob.content.clone();
    wrong[SIZE - 1] ^= 1;
    let mut tee = blob.writer().tee(&wrong[..]).unwrap();
    tee.drain().unwrap();
    invalid(tee.finish(), "has the digest");
    blob.check(0);
    // More than the blob's size is wrong too, and not an error of the disk.
    let long = [&blob.content[..], b"x"].concat();
    let mut tee = blob.writer().tee(&long[..]).unwrap();
    invalid(tee.drain(), "longer than its 1000000 bytes");
    assert!(!tee.is_interrupted());
    drop(tee);
    blob.check(0);
}
