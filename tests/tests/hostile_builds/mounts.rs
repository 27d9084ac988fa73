//! Mounts, and paths in images, that try to reach the host: links, `..`, and directories that are swapped meanwhile
//! (CVE-2024-23651, CVE-2024-23652, CVE-2024-1753).

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use whelk_tests::builds::{docker, shows, whelk};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, PATIENCE, eventually};

use crate::SECRET;

/// Has a directory of the host, and knows whether it is as it was.
struct Case {
    engine: Engine,
    outside: String,
}

/// What becomes of a build.
enum End {
    Built,
    /// It fails, with these words.
    Fails(&'static str),
}

use End::{Built, Fails};

impl Case {
    fn new() -> Self {
        let engine = Engine::start();
        let files = [
            ("secret", SECRET),
            ("d/secret", SECRET),
            ("passwd", "hostuser:x:4242:4242::/:/bin/sh\n"),
        ];
        let outside = engine.scratch_with("outside", &files);
        let outside = outside.to_str().unwrap().to_owned();
        Self { engine, outside }
    }

    /// The base of most cases: links to the host's directory, and others.
    fn links(&self) -> String {
        let Self { outside, .. } = self;
        format!(
            "FROM busybox AS links\nRUN ln -s {outside} /out && ln -s ../../../../../../../../..{outside} /up \
             && ln -s / /root-link && ln -s loop /loop && mkdir /in && echo inside > /in/f && ln -s in /good \
             && ln -s /proc /to-proc\n"
        )
    }

    #[track_caller]
    fn is_untouched(&self, what: &str) {
        let mut found = Vec::new();
        for (directory, prefix) in [("", ""), ("/d", "d/")] {
            for entry in fs::read_dir(format!("{}{directory}", self.outside)).unwrap() {
                let name = entry.unwrap().file_name();
                found.push(format!("{prefix}{}", name.to_str().unwrap()));
            }
        }
        found.sort();
        assert_eq!(found, ["d", "d/secret", "passwd", "secret"], "{what}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.outside), "{what}: {mounts}");
    }

    /// Builds in the classic way: `{outside}` in the Dockerfile stands for the host's directory.
    #[track_caller]
    fn build(&self, dockerfile: &str, end: &End, context: Tar) {
        let dockerfile = dockerfile.replace("{outside}", &self.outside);
        let archive = context.file("Dockerfile", &dockerfile).finish();
        let headers = [("Content-Type", "application/x-tar")];
        let path = "/build?t=hostile&networkmode=none";
        let text = self.engine.http("POST", path, &headers, &archive).text();
        assert!(!text.contains(SECRET), "{dockerfile}: {text}");
        let is_built = text.contains("Successfully built");
        match end {
            Built => assert!(is_built, "{dockerfile}: {text}"),
            Fails(words) => assert!(
                !is_built && text.contains(words) && !text.contains("internal error"),
                "{dockerfile}: {text} instead of {words}"
            ),
        }
        self.is_untouched(&dockerfile);
    }
}

#[test]
fn sources_of_mounts_stay_in_their_stage() {
    let case = Case::new();
    let links = case.links();
    for (mount, end) in [
        // Inside, links have their meaning.
        ("source=/good", Built),
        ("source=/root-link/in", Built),
        ("source=/in/../../../in", Built),
        ("source=/good/f,target=/m/f", Built),
        ("source=/out", Fails("not found")),
        ("source=/out/secret", Fails("not found")),
        ("source=/out/d", Fails("not found")),
        ("source=/up", Fails("not found")),
        ("source=/up/d/../secret", Fails("not found")),
        (
            "source=../../../../../../../..{outside}",
            Fails("not found"),
        ),
        ("source=/loop", Fails("ymbolic link")),
        ("source=/to-proc/self/root{outside}", Fails("not found")),
    ] {
        let target = if mount.contains("target") {
            ""
        } else {
            ",target=/m"
        };
        for options in ["", ",rw", ",type=cache,id=sources"] {
            // A cache is filled with a directory.
            if options.contains("cache") && mount.ends_with('f') {
                continue;
            }
            let text = format!(
                "{links}FROM busybox\nRUN --mount=from=links,{mount}{target}{options} cat /m/f; cat /m/secret /m; grep -q inside /m/f\n"
            );
            case.build(&text, &end, Tar::new());
        }
    }
}

#[test]
fn targets_of_mounts_stay_in_the_image() {
    let case = Case::new();
    let links = case.links();
    let kinds = [
        "type=cache,id=targets,target=",
        "type=tmpfs,target=",
        "from=busybox,source=/bin,target=",
        "from=busybox,source=/etc/passwd,target=",
    ];
    for (target, end) in [
        ("/out/new", Built),
        ("/out/secret", Built),
        ("/out/d", Built),
        ("/up/../up/new", Built),
        ("/root-link/new/a/b", Built),
        ("../../../../../../../..{outside}/new", Built),
        ("/good/new", Built),
        ("/good", Built),
        ("/loop/new", Fails("ymbolic link")),
        ("/", Fails("invalid mount target")),
        ("/in/..", Fails("root directory")),
    ] {
        for kind in kinds {
            let is_link = ["/good"].contains(&target) && kind.contains("passwd");
            let end = match is_link {
                // A file cannot be mounted over a directory.
                true => &Fails("mount point /good: is a directory"),
                false => &end,
            };
            let text = format!("{links}RUN --mount={kind}{target} true\n");
            case.build(&text, end, Tar::new());
        }
    }
    // Files that are made for every process.
    let etc = Tar::new()
        .symlink("etc/hosts", &format!("{}/hosts", case.outside))
        .symlink("etc/resolv.conf", &format!("{}/secret", case.outside))
        .symlink("etc/hostname", "/up/hostname");
    case.build(
        "FROM busybox\nRUN rm -rf /etc.new\nCOPY etc /etc/\nRUN cat /etc/hosts /etc/resolv.conf; echo x >> /etc/hosts; true\n",
        &Built,
        etc,
    );
    for step in ["USER hostuser\nRUN id", "COPY --chown=hostuser etc /x"] {
        let text = format!("FROM busybox\nCOPY etc /etc/\n{step}\n");
        let end = Fails("hostuser");
        case.build(
            &text,
            &end,
            Tar::new().symlink("etc/passwd", &format!("{}/passwd", case.outside)),
        );
    }
}

#[test]
fn mount_points_may_be_swapped() {
    let case = Case::new();
    // What the engine has made for a mount is not removed through a link that the step has put there.
    for (mount, script) in [
        (
            "type=tmpfs,target=/a/secret",
            "mv /a /z; rm -rf /a; ln -s {outside} /a",
        ),
        ("type=cache,target=/a/d", "mv /a /z; ln -s {outside} /a"),
        (
            "from=busybox,source=/etc/passwd,target=/a/secret",
            "mv /a /z; ln -s {outside} /a",
        ),
        (
            "type=tmpfs,target=/a/b/secret",
            "mv /a/b /a/c; ln -s {outside} /a/b",
        ),
        (
            "type=tmpfs,target=/a/b/secret",
            "umount /a/b/secret; rm -rf /a; ln -s {outside} /a",
        ),
    ] {
        let text = format!("FROM busybox\nRUN --mount={mount} {script}; true\nRUN ls -ld /a\n");
        case.build(&text, &Built, Tar::new());
    }
    // Secrets have files in the run directory of the engine.
    let text = "FROM busybox\nRUN ln -s {outside} /out\nRUN --mount=type=secret,id=key,target=/out/new cat /out/new; mv /out /z; ln -s {outside} /out\nRUN --mount=type=secret,id=key,target=/out/d/../secret cat /out/secret\nRUN --mount=type=secret,id=key,target=../../../..{outside}/new true\n";
    let text = text.replace("{outside}", &case.outside);
    let context = case.engine.scratch_with(
        "secrets",
        &[("Dockerfile", &text), ("key", "of the client")],
    );
    let key = format!("id=key,src={}", context.join("key").display());
    let shown = whelk(&case.engine).built(&context, &["--secret", &key, "--progress", "plain"]);
    shows(&shown, &["of the client"]);
    assert!(!shown.contains(SECRET), "{shown}");
    case.is_untouched("secrets");
    case.engine.has_no_builds();
}

#[test]
fn copies_stay_in_their_stage() {
    let case = Case::new();
    let links = case.links();
    let context = || {
        let archive = Tar::new().file("new", "4").finish();
        Tar::new().file("x", "x").file("x.tar", archive)
    };
    for (step, end) in [
        ("COPY --from=links /out/secret /x", Fails("not found")),
        ("COPY --from=links /up/d/secret /x", Fails("not found")),
        (
            "COPY --from=links /out /x\nRUN cat /x/secret",
            Fails("not exist"),
        ),
        (
            "COPY --from=links /out/ /x\nRUN cat /x/secret",
            Fails("not found"),
        ),
        (
            "COPY --from=links /up/* /x/\nRUN cat /x/secret",
            Fails("non-zero"),
        ),
        ("COPY --from=links /loop/x /x", Fails("ymbolic link")),
        ("COPY --from=links --parents /out/./secret /x/", Fails("")),
        (
            "COPY --from=links /../../..{outside}/secret /x",
            Fails("not found"),
        ),
    ] {
        case.build(&format!("{links}FROM busybox\n{step}\n"), &end, context());
    }
    for (step, end) in [
        ("COPY x /out/new", Built),
        ("COPY x /out/secret", Built),
        ("COPY x /out/d/", Built),
        ("COPY --link x /out/new", Built),
        ("ADD x.tar /out/d/", Built),
        ("ADD --link x.tar /up/", Built),
        ("ADD --unpack x.tar /up/", Built),
        ("COPY --parents x /out/", Built),
        ("COPY --chown=7:7 --chmod=777 x /out/", Built),
        ("COPY <<new /out/\ntext\nnew", Built),
        ("WORKDIR /out/new\nRUN pwd", Built),
        ("WORKDIR /up/../up/new\nRUN pwd", Built),
        (
            "WORKDIR /out\nWORKDIR ../../..{outside}/new\nRUN touch here",
            Built,
        ),
        ("WORKDIR /loop/new", Fails("ymbolic link")),
        ("COPY x /loop/new", Fails("ymbolic link")),
        ("RUN rm -rf /out/* /up/*; echo x > /out/secret; true", Built),
    ] {
        case.build(&format!("{links}{step}\n"), &end, context());
    }
    case.engine.has_no_builds();
}

#[test]
fn a_shared_cache_may_change_while_it_is_mounted() {
    let case = Case::new();
    let engine = &case.engine;
    let swaps = format!(
        "FROM busybox\nRUN --mount=type=cache,id=race,target=/c echo begun; while [ ! -e /c/stop ]; do \
         rm -rf /c/d; ln -s {} /c/d; rm -f /c/d; mkdir -p /c/d/d; done\n",
        case.outside
    );
    let swaps = engine.dockerfile("swaps", &swaps);
    let mut swapping = docker(engine).spawn(&["build", "--no-cache", swaps.to_str().unwrap()]);
    eventually("the other step to run", || {
        swapping.errors_so_far().contains("begun\n").then_some(())
    });
    let is_over = AtomicBool::new(false);
    thread::scope(|threads| {
        // What is exported meanwhile follows no links.
        threads.spawn(|| {
            let file = engine.scratch("exported").join("cache.tar");
            let file = file.to_str().unwrap();
            while !is_over.load(Ordering::Relaxed) {
                let args = ["build", "cache", "export", "race", "-o", file];
                if engine.whelk(&args).code == 0 {
                    let archive = fs::read(file).unwrap();
                    let text = String::from_utf8_lossy(&archive);
                    assert!(!text.contains(SECRET));
                }
            }
        });
        let begun = Instant::now();
        let (mut built, mut number) = (0, 0);
        // On, if all of them have met a directory that was just gone.
        while number < 24 || (built == 0 && begun.elapsed() < PATIENCE) {
            let mount = match number % 3 {
                0 => "type=tmpfs,target=/c/d/new",
                1 => "type=cache,target=/c/d/d",
                _ => "from=busybox,source=/etc/passwd,target=/c/d/secret",
            };
            let text = format!(
                "FROM busybox\nRUN --mount=type=cache,id=race,target=/c --mount={mount} : {number}; cat /c/d/secret /c/d/d/secret 2>&1; true\n"
            );
            let archive = Tar::new().file("Dockerfile", text).finish();
            let headers = [("Content-Type", "application/x-tar")];
            let path = "/build?networkmode=none";
            let text = engine.http("POST", path, &headers, &archive).text();
            assert!(!text.contains(SECRET), "{text}");
            built += usize::from(text.contains("Successfully built"));
            case.is_untouched(&text);
            number += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(built > 0);
    });
    let stop = engine.dockerfile(
        "stop",
        "FROM busybox\nRUN --mount=type=cache,id=race,target=/c touch /c/stop\n",
    );
    docker(engine).built(&stop, &["--network", "none"]);
    swapping.finish().ok();
    case.is_untouched("the end");
    engine.has_no_builds();
}
