//! Layers that are kept as EROFS images: everything works as with directories, beside which they are
//! in one store.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;

use serde_json::json;
use whelk_tests::images::{self, Archive, noise, small_root};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, eventually, skipped};

/// Starts an engine that keeps layers as images, and has the image `busybox`. Returns `None` if the
/// kernel cannot mount them.
#[track_caller]
fn start() -> Option<Engine> {
    let engine = Engine::without_images(&[]);
    engine.configure(&json!({"layers": "erofs"}));
    engine.terminate();
    if !kernel_is_new_enough() {
        let error = engine.refuses_to_start();
        assert!(error.contains("layers cannot be EROFS images"), "{error}");
        // It has to run to be cleaned up after.
        engine.configure(&json!({"layers": "directories"}));
        engine.restart();
        return None;
    }
    engine.restart();
    engine.load(&fs::read(images::busybox()).unwrap());
    Some(engine)
}

/// Starts an engine that keeps layers as directories, and has the image `busybox`.
#[track_caller]
fn with_directories() -> Engine {
    let engine = Engine::with_directories();
    engine.load(&fs::read(images::busybox()).unwrap());
    engine
}

fn kernel_is_new_enough() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    version >= (6, 15)
        && fs::read_to_string("/proc/filesystems")
            .unwrap()
            .contains("\terofs\n")
}

/// Returns an image of layers that add, replace, hide and link files.
fn image(tag: &str) -> Archive {
    let base = small_root()
        .dir("data")
        .file("data/small", "small")
        .file("data/large", noise(300_000))
        .hard_link("data/link", "data/large")
        .hard_link("data/second", "data/small")
        .dir("hidden")
        .file("hidden/file", "hidden")
        .dir("kept")
        .file("kept/gone", "gone")
        .file("kept/stays", "stays")
        .finish();
    let many = (0..500).fold(Tar::new().dir("many"), |tar, number| {
        tar.file(
            &format!("many/file-with-a-long-name-{number:04}"),
            "x".repeat(number * 7),
        )
    });
    let changes = Tar::new()
        .dir("hidden")
        .file("hidden/.wh..wh..opq", "")
        .file("hidden/new", "new")
        .file("kept/.wh.gone", "")
        .fifo("data/pipe")
        .device("data/null", 1, 3)
        .symlink("data/symlink", "../kept/stays")
        .file("data/small", "replaced")
        .finish();
    Archive::new(tag, vec![base, many.finish(), changes])
}

/// Prints everything about the files of an image.
const LIST: &str = "cd /; find data hidden kept many bin -xdev | sort | while read f; do \
    stat -c '%n %F %a %u %g %h %t:%T' $f; test -f $f && stat -c %s $f && md5sum <$f; done; true";

fn list(engine: &Engine, image: &str) -> String {
    let words = ["run", "--rm", "--network", "none", image, "sh", "-c", LIST];
    engine.docker(&words).ok()
}

/// Returns the forms of all layers in an engine's store.
fn forms(engine: &Engine) -> Vec<&'static str> {
    let layers = fs::read_dir(engine.root().join("layers")).unwrap();
    let form = |layer: fs::DirEntry| match (
        layer.path().join("fs").is_dir(),
        layer.path().join("fs.erofs").is_file(),
    ) {
        (true, false) => "directory",
        (false, true) => "image",
        both => panic!("{}: {both:?}", layer.path().display()),
    };
    let mut forms: Vec<_> = layers.map(|layer| form(layer.unwrap())).collect();
    forms.sort_unstable();
    forms
}

/// Checks that no EROFS is mounted on the host, or in the engine's mount namespace.
#[track_caller]
fn check_mounts(engine: &Engine) {
    for process in [
        "self".to_owned(),
        "1".to_owned(),
        engine.daemon_pid().to_string(),
    ] {
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
        assert!(!mounts.contains(" - erofs "), "{process}: {mounts}");
    }
}

#[test]
fn containers_see_the_same_files_in_both_forms() {
    let Some(images) = start() else {
        return skipped!("the kernel cannot mount EROFS images from files");
    };
    let directories = with_directories();
    let archive = image("app").build();
    for engine in [&images, &directories] {
        engine.load(&archive);
    }
    assert_eq!(forms(&images), ["image"; 4]);
    assert_eq!(forms(&directories), ["directory"; 4]);
    let (found, expected) = (list(&images, "app"), list(&directories, "app"));
    assert_eq!(found, expected);
    assert!(expected.contains("many/file-with-a-long-name-0499 regular file"));
    assert!(expected.contains("data/null character special file"));
    assert!(!expected.contains("gone") && !expected.contains("hidden/file"));
    check_mounts(&images);
    assert_eq!(
        images.docker(&["save", "app"]).stdout,
        directories.docker(&["save", "app"]).stdout
    );
    let info = images.get("/info");
    assert_eq!(info["DriverStatus"][2], json!(["Layers", "erofs"]));
    // As docs/configuration.md says, which 32-bit programs notice.
    let stat = ["stat", "-c", "%i", "/data/large"];
    let run = [&["run", "--rm", "--network", "none", "app"], &stat[..]].concat();
    let inode: u64 = images.docker(&run).ok().parse().unwrap();
    assert!(inode > u32::MAX.into());
}

#[test]
fn files_of_images_are_changed_copied_and_exported() {
    let Some(engine) = start() else {
        return skipped!("the kernel cannot mount EROFS images from files");
    };
    engine.load(&image("app").build());
    let docker = |args: &[&str]| engine.docker(args).ok();
    let script = "echo more >>/data/large; rm /kept/stays; mv /hidden/new /hidden/moved; \
        chmod 700 /data; mkdir /kept/dir; rm -r /many; mkdir /many; ls /many /hidden";
    let words = [
        "run",
        "--name",
        "cc",
        "--network",
        "none",
        "app",
        "sh",
        "-c",
        script,
    ];
    assert_eq!(docker(&words), "/hidden:\nmoved\n\n/many:");
    let changed = engine.docker(&["export", "cc"]).stdout;
    let large = [noise(300_000), b"more\n".to_vec()].concat();
    assert!(whelk_tests::tar::file(&changed, "data/large") == large);
    let changed = whelk_tests::tar::read(&changed);
    let has = |path: &str| changed.iter().any(|found| found.path == path);
    assert!(has("hidden/moved") && has("kept/dir") && has("many"));
    assert!(!has("hidden/new") && !has("kept/stays") && !has("many/file-with-a-long-name-0000"));
    // A volume gets the image's content, and an image can be mounted.
    let words = [
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "content:/many",
        "app",
        "sh",
        "-c",
    ];
    assert_eq!(docker(&[&words[..], &["ls /many | wc -l"]].concat()), "500");
    let mount = ["--mount", "type=image,src=app,dst=/mnt"];
    let words = [
        &["run", "--rm", "--network", "none"][..],
        &mount,
        &["busybox", "cat", "/mnt/hidden/new"],
    ];
    assert_eq!(docker(&words.concat()), "new");
    docker(&["create", "--name", "stopped", "app"]);
    let exported = whelk_tests::tar::read(&engine.docker(&["export", "stopped"]).stdout);
    assert!(exported.iter().any(|found| found.path == "data/symlink"));
    docker(&["rm", "-f", "cc", "stopped"]);
    docker(&["volume", "rm", "content"]);
    docker(&["rmi", "app"]);
    assert_eq!(forms(&engine), ["image"]);
    check_mounts(&engine);
    // They are unmounted in the background. That of busybox stays for further containers.
    eventually("unmounted layers", || (mounted(&engine) == 1).then_some(()));
    docker(&["rmi", "busybox"]);
    eventually("unmounted layers", || (mounted(&engine) == 0).then_some(()));
}

/// `diff`, `commit`, `cp` and `save` of a container whose layers are images give what those of directories do.
#[test]
fn changes_are_listed_committed_and_copied() {
    let Some(images) = start() else {
        return skipped!("the kernel cannot mount EROFS images from files");
    };
    let directories = with_directories();
    let script = "echo more >>/data/large; rm /kept/stays; rm /data/link; ln /data/second /data/third; \
        rm -r /hidden; mkdir -m 750 /hidden; echo in >/hidden/in; chown 7:8 /many; rm /many/*7; \
        touch -d @1000 /kept /hidden /data /many /data/large /hidden/in";
    let mut outcomes = [&images, &directories].map(|engine| {
        engine.load(&image("app").build());
        let docker = |args: &[&str]| engine.docker(args).ok();
        docker(&[
            "run",
            "--name",
            "cc",
            "--network",
            "none",
            "app",
            "sh",
            "-c",
            script,
        ]);
        let mut outcome = vec![docker(&["diff", "cc"])];
        docker(&["commit", "cc", "changed"]);
        let below = engine.get("/images/app/json")["RootFS"]["Layers"].clone();
        let above = engine.get("/images/changed/json")["RootFS"]["Layers"].clone();
        assert_eq!(
            above.as_array().unwrap().len(),
            below.as_array().unwrap().len() + 1
        );
        outcome.push(list(engine, "changed"));
        // Into the container, over what a layer has, and out of it again.
        let place = engine.scratch_text("copies");
        fs::write(format!("{place}/small"), "copied in").unwrap();
        docker(&["cp", &format!("{place}/small"), "cc:/data/small"]);
        docker(&["cp", "cc:/data", &place]);
        docker(&[
            "cp",
            "cc:/many/file-with-a-long-name-0012",
            &format!("{place}/out"),
        ]);
        outcome.push(fs::read_to_string(format!("{place}/data/small")).unwrap());
        outcome.push(fs::read_to_string(format!("{place}/data/second")).unwrap());
        outcome.push(fs::read_to_string(format!("{place}/out")).unwrap());
        outcome.push(docker(&["diff", "cc"]));
        // What was committed can be saved, removed, and loaded again.
        let saved = engine.docker(&["save", "changed"]).stdout;
        let listed = list(engine, "changed");
        docker(&["rm", "cc"]);
        docker(&["rmi", "changed"]);
        engine.load(&saved);
        assert_eq!(list(engine, "changed"), listed);
        outcome
    });
    assert_eq!(forms(&images), ["image"; 5]);
    for outcome in &mut outcomes {
        assert!(outcome[0].contains("D /data/link") && outcome[0].contains("A /data/third"));
        assert!(outcome[0].contains("D /many/file-with-a-long-name-0007"));
        assert!(outcome[1].contains("hidden/in") && !outcome[1].contains("hidden/new"));
        assert_eq!(outcome[2..5], ["copied in", "small", &"x".repeat(84)]);
    }
    assert_eq!(outcomes[0], outcomes[1]);
    check_mounts(&images);
}

#[test]
fn an_engine_killed_while_it_writes_images_leaves_none_half_made() {
    let Some(engine) = start() else {
        return skipped!("the kernel cannot mount EROFS images from files");
    };
    let large = (0..200).fold(Tar::new().dir("large"), |tar, number| {
        tar.file(&format!("large/{number}"), noise(200_000 + number))
    });
    let mut app = image("app");
    app.layers.push(large.finish());
    let file = engine.scratch_text("archives") + "/app.tar";
    fs::write(&file, app.build()).unwrap();
    let has_begun = || {
        let tmp = engine.root().join("tmp");
        let mut made = fs::read_dir(tmp).unwrap().flatten();
        made.any(|made| made.path().join("fs.erofs").exists())
    };
    for round in 0..20u64 {
        std::thread::scope(|scope| {
            // It fails when the engine is killed.
            let load = scope.spawn(|| engine.docker(&["load", "-i", &file]));
            eventually("a layer", || {
                (has_begun() || load.is_finished()).then_some(())
            });
            std::thread::sleep(std::time::Duration::from_millis(round * 7));
            engine.kill9();
        });
        engine.restart();
        for layer in fs::read_dir(engine.root().join("layers")).unwrap() {
            let layer = layer.unwrap().path();
            assert!(layer.join("size").exists(), "{}", layer.display());
            whelk_sys::erofs::check(&layer.join("fs.erofs")).unwrap();
        }
        let is_empty = |name| {
            fs::read_dir(engine.root().join(name))
                .unwrap()
                .next()
                .is_none()
        };
        assert!(is_empty("tmp"));
        eventually("an empty trash", || is_empty("trash").then_some(()));
        // In case it was loaded before the kill.
        let _ = engine.docker(&["rmi", "app"]);
    }
    engine.docker(&["load", "-i", &file]).ok();
    assert!(list(&engine, "app").contains("data/small"));
    engine.docker(&["rmi", "app", "busybox"]).ok();
    assert!(forms(&engine).is_empty());
}

#[test]
fn a_damaged_image_is_named() {
    let Some(engine) = start() else {
        return skipped!("the kernel cannot mount EROFS images from files");
    };
    let layers = fs::read_dir(engine.root().join("layers")).unwrap();
    let layer = layers.map(|layer| layer.unwrap().path()).next().unwrap();
    let file = layer.join("fs.erofs");
    let whole = fs::read(&file).unwrap();
    let damage = |from: usize, to: &[u8]| {
        let mut bytes = whole.clone();
        bytes.splice(from.., to.iter().copied());
        fs::write(&file, bytes).unwrap();
    };
    let expected = format!(
        "the layer {} is damaged; remove the images that have it, and pull or load them again",
        file.display()
    );
    damage(whole.len() / 2, &[]);
    let error = engine.docker(&["run", "--rm", "busybox", "true"]).err();
    assert!(error.contains(&expected), "{error}");
    assert_ne!(engine.docker(&["save", "busybox"]).code, 0);
    // Content that has changed is noticed when it is saved.
    damage(
        whole.len() / 2,
        &whole[whole.len() / 2..]
            .iter()
            .map(|byte| !byte)
            .collect::<Vec<_>>(),
    );
    assert_ne!(engine.docker(&["save", "busybox"]).code, 0);
    engine.docker(&["rmi", "busybox"]).ok();
    engine.load(&fs::read(images::busybox()).unwrap());
    assert_eq!(
        engine
            .docker(&["run", "--rm", "--network", "none", "busybox", "echo", "hi"])
            .ok(),
        "hi"
    );
}

/// Returns the number of images that the engine has mounted.
fn mounted(engine: &Engine) -> usize {
    const EROFS: i64 = 0xe0f5_e1e2;
    let descriptors = fs::read_dir(format!("/proc/{}/fd", engine.daemon_pid())).unwrap();
    let systems = descriptors.filter_map(|fd| rustix::fs::statfs(fd.unwrap().path()).ok());
    systems.filter(|system| system.f_type == EROFS).count()
}

#[test]
fn layers_of_both_forms_are_in_one_store() {
    let Some(engine) = start() else {
        return skipped!("the kernel cannot mount EROFS images from files");
    };
    engine.terminate();
    engine.configure(&json!({"layers": "directories"}));
    engine.restart();
    let base = image("app");
    engine.load(&base.build());
    assert_eq!(
        forms(&engine),
        ["directory", "directory", "directory", "image"]
    );
    engine.terminate();
    engine.configure(&json!({"layers": "erofs"}));
    engine.restart();
    let top = Tar::new()
        .file("data/top", "top")
        .file("kept/.wh.stays", "")
        .finish();
    let layers = [base.layers, vec![top]].concat();
    engine.load(&Archive::new("above", layers).build());
    assert_eq!(
        forms(&engine),
        ["directory", "directory", "directory", "image", "image"]
    );
    let listed = list(&engine, "above");
    assert!(listed.contains("data/top regular file") && !listed.contains("kept/stays"));
    assert!(list(&engine, "app").contains("kept/stays"));
    engine.docker(&["rmi", "above", "app", "busybox"]).ok();
    assert!(forms(&engine).is_empty());
}

#[test]
fn images_stay_usable_when_the_engine_is_killed() {
    let Some(engine) = start() else {
        return skipped!("the kernel cannot mount EROFS images from files");
    };
    engine.load(&image("app").build());
    let words = [
        "run",
        "-d",
        "--name",
        "cc",
        "--network",
        "none",
        "app",
        "sleep",
        "1000",
    ];
    engine.docker(&words).ok();
    engine.kill9();
    engine.restart();
    check_mounts(&engine);
    let exec = |script: &str| engine.docker(&["exec", "cc", "sh", "-c", script]).ok();
    assert_eq!(
        exec("cat /data/small; wc -c </data/large"),
        "replaced300000"
    );
    assert!(list(&engine, "app").contains("data/small"));
    engine.docker(&["rm", "-f", "cc"]).ok();
    check_mounts(&engine);
}

#[test]
fn a_damaged_image_is_moved_away_and_comes_back() {
    let Some(engine) = start() else { return };
    let layer = small_root().file("large", noise(300_000)).finish();
    let archive = Archive::new("app:1", vec![layer]).build();
    engine.load(&archive);
    let read = || {
        let words = ["run", "--rm", "--network", "none", "app:1"];
        engine
            .whelk(&[&words[..], &["cat", "/large"]].concat())
            .ok()
    };
    // The engine keeps the image mounted.
    let whole = read();
    let has_it = |content: &[u8]| {
        let part = &noise(300_000)[100_000..100_016];
        content.windows(16).position(|window| window == part)
    };
    let layers = fs::read_dir(engine.root().join("layers")).unwrap();
    let mut images = layers.map(|layer| layer.unwrap().path().join("fs.erofs"));
    let image = images
        .find(|image| has_it(&fs::read(image).unwrap()).is_some())
        .unwrap();
    let repaired = |flags: &[&str], problem: &str| {
        let words = [&["system", "check", "--repair"], flags].concat();
        let done = engine.whelk(&words);
        let out = done.out();
        assert!(
            done.code == 1 && out.contains(problem) && out.contains(": moved to "),
            "{problem}: {out}{}",
            done.err()
        );
        assert!(!image.exists(), "{problem}");
        engine.load(&archive);
        engine.whelk(&["system", "check", "--layers"]).ok();
        assert!(read() == whole, "{problem}");
    };
    let mut content = fs::read(&image).unwrap();
    let at = has_it(&content).unwrap();
    content[at] ^= 1;
    fs::write(&image, &content).unwrap();
    repaired(&["--layers"], "was changed on disk");
    let content = fs::read(&image).unwrap();
    fs::write(&image, &content[..content.len() - 4096]).unwrap();
    repaired(&[], "is damaged: its image is cut off");
}
