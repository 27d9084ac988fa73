//! Images: into the engine, out of it, and what they are called there.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::fs;

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, gzip, pack, sha256, zstd};
use whelk_tests::tar::{self, Entry, Kind, Tar};
use whelk_tests::{Engine, Program, escape, eventually};

/// The names of what lies below the engine's root: what a refused archive must not add to.
fn stored(engine: &Engine) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["layers", "blobs/sha256", "tmp"] {
        let Ok(listing) = fs::read_dir(engine.root().join(directory)) else {
            continue;
        };
        found.extend(listing.map(|entry| {
            format!(
                "{directory}/{}",
                entry.unwrap().file_name().to_string_lossy()
            )
        }));
    }
    found.sort();
    found
}

/// The parts of a saved archive by name.
fn parts_of(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    tar::read(archive)
        .into_iter()
        .filter(|entry| entry.kind == b'0')
        .map(|entry| (entry.path, entry.content))
        .collect()
}

fn runs(engine: &Engine, image: &str) -> String {
    engine
        .whelk(&[
            "run",
            "--rm",
            "--network",
            "none",
            image,
            "cat",
            "/etc/which",
        ])
        .ok()
}

/// A small image that says which one it is.
fn marked(tag: &str) -> Archive {
    Archive::new(
        tag,
        vec![
            images::small_root().finish(),
            Tar::new().file("etc/which", tag).finish(),
        ],
    )
}

#[test]
fn load_reports_the_progress_of_layers_where_it_is_seen() {
    let engine = Engine::without_images(&[]);
    let archive = marked("progress:1");
    let bytes = archive.build();
    let load = |query: &str| -> Vec<Value> {
        let answer = engine.http("POST", &format!("/images/load{query}"), &[], &bytes);
        assert_eq!(answer.status, 200);
        engine.docker(&["rmi", "progress:1"]).ok();
        let text = answer.text();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let told = json!({"stream": "Loaded image: progress:1\n"});
    let mut messages = load("?quiet=0");
    assert_eq!(messages.pop(), Some(told.clone()));
    for layer in &archive.layers {
        let id = &sha256(layer)[..12];
        let mut of_layer = messages.iter().filter(|message| message["id"] == id);
        let last = of_layer.next_back().unwrap();
        assert_eq!(last["status"], "Loading layer");
        let size = layer.len();
        assert_eq!(
            last["progressDetail"],
            json!({"current": size, "total": size})
        );
        let bar = last["progress"].as_str().unwrap();
        assert!(bar.starts_with(&format!("[{}>]", "=".repeat(50))), "{bar}");
    }
    // As Docker's engine, which is quiet unless told otherwise.
    for query in ["", "?quiet=1"] {
        assert_eq!(load(query), std::slice::from_ref(&told), "{query}");
    }
    let file = engine.scratch("archives").join("archive.tar");
    fs::write(&file, &bytes).unwrap();
    let file = file.display().to_string();
    engine.both(|cli| {
        let mut terminal = cli.pty(&["load", "-i", &file]);
        terminal.expect(&format!(
            "{}: Loading layer",
            &sha256(&archive.layers[0])[..12]
        ));
        terminal.expect("Loaded image: progress:1");
        assert_eq!(terminal.finish(), 0);
        cli.run(&["rmi", "progress:1"]).ok();
        let mut terminal = cli.pty(&["load", "-q", "-i", &file]);
        assert_eq!(terminal.finish(), 0);
        assert_eq!(terminal.screen(), "Loaded image: progress:1\r\n");
        cli.run(&["rmi", "progress:1"]).ok();
        let output = cli.run(&["load", "-i", &file]).ok();
        assert_eq!(output, "Loaded image: progress:1");
        cli.run(&["rmi", "progress:1"]).ok();
    });
}

#[test]
fn the_manifest_of_an_oci_archive_stays_with_the_image() {
    let engine = Engine::without_images(&[]);
    engine.load(&marked("oci:1").build());
    let inspect = |name: &str| engine.get(&format!("/images/{name}/json"));
    let id = inspect("oci:1")["Id"].as_str().unwrap().to_owned();
    let saved = engine.http("GET", "/images/oci:1/get", &[], b"").body;
    engine.docker(&["rmi", "oci:1"]).ok();
    assert_eq!(stored(&engine), [""; 0]);
    // The same image as `docker buildx` writes it: an index between the layout and the manifest.
    let mut parts = parts_of(&saved);
    parts.retain(|(name, _)| name != "manifest.json" && name != "repositories");
    let layout = parts
        .iter_mut()
        .find(|(name, _)| name == "index.json")
        .unwrap();
    let mut index: Value = serde_json::from_slice(&layout.1).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let annotations = index["manifests"][0]["annotations"].take();
    index["manifests"][0]["annotations"] = json!({});
    let inner = serde_json::to_vec(&index).unwrap();
    let outer = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{}", sha256(&inner)),
        "size": inner.len(),
        "annotations": annotations,
    }]});
    layout.1 = serde_json::to_vec(&outer).unwrap();
    let name = format!("blobs/sha256/{}", sha256(&inner));
    parts.push((name.clone(), inner));
    engine.load(&pack(&parts));
    let manifest = format!("blobs/sha256/{}", manifest.trim_start_matches("sha256:"));
    let config = format!("blobs/sha256/{}", id.trim_start_matches("sha256:"));
    let digest = |blob: &str| blob.replace("blobs/sha256/", "sha256:");
    let check = || {
        let stored = stored(&engine);
        for blob in [&name, &manifest, &config] {
            assert!(stored.contains(blob), "{blob}: {stored:?}");
        }
        let content = fs::read(engine.root().join(&name)).unwrap();
        assert_eq!(format!("blobs/sha256/{}", sha256(&content)), name);
        // What clients see is the same as of any loaded image.
        let image = inspect("oci:1");
        assert_eq!(
            (&image["Id"], &image["RepoDigests"]),
            (&json!(id), &json!([]))
        );
        assert!(image.get("Descriptor").is_none() && image.get("Manifests").is_none());
        assert_eq!(engine.get("/images/json")[0]["RepoDigests"], json!([]));
        // It is found by what it came with.
        for found in [digest(&manifest), digest(&name), id.clone()] {
            for name in [&found, &format!("oci@{found}"), &format!("oci:9@{found}")] {
                assert_eq!(inspect(name)["Id"], json!(id), "{name}");
            }
            let elsewhere = format!("/images/other@{found}/json");
            assert_eq!(engine.api("GET", &elsewhere, None).0, 404);
        }
    };
    check();
    engine.kill9();
    engine.restart();
    check();
    // A name for it, and the same image from an archive without manifests, change nothing in that.
    engine.docker(&["tag", "oci:1", "oci:2"]).ok();
    engine.load(&marked("oci:1").build());
    check();
    let by_digest = format!("oci@{}", digest(&manifest));
    engine
        .docker(&["rmi", &by_digest])
        .refuses(1, "must be forced");
    engine.docker(&["rmi", "oci:2"]).ok();
    assert!(
        engine
            .docker(&["rmi", &by_digest])
            .ok()
            .starts_with("Untagged: oci:1\nDeleted: ")
    );
    assert_eq!(stored(&engine), [""; 0]);
}

#[test]
fn load_says_what_it_loaded_from_a_file_and_from_standard_input() {
    let engine = Engine::without_images(&[]);
    let path = images::busybox().display().to_string();
    let bytes = fs::read(images::busybox()).unwrap();
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        assert_eq!(cli.run(&["images", "-q"]).ok(), "");
        assert_eq!(
            cli.run(&["load", "-i", &path]).ok().lines().last(),
            Some("Loaded image: busybox:latest")
        );
        assert_eq!(
            cli.feed(&["load", "-q"], &bytes).ok(),
            "Loaded image: busybox:latest"
        );
        assert_eq!(
            cli.run(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
                .ok(),
            "busybox:latest"
        );
        let removed = cli.run(&["rmi", "busybox"]).ok();
        assert!(
            removed.starts_with("Untagged: busybox:latest\nDeleted: sha256:"),
            "{removed}"
        );
    }
    assert_eq!(
        stored(&engine),
        Vec::<String>::new(),
        "nothing is left of an image that was removed"
    );
}

#[test]
fn every_form_of_archive_can_be_loaded() {
    let engine = Engine::without_images(&[]);
    let plain = marked("form").build();
    engine.load(&plain);
    let saved = engine.http("GET", "/images/form/get", &[], b"").body;
    let parts = parts_of(&saved);
    let without = |left_out: &str| {
        pack(
            &parts
                .iter()
                .filter(|(name, _)| name != left_out)
                .cloned()
                .collect::<Vec<_>>(),
        )
    };
    assert!(
        parts.iter().any(|(name, _)| name == "index.json")
            && parts.iter().any(|(name, _)| name == "manifest.json")
    );
    let mut packed_layers = marked("form");
    let true_ids: Vec<String> = packed_layers
        .layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect();
    packed_layers.layers = vec![
        gzip(&packed_layers.layers[0]),
        zstd(&packed_layers.layers[1]),
    ];
    packed_layers.diff_ids = Some(true_ids);
    let forms = [
        ("gzip", gzip(&plain)),
        ("zstd", zstd(&plain)),
        ("saved", saved.clone()),
        ("OCI layout only", without("manifest.json")),
        ("Docker's only", without("index.json")),
        ("OCI layout, gzip", gzip(&without("manifest.json"))),
        ("compressed layers", packed_layers.build()),
    ];
    let id = engine.get("/images/form/json")["Id"].clone();
    for (what, archive) in forms {
        engine.docker(&["rmi", "form"]).ok();
        let answer = engine.try_load(&archive);
        assert!(
            answer.text().contains("Loaded image: form:latest"),
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
        assert_eq!(runs(&engine, "form"), "form", "{what}");
        assert_eq!(
            engine.get("/images/form/json")["Id"],
            id,
            "{what}: the same image"
        );
    }
}

#[test]
fn save_gives_back_what_was_loaded_bit_for_bit() {
    let engine = Engine::start();
    let original = tar::read(&fs::read(images::busybox()).unwrap());
    let layer = &original
        .iter()
        .find(|entry| entry.path.ends_with("layer.tar"))
        .unwrap()
        .content;
    let image = engine.get("/images/busybox/json");
    assert_eq!(
        image["RootFS"]["Layers"],
        json!([format!("sha256:{}", sha256(layer))])
    );
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        let saved = cli.run(&["save", "busybox"]);
        assert_eq!(saved.code, 0, "{}", saved.err());
        let manifest: Value =
            serde_json::from_slice(&tar::file(&saved.stdout, "manifest.json")).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["busybox:latest"]));
        let config = tar::file(&saved.stdout, manifest[0]["Config"].as_str().unwrap());
        assert_eq!(
            format!("sha256:{}", sha256(&config)),
            image["Id"].as_str().unwrap()
        );
        assert!(
            tar::file(&saved.stdout, manifest[0]["Layers"][0].as_str().unwrap()) == *layer,
            "the layer is not the same"
        );
        let file = engine.scratch("saved").join(format!("{program:?}.tar"));
        cli.run(&["save", "-o", &file.display().to_string(), "busybox"])
            .ok();
        assert!(fs::read(&file).unwrap() == saved.stdout, "twice the same");
        cli.run(&["rmi", "busybox"]).ok();
        engine.load(&saved.stdout);
        assert_eq!(engine.get("/images/busybox/json")["Id"], image["Id"]);
    }
}

#[test]
fn several_images_go_through_one_archive() {
    let engine = Engine::without_images(&[]);
    for tag in ["one:1", "two:2"] {
        engine.load(&marked(tag).build());
    }
    engine
        .docker(&["tag", "one:1", "example.com/deep/one:copy"])
        .ok();
    let saved = engine
        .whelk(&["save", "one:1", "two:2", "example.com/deep/one:copy"])
        .stdout;
    let layers = parts_of(&saved)
        .iter()
        .filter(|(_, content)| *content == images::small_root().finish())
        .count();
    assert_eq!(layers, 1, "a layer that both have is there once");
    engine
        .docker(&["rmi", "one:1", "two:2", "example.com/deep/one:copy"])
        .ok();
    assert_eq!(engine.docker(&["images", "-q"]).ok(), "");
    let loaded = engine.cli(Program::Docker).feed(&["load"], &saved).ok();
    for name in ["one:1", "two:2", "example.com/deep/one:copy"] {
        assert!(
            loaded.contains(&format!("Loaded image: {name}")),
            "{loaded}"
        );
    }
    assert_eq!(
        (
            runs(&engine, "one:1").as_str(),
            runs(&engine, "two:2").as_str()
        ),
        ("one:1", "two:2")
    );
}

#[test]
fn tags_come_and_go() {
    Engine::start().both(|cli| {
        let id = cli.run(&["images", "-q", "--no-trunc", "busybox"]).ok();
        assert_eq!(cli.run(&["tag", "busybox", "mine:1"]).ok(), "");
        cli.run(&["tag", &id, "localhost:5000/a/b"]).ok();
        let names = cli.run(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
        for name in ["busybox:latest", "mine:1", "localhost:5000/a/b:latest"] {
            assert!(names.lines().any(|line| line == name), "{names}");
        }
        let short = &id.trim_start_matches("sha256:")[..12];
        cli.run(&["rmi", short])
            .refuses(1, &format!("conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"));
        assert_eq!(cli.run(&["rmi", "mine:1", "localhost:5000/a/b"]).ok(), "Untagged: mine:1\nUntagged: localhost:5000/a/b:latest");
        cli.run(&["tag", "nosuch", "x"]).refuses(1, "Error response from daemon: No such image: nosuch:latest");
        cli.run(&["tag", "busybox", "UPPER"]).refuses(
            1,
            "\"UPPER\" is not a valid repository/tag: invalid reference format: repository name (library/UPPER) must be lowercase",
        );
        cli.run(&["rmi", "nosuch"]).refuses(1, "No such image: nosuch:latest");
        assert_eq!(cli.run(&["images", "-q", "--no-trunc"]).ok(), id);
    });
}

#[test]
fn an_image_in_use_is_not_removed() {
    Engine::start().both(|cli| {
        let id = cli.run(&["images", "-q", "busybox"]).ok();
        let container = cli.up("user", &[], &["sleep", "600"]);
        let short = &container[..12];
        cli.run(&["rmi", "busybox"])
            .refuses(1, &format!("conflict: unable to remove repository reference \"busybox\" (must force) - container {short} is using its referenced image {id}"));
        cli.run(&["rmi", "-f", &id]).refuses(1, &format!("conflict: unable to delete {id} (cannot be forced) - image is being used by running container {short}"));
        cli.run(&["kill", "user"]).ok();
        cli.run(&["rmi", &id]).refuses(1, &format!("conflict: unable to delete {id} (must be forced) - image is being used by stopped container {short}"));
        // Untagged by force, the container still runs.
        assert_eq!(cli.run(&["rmi", "-f", "busybox"]).ok().lines().next(), Some("Untagged: busybox:latest"));
        cli.run(&["start", "user"]).ok();
        assert_eq!(cli.run(&["exec", "user", "echo", "fine"]).ok(), "fine");
        cli.run(&["rm", "-f", "user"]).ok();
        cli.engine().load(&fs::read(images::busybox()).unwrap());
    });
}

#[test]
fn lists_history_and_inspect_look_like_dockers() {
    Engine::start().both(|cli| {
        let text = cli.run(&["images"]).ok();
        let words: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        );
        let row = text.lines().nth(1).unwrap();
        assert!(
            row.starts_with("busybox      latest    ")
                && row.contains(" years ago ")
                && row.ends_with("MB"),
            "{row}"
        );
        let text = cli
            .run(&["history", "--format", "{{.CreatedBy}}|{{.Size}}", "busybox"])
            .ok();
        assert_eq!(text.lines().next(), Some("CMD [\"sh\"]|0B"));
        assert_eq!(text.lines().count(), 2);
        let text = cli
            .run(&[
                "image",
                "inspect",
                "-f",
                "{{.Os}} {{.Config.Cmd}} {{len .RootFS.Layers}} {{index .RepoTags 0}} {{.Created}}",
                "busybox",
            ])
            .ok();
        assert_eq!(text, "linux [sh] 1 busybox:latest 2024-01-01T00:00:00Z");
        assert_eq!(cli.run(&["images", "-q", "nosuch"]).ok(), "");
        assert_eq!(
            cli.run(&["images", "-q", "-f", "reference=busy*"])
                .ok()
                .len(),
            12
        );
        assert_eq!(cli.run(&["images", "-q", "-f", "dangling=true"]).ok(), "");
        cli.run(&["image", "inspect", "nosuch"])
            .refuses(1, "No such image: nosuch:latest");
        cli.run(&["history", "nosuch"])
            .refuses(1, "No such image: nosuch:latest");
    });
}

#[test]
fn a_container_exported_and_imported_is_an_image() {
    Engine::start().both(|cli| {
        cli.up(
            "source",
            &[],
            &[
                "sh",
                "-c",
                "echo made >/made; rm /etc/group; exec sleep 600",
            ],
        );
        cli.engine().await_state("source", "running");
        eventually("the program to have done it", || {
            (cli.run(&["exec", "source", "ls", "/etc/group"]).code != 0).then_some(())
        });
        let exported = cli.run(&["export", "source"]);
        assert_eq!(exported.code, 0, "{}", exported.err());
        let entries = tar::read(&exported.stdout);
        assert_eq!(tar::file(&exported.stdout, "made"), b"made\n");
        assert!(
            !entries.iter().any(|entry| entry.path == "etc/group")
                && entries.iter().any(|entry| entry.path == "bin/busybox")
        );
        let id = cli
            .feed(
                &[
                    "import",
                    "--change",
                    "CMD [\"cat\", \"/made\"]",
                    "--change",
                    "ENV A=b",
                    "-",
                    "flat:1",
                ],
                &exported.stdout,
            )
            .ok();
        assert_eq!(cli.run(&["images", "-q", "--no-trunc", "flat:1"]).ok(), id);
        assert_eq!(
            cli.run(&["run", "--rm", "--network", "none", "flat:1"])
                .ok(),
            "made"
        );
        assert_eq!(
            cli.run(&[
                "image",
                "inspect",
                "-f",
                "{{json .Config.Env}} {{len .RootFS.Layers}}",
                "flat:1"
            ])
            .ok(),
            "[\"A=b\"] 1"
        );
        let file = cli
            .engine()
            .scratch("export")
            .join("x.tar")
            .display()
            .to_string();
        cli.run(&["export", "-o", &file, "source"]).ok();
        cli.run(&["import", &file]).ok();
        cli.run(&["rmi", "flat:1"]).ok();
    });
}

#[test]
fn files_arrive_as_the_archive_has_them() {
    let engine = Engine::start();
    let long = format!("d/{}", "n".repeat(90));
    let root = images::small_root()
        .dir("d")
        .entry(&Entry {
            mode: 0o4755,
            owner: (1000, 1001),
            mtime: 1_000_000_000,
            content: b"suid",
            ..Entry::new("d/suid", Kind::File)
        })
        .entry(&Entry {
            mode: 0o1777,
            ..Entry::new("d/sticky", Kind::Directory)
        })
        .entry(&Entry {
            target: "d/suid",
            mode: 0o4755,
            owner: (1000, 1001),
            mtime: 1_000_000_000,
            ..Entry::new("d/second", Kind::HardLink)
        })
        .symlink("d/dangling", "/no/such/place")
        .fifo("d/pipe")
        .device("d/zero", 1, 5)
        .file(&long, "long")
        .file("d/ with space\u{e9}", "odd");
    engine.import("kinds", &[], &root.finish());
    let script = "cd /d; stat -c '%n %a %u:%g %h %Y' suid; stat -c %a sticky; readlink dangling; stat -c %F pipe; stat -c %t:%T zero; cat second n*; cat ' with space\u{e9}'";
    let output = engine.whelk(&[
        "run",
        "--rm",
        "--network",
        "none",
        "kinds",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(
        output.ok(),
        "suid 4755 1000:1001 2 1000000000\n1777\n/no/such/place\nfifo\n1:5\nsuidlongodd"
    );
}

#[test]
fn later_layers_hide_what_they_say() {
    let engine = Engine::without_images(&[]);
    let layers = vec![
        images::small_root()
            .dir("d")
            .file("d/a", "1")
            .file("d/b", "1")
            .file("gone", "1")
            .dir("o")
            .file("o/old", "1")
            .dir("swap")
            .file("swap/x", "1")
            .finish(),
        Tar::new()
            .file("d/.wh.a", "")
            .file(".wh.gone", "")
            .dir("o")
            .file("o/.wh..wh..opq", "")
            .file("o/new", "2")
            .file("swap", "a file now")
            .finish(),
        Tar::new().file("d/a", "3").finish(),
    ];
    engine.load(&Archive::new("hides", layers).build());
    let output = engine.whelk(&[
        "run",
        "--rm",
        "--network",
        "none",
        "hides",
        "sh",
        "-c",
        "cat /d/a /d/b; ls /o /gone; cat /swap; echo; ls -a /d /o | grep wh",
    ]);
    let (out, err) = (output.out(), output.err());
    assert!(
        out.starts_with("31/o:\nnew\n") && out.contains("a file now"),
        "{out}"
    );
    assert!(
        err.contains("/gone: No such file or directory") && !out.contains(".wh."),
        "{out} {err}"
    );
}

#[test]
fn archives_that_climb_or_use_links_are_resolved_inside() {
    let engine = Engine::without_images(&[]);
    let layer = images::small_root()
        .file("/etc/absolute", "absolute")
        .hard_link("etc/linked", "/etc/absolute")
        .symlink("etc/above", "../../../../etc/absolute")
        .symlink("elsewhere", "/etc")
        .file("elsewhere/through", "through")
        .symlink("climbs", "../../etc")
        .file("climbs/up", "up")
        .hard_link("etc/linked-through", "elsewhere/through")
        .symlink("made", "/new/place")
        .file("made/deep/file", "made")
        .file("a/../b/c", "cleaned")
        .finish();
    let script = "cat /etc/absolute /etc/linked /etc/above /etc/through /etc/up /etc/linked-through /new/place/deep/file /b/c; readlink /climbs";
    let expected = "absoluteabsoluteabsolutethroughupthroughmadecleaned../../etc";
    engine.import("links", &[], &layer);
    engine.load(&Archive::new("loaded", vec![layer.clone()]).build());
    for image in ["links", "loaded"] {
        assert_eq!(
            engine
                .whelk(&[
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    image,
                    "sh",
                    "-c",
                    script
                ])
                .ok(),
            expected,
            "{image}"
        );
    }
    // The archive comes back as it was, whatever its files are called in the store.
    let saved = engine.http("GET", "/images/loaded/get", &[], b"").body;
    assert!(tar::file(&saved, &format!("blobs/sha256/{}", sha256(&layer))) == layer);
    for (what, layer) in [
        ("a name that climbs", Tar::new().file("../x", "x")),
        (
            "a link that climbs",
            Tar::new().file("x", "x").hard_link("y", "../x"),
        ),
        (
            "a loop",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", "x"),
        ),
        (
            "a file as a directory",
            Tar::new().file("a", "x").file("a/b", "x"),
        ),
    ] {
        let answer = engine.http(
            "POST",
            "/images/create?fromSrc=-",
            &[("Content-Type", "application/x-tar")],
            &layer.finish(),
        );
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
    }
}

#[test]
fn files_with_holes_arrive_whole_in_every_format() {
    let engine = Engine::without_images(&[]);
    let root = engine.scratch("root");
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program)
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let archive = engine
        .scratch("archive")
        .join("root.tar")
        .display()
        .to_string();
    fs::write(&archive, images::small_root().finish()).unwrap();
    run("tar", &["-C", &root.display().to_string(), "-xf", &archive]);
    let file = fs::File::create(root.join("holes")).unwrap();
    file.set_len(5_000_001).unwrap();
    for (at, text) in [
        (0u64, "begin"),
        (1_000_000, "middle"),
        (3_000_000, "more"),
        (4_999_998, "end"),
    ] {
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), at).unwrap();
    }
    let expected = sha256(&fs::read(root.join("holes")).unwrap());
    for format in [
        "--format=gnu",
        "--sparse-version=0.0",
        "--sparse-version=0.1",
        "--sparse-version=1.0",
    ] {
        let posix = if format.starts_with("--sparse") {
            "--format=posix"
        } else {
            format
        };
        let layer = run(
            "tar",
            &[
                "-C",
                &root.display().to_string(),
                "-c",
                "-S",
                posix,
                format,
                ".",
            ],
        );
        assert!(
            layer.len() < 4_000_000,
            "{format}: the holes are not in the archive"
        );
        engine.import("imported", &[], &layer);
        engine.load(&Archive::new("loaded", vec![layer.clone()]).build());
        for image in ["imported", "loaded"] {
            let script = "busybox sha256sum /holes; stat -c '%s %b' /holes";
            let output = engine
                .whelk(&[
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    image,
                    "sh",
                    "-c",
                    script,
                ])
                .ok();
            let words: Vec<&str> = output.split_whitespace().collect();
            assert_eq!(
                (words[0], words[2]),
                (expected.as_str(), "5000001"),
                "{format}, {image}"
            );
            assert!(
                words[3].parse::<u64>().unwrap() < 1000,
                "{format}, {image}: the holes are filled: {output}"
            );
        }
        let saved = engine.http("GET", "/images/loaded/get", &[], b"").body;
        assert!(
            tar::file(&saved, &format!("blobs/sha256/{}", sha256(&layer))) == layer,
            "{format}: not as it was"
        );
        // The parts of an image archive may have holes as well.
        let parts = engine.scratch("parts");
        for (name, content) in Archive::new("packed", vec![images::small_root().finish()]).parts() {
            let path = parts.join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let packed = run(
            "tar",
            &[
                "-C",
                &parts.display().to_string(),
                "-c",
                "-S",
                posix,
                format,
                ".",
            ],
        );
        engine.load(&packed);
        engine.docker(&["rmi", "imported", "loaded", "packed"]).ok();
    }
}

#[test]
fn a_mark_on_the_root_of_a_layer_hides_nothing() {
    let engine = Engine::without_images(&[]);
    let marked = Tar::new()
        .file(".wh..wh..opq", "")
        .file("new", "new")
        .finish();
    engine.load(&Archive::new("marked", vec![images::small_root().finish(), marked]).build());
    assert_eq!(
        engine
            .whelk(&["run", "--rm", "--network", "none", "marked", "cat", "/new"])
            .ok(),
        "new"
    );
    assert_eq!(
        engine
            .whelk(&[
                "run",
                "--rm",
                "--network",
                "none",
                "marked",
                "grep",
                "-c",
                "root",
                "/etc/passwd"
            ])
            .ok(),
        "1"
    );
}

#[test]
fn changes_follow_the_rules_of_dockerfiles() {
    let engine = Engine::without_images(&[]);
    let config = |changes: &[&str]| {
        engine.import("changed", changes, &Tar::new().file("x", "x").finish());
        engine.get("/images/changed/json")["Config"].clone()
    };
    let found = config(&[
        "ENV P=/a",
        "ENV P=$P:/x Q=${P}:b",
        "WORKDIR x",
        "WORKDIR y",
        "EXPOSE 90-92 53/udp",
        "LABEL \"a b\"=c",
    ]);
    assert_eq!(found["Env"], json!(["P=/a:/x", "Q=/a:b"]));
    assert_eq!(
        (&found["WorkingDir"], &found["Labels"]),
        (&json!("/x/y"), &json!({"a b": "c"}))
    );
    assert_eq!(
        found["ExposedPorts"],
        json!({"53/udp": {}, "90/tcp": {}, "91/tcp": {}, "92/tcp": {}})
    );
    let found = config(&[
        "HEALTHCHECK --interval=5s --retries=3 CMD echo a",
        "ENTRYPOINT [\"e\"]",
        "CMD c d",
        "ONBUILD RUN x",
    ]);
    assert_eq!(
        found["Healthcheck"],
        json!({"Test": ["CMD-SHELL", "echo a"], "Interval": 5_000_000_000_i64, "Retries": 3})
    );
    assert_eq!(
        (&found["Entrypoint"], &found["Cmd"]),
        (&json!(["e"]), &json!(["/bin/sh", "-c", "c d"]))
    );
    assert_eq!(found["OnBuild"], json!(["RUN x"]));
    let archive = Tar::new().file("x", "x").finish();
    engine.both(|cli| {
        cli.feed(
            &[
                "import",
                "-c",
                "USER 5:6",
                "-c",
                "STOPSIGNAL SIGUSR1",
                "-c",
                "VOLUME /v",
                "-",
                "by-cli",
            ],
            &archive,
        )
        .ok();
        let found = &cli.engine().get("/images/by-cli/json")["Config"];
        assert_eq!(
            (&found["User"], &found["StopSignal"], &found["Volumes"]),
            (&json!("5:6"), &json!("SIGUSR1"), &json!({"/v": {}}))
        );
        for (change, text) in [
            ("RUN x", "RUN is not a valid change command"),
            ("STOPSIGNAL FOO", "invalid signal: FOO"),
            ("EXPOSE x", "invalid containerPort: x"),
            ("ENV A", "ENV must have two arguments"),
        ] {
            cli.feed(&["import", "-c", change, "-", "refused"], &archive)
                .refuses(1, text);
        }
        cli.run(&["image", "inspect", "refused"])
            .refuses(1, "No such image");
    });
}

#[test]
fn the_first_layout_of_archives_can_be_loaded() {
    let engine = Engine::without_images(&[]);
    let (base, top) = ("a".repeat(64), "b".repeat(64));
    let json_of = |id: &str, parent: &str| {
        let command = json!({"Cmd": ["/bin/sh", "-c", format!("make {}", &id[..1])]});
        json!({"id": id, "parent": parent, "created": "2014-01-01T00:00:00Z", "docker_version": "1.9.1", "os": "linux", "architecture": "amd64",
            "author": "somebody <a@b>", "container_config": command, "config": {"Cmd": ["cat", "/etc/which"], "Env": ["A=b"]}, "Size": 5})
        .to_string()
    };
    let archive = Tar::new()
        .dir(&base)
        .file(&format!("{base}/VERSION"), "1.0")
        .file(&format!("{base}/json"), json_of(&base, ""))
        .file(&format!("{base}/layer.tar"), images::small_root().finish())
        .file(&format!("{top}/VERSION"), "1.0")
        .file(&format!("{top}/json"), json_of(&top, &base))
        .file(
            &format!("{top}/layer.tar"),
            gzip(&Tar::new().file("etc/which", "old").finish()),
        )
        .file(
            "repositories",
            json!({"old": {"1": top, "base": base}, "example.com/x": {"y": top}}).to_string(),
        )
        .finish();
    engine.load(&archive);
    assert_eq!(
        engine
            .whelk(&["run", "--rm", "--network", "none", "old:1"])
            .ok(),
        "old"
    );
    let image = engine.get("/images/old:1/json");
    assert_eq!(image["RepoTags"], json!(["old:1", "example.com/x:y"]));
    assert_eq!(
        (&image["Author"], &image["Config"]["Env"]),
        (&json!("somebody <a@b>"), &json!(["A=b"]))
    );
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    let steps = engine
        .whelk(&[
            "history",
            "--no-trunc",
            "--format",
            "{{.CreatedBy}}",
            "old:1",
        ])
        .ok();
    assert_eq!(steps, "/bin/sh -c make b\n/bin/sh -c make a");
    assert_eq!(
        engine.get("/images/old:base/json")["RootFS"]["Layers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let endless = archive_with_loop(&base);
    let answer = engine.try_load(&endless);
    assert!(
        answer.text().contains("\"error\""),
        "parents that go in circles: {}",
        answer.text()
    );
}

fn archive_with_loop(id: &str) -> Vec<u8> {
    Tar::new()
        .file(
            &format!("{id}/json"),
            json!({"id": id, "parent": id}).to_string(),
        )
        .file(&format!("{id}/layer.tar"), Tar::new().finish())
        .file("repositories", json!({"loop": {"1": id}}).to_string())
        .finish()
}

#[test]
fn save_writes_all_tags_of_a_name_with_the_times_of_the_images() {
    let engine = Engine::without_images(&[]);
    for tag in ["one:1", "one:2", "other:1"] {
        engine.load(&marked(tag).build());
    }
    engine.docker(&["tag", "one:1", "one:also"]).ok();
    let top = |tag: &str| sha256(&Tar::new().file("etc/which", tag).finish());
    engine.both(|cli| {
        let mut events = cli.engine().events(&format!(
            "filters={}",
            escape("{\"type\":[\"image\"],\"event\":[\"save\"]}")
        ));
        let saved = cli.run(&["save", "one"]).stdout;
        let manifest: Value = serde_json::from_slice(&tar::file(&saved, "manifest.json")).unwrap();
        assert_eq!(
            (&manifest[0]["RepoTags"], &manifest[1]["RepoTags"]),
            (&json!(["one:1", "one:also"]), &json!(["one:2"]))
        );
        let repositories: Value =
            serde_json::from_slice(&tar::file(&saved, "repositories")).unwrap();
        assert_eq!(
            repositories,
            json!({"one": {"1": top("one:1"), "2": top("one:2"), "also": top("one:1")}})
        );
        let entries = tar::read(&saved);
        // 2024-01-01: what the images' configurations say.
        let time = |path: &str| {
            entries
                .iter()
                .find(|entry| entry.path == path)
                .unwrap()
                .mtime
        };
        assert_eq!(time(manifest[0]["Config"].as_str().unwrap()), 1_704_067_200);
        assert_eq!(
            time(manifest[0]["Layers"][1].as_str().unwrap()),
            1_704_067_200
        );
        assert_eq!((time("manifest.json"), time("repositories")), (0, 0));
        let id = cli.engine().get("/images/one:1/json")["Id"].clone();
        let event = events.next_event().unwrap();
        assert_eq!(
            (&event["Actor"]["ID"], &event["Actor"]["Attributes"]["name"]),
            (&id, &id)
        );
        let by_id = cli.run(&["save", id.as_str().unwrap()]).stdout;
        assert!(
            !tar::read(&by_id)
                .iter()
                .any(|entry| entry.path == "repositories")
        );
        let manifest: Value = serde_json::from_slice(&tar::file(&by_id, "manifest.json")).unwrap();
        assert_eq!(manifest[0]["RepoTags"], Value::Null);
    });
}

/// What the kernel has logged since this was called.
fn kernel_log() -> impl FnOnce() -> String {
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open("/dev/kmsg")
        .unwrap();
    log.seek(SeekFrom::End(0)).unwrap();
    move || {
        let mut text = Vec::new();
        let mut record = [0; 8192];
        while let Ok(count) = log.read(&mut record) {
            text.extend_from_slice(&record[..count]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[test]
fn exporting_what_runs_reads_what_is_mounted() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up(
        "runs",
        &["--tmpfs", "/scratch", "-v", "/data"],
        &[
            "sh",
            "-c",
            "echo new >/new; echo no >/scratch/x; rm /etc/group; exec sleep 600",
        ],
    );
    eventually("the program to have done it", || {
        (cli.run(&["exec", "runs", "ls", "/etc/group"]).code != 0).then_some(())
    });
    // Somebody else's engine may have the kernel warn at the same time, but not again and again.
    let quiet = (0..5).any(|_| {
        let log = kernel_log();
        let exported = tar::read(&cli.run(&["export", "runs"]).stdout);
        let names: Vec<&str> = exported.iter().map(|entry| entry.path.as_str()).collect();
        assert!(
            names.contains(&"new")
                && names.contains(&"bin/busybox")
                && names.contains(&"scratch")
                && names.contains(&"data"),
            "{names:?}"
        );
        assert!(
            !names.contains(&"scratch/x")
                && !names.contains(&"etc/group")
                && !names.iter().any(|name| name.starts_with("proc/"))
        );
        !log().contains("is in-use")
    });
    assert!(quiet, "overlay warns that a directory is mounted twice");
    cli.run(&["kill", "runs"]).ok();
    engine.await_state("runs", "exited");
    assert_eq!(
        tar::file(&cli.run(&["export", "runs"]).stdout, "new"),
        b"new\n"
    );
}
