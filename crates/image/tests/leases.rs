//! Garbage collection beside loads that run, and after loads that died.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test stops where something fails"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::images::{Image, docker_archive};
use common::{Bench, file, noise, pack};
use whelk_image::content::MAX_PARTIAL_AGE;
use whelk_image::{Digest, Progress, SetAside, Store, Used, archive};
use whelk_sys::fs;

/// The records of an engine: the layers of each image.
type Records = Mutex<BTreeMap<Digest, Vec<Digest>>>;

fn collect(store: &Store, records: &Records) {
    let used = || {
        let records = records.lock().unwrap();
        Used {
            blobs: records.keys().cloned().collect(),
            layers: records.values().flatten().cloned().collect(),
        }
    };
    for path in store.gc(MAX_PARTIAL_AGE, used).unwrap() {
        fs::remove_tree(path).unwrap();
    }
}

fn image(command: &str, layers: &[&str]) -> Image {
    let layers: Vec<Vec<u8>> = layers
        .iter()
        .map(|name| pack(&[file(*name, noise(20_000))]))
        .collect();
    Image::new(command, &layers)
}

/// Loads an image and records it before its lease ends.
fn load(store: &Store, records: &Records, archive: &[u8]) -> Digest {
    let lease = store.leases.take();
    let loaded = archive::load(store, &lease, archive, &[], &Progress::none())
        .unwrap()
        .remove(0);
    let layers = loaded.config.rootfs.diff_ids;
    records.lock().unwrap().insert(loaded.id.clone(), layers);
    loaded.id
}

#[test]
fn a_collection_keeps_blobs_that_are_being_received() {
    let bench = Bench::new();
    let (store, records) = (&bench.store, Records::default());
    let (layer, other) = (pack(&[file("a", "a")]), pack(&[file("b", "b")]));
    let lease = store.leases.take();
    let applied = store.snapshots.apply(&lease, &layer[..], None).unwrap();
    let blob = store.content.put(&lease, b"configuration").unwrap();
    // A second lease that is dropped does not take the first one's hold.
    assert!(
        store
            .snapshots
            .claim(&store.leases.take(), &applied.diff_id)
    );
    common::apply(store, &other[..], None).unwrap();
    collect(store, &records);
    assert!(store.snapshots.has(&applied.diff_id));
    assert_eq!(store.content.read(&blob).unwrap(), b"configuration");
    assert!(!store.snapshots.has(&Digest::of(&other)), "nobody holds it");
    drop(lease);
    collect(store, &records);
    bench.check_empty("after the lease");
}

#[test]
fn a_record_that_is_newer_than_the_collections_view_is_respected() {
    let bench = Bench::new();
    let store = &bench.store;
    let archive = pack(&[file("a", "a")]);
    let lease = store.leases.take();
    let layer = store.snapshots.apply(&lease, &archive[..], None).unwrap();
    // The records are read, and before anything is removed the image is recorded and the lease
    // ends.
    let (mut lease, mut recorded) = (Some(lease), Used::default());
    let used = || {
        let read = std::mem::take(&mut recorded);
        drop(lease.take());
        recorded.layers.insert(layer.diff_id.clone());
        read
    };
    assert_eq!(store.gc(MAX_PARTIAL_AGE, used).unwrap().len(), 0);
    assert!(store.snapshots.has(&layer.diff_id));
    assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 1);
}

#[test]
fn a_collection_removes_what_is_released_while_it_runs() {
    let bench = Bench::new();
    let store = &bench.store;
    let archive = pack(&[file("a", "a")]);
    let lease = store.leases.take();
    store.snapshots.apply(&lease, &archive[..], None).unwrap();
    let mut lease = Some(lease);
    let used = || {
        drop(lease.take());
        Used::default()
    };
    assert_eq!(store.gc(MAX_PARTIAL_AGE, used).unwrap().len(), 1);
}

#[test]
fn a_layer_that_something_has_just_begun_to_use_is_not_set_aside() {
    let bench = Bench::new();
    let store = &bench.store;
    let archive = pack(&[file("a", "a")]);
    let layer = common::apply(store, &archive[..], None).unwrap().diff_id;
    let damaged = store.snapshots.identity(&layer).unwrap();
    let hold = || {
        let lease = store.leases.take();
        lease.hold(&layer);
        lease
    };
    let none = || None;
    let lease = hold();
    let held = store.set_layer_aside(&layer, &damaged, none).unwrap();
    assert_eq!(held, SetAside::Held);
    drop(lease);
    // A start that the look does not show yet, and that has ended its lease before the layer is moved.
    let passed = store.set_layer_aside(&layer, &damaged, || {
        drop(hold());
        None
    });
    assert_eq!(passed.unwrap(), SetAside::Held);
    let used = store.set_layer_aside(&layer, &damaged, || Some("user".into()));
    assert_eq!(used.unwrap(), SetAside::Used("user".into()));
    let moved = store.set_layer_aside(&layer, &damaged, none).unwrap();
    assert!(matches!(moved, SetAside::Moved(_)) && !store.snapshots.has(&layer));
    // Another one with the same content.
    common::apply(store, &archive[..], None).unwrap();
    let sound = store.set_layer_aside(&layer, &damaged, none).unwrap();
    assert!(sound == SetAside::Sound && store.snapshots.has(&layer));
    fs::remove_tree(store.staging.root().join("lost+found")).unwrap();
}

#[test]
fn a_collection_ends_although_leases_end_in_each_round() {
    const MANY: usize = 10;
    let bench = Bench::new();
    let store = &bench.store;
    let layers: Vec<Vec<u8>> = (0..MANY)
        .map(|number| pack(&[file("a", number.to_string())]))
        .collect();
    let mut coming = layers.iter();
    let mut rounds = 0;
    let used = || {
        rounds += 1;
        if let Some(layer) = coming.next() {
            let lease = store.leases.take();
            store.snapshots.apply(&lease, &layer[..], None).unwrap();
        }
        Used::default()
    };
    assert_eq!(store.gc(MAX_PARTIAL_AGE, used).unwrap().len(), 1);
    assert_eq!(rounds, 2);
    // The next call looks at what the second round has kept.
    assert_eq!(store.gc(MAX_PARTIAL_AGE, Used::default).unwrap().len(), 1);
    assert!(bench.names("layers").is_empty());
}

#[test]
fn loads_and_removals_beside_collections_lose_no_layer() {
    let bench = Bench::new();
    let (store, records) = (&bench.store, &Records::default());
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    collect(store, records);
                }
            });
        }
        let loaders: Vec<_> = ["x", "y", "z"]
            .map(|command| {
                scope.spawn(move || {
                    // All share the layer "base", which is unused whenever none is recorded.
                    let archive = pack(&docker_archive(&[(
                        &image(command, &["base", command]),
                        &[],
                    )]));
                    for round in 0..40 {
                        let id = load(store, records, &archive);
                        let layers = records.lock().unwrap()[&id].clone();
                        for layer in &layers {
                            assert!(store.snapshots.has(layer), "{command} {round}: {layer}");
                        }
                        store.content.read(&id).unwrap();
                        records.lock().unwrap().remove(&id);
                    }
                })
            })
            .into_iter()
            .collect();
        let outcomes: Vec<_> = loaders.into_iter().map(|loader| loader.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
    });
    collect(store, records);
    bench.check_empty("after all removals");
}

#[test]
fn leftovers_of_an_interrupted_load_are_removed() {
    let bench = Bench::new();
    let records = Records::default();
    let image = image("x", &["a", "b"]);
    let good = pack(&docker_archive(&[(&image, &[])]));
    // A load that fails after its layers are complete: the configuration names another layer.
    let mut broken = image.clone();
    broken.config = common::images::config(
        "x",
        &[Digest::of(&image.layers[0]), Digest::of(b"other")].map(|digest| digest.to_string()),
    );
    let lease = bench.store.leases.take();
    let broken = pack(&docker_archive(&[(&broken, &[])]));
    let refused = archive::load(
        &bench.store,
        &lease,
        broken.as_slice(),
        &[],
        &Progress::none(),
    );
    let error = refused.unwrap_err().to_string();
    assert!(error.contains(": invalid diffID: "), "{error}");
    drop(lease);
    // One whose thread panics while it holds the layers.
    let store = bench.store.clone();
    let complete = good.clone();
    let died = std::thread::spawn(move || {
        let lease = store.leases.take();
        archive::load(&store, &lease, complete.as_slice(), &[], &Progress::none()).unwrap();
        panic!("the load dies");
    });
    let payload = died.join().unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"the load dies"));
    collect(&bench.store, &records);
    bench.check_empty("after a panic");
    // One whose process was killed: its lease was never dropped, but the next store has none.
    let lease = bench.store.leases.take();
    archive::load(
        &bench.store,
        &lease,
        good.as_slice(),
        &[],
        &Progress::none(),
    )
    .unwrap();
    collect(&bench.store, &records);
    assert_eq!(bench.names("layers").len(), 2);
    let next = Store::open(&bench.base.join("store")).unwrap();
    collect(&next, &records);
    bench.check_empty("after a kill");
    drop(lease);
}

#[test]
fn a_collection_during_a_load_keeps_layers_that_were_unused_before() {
    let bench = Bench::new();
    let (store, records) = (&bench.store, Records::default());
    let image = image("x", &["a", "b"]);
    // Left by an earlier load.
    let known: BTreeSet<Digest> = image
        .layers
        .iter()
        .map(|layer| common::apply(store, &layer[..], None).unwrap().diff_id)
        .collect();
    let archive = pack(&docker_archive(&[(&image, &[])]));
    let id = load(store, &records, &archive);
    collect(store, &records);
    assert!(known.iter().all(|layer| store.snapshots.has(layer)));
    let mut content = Vec::new();
    let mut reader = store.content.reader(&id).unwrap();
    reader.read_to_end(&mut content).unwrap();
    assert_eq!(content, image.config);
}

#[test]
fn a_layer_that_a_pull_may_need_is_kept_for_some_time_in_this_boot() {
    let bench = Bench::new();
    let store = &bench.store;
    let archive = pack(&[file("a", "a")]);
    let pend = || {
        let lease = store.leases.take();
        let layer = store.snapshots.apply(&lease, &archive[..], None).unwrap();
        store.snapshots.mark_pending(&layer.diff_id).unwrap();
        layer.diff_id
    };
    let collected = |age: Duration| store.gc(age, Used::default).unwrap().len();
    let layer = pend();
    assert_eq!(collected(MAX_PARTIAL_AGE), 0);
    assert_eq!(collected(Duration::ZERO), 1, "it is too old");
    pend();
    store.snapshots.clear_pending(&layer).unwrap();
    store.snapshots.clear_pending(&layer).unwrap();
    assert_eq!(collected(MAX_PARTIAL_AGE), 1, "an image has had it");
    pend();
    let marker = store.snapshots.path(&layer).join("pending");
    fs::write(&marker, "another boot").unwrap();
    assert_eq!(collected(MAX_PARTIAL_AGE), 1, "its files may be lost");
}
