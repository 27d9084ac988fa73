//! Decodes the bodies of API requests. What is JSON elsewhere must be JSON here.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let valid = whelk_api::fuzzing::body(body);
    if serde_json::from_slice::<serde_json::Value>(body).is_ok() {
        assert!(valid);
    }
});
