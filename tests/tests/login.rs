//! `login` and `logout`: verification with the registry, and storage of the credentials.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use whelk_tests::registry::{Behaviour, IDENTITY, Registry};
use whelk_tests::{Cli, Engine, Output};

/// `alice:sesame`
const ALICE: &str = "YWxpY2U6c2VzYW1l";

/// A registry with one user.
fn registry(tokens: bool) -> Registry {
    let registry = Registry::start();
    registry.behave(Behaviour {
        authorization: Some(format!("Basic {ALICE}")),
        tokens,
        ..Behaviour::default()
    });
    registry
}

fn config(engine: &Engine, content: &str) -> (PathBuf, String) {
    let directory = engine.scratch("config");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("config.json"), content).unwrap();
    let flag = format!("--config={}", directory.display());
    (directory, flag)
}

fn read(directory: &Path) -> Value {
    let text = std::fs::read(directory.join("config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn log_in(cli: Cli<'_>, flag: &str, registry: &Registry, password: &str) -> Output {
    let command = [
        flag,
        "login",
        "-u",
        "alice",
        "--password-stdin",
        &registry.host,
    ];
    cli.feed(&command, format!("{password}\n").as_bytes())
}

#[test]
fn a_login_is_verified_and_stored() {
    let engine = Engine::without_images(&[]);
    let registry = registry(false);
    engine.both(|cli| {
        let (directory, flag) = config(&engine, r#"{"detachKeys": "ctrl-x", "auths": {"other": {"auth": "YTpi"}}}"#);
        let host = registry.host.as_str();
        let text = format!("Error response from daemon: login attempt to http://{host}/v2/ failed with status: 401 Unauthorized");
        log_in(cli, &flag, &registry, "wrong").refuses(1, &text);
        assert_eq!(read(&directory)["auths"], json!({"other": {"auth": "YTpi"}}));
        let output = log_in(cli, &flag, &registry, "sesame");
        assert_eq!(output.ok(), "Login Succeeded");
        let warning = format!("WARNING! Your credentials are stored unencrypted in '{}/config.json'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/", directory.display());
        assert!(output.err().contains(&warning), "{}", output.err());
        let expected = json!({"detachKeys": "ctrl-x", "auths": {"other": {"auth": "YTpi"}, host: {"auth": ALICE}}});
        assert_eq!(read(&directory), expected);
        // Stored credentials are used by the next login, and verified again.
        let again = cli.run(&[&flag, "login", host]);
        assert_eq!(again.ok(), "Login Succeeded");
        assert!(again.err().contains("Authenticating with existing credentials... [Username: alice]"), "{}", again.err());
        let output = cli.run(&[&flag, "logout", host]).ok();
        assert_eq!(output, format!("Removing login credentials for {host}"));
        assert_eq!(read(&directory)["auths"], json!({"other": {"auth": "YTpi"}}));
        cli.run(&[&flag, "login", host]).refuses(1, "annot perform an interactive login from a non");
    });
    let log = std::fs::read_to_string(engine.root().with_file_name("daemon.log")).unwrap();
    assert!(!log.contains(ALICE) && !log.contains("sesame"));
    let (directory, flag) = config(&engine, "{}");
    log_in(
        engine.cli(whelk_tests::Program::Whelk),
        &flag,
        &registry,
        "sesame",
    )
    .ok();
    let mode = directory
        .join("config.json")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_identity_token_is_stored_instead_of_the_password() {
    let engine = Engine::without_images(&[]);
    let registry = registry(true);
    engine.both(|cli| {
        let (directory, flag) = config(&engine, "{}");
        let text = "unauthorized: incorrect username or password";
        log_in(cli, &flag, &registry, "wrong").refuses(1, text);
        let output = log_in(cli, &flag, &registry, "sesame");
        assert_eq!(output.ok(), "Login Succeeded");
        assert!(!output.err().contains("WARNING"), "{}", output.err());
        let entry = &read(&directory)["auths"][&registry.host];
        assert_eq!(entry["identitytoken"], IDENTITY);
        assert_eq!(entry["auth"], "YWxpY2U6", "the user without a password");
    });
    // Each login requests a token.
    assert_eq!(registry.requests("GET /token?").len(), 4);
}

#[test]
fn a_credential_helper_stores_the_credentials_of_its_registries() {
    let engine = Engine::without_images(&[]);
    let registry = registry(false);
    let bin = engine.scratch("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\ncat >{}/$1 && [ $1 != get ] || echo credentials not found in native keychain\n[ $1 != get ]\n",
        bin.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let host = registry.host.as_str();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    engine.both(|cli| {
        let content = json!({"credHelpers": {host: "test"}}).to_string();
        let (directory, flag) = config(&engine, &content);
        let run = |args: &[&str]| {
            let output = std::process::Command::new(cli.program().path())
                .args(args)
                .env("PATH", &path)
                .env(
                    "DOCKER_HOST",
                    format!("unix://{}", engine.socket().display()),
                )
                .output()
                .unwrap();
            assert!(output.status.success(), "{args:?}: {output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let errors = run(&[&flag, "login", "-u", "alice", "-p", "sesame", host]);
        assert!(!errors.contains("unencrypted"), "{errors}");
        let stored: Value =
            serde_json::from_slice(&std::fs::read(bin.join("store")).unwrap()).unwrap();
        let expected = json!({"ServerURL": host, "Username": "alice", "Secret": "sesame"});
        assert_eq!(stored, expected);
        assert_eq!(read(&directory)["auths"][host], json!({}));
        run(&[&flag, "logout", host]);
        let erased = std::fs::read_to_string(bin.join("erase")).unwrap();
        assert!(erased.ends_with(host), "{erased}");
        assert_eq!(read(&directory)["auths"].get(host), None);
    });
}
