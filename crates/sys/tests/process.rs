//! Tests that need a single-threaded process. The usual harness runs tests on threads, so this
//! program does without it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test panics where something fails"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, waitpid};
use whelk_sys::process::{CloneFlags, Cloned, clone_process, ended_child, exit_now, run_isolated};

fn main() {
    clone_process_ignores_joined_threads();
    run_isolated_keeps_only_the_given_descriptor();
    ended_child_does_not_reap();
}

fn clone_process_ignores_joined_threads() {
    for _ in 0..2000 {
        std::thread::spawn(|| ()).join().unwrap();
        match clone_process(CloneFlags::default(), None).unwrap() {
            Cloned::Child => exit_now(0),
            Cloned::Parent { pid, .. } => drop(waitpid(Some(pid), WaitOptions::empty()).unwrap()),
        }
    }
}

fn run_isolated_keeps_only_the_given_descriptor() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let work = |input: &[u8], kept: OwnedFd| {
        File::from(kept).write_all(input).unwrap();
        // The three streams and the directory itself; `kept` is closed by now.
        i32::try_from(std::fs::read_dir("/proc/self/fd").unwrap().count()).unwrap()
    };
    match clone_process(CloneFlags::default(), None).unwrap() {
        Cloned::Child => run_isolated(3, writer, b"input", work),
        Cloned::Parent { pid, .. } => {
            drop(writer);
            let mut read = String::new();
            File::from(reader).read_to_string(&mut read).unwrap();
            let status = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1;
            assert_eq!((read.as_str(), status.exit_status()), ("input", Some(4)));
        }
    }
}

fn ended_child_does_not_reap() {
    assert_eq!(ended_child(), None);
    match clone_process(CloneFlags::default(), None).unwrap() {
        Cloned::Child => exit_now(7),
        Cloned::Parent { pid, .. } => {
            while ended_child().is_none() {
                std::thread::yield_now();
            }
            assert_eq!((ended_child(), ended_child()), (Some(pid), Some(pid)));
            let status = waitpid(Some(pid), WaitOptions::NOHANG).unwrap().unwrap().1;
            assert_eq!((status.exit_status(), ended_child()), (Some(7), None));
        }
    }
}
