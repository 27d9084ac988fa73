//! Parses a Dockerfile, its instructions and its stages, with variables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_dockerfile::lint::Linter;
use whelk_dockerfile::{Budget, Environment, Instruction, Lexer, Stages};

fuzz_target!(|text: &str| {
    let Ok(dockerfile) = whelk_dockerfile::parse(text) else {
        return;
    };
    let environment = Environment::new(["a=b", "empty=", "path=/usr/bin:/bin"]);
    let budget = Budget::default();
    for line in &dockerfile.lines {
        let mut lexer = Lexer::new(dockerfile.escape, &environment, &budget);
        let _ = Instruction::read(line, &lexer);
        let _ = lexer.expand(&line.original);
        lexer.keep.quotes = true;
        lexer.keep.unset = true;
        let _ = lexer.expand(&line.original);
    }
    let _ = Stages::parse(&dockerfile, &mut Linter::default());
});
