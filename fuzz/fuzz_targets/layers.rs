//! Unpacks a layer's archive. What can be unpacked must come out again bit for bit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_image::{Digest, Store};

fuzz_target!(|archive: &[u8]| {
    let Ok(directory) = tempfile::tempdir() else {
        return;
    };
    let store = Store::open(directory.path()).expect("open a store");
    let lease = store.leases.take();
    if let Ok(layer) = store.snapshots.apply(&lease, archive, None) {
        let mut again = Vec::new();
        store
            .snapshots
            .replay(&layer.diff_id, &mut again)
            .expect("replay what was applied");
        assert_eq!(Digest::of(&again), layer.diff_id);
    }
});
