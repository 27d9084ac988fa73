//! docker-py, a library of clients of the Engine API, which `scripts/setup` has unpacked.

use std::process::{Command, Stdio};

use crate::images::marked;
use crate::{Engine, cache};

/// Pushes an image to a registry that wants a login, and pulls it, in all of docker-py's ways.
///
/// # Panics
/// Panics if something is not as docker-py or its users expect it.
#[track_caller]
pub fn pushes_and_pulls(engine: &Engine, registry: &str, user: &str, password: &str) {
    const IMAGE: &str = "app:1";
    engine.load(&marked(IMAGE).build());
    let args = [registry, user, password, IMAGE];
    run(engine, include_str!("images.py"), &args);
}

/// Builds images with all parameters of docker-py.
///
/// # Panics
/// Panics if something is not as docker-py or its users expect it.
#[track_caller]
pub fn builds(engine: &Engine) {
    run(engine, include_str!("builds.py"), &[]);
}

/// Runs a program with the engine's socket and these arguments.
#[track_caller]
fn run(engine: &Engine, program: &str, args: &[&str]) {
    let modules = cache("WHELK_DOCKER_PY", "docker-py").join("usr/lib/python3/dist-packages");
    let output = Command::new("python3")
        .args(["-c", program])
        .arg(engine.socket())
        .args(args)
        .env("PYTHONPATH", modules)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // It stores nothing there; a login of the user who runs the tests is not read.
        .env("DOCKER_CONFIG", engine.scratch("docker-py"))
        .stdin(Stdio::null())
        .output()
        .expect("python3 is started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
