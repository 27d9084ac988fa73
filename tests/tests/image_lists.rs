//! Names of images, image lists, and removal.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, sha256};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, escape};

/// A layer that only this test uses.
fn layer(text: &str) -> Vec<u8> {
    Tar::new().file("etc/which", text).finish()
}

/// An image with a unique configuration and these layers.
fn image(tag: &str, layers: &[&[u8]]) -> Archive {
    let mut archive = Archive::new(tag, layers.iter().map(|layer| layer.to_vec()).collect());
    archive.config["Labels"] = json!({"tag": tag});
    archive
}

fn names(images: &Value) -> Vec<&str> {
    images
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|image| image["RepoTags"].as_array().unwrap())
        .map(|name| name.as_str().unwrap())
        .collect()
}

#[test]
fn lists_contain_only_matching_names() {
    let engine = Engine::without_images(&[]);
    engine.load(&image("b_f:1", &[&layer("x")]).build());
    for name in ["stranger:1", "b_f:2", "example.com/b_f:1"] {
        engine.docker(&["tag", "b_f:1", name]).ok();
    }
    engine.both(|cli| {
        let list = |args: &[&str]| {
            cli.run(&[&["images", "--format", "{{.Repository}}:{{.Tag}}"], args].concat())
                .ok()
        };
        assert_eq!(list(&["b_f"]), "b_f:1\nb_f:2");
        assert_eq!(list(&["-f", "reference=b[^a]f:2"]), "b_f:2");
        assert_eq!(list(&["example.com/*"]), "example.com/b_f:1");
        assert_eq!(list(&["nosuch"]), "");
        assert_eq!(list(&[]).lines().count(), 4);
        cli.run(&["images", "-f", "reference=["])
            .refuses(1, "syntax error in pattern");
        cli.run(&["rmi", "nosuch:b_f"])
            .refuses(1, "No such image: nosuch:b_f");
    });
    let filtered = engine.get(&format!(
        "/images/json?filters={}",
        escape("{\"reference\":[\"stranger\",\"b_f:2\"]}")
    ));
    assert_eq!(names(&filtered), ["b_f:2", "stranger:1"]);
    // An image is removed by the name that it is listed with.
    let mut given = vec!["rmi".to_owned()];
    given.extend(
        engine
            .docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", "b_f"])
            .ok()
            .lines()
            .map(str::to_owned),
    );
    engine
        .docker(&given.iter().map(String::as_str).collect::<Vec<_>>())
        .ok();
    assert_eq!(
        names(&engine.get("/images/json")),
        ["stranger:1", "example.com/b_f:1"]
    );
}

#[test]
fn the_ancestor_filter_matches_an_image_and_its_descendants() {
    let engine = Engine::without_images(&[]);
    let root = images::small_root().finish();
    for archive in [
        image("base", &[&root]),
        image("equal", &[&root]),
        image("child", &[&root, &layer("child")]),
    ] {
        engine.load(&archive.build());
    }
    engine.both(|cli| {
        for tag in ["base", "equal", "child"] {
            engine.create(
                tag,
                &json!({"Image": tag, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}),
            );
        }
        for (ancestor, expected) in [
            ("base", "child\nbase"),
            ("equal", "child\nequal"),
            ("child", "child"),
            ("nosuch", ""),
        ] {
            let found = cli
                .run(&[
                    "ps",
                    "-a",
                    "--format",
                    "{{.Names}}",
                    "-f",
                    &format!("ancestor={ancestor}"),
                ])
                .ok();
            assert_eq!(found, expected, "{ancestor}");
        }
    });
}

#[test]
fn a_container_whose_images_name_has_moved_is_listed_with_the_id() {
    let engine = Engine::without_images(&[]);
    let root = images::small_root().finish();
    engine.load(&image("moves", &[&root]).build());
    let id = engine.get("/images/moves/json")["Id"]
        .as_str()
        .unwrap()
        .to_owned();
    engine.load(&image("other", &[&root]).build());
    engine.create(
        "user",
        &json!({"Image": "moves", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}),
    );
    assert_eq!(engine.get("/containers/json?all=1")[0]["Image"], "moves");
    engine.docker(&["tag", "other", "moves"]).ok();
    assert_eq!(engine.get("/containers/json?all=1")[0]["Image"], id);
    let short = &id.trim_start_matches("sha256:")[..12];
    for output in [
        engine.docker(&["ps", "-a", "--format", "{{.Image}}"]),
        engine.whelk(&["ps", "-a", "--format", "{{.Image}}"]),
    ] {
        assert_eq!(output.ok(), short);
    }
    assert_eq!(
        engine.inspect("user")["Config"]["Image"],
        "moves",
        "inspect tells what was asked for"
    );
}

#[test]
fn rejects_invalid_image_names() {
    let engine = Engine::start();
    engine.both(|cli| {
        let refused = "is not a valid repository/tag: invalid reference format";
        cli.run(&["tag", "busybox", "x:y:z"]).refuses(1, &format!("Error parsing reference: \"x:y:z\" {refused}"));
        cli.run(&["tag", "busybox", ""]).refuses(1, "invalid reference format");
        cli.run(&["tag", " ", "x"]).refuses(1, &format!("Error parsing reference: \" \" {refused}"));
        let ambiguous = "Error response from daemon: refusing to create an ambiguous tag using digest algorithm as name";
        cli.run(&["tag", "busybox", "sha256:x"]).refuses(1, ambiguous);
        cli.run(&["tag", "busybox", "sha512:x"]).refuses(1, ambiguous);
        cli.feed(&["import", "-", "sha256:x"], &layer("x")).refuses(1, ambiguous);
        cli.feed(&["import", "-", "x:y:z"], &layer("x")).refuses(1, "invalid reference format");
        cli.run(&["rmi", " "]).refuses(1, "image name cannot be blank");
        cli.run(&["save", " "]).refuses(1, "invalid reference format");
        assert_eq!(cli.run(&["images", "-q"]).ok().lines().count(), 1);
    });
    for (query, text) in [
        (
            "repo=sha256&tag=x",
            "refusing to create an ambiguous tag using digest algorithm as name",
        ),
        ("repo=x:y:z", "invalid reference format"),
        ("repo=&tag=x", "invalid reference format"),
        (
            &format!("repo=x@sha256:{}", "0".repeat(64)),
            "cannot import digest reference",
        ),
    ] {
        let (status, answer) = engine.api("POST", &format!("/images/busybox/tag?{query}"), None);
        assert_eq!(
            (status, answer["message"].as_str()),
            (400, Some(text)),
            "{query}"
        );
    }
    let answer = engine.try_load(&Archive::new("sha256:x", vec![layer("x")]).build());
    assert!(
        answer.text().contains("using digest algorithm as name"),
        "{}",
        answer.text()
    );
}

#[test]
fn conflicts_name_the_container_that_uses_the_image() {
    let engine = Engine::start();
    engine.docker(&["tag", "busybox", "second"]).ok();
    engine.both(|cli| {
        let id = cli.run(&["images", "-q", "busybox"]).ok();
        let container = cli.up("user", &[], &["sleep", "600"]);
        let short = &container[..12];
        let running = format!("unable to delete {id} (cannot be forced) - image is being used by running container {short}");
        cli.run(&["rmi", &id]).refuses(1, &running);
        cli.run(&["rmi", "-f", &id]).refuses(1, &running);
        cli.run(&["kill", "user"]).ok();
        cli.run(&["rmi", &id])
            .refuses(1, &format!("unable to delete {id} (must be forced) - image is referenced in multiple repositories"));
        cli.run(&["rm", "user"]).ok();
    });
}

#[test]
fn loading_over_a_name_reports_the_previous_image() {
    let engine = Engine::without_images(&[]);
    let (old, new) = (
        image("name:1", &[&layer("old")]).build(),
        image("name:1", &[&layer("new")]),
    );
    engine.both(|cli| {
        cli.feed(&["load"], &old).ok();
        let id = cli.engine().get("/images/name:1/json")["Id"].as_str().unwrap().to_owned();
        assert_eq!(cli.engine().get("/images/name:1/json")["Metadata"]["LastTagTime"], "0001-01-01T00:00:00Z", "loading is no tagging");
        let mut new = new.clone();
        new.config["Labels"] = json!({"by": format!("{:?}", cli.program())});
        let told = cli.feed(&["load"], &new.build()).ok();
        assert_eq!(
            told,
            format!("The image name:1 already exists, renaming the old one with ID {id} to empty string\nLoaded image: name:1")
        );
        assert_eq!(cli.feed(&["load"], &new.build()).ok(), "Loaded image: name:1");
        cli.run(&["tag", "name:1", "name:2"]).ok();
        let tagged = cli.engine().get("/images/name:1/json")["Metadata"]["LastTagTime"].clone();
        assert!(tagged.as_str().unwrap() > "2020", "{tagged}");
        cli.feed(&["load"], &new.build()).ok();
        assert_eq!(cli.engine().get("/images/name:1/json")["Metadata"]["LastTagTime"], tagged, "loading again leaves it alone");
        cli.run(&["rmi", "name:2"]).ok();
    });
}

#[test]
fn load_errors_are_reported_in_the_stream() {
    let engine = Engine::without_images(&[]);
    let answer = engine.try_load(b"this is no archive");
    assert_eq!(answer.status, 200);
    let error: Value = serde_json::from_str(answer.text().trim()).unwrap();
    assert_eq!(error["errorDetail"]["message"], error["error"]);
    assert!(
        error["error"].as_str().unwrap().contains("archive"),
        "{error}"
    );
    engine.both(|cli| {
        let output = cli.feed(&["load"], b"this is no archive");
        assert_eq!((output.code, output.out().as_str()), (1, ""));
        assert!(
            output.err().contains(error["error"].as_str().unwrap()),
            "{}",
            output.err()
        );
    });
}

#[test]
fn prune_reports_the_space_of_unshared_layers_like_docker() {
    let engine = Engine::without_images(&[]);
    let (shared, own) = (vec![b'x'; 100_000], vec![b'y'; 3_000]);
    let shared = Tar::new().file("shared", &shared).finish();
    let own = Tar::new().file("own", &own).finish();
    engine.load(&image("keeps", &[&shared]).build());
    engine.create(
        "user",
        &json!({"Image": "keeps", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}),
    );
    let archive = image("goes", &[&shared, &own]).build();
    let chain = |layers: [&[u8]; 2]| {
        let [below, above] = layers.map(|layer| format!("sha256:{}", sha256(layer)));
        format!("sha256:{}", sha256(format!("{below} {above}").as_bytes()))
    };
    for program in [whelk_tests::Program::Docker, whelk_tests::Program::Whelk] {
        let cli = engine.cli(program);
        engine.load(&archive);
        let id = engine.get("/images/goes/json")["Id"]
            .as_str()
            .unwrap()
            .to_owned();
        let printed = cli.run(&["image", "prune", "-af"]).ok();
        let chain = chain([&shared, &own]);
        assert_eq!(
            printed,
            format!(
                "Deleted Images:\nuntagged: goes:latest\ndeleted: {id}\ndeleted: {chain}\n\nTotal reclaimed space: 3kB"
            ),
            "{program:?}"
        );
        engine.load(&archive);
        let removed = cli.run(&["rmi", "goes"]).ok();
        assert_eq!(
            removed,
            format!("Untagged: goes:latest\nDeleted: {id}\nDeleted: {chain}"),
            "{program:?}"
        );
    }
    // All names of a used image can be removed but one.
    for tag in ["keeps:2", "keeps:3"] {
        engine.docker(&["tag", "keeps", tag]).ok();
    }
    engine.docker(&["image", "prune", "-af"]).ok();
    assert_eq!(names(&engine.get("/images/json")).len(), 1);
    engine.docker(&["image", "prune", "-af"]).ok();
    assert_eq!(names(&engine.get("/images/json")).len(), 1);
}

#[test]
fn platforms_are_distinguished() {
    let engine = Engine::without_images(&[]);
    let archive = layer("x");
    engine.both(|cli| {
        let import = |platform: &str| cli.feed(&["import", "--platform", platform, "-", "foreign"], &archive);
        import("linux/arm/v7").ok();
        let found = cli.engine().get("/images/foreign/json");
        assert_eq!((&found["Os"], &found["Architecture"], &found["Variant"]), (&json!("linux"), &json!("arm"), &json!("v7")));
        import("aarch64").ok();
        assert_eq!(cli.engine().get("/images/foreign/json")["Architecture"], "arm64");
        import("windows/amd64").refuses(1, "operating system is not supported");
        import("bogus").refuses(1, "unknown operating system or architecture");
        let wrong =
            "image with reference foreign was found but its platform (linux/arm64) does not match the specified platform (linux/s390x)";
        cli.run(&["history", "--platform", "linux/s390x", "foreign"]).refuses(1, wrong);
        cli.run(&["history", "--platform", "linux/arm64", "foreign"]).ok();
        cli.run(&["rmi", "foreign"]).ok();
    });
    engine.import("foreign", &[], &archive);
    engine.http(
        "POST",
        "/images/create?fromSrc=-&repo=foreign&platform=linux/arm64",
        &[("Content-Type", "application/x-tar")],
        &archive,
    );
    for (path, since, status) in [
        ("/images/foreign/json?platform=", "1.49", 404),
        ("/images/foreign/history?platform=", "1.48", 404),
        ("/images/get?names=foreign&platform=", "1.48", 404),
    ] {
        let other = escape("{\"os\":\"linux\",\"architecture\":\"s390x\"}");
        let own = escape("{\"os\":\"linux\",\"architecture\":\"arm64\"}");
        assert_eq!(
            engine
                .http("GET", &format!("/v{since}{path}{other}"), &[], b"")
                .status,
            status,
            "{path}"
        );
        assert_eq!(
            engine
                .http("GET", &format!("/v1.47{path}{other}"), &[], b"")
                .status,
            200,
            "{path}: unknown to older clients"
        );
        assert_eq!(
            engine
                .http("GET", &format!("/v{since}{path}{own}"), &[], b"")
                .status,
            200,
            "{path}"
        );
        for (text, message) in [
            (
                "{\"os\":\"linux\"}",
                "both OS and Architecture must be provided",
            ),
            (
                "{\"variant\":\"v1\"}",
                "optional platform fields provided, but OS and Architecture are missing",
            ),
        ] {
            let (status, answer) =
                engine.api("GET", &format!("/v{since}{path}{}", escape(text)), None);
            assert_eq!(
                (status, answer["message"].as_str()),
                (400, Some(message)),
                "{path}"
            );
        }
    }
    let create = |platform: &str| {
        engine.api(
            "POST",
            &format!("/containers/create?name=made&platform={platform}"),
            Some(&json!({"Image": "foreign", "Cmd": ["x"]})),
        )
    };
    let (status, answer) = create("linux/s390x");
    let wrong = "image with reference foreign was found but its platform (linux/arm64) does not match the specified platform (linux/s390x)";
    assert_eq!((status, answer["message"].as_str()), (404, Some(wrong)));
    let unknown = "\"bogus\": unknown operating system or architecture: invalid argument";
    let (status, answer) = create("bogus");
    assert_eq!((status, answer["message"].as_str()), (400, Some(unknown)));
    assert_eq!(create("aarch64").0, 201);
    engine.remove_containers().unwrap();
    let saved = engine.http("GET", "/images/foreign/get", &[], b"").body;
    let load = |text: &str| {
        engine
            .http(
                "POST",
                &format!("/images/load?platform={}", escape(text)),
                &[],
                &saved,
            )
            .text()
    };
    engine.docker(&["rmi", "-f", "foreign"]).ok();
    load("{\"os\":\"linux\",\"architecture\":\"amd64\"}");
    assert!(!names(&engine.get("/images/json")).contains(&"foreign:latest"));
    load("{\"os\":\"linux\",\"architecture\":\"arm64\"}");
    assert!(names(&engine.get("/images/json")).contains(&"foreign:latest"));
    let other = escape("{\"os\":\"linux\",\"architecture\":\"s390x\"}");
    assert_eq!(
        engine
            .api(
                "DELETE",
                &format!("/images/foreign?platforms={other}"),
                None
            )
            .0,
        404
    );
    engine.both(|cli| {
        engine.load(&saved);
        cli.run(&["save", "--platform", "linux/s390x", "foreign"])
            .refuses(
                1,
                "no suitable export target found for platform linux/s390x",
            );
        cli.feed(&["load", "--platform", "linux/arm64"], &saved)
            .ok();
    });
    assert_eq!(
        engine
            .whelk(&["rmi", "--platform", "linux/arm64", "foreign"])
            .code,
        0
    );
}

#[test]
fn image_fields_depend_on_the_api_version() {
    let engine = Engine::without_images(&[]);
    engine.import("bare", &[], &layer("x"));
    let config = engine.get("/v1.51/images/bare/json")["Config"].clone();
    assert_eq!(
        config,
        json!({"Cmd": null, "Entrypoint": null, "Env": null, "Labels": null, "OnBuild": null, "Volumes": null, "User": "", "WorkingDir": ""})
    );
    let old = engine.get("/v1.43/images/bare/json");
    for (name, value) in [
        ("Hostname", json!("")),
        ("Tty", json!(false)),
        ("Env", json!(null)),
        ("AttachStdin", json!(false)),
        ("Image", json!("")),
    ] {
        assert_eq!(
            (&old["Config"][name], &old["ContainerConfig"][name]),
            (&value, &value),
            "{name}"
        );
    }
    let other = image("bare", &[&layer("other")]);
    engine.load(&other.build());
    let nameless = |version: &str| {
        let list = engine.get(&format!("/{version}/images/json"));
        let found = list
            .as_array()
            .unwrap()
            .iter()
            .find(|image| image["Labels"].is_null())
            .unwrap()
            .clone();
        (found["RepoTags"].clone(), found["RepoDigests"].clone())
    };
    assert_eq!(
        nameless("v1.42"),
        (json!(["<none>:<none>"]), json!(["<none>@<none>"]))
    );
    assert_eq!(nameless("v1.43"), (json!([]), json!([])));
    let shared = engine.get("/images/json?shared-size=1");
    assert!(
        shared
            .as_array()
            .unwrap()
            .iter()
            .all(|image| image["SharedSize"] == 0),
        "{shared}"
    );
}

#[test]
fn images_are_removed_by_budget() {
    let engine = Engine::without_images(&[]);
    let configure = |limit: &str, minimum_age: &str| {
        engine.terminate();
        engine.configure(&json!({
            "image-gc": {"max-used-space": limit, "minimum-age": minimum_age, "interval": "1s"}
        }));
        engine.restart();
    };
    configure("3m", "1h");
    let noise = |seed: u8| Tar::new().file("noise", vec![seed; 1 << 20]).finish();
    for (number, name) in ["used", "old", "middle", "new"].into_iter().enumerate() {
        let layer = noise(u8::try_from(number).unwrap());
        engine.load(&image(name, &[&layer]).build());
    }
    let settings = json!({"NetworkMode": "none"});
    let create = |name: &str, image: &str| {
        let body = json!({"Image": image, "Cmd": ["true"], "HostConfig": settings});
        engine.create(name, &body)
    };
    create("user", "used");
    // Its use makes it the youngest but one.
    create("short", "old");
    engine.docker(&["rm", "short"]).ok();
    engine.docker(&["tag", "new", "new:2"]).ok();
    let left = || {
        let mut left = names(&engine.get("/images/json"))
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        left.sort();
        left
    };
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(left().len(), 5, "all are young");
    // The first removal may come before this asks for events.
    let begin = whelk_tests::now_nanos();
    configure("3m", "1s");
    let filters = whelk_tests::escape(r#"{"type":["image"]}"#);
    let since = format!("{}.{:09}", begin / 1_000_000_000, begin % 1_000_000_000);
    let mut events = engine.events(&format!("since={since}&filters={filters}"));
    let actions: Vec<Value> = (0..3)
        .map(|_| events.next_event().unwrap()["Action"].clone())
        .collect();
    assert_eq!(actions, ["untag", "delete", "prune"]);
    assert_eq!(left(), ["new:2", "new:latest", "old:latest", "used:latest"]);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(left().len(), 4, "the budget is kept");
    configure("1k", "0s");
    whelk_tests::eventually("the removal of unused images", || {
        (left() == ["used:latest"]).then_some(())
    });
    let log = engine.last_words();
    assert!(log.contains("image-gc: removed image"), "{log}");
}
