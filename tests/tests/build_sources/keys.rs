//! Keys in files as agents (`--ssh ID=KEYFILE`), with which repositories over ssh are fetched.

use std::path::Path;

use whelk_tests::Engine;
use whelk_tests::builds::whelk;

use crate::git::Host;
use crate::sshd::{Sshd, key};
use crate::{built, shows, text};

const DOCKERFILE: &str = "FROM busybox\nCOPY . /c\n";

#[test]
fn files_of_keys_are_agents() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("app", &[("Dockerfile", DOCKERFILE), ("x", "x")]);
    let place = engine.scratch("keys");
    let sshd = Sshd::start("ed25519", "");
    let url = sshd.url(&path.join(".git"));
    let tool = || whelk(&engine);
    let other = key(&place, "other", "ed25519", "");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let own = key(&place, kind, kind, "");
        sshd.accept(&own);
        let both = format!("default={},{}", text(&other), text(&own));
        tool().built(&url, &["--no-cache", "--ssh", &both]);
        let failed = tool().run(&[
            "build",
            "--no-cache",
            "--ssh",
            &format!("default={}", text(&other)),
            &url,
        ]);
        shows(&failed.err(), &["permission denied (publickey)"]);
        engine.docker(&["builder", "prune", "-af"]).ok();
    }
    // Docker's client finds the keys, too.
    let flag = format!("default={}", text(&place.join("rsa")));
    built(&engine, &["--ssh", &flag, &url]);
    engine.docker(&["builder", "prune", "-af"]).ok();
    // The older forms of files.
    for form in ["PEM", "PKCS8"] {
        let old = place.join(form);
        std::fs::copy(place.join("rsa"), &old).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&old, mode).unwrap();
        rewrite(&old, &["-m", form, "-N", ""]);
        tool().built(&url, &["--ssh", &format!("default={}", text(&old))]);
        engine.docker(&["builder", "prune", "-af"]).ok();
        rewrite(&old, &["-m", form, "-N", "secret"]);
        let failed = tool().run(&["build", "--ssh", &format!("default={}", text(&old)), &url]);
        shows(&failed.err(), &["the key is encrypted", "ssh-add"]);
    }
    let locked = key(&place, "locked", "ed25519", "secret");
    let flag = format!("default={}", text(&locked));
    let failed = tool().run(&["build", "--ssh", &flag, &url]);
    shows(&failed.err(), &["locked: the key is encrypted", "ssh-add"]);
    sshd.accept(&locked);
    for (passphrase, shown) in [("secret", ""), ("wrong", "the passphrase is wrong")] {
        let mut terminal = tool().pty(&["build", "--ssh", &flag, &url]);
        terminal.expect("Enter passphrase for ");
        terminal.keys(&format!("{passphrase}\r"));
        let code = terminal.finish();
        let screen = terminal.screen();
        assert_eq!(code == 0, shown.is_empty(), "{screen}");
        shows(&screen, &[shown]);
        assert!(!screen.contains("secret"), "{screen}");
    }
}

fn rewrite(key: &Path, args: &[&str]) {
    let mut command = std::process::Command::new("ssh-keygen");
    command
        .args(["-q", "-p", "-P", ""])
        .args(args)
        .args(["-f", text(key)]);
    assert!(command.status().unwrap().success());
}
