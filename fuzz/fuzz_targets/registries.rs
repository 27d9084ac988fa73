//! Parses what registries and clients send: challenges, manifests, credentials.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_registry::{Credentials, fuzzing};

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    // Each challenge has a scheme of at least one character, and a separator before the next.
    assert!(fuzzing::challenges(&text) <= text.len());
    let _ = Credentials::from_header(&text);
    if fuzzing::manifest(input) {
        std::str::from_utf8(input).expect("a manifest is UTF-8");
    }
});
