//! Loading archives in every format, and what load prints.

use std::fs;

use serde_json::{Value, json};
use whelk_tests::images::{self, bzip2, gzip, marked, pack, sha256, stored, xz, zstd};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program};

use super::{mark, parts_of};

#[test]
fn load_reports_the_progress_of_layers_unless_quiet() {
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
    // Docker's engine is quiet by default.
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
fn the_manifest_of_an_oci_archive_is_kept() {
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
        // Clients see the same as for any loaded image.
        let image = inspect("oci:1");
        assert_eq!(
            (&image["Id"], &image["RepoDigests"]),
            (&json!(id), &json!([]))
        );
        assert!(image.get("Descriptor").is_none() && image.get("Manifests").is_none());
        assert_eq!(engine.get("/images/json")[0]["RepoDigests"], json!([]));
        // It is found by each of its digests.
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
    let tagged = by_digest.replace('@', ":2@");
    // No registry has it by this digest, which is no reference that could be removed.
    for name in [&tagged, &by_digest] {
        let text = format!("No such image: {name}");
        engine.docker(&["rmi", name]).refuses(1, &text);
    }
    let removed = engine.docker(&["rmi", "oci:2", "oci:1"]).ok();
    assert!(removed.starts_with("Untagged: oci:2\nUntagged: oci:1\nDeleted: "));
    assert_eq!(stored(&engine), [""; 0]);
}

#[test]
fn load_prints_loaded_images_from_a_file_and_from_standard_input() {
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
        ("bzip2", bzip2(&plain)),
        ("xz", xz(&plain)),
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
        assert_eq!(mark(&engine, "form"), "form", "{what}");
        assert_eq!(
            engine.get("/images/form/json")["Id"],
            id,
            "{what}: the same image"
        );
    }
}

#[test]
fn the_oldest_archive_format_can_be_loaded() {
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
