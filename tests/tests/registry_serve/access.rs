//! Passwords, rights and TLS, and what clients say when they are refused.

use rustix::process::Signal;
use whelk_tests::certificates::Authority;
use whelk_tests::images::{WHICH, marked};
use whelk_tests::{Cli, Engine, Program, Scratch, private_host};

use crate::{Served, users};

/// Logs in as a user, whose password is the same for all.
#[track_caller]
fn log_in(cli: Cli<'_>, served: &Served, user: &str) {
    let command = ["login", "-u", user, "--password-stdin", &served.host];
    cli.feed(&command, b"sesame").ok();
}

#[test]
fn images_are_pulled_with_a_password_over_tls() {
    let engine = Engine::without_images(&[]);
    let mut plain = Served::start("password");
    let (name, _) = plain.push("app", "1", &marked("app:1"));
    let pem = plain.directory.join("pem");
    std::fs::create_dir(&pem).unwrap();
    Authority::new("registry").issue(&pem, "registry");
    let path = |name: &str| pem.join(name).to_str().unwrap().to_owned();
    plain.flags = vec![
        users(&plain.directory, &["ann"]),
        format!("--tls-cert={}", path("cert.pem")),
        format!("--tls-key={}", path("key.pem")),
    ];
    plain.restart(Signal::TERM);
    let served = plain;
    engine.both(|cli| {
        let log_in = |password: &str| {
            let command = ["login", "-u", "ann", "--password-stdin", &served.host];
            cli.feed(&command, password.as_bytes())
        };
        log_in("wrong").refuses(1, "401 Unauthorized");
        cli.run(&["pull", &name])
            .refuses(1, "no basic auth credentials");
        log_in("sesame").ok();
        cli.run(&["pull", &name]).ok();
        assert_eq!(cli.once(&name, &WHICH).ok(), "app:1");
        cli.run(&["rmi", "-f", &name]).ok();
        cli.run(&["logout", &served.host]).ok();
    });
}

#[test]
fn users_do_what_the_file_of_rights_permits() {
    let engine = Engine::without_images(&[]);
    engine.load(&marked("app:1").build());
    let served = Served::with_flags("rights", |directory| {
        let rights = directory.join("rights");
        let lines = "ann pull,push,delete *\n\
                     bob pull team/*  # and what everyone may\n\
                     anonymous pull public/*\n";
        std::fs::write(&rights, lines).unwrap();
        vec![
            users(directory, &["ann", "bob", "eve"]),
            format!("--access={}", rights.display()),
        ]
    });
    let name = |repository: &str| format!("{}/{repository}:1", served.host);
    let (public, team) = (name("public/app"), name("team/app"));
    engine.both(|cli| {
        for image in [&public, &team] {
            cli.run(&["tag", "app:1", image]).ok();
            let error = cli.run(&["push", image]).fails(1);
            // The response to HEAD, with which blobs are asked for, has no text.
            let texts = ["user name and password required", "401 Unauthorized"];
            let is_told = texts.iter().any(|text| error.contains(text));
            assert!(is_told, "{error}");
        }
        let command = ["login", "-u", "ann", "--password-stdin", &served.host];
        let wrong = cli.feed(&command, b"wrong");
        wrong.refuses(1, "incorrect user name or password");
        log_in(cli, &served, "ann");
        for image in [&public, &team] {
            cli.run(&["push", image]).ok();
            cli.run(&["rmi", image]).ok();
        }
        cli.run(&["pull", &team]).ok();
        log_in(cli, &served, "bob");
        let push = cli.run(&["push", &team]);
        push.refuses(1, "bob may not push to team/app");
        cli.run(&["pull", &team]).ok();
        assert_eq!(cli.once(&team, &WHICH).ok(), "app:1");
        cli.run(&["rmi", &team]).ok();
        log_in(cli, &served, "eve");
        let pull = cli.run(&["pull", &team]);
        pull.refuses(1, "eve may not pull from team/app");
        cli.run(&["pull", &public]).ok();
        cli.run(&["logout", &served.host]).ok();
        cli.run(&["rmi", &public]).ok();
        let pull = cli.run(&["pull", &team]);
        pull.refuses(1, "user name and password required");
        cli.run(&["pull", &public]).ok();
        cli.run(&["rmi", &public]).ok();
    });
    // The file is read again, and a wrong one changes nothing.
    let rights = served.directory.join("rights");
    let reload = |content: &str| {
        std::fs::write(&rights, content).unwrap();
        served.signal(Signal::HUP);
    };
    let status = || served.send("GET", "/v2/public/app/tags/list", "", b"").0;
    assert_eq!(status(), 200);
    reload("anonymous pull other/*");
    whelk_tests::eventually("the new rights", || (status() == 401).then_some(()));
    reload("anonymous pull public/*");
    whelk_tests::eventually("the rights before", || (status() == 200).then_some(()));
    reload("anonymous read *");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(status(), 200);
}

#[test]
fn everyone_can_pull_if_the_registry_lets_them() {
    let engine = Engine::without_images(&[]);
    engine.load(&marked("app:1").build());
    let served = Served::with_flags("anonymous", |directory| {
        vec![users(directory, &["ann"]), "--anonymous-pull".to_owned()]
    });
    let name = format!("{}/app:1", served.host);
    engine.both(|cli| {
        cli.run(&["tag", "app:1", &name]).ok();
        log_in(cli, &served, "ann");
        cli.run(&["push", &name]).ok();
        cli.run(&["logout", &served.host]).ok();
        cli.run(&["rmi", &name]).ok();
        cli.run(&["pull", &name]).ok();
        let push = cli.run(&["push", &name]);
        push.refuses(1, "user name and password required");
        cli.run(&["rmi", &name]).ok();
    });
    let (status, _, body) = served.send("DELETE", "/v2/app/manifests/1", "", b"");
    assert_eq!(status, 401, "{}", body.escape_ascii());
}

/// A name that is not one of this host's is used with TLS only, and its certificate is verified.
#[test]
fn a_registry_has_a_certificate_of_an_authority_that_the_host_knows() {
    let directory = Scratch::new("registry-ca");
    for name in ["own", "other"] {
        let place = directory.directory(name);
        Authority::new(name).issue_for(&place, "registry.test");
    }
    std::fs::write(directory.join("app.tar"), marked("app:1").build()).unwrap();
    users(&directory, &["ann"]);
    let script = format!(
        r#"
        pem={directory}; image=registry.test:5000/team/app:1
        trust() {{ mkdir -p /etc/docker/certs.d/registry.test:5000; cp $pem/$1/ca.pem /etc/docker/certs.d/registry.test:5000/ca.crt; }}
        refused() {{ "$@" >/run/said 2>&1 && exit 2; sed "s/^/refused: /" /run/said; }}
        busybox ip link set lo up || exit 1
        echo "127.0.0.1 registry.test" >>/etc/hosts
        echo "{{\"instance\": \"$name\"}}" >/etc/whelk/daemon.json
        "$0" registry serve --root /var/lib/registry --listen 127.0.0.1:5000 --htpasswd $pem/users --tls-cert $pem/own/cert.pem --tls-key $pem/own/key.pem 2>/run/log & registry=$!
        await_port 5000 || exit 9
        "$0" ps -q >/dev/null 2>/run/told || {{ cat /run/told; exit 8; }}
        "$0" load -qi $pem/app.tar || exit 3
        for cli in "$0" {docker}; do
            export DOCKER_HOST=unix:///run/whelk/whelk.sock
            $cli tag app:1 $image || exit 4
            refused $cli push $image
            trust other
            refused $cli push $image
            trust own
            refused $cli push $image
            echo wrong | refused $cli login -u ann --password-stdin registry.test:5000
            echo sesame | $cli login -u ann --password-stdin registry.test:5000 || exit 5
            $cli push $image && $cli rmi $image && $cli pull $image || exit 6
            $cli run --rm --network none $image cat /etc/which || exit 6
            $cli rmi $image && $cli logout registry.test:5000
            rm -r /etc/docker/certs.d
        done
        kill $registry; end_engine || exit 7
        "#,
        directory = directory.display(),
        docker = Program::Docker.path().display(),
    );
    let output = private_host(&script);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}{errors}", output.status);
    let refused: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("refused: "))
        .collect();
    for text in [
        "certificate",
        "no basic auth credentials",
        "401 Unauthorized",
    ] {
        let count = refused.iter().filter(|line| line.contains(text)).count();
        assert!(count >= 2, "{text}: {refused:#?}");
    }
}
