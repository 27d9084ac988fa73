//! Build caches of others.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| whelk_build::fuzzing::cache(bytes));
