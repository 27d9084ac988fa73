//! Merges and differences of results: what they have, for those who read them, for processes, and as parts of others.

use std::fmt::Write as _;

use whelk_buildkit::pb::control::SolveRequest;
use whelk_buildkit::pb::gateway::{ReadDirRequest, ReadDirResponse};
use whelk_llb::Output;
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    DiffOp, FileActionMkDir, FileActionRm, FileActionSymlink, InputIndex, MergeOp, Mount,
};
use whelk_tests::Engine;
use whelk_tests::grpc::{Frontend, Grpc};

use crate::{Made, make_file, script};

/// A result: its name, what it is made of, and its files.
struct Case {
    name: &'static str,
    make: fn(&mut Made) -> Output,
    files: &'static str,
}

fn case(name: &'static str, make: fn(&mut Made) -> Output, files: &'static str) -> Case {
    Case { name, make, files }
}

/// Adds files to a result, or to nothing: `PATH=CONTENT`, `PATH/`, `PATH>TARGET`; `-PATH` removes one.
fn with(made: &mut Made, base: Option<Output>, files: &str) -> Output {
    let mut result = base;
    for file in files.split(' ') {
        let action = if let Some(path) = file.strip_prefix('-') {
            Action::Rm(FileActionRm {
                path: path.into(),
                allow_not_found: false,
                allow_wildcard: false,
            })
        } else if let Some((new, old)) = file.split_once('>') {
            Action::Symlink(FileActionSymlink {
                oldpath: old.into(),
                newpath: new.into(),
                owner: None,
                timestamp: -1,
            })
        } else if let Some((path, content)) = file.split_once('=') {
            make_file(path, content)
        } else {
            Action::Mkdir(FileActionMkDir {
                path: file.into(),
                mode: 0o755,
                make_parents: false,
                owner: None,
                timestamp: -1,
            })
        };
        result = Some(made.file(action, result));
    }
    result.unwrap()
}

fn files(made: &mut Made, files: &str) -> Output {
    with(made, None, files)
}

fn merge(made: &mut Made, inputs: &[Output]) -> Output {
    let indices = (0..).zip(inputs).map(|(input, _)| InputIndex { input });
    let merge = MergeOp {
        inputs: indices.collect(),
    };
    made.add(Kind::Merge(merge), inputs)
}

/// Adds the difference of two results; nothing instead of one is an empty one.
fn diff(made: &mut Made, lower: Option<Output>, upper: Option<Output>) -> Output {
    let index = |input: i64| Some(InputIndex { input });
    let nothing = || InputIndex { input: -1 };
    let upper_index = i64::from(lower.is_some());
    let diff = DiffOp {
        lower: Some(lower.and(index(0)).unwrap_or_else(nothing)),
        upper: Some(upper.and(index(upper_index)).unwrap_or_else(nothing)),
    };
    let inputs: Vec<Output> = lower.into_iter().chain(upper).collect();
    made.add(Kind::Diff(diff), &inputs)
}

/// Adds a process of busybox that changes a result, which it has at `/r`.
fn changed(made: &mut Made, base: Output, text: &str) -> Output {
    let busybox = made.busybox();
    let mut exec = script(&format!("cd /r; {text}"));
    exec.mounts[0].output = -1;
    exec.mounts.push(Mount {
        input: 1,
        output: 0,
        dest: "/r".into(),
        ..Mount::default()
    });
    made.exec(exec, &[busybox, base])
}

/// Adds a process that lists a result.
fn listed(made: &mut Made, result: Output) -> Output {
    let busybox = made.busybox();
    let mut exec = script(
        "cd /r; for f in $(find . 2>&1 | sort); do \
         if [ $f = . ]; then continue; elif [ -L $f ]; then echo \"$f>$(readlink $f)\"; elif [ -d $f ]; then echo $f/; else echo $f=$(cat $f 2>&1); fi; \
         done | sed 's|^./||' > /list",
    );
    exec.mounts.push(Mount {
        input: 1,
        output: -1,
        dest: "/r".into(),
        readonly: true,
        ..Mount::default()
    });
    made.exec(exec, &[busybox, result])
}

/// Lists a result as its frontend sees it.
fn read(bridge: &Frontend, reference: &str, directory: &str, list: &mut String) {
    const DIRECTORY: u32 = 1 << 31;
    const LINK: u32 = 1 << 27;
    let request = ReadDirRequest {
        r#ref: reference.to_owned(),
        dir_path: format!("/{directory}"),
        include_pattern: String::new(),
    };
    let entries: ReadDirResponse = bridge.call("ReadDir", &request).unwrap();
    for entry in entries.entries {
        let path = format!("{directory}{}", entry.path);
        if entry.mode & DIRECTORY != 0 {
            writeln!(list, "{path}/").unwrap();
            read(bridge, reference, &format!("{path}/"), list);
        } else if entry.mode & LINK != 0 {
            writeln!(list, "{path}>{}", entry.linkname).unwrap();
        } else {
            let content = bridge.read(reference, &format!("/{path}")).unwrap();
            writeln!(list, "{path}={content}").unwrap();
        }
    }
}

fn unrelated() -> Vec<Case> {
    vec![
        case(
            "unrelated results",
            |made| {
                let lower = files(made, "a=1 b=1 d d/x=1");
                let upper = files(made, "b=2 d d/y=1 c=1");
                diff(made, Some(lower), Some(upper))
            },
            "b=2 c=1 d/ d/y=1",
        ),
        case(
            "unrelated results, merged with the lower one",
            |made| {
                let lower = files(made, "a=1 b=1 d d/x=1 e e/x=1");
                let upper = files(made, "b=2 d d/y=1 c=1 e=1");
                let difference = diff(made, Some(lower), Some(upper));
                merge(made, &[lower, difference])
            },
            "b=2 c=1 d/ d/y=1 e=1",
        ),
        case(
            "an empty upper one",
            |made| {
                let lower = files(made, "a=1 d d/x=1");
                diff(made, Some(lower), None)
            },
            "",
        ),
        case(
            "an empty upper one, merged",
            |made| {
                let lower = files(made, "a=1 d d/x=1");
                let difference = diff(made, Some(lower), None);
                let other = files(made, "a=2 b=2 d d/y=2");
                merge(made, &[other, difference])
            },
            "b=2",
        ),
        case(
            "an empty lower one",
            |made| {
                let upper = files(made, "a=1 b=1 -a");
                let difference = diff(made, None, Some(upper));
                let other = files(made, "a=2 c=2");
                merge(made, &[other, difference])
            },
            "b=1 c=2",
        ),
        case(
            "both ways",
            |made| {
                let (a, b) = (files(made, "a=1"), files(made, "b=1"));
                let there = diff(made, Some(a), Some(b));
                let back = diff(made, Some(b), Some(a));
                merge(made, &[there, back])
            },
            "a=1",
        ),
        case(
            "differences of differences",
            |made| {
                let a = files(made, "a=1");
                let ab = with(made, Some(a), "b=1");
                let abc = with(made, Some(ab), "c=1");
                let (longer, shorter) = (
                    diff(made, Some(a), Some(abc)),
                    diff(made, Some(a), Some(ab)),
                );
                let difference = diff(made, Some(longer), Some(shorter));
                merge(made, &[abc, difference])
            },
            "a=1 b=1",
        ),
    ]
}

fn removals() -> Vec<Case> {
    vec![
        case(
            "a removal",
            |made| {
                let lower = files(made, "d d/x=1 d/y=1");
                let upper = with(made, Some(lower), "-d/x");
                diff(made, Some(lower), Some(upper))
            },
            "d/",
        ),
        case(
            "a removal of what is not there",
            |made| {
                let lower = files(made, "d d/x=1 d/y=1");
                let upper = with(made, Some(lower), "-d/x");
                let difference = diff(made, Some(lower), Some(upper));
                let other = files(made, "a=1");
                merge(made, &[other, difference])
            },
            "a=1 d/",
        ),
        case(
            "a removal behind a link",
            |made| {
                let lower = files(made, "d d/x=1");
                let upper = with(made, Some(lower), "-d/x");
                let difference = diff(made, Some(lower), Some(upper));
                let other = files(made, "e e/x=1 d>/e");
                merge(made, &[other, difference])
            },
            "d/ e/ e/x=1",
        ),
        case(
            "a removal of a link",
            |made| {
                let lower = files(made, "d d/x=1");
                let upper = with(made, Some(lower), "-d");
                let difference = diff(made, Some(lower), Some(upper));
                let other = files(made, "e e/x=1 d>/e");
                merge(made, &[other, difference])
            },
            "e/ e/x=1",
        ),
        case(
            "a directory that is replaced",
            |made| {
                let lower = files(made, "d d/x=1 d/s d/s/y=1");
                let upper = changed(made, lower, "rm -r d; mkdir d; echo n > d/new");
                diff(made, Some(lower), Some(upper))
            },
            "d/ d/new=n",
        ),
        case(
            "a directory that is replaced, merged",
            |made| {
                let lower = files(made, "d d/x=1 d/s d/s/y=1");
                let upper = changed(made, lower, "rm -r d; mkdir d; echo n > d/new");
                let difference = diff(made, Some(lower), Some(upper));
                let other = files(made, "d d/x=2 d/z=2 d/s d/s/z=2");
                merge(made, &[other, difference])
            },
            "d/ d/new=n d/z=2",
        ),
        case(
            "a result with a directory that is replaced, merged",
            |made| {
                let lower = files(made, "d d/x=1 a=1");
                let upper = changed(made, lower, "rm -r d; mkdir d; echo n > d/new");
                let other = files(made, "d d/x=2 d/z=2 b=2");
                merge(made, &[other, upper])
            },
            "a=1 b=2 d/ d/new=n d/z=2",
        ),
        case(
            "what was moved and moved back",
            |made| {
                let lower = files(made, "a=1 d d/x=1");
                let upper = changed(
                    made,
                    lower,
                    "mv a b; mv b a; mv d/x y; mv y d/x; echo n > new",
                );
                diff(made, Some(lower), Some(upper))
            },
            "new=n",
        ),
    ]
}

/// The files are the same for frontends, for processes, and from the cache.
#[test]
fn results_are_merged_and_subtracted() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    for round in ["first", "second"] {
        let bridge = grpc.build(round, SolveRequest::default());
        for case in unrelated().into_iter().chain(removals()) {
            let (name, expected) = (case.name, case.files);
            let mut made = Made::default();
            let result = (case.make)(&mut made);
            let reference = bridge.evaluate(&made.definition(result)).unwrap();
            let mut list = String::new();
            read(&bridge, &reference, "", &mut list);
            let found: Vec<&str> = list.split_whitespace().collect();
            assert_eq!(found.join(" "), expected, "{name}, {round}");
            let listing = listed(&mut made, result);
            let reference = bridge.evaluate(&made.definition(listing)).unwrap();
            let list = bridge.read(&reference, "/list").unwrap();
            let found: Vec<&str> = list.lines().collect();
            assert_eq!(found.join(" "), expected, "{name}, a process, {round}");
        }
        bridge.finish(None).unwrap();
    }
    engine.has_no_builds();
}
