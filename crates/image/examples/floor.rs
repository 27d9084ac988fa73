//! Measures what a load of an image must cost at least: each part of the work by itself, on one
//! thread, from memory, with the libraries that the crate uses.
//!
//! `cargo run --release -p whelk-image --example floor -- ARCHIVE DIRECTORY`
//!
//! Prints milliseconds of CPU time, the least of three runs: reading is `inflate`, verifying `sha256`
//! (of the compressed and of the unpacked layers), unpacking `files`: creating, writing, and setting the
//! time. `sync` is the time, not of the CPU, that syncfs(2) takes afterwards.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps};
use sha2::{Digest, Sha256};

const BUFFER: usize = 256 << 10;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let (archive, directory) = (arguments.next().unwrap(), arguments.next().unwrap());
    let compressed = layers(Path::new(&archive));
    let mut inflate = Vec::new();
    for _ in 0..3 {
        inflate.push(cpu(|| {
            let mut buffer = vec![0; BUFFER];
            for layer in &compressed {
                let mut decoder = decoder(layer);
                while decoder.read(&mut buffer).unwrap() > 0 {}
            }
        }));
    }
    let unpacked: Vec<Vec<u8>> = compressed
        .iter()
        .map(|layer| {
            let mut content = Vec::new();
            decoder(layer).read_to_end(&mut content).unwrap();
            content
        })
        .collect();
    let mut hash = Vec::new();
    for _ in 0..3 {
        hash.push(cpu(|| {
            for content in compressed.iter().chain(&unpacked) {
                std::hint::black_box(Sha256::digest(content));
            }
        }));
    }
    let (mut files, mut sync, mut count) = (Vec::new(), Vec::new(), 0);
    for _ in 0..3 {
        let root = PathBuf::from(&directory).join(format!("floor.{}", std::process::id()));
        let plans: Vec<Vec<Entry<'_>>> = unpacked.iter().map(|content| plan(content)).collect();
        count = plans.iter().map(Vec::len).sum();
        files.push(cpu(|| {
            for (number, plan) in plans.iter().enumerate() {
                create(plan, &root.join(number.to_string()));
            }
        }));
        let begin = Instant::now();
        let opened = rustix::fs::open(&root, OFlags::RDONLY, Mode::empty()).unwrap();
        rustix::fs::syncfs(&opened).unwrap();
        sync.push(begin.elapsed().as_secs_f64() * 1000.0);
        whelk_sys::fs::remove_tree(&root).unwrap();
    }
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let (inflate, hash, files) = (least(&inflate), least(&hash), least(&files));
    let size = |all: &[Vec<u8>]| all.iter().map(Vec::len).sum::<usize>() >> 20;
    println!(
        "{}: {} layers, {} MiB, unpacked {} MiB, {count} entries",
        Path::new(&archive).display(),
        compressed.len(),
        size(&compressed),
        size(&unpacked)
    );
    println!(
        "  inflate {inflate:.0}  sha256 {hash:.0}  files {files:.0}  inflate and files {:.0}  all {:.0}  (sync {:.0})",
        inflate + files,
        inflate + hash + files,
        least(&sync)
    );
}

/// Returns the layers of a Docker archive, as they are in it.
fn layers(path: &Path) -> Vec<Vec<u8>> {
    let mut archive = tar::Archive::new(whelk_sys::fs::open(path).unwrap());
    let mut layers = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if !content.starts_with(b"{") && !content.starts_with(b"[") {
            layers.push(content);
        }
    }
    layers
}

fn decoder(layer: &[u8]) -> Box<dyn Read + '_> {
    match layer {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(layer)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(layer).unwrap())
        }
        _ => Box::new(layer),
    }
}

/// An entry to create: a directory, or a file with its content.
struct Entry<'a> {
    path: PathBuf,
    content: Option<&'a [u8]>,
    time: i64,
}

fn plan(content: &[u8]) -> Vec<Entry<'_>> {
    let mut archive = tar::Archive::new(content);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let begin = usize::try_from(entry.raw_file_position()).unwrap();
            let size = usize::try_from(entry.size()).unwrap();
            let is_file = entry.header().entry_type().is_file();
            Entry {
                path: entry.path().unwrap().into_owned(),
                content: is_file.then(|| &content[begin..begin + size]),
                time: i64::try_from(entry.header().mtime().unwrap()).unwrap(),
            }
        })
        .collect()
}

/// Creates the entries below `root`, each in its directory, which is open while its files are created.
fn create(plan: &[Entry<'_>], root: &Path) {
    whelk_sys::fs::create_dir_all(root, 0o755).unwrap();
    let mut parent: Option<(&Path, OwnedFd)> = None;
    for entry in plan {
        let Some(content) = entry.content else {
            whelk_sys::fs::create_dir_all(root.join(&entry.path), 0o755).unwrap();
            continue;
        };
        let directory = entry.path.parent().unwrap();
        if parent.as_ref().is_none_or(|(path, _)| *path != directory) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(root.join(directory), flags, Mode::empty()).unwrap();
            parent = Some((directory, opened));
        }
        let (_, directory) = parent.as_ref().unwrap();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let name = entry.path.file_name().unwrap();
        let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).unwrap();
        let mut file = File::from(file);
        file.write_all(content).unwrap();
        let time = Timespec {
            tv_sec: entry.time,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&file, &times).unwrap();
    }
}

/// Returns the milliseconds of CPU time that this thread spends on `work`.
fn cpu(work: impl FnOnce()) -> f64 {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1000.0 + time.tv_nsec as f64 / 1e6
    };
    let begin = now();
    work();
    now() - begin
}
