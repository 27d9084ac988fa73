//! Saving images: the same bytes as were loaded, several images, and all tags.

use std::fs;

use serde_json::{Value, json};
use whelk_tests::images::{self, marked, sha256};
use whelk_tests::tar::{self, Tar};
use whelk_tests::{Engine, Program, escape};

use super::{mark, parts_of};

#[test]
fn save_reproduces_loaded_images_bit_for_bit() {
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
fn several_images_can_be_saved_in_one_archive() {
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
            mark(&engine, "one:1").as_str(),
            mark(&engine, "two:2").as_str()
        ),
        ("one:1", "two:2")
    );
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
