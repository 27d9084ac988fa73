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
        serde_json::from_slice::<serde_json::Value>(input).expect("a manifest is JSON");
    }
});
