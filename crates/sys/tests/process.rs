//! What only a process with one thread can do. Tests run on threads, so this program does without
//! the usual harness.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

use rustix::process::{WaitOptions, waitpid};
use whelk_sys::process::{CloneFlags, Cloned, clone_process, exit_now};

fn main() {
    a_thread_that_has_ended_is_none();
}

fn a_thread_that_has_ended_is_none() {
    for _ in 0..2000 {
        std::thread::spawn(|| ()).join().unwrap();
        match clone_process(CloneFlags::default(), None).unwrap() {
            Cloned::Child => exit_now(0),
            Cloned::Parent { pid, .. } => drop(waitpid(Some(pid), WaitOptions::empty()).unwrap()),
        }
    }
}
