//! `diff`, as recorded with Docker 28.5.2.

use serde_json::{Value, json};
use whelk_tests::{Engine, Program};

#[test]
fn changes_are_listed() {
    let engine = Engine::start();
    let script = "echo x > /new; mkdir -p /a/b/c; echo 1 > /a/b/c/f; rm /etc/passwd; echo y >> /etc/group; rm -rf /var/spool; rm -rf /home; mkdir /home; echo q > /home/x; touch /etc/shadow; mv /bin/yes /bin/yes2; ln -s x /lnk; echo 1 > /tmp/t; rm /tmp/t; rm -rf /var/www; echo file > /var/www; echo v > /vol/x; mkdir /vol2; mkdir /usr/zz; rmdir /usr/zz; chown 5 /usr/sbin; echo ready; sleep 600";
    let expected = "A /a\nA /a/b\nA /a/b/c\nA /a/b/c/f\nC /bin\nA /bin/yes2\nD /bin/yes\nC /etc\nC /etc/group\nA /etc/shadow\nD /etc/passwd\nC /home\nA /home/x\nA /lnk\nA /new\nC /usr\nC /usr/sbin\nC /var\nC /var/www\nD /var/spool\nA /vol\nA /vol2";
    engine.both(|cli| {
        cli.run(&[
            "create",
            "--name",
            "box",
            "--network",
            "none",
            "-v",
            "/vol",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
        assert_eq!(cli.run(&["diff", "box"]).ok(), "");
        cli.run(&["start", "box"]).ok();
        engine.await_log("box", "ready");
        assert_eq!(cli.run(&["diff", "box"]).ok(), expected);
        cli.run(&["kill", "box"]).ok();
        engine.await_state("box", "exited");
        assert_eq!(cli.run(&["container", "diff", "box"]).ok(), expected);
        cli.run(&["diff", "nosuch"])
            .refuses(1, "No such container: nosuch");
        cli.run(&["diff"]).refuses(1, "requires 1 argument");
    });
}

#[test]
fn the_api_numbers_kinds() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.run(&["create", "--name", "box", "busybox"]).ok();
    assert_eq!(engine.get("/containers/box/changes"), Value::Null);
    cli.run(&[
        "run",
        "--name",
        "used",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "echo > /x; rm /etc/passwd",
    ])
    .ok();
    assert_eq!(
        engine.get("/containers/used/changes"),
        json!([
            {"Path": "/etc", "Kind": 0},
            {"Path": "/etc/passwd", "Kind": 2},
            {"Path": "/x", "Kind": 1},
        ])
    );
}

/// A container that replaces directories by links meanwhile leads nowhere else.
#[test]
fn changes_of_a_busy_container_are_listed() {
    let engine = Engine::start();
    let script = "mkdir -p /t/a/d /t/b; ln -s /etc /t/b/d; echo ready; while true; do mv /t/a/d /t/x; mv /t/b/d /t/a/d; mv /t/a/d /t/b/d; mv /t/x /t/a/d; done";
    engine
        .cli(Program::Whelk)
        .up("box", &[], &["sh", "-c", script]);
    engine.await_log("box", "ready");
    for _ in 0..100 {
        let changes = engine.get("/containers/box/changes");
        let changes = changes.as_array().unwrap();
        let is_below = |change: &Value| change["Path"].as_str().unwrap().starts_with("/t");
        assert!(changes.iter().all(is_below), "{changes:?}");
    }
}
