//! Names of containers, lookup, and lists.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use serde_json::{Value, json};
use whelk_tests::{Engine, escape, eventually};

#[test]
fn a_container_is_found_by_name_id_and_prefix() {
    Engine::start().both(|cli| {
        let id = cli.up("found", &[], &["sleep", "600"]);
        for name in ["found", "/found", id.as_str(), &id[..12], &id[..3]] {
            assert_eq!(
                cli.run(&["inspect", "-f", "{{.Id}}", name]).ok(),
                id,
                "{name}"
            );
        }
        assert_eq!(
            cli.run(&["kill", &id[..12]]).ok(),
            &id[..12],
            "a command says what it was given"
        );
        cli.run(&["inspect", "-f", "{{.Id}}", "foun"])
            .refuses(1, "Error: No such object: foun");
        cli.run(&["inspect", &id.to_uppercase()])
            .refuses(1, "No such object");
    });
}

#[test]
fn an_ambiguous_id_prefix_is_rejected_and_a_name_wins() {
    let engine = Engine::start();
    // Of 17 hexadecimal ids, two begin with the same digit.
    let body = json!({"Image": "busybox", "HostConfig": {"NetworkMode": "none"}});
    let ids: Vec<String> = (0..17)
        .map(|n| engine.create(&format!("many{n}"), &body))
        .collect();
    let digit = "0123456789abcdef"
        .chars()
        .find(|digit| ids.iter().filter(|id| id.starts_with(*digit)).count() > 1)
        .unwrap()
        .to_string();
    let (status, answer) = engine.api("POST", &format!("/containers/{digit}/start"), None);
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            400,
            Some(format!("multiple IDs found with provided prefix: {digit}").as_str())
        )
    );
    engine
        .docker(&["rm", "-f", &digit])
        .refuses(1, "multiple IDs found with provided prefix");
    engine
        .whelk(&["rm", "-f", &digit])
        .refuses(1, "multiple IDs found with provided prefix");
    let named = engine.create(&ids[0][..12], &body);
    assert_eq!(engine.inspect(&ids[0][..12])["Id"], named);
}

#[test]
fn names_are_validated_and_unique() {
    Engine::start().both(|cli| {
        let create = |name: &str| cli.run(&["create", "--network", "none", "--name", name, "busybox", "true"]);
        let id = create("taken").ok();
        let conflict = format!(
            "Conflict. The container name \"/taken\" is already in use by container \"{id}\". You have to remove (or rename) that container"
        );
        create("taken").refuses(1, &conflict);
        create("/taken").refuses(1, &conflict);
        for bad in ["bad name", "a", "-x", "_x", "x/y", "é"] {
            create(bad).refuses(1, &format!("Invalid container name ({bad}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"));
        }
        create("/slashed").ok();
        assert_eq!(cli.run(&["ps", "-a", "--filter", "name=slashed", "--format", "{{.Names}}"]).ok(), "slashed");
        cli.run(&["run", "--name", "taken", "--network", "none", "busybox", "true"]).refuses(125, &conflict);
        cli.run(&["rm", "taken"]).ok();
        create("taken").ok();
    });
}

#[test]
fn a_container_without_a_name_gets_a_random_name() {
    Engine::start().both(|cli| {
        let id = cli
            .run(&["create", "--network", "none", "busybox", "true"])
            .ok();
        let name = cli.run(&["inspect", "-f", "{{.Name}}", &id]).ok();
        let words: Vec<&str> = name.trim_start_matches('/').split('_').collect();
        assert!(
            words.len() == 2
                && words
                    .iter()
                    .all(|word| word.chars().all(|letter| letter.is_ascii_lowercase())),
            "{name}"
        );
    });
}

#[test]
fn rename_changes_the_name_of_a_running_container_too() {
    Engine::start().both(|cli| {
        let id = cli.up("old", &[], &["sleep", "600"]);
        let other = cli.run(&["create", "--network", "none", "--name", "other", "busybox", "true"]).ok();
        assert_eq!(cli.run(&["rename", "old", "new"]).ok(), "");
        assert_eq!(cli.engine().inspect("new")["Id"], id.as_str());
        assert_eq!(cli.engine().state("old"), "");
        let conflict =
            format!("Error when allocating new name: Conflict. The container name \"/other\" is already in use by container \"{other}\".");
        cli.run(&["rename", "new", "other"]).refuses(1, &conflict);
        cli.run(&["rename", "new", "new"]).refuses(1, "Renaming a container with the same name as its current name");
        cli.run(&["rename", "new", "bad name"]).refuses(1, "Invalid container name (/bad name)");
        cli.run(&["rename", "nosuch", "thing"]).refuses(1, "No such container: nosuch");
        cli.run(&["create", "--network", "none", "--name", "old", "busybox", "true"]).ok();
    });
}

#[test]
fn ps_shows_dockers_table() {
    Engine::start().both(|cli| {
        let header = "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES";
        assert_eq!(cli.run(&["ps"]).ok(), header);
        let id = cli.up("shown", &[], &["sleep", "600"]);
        let text = cli.run(&["ps"]).ok();
        let row = text.lines().nth(1).unwrap();
        let short = &id[..12];
        assert!(
            row.starts_with(&format!("{short}   busybox   \"sleep 600\"   "))
                && row.ends_with("shown"),
            "{text}"
        );
        assert!(row.contains("   Up "), "{text}");
        assert_eq!(cli.run(&["ps", "-q"]).ok(), short);
        assert_eq!(cli.run(&["ps", "-q", "--no-trunc"]).ok(), id);
        cli.run(&["kill", "shown"]).ok();
        assert_eq!(cli.run(&["ps", "-q"]).ok(), "");
        let text = cli
            .run(&["ps", "-a", "--format", "{{.ID}} {{.State}} {{.Status}}"])
            .ok();
        assert!(
            text.starts_with(&format!("{short} exited Exited (137) ")) && text.ends_with(" ago"),
            "{text}"
        );
        cli.run(&[
            "create",
            "--network",
            "none",
            "--name",
            "long",
            "busybox",
            "sh",
            "-c",
            "echo a very long command line",
        ])
        .ok();
        assert_eq!(
            cli.run(&[
                "ps",
                "-a",
                "-f",
                "name=long",
                "--format",
                "{{.Command}} {{.Status}}"
            ])
            .ok(),
            "\"sh -c 'echo a very …\" Created"
        );
        assert_eq!(
            cli.run(&["ps", "-l", "--format", "table {{.Names}}\t{{.State}}"])
                .ok(),
            "NAMES     STATE\nlong      created"
        );
    });
}

#[test]
fn ps_filters() {
    let engine = Engine::start();
    let one = |name: &str, command: &[&str], label: &str| {
        engine.create(name, &json!({"Image": "busybox", "Cmd": command, "Labels": {"kind": label}, "HostConfig": {"NetworkMode": "none"}}))
    };
    let id = one("up", &["sleep", "600"], "a");
    one("three", &["sh", "-c", "exit 3"], "b");
    one("made", &["true"], "a");
    for name in ["up", "three"] {
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{name}/start"), None)
                .0,
            204
        );
    }
    engine.await_state("three", "exited");
    let check = |filters: &[&str], expected: &[&str]| {
        for program in [whelk_tests::Program::Docker, whelk_tests::Program::Whelk] {
            let mut args = vec!["ps", "-a", "--format", "{{.Names}}"];
            for filter in filters {
                args.push("--filter");
                args.push(filter);
            }
            let text = engine.cli(program).run(&args).ok();
            let mut names: Vec<&str> = text.lines().collect();
            names.sort_unstable();
            assert_eq!(names, expected, "{program:?} {filters:?}");
        }
    };
    check(&[], &["made", "three", "up"]);
    check(&["status=running"], &["up"]);
    check(&["status=exited", "status=created"], &["made", "three"]);
    check(&["exited=3"], &["three"]);
    check(&["label=kind"], &["made", "three", "up"]);
    check(&["label=kind=a"], &["made", "up"]);
    check(&["label=kind=a", "status=running"], &["up"]);
    check(&["name=e"], &["made", "three"]);
    check(&["name=^/?up$"], &["up"]);
    check(&[&format!("id={}", &id[..12])], &["up"]);
    check(&["ancestor=busybox"], &["made", "three", "up"]);
    check(&["ancestor=nosuch"], &[]);
    check(&["before=three"], &["up"]);
    check(&["since=three"], &["made"]);
    check(&["network=none"], &["made", "three", "up"]);
}

#[test]
fn filters_apply_to_running_containers_without_all() {
    let engine = Engine::start();
    let start = |name: &str, body: Value| {
        engine.create(name, &body);
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{name}/start"), None)
                .0,
            204,
            "{name}"
        );
    };
    let none = json!({"NetworkMode": "none"});
    start(
        "ended",
        json!({"Image": "busybox", "Cmd": ["sh", "-c", "exit 3"], "HostConfig": none}),
    );
    start(
        "alone",
        json!({"Image": "busybox", "Cmd": ["sleep", "600"], "ExposedPorts": {"91/tcp": {}}, "HostConfig": none}),
    );
    let bindings =
        json!({"80/tcp": [{"HostIp": "127.0.0.1"}], "53/udp": [{"HostIp": "127.0.0.1"}]});
    start(
        "served",
        json!({"Image": "busybox", "Cmd": ["sleep", "600"], "ExposedPorts": {"91/tcp": {}}, "HostConfig": {"PortBindings": bindings}}),
    );
    engine.create(
        "made",
        &json!({"Image": "busybox", "ExposedPorts": {"91/tcp": {}}, "HostConfig": none}),
    );
    engine.await_state("ended", "exited");
    let ports = engine.inspect("served")["NetworkSettings"]["Ports"].clone();
    let host = |port: &str| {
        ports[port][0]["HostPort"]
            .as_str()
            .unwrap()
            .parse::<u16>()
            .unwrap()
    };
    let (tcp, udp) = (host("80/tcp"), host("53/udp"));
    let list = |all: bool, filters: Value| {
        let (status, answer) = engine.api(
            "GET",
            &format!(
                "/containers/json?all={}&filters={}",
                u8::from(all),
                escape(&filters.to_string())
            ),
            None,
        );
        assert_eq!(status, 200, "{filters}: {answer}");
        let mut names: Vec<String> = answer
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                one["Names"][0]
                    .as_str()
                    .unwrap()
                    .trim_start_matches('/')
                    .to_owned()
            })
            .collect();
        names.sort_unstable();
        names.join(" ")
    };
    for (filters, running, all) in [
        (
            json!({"before": ["made"]}),
            "alone served",
            "alone ended served",
        ),
        (
            json!({"since": ["ended"]}),
            "alone served",
            "alone made served",
        ),
        (json!({"exited": ["3"]}), "", "ended"),
        (json!({"status": ["exited"]}), "ended", "ended"),
        (json!({"name": ["["]}), "", ""),
    ] {
        assert_eq!(
            (
                list(false, filters.clone()).as_str(),
                list(true, filters.clone()).as_str()
            ),
            (running, all),
            "{filters}"
        );
    }
    for (filters, expected) in [
        (json!({"publish": [tcp.to_string()]}), "served"),
        (json!({"publish": [format!("{tcp}/udp")]}), ""),
        (json!({"publish": [format!("{udp}/udp")]}), "served"),
        (
            json!({"publish": [format!("{}-{}", tcp - 1, tcp)]}),
            "served",
        ),
        (json!({"publish": ["80"]}), ""),
        (json!({"expose": ["80"]}), "served"),
        (json!({"expose": ["50-60/udp"]}), "served"),
        (json!({"expose": ["90-92"]}), "served"),
        (json!({"expose": ["90-92/udp"]}), ""),
        (json!({"publish": ["1"], "expose": ["91"]}), "served"),
    ] {
        assert_eq!(list(true, filters.clone()), expected, "{filters}");
    }
    for (value, text) in [
        (
            "abc",
            "error while looking up for publish abc: strconv.ParseUint: parsing \"abc\": invalid syntax",
        ),
        (
            "5-1",
            "error while looking up for publish 5-1: Invalid range specified for the Port: 5-1",
        ),
        (
            "70000",
            "error while looking up for publish 70000: strconv.ParseUint: parsing \"70000\": value out of range",
        ),
        (
            "80:80",
            "filter for 'publish' should not contain ':': 80:80",
        ),
    ] {
        let filters = escape(&json!({"publish": [value]}).to_string());
        let (status, answer) =
            engine.api("GET", &format!("/containers/json?filters={filters}"), None);
        assert_eq!((status, answer["message"].as_str()), (400, Some(text)));
    }
    // A container without a network has no ports.
    for program in [whelk_tests::Program::Docker, whelk_tests::Program::Whelk] {
        let shown =
            engine
                .cli(program)
                .run(&["ps", "--filter", "name=alone", "--format", "[{{.Ports}}]"]);
        assert_eq!(shown.ok(), "[]", "{program:?}");
    }
    assert_eq!(
        engine.inspect("alone")["NetworkSettings"]["Ports"],
        json!({})
    );
}

#[test]
fn failures_do_not_stop_commands_with_several_names() {
    Engine::start().both(|cli| {
        for name in ["first", "second"] {
            cli.run(&[
                "create",
                "--network",
                "none",
                "--name",
                name,
                "busybox",
                "sleep",
                "600",
            ])
            .ok();
        }
        let output = cli.run(&["start", "first", "nosuch", "second"]);
        output.exits(1);
        assert_eq!(output.out(), "first\nsecond\n");
        assert!(
            output.err().contains("No such container: nosuch")
                && output
                    .err()
                    .contains("Error: failed to start containers: nosuch"),
            "{}",
            output.err()
        );
        let output = cli.run(&["stop", "-t", "0", "first", "nosuch", "second"]);
        assert_eq!((output.code, output.out().as_str()), (1, "first\nsecond\n"));
        let output = cli.run(&["rm", "first", "nosuch", "second"]);
        assert_eq!((output.code, output.out().as_str()), (1, "first\nsecond\n"));
        eventually("nothing is left", || {
            cli.run(&["ps", "-aq"]).ok().is_empty().then_some(())
        });
    });
}

#[test]
fn inspect_takes_templates_and_prints_json() {
    Engine::start().both(|cli| {
        let id = cli.up("seen", &["-e", "A=b", "--label", "k=v"], &["sleep", "600"]);
        let format = |template: &str| cli.run(&["inspect", "-f", template, "seen"]).ok();
        assert_eq!(format("{{.Name}} {{.State.Status}} {{.RestartCount}} {{.HostConfig.Memory}}"), "/seen running 0 0");
        assert_eq!(
            format("{{json .Config.Cmd}} {{.Config.Cmd}} {{index .Config.Cmd 0}} {{len .Config.Cmd}}"),
            "[\"sleep\",\"600\"] [sleep 600] sleep 2"
        );
        assert_eq!(
            format("{{join .Config.Cmd \",\"}} {{if .State.Running}}up{{else}}down{{end}} {{printf \"%q\" .Name}}"),
            "sleep,600 up \"/seen\""
        );
        assert!(format("{{range .Config.Env}}[{{.}}]{{end}}").starts_with("[A=b][PATH="));
        assert_eq!(format("{{index .Config.Labels \"k\"}}"), "v");
        let all: serde_json::Value = serde_json::from_str(&cli.run(&["inspect", "seen"]).ok()).unwrap();
        assert_eq!((all[0]["Id"].as_str(), all.as_array().map(Vec::len)), (Some(id.as_str()), Some(1)));
        cli.run(&["inspect", "-f", "{{.Nosuch}}", "seen"])
            .refuses(1, "template parsing error: template: :1:2: executing \"\" at <.Nosuch>: map has no entry for key \"Nosuch\"");
        cli.run(&["inspect", "-f", "{{", "seen"]).refuses(64, "template parsing error: template: :1: unclosed action");
        let output = cli.run(&["inspect", "nosuch"]);
        output.refuses(1, "Error: No such object: nosuch");
        assert_eq!(output.out(), "[]\n");
    });
}
