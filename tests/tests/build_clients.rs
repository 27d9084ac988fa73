//! Builds of other clients than today's docker CLI: older plugins, compose, and those that generate Dockerfiles.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use whelk_tests::builds::{BUILDKIT, docker, old_plugins, shows};
use whelk_tests::registry::Registry;
use whelk_tests::{Cli, Engine, Program};

/// A directory of the docker CLI's settings with these plugins.
fn settings(engine: &Engine, plugins: &Path) -> PathBuf {
    let config = engine.scratch("settings");
    let text = json!({"cliPluginsExtraDirs": [plugins]}).to_string();
    fs::write(config.join("config.json"), text).unwrap();
    config
}

const COMPOSE: &str = "services:
  base:
    build: {context: ., dockerfile: base.Dockerfile, args: {WHAT: composed}}
    image: base
    network_mode: none
    command: 'true'
  app:
    build:
      context: .
      additional_contexts: [more=more]
      dockerfile_inline: |
        FROM base
        COPY --from=more file /file
        RUN --mount=type=secret,id=key cat /run/secrets/key /made /file > /all
      secrets: [key]
      labels: [made-by=compose]
    image: app
    network_mode: none
    command: cat /all
    depends_on: [base]
secrets: {key: {file: key}}
";

/// Builds with compose, and again, changed, when it starts the containers.
fn compose(cli: Cli<'_>, directory: &Path) {
    let file = directory.join("compose.yaml");
    let compose = |args: &[&str]| {
        let begin = [
            "compose",
            "-f",
            file.to_str().unwrap(),
            "--project-name",
            "p",
        ];
        cli.run(&[&begin, args].concat())
    };
    let engine = cli.engine();
    // What stands on an image of the same project is built after it.
    compose(&["build", "base"]).ok();
    compose(&["build"]).ok();
    let look = ["run", "--rm", "--network", "none", "app", "cat", "/all"];
    assert_eq!(engine.docker(&look).ok(), "hidden\ncomposed\nmore");
    assert_eq!(
        engine.image("app")["Config"]["Labels"]["made-by"],
        "compose"
    );
    fs::write(directory.join("more/file"), "other\n").unwrap();
    compose(&["up", "--build"]).ok();
    // `up` itself may end before it has read all output.
    let logs = compose(&["logs"]).exits(0);
    shows(&logs, &["hidden", "composed", "other"]);
    compose(&["down", "--rmi", "all"]).ok();
    assert_ne!(engine.docker(&["image", "inspect", "app"]).code, 0);
}

fn project(engine: &Engine, name: &str) -> PathBuf {
    let files = [
        ("compose.yaml", COMPOSE),
        (
            "base.Dockerfile",
            "FROM busybox\nARG WHAT\nRUN echo $WHAT > /made\n",
        ),
        ("more/file", "more\n"),
        ("key", "hidden\n"),
    ];
    engine.scratch_with(name, &files)
}

#[test]
fn compose_builds_what_it_starts() {
    let engine = Engine::start();
    compose(docker(&engine), &project(&engine, "compose"));
}

#[test]
fn docker_py_builds() {
    whelk_tests::docker_py::builds(&Engine::start());
}

#[test]
fn older_plugins_build() {
    let engine = Engine::start();
    let config = settings(&engine, &old_plugins());
    let env = [BUILDKIT, &[("DOCKER_CONFIG", config.to_str().unwrap())]].concat();
    let cli = engine.cli(Program::Docker).with_env(&env);
    shows(&cli.run(&["buildx", "version"]).ok(), &[" 0.13."]);
    shows(&cli.run(&["compose", "version"]).ok(), &[" 2.26."]);
    compose(cli, &project(&engine, "compose"));
    let bake = "variable \"TAG\" { default = \"one\" }\n\
        group \"default\" { targets = [\"top\"] }\n\
        target \"base\" {\n dockerfile-inline = \"FROM busybox\\nRUN echo base > /base\"\n}\n\
        target \"top\" {\n dockerfile-inline = \"FROM base\\nRUN cp /base /top\"\n contexts = { base = \"target:base\" }\n tags = [\"top:${TAG}\"]\n}\n";
    let directory = engine.scratch_with("bake", &[("bake.hcl", bake)]);
    let file = directory.join("bake.hcl");
    cli.run(&["buildx", "bake", "-f", file.to_str().unwrap()])
        .ok();
    assert_eq!(
        engine
            .docker(&["run", "--rm", "top:one", "cat", "/top"])
            .ok(),
        "base"
    );
    let dockerfile =
        "FROM busybox\nARG WHAT\nRUN --mount=type=cache,target=/c echo $WHAT > /made\nCOPY x /x\n";
    let context = engine.scratch_with("plain", &[("Dockerfile", dockerfile), ("x", "1")]);
    let out = engine.scratch("out");
    let archive = out.join("image.tar").display().to_string();
    let archive = format!("type=oci,dest={archive}");
    let files = out.join("files").display().to_string();
    let argument = ["--build-arg", "WHAT=this"];
    for output in [
        &["-t", "plain"][..],
        &["-o", &files],
        &["-o", &archive],
        &["--load", "-t", "other"],
    ] {
        cli.built(&context, &[&argument, output].concat());
    }
    assert_eq!(
        engine
            .docker(&["run", "--rm", "plain", "cat", "/made", "/x"])
            .ok(),
        "this\n1"
    );
    assert_eq!(
        fs::read_to_string(out.join("files/made")).unwrap(),
        "this\n"
    );
    let failing = engine.dockerfile("failing", "FROM busybox\nRUN exit 7\n");
    cli.build_fails(&failing, &[], &["exit code: 7", ">>> RUN exit 7"]);
    // It talks to registries itself.
    let registry = Registry::start();
    let [one, two] = ["one", "two"].map(|tag| format!("{}/app:{tag}", registry.host));
    cli.built(&context, &["--push", "-t", &one]);
    let imagetools = |args: &[&str]| cli.run(&[&["buildx", "imagetools"], args].concat()).ok();
    imagetools(&["create", "-t", &two, &one]);
    let inspected = [&one, &two].map(|name| imagetools(&["inspect", "--raw", name]));
    shows(&inspected[0], &["\"layers\"", "+gzip"]);
    shows(&inspected[1], &["\"manifests\"", "\"platform\""]);
    let records = || {
        let listed = cli.run(&["buildx", "du", "--verbose"]).ok();
        shows(&listed, &["Total:"]);
        listed.matches("RUN ").count()
    };
    assert!(records() > 0);
    shows(&cli.run(&["buildx", "ls"]).ok(), &["running"]);
    cli.run(&["buildx", "prune", "-af"]).ok();
    assert_eq!(records(), 0);
}

/// As the tools of development containers make it of a user's Dockerfile and of features, which come as a named context.
const GENERATED: &str = r#"# syntax=docker/dockerfile:1.4
ARG _DEV_CONTAINERS_BASE_IMAGE=placeholder

FROM busybox AS dev_container_auto_added_stage_label
RUN echo vscode:x:1000:1000::/home/vscode:/bin/sh >> /etc/passwd && echo vscode:x:1000: >> /etc/group \
 && mkdir -p /home/vscode && chown 1000:1000 /home/vscode && echo of-the-user > /user

FROM ${_DEV_CONTAINERS_BASE_IMAGE} AS dev_containers_feature_content_normalize
USER root
COPY --from=dev_containers_feature_content_source ./devcontainer-features.builtin.env /tmp/build-features/
RUN chmod -R 0755 /tmp/build-features/

FROM $_DEV_CONTAINERS_BASE_IMAGE AS dev_containers_target_stage

USER root

RUN mkdir -p /tmp/dev-container-features
COPY --from=dev_containers_feature_content_normalize /tmp/build-features/ /tmp/dev-container-features

RUN \
echo "_CONTAINER_USER_HOME=$( (command -v getent >/dev/null 2>&1 && getent passwd 'root' || grep -E '^root|^[^:]*:[^:]*:root:' /etc/passwd || true) | cut -d: -f6)" >> /tmp/dev-container-features/devcontainer-features.builtin.env && \
echo "_REMOTE_USER_HOME=$( (command -v getent >/dev/null 2>&1 && getent passwd 'vscode' || grep -E '^vscode|^[^:]*:[^:]*:vscode:' /etc/passwd || true) | cut -d: -f6)" >> /tmp/dev-container-features/devcontainer-features.builtin.env


RUN --mount=type=bind,from=dev_containers_feature_content_source,source=tool_0,target=/tmp/build-features-src/tool_0 \
    cp -ar /tmp/build-features-src/tool_0 /tmp/dev-container-features \
 && chmod -R 0755 /tmp/dev-container-features/tool_0 \
 && cd /tmp/dev-container-features/tool_0 \
 && chmod +x ./devcontainer-features-install.sh \
 && ./devcontainer-features-install.sh \
 && rm -rf /tmp/dev-container-features/tool_0


ARG _DEV_CONTAINERS_IMAGE_USER=root
USER $_DEV_CONTAINERS_IMAGE_USER
"#;

/// What changes the ids of the user to those of the developer.
const IDS: &str = r#"ARG BASE_IMAGE
FROM $BASE_IMAGE

USER root

ARG REMOTE_USER
ARG NEW_UID
ARG NEW_GID
SHELL ["/bin/sh", "-c"]
RUN eval $(sed -n "s/${REMOTE_USER}:[^:]*:\([^:]*\):\([^:]*\):[^:]*:\([^:]*\).*/OLD_UID=\1;OLD_GID=\2;HOME_FOLDER=\3/p" /etc/passwd); \
	eval $(sed -n "s/\([^:]*\):[^:]*:${NEW_UID}:.*/EXISTING_USER=\1/p" /etc/passwd); \
	if [ -z "$OLD_UID" ]; then \
		echo "Remote user not found in /etc/passwd ($REMOTE_USER)."; \
	elif [ "$OLD_UID" = "$NEW_UID" -a "$OLD_GID" = "$NEW_GID" ]; then \
		echo "UIDs and GIDs are the same ($NEW_UID:$NEW_GID)."; \
	else \
		echo "Updating UID:GID from $OLD_UID:$OLD_GID to $NEW_UID:$NEW_GID."; \
		sed -i -e "s/\(${REMOTE_USER}:[^:]*:\)[^:]*:[^:]*/\1${NEW_UID}:${NEW_GID}/" /etc/passwd; \
		chown -R $NEW_UID:$NEW_GID $HOME_FOLDER; \
	fi;

ARG IMAGE_USER
USER $IMAGE_USER
"#;

#[test]
fn development_containers_are_built() {
    let engine = Engine::start();
    let install = "#!/bin/sh\nset -e\n. ../devcontainer-features.builtin.env\necho $_REMOTE_USER_HOME $OPTION > /installed\n";
    let label = "[ \\\n{\\\"id\\\":\\\"./tool\\\"}, \\\n{\\\"remoteUser\\\":\\\"vscode\\\",\\\"settings\\\":{\\\"a\\\":\\\"\\$b\\\"}} \\\n]";
    let dockerfile = format!("{GENERATED}\nLABEL devcontainer.metadata=\"{label}\"\n");
    let files = [
        ("features/Dockerfile-with-features", &*dockerfile),
        (
            "features/content/devcontainer-features.builtin.env",
            "OPTION=chosen\n",
        ),
        (
            "features/content/tool_0/devcontainer-features-install.sh",
            install,
        ),
        ("project/unrelated", ""),
        ("ids/Dockerfile", IDS),
    ];
    let place = engine.scratch_with("dev", &files);
    let content = format!(
        "dev_containers_feature_content_source={}",
        place.join("features/content").display()
    );
    let file = place.join("features/Dockerfile-with-features");
    let args = [
        "buildx",
        "build",
        "--load",
        "--build-context",
        &content,
        "--build-arg",
        "_DEV_CONTAINERS_BASE_IMAGE=dev_container_auto_added_stage_label",
        "--build-arg",
        "_DEV_CONTAINERS_IMAGE_USER=vscode",
        "--build-arg",
        "_DEV_CONTAINERS_FEATURE_CONTENT_SOURCE=dev_container_feature_content_temp",
        "--build-arg",
        "BUILDKIT_INLINE_CACHE=1",
        "--target",
        "dev_containers_target_stage",
        "-f",
        file.to_str().unwrap(),
        "-t",
        "vsc-project",
        place.join("project").to_str().unwrap(),
    ]
    .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    docker(&engine).run(&args).ok();
    let image = engine.image("vsc-project");
    assert_eq!(image["Config"]["User"], "vscode");
    let metadata = image["Config"]["Labels"]["devcontainer.metadata"]
        .as_str()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap();
    assert_eq!(metadata[1]["settings"]["a"], "$b");
    let look = [
        "run",
        "--rm",
        "vsc-project",
        "sh",
        "-c",
        "cat /user /installed; ls /tmp/dev-container-features",
    ];
    assert_eq!(
        engine.docker(&look).ok(),
        "of-the-user\n/home/vscode chosen\ndevcontainer-features.builtin.env"
    );
    // Its second build is of the first one's image; both ways of building do it.
    for cli in [docker(&engine), engine.cli(Program::Docker)] {
        let args = [
            "--build-arg",
            "BASE_IMAGE=vsc-project",
            "--build-arg",
            "REMOTE_USER=vscode",
            "--build-arg",
            "NEW_UID=1234",
            "--build-arg",
            "NEW_GID=1235",
            "--build-arg",
            "IMAGE_USER=vscode",
            "-t",
            "vsc-project-uid",
        ];
        cli.built(place.join("ids"), &args);
        let look = [
            "run",
            "--rm",
            "vsc-project-uid",
            "sh",
            "-c",
            "id -u; id -g; stat -c %u ~",
        ];
        assert_eq!(engine.docker(&look).ok(), "1234\n1235\n1234");
    }
}
