use super::*;

fn lines(text: &str) -> Vec<String> {
    let dockerfile = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    dockerfile.lines.iter().map(ToString::to_string).collect()
}

#[test]
fn joins_lines_and_skips_comments() {
    for (text, expected) in [
        (
            "ENV A=1 \\\n# inside\n\n  B=2\n#end\nUSER x",
            vec![r#"env "A" "1" "=" "B" "2" "=""#, r#"user "x""#],
        ),
        ("# escape=`\nUSER 1 `\n B=2", vec![r#"user "1  B=2""#]),
        ("# a comment\n# escape=`\nUSER A`", vec![r#"user "A`""#]),
        (
            "USER A=1 \\\\\nUSER x",
            vec![r#"user "A=1 \\\\""#, r#"user "x""#],
        ),
        ("\u{feff}USER x\r\n", vec![r#"user "x""#]),
        ("USER x \\", vec![r#"user "x""#]),
        (
            "HEALTHCHECK --a=b --c=\"d e\" CMD --x",
            vec![r#"healthcheck ["--a=b" "--c=d e"] "CMD" "--x""#],
        ),
        ("RUN -- --x", vec![r#"run "--x""#]),
        ("RUN --a", vec![r#"run ["--a"]"#]),
        ("ONBUILD RUN --a b", vec![r#"onbuild (run ["--a"] "b")"#]),
        ("UNKNOWN x", vec![r#"unknown """#]),
    ] {
        assert_eq!(lines(text), expected, "{text:?}");
    }
}

#[test]
fn reads_heredocs() {
    let text = "RUN <<A cat <<-\"B\"\none\nA\n\ttwo\n\tB\nUSER x\nONBUILD COPY <<A /a\nthree\nA\nRUN [\"<<A\"]\n";
    let dockerfile = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let docs: Vec<Vec<(&str, &str)>> = dockerfile
        .lines
        .iter()
        .map(|line| {
            let docs = line.heredocs.iter();
            docs.map(|doc| (doc.name.as_str(), doc.content.as_str()))
                .collect()
        })
        .collect();
    assert_eq!(
        docs,
        [
            vec![("A", "one\n"), ("B", "\ttwo\n")],
            vec![],
            vec![("A", "three\n")],
            vec![]
        ]
    );
    let ranges: Vec<(u32, u32)> = dockerfile
        .lines
        .iter()
        .map(|line| (line.lines.first, line.lines.last))
        .collect();
    assert_eq!(ranges, [(1, 5), (6, 6), (7, 9), (10, 10)]);
}

#[test]
fn keeps_comments_above_instructions() {
    let text = "# syntax=x\n# one\n# two\nARG a\n# three\n#\n# four\nARG b\nARG c";
    let dockerfile = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let comments: Vec<&[String]> = dockerfile
        .lines
        .iter()
        .map(|line| line.comments.as_slice())
        .collect();
    assert_eq!(comments[0], ["one", "two"]);
    assert_eq!(comments[1], ["four"]);
    assert!(comments[2].is_empty());
    assert_eq!(dockerfile.directives.len(), 1);
}

#[test]
fn rejects_invalid_files() {
    for (text, expected, line) in [
        ("", "file with no instructions", 1),
        ("# nothing", "file with no instructions", 1),
        (
            "# escape=x\nUSER x",
            "invalid escape token 'x' does not match ` or \\",
            1,
        ),
        (
            "# escape=`\n# escape=`\nUSER x",
            "only one escape parser directive can be used",
            2,
        ),
        ("FROM x\n\nRUN <<A\nB\n", "unterminated heredoc", 3),
        ("FROM x\nUSER a\0b", "the Dockerfile contains a NUL byte", 2),
        ("FROM x\nENV a", "ENV must have two arguments", 2),
        ("FROM x\nRUN <<'A\n", "unterminated heredoc", 0),
    ] {
        if line == 0 {
            // An unterminated quote is no heredoc for the lexer, and is left to the shell.
            assert!(parse(text).is_ok(), "{text}");
            continue;
        }
        let error = parse(text).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.lines[0].first, line, "{text}");
    }
    let long = parse(&format!("USER {}", "x".repeat(70_000))).unwrap_err();
    assert_eq!(
        long.to_string(),
        "dockerfile line greater than max allowed size of 65535"
    );
    assert!(parse(&format!("USER {}\n", "x".repeat(65_530))).is_ok());
    let error = super::text(b"FROM x\nUSER \xff\n").unwrap_err();
    assert_eq!(error.lines[0].first, 2);
}

#[test]
fn takes_linear_time_for_long_files() {
    let chain = format!("FROM x\n{}RUN y\n", "ONBUILD ".repeat(8_000));
    assert!(parse(&chain).is_ok());
    let continued = format!("RUN x{}\n", " \\\n y".repeat(300_000));
    assert!(parse(&continued).is_ok());
    let docs = "RUN <<A\nx\nA\n".repeat(100_000);
    assert_eq!(lines(&docs).len(), 100_000);
    let quotes = format!("ENV {}", "a=\"b\" ".repeat(10_000));
    assert!(parse(&quotes).is_ok());
}
