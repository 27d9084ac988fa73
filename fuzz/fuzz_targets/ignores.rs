//! Matches paths by the patterns of an ignore file. A walk from the root must have the same result.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_dockerfile::ignore::{Matched, Matcher, patterns};

fuzz_target!(|text: &str| {
    let (file, rest) = text.split_once('\n').unwrap_or((text, "a/*\n!**/b"));
    let patterns = patterns(rest);
    let Ok(matcher) = Matcher::new(patterns.iter().map(String::as_str)) else {
        return;
    };
    let excluded = matcher.excludes(file);
    let mut parent = Matched::default();
    for (at, _) in file.match_indices('/').filter(|(at, _)| *at > 0) {
        parent = matcher.excludes_in(&file[..at], &parent).1;
    }
    assert_eq!(matcher.excludes_in(file, &parent).0, excluded);
});
