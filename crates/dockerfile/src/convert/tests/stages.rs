//! Stages: names of steps, which are needed, and what they inherit.

use super::*;

#[test]
fn steps_have_buildkits_names() {
    let text = "FROM alpine\nWORKDIR /app\nCOPY . .\nRUN make\nCMD [\"x\"]\n";
    let done = run(text, &options());
    assert_eq!(
        done.names(),
        [
            format!("[1/4] FROM docker.io/library/alpine:latest@{DIGEST}").as_str(),
            "[2/4] WORKDIR /app",
            "[3/4] COPY . .",
            "[4/4] RUN make",
            "[internal] load build context",
        ]
    );
    let asked: Vec<&str> = done
        .requests
        .iter()
        .map(|request| match request {
            Request::Image { name, .. }
            | Request::Ignore { name, .. }
            | Request::Time { name, .. } => name.as_str(),
        })
        .collect();
    assert_eq!(
        asked,
        ["[internal] load metadata for docker.io/library/alpine:latest"]
    );
    // The result is the last step that makes a layer.
    let result = done.graph.result.map(|edge| edge.node).unwrap_or_default();
    assert_eq!(name(&done.graph.nodes[result]), "[4/4] RUN make");
    let source = done
        .graph
        .source
        .as_ref()
        .unwrap_or_else(|| panic!("no source"));
    assert_eq!(source.infos[0].filename, "Dockerfile");
    let digest = done.node("RUN").digest.to_string();
    let line = source.locations[&digest].locations[0].ranges[0].start;
    assert_eq!(line.map(|position| position.line), Some(4));
}

#[test]
fn only_needed_stages_are_converted() {
    let text = "FROM a AS one\nRUN 1\nFROM b AS two\nRUN 2\nFROM c AS three\nCOPY --from=one /x /y\n\
                RUN --mount=from=image,target=/m 3\nFROM two\nRUN 4\n";
    let target = |target: &str| Options {
        target: target.into(),
        ..options()
    };
    let names = |name: &str| -> Vec<String> {
        let names = run(text, &target(name)).names().into_iter();
        names
            .map(|name| name.split('@').next().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(
        names("Three"),
        [
            "FROM docker.io/library/image:latest",
            "[one 1/2] FROM docker.io/library/a:latest",
            "[one 2/2] RUN 1",
            "[three 1/3] FROM docker.io/library/c:latest",
            "[three 2/3] COPY --from=one /x /y",
            "[three 3/3] RUN --mount=from=image,target=/m 3",
        ]
    );
    assert_eq!(
        names(""),
        [
            "[stage-3 1/1] RUN 4",
            "[two 1/2] FROM docker.io/library/b:latest",
            "[two 2/2] RUN 2",
        ]
    );
    assert_eq!(
        failure(text, &target("thre")).to_string(),
        "target stage \"thre\" could not be found (did you mean three?)"
    );
}

#[test]
fn arguments_have_their_scopes() {
    let text = "ARG V=1\nARG TAG=$V.2\nFROM base:$TAG AS a\nARG V\nARG W=${V}w\nENV a=1 b=$a V=e\nENV a=2 b=$a$V\n\
                FROM a\nARG X=$W\nRUN echo $X ${Y:-y}\n";
    let done = run(text, &options());
    let exec = done.exec("RUN");
    let meta = exec.meta.clone().unwrap_or_default();
    let (id, _) = done.source("FROM");
    assert!(
        id.starts_with("docker-image://docker.io/library/base:1.2@"),
        "{id}"
    );
    assert_eq!(meta.args, ["/bin/sh", "-c", "echo $X ${Y:-y}"]);
    // Arguments are inherited; variables of the image win over arguments, and see the values before their line.
    assert_eq!(
        meta.env,
        ["W=1w", "PATH=/bin", "a=2", "b=1e", "V=e", "X=1w"]
    );
    assert_eq!(name(done.node("RUN")), "[stage-1 1/1] RUN echo 1w ${Y:-y}");
    assert_eq!(
        done.conversion.image.config.env,
        ["PATH=/bin", "a=2", "b=1e", "V=e"]
    );
    let given = Options {
        build_args: build_args(&[("V", "7"), ("X", "x"), ("unused", "u")]),
        ..options()
    };
    let done = run(text, &given);
    assert!(done.source("FROM").0.contains("base:7.2@"));
    let last = done.history().pop().unwrap_or_default();
    assert_eq!(
        last,
        (
            "RUN |3 V=e W=7w X=x /bin/sh -c echo $X ${Y:-y} # buildkit",
            false
        )
    );
}

#[test]
fn platforms_and_stages_are_predefined() {
    let text = "FROM --platform=$BUILDPLATFORM a AS build\nARG TARGETPLATFORM\nARG TARGETARCH\nARG BUILDARCH\nARG TARGETSTAGE\n\
                RUN x\nFROM scratch\nCOPY --from=build /x /\n";
    let done = run(
        text,
        &Options {
            platform: Some(Platform::new("linux", "arm64", "")),
            multi_platform: true,
            ..options()
        },
    );
    let exec = done.exec("RUN");
    assert_eq!(
        exec.meta.clone().unwrap_or_default().env[1..],
        [
            "TARGETPLATFORM=linux/arm64",
            "TARGETARCH=arm64",
            "BUILDARCH=amd64",
            "TARGETSTAGE=default"
        ]
    );
    assert_eq!(
        name(done.node("RUN")),
        "[linux/amd64->arm64 build 2/2] RUN x"
    );
    let platform = shape(done.node("RUN")).platform;
    assert_eq!(platform, Some(Platform::new("linux", "amd64", "")));
    assert_eq!(done.conversion.image.architecture, "arm64");
    assert!(
        done.names()[0].starts_with("[linux/amd64 build 1/2] FROM"),
        "{:?}",
        done.names()
    );
    assert!(matches!(
        &done.requests[0],
        Request::Image { name, .. } if name == "[linux/amd64 internal] load metadata for docker.io/library/a:latest"
    ));
}

#[test]
fn triggers_of_base_images_are_steps() {
    let images = Images::from([(
        "docker.io/library/parent:latest",
        r#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["ENV A=1","COPY --from=tools /t /t","RUN echo $A"]},
            "rootfs":{"type":"layers","diff_ids":["sha256:1"]}}"#,
    )]);
    let text = "FROM parent AS first\nRUN after\nONBUILD RUN later\nFROM first\n";
    let done = run_with(text, &options(), &images).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<String> = done
        .names()
        .into_iter()
        .filter(|name| name.starts_with('[') && !name.contains("FROM"))
        .collect();
    assert_eq!(
        names,
        [
            "[first 2/5] ONBUILD COPY --from=tools /t /t",
            "[first 3/5] ONBUILD RUN echo 1",
            "[first 4/5] RUN after",
            "[stage-1 1/1] ONBUILD RUN later",
        ]
    );
    assert_eq!(done.requests.len(), 2);
    assert!(done.conversion.image.config.on_build.is_empty());
    assert!(done.conversion.image.config.env.contains(&"A=1".to_owned()));
}

#[test]
fn images_that_are_only_read_from_have_no_triggers() {
    let images = Images::from([(
        "docker.io/library/tools:latest",
        r#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["COPY --from=tools /t /t"]},
            "rootfs":{"type":"layers","diff_ids":["sha256:1"]}}"#,
    )]);
    let text = "FROM tools\nCOPY --from=tools /x /x\n";
    let done = run_with(text, &options(), &images).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(done.copies("ONBUILD COPY").len(), 1);
    assert_eq!(done.requests.len(), 1);
}

#[test]
fn named_contexts_replace_images_and_stages() {
    let text = "FROM alpine AS base\nRUN x\nFROM base\nCOPY --from=dir a b/c /\nRUN --mount=from=other,target=/o y\n";
    let contexts = [
        ("alpine", "docker-image://debian:12"),
        ("dir", "local:dir"),
        ("other", "https://host/x.git#main"),
    ];
    let options = Options {
        contexts: build_args(&contexts),
        shared_keys: build_args(&[("dir", "key")]),
        ..options()
    };
    let done = run(text, &options);
    let (id, _) = done.source("[context alpine] debian:12");
    assert_eq!(id, "docker-image://docker.io/library/debian:12");
    let (id, attrs) = done.source("[context dir] load from client");
    assert_eq!(id, "local://dir");
    assert_eq!(attrs["local.followpaths"], r#"["a","b/c"]"#);
    assert_eq!(attrs["local.excludepatterns"], r#"["*.log"]"#);
    assert_eq!(attrs["local.sharedkeyhint"], "context:dir-key");
    assert_eq!(attrs["local.session"], "s");
    let (id, _) = done.source("load git source");
    assert_eq!(id, "git://host/x.git#main");
    // One for the platform is preferred.
    let contexts = [
        ("alpine", "docker-image://debian:12"),
        ("alpine::linux/amd64", "docker-image://debian:13"),
    ];
    let options = Options {
        contexts: build_args(&contexts),
        ..super::options()
    };
    let done = run("FROM alpine\nRUN x\n", &options);
    let (id, _) = done.source("debian:13");
    assert_eq!(id, "docker-image://docker.io/library/debian:13");
    let done = run("FROM --platform=linux/arm64 alpine\nRUN x\n", &options);
    let (id, _) = done.source("debian:12");
    assert_eq!(id, "docker-image://docker.io/library/debian:12");
    // A stage of this name is not built.
    let input = ContextInput {
        graph: run("FROM scratch\nCOPY x /\n", &super::options()).graph,
        config: Some(DEFAULT.into()),
    };
    let options = Options {
        contexts: build_args(&[("base", "input:0")]),
        inputs: BTreeMap::from([("0".to_owned(), input)]),
        ..super::options()
    };
    let done = run("FROM alpine AS base\nRUN x\nFROM base\nRUN y\n", &options);
    assert_eq!(
        done.names(),
        [
            "[1/1] COPY x /",
            "[internal] load build context",
            "[stage-1 1/1] RUN y"
        ]
    );
}

#[test]
fn of_a_directory_that_replaces_a_stage_only_what_is_needed_is_read() {
    let text = "FROM scratch AS dir\nCOPY x /\nFROM scratch AS some\nCOPY --from=dir a /\n\
        FROM dir AS all\nRUN y\nFROM all\nRUN z\n";
    for (target, expected) in [("some", Some(r#"["a"]"#)), ("all", None), ("", None)] {
        let options = Options {
            contexts: build_args(&[("dir", "local:dir")]),
            target: target.into(),
            ..options()
        };
        let done = run(text, &options);
        let (_, attrs) = done.source("[context dir] load from client");
        let paths = attrs.get("local.followpaths").map(String::as_str);
        assert_eq!(paths, expected, "{target}");
        let image = &done.conversion.image;
        let platform = (image.os.as_str(), image.architecture.as_str());
        assert_eq!(platform, ("linux", "amd64"), "{target}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn errors_have_buildkits_texts_and_lines() {
    for (text, expected, line) in [
        ("", "the Dockerfile cannot be empty", 0),
        ("ARG A", "dockerfile contains no stages to build", 0),
        ("FROM $A", "base name ($A) should not be blank", 1),
        (
            "FROM Alpine",
            "failed to parse stage name \"Alpine\": invalid reference format",
            1,
        ),
        ("FROM a\nFROM missing", "missing: not found", 2),
        ("FROM a\nCOPY --from=missing x /", "missing: not found", 2),
        (
            "FROM a\n\nRUN --mount=from=missing,target=/m x",
            "missing: not found",
            3,
        ),
        (
            "FROM a AS base\nFROM missing:base",
            "missing:base: not found",
            2,
        ),
        (
            "FROM a AS b\nCOPY --from=b x y",
            "circular dependency detected on stage: b",
            2,
        ),
        (
            "FROM a AS b\nCOPY --from=c x y\nFROM a AS c\nCOPY --from=b x y",
            "circular dependency detected on stage: b",
            2,
        ),
        (
            "FROM a\nCOPY --from=b x y\nFROM c AS b\nFROM a\nCOPY --from=0 x y",
            "cannot copy from stage \"b\", it needs to be defined before current stage \"stage-0\"",
            2,
        ),
        ("FROM a\nCOPY --from=7 x y", "invalid stage index 7", 2),
        (
            "FROM a\nCOPY --from=$X x y",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            2,
        ),
        (
            "FROM --platform=x/y/z/w a",
            "failed to parse platform x/y/z/w: \"x/y/z/w\": cannot parse platform specifier: invalid argument",
            1,
        ),
        (
            "FROM --platform=$TARGETPLATFROM a",
            "empty platform value from expression $TARGETPLATFROM (did you mean TARGETPLATFORM?)",
            1,
        ),
        (
            "FROM a\nCOPY https://x/y /",
            "source can't be a URL for COPY",
            2,
        ),
        (
            "FROM a\nCOPY git@host:x /",
            "source can't be a git ref for COPY",
            2,
        ),
        (
            "FROM a\nADD --checksum=sha256:x a /",
            "checksum requires HTTP(S) or Git sources",
            2,
        ),
        (
            "FROM a\nCOPY --chmod=99999 a /",
            "invalid chmod parameter: '99999'. it should be octal string and between 0 and 07777",
            2,
        ),
        ("FROM a\nCOPY --chmod=u~x a /", "invalid syntax", 2),
        (
            "FROM a\nRUN --mount=target=/ x",
            "invalid mount target \"/\"",
            2,
        ),
        (
            "FROM a\nRUN --mount=type=ssh,src=a x",
            "ssh does not support source",
            2,
        ),
        ("FROM a\nEXPOSE x", "invalid containerPort: x", 2),
        (
            "FROM a\nENV A=${B:?needed}",
            "failed to process \"${B:?needed}\": B: needed",
            2,
        ),
    ] {
        let error = failure(text, &options());
        assert_eq!(error.to_string(), expected, "{text}");
        let found = error.lines.first().map_or(0, |lines| lines.first);
        assert_eq!(found, line, "{text}");
    }
}

#[test]
fn many_stages_take_little_time() {
    let mut text = String::new();
    for number in 0..10_000 {
        text += &format!("FROM scratch AS s{number}\nCOPY x{number} /\n");
    }
    text += "FROM scratch\n";
    for number in 0..10_000 {
        text += &format!("COPY --from=s{number} / /{number}\n");
    }
    let done = run(&text, &options());
    assert_eq!(done.graph.nodes.len(), 20_001);
    let mut text = String::from("FROM scratch\n");
    for number in 0..20_000 {
        text += &format!("ENV A{number}=x\n");
    }
    let env = run(&text, &options()).conversion.image.config.env;
    assert_eq!(env.len(), 20_001);
    // Each stage has a copy of what the ones before it have set.
    let mut text = String::from("FROM scratch AS s0\n");
    for number in 1..10_000 {
        text += &format!("FROM s{} AS s{number}\nENV A{number}=x\n", number - 1);
    }
    let error = failure(&text, &options()).to_string();
    assert!(error.contains("the stages copy more than"), "{error}");
}

#[test]
fn policies_replace_images_by_directories() {
    let text = "FROM scratch AS base\nFROM scratch\nCOPY --from=base /a /\n";
    let options = Options {
        contexts: build_args(&[("base", "docker-image://replaced:1")]),
        ..options()
    };
    let done = run(text, &options);
    let (id, attrs) = done.source("[context base] load from client");
    assert_eq!(id, "local://dir");
    assert_eq!(attrs["local.followpaths"], r#"["a"]"#);
    let endless = Options {
        contexts: build_args(&[("base", "docker-image://endless")]),
        ..self::options()
    };
    let error = failure(text, &endless).to_string();
    assert!(
        error.contains("ref mutated by policy to non-image"),
        "{error}"
    );
    let error = failure("FROM replaced:1\n", &self::options());
    assert_eq!(
        error.to_string(),
        "replaced:1: ref mutated by policy to non-image: docker-image://docker.io/library/replaced:1 -> local://dir"
    );
    assert_eq!(error.lines.len(), 1);
}
