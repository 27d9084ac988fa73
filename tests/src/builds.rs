//! Builds: with the docker CLI in both of its protocols, and with `whelk build`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Cli, Engine, Output, Program, eventually};

/// The docker CLI's variables for builds with BuildKit's protocol. The progress is text.
pub const BUILDKIT: &[(&str, &str)] = &[("DOCKER_BUILDKIT", "1"), ("BUILDKIT_PROGRESS", "plain")];

const CLASSIC: &[(&str, &str)] = &[("DOCKER_BUILDKIT", "0")];

/// The variables of both protocols: the classic one, and BuildKit's.
pub const PROTOCOLS: [&[(&str, &str)]; 2] = [CLASSIC, BUILDKIT];

/// Returns the docker CLI, building with BuildKit's protocol.
#[must_use]
pub fn docker(engine: &Engine) -> Cli<'_> {
    engine.cli(Program::Docker).with_env(BUILDKIT)
}

/// Returns the docker CLI, building with the classic protocol.
#[must_use]
pub fn classic(engine: &Engine) -> Cli<'_> {
    engine.cli(Program::Docker).with_env(CLASSIC)
}

#[must_use]
pub fn whelk(engine: &Engine) -> Cli<'_> {
    engine.cli(Program::Whelk)
}

/// Returns the directory of older plugins of the docker CLI, which `scripts/setup` has unpacked: buildx 0.13 and compose 2.26.
#[must_use]
pub fn old_plugins() -> PathBuf {
    let tools = crate::cache("WHELK_OLD_TOOLS", "old-tools");
    tools.join("usr/libexec/docker/cli-plugins")
}

impl Cli<'_> {
    /// Runs `build ARGS CONTEXT`.
    #[track_caller]
    pub fn build(self, context: impl AsRef<Path>, args: &[&str]) -> Output {
        let context = context.as_ref().to_str().expect("a path that is text");
        self.run(&[&["build"], args, &[context]].concat())
    }

    /// Builds, which must succeed, and returns all that was shown.
    #[track_caller]
    pub fn built(self, context: impl AsRef<Path>, args: &[&str]) -> String {
        self.build(context, args).exits(0)
    }

    /// Builds, which must fail with these words. Returns all that was shown.
    #[track_caller]
    pub fn build_fails(
        self,
        context: impl AsRef<Path>,
        args: &[&str],
        expected: &[&str],
    ) -> String {
        let output = self.build(context, args);
        let shown = output.shown();
        assert_ne!(output.code, 0, "{args:?}: {shown}");
        shows(&shown, expected);
        shown
    }
}

impl Output {
    /// Both streams as text, first the standard output.
    pub fn shown(&self) -> String {
        self.out() + &self.err()
    }
}

impl Engine {
    /// Makes a context that has only a Dockerfile.
    #[track_caller]
    pub fn dockerfile(&self, name: &str, dockerfile: &str) -> PathBuf {
        self.scratch_with(name, &[("Dockerfile", dockerfile)])
    }

    /// Creates the network `mine`, and on it the container `server`, which answers steps for `http://server/passwd`.
    #[track_caller]
    pub fn serve_on_network(&self) {
        self.docker(&["network", "create", "mine"]).ok();
        let run = ["run", "-d", "--name", "server", "--network", "mine"];
        let httpd = ["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];
        self.docker(&[&run[..], &httpd].concat()).ok();
        let ask = ["exec", "server", "wget", "-q", "-O", "-"];
        let ask = [&ask[..], &["http://127.0.0.1/passwd"]].concat();
        eventually("the server to listen", || {
            (self.docker(&ask).code == 0).then_some(())
        });
    }

    /// Removes what [`serve_on_network`](Self::serve_on_network) has made.
    #[track_caller]
    pub fn end_server(&self) {
        self.docker(&["rm", "-f", "server"]).ok();
        self.docker(&["network", "rm", "mine"]).ok();
    }

    /// Returns what the API tells of an image.
    #[track_caller]
    pub fn image(&self, name: &str) -> Value {
        self.get(&format!("/images/{name}/json"))
    }

    /// Waits until nothing is left of builds that have ended, and the store is sound.
    #[track_caller]
    pub fn has_no_builds(&self) {
        self.has_no_steps();
        eventually("the store to be sound", || {
            let check = self.whelk(&["system", "check", "--layers"]);
            (check.code == 0).then_some(())
        });
    }

    /// Waits until no step runs, and their files are removed.
    #[track_caller]
    pub fn has_no_steps(&self) {
        let count = |path: PathBuf| fs::read_dir(path).map_or(0, Iterator::count);
        eventually("files of steps to be removed", || {
            let left = count(self.root().join("tmp")) + count(self.run().join("workloads"));
            (left == 0).then_some(())
        });
    }
}

/// Makes an image whose program writes statements: a generator of `--sbom`.
#[track_caller]
pub fn scanner(engine: &Engine, name: &str, script: &str) {
    let dockerfile = "FROM busybox\nCOPY scan /scan\nENTRYPOINT [\"/bin/sh\"]\nCMD [\"/scan\"]\n";
    let place = engine.scratch_with("scanner", &[("Dockerfile", dockerfile), ("scan", script)]);
    docker(engine).built(&place, &["-t", name]);
}

/// Checks that a text has all of these in it.
///
/// # Panics
/// Panics if one is missing.
#[track_caller]
pub fn shows(text: &str, expected: &[&str]) {
    for wanted in expected {
        assert!(text.contains(wanted), "{wanted:?} in {text}");
    }
}

/// Reads a file of JSON.
///
/// # Panics
/// Panics if that is not possible.
#[track_caller]
#[must_use]
pub fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read a file")).expect("JSON")
}
