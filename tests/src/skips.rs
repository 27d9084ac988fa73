//! Tests that cannot run on every machine. libtest cannot skip a test while it runs, so such a test
//! returns early, and records why. `make test` compares the records with the list `tests/skips`.

use std::fs::File;
use std::io::Write;

/// Records that the test around it, or a part of that test, is skipped: `return skipped!("why");`
#[macro_export]
macro_rules! skipped {
    ($reason:expr) => {{
        fn here() {}
        $crate::record_skip(std::any::type_name_of_val(&here), $reason)
    }};
}

/// Appends the line `SUITE::TEST: REASON` to the file that `WHELK_SKIPPED` names, or prints it to
/// standard output past libtest's capture. `function` is the type name of [`skipped!`]'s function.
///
/// # Panics
/// Panics if the line cannot be written: an unrecorded skip would look like a success.
#[doc(hidden)]
pub fn record_skip(function: &str, reason: &str) {
    let line = line(function, reason);
    // One write for each line: tests of one process share the file.
    if let Some(path) = std::env::var_os("WHELK_SKIPPED") {
        let file = File::options().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
    } else {
        std::io::stdout().write_all(format!("skipped: {line}").as_bytes())
    }
    .unwrap();
}

fn line(function: &str, reason: &str) -> String {
    let test = function
        .trim_end_matches("::here")
        .replace("::{{closure}}", "");
    format!("{test}: {reason}\n")
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_line_names_the_test_and_the_reason() {
        fn here() {}
        let expected = "whelk_tests::skips::tests::a_line_names_the_test_and_the_reason: no disk\n";
        assert_eq!(line(std::any::type_name_of_val(&here), "no disk"), expected);
        let inner = || {
            fn here() {}
            line(std::any::type_name_of_val(&here), "no disk")
        };
        assert_eq!(inner(), expected);
    }
}
