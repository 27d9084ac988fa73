//! Import of root file systems.

use crate::common::{
    Bench, device, dir, fifo, file, gzip, hard_link, import, load, noise, pack, symlink, whiteout,
    zstandard,
};
use crate::{exported, names, saved};
use tar::EntryType;
use whelk_image::Digest;
use whelk_image::archive::Import;
use whelk_image::config::{ARCHITECTURE, ContainerConfig};
use whelk_sys::fs;

#[test]
fn imports_a_root_file_system() {
    let archive = pack(&[
        dir("bin/"),
        file("bin/sh", "#!").mode(0o755),
        symlink("sh", "bin/sh"),
    ]);
    for stream in [archive.clone(), gzip(&archive), zstandard(&archive)] {
        let bench = Bench::new();
        let what = Import {
            config: ContainerConfig {
                cmd: vec!["/bin/sh".into()],
                env: vec!["A=1".into()],
                ..ContainerConfig::default()
            },
            comment: "from elsewhere".into(),
            platform: None,
            name: Some("me/imported:1".parse().unwrap()),
        };
        let loaded = import(&bench.store, stream.as_slice(), what).unwrap();
        assert_eq!(
            (names(&loaded), loaded.size),
            (vec!["docker.io/me/imported:1".to_owned()], 2)
        );
        assert_eq!(loaded.config.rootfs.diff_ids, [Digest::of(&archive)]);
        assert_eq!(
            (
                loaded.config.os.as_str(),
                loaded.config.architecture.as_str()
            ),
            ("linux", ARCHITECTURE)
        );
        assert_eq!(
            (&loaded.config.config.cmd[..], &loaded.config.config.env[..]),
            (&["/bin/sh".to_owned()][..], &["A=1".to_owned()][..])
        );
        assert_eq!(
            (
                loaded.config.history.len(),
                loaded.config.history[0].comment.as_str()
            ),
            (1, "from elsewhere")
        );
        let stored = bench.store.content.read(&loaded.id).unwrap();
        assert_eq!(
            whelk_image::ImageConfig::parse(&stored).unwrap(),
            loaded.config
        );
        assert!(bench.written(&Digest::of(&archive)) == archive);
        // The result is a regular image.
        let other = Bench::new();
        let again = load(
            &other.store,
            saved(&bench, &[(&loaded.id, &["me/imported:1"])]).as_slice(),
            None,
        )
        .unwrap();
        assert_eq!(again, [loaded]);
    }
}

#[test]
fn import_resolves_links_inside_the_root() {
    let bench = Bench::new();
    let archive = pack(&[symlink("l", "/"), file("l/whelk-planted", "x")]);
    let loaded = import(&bench.store, archive.as_slice(), Import::default()).unwrap();
    let files = bench
        .store
        .snapshots
        .files(&loaded.config.rootfs.diff_ids[0]);
    assert!(fs::exists(files.join("whelk-planted")) && !fs::exists("/whelk-planted"));
    assert!(bench.written(&Digest::of(&archive)) == archive);
}

#[test]
fn importing_an_export_gives_the_same_files() {
    let bench = Bench::new();
    let lower = bench.unpack_only(&pack(&[
        dir("bin/"),
        file("bin/su", noise(5000)).mode(0o4755),
        hard_link("bin/same", "bin/su"),
        symlink("sh", "/bin/su").owner(7, 7),
        file("gone", ""),
        fifo("pipe"),
        device(EntryType::Char, "null", 1, 3),
    ]));
    let upper = bench.unpack_only(&pack(&[
        whiteout("gone"),
        dir("bin/").owner(2, 2).mtime(99),
        file("with", "x").xattr("user.a", "b").pax("mtime", "77.5"),
        file("n".repeat(200), "long"),
    ]));
    let archive = exported(&[upper, lower]);
    let loaded = import(&bench.store, archive.as_slice(), Import::default()).unwrap();
    assert!(bench.written(&loaded.config.rootfs.diff_ids[0]) == archive);
    assert!(
        exported(&[bench
            .store
            .snapshots
            .files(&loaded.config.rootfs.diff_ids[0])])
            == archive
    );
}
