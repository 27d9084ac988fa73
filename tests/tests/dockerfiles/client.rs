//! Builds of all cases with the docker CLI on one engine, and what they have given.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use whelk_tests::{Engine, Program, Scratch};

use crate::case::{Case, Protocol};
use crate::{Observation, Observations, image};

/// How many builds run at a time: a client waits most of the time.
const THREADS: usize = 4;

/// Images are saved this many at a time.
const SAVED_AT_A_TIME: usize = 100;

pub struct Client {
    host: String,
    scratch: Scratch,
}

impl Client {
    pub fn of_engine(engine: &Engine) -> Self {
        Self::new(format!("unix://{}", engine.socket().display()))
    }

    /// Another engine. It gets the image `busybox`.
    pub fn of_host(host: &str) -> Self {
        let client = Self::new(host.to_owned());
        let busybox = whelk_tests::images::busybox();
        let mut load = client.command();
        let output = load.args(["load", "-qi"]).arg(busybox).output();
        let output = output.expect("start docker load");
        assert!(output.status.success(), "{}", text(&output.stderr));
        // Its results may have other times.
        let mut prune = client.command();
        let output = prune.args(["builder", "prune", "-af"]).output();
        let output = output.expect("start docker builder prune");
        assert!(output.status.success(), "{}", text(&output.stderr));
        client
    }

    fn new(host: String) -> Self {
        let scratch = Scratch::new("dockerfiles");
        // Of all clients of docker in this process.
        let config = scratch.directory("docker");
        fs::write(config.join("config.json"), "{}").expect("write settings");
        Self { host, scratch }
    }

    fn command(&self) -> Command {
        self.program(&Program::Docker.path())
    }

    /// Builds with BuildKit's protocol. `docker build` runs this plugin, but needs twice the time for it.
    fn buildx(&self) -> Command {
        let docker = Program::Docker.path();
        let plugins = docker
            .parent()
            .unwrap()
            .join("../libexec/docker/cli-plugins");
        self.program(&plugins.join("docker-buildx"))
    }

    fn program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.scratch.as_os_str())
            .env("LC_ALL", "C")
            .env("DOCKER_HOST", &self.host)
            .env("DOCKER_CONFIG", self.scratch.join("docker"))
            .env("DOCKER_CLI_HINTS", "false")
            .env("BUILDKIT_PROGRESS", "plain")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Builds all cases with each protocol.
    #[track_caller]
    pub fn observe(&self, cases: &[Case]) -> Observations {
        let work = cases.iter().flat_map(|case| {
            let protocols = case.protocols().into_iter();
            protocols.map(move |protocol| (case, protocol))
        });
        let work: Vec<(&Case, Protocol)> = work.collect();
        let built = self.build_all(&work);
        let tags = built.iter().filter(|(_, built)| built.tag.is_some());
        let tags: Vec<&str> = tags.filter_map(|(_, built)| built.tag.as_deref()).collect();
        let mut images = BTreeMap::new();
        for tags in tags.chunks(SAVED_AT_A_TIME) {
            images.extend(image::read(&self.save(tags)));
        }
        let finish = |((name, protocol), built): ((String, Protocol), Built)| {
            let mut lines = built.lines;
            if let Some(tag) = built.tag {
                let image = images.get(&tag).expect("an image that was built");
                lines.extend(image.describe(protocol));
            }
            ((name, protocol), lines)
        };
        built.into_iter().map(finish).collect()
    }

    fn build_all(&self, work: &[(&Case, Protocol)]) -> BTreeMap<(String, Protocol), Built> {
        let next = AtomicUsize::new(0);
        let all = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some((case, protocol)) =
                        work.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let built = self.build(case, *protocol);
                        let key = (case.name.clone(), *protocol);
                        all.lock().unwrap().insert(key, built);
                    }
                });
            }
        });
        all.into_inner().unwrap()
    }

    fn build(&self, case: &Case, protocol: Protocol) -> Built {
        // Of a directory with the same name, a builder keeps files with the same name, size and time.
        let context: PathBuf = self.scratch.join(format!("{}-{protocol}", case.name));
        case.write_context(&context);
        let tag = format!("case-{}:{protocol}", case.name.to_lowercase());
        let mut command = match protocol {
            Protocol::BuildKit => self.buildx(),
            Protocol::Classic => self.command(),
        };
        command
            .env("DOCKER_BUILDKIT", "0")
            .envs(case.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&context)
            .args(["build", "-t", &tag])
            .args(&case.flags)
            .arg(".");
        let output = command.output().expect("start docker build");
        let mut lines = match protocol {
            Protocol::BuildKit => buildkit_texts(&output),
            Protocol::Classic => classic_texts(&output),
        };
        let context = context.display().to_string();
        for line in &mut lines {
            *line = line.replace(&context, "CONTEXT");
        }
        let is_built = output.status.success() && !is_only_checked(&case.flags);
        Built {
            lines,
            tag: is_built.then_some(tag),
        }
    }

    #[track_caller]
    fn save(&self, tags: &[&str]) -> Vec<u8> {
        let path: &Path = &self.scratch.join("saved.tar");
        let mut save = self.command();
        let save = save.args(["save", "-o"]).arg(path).args(tags);
        let output = save.output().expect("start docker save");
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs::read(path).expect("read what was saved")
    }
}

/// A build that has ended.
struct Built {
    /// Warnings and errors.
    lines: Observation,
    /// The image, if it succeeded.
    tag: Option<String>,
}

fn is_only_checked(flags: &[String]) -> bool {
    let is_check = |flag: &String| flag == "--check" || flag.starts_with("--call");
    flags.iter().any(is_check)
}

/// Returns the warnings and the error of a build with BuildKit's protocol, with the lines of the Dockerfile.
fn buildkit_texts(output: &Output) -> Observation {
    let shown = text(&output.stderr);
    let begins = |line: &&str| {
        let is_place = line.split_once("ockerfile:");
        *line == "------"
            || line.starts_with("ERROR: ")
            || line.contains(" found (use docker --debug to expand)")
            || is_place.is_some_and(|(_, number)| number.parse::<u32>().is_ok())
    };
    let lines: Vec<&str> = shown.lines().collect();
    let first = lines.iter().position(begins);
    let relevant = first.map_or(&[][..], |first| &lines[first..]);
    let mut lines: Observation = relevant.iter().map(|line| stderr_line(line)).collect();
    // The client shows warnings in any order.
    let is_warning = |line: &String| line.starts_with("|  - ");
    for group in lines.chunk_by_mut(|one, other| is_warning(one) && is_warning(other)) {
        group.sort();
    }
    lines
}

/// Returns the warnings and the error of a classic build.
fn classic_texts(output: &Output) -> Observation {
    let shown = text(&output.stderr);
    let notice = [
        "DEPRECATED: The legacy",
        "            BuildKit is",
        "            environment-",
        "            Install the buildx",
    ];
    let errors = shown
        .lines()
        .filter(|line| !line.is_empty() && !notice.iter().any(|start| line.starts_with(start)));
    // The client says so if there was no progress yet.
    let errors = errors.map(|line| {
        line.strip_prefix("Error response from daemon: ")
            .unwrap_or(line)
    });
    let mut lines: Observation = errors.map(stderr_line).collect();
    let shown = text(&output.stdout);
    let warnings = shown.lines().filter(|line| line.starts_with("[Warning]"));
    lines.extend(warnings.map(stderr_line));
    lines
}

/// Replaces what is different with each build: times, and ids of results.
fn stderr_line(line: &str) -> String {
    // Colors.
    let plain = line.replace("\u{1b}[33m", "").replace("\u{1b}[0m", "");
    // What has failed first is known by chance: the call, or what it waits for.
    let plain = plain.replace("failed to run Build function: ", "failed to solve: ");
    let mut line = plain.trim_end();
    if let Some((time, rest)) = line.split_once(' ')
        && time.contains('.')
        && time.parse::<f64>().is_ok()
    {
        line = rest;
    }
    // The root of a stage: `…/overlay2/ID/merged`.
    let rootless = line.split_once("/overlay2/").and_then(|(before, after)| {
        let begin = before.rfind(' ')? + 1;
        let end = after.find("/merged").or_else(|| after.find("/diff"))?;
        let rest = after[end + 1..].split_once('/')?.1;
        Some(format!("{}ROOT/{rest}", &before[..begin]))
    });
    let line = rootless.as_deref().unwrap_or(line);
    // `ref ID: …`
    let line = match line.split_once(" ref ") {
        Some((before, after)) => match after.split_once(": ") {
            Some((_, after)) => format!("{before} ref: {after}"),
            None => line.to_owned(),
        },
        None => line.to_owned(),
    };
    format!("| {line}")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
