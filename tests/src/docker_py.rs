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
    let modules = cache("WHELK_DOCKER_PY", "docker-py").join("usr/lib/python3/dist-packages");
    let script = include_str!("docker_py.py");
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(engine.socket())
        .args([registry, user, password, IMAGE])
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
