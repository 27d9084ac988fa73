//! Git repositories as contexts, and `ADD` of them.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use whelk_tests::builds::docker;
use whelk_tests::web::{Answer, Asked, Web};
use whelk_tests::{Engine, Scratch, eventually};

use crate::{build, built, classic, only, run, shows, text};

/// Runs git, without the settings of whoever runs the tests.
#[track_caller]
pub fn git(directory: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@test",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(["-c", "protocol.file.allow=always"])
        .args(args)
        .current_dir(directory)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Repositories below a directory, and a server of them.
pub struct Host {
    _place: Scratch,
    pub root: PathBuf,
    web: Web,
}

impl Host {
    pub fn new() -> Self {
        Self::with_password("")
    }

    /// Returns a server that wants an authorization for repositories below `private/`.
    pub fn with_password(wanted: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let place = Scratch::new(&format!("git-{number}"));
        let root = place.directory("repositories");
        let (served, wanted) = (root.clone(), wanted.to_owned());
        let web = Web::start(move |asked| {
            let is_allowed = asked.header("authorization") == Some(&wanted);
            match asked.path.starts_with("/private/") && !is_allowed {
                true => Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"git\""),
                false => backend(&served, asked),
            }
        });
        Self {
            _place: place,
            root,
            web,
        }
    }

    /// Makes a repository with files, and returns its directory.
    pub fn repository(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).unwrap();
        git(&path, &["init", "-q"]);
        commit(&path, files);
        path
    }

    pub fn url(&self, rest: &str) -> String {
        self.web.url(&format!("/{rest}"))
    }
}

/// Adds files to a repository, and returns the new commit.
pub fn commit(repository: &Path, files: &[(&str, &str)]) -> String {
    for (name, content) in files {
        let path = repository.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    git(repository, &["add", "-A"]);
    git(
        repository,
        &["commit", "-q", "--allow-empty", "-m", "change"],
    );
    git(repository, &["rev-parse", "HEAD"])
}

/// Answers a request with `git http-backend`, whose repositories are the directories `.git` below a root:
/// `/NAME.git/…` is that of `NAME`.
fn backend(root: &Path, asked: &Asked) -> Answer {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let path = path.replacen(".git/", "/.git/", 1);
    let child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &asked.method)
        .env(
            "CONTENT_TYPE",
            asked.header("content-type").unwrap_or_default(),
        )
        .env(
            "GIT_PROTOCOL",
            asked.header("git-protocol").unwrap_or_default(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    child.stdin.take().unwrap().write_all(&asked.body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = output.split_at(end.unwrap_or(output.len()));
    let mut answer = Answer::new(200, body.get(4..).unwrap_or_default());
    for line in String::from_utf8_lossy(head).lines() {
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        match name {
            "Status" => answer.status = value[..3].parse().unwrap(),
            _ => answer = answer.header(name, value),
        }
    }
    answer
}

const DOCKERFILE: &str = "FROM busybox\nCOPY . /c\n";

#[test]
fn a_repository_is_a_context() {
    let engine = Engine::start();
    let host = Host::new();
    let files = [
        ("Dockerfile", DOCKERFILE),
        ("x", "one"),
        ("sub/Dockerfile", "FROM busybox\nCOPY . /s\n"),
        ("sub/y", "below"),
    ];
    let path = host.repository("app", &files);
    std::os::unix::fs::symlink("../x", path.join("sub/link")).unwrap();
    std::fs::write(path.join("program"), "#!/bin/sh\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path.join("program"), mode).unwrap();
    let first = commit(&path, &[]);
    git(&path, &["tag", "-a", "v1", "-m", "first"]);
    git(&path, &["branch", "other"]);
    let second = commit(&path, &[("x", "two")]);
    let url = host.url("app.git");
    let look = "cat /c/x; stat -c '%n %a' /c/program; readlink /c/sub/link; ls -A /c";
    let rest = "/c/program 755\n../x\nDockerfile\nprogram\nsub\nx";
    for (fragment, x) in [
        ("", "two"),
        ("#main", "two"),
        ("#v1", "one"),
        ("#refs/heads/other", "one"),
        (&*format!("#{first}"), "one"),
        (&*format!("?commit={second}"), "two"),
        ("?tag=v1&keep-git-dir=false", "one"),
    ] {
        built(&engine, &["-t", "app", &format!("{url}{fragment}")]);
        assert_eq!(
            run(&engine, "app", look),
            format!("{x}{rest}"),
            "{fragment}"
        );
    }
    built(&engine, &["-t", "sub", &format!("{url}#main:sub")]);
    assert_eq!(
        run(&engine, "sub", "ls /s; cat /s/y"),
        "Dockerfile\nlink\ny\nbelow"
    );
    // A commit that is here is not fetched again.
    host.web.asked();
    built(&engine, &[&format!("{url}#{first}")]);
    assert!(host.web.asked().is_empty());
    let answer = engine.http("POST", &format!("/build?t=remote&remote={url}"), &[], b"");
    shows(&answer.text(), &["Successfully tagged remote:latest"]);
    assert_eq!(run(&engine, "remote", "cat /c/x"), "two");
}

#[test]
fn newer_commits_are_fetched_without_what_is_here() {
    let engine = Engine::start();
    let host = Host::new();
    let noise = whelk_tests::images::noise(300_000);
    let path = host.repository("app", &[("Dockerfile", DOCKERFILE), ("x", "0")]);
    std::fs::write(path.join("noise"), &noise).unwrap();
    let mut before = commit(&path, &[("dir/kept", "kept")]);
    let url = host.url("app.git");
    let asked = || {
        let asked = host.web.asked().into_iter();
        let bodies = asked.map(|one| String::from_utf8_lossy(&one.body).into_owned());
        let fetches: Vec<String> = bodies
            .filter(|body| body.contains("command=fetch"))
            .collect();
        assert_eq!(fetches.len(), 1, "{fetches:?}");
        fetches[0].clone()
    };
    built(&engine, &["-t", "app", &url]);
    assert!(!asked().contains("have "));
    let packs = || {
        let kept = engine.root().join("build/git").read_dir().unwrap();
        let sizes = kept.map(|entry| {
            let packs = entry.unwrap().path().join("packs").read_dir().unwrap();
            let sizes = packs.map(|pack| pack.unwrap().metadata().unwrap().len());
            sizes.collect::<Vec<u64>>()
        });
        sizes.collect::<Vec<_>>()
    };
    let look = "cat /c/x; cmp /c/noise /c/same && cat /c/dir/kept; ls /c";
    for number in 1..=9 {
        let name = format!("dir/new{number}");
        std::fs::write(path.join("same"), &noise).unwrap();
        let now = commit(&path, &[("x", &number.to_string()), (&name, "new")]);
        built(&engine, &["-t", "app", &url]);
        let shown = run(&engine, "app", look);
        shows(&shown, &[&format!("{number}kept"), "same"]);
        // Before there are too many packs, all is fetched again.
        let is_whole = !asked().contains(&format!("have {before}"));
        assert_eq!(is_whole, number == 8, "{number}");
        before = now;
    }
    let most = packs().into_iter().map(|sizes| sizes.len()).max();
    assert_eq!(most, Some(16));
    // A repository of its own has one pack.
    let own = format!("{url}?keep-git-dir=1");
    built(&engine, &["-t", "own", &own]);
    assert!(!asked().contains("have "));
    // Packs that are damaged are no reason to fail.
    let kept = engine.root().join("build/git").read_dir().unwrap();
    for entry in kept {
        let packs = entry.unwrap().path().join("packs");
        for pack in packs.read_dir().into_iter().flatten() {
            let pack = pack.unwrap().path();
            let size = pack.metadata().unwrap().len();
            std::fs::write(&pack, vec![0; usize::try_from(size).unwrap()]).unwrap();
        }
    }
    commit(&path, &[("x", "last")]);
    built(&engine, &["-t", "app", &url]);
    shows(&run(&engine, "app", look), &["lastkept"]);
    engine.has_no_builds();
}

#[test]
fn repositories_are_added() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("lib", &[("x", "one"), ("dir/y", "below")]);
    let commit = git(&path, &["rev-parse", "HEAD"]);
    let url = host.url("lib.git");
    let dockerfile = format!(
        "FROM busybox\nADD {url} /plain\nADD --keep-git-dir=true {url}#main /kept/\n\
         ADD --checksum={commit} {url}#main:dir /plain/\n"
    );
    let context = only(&engine, "add", &dockerfile);
    let look = "ls -A /plain /kept; cat /kept/.git/HEAD; ls /y /x /dir 2>&1 | grep -c 'No such'";
    let expected = format!("/kept:\n.git\ndir\nx\n\n/plain:\ndir\nx\ny\n{commit}\n3");
    for name in ["buildkit", "classic"] {
        match name {
            "classic" => drop(classic(&engine, &["--no-cache", "-t", name, &context])),
            _ => drop(built(&engine, &["-t", name, &context])),
        }
        assert_eq!(run(&engine, name, look), expected);
    }
    // What is kept is a repository that git takes.
    engine
        .docker(&["create", "--name", "kept", "buildkit"])
        .ok();
    let out = engine.scratch("out");
    engine.docker(&["cp", "kept:/kept", text(&out)]).ok();
    let kept = out.join("kept");
    git(&kept, &["fsck", "--strict"]);
    assert_eq!(git(&kept, &["status", "--porcelain"]), "");
    assert_eq!(git(&kept, &["rev-list", "--count", "HEAD"]), "1");
    assert_eq!(git(&kept, &["config", "remote.origin.url"]), url);
    engine.docker(&["rm", "kept"]).ok();
    let none = "0".repeat(40);
    for (checksum, reference) in [("abc", "#main"), (&*none, "")] {
        let wrong = format!("FROM busybox\nADD --checksum={checksum} {url}{reference} /\n");
        let failed = build(&engine, &[&only(&engine, "wrong", &wrong)]);
        let error = format!("expected checksum to match {checksum}, got {commit}");
        shows(&failed.err(), &[&error]);
    }
}

#[test]
fn a_directory_of_git_has_the_name_that_was_asked_for() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("app", &[("x", "one")]);
    let first = git(&path, &["rev-parse", "HEAD"]);
    git(&path, &["tag", "-a", "v1", "-m", "first"]);
    git(&path, &["tag", "v2"]);
    let url = host.url("app.git");
    let names = [
        ("v1", "refs/tags/v1 tag"),
        ("v2", "refs/tags/v2 commit"),
        ("main", "refs/heads/main commit"),
        (first.as_str(), ""),
    ];
    let adds = names.map(|(name, _)| format!("ADD --keep-git-dir {url}#{name} /{name}/\n"));
    let context = only(&engine, "kept", &format!("FROM scratch\n{}", adds.concat()));
    let out = engine.scratch("out");
    built(&engine, &["-o", text(&out), &context]);
    for (name, expected) in names {
        let kept = out.join(name);
        let list = ["for-each-ref", "--format=%(refname) %(objecttype)"];
        assert_eq!(git(&kept, &list), expected);
        assert_eq!(git(&kept, &["rev-parse", "HEAD"]), first);
        git(&kept, &["fsck", "--strict"]);
    }
    assert_eq!(git(&out.join("v1"), &["describe"]), "v1");
    assert_eq!(git(&out.join("v2"), &["describe", "--tags"]), "v2");
}

#[test]
fn repositories_may_have_objects_of_sha256() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.root.join("app");
    std::fs::create_dir_all(&path).unwrap();
    git(&path, &["init", "-q", "--object-format=sha256"]);
    let first = commit(&path, &[("Dockerfile", DOCKERFILE), ("dir/x", "one")]);
    git(&path, &["tag", "-a", "v1", "-m", "first"]);
    assert_eq!(first.len(), 64);
    let url = host.url("app.git");
    built(&engine, &[&url]);
    // Only what is new is fetched of it.
    let second = commit(&path, &[("dir/x", "two")]);
    for (fragment, x) in [
        ("", "two"),
        ("#v1", "one"),
        (&*format!("#{second}"), "two"),
        (&*format!("?tag=v1&checksum={}", &first[..10]), "one"),
    ] {
        built(&engine, &["-t", "app", &format!("{url}{fragment}")]);
        let found = run(&engine, "app", "cat /c/dir/x");
        assert_eq!(found, x, "{fragment}");
    }
    let dockerfile = format!(
        "FROM busybox\nADD --keep-git-dir=true --checksum={second} {url} /kept\n\
         ADD --checksum={first} {url}#v1 /one\n"
    );
    let context = only(&engine, "add", &dockerfile);
    built(&engine, &["-t", "add", &context]);
    let look = "cat /kept/.git/HEAD /kept/dir/x /one/dir/x";
    assert_eq!(run(&engine, "add", look), format!("{second}\ntwoone"));
    engine.docker(&["create", "--name", "kept", "add"]).ok();
    let out = engine.scratch("out");
    engine.docker(&["cp", "kept:/kept", text(&out)]).ok();
    let kept = out.join("kept");
    git(&kept, &["fsck", "--strict"]);
    assert_eq!(git(&kept, &["status", "--porcelain"]), "");
    engine.docker(&["rm", "kept"]).ok();
    let failed = build(&engine, &[&format!("{url}#{}", "0".repeat(40))]);
    let error = "is not a commit of a repository with object-format=sha256";
    shows(&failed.err(), &[error]);
    // A checksum says what is expected of the default branch, and not what to take instead.
    let wrong = format!("FROM busybox\nADD --checksum={first} {url}#:dir /\n");
    let failed = build(&engine, &[&only(&engine, "wrong", &wrong)]);
    let error = format!("expected checksum to match {first}, got {second}");
    shows(&failed.err(), &[&error]);
    // A tag whose whole commit is known is not looked up again.
    let known = format!("FROM busybox\nADD --checksum={first} {url}#v1 /\n");
    let known = only(&engine, "known", &known);
    host.web.asked();
    built(&engine, &["--no-cache", &known]);
    assert!(host.web.asked().is_empty());
}

#[test]
fn repositories_are_named_contexts_and_give_the_time() {
    let engine = Engine::start();
    let host = Host::new();
    host.repository("lib", &[("x", "one"), ("dir/y", "below")]);
    let dockerfile = "FROM busybox\nCOPY --from=lib / /lib\nRUN --mount=from=whole,target=/w cat /w/x /w/dir/y > /x\n";
    let context = only(&engine, "named", dockerfile);
    let url = host.url("lib.git");
    let (lib, whole) = (format!("lib={url}#main:dir"), format!("whole={url}"));
    let args = ["--build-context", &lib, "--build-context", &whole];
    built(&engine, &[&args[..], &["-t", "named", &context]].concat());
    let look = "ls -A /lib; cat /lib/y /x";
    assert_eq!(run(&engine, "named", look), "y\nbelowonebelow");
    // The time of what the context is: that of the commit.
    let dockerfile = "ARG SOURCE_DATE_EPOCH\nFROM busybox\nARG SOURCE_DATE_EPOCH\nCOPY . /c\nRUN echo $SOURCE_DATE_EPOCH > /time\n";
    host.repository("app", &[("Dockerfile", dockerfile)]);
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=context"];
    let kept = ["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"];
    let url = host.url("app.git");
    built(
        &engine,
        &[&epoch[..], &kept, &["-t", "dated", &url]].concat(),
    );
    let look = "cat /time; ls -A /c";
    let expected = "1700000000\n.git\nDockerfile";
    assert_eq!(run(&engine, "dated", look), expected);
    assert_eq!(engine.image("dated")["Created"], "2023-11-14T22:13:20Z");
}

#[test]
fn submodules_are_fetched() {
    let engine = Engine::start();
    let host = Host::new();
    let inner = host.repository("inner", &[("deep", "of inner")]);
    let lib = host.repository("lib", &[("x", "of lib")]);
    git(&lib, &["submodule", "add", "-q", text(&inner), "in"]);
    git(
        &lib,
        &[
            "config",
            "-f",
            ".gitmodules",
            "submodule.in.url",
            "../inner.git",
        ],
    );
    commit(&lib, &[]);
    let app = host.repository("app", &[("Dockerfile", DOCKERFILE)]);
    git(&app, &["submodule", "add", "-q", text(&lib), "vendor/lib"]);
    let key = "submodule.vendor/lib.url";
    git(
        &app,
        &["config", "-f", ".gitmodules", key, &host.url("lib.git")],
    );
    commit(&app, &[]);
    let url = host.url("app.git");
    built(&engine, &["-t", "app", &url]);
    let look = "cat /c/vendor/lib/x /c/vendor/lib/in/deep";
    assert_eq!(run(&engine, "app", look), "of libof inner");
    built(&engine, &["-t", "none", &format!("{url}?submodules=false")]);
    assert_eq!(run(&engine, "none", "ls -A /c/vendor/lib"), "");
    for (own, error) in [
        (
            "file:///etc",
            "\"file:///etc\" is not allowed as a git repository",
        ),
        (text(&lib), "is not allowed as a git repository"),
        ("ext::sh -c id", "is not allowed as a git repository"),
        ("--upload-pack=id", "is not allowed as a git repository"),
        ("git@host:lib.git", "gets no ssh agent"),
        ("../../../x", "leads above its server"),
    ] {
        let modules = format!("[submodule \"lib\"]\n\tpath = vendor/lib\n\turl = {own}\n");
        std::fs::write(app.join(".gitmodules"), modules).unwrap();
        commit(&app, &[]);
        let failed = build(&engine, &[&url]);
        assert_eq!(failed.code, 1, "{own}");
        shows(&failed.err(), &["submodule vendor/lib", error]);
    }
}

#[test]
fn private_repositories_need_a_secret_which_is_in_no_text() {
    let engine = Engine::start();
    let host = Host::with_password("Basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0LXRva2Vu");
    let other = host.repository("private/other", &[("y", "other")]);
    let app = host.repository(
        "private/app",
        &[("Dockerfile", DOCKERFILE), ("x", "private")],
    );
    git(&app, &["submodule", "add", "-q", text(&other), "sub"]);
    git(
        &app,
        &[
            "config",
            "-f",
            ".gitmodules",
            "submodule.sub.url",
            "../other.git",
        ],
    );
    commit(&app, &[]);
    let url = host.url("private/app.git");
    let place = engine.scratch_with(
        "secrets",
        &[
            ("token", "secret-token\n"),
            ("wrong", "secret-wrong"),
            ("header", "Basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0LXRva2Vu"),
        ],
    );
    let secret = |id: &str, file: &str| format!("id={id},src={}/{file}", place.display());
    let failed = build(&engine, &[&url]);
    shows(&failed.err(), &["401", "GIT_AUTH_TOKEN"]);
    let failed = build(
        &engine,
        &["--secret", &secret("GIT_AUTH_TOKEN", "wrong"), &url],
    );
    shows(&failed.err(), &["401"]);
    assert!(!failed.err().contains("secret-wrong"));
    // The general token is only for the main repository; that of the host is for its submodules, too.
    let general = secret("GIT_AUTH_TOKEN", "token");
    let failed = build(&engine, &["--secret", &general, &url]);
    shows(&failed.err(), &["submodule sub", "401"]);
    let without = format!("{url}?submodules=0");
    built(&engine, &["-t", "main", "--secret", &general, &without]);
    let header = secret("GIT_AUTH_HEADER", "header");
    built(&engine, &["-t", "header", "--secret", &header, &without]);
    let id = format!("GIT_AUTH_TOKEN.{}", host.web.address);
    let of_host = secret(&id, "token");
    built(&engine, &["-t", "whole", "--secret", &of_host, &url]);
    assert_eq!(run(&engine, "whole", "cat /c/x /c/sub/y"), "privateother");
    // In a URL, too: it is not shown, and not kept.
    let inside = url.replace("http://", "http://x-access-token:secret-token@");
    engine.docker(&["builder", "prune", "-af"]).ok();
    let shown = built(
        &engine,
        &[
            "-t",
            "inside",
            &format!("{inside}?keep-git-dir=1&submodules=0"),
        ],
    );
    assert!(!shown.contains("secret-token"), "{shown}");
    let config = run(&engine, "inside", "cat /c/.git/config");
    shows(&config, &[&url]);
    let failed = build(&engine, &[&format!("{inside}#none")]);
    shows(&failed.err(), &["does not contain ref none"]);
    assert!(!failed.err().contains("secret-token"), "{}", failed.err());
    let words = engine.last_words();
    assert!(!words.contains("secret-token"), "{words}");
}

/// A client that does not answer for its secret delays no other build of the same commit.
#[test]
fn secrets_of_others_are_not_waited_for() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("app", &[("Dockerfile", DOCKERFILE), ("x", "public")]);
    let url = format!(
        "{}#{}",
        host.url("app.git"),
        git(&path, &["rev-parse", "HEAD"])
    );
    // Nobody writes into it.
    let pipe = engine.scratch("pipe").join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let secret = format!("id=GIT_AUTH_TOKEN,src={}", text(&pipe));
    let mut waiting = docker(&engine).spawn(&["build", "--secret", &secret, &url]);
    // The client opens it for reading when it is asked for the secret; only then can it be opened for writing without a wait.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = std::fs::File::options();
    options.write(true).custom_flags(flags);
    let _pipe = eventually("the client to be asked for its secret", || {
        options.open(&pipe).ok()
    });
    let begun = Instant::now();
    built(&engine, &["-t", "other", &url]);
    // After 30 s without an answer the first build fails, and whatever has waited for it goes on.
    let taken = begun.elapsed();
    assert!(waiting.is_running(), "{taken:?}");
    drop(waiting);
}

#[test]
fn hostile_repositories_are_refused() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("app", &[("Dockerfile", DOCKERFILE), ("real/x", "x")]);
    std::os::unix::fs::symlink("/etc", path.join("outside")).unwrap();
    std::os::unix::fs::symlink("real", path.join("inside")).unwrap();
    let good = commit(&path, &[]);
    let url = host.url("app.git");
    for (reference, error) in [
        ("#--upload-pack=id", "invalid git ref"),
        ("#-x", "invalid git ref"),
        ("#a..b", "invalid git ref"),
        ("#none", "repository does not contain ref none"),
        ("#main:outside", "a symbolic link, which is not followed"),
        ("#main:inside", "a symbolic link, which is not followed"),
        (
            "#main:none",
            "failed to open subdir none: no such file or directory",
        ),
        ("#main:Dockerfile", "not a directory"),
        (
            "#0123456789012345678901234567890123456789",
            "failed to fetch remote",
        ),
    ] {
        let failed = build(&engine, &[&format!("{url}{reference}")]);
        assert_eq!(failed.code, 1, "{reference}");
        shows(&failed.err(), &[error]);
    }
    // `..` stays in the repository.
    let failed = build(&engine, &[&format!("{url}#main:../../../real")]);
    shows(&failed.err(), &["failed to read dockerfile"]);
    // A tree whose entries lead elsewhere: git refuses to make it, so it is made from its bytes.
    for name in ["..", ".git", "a/b"] {
        let blob = git(&path, &["rev-parse", &format!("{good}:Dockerfile")]);
        let bytes = blob.as_bytes().chunks(2);
        let id =
            bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        let mut tree = format!("100644 {name}\0").into_bytes();
        tree.extend(id);
        let file = host.root.join("tree");
        std::fs::write(&file, tree).unwrap();
        let tree = git(
            &path,
            &[
                "hash-object",
                "-t",
                "tree",
                "-w",
                "--literally",
                text(&file),
            ],
        );
        let commit = git(&path, &["commit-tree", "-m", "x", &tree]);
        git(&path, &["update-ref", "refs/heads/hostile", &commit]);
        let failed = build(&engine, &[&format!("{url}#hostile")]);
        assert_eq!(failed.code, 1, "{name}");
        shows(&failed.err(), &["a git tree with the name"]);
    }
    for (remote, error) in [
        ("git@-x:app.git", "invalid git repository"),
        ("git://127.0.0.1:1/app", "not encrypted"),
        (
            "http://user:secret@127.0.0.1:1/app.git",
            "failed to fetch remote http://127.0.0.1:1/app.git: cannot connect to 127.0.0.1:1",
        ),
        (
            "http://user:secret@127.0.0.1:1/file",
            "GET http://127.0.0.1:1/file: cannot connect to 127.0.0.1:1",
        ),
    ] {
        let context = only(&engine, "none", &format!("FROM busybox\nADD {remote} /\n"));
        shows(&build(&engine, &[&context]).err(), &[error]);
    }
    engine.has_no_steps();
}

#[test]
fn servers_may_speak_version_0_of_gits_protocol() {
    let engine = Engine::start();
    let host = Host::new();
    let root = host.root.clone();
    // Many web servers do not pass this header on to git.
    let web = Web::start(move |asked| {
        let mut asked = asked.clone();
        asked.headers.retain(|(name, _)| name != "git-protocol");
        backend(&root, &asked)
    });
    for format in ["sha1", "sha256"] {
        let path = host.root.join(format);
        std::fs::create_dir_all(&path).unwrap();
        let object_format = format!("--object-format={format}");
        git(&path, &["init", "-q", &object_format]);
        let first = commit(&path, &[("Dockerfile", DOCKERFILE), ("x", "one")]);
        git(&path, &["tag", "-a", "v1", "-m", "first"]);
        let url = web.url(&format!("/{format}.git"));
        built(&engine, &[&url]);
        let second = commit(&path, &[("x", "two")]);
        for (fragment, x) in [
            ("", "two"),
            ("#v1", "one"),
            ("?tag=v1&keep-git-dir=1", "one"),
            (&*format!("#{second}"), "two"),
            (&*format!("?ref={first}&keep-git-dir=1"), "one"),
        ] {
            built(&engine, &["-t", "app", &format!("{url}{fragment}")]);
            assert_eq!(run(&engine, "app", "cat /c/x"), x, "{format} {fragment}");
        }
    }
    assert!(web.asked().iter().any(|one| one.method == "POST"));
    engine.has_no_builds();
}

#[test]
fn servers_of_plain_files_are_asked_for_objects_and_packs() {
    let engine = Engine::start();
    let host = Host::new();
    let web = plain_files(&host.root);
    let inner = host.repository("inner", &[("deep", "of inner")]);
    git(&inner, &["update-server-info"]);
    for format in ["sha1", "sha256"] {
        let path = host.root.join(format);
        std::fs::create_dir_all(&path).unwrap();
        let object_format = format!("--object-format={format}");
        git(&path, &["init", "-q", &object_format]);
        let noise = whelk_tests::images::noise(100_000);
        std::fs::write(path.join("noise"), &noise).unwrap();
        if format == "sha1" {
            git(&path, &["submodule", "add", "-q", text(&inner), "in"]);
            let url = ["submodule.in.url", "../inner.git"];
            git(
                &path,
                &[&["config", "-f", ".gitmodules"][..], &url].concat(),
            );
        }
        let files = [("Dockerfile", DOCKERFILE), ("x", "one"), ("dir/y", "below")];
        let first = commit(&path, &files);
        git(&path, &["tag", "-a", "v1", "-m", "first"]);
        let url = web.url(&format!("/{format}.git"));
        let check = |fragment: &str, x: &str| {
            git(&path, &["update-server-info"]);
            // What failed builds have asked for.
            web.asked();
            built(&engine, &["-t", "app", &format!("{url}{fragment}")]);
            let look = "cat /c/x /c/dir/y; cat /c/in/deep 2>/dev/null; wc -c < /c/noise";
            let inner = if format == "sha1" { "of inner" } else { "" };
            let found = run(&engine, "app", look);
            assert_eq!(
                found,
                format!("{x}below{inner}100000"),
                "{format} {fragment}"
            );
            let asked = web.asked().into_iter().map(|one| one.path);
            let packs = asked.filter(|path| path.ends_with(".pack"));
            packs.count()
        };
        // Objects with files of their own, packs (a second one has what is unreachable), both, and a pack more.
        assert_eq!(check("", "one"), 0);
        git(&path, &["gc", "-q"]);
        assert!(check("?keep-git-dir=1", "one") > 0);
        commit(&path, &[("x", "two")]);
        assert!(check("#main", "two") > 0);
        git(&path, &["repack", "-q", "-d"]);
        let third = commit(&path, &[("x", "three")]);
        assert!(check(&format!("#{third}"), "three") > 0);
        // A commit that is here.
        assert_eq!(check("#v1", "one"), 0);
        assert_eq!(check(&format!("#{first}"), "one"), 0);
        // What is kept is a repository that git takes.
        let kept = format!("FROM busybox\nADD --keep-git-dir=true {url}#v1 /kept\n");
        let context = only(&engine, format, &kept);
        built(&engine, &["-t", "kept", &context]);
        engine.docker(&["create", "--name", format, "kept"]).ok();
        let out = engine.scratch(&format!("out-{format}"));
        let from = format!("{format}:/kept");
        engine.docker(&["cp", &from, text(&out)]).ok();
        git(&out.join("kept"), &["fsck", "--strict"]);
        assert_eq!(git(&out.join("kept"), &["describe"]), "v1");
        engine.docker(&["rm", format]).ok();
        // Files that are not what they are called, or are not there.
        let fourth = commit(&path, &[("x", "four")]);
        git(&path, &["update-server-info"]);
        let object = |id: &str| path.join(".git/objects").join(&id[..2]).join(&id[2..]);
        let id = git(&path, &["rev-parse", "HEAD:x"]);
        let other = git(&path, &["rev-parse", "HEAD^{tree}"]);
        std::fs::remove_file(object(&id)).unwrap();
        let fails = |error: &str| {
            let failed = build(&engine, &[&format!("{url}#{fourth}")]);
            assert_eq!(failed.code, 1);
            shows(&failed.err(), &[error]);
        };
        fails(&format!("it has no object {id}"));
        std::fs::write(object(&id), "no object").unwrap();
        fails(&format!("read the git object {id}"));
        std::fs::write(object(&id), "").unwrap();
        fails(&format!(
            "failed to fetch remote {url}: read the git object {id}: its file is empty"
        ));
        std::fs::copy(object(&other), path.join("copied")).unwrap();
        std::fs::rename(path.join("copied"), object(&id)).unwrap();
        fails(&format!(
            "read the git object {id}: its content has another id, {other}"
        ));
    }
    engine.has_no_builds();
}

/// Serves the files of the directories `.git` below a root, as [`backend`] calls them, and nothing else.
fn plain_files(root: &Path) -> Web {
    let root = root.to_owned();
    Web::start(move |asked| {
        let path = asked.path.split('?').next().unwrap_or_default();
        let path = path.replacen(".git/", "/.git/", 1);
        match std::fs::read(root.join(path.trim_start_matches('/'))) {
            Ok(content) => Answer::new(200, content),
            Err(_) => Answer::new(404, ""),
        }
    })
}

#[test]
fn servers_that_are_none_of_git_are_told_so() {
    let engine = Engine::start();
    let smart = |body: &str| {
        let kind = "application/x-git-upload-pack-advertisement";
        Answer::new(200, body).header("Content-Type", kind)
    };
    let web = Web::start(move |asked| match asked.path.as_str() {
        path if path.starts_with("/html") => Answer::new(200, "<html>"),
        path if path.starts_with("/bad") => smart("<html>"),
        path if path.starts_with("/old") => smart("001e# service=git-upload-pack\n0000"),
        path if path.starts_with("/liar") && asked.method == "GET" => smart("000eversion 2\n0000"),
        path if path.starts_with("/liar") => Answer::new(200, "000dpackfile\n0008\x01abc0000"),
        path if path.starts_with("/long") => smart(&"0004".repeat((16 << 20) + 1)),
        _ => Answer::new(404, ""),
    });
    let commit = "0123456789012345678901234567890123456789";
    for (path, error) in [
        (
            "html",
            "it neither speaks git's smart protocol nor has a list",
        ),
        ("bad", "the answer is not of git's protocol"),
        (
            "old",
            "it speaks neither version 2 of git's protocol nor version 0",
        ),
        ("liar", "the pack of a git repository"),
        ("long", "the answer has more than 67108864 bytes"),
        (
            "none",
            "404 Not Found: there is no repository, or it has no list of its references (git update-server-info)",
        ),
    ] {
        let url = web.url(&format!("/{path}.git#{commit}"));
        let failed = build(&engine, &[&url]);
        assert_eq!(failed.code, 1);
        shows(&failed.err(), &[error]);
    }
}
