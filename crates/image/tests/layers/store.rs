//! The store that layers and blobs are in.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::{
    Bench, MTIME, apply, dir, file, noise, pack, sparse, symlink, whiteout, within,
};
use whelk_image::snapshots::{Form, Lack};
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
    // The original is the beginning of it.
    assert!(!same(|files| fs::write(
        files.join("f"),
        "content and more"
    )
    .unwrap()));
    assert!(!same(|files| fs::remove_file(files.join("f")).unwrap()));
    assert!(!same(|files| {
        fs::remove_tree(files.join("d")).unwrap();
        std::os::unix::fs::symlink("/", files.join("d")).unwrap();
    }));
}

/// Damage is what cannot pass; a layer that has lost something else is not moved away for it.
#[test]
fn says_what_a_layer_lacks_and_proves_damage() {
    let large = noise(100_000);
    let archive = pack(&[file("f", "content"), dir("d/"), file("d/g", &large)]);
    let diff_id = Digest::of(&archive);
    for form in [Form::Directories, Form::Images] {
        let check = |what: &str, lack: Option<Lack>, change: &dyn Fn(&Path)| {
            let mut bench = Bench::new();
            if bench.store.snapshots.set_form(Some(form)).is_err() {
                return;
            }
            apply(&bench.store, archive.as_slice(), None).unwrap();
            let snapshots = &bench.store.snapshots;
            let yes = || true;
            snapshots.verify(&diff_id, &yes).unwrap();
            change(&snapshots.path(&diff_id));
            assert_eq!(snapshots.lack(&diff_id), lack, "{what}");
            let verified = snapshots.verify(&diff_id, &yes);
            match lack {
                Some(Lack::Size) => verified.unwrap(),
                Some(Lack::Layer) => {}
                _ => assert!(
                    matches!(verified, Err(Error::Invalid(_))),
                    "{what}: {verified:?}"
                ),
            }
            let stopped = snapshots.verify(&diff_id, &|| false);
            assert!(stopped.is_err(), "{what}");
        };
        let at = |layer: &Path, name: &str| layer.join(name);
        check("layer", Some(Lack::Layer), &|layer| {
            fs::remove_tree(layer).unwrap();
        });
        check("index", Some(Lack::Index), &|layer| {
            fs::remove_file(at(layer, "split.zst")).unwrap();
        });
        check("size", Some(Lack::Size), &|layer| {
            fs::write(at(layer, "size"), "").unwrap();
        });
        if form == Form::Images {
            check("files", Some(Lack::Files), &|layer| {
                fs::remove_file(at(layer, "fs.erofs")).unwrap();
            });
            check("image", Some(Lack::Image), &|layer| {
                let whole = fs::read(at(layer, "fs.erofs")).unwrap();
                fs::write(at(layer, "fs.erofs"), &whole[..50_000]).unwrap();
            });
            check("content", None, &|layer| {
                let mut content = fs::read(at(layer, "fs.erofs")).unwrap();
                let mut windows = content.windows(8);
                let place = windows.position(|window| window == &large[50_000..50_008]);
                content[place.unwrap()] ^= 1;
                fs::write(at(layer, "fs.erofs"), content).unwrap();
            });
            continue;
        }
        check("files", Some(Lack::Files), &|layer| {
            fs::remove_tree(at(layer, "fs")).unwrap();
        });
        check("content", None, &|layer| {
            fs::write(at(layer, "fs/f"), "changed").unwrap();
        });
        check("short", None, &|layer| {
            fs::write(at(layer, "fs/f"), "").unwrap();
        });
        check("file", None, &|layer| {
            fs::remove_file(at(layer, "fs/f")).unwrap();
        });
        check("link", None, &|layer| {
            fs::remove_tree(at(layer, "fs/d")).unwrap();
            std::os::unix::fs::symlink("/", at(layer, "fs/d")).unwrap();
        });
    }
}

#[test]
fn a_size_is_the_same_when_it_is_determined_again() {
    let mut holes = sparse("holes", &[(1 << 20, 512)], &noise(512), (1 << 20) + 512);
    holes.extend_from_slice(&pack(&[
        file("f", noise(5000)),
        dir("d/"),
        file("d/g", "x"),
        // Replaces an earlier entry, which is part of the archive.
        file("f", noise(70_000)),
        whiteout("gone"),
        symlink("link", "f"),
    ]));
    for form in [Form::Directories, Form::Images] {
        let mut bench = Bench::new();
        if bench.store.snapshots.set_form(Some(form)).is_err() {
            continue;
        }
        let layer = apply(&bench.store, holes.as_slice(), None).unwrap();
        let snapshots = &bench.store.snapshots;
        let path = snapshots.path(&layer.diff_id).join("size");
        fs::remove_file(&path).unwrap();
        assert_eq!(
            snapshots.restore_size(&layer.diff_id).unwrap(),
            layer.size,
            "{form:?}"
        );
        assert_eq!(snapshots.size(&layer.diff_id).unwrap(), layer.size);
        assert_eq!(snapshots.lack(&layer.diff_id), None);
        bench.check_temporary("determined again");
        if form == Form::Directories {
            fs::remove_file(&path).unwrap();
            fs::write(snapshots.files(&layer.diff_id).join("d/g"), "y").unwrap();
            let error = snapshots.restore_size(&layer.diff_id).unwrap_err();
            assert!(error.to_string().contains("was changed on disk"), "{error}");
            assert!(!fs::exists(&path));
        }
    }
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
