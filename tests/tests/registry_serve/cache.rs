//! `--proxy`: a cache of another registry.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use whelk_tests::images::{WHICH, marked, noise};
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, Program};

use crate::{Served, users};

#[test]
fn images_are_pulled_through_a_cache() {
    use std::os::unix::fs::PermissionsExt as _;
    let engine = Engine::without_images(&[]);
    let mut origin = Served::start("origin");
    let (_, digest) = origin.push("library/app", "1", &marked("app:1"));
    origin.flags = vec![users(&origin.directory, &["ann"])];
    origin.restart(Signal::TERM);
    let url = format!("--proxy=http://{}", origin.host);
    let cache = Served::with_flags("cache", |directory| {
        let secret = directory.join("secret");
        std::fs::write(&secret, "ann:sesame\n").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        vec![url, format!("--proxy-credentials={}", secret.display())]
    });
    engine.kill9();
    engine.configure(&json!({"registry-mirrors": [format!("http://{}", cache.host)]}));
    engine.restart();
    engine.both(|cli| {
        let out = cli.run(&["pull", "app:1"]).ok();
        assert!(out.contains(&format!("Digest: {digest}")), "{out}");
        assert_eq!(cli.once("app:1", &WHICH).ok(), "app:1");
        cli.run(&["rmi", "app:1"]).ok();
    });
    let name = format!("{}/library/app:1", cache.host);
    engine.whelk(&["pull", "app:1"]).ok();
    engine.whelk(&["tag", "app:1", &name]).ok();
    engine.whelk(&["push", &name]).refuses(1, "is a cache of");
    engine.whelk(&["rmi", "app:1", &name]).ok();
    // Without upstream, what was pulled can be pulled again.
    drop(origin);
    engine.whelk(&["pull", "app:1"]).ok();
    assert_eq!(
        engine.cli(Program::Whelk).once("app:1", &WHICH).ok(),
        "app:1"
    );
}

#[test]
fn a_download_of_a_cache_is_continued_after_kill_9() {
    let origin = Registry::start();
    let content = noise(4_000_000);
    let layer = origin.blob(&content);
    origin.pushed("a", "1", &json!({"config": {"digest": layer}}));
    let url = format!("--proxy=http://{}", origin.host);
    let mut cache = Served::with_flags("killed", |_| vec![url]);
    // What is left of the download takes almost 15 s.
    let pause = Some(Duration::from_millis(80));
    origin.behave(Behaviour {
        pause,
        ..Behaviour::default()
    });
    let path = format!("/v2/a/blobs/{layer}");
    let mut stream = TcpStream::connect(&cache.host).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.read_exact(&mut vec![0; 1_000_000]).unwrap();
    cache.restart(Signal::KILL);
    let blobs = cache.directory.join("root/blobs");
    let count = |name: &str| std::fs::read_dir(blobs.join(name)).unwrap().count();
    assert_eq!((count("sha256"), count("partial")), (0, 1));
    origin.behave(Behaviour::default());
    origin.forget_requests();
    assert!(cache.send("GET", &path, "", b"").2 == content);
    assert_eq!((count("sha256"), count("partial")), (1, 0));
    let requests = origin.requests(&layer);
    assert!(
        requests.iter().any(|line| line.contains("bytes=")),
        "{requests:?}"
    );
}
