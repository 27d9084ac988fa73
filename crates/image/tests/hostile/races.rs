//! Directories that are exchanged for links while a layer is unpacked.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Bench, apply, dir, file, hard_link, names, pack, symlink, whiteout};
use whelk_sys::fs;

/// While layers are unpacked, another thread repeatedly exchanges their directory for a link.
#[test]
fn concurrent_exchanges_of_directories_do_not_lead_outside() {
    let bench = Bench::new();
    let guard = bench.guard();
    let mut entries = vec![dir("d/"), dir("d/e/"), dir("x/")];
    for number in 0..100 {
        entries.push(file(format!("d/file{number}"), "planted").mode(0o4777));
        entries.push(file(format!("x/{number}"), "x"));
        entries.push(file("d/file", "planted"));
        entries.push(dir("d/directory/").mode(0o777).owner(1, 1));
        entries.push(file(format!("d/e/{number}"), "x"));
        entries.push(symlink(format!("d/l{number}"), "x"));
        entries.push(hard_link(format!("d/h{number}"), format!("x/{number}")));
        entries.push(hard_link(format!("x/h{number}"), "d/file"));
        entries.push(whiteout(&format!("d/w{number}")));
        entries.push(file("d/directory/.wh..wh..opq", ""));
        entries.push(dir(format!("d/n{number}/m/")));
    }
    let (done, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let archive = pack(&entries);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(120) {
                swaps.fetch_add(swap(&bench.base), Ordering::Relaxed);
            }
        });
        let mut rounds = 0;
        // The other thread may have no processor for a while.
        while rounds < 60
            || (swaps.load(Ordering::Relaxed) == 0 && start.elapsed() < Duration::from_secs(60))
        {
            rounds += 1;
            // Unpacking may fail; only its effects outside matter.
            if let Ok(layer) = apply(&bench.store, archive.as_slice(), None) {
                let _ = bench
                    .store
                    .staging
                    .discard(&bench.store.snapshots.path(&layer.diff_id));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(
        swaps.into_inner() > 0,
        "the other thread never exchanged a directory"
    );
    assert_eq!(bench.guard(), guard);
}

/// Repeatedly exchanges `d` of every layer being unpacked for a link to the outside.
fn swap(base: &Path) -> u64 {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let decoy = base.join("decoy");
    if !fs::metadata(&decoy).is_ok_and(|decoy| decoy.is_symlink()) {
        // It is the directory itself, which may still be written to: then the next time.
        if fs::remove_tree(&decoy).is_err()
            || std::os::unix::fs::symlink(base.join("outside"), &decoy).is_err()
        {
            return 0;
        }
    }
    let mut swaps = 0;
    for name in names(&base.join("store/tmp")) {
        let victim = base.join("store/tmp").join(name).join("fs/d");
        if renameat_with(CWD, &victim, CWD, &decoy, RenameFlags::EXCHANGE).is_ok() {
            swaps += 1;
            std::thread::yield_now();
            let _ = renameat_with(CWD, &victim, CWD, &decoy, RenameFlags::EXCHANGE);
        }
    }
    swaps
}
