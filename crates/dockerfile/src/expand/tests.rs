use super::*;

/// BuildKit's test cases: `platform|input|expansion`.
#[test]
fn expands_variables_like_buildkit() {
    let environment = Environment::new(["PWD=/home", "SHELL=bash", "KOREAN=한국어", "NULL="]);
    let budget = Budget::default();
    let lexer = Lexer::new('\\', &environment, &budget);
    let mut count = 0;
    for line in include_str!("../../tests/variables.txt")
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        let mut fields = line.splitn(3, '|').map(str::trim);
        let (Some(platform), Some(input), Some(expected)) =
            (fields.next(), fields.next(), fields.next())
        else {
            panic!("{line}")
        };
        if platform == "W" {
            continue;
        }
        let found = lexer.word(input).unwrap_or_else(|_| "error".into());
        assert_eq!(found, expected, "{line}");
        count += 1;
    }
    assert!(count > 200, "{count}");
}

#[test]
fn splits_words_like_buildkit() {
    let mut entries: Vec<String> = Vec::new();
    for line in include_str!("../../tests/words.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(entry) = line.strip_prefix("ENV ") {
            entries = vec![entry.to_owned()];
            continue;
        }
        let (input, expected) = line.split_once('|').unwrap_or_else(|| panic!("{line}"));
        let environment = Environment::new(entries.iter().map(String::as_str));
        let words = Lexer::new('\\', &environment, &Budget::default()).words(input.trim());
        assert_eq!(
            words.map_or_else(|_| "error".into(), |words| words.join(",")),
            expected.trim_start(),
            "{line}"
        );
    }
}

#[test]
fn patterns_trim_and_replace() {
    let environment = Environment::new(["F=foo.tar.gz", "D=a/b/c", "S=x*y*z", "E="]);
    let budget = Budget::default();
    let lexer = Lexer::new('\\', &environment, &budget);
    for (input, expected) in [
        ("${F%.*}", "foo.tar"),
        ("${F%%.*}", "foo"),
        ("${F#*.}", "tar.gz"),
        ("${F##*.}", "gz"),
        ("${D/\\//-}", "a-b/c"),
        ("${D//\\//-}", "a-b-c"),
        ("${S#x\\*}", "y*z"),
        ("${S%\\*z}", "x*y"),
        ("${F/tar/zip}", "foo.zip.gz"),
        ("${F/?oo/x}", "x.tar.gz"),
        ("${E:-a}${E-b}", "a"),
    ] {
        let found = lexer
            .word(input)
            .unwrap_or_else(|error| panic!("{input}: {error}"));
        assert_eq!(found, expected, "{input}");
    }
    for (input, expected) in [
        (
            "${F:#x}",
            "failed to process \"${F:#x}\": unsupported modifier (:#) in substitution",
        ),
        (
            "${N?}",
            "failed to process \"${N?}\": N: is not allowed to be unset",
        ),
        (
            "${E:?}",
            "failed to process \"${E:?}\": E: is not allowed to be empty",
        ),
        ("${N:?no}", "failed to process \"${N:?no}\": N: no"),
        (
            "${F/a}",
            "failed to process \"${F/a}\": syntax error: missing '/' in ${}",
        ),
    ] {
        assert_eq!(lexer.word(input).unwrap_err().to_string(), expected);
    }
}

#[test]
fn bounds_the_size_of_expanded_words() {
    let long = format!("A={}", "x".repeat(MAX_WORD / 2));
    let environment = Environment::new([long.as_str()]);
    let budget = Budget::default();
    let lexer = Lexer::new('\\', &environment, &budget);
    for text in ["$A$A", "\"$A$A\"", "${N:-$A$A}"] {
        assert!(lexer.word(text).is_ok(), "{text}");
    }
    for text in [
        "$A$A$A",
        "${A//x/yyy}",
        "\"$A$A$A\"",
        "\"${N:-$A$A$A}\"",
        "${N:+$A}${N:+$A}${N:+$A}",
        "\"${A#y}${A#y}${A#y}\"",
    ] {
        assert!(
            lexer.word(text).unwrap_err().to_string().contains("longer"),
            "{text}"
        );
    }
    let pattern = "?".repeat(1000);
    for text in [
        format!("${{A#{pattern}}}"),
        format!("${{A%{pattern}}}"),
        format!("${{A//{pattern}/}}"),
    ] {
        assert!(lexer.word(&text).unwrap_err().to_string().contains("steps"));
    }
    // Words that are allowed alone share one budget.
    let budget = Budget::default();
    let lexer = Lexer {
        budget: &budget,
        ..lexer
    };
    let pattern = format!("${{A#{}}}", "?".repeat(200));
    assert!(lexer.word(&pattern).is_ok());
    let error = lexer.word(&pattern).unwrap_err().to_string();
    assert!(error.contains("steps"), "{error}");
    let nested = "${a:-".repeat(100_000);
    assert!(
        lexer
            .word(&nested)
            .unwrap_err()
            .to_string()
            .contains("nested")
    );
}
