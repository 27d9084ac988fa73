//! Parses a Dockerfile and its instructions, with variables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_dockerfile::{Budget, Environment, Instruction, Lexer};

fuzz_target!(|text: &str| {
    let Ok(dockerfile) = whelk_dockerfile::parse(text) else {
        return;
    };
    let environment = Environment::new(["a=b", "empty=", "path=/usr/bin:/bin"]);
    let budget = Budget::default();
    for line in &dockerfile.lines {
        let lexer = Lexer {
            escape: dockerfile.escape,
            environment: &environment,
            budget: &budget,
        };
        let _ = Instruction::read(line, &lexer);
        let _ = (lexer.word(&line.rest), lexer.words(&line.rest));
    }
});
