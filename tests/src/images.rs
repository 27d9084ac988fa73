//! Images: those built from Debian packages, and archives that a test builds itself.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use crate::tar::{self, Tar};
use crate::{Engine, Program};

/// Returns the archive of the image `busybox`.
pub fn busybox() -> PathBuf {
    image("busybox")
}

/// Returns the archive of the image `python`: Debian with Python, about 120 MB.
pub fn python() -> PathBuf {
    image("python")
}

fn image(name: &str) -> PathBuf {
    // `tests/images/make` has a lock among processes; this one serializes the threads of this
    // process.
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

/// Returns the static busybox binary, which is all that an image needs to run something.
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

/// Returns a root file system with a shell and common applets but no `/proc`, `/dev` or `/etc`.
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

/// Like [`bare_root`], with empty mount points, and with users and groups.
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

/// The architecture of this machine in images.
pub const OWN_ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// An image in Docker's archive format, which may be invalid.
#[derive(Clone, Debug)]
pub struct Archive {
    pub tags: Vec<String>,
    pub layers: Vec<Vec<u8>>,
    /// The `config` part of the image's configuration: `Cmd`, `Env`, …
    pub config: Value,
    /// Replaces the layers' real digests.
    pub diff_ids: Option<Vec<String>>,
    pub architecture: String,
}

impl Archive {
    pub fn new(tag: &str, layers: Vec<Vec<u8>>) -> Self {
        let config = json!({"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]});
        Self {
            tags: vec![tag.to_owned()],
            layers,
            config,
            diff_ids: None,
            architecture: OWN_ARCHITECTURE.to_owned(),
        }
    }

    /// Returns the parts by name, so that a test can omit some.
    pub fn parts(&self) -> Vec<(String, Vec<u8>)> {
        let true_ids = || -> Vec<String> {
            self.layers
                .iter()
                .map(|layer| format!("sha256:{}", sha256(layer)))
                .collect()
        };
        let diff_ids = self.diff_ids.clone().unwrap_or_else(true_ids);
        let config = json!({
            "architecture": self.architecture,
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

/// Returns the archive of the image `test/front:1`, which is a frontend of BuildKit's protocol (`whelk-frontend`). Its process has
/// this argument, by which it is found.
pub fn frontend(argument: &str) -> Vec<u8> {
    let program = std::fs::read(Program::beside("whelk-frontend")).expect("read the frontend");
    let root = small_root().program("frontend", program).finish();
    Archive {
        config: json!({
            "Entrypoint": ["/frontend", argument],
            "Labels": {
                "moby.buildkit.frontend.network.none": "true",
                "moby.buildkit.frontend.caps": "moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts,moby.buildkit.frontend.gitquerystring",
            },
        }),
        ..Archive::new("test/front:1", vec![root])
    }
    .build()
}

/// The command that prints the tag of an image that [`marked`] has built.
pub const WHICH: [&str; 2] = ["cat", "/etc/which"];

/// Returns a small image whose file `/etc/which` contains its tag.
pub fn marked(tag: &str) -> Archive {
    let mark = Tar::new().file("etc/which", tag).finish();
    Archive::new(tag, vec![small_root().finish(), mark])
}

/// Returns the paths of everything that an engine has stored of images, relative to its root.
pub fn stored(engine: &Engine) -> Vec<String> {
    let entries = |directory: &str| {
        let listing = std::fs::read_dir(engine.root().join(directory));
        let names = listing.into_iter().flatten().flatten();
        let path = |name: OsString| format!("{directory}/{}", name.display());
        let paths = names.map(|entry| path(entry.file_name()));
        paths.collect::<Vec<_>>()
    };
    let mut found = ["layers", "blobs/sha256", "tmp"].map(entries).concat();
    found.sort();
    found
}

/// Returns such an image for an architecture.
pub fn marked_for(tag: &str, architecture: &str) -> Archive {
    Archive {
        architecture: architecture.to_owned(),
        ..marked(tag)
    }
}

/// Packs parts into a tar archive.
pub fn pack(parts: &[(String, Vec<u8>)]) -> Vec<u8> {
    parts
        .iter()
        .fold(Tar::new(), |tar, (name, content)| tar.file(name, content))
        .finish()
}

/// Returns the SHA-256 digest in hexadecimal digits.
#[track_caller]
pub fn sha256(bytes: &[u8]) -> String {
    digits("sha256sum", bytes)
}

/// Returns the SHA-512 digest in hexadecimal digits.
#[track_caller]
pub fn sha512(bytes: &[u8]) -> String {
    digits("sha512sum", bytes)
}

#[track_caller]
fn digits(program: &str, bytes: &[u8]) -> String {
    let line = String::from_utf8(filter(program, &[], bytes)).expect("digits");
    line.split(' ').next().unwrap_or_default().to_owned()
}

#[track_caller]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    filter("gzip", &["-c", "-n"], bytes)
}

#[track_caller]
pub fn bzip2(bytes: &[u8]) -> Vec<u8> {
    filter("bzip2", &["-c"], bytes)
}

#[track_caller]
pub fn xz(bytes: &[u8]) -> Vec<u8> {
    filter("xz", &["-c"], bytes)
}

/// Encodes bytes as a zstd stream (RFC 8878): one frame of raw blocks, without compression.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    const MAX_BLOCK_SIZE: usize = 128 << 10;
    // Magic number; no content size, no checksum; a window of 128 KiB (2^(10+7)).
    let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    let mut blocks = bytes.chunks(MAX_BLOCK_SIZE).peekable();
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let head = (u32::try_from(block.len()).unwrap_or_default() << 3) | last;
        stream.extend_from_slice(&head.to_le_bytes()[..3]);
        stream.extend_from_slice(block);
    }
    stream
}

/// Encodes zeros as a zstd stream whose blocks have 4 bytes for 128 KiB.
#[must_use]
pub fn zstd_zeros(length: usize) -> Vec<u8> {
    const BLOCK_SIZE: u32 = 128 << 10;
    const REPEATED: u32 = 1 << 1;
    let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    let count = length.div_ceil(BLOCK_SIZE as usize);
    for number in 1..=count {
        let last = u32::from(number == count);
        let head = (BLOCK_SIZE << 3) | REPEATED | last;
        stream.extend_from_slice(&head.to_le_bytes()[..3]);
        stream.push(0);
    }
    stream
}

/// Pipes bytes through a program.
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

/// Bytes that do not compress.
#[must_use]
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}
