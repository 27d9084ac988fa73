//! Mounts of processes that have outputs: each is a result of its own.

use std::fs;
use std::thread;

use whelk_buildkit::grpc::Result;
use whelk_buildkit::pb::control::{
    CacheOptions, CacheOptionsEntry, DiskUsageRequest, DiskUsageResponse, Exporter, SolveRequest,
};
use whelk_llb::Output;
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{Definition, FileActionMkDir, InputIndex, MergeOp, Mount};
use whelk_tests::grpc::{Bridge, Grpc};
use whelk_tests::registry::Registry;
use whelk_tests::{Engine, eventually};

use crate::{Made, make_file, script};

/// A text that is another one each time.
const UUID: &str = "cat /proc/sys/kernel/random/uuid";

fn bind(dest: &str, input: i64, output: i64) -> Mount {
    Mount {
        input,
        output,
        dest: dest.into(),
        ..Mount::default()
    }
}

/// Runs a script in busybox with mounts, and inputs behind the base. The mounts have the root file system's, if that
/// has no output of the index 0.
fn mounted(made: &mut Made, text: &str, mounts: &[Mount], inputs: &[Output]) -> Output {
    let base = made.busybox();
    let mut exec = script(text);
    if mounts.iter().any(|mount| mount.dest == "/") {
        exec.mounts.clear();
    }
    exec.mounts.extend_from_slice(mounts);
    made.exec(exec, &[&[base], inputs].concat())
}

/// Returns a file of a definition's result.
#[track_caller]
fn file_of(bridge: &Bridge, made: &Made, result: Output, path: &str) -> Option<String> {
    let reference = bridge.evaluate(&made.definition(result)).unwrap();
    bridge.read(&reference, path).ok()
}

#[test]
fn each_output_is_what_was_below_its_mount() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("outputs", SolveRequest::default());
    let mut made = Made::default();
    let tree = made.file(make_file("/kept", "kept"), None);
    let tree = made.file(make_file("/gone", "gone"), Some(tree));
    let part = made.file(
        Action::Mkdir(FileActionMkDir {
            path: "/part".into(),
            mode: 0o755,
            timestamp: -1,
            ..FileActionMkDir::default()
        }),
        Some(tree),
    );
    let text = "set -e; echo root > /r; echo scratch > /out/s; echo again > /again/a; \
                rm /in/gone; echo new > /in/new; echo part > /part/p; cat /ro/kept; \
                echo inner > /out/inner/i; test $(ls /part) = p; \
                if echo x > /ro/x || echo x > /none/x || echo x > /empty/x; then exit 1; fi 2> /dev/null";
    let mounts = [
        bind("/again", 1, 0),
        bind("/", 0, 1),
        bind("/in", 1, 2),
        bind("/out", -1, 3),
        // Nested, and before the mount that it is in.
        bind("/out/inner", -1, 4),
        Mount {
            selector: "/part".into(),
            ..bind("/part", 2, 5)
        },
        Mount {
            readonly: true,
            ..bind("/ro", 1, 6)
        },
        Mount {
            readonly: true,
            ..bind("/none", -1, -1)
        },
        Mount {
            readonly: true,
            ..bind("/empty", -1, 7)
        },
        bind("/unused", -1, 8),
    ];
    let first = mounted(&mut made, text, &mounts, &[tree, part]);
    for (output, path, content) in [
        (0, "/a", Some("again\n")),
        (0, "/gone", Some("gone")),
        (0, "/new", None),
        (1, "/r", Some("root\n")),
        (1, "/out/s", None),
        (1, "/in", None),
        (2, "/new", Some("new\n")),
        (2, "/kept", Some("kept")),
        (2, "/gone", None),
        (2, "/a", None),
        (3, "/s", Some("scratch\n")),
        (3, "/inner/i", None),
        (4, "/i", Some("inner\n")),
        (5, "/part/p", Some("part\n")),
        (5, "/kept", Some("kept")),
        (6, "/kept", Some("kept")),
        (6, "/gone", Some("gone")),
        (7, "/x", None),
        (8, "/x", None),
    ] {
        let found = file_of(&bridge, &made, first.at(output), path);
        assert_eq!(found.as_deref(), content, "{output} {path}");
    }
    // Steps that stand on several of them, and on nothing else.
    let text = "cat /a/s /b/new > /c/both; rm /a/s";
    let mounts = [
        bind("/", 0, -1),
        bind("/a", 1, 0),
        bind("/b", 2, -1),
        bind("/c", -1, 1),
    ];
    let second = mounted(&mut made, text, &mounts, &[first.at(3), first.at(2)]);
    let both = file_of(&bridge, &made, second.at(1), "/both");
    assert_eq!(both.as_deref(), Some("scratch\nnew\n"));
    assert_eq!(file_of(&bridge, &made, second, "/s"), None);
    // What was written to an empty mount hides nothing of what it is merged with.
    let text = "mkdir /out/bin && echo x > /out/bin/x";
    let third = mounted(&mut made, text, &[bind("/out", -1, 1)], &[]);
    let base = made.busybox();
    let merge = MergeOp {
        inputs: (0..2).map(|input| InputIndex { input }).collect(),
    };
    let merged = made.add(Kind::Merge(merge), &[base, third.at(1)]);
    let run = made.exec(script("ls /bin/x /bin/sh > /made"), &[merged]);
    let listed = file_of(&bridge, &made, run, "/made");
    assert_eq!(listed.as_deref(), Some("/bin/sh\n/bin/x\n"));
    bridge.finish(None).unwrap();
    engine.has_no_builds();
}

/// More than are sealed at the same time.
#[test]
fn a_step_may_have_many_outputs() {
    const COUNT: i64 = 150;
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("many", SolveRequest::default());
    let mut made = Made::default();
    let mounts = (1..=COUNT).map(|output| bind(&format!("/out/{output}"), -1, output));
    let mounts: Vec<Mount> = mounts.collect();
    let text = "for out in /out/*; do echo $out > $out/name; done";
    let step = mounted(&mut made, text, &mounts, &[]);
    for output in [1, 77, 150] {
        let found = file_of(&bridge, &made, step.at(output), "/name");
        assert_eq!(found, Some(format!("/out/{output}\n")));
    }
    bridge.finish(None).unwrap();
    engine.has_no_builds();
}

#[test]
fn mount_points_are_relative_to_the_directory_of_the_process() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("relative", SolveRequest::default());
    let made_in = |directory: &str, dest: &str, text: &str| -> Definition {
        let mut made = Made::default();
        let base = made.busybox();
        let mut exec = script(text);
        exec.meta.as_mut().unwrap().cwd = directory.into();
        exec.mounts.push(bind(dest, -1, 1));
        let result = made.exec(exec, &[base]).at(1);
        made.definition(result)
    };
    for (directory, dest, text) in [
        ("/usr", "rel/path", "echo x > /usr/rel/path/f"),
        ("/usr", "./rel", "echo x > rel/f"),
        ("/usr", "../other", "echo x > /other/f"),
        ("/", "rel", "echo x > /rel/f"),
    ] {
        let reference = bridge.evaluate(&made_in(directory, dest, text)).unwrap();
        assert_eq!(bridge.read(&reference, "/f").unwrap(), "x\n", "{dest}");
    }
    for (directory, dest) in [("/", "."), ("/usr", "..")] {
        let status = bridge
            .evaluate(&made_in(directory, dest, "true"))
            .unwrap_err();
        let text = "which is the root directory";
        assert!(status.message.contains(text), "{status}");
    }
    bridge.finish(None).unwrap();
    engine.has_no_builds();
}

/// A step with a text that is in both of its outputs, the root's and that of `/out`, whose layers are no equal ones.
fn random(made: &mut Made, also: &str) -> Output {
    let text = format!("{also}; {UUID} > /u; cp /u /out/u; touch /root-only");
    mounted(made, &text, &[bind("/out", -1, 1)], &[])
}

#[test]
fn a_step_runs_once_for_all_who_need_one_of_its_outputs() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let read = |name: &str, output: usize| {
        let bridge = grpc.build(name, SolveRequest::default());
        let mut made = Made::default();
        let step = random(&mut made, "sleep 1");
        let found = file_of(&bridge, &made, step.at(output), "/u").unwrap();
        bridge.finish(None).unwrap();
        found
    };
    let texts = thread::scope(|scope| {
        let builds = (0..4).map(|number| {
            let read = &read;
            scope.spawn(move || read(&format!("build{number}"), number % 2))
        });
        let builds: Vec<_> = builds.collect();
        let texts = builds.into_iter().map(|build| build.join().unwrap());
        texts.collect::<Vec<_>>()
    });
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    // The cache has both, also for the next engine.
    eventually("the result to be recorded", || {
        let request = DiskUsageRequest::default();
        let listed = grpc.control::<DiskUsageResponse>("DiskUsage", &request);
        (!listed.unwrap().record.is_empty()).then_some(())
    });
    engine.kill9();
    engine.restart();
    let grpc = Grpc::connect(&engine);
    for output in [1, 0] {
        let bridge = grpc.build(&format!("later{output}"), SolveRequest::default());
        let mut made = Made::default();
        let step = random(&mut made, "sleep 1");
        let found = file_of(&bridge, &made, step.at(output), "/u").unwrap();
        assert_eq!(found, texts[0], "{output}");
        bridge.finish(None).unwrap();
    }
    engine.has_no_builds();
}

/// The program under test must be built with debug assertions.
#[test]
fn a_kill_leaves_all_outputs_of_a_step_or_none() {
    let directory = whelk_tests::Scratch::new("outputs-steps");
    let file = directory.directory("count").join("steps");
    let engine = Engine::with_env(&[("WHELK_STEPS", file.to_str().unwrap())]);
    let records = |grpc: &Grpc| -> Result<usize> {
        let request = DiskUsageRequest::default();
        let listed: DiskUsageResponse = grpc.control("DiskUsage", &request)?;
        Ok(listed.record.len())
    };
    for steps in 0.. {
        let mut made = Made::default();
        let step = random(&mut made, &format!("echo {steps}"));
        let read = |grpc: &Grpc, name: &str, output: usize| {
            let bridge = grpc.build(&format!("{name}-{steps}"), SolveRequest::default());
            let reference = bridge.evaluate(&made.definition(step.at(output)))?;
            bridge.read(&reference, "/u")
        };
        let grpc = Grpc::connect(&engine);
        let before = records(&grpc).unwrap();
        fs::write(&file, steps.to_string()).unwrap();
        let first = read(&grpc, "first", 1);
        eventually("the outputs to be recorded, or the engine's end", || {
            let is_over = records(&grpc).map_or(true, |now| now > before);
            is_over.then_some(())
        });
        let count = fs::File::options().write(true).open(&file).unwrap();
        count.lock().unwrap();
        count.set_len(0).unwrap();
        drop(count);
        let lived = engine.answers();
        if !lived {
            engine.kill9();
            engine.restart();
            engine.has_no_builds();
        }
        let grpc = Grpc::connect(&engine);
        let texts = [("root", 0), ("out", 1)];
        let texts = texts.map(|(name, output)| read(&grpc, name, output).unwrap());
        assert_eq!(texts[0], texts[1], "{steps}");
        if lived {
            assert!(steps > 0, "this program does not die at a step");
            assert_eq!(first.unwrap(), texts[0]);
            break;
        }
        eventually("the outputs to be recorded", || {
            (records(&grpc).unwrap() > before).then_some(())
        });
    }
    engine.has_no_builds();
}

#[test]
fn content_that_a_mount_shows_is_what_counts_unless_that_is_turned_off() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("content", SolveRequest::default());
    let text_with = |unseen: &str, mount: Mount| {
        let mut made = Made::default();
        let tree = made.file(make_file("/seen", "seen"), None);
        let tree = made.file(make_file("/unseen", unseen), Some(tree));
        let mount = Mount {
            selector: "/seen".into(),
            ..mount
        };
        let text = format!("cat /m; {UUID} > /u");
        let step = mounted(&mut made, &text, &[bind("/", 0, 0), mount], &[tree]);
        file_of(&bridge, &made, step, "/u").unwrap()
    };
    let of = |content_cache: i32| Mount {
        content_cache,
        ..bind("/m", 1, -1)
    };
    for (content_cache, is_same) in [(0, true), (1, true), (2, false)] {
        let first = text_with("one", of(content_cache));
        assert_eq!(text_with("one", of(content_cache)), first);
        let other = text_with("two", of(content_cache));
        assert_eq!(other == first, is_same, "{content_cache}");
    }
    bridge.finish(None).unwrap();
}

/// A build whose result is one output of a step that stands on one output of another one.
fn chain(made: &mut Made) -> Output {
    let first = random(made, "true");
    let text = format!("{UUID} > /w/second");
    let mounts = [bind("/", 0, 0), bind("/w", 1, 1)];
    mounted(made, &text, &mounts, &[first.at(1)]).at(1)
}

#[test]
fn outputs_are_exported_and_imported() {
    let registry = Registry::start();
    for mode in ["min", "max"] {
        let name = format!("{}/cache:{mode}", registry.host);
        let entry = |pairs: &[(&str, &str)]| CacheOptionsEntry {
            kind: "registry".into(),
            attrs: pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let solve = |engine: &Engine, caches: CacheOptions| {
            let grpc = Grpc::connect(engine);
            let mut made = Made::default();
            let result = chain(&mut made);
            let request = SolveRequest {
                definition: Some(made.definition(result)),
                cache: Some(caches),
                exporters: vec![Exporter {
                    kind: "image".into(),
                    attrs: [("name".to_owned(), "made".to_owned())].into(),
                }],
                ..SolveRequest::default()
            };
            grpc.build("chain", request).solving.wait().unwrap();
            let inspect = ["image", "inspect", "--format", "{{.RootFS.Layers}}", "made"];
            engine.docker(&inspect).ok()
        };
        let one = Engine::start();
        let exports = CacheOptions {
            exports: vec![entry(&[("ref", &name), ("mode", mode)])],
            ..CacheOptions::default()
        };
        let layers = solve(&one, exports);
        assert_eq!(layers.split_whitespace().count(), 2, "{layers}");
        let other = Engine::start();
        let imports = || CacheOptions {
            imports: vec![entry(&[("ref", &name)])],
            ..CacheOptions::default()
        };
        assert_eq!(solve(&other, imports()), layers, "{mode}");
        // The other output of the first step is in the cache of the mode max alone, and was not fetched.
        let grpc = Grpc::connect(&other);
        let request = SolveRequest {
            cache: Some(imports()),
            ..SolveRequest::default()
        };
        let bridge = grpc.build("other", request);
        let mut made = Made::default();
        let step = random(&mut made, "true");
        let roots = file_of(&bridge, &made, step, "/u").unwrap();
        bridge.finish(None).unwrap();
        let bridge = Grpc::connect(&one).build("one", SolveRequest::default());
        let first = file_of(&bridge, &made, step, "/u").unwrap();
        bridge.finish(None).unwrap();
        assert_eq!(roots == first, mode == "max", "{roots} {first}");
    }
}
