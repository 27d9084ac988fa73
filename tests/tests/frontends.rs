//! Frontends from images: programs that turn a Dockerfile into definitions.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::json;
use whelk_tests::builds::{classic, docker, json_file, shows, whelk};
use whelk_tests::processes::{peak_memory, with_command};
use whelk_tests::{Engine, eventually, images};

struct Case {
    engine: Engine,
}

impl Case {
    fn new() -> Self {
        let engine = Engine::start();
        engine.load(&images::frontend(engine.name()));
        Self { engine }
    }

    /// Waits until no frontend runs, and nothing is left of builds.
    fn has_ended(&self) {
        eventually("the frontend to end", || {
            let found = with_command(&["/frontend", self.engine.name()]);
            found.is_none().then_some(())
        });
        self.engine.has_no_builds();
    }

    /// Makes a context whose Dockerfile names the frontend with this word.
    fn context(&self, word: &str, rest: &str) -> PathBuf {
        let text = format!("# syntax=test/front:1 {word}\n{rest}");
        self.engine.dockerfile(word, &text)
    }

    fn built(&self, word: &str, rest: &str) -> String {
        docker(&self.engine).built(self.context(word, rest), &["-t", word])
    }

    fn fails(&self, word: &str, expected: &[&str]) -> String {
        let context = self.context(word, "");
        docker(&self.engine).build_fails(context, &[], expected)
    }

    fn runs(&self, image: &str) -> String {
        self.engine
            .docker(&["run", "--rm", "--network=none", image])
            .ok()
    }
}

#[test]
fn a_frontend_defines_what_is_built() {
    let case = Case::new();
    let shown = case.built("definition", "");
    shows(
        &shown,
        &[
            "resolve image config for docker-image://docker.io/test/front:1",
            "[internal] frontend docker.io/test/front:1",
        ],
    );
    // The name of the step ends with the same words.
    let has_run = |shown: &str| {
        let mut lines = shown.lines();
        lines.any(|line| line.ends_with(" to-out") && !line.contains("echo"))
    };
    assert!(has_run(&shown), "{shown}");
    assert_eq!(case.runs("definition"), "from-frontend");
    let attachment = [
        "buildx",
        "history",
        "inspect",
        "attachment",
        "--type",
        "provenance",
    ];
    let provenance = docker(&case.engine).run(&attachment).ok();
    shows(&provenance, &["pkg:docker/test/front@1"]);
    // What it defines is cached, as for any client.
    let again = case.built("definition", "");
    assert!(!has_run(&again), "{again}");
    // With `whelk build`, by an argument, and by the attribute of a client.
    let plain = case.engine.dockerfile("plain", "FROM none\n");
    let argument = "BUILDKIT_SYNTAX=test/front:1 definition";
    for (client, tag) in [(docker(&case.engine), "one"), (whelk(&case.engine), "two")] {
        client.built(&plain, &["--build-arg", argument, "-t", tag]);
        assert_eq!(case.runs(tag), "from-frontend");
    }
    // One that does not end is killed; its result counts.
    case.built("stays", "");
    assert_eq!(case.runs("stays"), "from-frontend");
    case.has_ended();
}

#[test]
fn a_frontend_attests_what_it_returns() {
    let case = Case::new();
    case.built("attestations", "");
    assert_eq!(case.runs("attestations"), "attested");
    let image = case.engine.get("/images/attestations/json?manifests=true");
    let manifests = image["Manifests"].as_array().unwrap().iter();
    let kinds: Vec<_> = manifests.map(|one| one["Kind"].clone()).collect();
    assert_eq!(kinds, [json!("image"), json!("attestation")]);
    // As files beside the others.
    let files = case.engine.scratch("files");
    let context = case.context("attestations", "");
    docker(&case.engine).built(&context, &["-o", files.to_str().unwrap()]);
    let statement = json_file(&files.join("a.json"));
    assert_eq!(statement["predicateType"], "https://example.com/a/v1");
    assert_eq!(statement["predicate"], json!({"said": true}));
    let subjects = statement["subject"].as_array().unwrap();
    assert!(subjects.iter().any(|subject| subject["name"] == "made"));
    case.has_ended();
}

#[test]
fn a_frontend_reads_the_clients_files() {
    let case = Case::new();
    case.built("lines", "run echo one > /made\nrun echo two >> /made\n");
    assert_eq!(case.runs("lines"), "one\ntwo");
    let context = case.context("lines", "run true\nwhat\n");
    docker(&case.engine).build_fails(
        &context,
        &[],
        &[
            "the frontend does not understand the line",
            "Dockerfile:3",
            ">>> what",
        ],
    );
    let context = case.context("lines", "run echo before; exit 7\n");
    let expected = ["before", "did not complete successfully: exit code: 7"];
    docker(&case.engine).build_fails(&context, &[], &expected);
}

#[test]
fn a_frontend_calls_that_of_dockerfiles() {
    let case = Case::new();
    let shown = case.built(
        "forward",
        "FROM busybox\nRUN echo by-dockerfile > /made\nCMD cat /made\n",
    );
    shows(&shown, &["[2/2] RUN echo by-dockerfile > /made"]);
    assert_eq!(case.runs("forward"), "by-dockerfile");
    let image = case.engine.image("forward");
    assert_eq!(image["Config"]["Labels"], json!({"by": "the frontend"}));
    // It cannot change the settings that the client alone has.
    case.built("settings", "FROM busybox\nRUN true\n");
    // An error has the lines of the Dockerfile.
    let context = case.context("forward", "FROM busybox\nRUN exit 7\n");
    docker(&case.engine).build_fails(&context, &[], &["Dockerfile:3", ">>> RUN exit 7"]);
    // The images of BuildKit's own frontend are not even looked for.
    let pinned = format!("docker/dockerfile:1@sha256:{}", "0".repeat(64));
    let text = format!("# syntax={pinned}\nFROM busybox\n");
    docker(&case.engine).built(case.engine.dockerfile("pinned", &text), &[]);
    assert!(
        case.engine
            .last_words()
            .contains("the engine's own is used")
    );
}

#[test]
fn a_frontend_returns_several_platforms() {
    let case = Case::new();
    case.built("platforms", "");
    for (architecture, platform) in [("amd64", "linux/amd64"), ("386", "linux/386")] {
        let inspect = ["image", "inspect", "--platform", platform, "platforms"];
        let format = ["--format", "{{.Architecture}}"];
        let found = case.engine.docker(&[&inspect[..], &format].concat()).ok();
        assert_eq!(found, architecture);
    }
}

#[test]
fn a_frontend_has_inputs_of_other_targets() {
    let case = Case::new();
    let context = case.context("inputs", "");
    let base = "FROM busybox\nRUN echo from-base > /made\n";
    std::fs::write(context.join("base.Dockerfile"), base).unwrap();
    let text = context.to_str().unwrap();
    let bake = json!({
        "group": {"default": {"targets": ["base", "top"]}},
        "target": {
            "base": {"context": text, "dockerfile": "base.Dockerfile"},
            "top": {"context": text, "contexts": {"base": "target:base"}, "tags": ["top"]},
        },
    });
    let file = context.join("bake.json");
    std::fs::write(&file, bake.to_string()).unwrap();
    let args = [
        "buildx",
        "bake",
        "--allow",
        "fs=/",
        "-f",
        file.to_str().unwrap(),
    ];
    let shown = docker(&case.engine).run(&args).exits(0);
    shows(&shown, &["inputs: 0-base"]);
    assert_eq!(case.runs("top"), "from-base");
}

#[test]
fn a_frontend_has_the_rights_of_a_step() {
    let case = Case::new();
    let told = case.fails("tell", &["that was all", "session: true", "product: whelk"]);
    shows(&told, &["platform: \"linux\"", "exec: true"]);
    assert!(!told.contains("eth0"), "{told}");
    // As a RUN of the same engine has them.
    let status = "FROM busybox\nRUN grep -E 'CapEff|CapBnd|Seccomp:|NoNewPrivs' /proc/self/status | tr '\\t' ' '\n";
    let own = docker(&case.engine).built(case.engine.dockerfile("own", status), &[]);
    let rights = |text: &str| -> Vec<String> {
        let names = ["CapEff", "CapBnd", "Seccomp:", "NoNewPrivs"];
        let found = names.iter().filter_map(|name| {
            let line = text
                .lines()
                .find(|line| line.contains(&format!(" {name}")))?;
            Some(line[line.find(name)?..].to_owned())
        });
        found.collect()
    };
    assert_eq!(rights(&told).len(), 4, "{told}");
    assert_eq!(rights(&told), rights(&own));
    case.fails("host", &["network.host is not allowed"]);
    case.fails("cgroup", &["the cgroup parent /elsewhere of a frontend"]);
    case.fails("insecure", &["security.insecure is not allowed"]);
}

/// `whelk build` would run it, and remove it.
#[test]
fn frontends_cannot_name_the_image_of_a_failed_step() {
    let case = Case::new();
    let images = || case.engine.docker(&["images", "-q", "--no-trunc"]).ok();
    let before = images();
    let id = case
        .engine
        .docker(&["images", "-q", "--no-trunc", "busybox"])
        .ok();
    let argument = format!("IMAGE={id}");
    let context = case.context("failed", "");
    let args = ["--on-error=shell", "--build-arg", &argument];
    let expected = ["it has failed", "No shell is opened: no RUN has failed"];
    whelk(&case.engine).build_fails(context, &args, &expected);
    assert_eq!(images(), before);
    case.has_ended();
}

/// The state of a step is kept if the build fails with it.
#[test]
fn shells_are_opened_where_steps_of_frontends_have_failed() {
    let case = Case::new();
    let images = || case.engine.docker(&["images", "-aq"]).ok();
    let before = images();
    let context = case.context("lines", "run echo left > /made; exit 7\n");
    let args = ["build", "--on-error=shell", context.to_str().unwrap()];
    let output = whelk(&case.engine).feed(&args, b"cat /made\n");
    assert_eq!(output.code, 1);
    assert_eq!(output.out(), "left\n", "{}", output.err());
    let context = case.context("caught", "");
    let args = ["--on-error=shell", "-o", "type=cacheonly"];
    whelk(&case.engine).built(&context, &args);
    eventually("the images to be removed", || {
        (images() == before).then_some(())
    });
    case.has_ended();
}

#[test]
fn hostile_frontends_are_refused() {
    let case = Case::new();
    case.fails("silent", &["has ended without a result"]);
    case.fails(
        "exit",
        &[
            "the frontend gives up",
            "exit code: 3",
            "Dockerfile:1",
            ">>> # syntax=test/front:1 exit",
        ],
    );
    case.fails("garbage", &["has closed its connection and does not end"]);
    case.fails("unknown", &["no such ref: another-0"]);
    case.fails("loop", &["more than 8 frontends that call each other"]);
    // References of another frontend of the same build.
    case.fails("peek", &["no such ref"]);
    case.fails("attests-another", &["no such ref"]);
    case.fails(
        "nothing-known",
        &["the frontend does not know \"nothing-known\""],
    );
    let before = peak_memory(&case.engine);
    case.fails("large", &["is larger than"]);
    case.fails("many", &["a build has at most"]);
    case.fails("names", &["requests of more than"]);
    case.fails("imports", &["more than 16 sets of caches"]);
    let taken = peak_memory(&case.engine) - before;
    assert!(taken < 400, "{taken}");
    // Of images that cannot be had, and of those that are none of BuildKit's.
    let context = case
        .engine
        .dockerfile("none", "# syntax=localhost:1/none\nFROM busybox\n");
    docker(&case.engine).build_fails(&context, &[], &["localhost:1/none", "Dockerfile:1"]);
    let context = case
        .engine
        .dockerfile("busybox", "# syntax=busybox\nFROM busybox\n");
    docker(&case.engine).build_fails(&context, &[], &["/run"]);
    case.has_ended();
}

#[test]
fn a_frontend_ends_with_its_build() {
    let case = Case::new();
    for (word, told) in [("hang", "the frontend waits"), ("step", "the step waits")] {
        let context = case.context(word, "");
        let text = context.to_str().unwrap();
        let mut build = docker(&case.engine).spawn(&["build", text]);
        eventually("the frontend to run", || {
            build.errors_so_far().contains(told).then_some(())
        });
        build.signal(Signal::INT);
        assert_ne!(build.finish().code, 0);
        case.has_ended();
        // A killed engine leaves nothing, either.
        let mut build = docker(&case.engine).spawn(&["build", text]);
        eventually("the frontend to run", || {
            build.errors_so_far().contains(told).then_some(())
        });
        case.engine.kill9();
        assert_ne!(build.finish().code, 0);
        case.engine.restart();
        case.has_ended();
    }
}

/// The classic builder has no frontends: in Docker it does not look at the line.
#[test]
fn a_classic_build_ignores_frontends() {
    let case = Case::new();
    let text = "# syntax=test/front:1 exit\nFROM busybox\n";
    classic(&case.engine).built(case.engine.dockerfile("classic", text), &[]);
}
