//! Settings of builds with BuildKit's protocol: what steps see of them.

use std::fmt::Write as _;
use std::fs;

use serde_json::json;
use whelk_tests::builds::{classic, docker, shows, whelk};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program, images};

use crate::parameters::zstd;

#[test]
fn caches_of_steps_have_namespaces() {
    let engine = Engine::start();
    let text = "FROM busybox\nARG N\nRUN --network=none --mount=type=cache,target=/c echo found-$(cat /c/n 2>/dev/null); echo $N > /c/n\n";
    let context = engine.dockerfile("namespaces", text);
    let build = |namespace: &str, number: &str| {
        let namespace = format!("BUILDKIT_CACHE_MOUNT_NS={namespace}");
        let number = format!("N={number}");
        let args = ["--build-arg", &namespace, "--build-arg", &number];
        docker(&engine).built(&context, &args)
    };
    for (namespace, number, found) in [("one", "1", ""), ("two", "2", ""), ("one", "3", "1")] {
        let shown = build(namespace, number);
        shows(&shown, &[&format!(" found-{found}\n")]);
    }
}

#[test]
fn steps_have_the_network_of_the_host_if_they_may() {
    let engine = Engine::start();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let expected = format!(" {}\n", own.display());
    for (flag, args) in [
        ("--network=host", ["--allow", "network.host"]),
        ("", ["--network", "host"]),
    ] {
        let text = format!("FROM busybox\nRUN {flag} readlink /proc/self/ns/net\n");
        let context = engine.dockerfile("host", &text);
        for client in [docker(&engine), whelk(&engine)] {
            let args = [&args[..], &["--no-cache"]].concat();
            shows(&client.built(&context, &args), &[&expected]);
        }
    }
}

#[test]
fn limits_of_whelk_build_hold_for_steps() {
    let engine = Engine::start();
    // Files of cgroups of both versions.
    let files = "cpu.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us memory.max memory/memory.limit_in_bytes";
    let text = format!(
        "FROM busybox\nRUN --network=none cd /sys/fs/cgroup; echo $(cat {files} 2>/dev/null) $(nproc)\n"
    );
    let context = engine.dockerfile("limits", &text);
    let flags =
        "--cpu-quota 50000 --cpu-period 100000 --cpuset-cpus 0 --memory 64m --memory-swap 64m";
    let flags: Vec<&str> = flags.split(' ').collect();
    let shown = whelk(&engine).built(&context, &flags);
    shows(&shown, &[" 50000 100000 67108864 1\n"]);
    // They are not what the step does.
    let shown = whelk(&engine).built(&context, &["--memory", "128m"]);
    assert!(!shown.contains(" 50000 "), "{shown}");
    shows(&shown, &["CACHED\n"]);
}

#[test]
fn registries_are_asked_only_if_that_is_wanted() {
    let engine = Engine::start();
    engine.docker(&["tag", "busybox", "localhost:1/own:1"]).ok();
    let context = engine.dockerfile("pull", "FROM localhost:1/own:1\nLABEL a=b\n");
    for client in [docker(&engine), whelk(&engine)] {
        client.built(&context, &[]);
        client.build_fails(&context, &["--pull"], &["localhost:1"]);
    }
}

#[test]
fn steps_stand_on_a_limited_number_of_layers() {
    let engine = Engine::start();
    let mut text = String::from("FROM busybox\n");
    for number in 0..510 {
        writeln!(text, "WORKDIR /{number}").unwrap();
    }
    let context = engine.dockerfile("layers", &text);
    let expected = [">>> WORKDIR /500", "a step stands on more than 500 layers"];
    whelk(&engine).build_fails(&context, &[], &expected);
    engine.has_no_builds();
}

/// Such as those of a server that listens on a low port, and is not root.
#[test]
fn capabilities_of_files_are_copied() {
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let value = "0100000200040000000000000000000000000000";
    let text = format!(
        "FROM python AS a\nRUN --network=none touch /f && python3 -c \"import os; os.setxattr('/f', 'security.capability', bytes.fromhex('{value}'))\"\n\
        FROM python\nCOPY --from=a /f /plain\nCOPY --from=a --chown=5:6 --chmod=755 /f /owned\nCOPY --link --from=a /f /link\n\
        RUN --network=none python3 -c \"import os; [print(n, os.getxattr(n, 'security.capability').hex()) for n in ('/plain', '/owned', '/link')]\"\n"
    );
    let context = engine.dockerfile("capabilities", &text);
    let expected = ["/plain", "/owned", "/link"].map(|name| format!("{name} {value}\n"));
    let expected = expected.each_ref().map(String::as_str);
    for client in [docker(&engine), classic(&engine)] {
        shows(&client.built(&context, &["--no-cache"]), &expected);
    }
}

#[test]
fn images_may_be_named_by_their_ids() {
    let engine = Engine::start();
    let id = engine.image("busybox")["Id"].as_str().unwrap().to_owned();
    let short = &id["sha256:".len()..][..12];
    for name in [&*id, short] {
        let text = format!("FROM {name}\nCOPY --from={name} /etc/passwd /copied\n");
        let context = engine.dockerfile("ids", &text);
        for client in [docker(&engine), classic(&engine), whelk(&engine)] {
            client.built(&context, &[]);
        }
    }
    let context = engine.dockerfile("none", "FROM 0123456789ab\n");
    docker(&engine).build_fails(&context, &[], &["pull 0123456789ab:latest"]);
}

/// As users have it: without `DOCKER_BUILDKIT`.
#[test]
fn dockers_client_chooses_buildkit() {
    let engine = Engine::start();
    let env = [("DOCKER_BUILDKIT", ""), ("BUILDKIT_PROGRESS", "plain")];
    let cli = engine.cli(Program::Docker).with_env(&env);
    let context = engine.dockerfile("chosen", "FROM busybox\nLABEL a=b\n");
    let expected = ["[internal] load build definition from Dockerfile"];
    shows(&cli.built(&context, &["-t", "chosen"]), &expected);
    assert_eq!(engine.image("chosen")["Config"]["Labels"]["a"], "b");
}

#[test]
fn names_need_not_be_ascii() {
    let engine = Engine::start();
    let text = "FROM busybox\nARG WORD\nCOPY --from=other café.txt /ñ/\nCOPY data/é.txt data/ñ* /copied/\n\
        RUN --network=none --mount=source=data,target=/môunt cat /môunt/é.txt /ñ/café.txt > /made; cd /copied; echo $WORD * >> /made\n";
    let files = [
        ("Dockerfile", text),
        (".dockerignore", "**/ñ-*\n"),
        ("data/é.txt", "1\n"),
        ("data/ñ1", "2\n"),
        ("data/ñ-ignored", "3\n"),
        ("../other ö/café.txt", "4\n"),
    ];
    let context = engine.scratch_with("context ü", &files);
    let other = format!("other={}", context.join("../other ö").display());
    let args = ["--build-context", &other, "--build-arg", "WORD=naïve"];
    for (client, name) in [(docker(&engine), "docker"), (whelk(&engine), "whelk")] {
        client.built(&context, &[&args[..], &["-t", name, "--no-cache"]].concat());
        let look = ["run", "--rm", "--network", "none", name, "cat", "/made"];
        assert_eq!(engine.docker(&look).ok(), "1\n4\nnaïve é.txt ñ1");
    }
}

#[test]
fn flags_of_copies_are_combined() {
    let engine = Engine::start();
    let text = "FROM busybox\nADD --link --chmod=640 --chown=3:4 a /link/a\nADD --exclude=*.md d /not/\n\
        COPY --link --exclude=*.md --chown=5:6 d /link/d/\nCOPY --link --parents --chmod=700 d/./sub/y /parents/\n\
        ADD --link --unpack=false --chown=7:8 a.tar /packed/\nADD --link --chown=7:8 a.tar /unpacked/\nADD a.tar.zst /zstd/\n";
    let files = [
        ("Dockerfile", text),
        ("a", "a\n"),
        ("d/x.md", ""),
        ("d/sub/y", "y\n"),
    ];
    let context = engine.scratch_with("combined", &files);
    let archive = Tar::new().file("inner", "inner\n").finish();
    fs::write(context.join("a.tar.zst"), zstd(&archive)).unwrap();
    fs::write(context.join("a.tar"), archive).unwrap();
    let look = "find /link /not /parents /packed /unpacked /zstd -type f | sort | xargs stat -c '%n %a %u:%g'";
    let expected = "/link/a 640 3:4\n/link/d/sub/y 644 5:6\n/not/sub/y 644 0:0\n/packed/a.tar 644 7:8\n\
        /parents/sub/y 700 0:0\n/unpacked/inner 644 7:8\n/zstd/inner 644 0:0";
    let clients = [docker(&engine), classic(&engine), whelk(&engine)];
    for (client, name) in clients.into_iter().zip(["buildkit", "classic", "whelk"]) {
        client.built(&context, &["--no-cache", "-t", name]);
        let look = ["run", "--rm", "--network", "none", name, "sh", "-c", look];
        assert_eq!(engine.docker(&look).ok(), expected, "{name}");
    }
}

#[test]
fn targets_of_bake_files_inherit_the_configuration_of_others() {
    let engine = Engine::start();
    let base = "FROM busybox\nENV A=of-base\nWORKDIR /w\nLABEL of=base\nUSER 7\nCMD [\"cat\", \"/tmp/made\"]\n";
    let top = "FROM base\nRUN --network=none echo $A $(pwd) $(id -u) > /tmp/made\n";
    for (client, name) in [(docker(&engine), "docker"), (whelk(&engine), "whelk")] {
        let context = engine.scratch(name);
        let place = context.to_str().unwrap();
        let bake = json!({"target": {
            "base": {"context": place, "dockerfile-inline": base},
            "top": {"context": place, "dockerfile-inline": top, "contexts": {"base": "target:base"}, "tags": [name]},
        }});
        let file = context.join("bake.json");
        fs::write(&file, bake.to_string()).unwrap();
        let file = file.to_str().unwrap();
        let args = ["buildx", "bake", "--allow", "fs=/", "-f", file, "top"];
        client.run(&args).exits(0);
        let run = ["run", "--rm", "--network", "none", name];
        assert_eq!(engine.docker(&run).ok(), "of-base /w 7");
        let image = engine.image(name);
        assert_eq!(image["Config"]["Labels"], json!({"of": "base"}));
        assert_eq!(image["Config"]["User"], "7");
    }
}
