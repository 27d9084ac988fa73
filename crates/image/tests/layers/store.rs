//! The store that layers and blobs are in.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::{Bench, MTIME, apply, dir, file, noise, pack, symlink, whiteout, within};
use whelk_image::{Digest, Error, Store};
use whelk_sys::fs;

#[test]
fn concurrent_loads_of_a_layer_store_it_once() {
    let bench = Bench::new();
    let archive = pack(&[dir("d/"), file("d/f", noise(10_000))]);
    let layers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| apply(&bench.store, archive.as_slice(), None).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(layers.iter().all(|layer| *layer == layers[0]));
    assert_eq!((layers[0].size, bench.names("layers").len()), (10_000, 1));
    bench.check_temporary("four at once");
    bench.unpack(&archive);
    assert!(bench.store.snapshots.has(&layers[0].diff_id));
}

#[test]
fn removes_layers_completely() {
    let bench = Bench::new();
    let archive = pack(&[
        dir("d/").mode(0),
        file("d/f", "x").mode(0),
        symlink("l", "/"),
        whiteout("gone"),
    ]);
    bench.unpack(&archive);
    let diff_id = Digest::of(&archive);
    bench
        .store
        .staging
        .discard(&bench.store.snapshots.path(&diff_id))
        .unwrap();
    bench.check_empty("removed");
    assert!(!bench.store.snapshots.has(&diff_id));
    bench
        .store
        .staging
        .discard(&bench.store.snapshots.path(&diff_id))
        .expect("removing a missing layer is no error");
    let replayed = bench.store.snapshots.replay(&diff_id, &mut std::io::sink());
    let error = replayed.unwrap_err().to_string();
    assert!(
        error.ends_with("split.zst: no such file or directory"),
        "{error}"
    );
}

#[test]
fn detects_a_layer_that_was_changed_on_disk() {
    let archive = pack(&[file("f", "content"), dir("d/"), file("d/g", "more")]);
    let diff_id = Digest::of(&archive);
    let same = |change: fn(&Path)| {
        let bench = Bench::new();
        change(&bench.unpack(&archive));
        let mut written = Vec::new();
        bench.store.snapshots.replay(&diff_id, &mut written).is_ok() && written == archive
    };
    assert!(same(|_| {}));
    assert!(!same(|files| fs::write(files.join("f"), "changed").unwrap()));
    assert!(!same(|files| fs::write(files.join("f"), "").unwrap()));
    assert!(!same(|files| fs::remove_file(files.join("f")).unwrap()));
    assert!(!same(|files| {
        fs::remove_tree(files.join("d")).unwrap();
        std::os::unix::fs::symlink("/", files.join("d")).unwrap();
    }));
}

/// A FIFO in place of a file must not make the engine wait for a writer.
#[test]
fn a_fifo_in_the_store_does_not_block() {
    let bench = Bench::new();
    let archive = pack(&[file("f", "content")]);
    let files = bench.unpack(&archive);
    fs::remove_file(files.join("f")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        files.join("f"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let store = bench.store.clone();
    let result = within(20, move || {
        store
            .snapshots
            .replay(&Digest::of(&archive), &mut std::io::sink())
    });
    let error = result.unwrap_err().to_string();
    assert!(error.starts_with("read f of layer "), "{error}");
}

#[test]
fn blobs() {
    let bench = Bench::new();
    let digest = bench
        .store
        .content
        .put(&bench.store.leases.take(), b"content")
        .unwrap();
    assert_eq!(digest, Digest::of(b"content"));
    assert_eq!(
        bench
            .store
            .content
            .put(&bench.store.leases.take(), b"content")
            .unwrap(),
        digest
    );
    assert_eq!(bench.store.content.read(&digest).unwrap(), b"content");
    assert!(matches!(
        bench.store.content.read(&Digest::of(b"other")),
        Err(Error::NotFound(_))
    ));
    fs::write(bench.store.content.path(&digest), "damaged").unwrap();
    assert!(matches!(
        bench.store.content.read(&digest),
        Err(Error::Invalid(_))
    ));
    bench
        .store
        .staging
        .discard(&bench.store.content.path(&digest))
        .unwrap();
    bench
        .store
        .staging
        .discard(&bench.store.content.path(&digest))
        .unwrap();
    bench.check_empty("removed");
}

#[test]
fn opening_a_store_removes_incomplete_objects() {
    let bench = Bench::new();
    let archive = pack(&[file("f", "x")]);
    bench.unpack(&archive);
    let blob = bench
        .store
        .content
        .put(&bench.store.leases.take(), b"content")
        .unwrap();
    for directory in ["tmp", "trash"] {
        fs::create_dir_all(
            bench.base.join("store").join(directory).join("half/made"),
            0o700,
        )
        .unwrap();
        fs::write(bench.base.join("store").join(directory).join("file"), "x").unwrap();
        std::os::unix::fs::symlink(
            bench.outside(),
            bench.base.join("store").join(directory).join("link"),
        )
        .unwrap();
    }
    let guard = bench.guard();
    let store = Store::open(&bench.base.join("store")).unwrap();
    assert!(fs::list(bench.base.join("store/tmp")).unwrap().is_empty());
    store.staging.empty_trash().unwrap();
    store.staging.wait_for_disposal();
    bench.check_temporary("opened again");
    assert_eq!(bench.guard(), guard);
    assert!(store.snapshots.has(&Digest::of(&archive)));
    assert_eq!(store.content.read(&blob).unwrap(), b"content");
    store.sync().unwrap();
}

#[test]
fn only_root_enters_the_store() {
    let bench = Bench::new();
    let files = bench.unpack(&pack(&[
        file("bin/su", "x").mode(0o4755),
        file("f", "x").mtime(MTIME),
    ]));
    let layer = fs::metadata(files.parent().unwrap()).unwrap();
    assert_eq!(
        layer.mode() & 0o077,
        0,
        "users of the host must not reach set-id programs of an image (CVE-2021-41091)"
    );
    assert_eq!(
        fs::metadata(&files).unwrap().mode() & 0o7777,
        0o755,
        "users in a container can enter its root"
    );
}
