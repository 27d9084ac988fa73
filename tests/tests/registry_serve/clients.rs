//! Pushes and pulls by both command lines.

use rustix::process::Signal;
use serde_json::Value;
use whelk_tests::images::{WHICH, marked};
use whelk_tests::{Engine, Program, Scratch, eventually, free_port};

use crate::{Served, spawn, users};

/// Pushes and pulls while garbage is collected all the time.
#[test]
fn garbage_is_collected_while_clients_push_and_pull() {
    let engine = Engine::without_images(&[]);
    let served = Served::with_flags("garbage", |_| vec!["--collect-every=1ms".into()]);
    let blobs = || {
        let listing = std::fs::read_dir(served.directory.join("root/blobs/sha256"));
        listing.unwrap().count()
    };
    for number in 0..6 {
        let name = format!("{}/app:{number}", served.host);
        engine.load(&marked(&name).build());
        engine.whelk(&["push", "-q", &name]).ok();
        engine.whelk(&["rmi", &name]).ok();
        engine.whelk(&["pull", "-q", &name]).ok();
        assert_eq!(engine.cli(Program::Whelk).once(&name, &WHICH).ok(), name);
        engine.whelk(&["rmi", &name]).ok();
    }
    assert!(blobs() > 6);
    let (_, _, tags) = served.send("GET", "/v2/app/tags/list", "", b"");
    let tags: Value = serde_json::from_slice(&tags).unwrap();
    for tag in tags["tags"].as_array().unwrap() {
        let path = format!("/v2/app/manifests/{}", tag.as_str().unwrap());
        let (_, head, _) = served.send("HEAD", &path, "", b"");
        let digest = head.split("sha256:").nth(1).unwrap();
        let path = format!("/v2/app/manifests/sha256:{}", &digest[..64]);
        assert_eq!(served.send("DELETE", &path, "", b"").0, 202);
    }
    // Blobs stay for a day, in case a manifest comes for them; what was deleted goes.
    eventually("the end of the manifests", || (blobs() == 13).then_some(()));
    let mut served = served;
    served.flags = vec!["--collect-after=1ms".into()];
    served.restart(Signal::TERM);
    served.signal(Signal::USR1);
    let blobs = || std::fs::read_dir(served.directory.join("root/blobs/sha256"));
    eventually("an empty registry", || {
        (blobs().unwrap().count() == 0).then_some(())
    });
}

#[test]
fn images_are_pushed_and_pulled_by_both_clients() {
    let engine = Engine::without_images(&[]);
    for tag in ["app:1", "app:2"] {
        engine.load(&marked(tag).build());
    }
    let served = Served::start("push");
    let name = |tag: &str| format!("{}/team/app:{tag}", served.host);
    engine.both(|cli| {
        for tag in ["1", "2"] {
            cli.run(&["tag", &format!("app:{tag}"), &name(tag)]).ok();
        }
        let first = cli.run(&["push", &name("1")]).ok();
        assert!(first.contains(": Pushed"), "{first}");
        let digest = first.split("digest: ").nth(1).unwrap();
        let digest = digest.split(' ').next().unwrap();
        // The images share a layer.
        let second = cli.run(&["push", &name("2")]).ok();
        assert!(second.contains(": Layer already exists"), "{second}");
        for tag in ["1", "2"] {
            cli.run(&["rmi", &name(tag)]).ok();
            cli.run(&["pull", "-q", &name(tag)]).ok();
            assert_eq!(cli.once(&name(tag), &WHICH).ok(), format!("app:{tag}"));
            cli.run(&["rmi", &name(tag)]).ok();
        }
        let (_, head, _) = served.send("HEAD", "/v2/team/app/manifests/1", "", b"");
        assert!(head.contains(digest), "{head}");
        // Nothing is there for the next client.
        for tag in ["1", "2"] {
            let path = format!("/v2/team/app/manifests/{tag}");
            assert_eq!(served.send("DELETE", &path, "", b"").0, 202);
            let pull = cli.run(&["pull", &name(tag)]);
            pull.refuses(1, "not found");
        }
        let (_, _, body) = served.send("GET", "/v2/team/app/tags/list", "", b"");
        assert_eq!(body, br#"{"name":"team/app","tags":[]}"#);
        let digest = format!("/v2/team/app/manifests/{digest}");
        assert_eq!(served.send("DELETE", &digest, "", b"").0, 202);
        let blobs = std::fs::read_dir(served.directory.join("root/repositories/team/app/_blobs"));
        for blob in blobs.unwrap() {
            std::fs::remove_file(blob.unwrap().path()).unwrap();
        }
    });
}

#[test]
fn images_are_pushed_and_pulled_over_ipv6() {
    let engine = Engine::without_images(&[]);
    let directory = Scratch::new("registry-serve-ipv6");
    let host = format!("[::1]:{}", free_port());
    let _process = spawn(&directory, &host, &[]);
    let name = format!("{host}/team/app:1");
    engine.both(|cli| {
        engine.load(&marked("app:1").build());
        cli.run(&["tag", "app:1", &name]).ok();
        let out = cli.run(&["push", &name]).ok();
        assert!(out.contains("1: digest: sha256:"), "{out}");
        cli.run(&["rmi", &name, "app:1"]).ok();
        cli.run(&["pull", &name]).ok();
        assert_eq!(cli.once(&name, &WHICH).ok(), "app:1");
        cli.run(&["rmi", &name]).ok();
    });
}

#[test]
fn docker_py_pushes_and_pulls() {
    let engine = Engine::without_images(&[]);
    let served = Served::with_flags("docker-py", |directory| vec![users(directory, &["ann"])]);
    whelk_tests::docker_py::pushes_and_pulls(&engine, &served.host, "ann", "sesame");
}

/// Runs skopeo, and returns its output and whether it has succeeded.
fn skopeo(arguments: &[&str]) -> (bool, String) {
    let output = whelk_tests::skopeo().args(arguments).output().unwrap();
    let texts = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&texts).into_owned();
    (output.status.success(), text)
}

#[track_caller]
fn copies(arguments: &[&str]) -> String {
    let (success, text) = skopeo(arguments);
    assert!(success, "{arguments:?}: {text}");
    text
}

#[test]
fn skopeo_copies_images_in_and_out() {
    let engine = Engine::without_images(&[]);
    let served = Served::with_flags("skopeo", |directory| vec![users(directory, &["ann"])]);
    let archive = served.directory.join("app.tar");
    std::fs::write(&archive, marked("app:1").build()).unwrap();
    let source = format!("docker-archive:{}", archive.display());
    let remote = |name: &str| format!("docker://{}/{name}", served.host);
    let (to, from) = (
        ["--dest-tls-verify=false", "--dest-creds=ann:sesame"],
        ["--src-tls-verify=false", "--src-creds=ann:sesame"],
    );
    for credentials in ["--dest-creds=ann:wrong", "--dest-no-creds"] {
        let image = remote("team/app:1");
        let copy = ["copy", to[0], credentials, &source, &image];
        let (success, text) = skopeo(&copy);
        let is_refused = !success && text.contains("unauthorized: authentication required");
        assert!(is_refused, "{text}");
    }
    copies(&["copy", to[0], to[1], &source, &remote("team/app:1")]);
    let layout = format!("oci:{}:app", served.directory.join("layout").display());
    copies(&["copy", from[0], from[1], &remote("team/app:1"), &layout]);
    copies(&[
        "copy",
        "--format=oci",
        to[0],
        to[1],
        &layout,
        &remote("oci/app:2"),
    ]);
    let between = ["copy", from[0], from[1], to[0], to[1]];
    let (one, two) = (remote("team/app:1"), remote("other:3"));
    copies(&[&between[..], &[&one, &two]].concat());
    let plain = ["--tls-verify=false", "--creds=ann:sesame"];
    let tags = copies(&["list-tags", plain[0], plain[1], &remote("oci/app")]);
    assert!(tags.contains("\"2\""), "{tags}");
    let format = ["--format", "{{.Digest}}"];
    let digest = copies(&[&["inspect"], &format[..], &plain, &[&two]].concat());
    assert!(digest.starts_with("sha256:"), "{digest}");
    // Both clients pull what skopeo has pushed.
    engine.both(|cli| {
        let login = ["login", "-u", "ann", "--password-stdin", &served.host];
        cli.feed(&login, b"sesame").ok();
        for name in ["team/app:1", "oci/app:2", "other:3"] {
            let name = format!("{}/{name}", served.host);
            cli.run(&["pull", "-q", &name]).ok();
            assert_eq!(cli.once(&name, &WHICH).ok(), "app:1");
            cli.run(&["rmi", "-f", &name]).ok();
        }
        cli.run(&["logout", &served.host]).ok();
    });
    copies(&["delete", plain[0], plain[1], &two]);
    let (success, text) = skopeo(&["inspect", plain[0], plain[1], &two]);
    assert!(!success && text.contains("manifest unknown"), "{text}");
}
