//! An export with few open files. In a file of its own, because the limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use common::nested;
use whelk_image::export_directory;

/// Neither the stack nor the number of open files may depend on it.
#[test]
fn depth_is_no_reason_to_break_an_export_off() {
    const LEVELS: usize = 6000;
    let base = nested("deepest", LEVELS);
    let few = rustix::process::Rlimit {
        current: Some(256),
        ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    let export = || export_directory(&base, std::io::sink());
    let result = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn_scoped(scope, export);
        thread.unwrap().join().unwrap()
    });
    whelk_sys::fs::remove_tree(&base).unwrap();
    result.unwrap();
}
