//! Parses an image reference. The text of a valid one must mean the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_image::Reference;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        for again in [reference.to_string(), reference.familiar()] {
            let again = again
                .parse::<Reference>()
                .expect("parse the text of a reference");
            assert_eq!(again, reference);
        }
    }
});
