//! Contexts: the same commands with both programs, and one store shared by both.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use whelk_tests::certificates::Authority;
use whelk_tests::{Engine, Program, Scratch};

/// A program with its configuration in `config`, which is in `directory`, where it runs.
fn command(program: Program, directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program.path());
    command.args(args).current_dir(directory);
    for (name, _) in std::env::vars() {
        if name.starts_with("DOCKER_") || name.starts_with("WHELK_HOST") {
            command.env_remove(name);
        }
    }
    command.env("DOCKER_CONFIG", directory.join("config"));
    command
}

/// Status, standard output and standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Replaces what must differ between the programs: their names, the paths, and the default sockets,
/// on which the width of columns depends.
fn alike(text: &str, directory: &Path) -> String {
    let text = text
        .replace(&directory.display().to_string(), "DIR")
        .replace("/var/run/docker.sock", "SOCKET")
        .replace("/run/whelk/whelk.sock", "SOCKET")
        .replace("whelk", "docker")
        // The name of the file.
        .replace(" (bad.pem)", "");
    let mut lines = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_end().split("  ").collect();
        let cells = cells.into_iter().filter(|cell| !cell.is_empty());
        lines.push(cells.map(str::trim).collect::<Vec<_>>().join("  "));
    }
    lines.join("\n")
}

/// Returns the files below a directory with their content and permissions.
fn files(directory: &Path) -> BTreeMap<String, (u32, String)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path.strip_prefix(directory).unwrap().display().to_string();
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            let content = std::fs::read_to_string(&path).unwrap();
            found.insert(name, (mode, alike(&content, directory)));
        }
    }
    found
}

#[test]
fn both_programs_print_and_store_the_same() {
    let scratch = Scratch::new("contexts-alike");
    Authority::new("authority").issue(&scratch, "client");
    let sides = [Program::Docker, Program::Whelk].map(|program| {
        let directory = scratch.directory(&format!("{program:?}"));
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::copy(scratch.join(name), directory.join(name)).unwrap();
        }
        std::fs::write(directory.join("bad.pem"), "bad").unwrap();
        (program, directory)
    });
    let check = |variables: &[(&str, &str)], args: &[&str]| {
        let [docker, whelk] = sides.each_ref().map(|(program, directory)| {
            let mut command = command(*program, directory, args);
            command.envs(variables.iter().copied());
            let (code, out, err) = run(&mut command);
            (code, alike(&out, directory), alike(&err, directory))
        });
        assert_eq!(whelk, docker, "{variables:?} {args:?}");
        let stored = sides
            .each_ref()
            .map(|(_, directory)| files(&directory.join("config")));
        let [docker, whelk] = stored;
        let names = |files: &BTreeMap<String, _>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&whelk), names(&docker), "{args:?}");
        for (name, (mode, content)) in &whelk {
            assert_eq!(content, &docker[name].1, "{name} {args:?}");
            assert_eq!(*mode, 0o600, "{name}");
        }
    };
    let host = "host=unix:///tmp/x.sock";
    for args in [
        &["context", "ls"][..],
        &["context", "show"],
        &["context", "inspect"],
        &[
            "context",
            "create",
            "aa",
            "--docker",
            host,
            "--description",
            "one \"two\" <é>&",
        ],
        &["context", "create", "aa"],
        &["context", "create", "a"],
        &["context", "create", ""],
        &["context", "create", "a/b"],
        &["context", "create", "../../x"],
        &["context", "create", "default"],
        &["context", "create", "bb"],
        &["context", "create", "cc", "--from", "aa"],
        &[
            "context",
            "create",
            "dd",
            "--from",
            "aa",
            "--description",
            "other",
        ],
        &[
            "context",
            "create",
            "ee",
            "--docker",
            "from=aa,host=tcp://ignored",
        ],
        &[
            "context",
            "create",
            "ff",
            "--docker",
            "host=tcp://h:1,skip-tls-verify=1",
        ],
        &[
            "context",
            "create",
            "gg",
            "--docker",
            "host=tcp://h:2376,ca=ca.pem,cert=cert.pem,key=key.pem",
        ],
        &[
            "context",
            "create",
            "hh",
            "--docker",
            "host=unix:///x",
            "--docker",
            "ca=ca.pem",
        ],
        &["context", "create", "ii", "--docker", "host="],
        &["context", "create", "xx", "--docker", "host=foo"],
        &["context", "create", "xx", "--docker", "host=foo://"],
        &["context", "create", "xx", "--docker", "host=tcp://"],
        &["context", "create", "xx", "--docker", "bar=1"],
        &["context", "create", "xx", "--docker", "bar"],
        &[
            "context",
            "create",
            "xx",
            "--docker",
            "host=tcp://h,ca=/nonexistent",
        ],
        &[
            "context",
            "create",
            "xx",
            "--docker",
            "host=tcp://h,ca=bad.pem",
        ],
        &[
            "context",
            "create",
            "xx",
            "--docker",
            "host=tcp://h,cert=bad.pem,key=bad.pem",
        ],
        &[
            "context",
            "create",
            "xx",
            "--docker",
            "host=tcp://h,skip-tls-verify=maybe",
        ],
        &["context", "create", "xx", "--docker", "from=nope"],
        &["context", "create", "xx", "--from", "nope"],
        &[
            "context", "create", "xx", "--from", "aa", "--docker", "host=y",
        ],
        &["context", "create"],
        &["context", "ls"],
        &["context", "ls", "-q"],
        &["context", "ls", "--format", "json"],
        &[
            "context",
            "ls",
            "--format",
            "table {{.Name}}\\t{{.DockerEndpoint}}",
        ],
        &[
            "context",
            "ls",
            "--format",
            "{{.Name}} {{.Current}} {{.Description}}",
        ],
        &["context", "ls", "--format", "{{.Foo}}"],
        &["-c", "bb", "context", "ls"],
        &["-c", "nope", "context", "ls"],
        &["-H", "tcp://h", "context", "ls"],
        &["-H", "tcp://h", "context", "show"],
        &["-H", "tcp://h", "-c", "aa", "context", "show"],
        &["context", "inspect", "aa", "gg", "nope", "default"],
        &["context", "inspect", "gg", "-f", "json"],
        &[
            "context",
            "inspect",
            "aa",
            "gg",
            "-f",
            "{{.Name}} {{.Endpoints.docker.Host}} {{.TLSMaterial}}",
        ],
        &["context", "inspect", "gg", "-f", "{{.Endpoints}}"],
        &["context", "inspect", "aa", "-f", "{{.Metadata.Name}}"],
        &["context", "inspect", "aa", "-f", "{{.Foo}}"],
        &["context", "inspect", "aa", "-f", "{{"],
        &["context", "inspect", "nope"],
        &["context", "use", "nope"],
        &["context", "use", "a/b"],
        &["context", "use", ""],
        &["context", "use", "aa"],
        &["context", "show"],
        &["context", "inspect"],
        &["context", "ls"],
        &["context", "rm", "aa"],
        &["context", "update", "aa", "--description", "new"],
        &["context", "update", "gg", "--docker", "host=tcp://w"],
        &["context", "update", "gg", "--docker", "foo=1"],
        &["context", "update", "nope"],
        &["context", "update", "default", "--description", "x"],
        &["context", "update", "a/b"],
        &["context", "rm", "nope"],
        &["context", "rm", "-f", "nope"],
        &["context", "rm", "default"],
        &["context", "inspect", "ii"],
        &["context", "export", "nope"],
        &["context", "export", "a/b"],
        &["context", "export", "gg", "/nonexistent/x"],
        &["context", "export", "hh"],
        &["context", "export", "hh"],
        &["context", "import", "hh", "hh.dockercontext"],
        &["context", "import", "default", "hh.dockercontext"],
        &["context", "import", "i2", "hh.dockercontext"],
        &["context", "import", "i3", "/nonexistent"],
        &["context", "import", "i3", "bad.pem"],
        &["context", "inspect", "i2"],
        &["context", "rm", "cc", "nope", "dd", "hh"],
        &["context", "rm", "--force", "aa"],
        &["context", "show"],
        &["context", "use", "bb"],
        &["context", "use", "default"],
        &["context", "ls", "extra"],
        &["context", "foo"],
    ] {
        check(&[], args);
    }
    let overrides = [("DOCKER_HOST", "unix:///y")];
    check(&overrides, &["context", "ls", "-q"]);
    check(&overrides, &["context", "ls"]);
    check(&overrides, &["context", "show"]);
    check(&overrides, &["context", "use", "bb"]);
    check(&overrides, &["context", "use", "default"]);
    check(&[("DOCKER_CONTEXT", "bb")], &["context", "show"]);
    check(&[("DOCKER_CONTEXT", "bb")], &["context", "rm", "bb"]);
    check(&[("DOCKER_CONTEXT", "nope")], &["context", "ls"]);
    // A store with damaged files.
    for (_, directory) in &sides {
        let broken = directory.join("config/contexts/meta/0000");
        std::fs::create_dir_all(&broken).unwrap();
        check(&[], &["context", "ls", "-q"]);
        std::fs::remove_dir(&broken).unwrap();
    }
}

#[test]
fn one_store_serves_both_programs() {
    let engine = Engine::start();
    let directory = engine.scratch("shared");
    let said = |program: Program, args: &[&str]| {
        let (code, out, err) = run(&mut command(program, &directory, args));
        assert_eq!(code, 0, "{program:?} {args:?}: {err}");
        out.trim().to_owned()
    };
    let config = directory.join("config");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(
        config.join("config.json"),
        r#"{"credsStore": "x", "detachKeys": "ctrl-a", "HttpHeaders": {"A": "b"}}"#,
    )
    .unwrap();
    engine.cli(Program::Whelk).up("up", &[], &["sleep", "600"]);
    let host = format!("host=unix://{}", engine.socket().display());
    for (one, other) in [
        (Program::Docker, Program::Whelk),
        (Program::Whelk, Program::Docker),
    ] {
        said(one, &["context", "create", "mine", "--docker", &host]);
        said(one, &["context", "use", "mine"]);
        for program in [one, other] {
            assert_eq!(said(program, &["context", "show"]), "mine");
            let names = said(program, &["ps", "--format", "{{.Names}}"]);
            assert_eq!(names, "up", "{program:?}");
        }
        said(one, &["context", "export", "mine", "archive"]);
        said(other, &["context", "import", "copy", "archive"]);
        assert_eq!(
            said(one, &["-c", "copy", "ps", "--format", "{{.Names}}"]),
            "up"
        );
        said(other, &["context", "update", "copy", "--description", "d"]);
        said(one, &["context", "rm", "-f", "mine"]);
        assert_eq!(said(other, &["context", "show"]), "default");
        let left = said(
            other,
            &["context", "ls", "--format", "{{.Name}} {{.Description}}"],
        );
        assert!(left.starts_with("copy d\n"), "{left}");
        said(other, &["context", "rm", "copy"]);
        std::fs::remove_file(directory.join("archive")).unwrap();
        // Unknown settings are kept.
        let kept = std::fs::read_to_string(config.join("config.json")).unwrap();
        for setting in ["credsStore", "detachKeys", "HttpHeaders"] {
            assert!(kept.contains(setting), "{kept}");
        }
        assert!(!kept.contains("currentContext"), "{kept}");
    }
}

#[test]
fn a_contexts_certificates_reach_the_engine() {
    let engine = Engine::start();
    let directory = engine.scratch("tls");
    let authority = Authority::new("authority");
    authority.issue(&directory, "both");
    let port = whelk_tests::free_port();
    let mut arguments = vec![format!("--host=tcp://127.0.0.1:{port}")];
    arguments.extend(whelk_tests::certificates::flags(&directory));
    engine.kill9();
    engine.set_arguments(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    engine.restart();
    let endpoint = format!("host=tcp://127.0.0.1:{port},ca=ca.pem,cert=cert.pem,key=key.pem");
    for (one, other) in [
        (Program::Docker, Program::Whelk),
        (Program::Whelk, Program::Docker),
    ] {
        let said = |program: Program, args: &[&str]| {
            let (code, out, err) = run(&mut command(program, &directory, args));
            assert_eq!(code, 0, "{program:?} {args:?}: {err}");
            out
        };
        said(one, &["context", "create", "safe", "--docker", &endpoint]);
        said(one, &["context", "export", "safe", "archive"]);
        said(other, &["context", "import", "copy", "archive"]);
        for context in ["safe", "copy"] {
            for program in [one, other] {
                said(program, &["-c", context, "ps"]);
            }
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
            for (name, (file_mode, _)) in files(&directory.join("config/contexts/tls")) {
                assert_eq!(file_mode, 0o600, "{name}");
            }
            assert_eq!(mode(&directory.join("config/contexts/tls")), 0o700);
        }
        assert_eq!(
            directory
                .join("archive")
                .metadata()
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        said(one, &["context", "rm", "safe", "copy"]);
        assert!(files(&directory.join("config/contexts")).is_empty());
        std::fs::remove_file(directory.join("archive")).unwrap();
    }
}

#[test]
fn importing_writes_nothing_but_the_context() {
    let scratch = Scratch::new("contexts-hostile");
    let directory = scratch.directory("one");
    let refused = |script: &str, text: &str| {
        let made = Command::new("sh")
            .args(["-euc", script])
            .current_dir(&directory)
            .status();
        assert!(made.unwrap().success(), "{script}");
        let args = ["context", "import", "bad", "archive"];
        let (code, out, err) = run(&mut command(Program::Whelk, &directory, &args));
        assert_eq!((code, out.as_str()), (1, ""), "{script}: {err}");
        assert!(err.contains(text), "{script}: {err}");
        assert!(!directory.join("config").exists(), "{script}");
        assert!(!scratch.join("evil").exists(), "{script}");
    };
    refused(
        "mkdir -p tls/docker; echo '{}' > meta.json; echo x > evil; tar cf archive -P meta.json --transform s,^evil,tls/docker/../../../../evil, evil",
        "unexpected path format",
    );
    refused(
        "tar cf archive -P meta.json --transform \"s,^evil,$PWD/../evil,\" evil",
        "unexpected context file",
    );
    refused(
        "ln -sf /etc/passwd tls/docker/ca.pem; tar cf archive meta.json tls/docker/ca.pem",
        "unexpected context file",
    );
    refused(
        "rm tls/docker/ca.pem; truncate -s 11M tls/docker/ca.pem; tar cf archive meta.json tls/docker/ca.pem",
        "read exceeds the defined limit",
    );
    refused(
        "echo '{' > meta.json; tar cf archive meta.json",
        "meta.json",
    );
    refused(
        "echo '[]' > meta.json; tar cf archive meta.json",
        "meta.json",
    );
    refused("rm archive; mkdir archive", "is a directory");
}
