//! Executes a Go template on a value with all kinds of JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use whelk_gotemplate::{Mode, Template, Typed};

fuzz_target!(|text: &str| {
    // `range 9999999` is valid, and takes its time.
    let mut numbers = text.split(|c: char| !c.is_ascii_alphanumeric());
    if numbers.any(|number| number.len() > 3 && number.starts_with(|c: char| c.is_ascii_digit())) {
        return;
    }
    let Ok(template) = Template::parse(text) else {
        return;
    };
    let value = Typed::any(json!({
        "Name": "a", "List": [1, "b", null, [2.5]], "Map": {"k": {"n": -1}}, "Yes": true, "Nil": null,
    }));
    for mode in [Mode::Values, Mode::Headings, Mode::Raw] {
        let _ = template.execute(&value, mode);
    }
});
