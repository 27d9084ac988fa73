//! Contexts and Dockerfiles that try to reach the host, or to confuse the engine.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod mounts;

use std::fs;

use whelk_tests::tar::{Entry, Kind, Tar};
use whelk_tests::{Engine, eventually};

/// The text of a file of the host, which must not get into an image.
const SECRET: &str = "a text of the host";

struct Case {
    engine: Engine,
}

impl Case {
    fn new() -> Self {
        let engine = Engine::start();
        fs::write(engine.scratch("outside").join("secret"), SECRET).unwrap();
        Self { engine }
    }

    fn outside(&self) -> String {
        self.engine.scratch_text("outside")
    }

    /// Sends a context, and returns the whole answer.
    fn build(&self, archive: &[u8]) -> String {
        let headers = [("Content-Type", "application/x-tar")];
        let answer = self.engine.http(
            "POST",
            "/build?t=hostile&networkmode=none",
            &headers,
            archive,
        );
        let text = answer.text();
        assert!(!text.contains(SECRET), "{text}");
        let outside = fs::read_dir(self.outside()).unwrap().count();
        assert_eq!(outside, 1, "{text}");
        text
    }

    fn fails(&self, archive: &[u8]) {
        let text = self.build(archive);
        let failed = text.contains("\"error\"") || text.contains("\"message\"");
        assert!(failed && !text.contains("Successfully"), "{text}");
    }

    fn succeeds(&self, archive: &[u8]) {
        let text = self.build(archive);
        assert!(text.contains("Successfully built"), "{text}");
    }
}

#[test]
fn contexts_stay_inside() {
    let case = Case::new();
    let (outside, copies) = (case.outside(), "FROM busybox\nCOPY . /c\nRUN ls -lR /c\n");
    let secret = format!("{outside}/secret");
    let with = |dockerfile: &str| Tar::new().file("Dockerfile", dockerfile);
    // Links lead to nothing outside of the context.
    case.fails(
        &with("FROM busybox\nCOPY link /l\nRUN cat /l\n")
            .symlink("link", &secret)
            .finish(),
    );
    case.fails(
        &with("FROM busybox\nCOPY d/secret /l\n")
            .symlink("d", &outside)
            .finish(),
    );
    case.fails(
        &with("FROM busybox\nCOPY d/* /l/\nRUN cat /l/secret\n")
            .symlink("d", &outside)
            .finish(),
    );
    case.fails(&with("FROM busybox\nCOPY ../../../../../../../../etc/hostname /l\n").finish());
    case.fails(&with(&format!("FROM busybox\nADD {secret} /l\n")).finish());
    case.fails(&Tar::new().symlink("Dockerfile", &secret).finish());
    case.succeeds(&with(copies).symlink("link", &secret).finish());
    let written = with(copies).symlink("d", &outside).file("d/written", "x");
    case.build(&written.finish());
    for name in ["../written", "/../../written", "a/../../written"] {
        case.build(&with(copies).file(name, "x").finish());
    }
    case.fails(&with(copies).hard_link("hard", &secret).finish());
    let nowhere = with(copies).hard_link("hard", "nothing").finish();
    let headers = [("Content-Type", "application/x-tar")];
    let answer = case.engine.http("POST", "/build", &headers, &nowhere);
    assert_eq!(answer.status, 400, "{}", answer.text());
    let bind = "FROM busybox\nRUN --mount=type=bind,source=d,target=/m cat /m/secret\n";
    case.fails(&with(bind).symlink("d", &outside).finish());
    // The image's own links are resolved in the image.
    let links = format!(
        "FROM busybox\nRUN ln -s {outside} /out && ln -s ../../../../../../{outside} /up\nCOPY x /out/one\nCOPY x /up/two\nWORKDIR /out/three\nADD x.tar /out\nRUN find / -xdev\n"
    );
    let archive = Tar::new().file("four", "4").finish();
    case.succeeds(&with(&links).file("x", "x").file("x.tar", archive).finish());
    eventually("the files of builds to be removed", || {
        let left = fs::read_dir(case.engine.root().join("tmp"))
            .unwrap()
            .count();
        (left == 0).then_some(())
    });
}

/// The same archives, unpacked for BuildKit's frontend.
#[test]
fn contexts_of_builds_with_buildkit_stay_inside() {
    use base64::Engine as _;
    let case = Case::new();
    let outside = case.outside();
    let secret = format!("{outside}/secret");
    let with = |dockerfile: &str| Tar::new().file("Dockerfile", dockerfile);
    let copies = "FROM busybox\nCOPY . /c\nRUN ls -lR /c; cat /c/* /c/*/* 2>&1; true\n";
    for (archive, is_built) in [
        (
            with("FROM busybox\nCOPY link /l\n").symlink("link", &secret),
            false,
        ),
        (
            with("FROM busybox\nCOPY d/secret /l\n").symlink("d", &outside),
            false,
        ),
        (
            with("FROM busybox\nADD ../../../../../../etc/hostname /l\n"),
            false,
        ),
        (Tar::new().symlink("Dockerfile", &secret), false),
        (with(copies).hard_link("hard", &secret), false),
        (with(copies).symlink("link", &secret), true),
        (with(copies).file("../written", "x"), true),
        (with(copies).file("/../../written", "x"), true),
        (
            with(copies).symlink("d", &outside).file("d/written", "x"),
            true,
        ),
    ] {
        let path = "/build?version=2&t=hostile&networkmode=none";
        let answer = case.engine.http("POST", path, &[], &archive.finish());
        let text = answer.text();
        let mut told = text.clone();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let trace = line["aux"].as_str().unwrap_or_default();
            let trace = base64::engine::general_purpose::STANDARD.decode(trace);
            told += &String::from_utf8_lossy(&trace.unwrap_or_default());
        }
        assert!(!told.contains(SECRET), "{told}");
        let has_failed = text.contains("\"error\"") || text.contains("\"message\"");
        // A path that leads outside is refused, or leads to the root of the context.
        assert!(is_built || has_failed, "{told}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{told}");
    }
    case.engine.has_no_builds();
}

/// The same for what is put into a cache of steps.
#[test]
fn imported_caches_stay_inside() {
    let case = Case::new();
    let outside = case.outside();
    let secret = format!("{outside}/secret");
    let archives = [
        Tar::new().file("../written", "x"),
        Tar::new().file("/../../written", "x"),
        Tar::new().symlink("d", &outside).file("d/written", "x"),
        Tar::new().symlink("d", &outside).file("d/secret", "x"),
        Tar::new().hard_link("hard", &secret),
        Tar::new().symlink("link", &secret),
    ];
    for (number, archive) in archives.into_iter().enumerate() {
        let (archive, path) = (
            archive.finish(),
            format!("/build/cache/import?id=hostile-{number}"),
        );
        // Into a new cache, and into one that has the files.
        for _ in 0..2 {
            case.engine.http("POST", &path, &[], &archive);
            assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET, "{number}");
        }
        let text = format!(
            "FROM busybox\nRUN --mount=type=cache,id=hostile-{number},target=/c cat /c/* /c/*/* 2>&1; true\n"
        );
        case.succeeds(&Tar::new().file("Dockerfile", text).finish());
    }
    case.engine.has_no_builds();
}

#[test]
fn broken_contexts_and_dockerfiles_are_refused() {
    let case = Case::new();
    let whole = Tar::new()
        .file("Dockerfile", "FROM busybox\n")
        .file("x", [7; 2000])
        .finish();
    case.succeeds(&whole);
    case.fails(b"");
    case.fails(b"not an archive");
    case.fails(&whole[..1536 + 700]);
    case.fails(&[0x1f, 0x8b, 8, 0, 0]);
    case.fails(&Tar::new().dir("Dockerfile").finish());
    case.fails(&Tar::new().fifo("Dockerfile").finish());
    case.fails(&Tar::new().device("Dockerfile", 1, 5).finish());
    let huge = Entry {
        content: &vec![b'#'; 2 << 20],
        ..Entry::new("Dockerfile", Kind::File)
    };
    case.fails(&Tar::new().entry(&huge).finish());
    let long = format!("FROM busybox\nRUN {}\n", "x".repeat(1 << 20));
    for dockerfile in [
        &b""[..],
        b"# only a comment",
        b"FROM",
        b"RUN x",
        b"FROM busybox\nRUN \"",
        b"FROM busybox\nCOPY <<EOF /x\nno end",
        b"FROM busybox\nENV x=\"open",
        b"FROM busybox\n\x00\x01",
        b"FROM busybox\nRUN \xff\xfe",
        b"FROM ${a${b}}",
        b"FROM busybox\nCOPY --from=1 /x /y",
        b"FROM a AS b\nFROM b AS a",
        long.as_bytes(),
    ] {
        case.fails(&Tar::new().file("Dockerfile", dockerfile).finish());
    }
    // Patterns that are wrong, and an ignore file that is no file.
    let ignore = Tar::new()
        .file("Dockerfile", "FROM busybox\n")
        .file(".dockerignore", "[");
    case.build(&ignore.finish());
    let ignore = Tar::new()
        .file("Dockerfile", "FROM busybox\n")
        .fifo(".dockerignore");
    case.fails(&ignore.finish());
    assert!(case.engine.answers());
}

#[test]
fn a_dockerfile_alone_gets_no_rights_and_no_deep_recursion() {
    let case = Case::new();
    let archive = |dockerfile: &str| Tar::new().file("Dockerfile", dockerfile).finish();
    let text = case.build(&archive("FROM busybox\nRUN --network=host true\n"));
    assert!(text.contains("network.host is not allowed"), "{text}");
    // A pattern of more components than a path has would otherwise cost a call of a function for each.
    let deep = "/*".repeat(20_000);
    let text = format!("FROM busybox AS s\nFROM busybox\nCOPY --from=s {deep} /x/\n");
    let text = case.build(&archive(&text));
    assert!(text.contains("more than 512 components"), "{text}");
}

#[test]
fn processes_do_not_outlive_their_step() {
    let case = Case::new();
    let fork =
        "FROM busybox\nRUN (sleep 313; echo late) & sleep 314 & setsid sleep 315 & echo begun\n";
    case.succeeds(&Tar::new().file("Dockerfile", fork).finish());
    let left = fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&command).replace('\0', " ");
        ["sleep 313", "sleep 314", "sleep 315"]
            .iter()
            .any(|sleep| text.trim() == *sleep)
    });
    assert!(!left, "processes of the step are left");
}
