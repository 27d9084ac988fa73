//! An engine for one test: started, used, killed, and checked for leftovers at the end.

mod api;
mod process;
mod teardown;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use crate::cli::{Cli, Output, Program, tools};
use crate::{images, leftovers};

/// An engine with its own directories, socket and instance name. Removed with everything it created
/// on drop.
#[derive(Debug)]
pub struct Engine {
    dir: PathBuf,
    name: String,
    env: Vec<(String, String)>,
    /// The soft limit of open files (`RLIMIT_NOFILE`) of the engine's process.
    open_files: Option<u64>,
    /// Further arguments of `whelk daemon`.
    arguments: Mutex<Vec<String>>,
    daemon: Mutex<Option<Child>>,
    /// Whether it has ever answered. If not, it is not asked to clean up.
    served: AtomicBool,
}

impl Engine {
    /// Starts an engine that has the image `busybox`.
    #[track_caller]
    pub fn start() -> Self {
        Self::with_env(&[])
    }

    /// Like [`start`](Self::start), with additional environment variables for the engine.
    #[track_caller]
    pub fn with_env(env: &[(&str, &str)]) -> Self {
        let engine = Self::without_images(env);
        engine.load(&fs::read(images::busybox()).expect("read busybox.tar"));
        engine
    }

    /// Starts an engine without images.
    #[track_caller]
    pub fn without_images(env: &[(&str, &str)]) -> Self {
        Self::with_settings(env, None)
    }

    /// Starts an engine that keeps layers as directories, without images.
    #[track_caller]
    pub fn with_directories() -> Self {
        let engine = Self::without_images(&[]);
        engine.terminate();
        engine.configure(&serde_json::json!({"layers": "directories"}));
        engine.restart();
        engine
    }

    /// Like [`start`](Self::start), with this soft limit of open files for the engine's process.
    #[track_caller]
    pub fn with_open_files(soft: u64) -> Self {
        let engine = Self::with_settings(&[], Some(soft));
        engine.load(&fs::read(images::busybox()).expect("read busybox.tar"));
        engine
    }

    #[track_caller]
    fn with_settings(env: &[(&str, &str)], open_files: Option<u64>) -> Self {
        let (name, dir) = leftovers::new_instance();
        let env = env
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let engine = Self {
            dir,
            name,
            env,
            open_files,
            arguments: Mutex::default(),
            daemon: Mutex::new(None),
            served: AtomicBool::new(false),
        };
        let plugins = serde_json::json!({"cliPluginsExtraDirs": [tools().join("libexec/docker/cli-plugins")]});
        fs::create_dir(engine.docker_config()).expect("make the docker CLI's directory");
        fs::write(
            engine.docker_config().join("config.json"),
            plugins.to_string(),
        )
        .expect("write the docker CLI's settings");
        if crate::layers().is_some() {
            engine.configure(&serde_json::json!({}));
        }
        engine.restart();
        engine
    }

    /// The instance's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("whelk.sock")
    }

    /// Creates a directory for the test's own files, removed with the engine.
    #[track_caller]
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.dir.join("case").join(name);
        fs::create_dir_all(&path).expect("make a directory for the case");
        path
    }

    /// Makes a directory of these files for a test case, and returns its path.
    pub fn scratch_with(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let directory = self.scratch(name);
        for (file, content) in files {
            let path = directory.join(file);
            let parent = path.parent().expect("a file has a directory");
            fs::create_dir_all(parent).expect("make a directory of a file");
            fs::write(path, content).expect("write a file");
        }
        directory
    }

    /// Like [`scratch`](Self::scratch), but returns the path as text for a command line.
    #[track_caller]
    pub fn scratch_text(&self, name: &str) -> String {
        self.scratch(name).display().to_string()
    }

    pub fn cli(&self, program: Program) -> Cli<'_> {
        Cli::new(self, program)
    }

    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Output {
        self.cli(Program::Docker).run(args)
    }

    #[track_caller]
    pub fn whelk(&self, args: &[&str]) -> Output {
        self.cli(Program::Whelk).run(args)
    }

    /// Runs a test with both clients, one after the other, removing all containers after each.
    #[track_caller]
    pub fn both(&self, case: impl Fn(Cli<'_>)) {
        for program in [Program::Docker, Program::Whelk] {
            case(self.cli(program));
            if let Err(error) = self.remove_containers() {
                panic!("with {program:?}: {error}");
            }
        }
    }

    /// Returns the directory of the clients' configuration.
    pub fn docker_config(&self) -> PathBuf {
        self.dir.join("docker-config")
    }

    /// Configures a client to use this engine and to ignore the user's own settings.
    pub(crate) fn set_environment(&self, command: &mut Command) {
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.docker_config())
            .env("DOCKER_CLI_HINTS", "false")
            // Builds with BuildKit need a plugin of the client.
            .env("DOCKER_BUILDKIT", "0")
            .env("LC_ALL", "C");
        for name in [
            "DOCKER_CONTEXT",
            "DOCKER_API_VERSION",
            "DOCKER_TLS",
            "DOCKER_TLS_VERIFY",
            "DOCKER_DEFAULT_PLATFORM",
            "WHELK_HOST",
        ] {
            command.env_remove(name);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("{}", self.last_words());
        }
        let problems = self.tear_down();
        let keep =
            std::env::var_os("WHELK_TEST_KEEP").is_some() && (failed || !problems.is_empty());
        if !keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
        if problems.is_empty() {
            return;
        }
        let text = format!(
            "the engine left resources behind:\n  {}",
            problems.join("\n  ")
        );
        // A second panic would abort the test program.
        if failed {
            eprintln!("{text}");
        } else {
            panic!("{text}");
        }
    }
}

/// Returns the names in a directory; empty if it does not exist.
pub(crate) fn entries(directory: &Path) -> Vec<String> {
    let Ok(listing) = fs::read_dir(directory) else {
        return Vec::new();
    };
    listing
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
