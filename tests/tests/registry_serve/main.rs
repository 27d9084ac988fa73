//! `whelk registry serve`: pulls from it, with and without password and TLS, and after kill -9.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod access;
mod cache;
mod check;
mod clients;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use whelk_tests::images::{Archive, WHICH, gzip, marked, sha256, sha512};
use whelk_tests::{Engine, Program, Scratch, eventually, free_port};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Computes a digest with its algorithm's name.
type Digest = fn(&[u8]) -> String;

fn of_sha256(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}

fn of_sha512(content: &[u8]) -> String {
    format!("sha512:{}", sha512(content))
}

/// A registry. It is killed, and its directory removed, on drop.
struct Served {
    directory: Scratch,
    host: String,
    flags: Vec<String>,
    process: Process,
}

/// Kills and reaps the process on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Served {
    fn start(name: &str) -> Self {
        Self::with_flags(name, |_| Vec::new())
    }

    /// Starts a registry with additional flags; `flags` gets its directory, to create files there.
    fn with_flags(name: &str, flags: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = Scratch::new(&format!("registry-serve-{name}"));
        let host = format!("127.0.0.1:{}", free_port());
        let flags = flags(&directory);
        let process = spawn(&directory, &host, &flags);
        Self {
            directory,
            host,
            flags,
            process,
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process.0);
        kill_process(pid, signal).unwrap();
    }

    fn restart(&mut self, signal: Signal) {
        self.signal(signal);
        self.process.0.wait().unwrap();
        self.process = spawn(&self.directory, &self.host, &self.flags);
    }

    /// Sends a request and returns the status, the headers and the body.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n",
            self.host
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, all.split_off(end + 4))
    }

    fn push_blob(&self, repository: &str, kind: &str, content: &[u8], digest: Digest) -> Value {
        let digest = digest(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send("POST", &path, "", content).0, 201);
        json!({"mediaType": kind, "digest": digest, "size": content.len()})
    }

    /// Pushes an image and returns its name and its digest.
    fn push(&self, repository: &str, tag: &str, image: &Archive) -> (String, String) {
        let manifest = self.push_blobs(repository, image, of_sha256);
        self.push_manifest(repository, tag, &manifest);
        let name = format!("{}/{repository}:{tag}", self.host);
        (name, of_sha256(manifest.as_bytes()))
    }

    /// Pushes what an image consists of, and returns its manifest.
    fn push_blobs(&self, repository: &str, image: &Archive, digest: Digest) -> String {
        let parts = image.parts();
        let config = parts
            .iter()
            .find(|(name, _)| name.ends_with(".json") && name != "manifest.json");
        let config = &config.unwrap().1;
        let layers = image.layers.iter().map(|layer| {
            let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
            self.push_blob(repository, kind, &gzip(layer), digest)
        });
        let kind = "application/vnd.oci.image.config.v1+json";
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "layers": layers.collect::<Vec<_>>(),
            "config": self.push_blob(repository, kind, config, digest),
        })
        .to_string()
    }

    fn push_manifest(&self, repository: &str, version: &str, manifest: &str) {
        let path = format!("/v2/{repository}/manifests/{version}");
        let (status, head, body) = self.send("PUT", &path, MANIFEST, manifest.as_bytes());
        assert_eq!(status, 201, "{head}\n{}", body.escape_ascii());
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(Program::Whelk.path());
    command.args(["registry", "serve"]).args(arguments);
    command
}

/// Starts a registry and waits until it accepts connections.
fn spawn(directory: &Path, host: &str, flags: &[String]) -> Process {
    let root = directory.join("root");
    let process = command(&["--root", root.to_str().unwrap(), "--listen", host])
        .args(flags)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(process);
    eventually("the registry", || TcpStream::connect(host).ok());
    process
}

#[test]
fn images_are_pulled_by_both_clients() {
    let engine = Engine::without_images(&[]);
    let mut served = Served::start("pull");
    let (name, digest) = served.push("team/app", "1", &marked("app:1"));
    engine.both(|cli| {
        let out = cli.run(&["pull", &name]).ok();
        assert!(out.contains(&format!("Digest: {digest}")), "{out}");
        assert_eq!(cli.once(&name, &WHICH).ok(), "app:1");
        let by_digest = format!("{}/team/app@{digest}", served.host);
        assert_eq!(cli.run(&["pull", "-q", &by_digest]).ok(), by_digest);
        cli.run(&["rmi", "-f", &name, &by_digest]).ok();
    });
    // The image survives a crash and a stop of the registry.
    for signal in [Signal::KILL, Signal::TERM] {
        served.restart(signal);
        engine.whelk(&["pull", &name]).ok();
        engine.whelk(&["rmi", "-f", &name]).ok();
    }
    assert_eq!(
        served.send("DELETE", "/v2/team/app/manifests/1", "", b"").0,
        202
    );
    engine.whelk(&["pull", &name]).refuses(1, "not found");
}

#[test]
fn images_with_sha512_digests_are_pulled_and_pushed() {
    let engine = Engine::without_images(&[]);
    let served = Served::start("sha512");
    let manifest = served.push_blobs("app", &marked("app:1"), of_sha512);
    let digest = of_sha512(manifest.as_bytes());
    served.push_manifest("app", &digest, &manifest);
    served.push_manifest("app", "1", &manifest);
    let by_tag = format!("{}/app:1", served.host);
    let by_digest = format!("{}/app@{digest}", served.host);
    engine.both(|cli| {
        for name in [&by_digest, &by_tag] {
            cli.run(&["pull", name]).ok();
            assert_eq!(cli.once(name, &WHICH).ok(), "app:1");
        }
        let id = "{{.Id}}";
        let ids = cli.run(&["image", "inspect", "-f", id, &by_tag, &by_digest]);
        let ids = ids.ok();
        let ids: Vec<&str> = ids.lines().collect();
        assert!(ids[0].starts_with("sha256:") && ids[0] == ids[1], "{ids:?}");
        // What is pushed is what was pulled, to the byte.
        let repository = format!("{:?}", cli.program()).to_lowercase();
        let copy = format!("{}/{repository}:copy", served.host);
        cli.run(&["tag", &by_tag, &copy]).ok();
        cli.run(&["push", &copy]).ok();
        let path = format!("/v2/{repository}/manifests/copy");
        let (status, _, body) = served.send("GET", &path, "", b"");
        assert_eq!((status, body.as_slice()), (200, manifest.as_bytes()));
        cli.run(&["rmi", "-f", &by_tag, &by_digest, &copy]).ok();
    });
    let listed =
        engine
            .cli(Program::Whelk)
            .run(&["manifest", "inspect", "--insecure", "-v", &by_digest]);
    let listed: Value = serde_json::from_str(&listed.ok()).unwrap();
    assert_eq!(listed["Descriptor"]["digest"], digest);
    // A configuration that is not what its digest says any more is not sent.
    let blobs = served.directory.join("root/blobs/sha512");
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = blobs.join(config.trim_start_matches("sha512:"));
    let length = std::fs::metadata(&config).unwrap().len();
    std::fs::write(&config, vec![b' '; usize::try_from(length).unwrap()]).unwrap();
    let pull = engine.whelk(&["pull", &by_tag]);
    pull.refuses(1, "was damaged on the registry's disk; push it again");
    assert_eq!(engine.whelk(&["images", "-q"]).ok(), "");
}

#[test]
fn an_upload_is_resumed_after_kill_9() {
    let mut served = Served::start("kill");
    let content: Vec<u8> = (0..5_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let (_, head, _) = served.send("POST", "/v2/a/blobs/uploads/", "", b"");
    let place = head
        .lines()
        .find_map(|line| line.strip_prefix("location: "));
    let place = place.unwrap().to_owned();
    let mut stream = TcpStream::connect(&served.host).unwrap();
    let head = format!(
        "PATCH {place} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        content.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&content[..2_000_000]).unwrap();
    let arrived = |served: &Served| {
        let (status, head, _) = served.send("GET", &place, "", b"");
        assert_eq!(status, 204);
        let range = head.lines().find_map(|line| line.strip_prefix("range: 0-"));
        range.unwrap().parse::<usize>().unwrap() + 1
    };
    eventually("a part of the blob", || {
        (arrived(&served) > 1_000_000).then_some(())
    });
    served.restart(Signal::KILL);
    let begin = arrived(&served);
    assert!((1_000_000..=2_000_000).contains(&begin), "{begin}");
    let digest = sha256(&content);
    let end = format!("{place}?digest=sha256:{digest}");
    assert_eq!(served.send("PUT", &end, "", &content[begin..]).0, 201);
    let blob = format!("/v2/a/blobs/sha256:{digest}");
    assert!(served.send("GET", &blob, "", b"").2 == content);
}

/// Writes a file with users, whose password is `sesame`, and returns the flag for it.
fn users(directory: &std::path::Path, names: &[&str]) -> String {
    let users = directory.join("users");
    let hash = bcrypt::hash("sesame", 4).unwrap();
    let lines = names.iter().map(|name| format!("{name}:{hash}\n"));
    std::fs::write(&users, lines.collect::<String>()).unwrap();
    format!("--htpasswd={}", users.display())
}

#[test]
fn invalid_settings_are_refused() {
    let root = std::env::temp_dir().join(format!("whelk-registry-refused-{}", std::process::id()));
    let root = root.to_str().unwrap();
    for (arguments, text) in [
        (
            &["--root", root, "--listen", "0.0.0.0:0"][..],
            "other hosts could connect",
        ),
        (&["--root", root, "--listen", "[::]:0"], "or --insecure"),
        (
            &["--root", root, "--htpasswd", "/nonexistent"],
            "/nonexistent",
        ),
        (&["--root", root, "--tls-cert", "x"], "--tls-key"),
        (
            &["--root", root, "--proxy", "x"],
            "want https://HOST[:PORT]",
        ),
        (&["--root", root, "--proxy-size", "1GB"], "--proxy <URL>"),
        (&["--root", root, "--access", "x"], "--htpasswd <FILE>"),
        (
            &["--root", root, "--proxy=https://x", "--proxy-keep=0s"],
            "want a duration above zero",
        ),
        (&["--root", root, "--listen", "x"], "invalid value"),
        (&[], "--root"),
        (&["--bogus"], "See 'whelk registry --help'"),
    ] {
        let output = command(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && error.contains(text),
            "{arguments:?}: {error}"
        );
    }
    assert!(!std::path::Path::new(root).exists());
    let served = Served::start("taken");
    let taken = served.directory.join("root");
    let arguments = ["--root", taken.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let output = command(&arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("is in use by another registry"), "{error}");
}
