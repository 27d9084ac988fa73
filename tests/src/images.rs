//! Images: those made from Debian packages, and such as a case makes for itself.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use crate::tar::{self, Tar};

/// The archive of the image `busybox`.
pub fn busybox() -> PathBuf {
    image("busybox")
}

/// The archive of the image `python`: Debian with Python, about 120 MB.
pub fn python() -> PathBuf {
    image("python")
}

fn image(name: &str) -> PathBuf {
    // The recipe has a lock among processes; this one keeps the threads of this process from all
    // asking for it.
    static MAKING: Mutex<()> = Mutex::new(());
    let directory = crate::cache("WHELK_TEST_IMAGES", "images");
    let path = directory.join(format!("{name}.tar"));
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if !path.exists() {
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/images/make");
        let status = Command::new(recipe)
            .arg(&directory)
            .arg(name)
            .stdin(Stdio::null())
            .status()
            .expect("run tests/images/make");
        assert!(
            status.success(),
            "{recipe} {} {name}: {status}",
            directory.display()
        );
    }
    path
}

/// The program busybox itself, static: all that an image needs to run something.
pub fn busybox_program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let archive = std::fs::read(busybox()).expect("read busybox.tar");
        let manifest: Value =
            serde_json::from_slice(&tar::file(&archive, "manifest.json")).expect("a manifest");
        let layer = manifest[0]["Layers"][0]
            .as_str()
            .expect("a layer")
            .to_owned();
        tar::file(&tar::file(&archive, &layer), "bin/busybox")
    })
}

/// A root file system with a shell and the usual small programs, but nothing else: no `/proc`,
/// `/dev`, `/etc`.
pub fn bare_root() -> Tar {
    let mut root = Tar::new()
        .dir("bin")
        .program("bin/busybox", busybox_program());
    for applet in [
        "sh", "cat", "id", "ls", "env", "pwd", "sleep", "true", "echo", "touch", "mkdir", "stat",
        "wc", "grep", "readlink",
    ] {
        root = root.symlink(&format!("bin/{applet}"), "busybox");
    }
    root
}

/// The same with empty directories for what is mounted, and users.
pub fn small_root() -> Tar {
    let root = ["proc", "dev", "sys", "etc", "tmp"]
        .iter()
        .fold(bare_root(), |root, path| root.dir(path));
    root.file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )
    .file("etc/group", "root:x:0:\nnobody:x:65534:\n")
}

/// An image in Docker's archive format, with everything as the case wants it, right or wrong.
#[derive(Clone, Debug)]
pub struct Archive {
    pub tags: Vec<String>,
    pub layers: Vec<Vec<u8>>,
    /// The part of the image's configuration that containers get: `Cmd`, `Env`, …
    pub config: Value,
    /// In place of the layers' true digests.
    pub diff_ids: Option<Vec<String>>,
}

impl Archive {
    pub fn new(tag: &str, layers: Vec<Vec<u8>>) -> Self {
        let config = json!({"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]});
        Self {
            tags: vec![tag.to_owned()],
            layers,
            config,
            diff_ids: None,
        }
    }

    /// The parts by name, for a case to leave some out.
    pub fn parts(&self) -> Vec<(String, Vec<u8>)> {
        let true_ids = || -> Vec<String> {
            self.layers
                .iter()
                .map(|layer| format!("sha256:{}", sha256(layer)))
                .collect()
        };
        let diff_ids = self.diff_ids.clone().unwrap_or_else(true_ids);
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": self.layers.iter().map(|_| json!({"created": "2024-01-01T00:00:00Z", "created_by": "a test"})).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        let config_name = format!("{}.json", sha256(&config));
        let names: Vec<String> = (0..self.layers.len())
            .map(|index| format!("layer{index}/layer.tar"))
            .collect();
        let manifest = json!([{"Config": config_name, "RepoTags": self.tags, "Layers": names}]);
        let mut parts: Vec<(String, Vec<u8>)> =
            names.into_iter().zip(self.layers.iter().cloned()).collect();
        parts.push((config_name, config));
        parts.push((
            "manifest.json".to_owned(),
            manifest.to_string().into_bytes(),
        ));
        parts
    }

    pub fn build(&self) -> Vec<u8> {
        pack(&self.parts())
    }
}

/// An archive of files.
pub fn pack(parts: &[(String, Vec<u8>)]) -> Vec<u8> {
    parts
        .iter()
        .fold(Tar::new(), |tar, (name, content)| tar.file(name, content))
        .finish()
}

/// The digest of some bytes, in hexadecimal digits.
#[track_caller]
pub fn sha256(bytes: &[u8]) -> String {
    let line = String::from_utf8(filter("sha256sum", &[], bytes)).expect("digits");
    line.split(' ').next().unwrap_or_default().to_owned()
}

#[track_caller]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    filter("gzip", &["-c", "-n"], bytes)
}

/// A zstd stream (RFC 8878) that holds the bytes as they are: one frame of raw blocks.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    const LARGEST_BLOCK: usize = 128 << 10;
    // Magic number; no content size, no checksum; a window of 128 KiB (2^(10+7)).
    let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    let mut blocks = bytes.chunks(LARGEST_BLOCK).peekable();
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let head = (u32::try_from(block.len()).unwrap_or_default() << 3) | last;
        stream.extend_from_slice(&head.to_le_bytes()[..3]);
        stream.extend_from_slice(block);
    }
    stream
}

/// Sends bytes through a program.
#[track_caller]
fn filter(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a filter");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut output = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("write to a filter"));
        stdout.read_to_end(&mut output).expect("read from a filter");
    });
    assert!(
        child.wait().expect("wait for a filter").success(),
        "{program} failed"
    );
    output
}
