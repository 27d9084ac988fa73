//! Export with a low limit of open files. In a test binary of its own, because the limit applies to the
//! whole process.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use common::nested;
use whelk_image::snapshots::export_directory;

/// Neither the stack nor the number of open files may depend on the depth.
#[test]
fn exports_trees_of_any_depth() {
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
