//! Receives a client's files, whose packets are the input. Nothing leads out of the directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_buildkit::files::Directory;
use whelk_buildkit::pb::Message as _;
use whelk_buildkit::pb::files::Packet;

fuzz_target!(|bytes: &[u8]| {
    let place = tempfile::tempdir().expect("create a directory");
    let below = place.path().join("below");
    std::fs::create_dir(&below).expect("create a directory");
    let mut directory = Directory::create(&below).expect("create a directory");
    let mut rest = bytes;
    let mut packets = std::iter::from_fn(|| Packet::decode_length_delimited(&mut rest).ok());
    for _ in 0..2 {
        let received = directory.receive(|| packets.next(), |_| Ok(()));
        let count = std::fs::read_dir(place.path()).expect("read a directory");
        assert_eq!(count.count(), 1);
        if received.is_err() {
            return;
        }
        directory.remember("boot").expect("write the index");
        let again = Directory::open(&below, "boot").expect("open a directory");
        let again = again.expect("the directory is complete");
        assert_eq!(again.entries(), directory.entries());
        directory = again;
    }
});
