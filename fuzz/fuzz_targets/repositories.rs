//! What servers of git repositories send.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| whelk_build::fuzzing::repository(bytes));
