//! Git repositories over ssh.

use std::path::Path;

use whelk_tests::Engine;
use whelk_tests::builds::whelk;

use crate::git::{Host, commit, git};
use crate::sshd::{Agent, Sshd, key};
use crate::{build, built, only, run, shows, text};

const DOCKERFILE: &str = "FROM busybox\nCOPY . /c\n";

/// Version 2 of git's protocol, and version 0, to which servers fall back that refuse the variable.
const VERSIONS: [&str; 2] = ["AcceptEnv GIT_PROTOCOL", ""];

#[test]
fn repositories_over_ssh_are_contexts() {
    let engine = Engine::start();
    let host = Host::new();
    let place = engine.scratch("keys");
    for (number, lines) in VERSIONS.into_iter().enumerate() {
        let name = format!("app{number}");
        let files = [("Dockerfile", DOCKERFILE), ("x", "one"), ("sub/y", "below")];
        let path = host.repository(&name, &files);
        let first = git(&path, &["rev-parse", "HEAD"]);
        git(&path, &["tag", "-a", "v1", "-m", "first"]);
        commit(&path, &[("x", "two")]);
        let sshd = Sshd::start("ed25519", lines);
        let own = key(&place, &format!("own{number}"), "ed25519", "");
        let other = key(&place, &format!("other{number}"), "ed25519", "");
        sshd.accept(&own);
        // The first key is not accepted.
        let agent = Agent::start(&place, &format!("socket{number}"), &[&other, &own]);
        let flag = agent.flag();
        let url = sshd.url(&path.join(".git"));
        for (fragment, x) in [
            ("", "two"),
            ("#main", "two"),
            ("#v1", "one"),
            ("?tag=v1", "one"),
        ] {
            let context = format!("{url}{fragment}");
            let shown = built(&engine, &["-t", "app", "--ssh", &flag, &context]);
            assert_eq!(run(&engine, "app", "cat /c/x"), x, "{fragment} {lines}");
            shows(&shown, &["is not among the known hosts", "SHA256:"]);
        }
        // A commit that is here needs no server, nor an agent. (For a context, the client adds one.)
        let known = format!("FROM busybox\nADD {url}#{first} /known\n");
        let known = only(&engine, &format!("known{number}"), &known);
        built(&engine, &["-t", "known", &known]);
        assert_eq!(run(&engine, "known", "cat /known/x"), "one");
        let tool = whelk(&engine);
        let args = ["-t", "own", "--ssh", &flag];
        tool.built(format!("{url}?keep-git-dir=1"), &args);
        let config = run(&engine, "own", "cat /c/.git/config /c/x");
        shows(&config, &[&url, "two"]);
        // Sources of ADD, and named contexts.
        let dockerfile =
            format!("FROM busybox\nADD {url}#main:sub /added\nCOPY --from=named x /named\n");
        let context = only(&engine, &name, &dockerfile);
        let named = format!("named={url}#v1");
        let args = ["-t", "add", "--ssh", &flag, "--build-context", &named];
        built(&engine, &[&args, &[context.as_str()][..]].concat());
        assert_eq!(run(&engine, "add", "cat /added/y /named"), "belowone");
    }
    engine.has_no_steps();
}

#[test]
fn definitions_over_ssh_are_built() {
    let engine = Engine::start();
    let host = Host::new();
    let files = [
        (
            "docker-bake.hcl",
            "target \"default\" { tags = [\"baked\"] }\n",
        ),
        ("Dockerfile", DOCKERFILE),
        ("x", "one"),
    ];
    let path = host.repository("app", &files);
    let place = engine.scratch("keys");
    let own = key(&place, "own", "ed25519", "");
    let sshd = Sshd::start("ed25519", "");
    sshd.accept(&own);
    let agent = Agent::start(&place, "socket", &[&own]);
    let flag = agent.flag();
    let (_, socket) = flag.split_once('=').unwrap();
    let url = sshd.url(&path.join(".git"));
    let bake = |variable: &str, words: &[&str]| {
        let env = [(variable, socket)];
        let cli = whelk(&engine).with_env(&env);
        cli.run(&[&["bake"], words].concat())
    };
    // Definitions are read with an agent of their own.
    let printed = bake("BUILDX_BAKE_GIT_SSH", &["--print", &url]).ok();
    shows(&printed, &[&format!("\"context\": \"{url}\"")]);
    // The target gets the one of the user, with consent.
    let refused = bake("SSH_AUTH_SOCK", &[&url]);
    assert_eq!(refused.code, 1);
    shows(&refused.err(), &[" - Forwarding default SSH agent socket"]);
    bake("SSH_AUTH_SOCK", &["--allow", "ssh", &url]).exits(0);
    assert_eq!(run(&engine, "baked", "cat /c/x"), "one");
}

#[test]
fn servers_are_known_by_their_keys() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("app", &[("Dockerfile", DOCKERFILE), ("x", "x")]);
    let place = engine.scratch("keys");
    let own = key(&place, "own", "ecdsa", "");
    let agent = Agent::start(&place, "socket", &[&own]);
    let flag = agent.flag();
    let other = Sshd::start("ed25519", "");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let sshd = Sshd::start(kind, "");
        sshd.accept(&own);
        let url = sshd.url(&path.join(".git"));
        let with = |known: &str| {
            let file = place.join("known");
            std::fs::write(&file, known).unwrap();
            let secret = format!("id=GIT_KNOWN_HOSTS,src={}", text(&file));
            build(
                &engine,
                &["--no-cache", "--ssh", &flag, "--secret", &secret, &url],
            )
        };
        let known = with(&sshd.known_host());
        known.ok();
        assert!(!known.err().contains("not among"), "{}", known.err());
        let of_other = other.known_host();
        let (_, key) = of_other.split_once(' ').unwrap();
        let wrong = format!("[127.0.0.1]:{} {key}", sshd.port);
        for (list, error) in [
            (wrong.as_str(), "is not the one that it is known by"),
            (of_other.as_str(), "is not among the known hosts"),
            ("", "is not among the known hosts"),
            (&*format!("@revoked {}", sshd.known_host()), "is revoked"),
        ] {
            let failed = with(list);
            assert_eq!(failed.code, 1);
            shows(&failed.err(), &["host key verification failed", error]);
        }
        assert!(!sshd.log().contains("none of"), "{}", sshd.log());
    }
}

#[test]
fn clients_need_keys_that_the_server_accepts() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("app", &[("Dockerfile", DOCKERFILE), ("x", "x")]);
    let place = engine.scratch("keys");
    let sshd = Sshd::start("ed25519", "");
    let keys = ["rsa", "ecdsa", "ed25519"].map(|kind| key(&place, kind, kind, ""));
    let url = sshd.url(&path.join(".git"));
    let fails = |args: &[&str], error: &str| {
        let failed = build(&engine, &[args, &[url.as_str()][..]].concat());
        assert_eq!(failed.code, 1);
        shows(
            &failed.err(),
            &["failed to fetch remote ssh://git@127.0.0.1", error],
        );
    };
    let without = only(&engine, "without", &format!("FROM busybox\nADD {url} /\n"));
    let failed = build(&engine, &[&without]);
    shows(&failed.err(), &["unset ssh forward key default"]);
    let empty = Agent::start(&place, "empty", &[]);
    fails(&["--ssh", &empty.flag()], "the ssh agent has no keys");
    for key in &keys {
        let name = key.file_name().unwrap().to_str().unwrap();
        let agent = Agent::start(&place, &format!("agent-{name}"), &[key]);
        let flag = agent.flag();
        sshd.accept(&keys[usize::from(name == "rsa")]);
        fails(&["--ssh", &flag], "permission denied (publickey)");
        sshd.accept(key);
        built(&engine, &["--no-cache", "--ssh", &flag, &url]);
        let none = sshd.url(Path::new("/none.git"));
        let failed = build(&engine, &["--ssh", &flag, &none]);
        shows(&failed.err(), &["does not appear to be a git repository"]);
        engine.docker(&["builder", "prune", "-af"]).ok();
    }
    // Nobody listens there.
    let agent = Agent::start(&place, "agent", &[&keys[0]]);
    let failed = build(
        &engine,
        &["--ssh", &agent.flag(), "ssh://git@127.0.0.1:1/x"],
    );
    shows(&failed.err(), &["connect: "]);
    let failed = build(
        &engine,
        &["--ssh", &agent.flag(), "ssh://-oProxyCommand=x/x"],
    );
    assert_eq!(failed.code, 1);
    let context = only(&engine, "classic", &format!("FROM busybox\nADD {url} /\n"));
    let failed = whelk_tests::builds::classic(&engine).run(&["build", &context]);
    shows(
        &failed.shown(),
        &["failed to fetch remote ssh://git@127.0.0.1"],
    );
}

#[test]
fn submodules_over_ssh_have_the_agent_of_their_repository() {
    let engine = Engine::start();
    let host = Host::new();
    host.repository("lib", &[("y", "lib")]);
    let app = host.repository("app", &[("Dockerfile", DOCKERFILE), ("x", "app")]);
    git(&app, &["submodule", "add", "-q", "../lib", "sub"]);
    // As the server has them.
    let modules = "[submodule \"sub\"]\n\tpath = sub\n\turl = ../../lib/.git\n";
    commit(&app, &[(".gitmodules", modules)]);
    let place = engine.scratch("keys");
    let own = key(&place, "own", "ed25519", "");
    let sshd = Sshd::start("ed25519", "AcceptEnv GIT_PROTOCOL");
    sshd.accept(&own);
    let agent = Agent::start(&place, "socket", &[&own]);
    let url = sshd.url(&app.join(".git"));
    built(&engine, &["-t", "app", "--ssh", &agent.flag(), &url]);
    assert_eq!(run(&engine, "app", "cat /c/x /c/sub/y"), "applib");
    // A repository of a web server gets none.
    let of_ssh = sshd.url(&host.root.join("lib/.git"));
    let modules = format!("[submodule \"sub\"]\n\tpath = sub\n\turl = {of_ssh}\n");
    commit(&app, &[(".gitmodules", &modules)]);
    let failed = build(&engine, &["--ssh", &agent.flag(), &host.url("app.git")]);
    shows(&failed.err(), &["submodule sub", "gets no ssh agent"]);
}
