//! `RUN --mount=type=ssh`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;

use whelk_tests::{Engine, eventually, images};

use crate::{build, built, classic, only, run, shows};

/// Answers requests for the keys of an agent: it has none. Other requests fail.
fn agent(path: &std::path::Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut length = [0; 4];
                while stream.read_exact(&mut length).is_ok() {
                    let mut request = vec![0; u32::from_be_bytes(length) as usize];
                    stream.read_exact(&mut request).unwrap();
                    // SSH_AGENTC_REQUEST_IDENTITIES, SSH_AGENT_IDENTITIES_ANSWER, SSH_AGENT_FAILURE
                    let answer: &[u8] = match request.first() {
                        Some(11) => &[0, 0, 0, 5, 12, 0, 0, 0, 0],
                        _ => &[0, 0, 0, 1, 5],
                    };
                    stream.write_all(answer).unwrap();
                }
            });
        }
    });
}

/// Asks the agent for its keys, and writes the answer into a file.
const ASK: &str = "python3 -c \"import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['SSH_AUTH_SOCK']); s.sendall(bytes([0, 0, 0, 1, 11])); open('/answer', 'w').write(s.recv(9, socket.MSG_WAITALL).hex())\"";

#[test]
fn the_agent_of_the_client_answers() {
    let engine = Engine::start();
    engine.load(&std::fs::read(images::python()).unwrap());
    let place = engine.scratch("agent");
    agent(&place.join("socket"));
    let flag = format!("default={}", place.join("socket").display());
    let own = format!("own={}", place.join("socket").display());
    let dockerfile = format!(
        "FROM python\n\
         RUN --mount=type=ssh stat -c '%n %F %a %u' $SSH_AUTH_SOCK > /default && {ASK}\n\
         RUN --mount=type=ssh,id=own,target=/s,uid=7,mode=0666 stat -c '%n %F %a %u' /s > /own\n\
         RUN --mount=type=ssh,id=none,required=false echo \"[$SSH_AUTH_SOCK]\" > /none\n"
    );
    let context = only(&engine, "ssh", &dockerfile);
    built(
        &engine,
        &["-t", "ssh", "--ssh", &flag, "--ssh", &own, &context],
    );
    let look = "cat /default /own /none; test ! -e /s && test ! -e /run/buildkit && echo clean";
    let shown = run(&engine, "ssh", look);
    shows(
        &shown,
        &[
            "/run/buildkit/ssh_agent.0 socket 600 0",
            "/s socket 666 7",
            "clean",
        ],
    );
    assert_eq!(run(&engine, "ssh", "cat /answer"), "000000050c00000000");
    eventually("the sockets to be removed", || {
        let names = engine.run().read_dir().unwrap().flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        (!names.any(|name| name.starts_with("build-ssh"))).then_some(())
    });
}

#[test]
fn a_client_without_the_key_is_told_so() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN --mount=type=ssh,required=true true\n";
    let context = only(&engine, "none", dockerfile);
    let failed = build(&engine, &[&context]);
    shows(&failed.err(), &["unset ssh forward key default"]);
    let place = engine.scratch("agent");
    agent(&place.join("socket"));
    let flag = format!("other={}", place.join("socket").display());
    let failed = build(&engine, &["--ssh", &flag, &context]);
    shows(&failed.err(), &["unset ssh forward key default"]);
    let optional = only(
        &engine,
        "optional",
        "FROM busybox\nRUN --mount=type=ssh true\n",
    );
    classic(&engine, &[&optional]);
}
