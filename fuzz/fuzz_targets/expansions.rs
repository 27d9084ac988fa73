//! Expands words with variables whose values are part of the input: `ESCAPE`, the values of `A` and `B`, and the words, each on a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_dockerfile::{Budget, Environment, Keep, Lexer, MAX_WORD};

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let escape = if line().starts_with('`') { '`' } else { '\\' };
    let (a, b, words) = (line(), line(), line());
    let mut environment = Environment::default();
    environment.set("A", a);
    environment.set("B", b);
    let budget = Budget::default();
    let mut lexer = Lexer::new(escape, &environment, &budget);
    // A value is inserted as it is.
    assert_eq!(lexer.word("$A").ok().as_deref(), Some(a));
    let quoted = lexer.words("\"${A}\"").expect("expand a variable");
    assert_eq!(quoted.concat(), a);
    assert!(quoted.len() <= 1);
    if let Ok(expansion) = lexer.expand(words) {
        assert!(expansion.text.len() <= MAX_WORD);
        assert!(expansion.set.is_disjoint(&expansion.unset));
        let special = ['$', '\'', '"', '<', escape];
        if !words.contains(special) {
            assert_eq!(expansion.text, words);
            let split: Vec<&str> = words.split_whitespace().collect();
            assert_eq!(expansion.words, split);
        }
    }
    for bits in 1..16_u8 {
        lexer.keep = Keep {
            quotes: bits & 1 != 0,
            escapes: bits & 2 != 0,
            unset: bits & 4 != 0,
            quotes_are_text: bits & 8 != 0,
        };
        let _ = lexer.expand(words);
    }
});
