//! Content of images that is damaged, or has lost something.

use std::fs;
use std::path::{Path, PathBuf};

use whelk_tests::images::{Archive, marked};
use whelk_tests::{Connection, Engine, Program, VolumePlugin, eventually, tar};

use super::Checked;

/// Returns the digest of the first blob or layer in a directory that `is_it` accepts.
fn find(directory: &Path, is_it: impl Fn(&Path) -> bool) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.find(|path| is_it(path)).unwrap()
}

#[test]
fn damaged_content_is_moved_away_and_comes_back() {
    let checked = Checked::start();
    let engine = &checked.engine;
    let layer = tar::Tar::new().file("marked", "first").finish();
    let archive = Archive::new("app:1", vec![layer]).build();
    engine.load(&archive);
    engine.load(&marked("other:1").build());
    checked.is_sound();
    let before = checked.settled();
    let id = engine.get("/images/app:1/json")["Id"]
        .as_str()
        .unwrap()
        .to_owned();

    let layers = checked.root("layers");
    let layer = find(&layers, |path| {
        fs::read(path.join("fs/marked")).is_ok_and(|it| it == b"first")
    });
    let digest = layer.file_name().unwrap().to_str().unwrap().to_owned();
    fs::write(layer.join("fs/marked"), "worse").unwrap();
    // The content of layers is read only on request.
    assert_eq!(checked.problems(&[]), Vec::<String>::new());
    let problem = format!("image {id} (app:1): layer sha256:{digest} is damaged: layer ");
    let found = checked.problems(&["--layers"]);
    assert!(
        found.len() == 1 && found[0].starts_with(&problem),
        "{found:?}"
    );
    let words = [
        "create",
        "--name",
        "user",
        "--network",
        "none",
        "app:1",
        "/none",
    ];
    engine.whelk(&words).ok();
    let found = checked.problems(&["--layers", "--repair"]);
    assert!(
        found[0].contains("; pull or load the image again"),
        "{found:?}"
    );
    let place = checked.lost_and_found(&format!("layers/{digest}/fs/marked"));
    assert_eq!(fs::read(place).unwrap(), b"worse");
    let found = checked.problems(&["--repair"]);
    let missing = format!(
        "image {id} (app:1): layer sha256:{digest} is missing; pull or load the image again"
    );
    assert_eq!(found, [missing]);
    engine.whelk(&["rm", "user"]).ok();
    engine.load(&archive);
    checked.is_sound();
    assert_eq!(fs::read(layer.join("fs/marked")).unwrap(), b"first");

    let blob = checked.root(&format!("blobs/sha256/{}", &id["sha256:".len()..]));
    let whole = fs::read(&blob).unwrap();
    fs::write(&blob, "{}").unwrap();
    let problem = format!("image {id} (app:1): blob {id} is damaged");
    assert_eq!(checked.problems(&[]), [problem.as_str()]);
    let found = checked.problems(&["--repair"]);
    assert!(
        found.len() == 1 && found[0].starts_with(&problem),
        "{found:?}"
    );
    let place = checked.lost_and_found(&format!("blobs/sha256/{}", &id["sha256:".len()..]));
    assert_eq!(fs::read(place).unwrap(), b"{}");
    engine.load(&archive);
    checked.is_sound();
    assert_eq!(fs::read(&blob).unwrap(), whole);
    checked.await_state("a layer and a blob that came back", &before);
}

/// Returns an image with one layer, which has the file `marked`.
fn app(tag: &str) -> Vec<u8> {
    let layer = tar::Tar::new().file("marked", tag).finish();
    Archive::new(tag, vec![layer]).build()
}

/// A file of a layer on disk, whose content a test changes.
struct Damaged {
    path: PathBuf,
    content: Vec<u8>,
}

impl Damaged {
    fn new(path: PathBuf) -> Self {
        let content = fs::read(&path).unwrap();
        let mut worse = content.clone();
        worse[0] ^= 1;
        fs::write(&path, worse).unwrap();
        Self { path, content }
    }

    fn restore(self) {
        fs::write(self.path, self.content).unwrap();
    }
}

impl Checked {
    fn layer(&self, file: &str) -> PathBuf {
        find(&self.root("layers"), |path| path.join(file).exists())
    }

    /// Checks that a damaged layer is reported and stays where it is.
    #[track_caller]
    fn stays(&self, layer: &Path, because: &str) {
        let found = self.problems(&["--layers", "--repair"]);
        assert!(
            found.len() == 1 && found[0].contains(because),
            "{because}: {found:?}"
        );
        assert!(layer.exists(), "{because}");
    }
}

#[test]
fn a_layer_that_something_uses_is_left_alone() {
    let checked = Checked::start();
    let engine = &checked.engine;
    let busybox = checked.layer("fs/etc/group");
    let damaged = Damaged::new(busybox.join("fs/etc/group"));
    checked.stays(
        &busybox,
        "; stop container running, which has the layer mounted",
    );
    checked.kill_running();
    // What holds it is not known before the repair: the line is the repair's.
    let held = "an operation that has begun needs it where it is";
    let large = tar::Tar::new().file("large", vec![0; 8 << 20]).finish();
    let words = ["cp", "-", "stopped:/"];
    engine.cli(Program::Whelk).feed(&words, &large).ok();
    for (path, what) in [("archive?path=/large", "a copy"), ("export", "an export")] {
        let mut client = Connection::open(&engine.socket()).unwrap();
        let path = format!("/containers/stopped/{path}");
        client.send("GET", &path, &[], b"").unwrap();
        assert_eq!(client.head().unwrap().0, 200, "{what}");
        checked.stays(&busybox, held);
    }
    damaged.restore();
    checked.is_sound();

    engine.load(&app("mounted:1"));
    let mounted = checked.layer("fs/marked");
    let mount = "type=image,source=mounted:1,target=/mounted";
    let flags = ["run", "-d", "--name", "mounts", "--network", "none"];
    let words = [&flags[..], &["--mount", mount, "busybox", "sleep", "600"]].concat();
    engine.cli(Program::Whelk).run(&words).ok();
    let damaged = Damaged::new(mounted.join("fs/marked"));
    checked.stays(
        &mounted,
        "; stop container mounts, which has the layer mounted",
    );
    damaged.restore();
    checked.is_sound();
}

#[test]
fn a_start_that_takes_long_keeps_its_layers() {
    let checked = Checked::start();
    let engine = &checked.engine;
    let plugin = VolumePlugin::start(engine, "slow");
    let flags = [
        "--volume-driver",
        "slow",
        "-v",
        "kept:/v",
        "--network",
        "none",
    ];
    let words = ["create", "--name", "starts", "busybox", "cat", "/etc/group"];
    let words = [&words[..3], &flags, &words[3..]].concat();
    engine.whelk(&words).ok();
    checked.kill_running();
    let busybox = checked.layer("fs/etc/group");
    let damaged = Damaged::new(busybox.join("fs/etc/group"));
    plugin.hold(Some("Mount"));
    std::thread::scope(|scope| {
        let started = scope.spawn(|| engine.cli(Program::Whelk).run(&["start", "starts"]).ok());
        eventually("the start to wait for its volume", || {
            let asked = plugin.questions();
            asked
                .iter()
                .any(|line| line.starts_with("Mount "))
                .then_some(())
        });
        checked.stays(&busybox, "an operation that has begun needs it where it is");
        plugin.hold(None);
        started.join().unwrap();
    });
    engine.await_state("starts", "exited");
    damaged.restore();
    checked.is_sound();
    engine.whelk(&["rm", "-v", "starts"]).ok();
    engine.whelk(&["volume", "rm", "kept"]).ok();
}

#[test]
fn a_layer_whose_files_are_whole_is_not_moved() {
    let checked = Checked::start();
    let layer = checked.layer("size");
    // Also if a container has it.
    let size = fs::read(layer.join("size")).unwrap();
    checked.repairs(
        || fs::write(layer.join("size"), "").unwrap(),
        " has lost its size",
        "written again",
    );
    assert_eq!(fs::read(layer.join("size")).unwrap(), size);
    let (index, aside) = (layer.join("split.zst"), layer.join("aside"));
    fs::rename(&index, &aside).unwrap();
    let found = checked.problems(&["--layers", "--repair"]);
    assert!(
        found.len() == 1
            && found[0].contains(
                " has lost the index of its archive: the image cannot be saved or pushed"
            ),
        "{found:?}"
    );
    let words = ["run", "--rm", "--network", "none", "busybox", "true"];
    checked.engine.whelk(&words).ok();
    fs::rename(&aside, &index).unwrap();
    checked.is_sound();
}

#[test]
fn a_layer_with_a_file_that_is_missing_or_has_grown_is_moved_away() {
    let engine = Engine::with_directories();
    let archive = app("app:1");
    let grow = |file: &Path| fs::write(file, "app:1 more").unwrap();
    let remove = |file: &Path| fs::remove_file(file).unwrap();
    for (what, damage) in [
        ("no such file", remove as fn(&Path)),
        (" has 10 bytes instead of 5", grow),
    ] {
        engine.load(&archive);
        let layer = find(&engine.root().join("layers"), |path| {
            path.join("fs/marked").exists()
        });
        damage(&layer.join("fs/marked"));
        let done = engine.whelk(&["system", "check", "--layers", "--repair"]);
        let out = done.out();
        assert!(
            done.code == 1
                && [" is damaged: ", what, ": moved to "].map(|part| out.contains(part))
                    == [true; 3],
            "{what}: {out}{}",
            done.err()
        );
        engine.load(&archive);
        engine.whelk(&["system", "check", "--layers"]).ok();
        assert_eq!(fs::read(layer.join("fs/marked")).unwrap(), b"app:1");
    }
}
