//! Pushes and pulls by both command lines.

use rustix::process::Signal;
use serde_json::Value;
use whelk_tests::images::{WHICH, marked};
use whelk_tests::{Engine, Program, eventually};

use crate::Served;

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
