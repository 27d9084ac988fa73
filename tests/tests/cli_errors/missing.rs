//! Images, networks, containers and other objects that do not exist.

use whelk_tests::Engine;

use super::{check, check_nothing_left};

#[test]
fn a_mount_inside_proc_is_refused() {
    let engine = Engine::start();
    for target in ["/proc/nosuch", "/proc/sys"] {
        let mount = format!("/tmp:{target}");
        let text = format!(
            "error mounting \"/tmp\" to rootfs at {target:?}: {target:?} cannot be mounted because it is inside /proc"
        );
        check(
            &engine,
            &["run", "--rm", "-v", &mount, "busybox", "true"],
            125,
            &text,
        );
    }
}

#[test]
fn missing_images_and_invalid_image_names() {
    let engine = Engine::start();
    check(
        &engine,
        &["run", "--rm", "--pull", "never", "nosuchimage", "true"],
        125,
        "Error response from daemon: No such image: nosuchimage:latest",
    );
    check(
        &engine,
        &["create", "--pull", "never", "nosuchimage:tag"],
        1,
        "Error response from daemon: No such image: nosuchimage:tag",
    );
    check(
        &engine,
        &["run", "--rm", "--pull", "bogus", "busybox", "true"],
        125,
        "invalid pull option: 'bogus': must be one of \"always\", \"missing\" or \"never\"",
    );
    check(
        &engine,
        &["run", "UPPER"],
        125,
        "invalid reference format: repository name (library/UPPER) must be lowercase",
    );
    for bad in [
        "a b",
        "busybox:bad/tag",
        "",
        "-busybox:x",
        "busybox@sha256:xyz",
    ] {
        check(
            &engine,
            &["run", "--rm", "--", bad],
            125,
            "invalid reference format",
        );
    }
    check(
        &engine,
        &["inspect", "--type", "image", "nosuch"],
        1,
        "No such image: nosuch:latest",
    );
    check_nothing_left(&engine);
}

#[test]
fn missing_networks() {
    let engine = Engine::start();
    for (network, text) in [
        ("container:nosuch", "No such container: nosuch"),
        (
            "container:",
            "invalid network mode: invalid container format container:<name|id>",
        ),
        ("nosuchnet", "nosuchnet"),
    ] {
        check(
            &engine,
            &["run", "--rm", "--network", network, "busybox", "true"],
            125,
            text,
        );
    }
    check_nothing_left(&engine);
}

#[test]
fn missing_objects() {
    let engine = Engine::start();
    for command in [
        "start", "stop", "kill", "restart", "pause", "unpause", "wait", "rm", "logs", "top",
        "attach",
    ] {
        check(
            &engine,
            &[command, "nosuch"],
            1,
            "No such container: nosuch",
        );
    }
    for kind in ["container", "network", "volume"] {
        check(
            &engine,
            &[kind, "inspect", ""],
            1,
            &format!("invalid {kind} name or ID: value is empty"),
        );
    }
    check(
        &engine,
        &["exec", "nosuch", "true"],
        1,
        "No such container: nosuch",
    );
    check(
        &engine,
        &["export", "nosuch"],
        1,
        "No such container: nosuch",
    );
    check(
        &engine,
        &["inspect", "nosuch"],
        1,
        "Error: No such object: nosuch",
    );
    check(
        &engine,
        &["inspect", "--type", "bogus", "nosuch"],
        1,
        "unknown type: \"bogus\"",
    );
    check(&engine, &["save", "nosuch"], 1, "No such image: nosuch");
    check(
        &engine,
        &["load", "-i", "/nosuch"],
        1,
        "open /nosuch: no such file or directory",
    );
    check(
        &engine,
        &["import", "/nosuch"],
        1,
        "open /nosuch: no such file or directory",
    );
    check(
        &engine,
        &["ps", "--filter", "foo=bar"],
        1,
        "Error response from daemon: invalid filter 'foo'",
    );
    check(
        &engine,
        &["ps", "--filter", "foo"],
        125,
        "bad format of filter (expected name=value)",
    );
    // Before the question whether to remove.
    for kind in ["container", "image", "network", "volume", "system"] {
        check(
            &engine,
            &[kind, "prune", "--filter", "foo"],
            125,
            "bad format of filter (expected name=value)",
        );
    }
    check(
        &engine,
        &["ps", "--format", "{{"],
        1,
        "template: :1: unclosed action",
    );
}
