//! Checks.

use super::*;

fn warnings(text: &str, options: &Options) -> Vec<String> {
    match check_all(text, options) {
        (warnings, None) => warnings.iter().map(Warning::short).collect(),
        (_, Some(error)) => panic!("{text}: {error}"),
    }
}

fn check_all(text: &str, options: &Options) -> (Vec<Warning>, Option<Error>) {
    let mut answers = Answers::new();
    loop {
        match check(text, options, &answers) {
            Ok(result) => return result,
            Err(requests) => {
                for request in requests {
                    let answer = Answer::Image {
                        reference: "docker.io/library/a:latest".into(),
                        digest: String::new(),
                        config: DEFAULT.into(),
                    };
                    answers.insert(request, answer);
                }
            }
        }
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn rules_have_buildkits_texts() {
    for (text, expected) in [
        (
            "FROM a AS Base\nRUN x",
            "StageNameCasing: Stage name 'Base' should be lowercase (line 1)",
        ),
        (
            "FROM a as b\nRUN x",
            "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)",
        ),
        (
            "FROM a\nRUN x \\\n\n  y",
            "NoEmptyContinuation: Empty continuation line (line 4)",
        ),
        (
            "FROM a\nrun x\nRUN y",
            "ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase) (line 2)",
        ),
        (
            "FROM a AS b\nFROM a AS b",
            "DuplicateStageName: Duplicate stage name \"b\", stage names should be unique (line 2)",
        ),
        (
            "FROM a AS context",
            "ReservedStageName: Stage name should not use the same name as reserved stage \"context\" (line 1)",
        ),
        (
            "FROM a\nCMD x",
            "JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals (line 2)",
        ),
        (
            "FROM a\nMAINTAINER x",
            "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)",
        ),
        (
            "ARG TAG=1\nFROM a:${TGA:-1}",
            "UndefinedArgInFrom: FROM argument 'TGA' is not declared (did you mean TAG?) (line 2)",
        ),
        (
            "FROM a\nWORKDIR x",
            "WorkdirRelativePath: Relative workdir \"x\" can have unexpected results if the base image changes (line 2)",
        ),
        (
            "FROM a\nENV FOO=1\nUSER u$FOP",
            "UndefinedVar: Usage of undefined variable '$FOP' (did you mean $FOO?) (line 3)",
        ),
        (
            "FROM a\nCMD [\"x\"]\nCMD [\"y\"]",
            "MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used (line 2)",
        ),
        (
            "FROM a\nENV A b",
            "LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format (line 2)",
        ),
        (
            "FROM --platform=linux/arm64 a AS arm64",
            "InvalidBaseImagePlatform: Base image a was pulled with platform \"linux/amd64\", expected \"linux/arm64\" for current build (line 1)",
        ),
        (
            "FROM --platform=$TARGETPLATFORM a",
            "RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior (line 1)",
        ),
        (
            "FROM a\nARG API_TOKEN",
            "SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"API_TOKEN\") (line 2)",
        ),
        (
            "ARG B\nFROM $B",
            "InvalidDefaultArgInFrom: Default value for ARG $B results in empty or invalid base image name (line 2)",
        ),
        (
            "FROM --platform=linux/amd64 a",
            "FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/amd64\" (line 1)",
        ),
        (
            "FROM a\nCOPY dir/x /",
            "CopyIgnoredFile: Attempting to Copy file \"dir/x\" that is excluded by .dockerignore (line 2)",
        ),
        (
            "# check=experimental=all\n# other text\nFROM a AS b",
            "InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>` (line 3)",
        ),
        (
            "FROM a\nEXPOSE 80/TCP",
            "ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase (line 2)",
        ),
        (
            "FROM a\nEXPOSE 1:80",
            "ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '1:80' (line 2)",
        ),
    ] {
        let options = Options {
            context: MainContext::Local {
                name: "context".into(),
                ignore: vec!["dir".into()],
            },
            build_args: build_args(&[("B", "a")]),
            ..options()
        };
        assert_eq!(warnings(text, &options), [expected], "{text}");
        let rule = expected.split(':').next().unwrap_or_default();
        let skipped = if text.starts_with("# check") {
            continue;
        } else {
            format!("# check=skip={rule}\n{text}")
        };
        assert_eq!(warnings(&skipped, &options), [""; 0], "{skipped}");
    }
}

#[test]
fn good_files_have_no_warnings() {
    let text = "ARG V=1\nFROM a:$V AS base\nARG PUBLIC_KEY\nENV A=b KEY_FILE=x\nWORKDIR /w\nWORKDIR x\nCOPY . .\nEXPOSE 80/tcp\n\
        CMD [\"x\"]\nFROM base\nUSER $A\nCMD [\"y\"]\n";
    assert_eq!(warnings(text, &options()), [""; 0]);
}

#[test]
fn warnings_can_be_errors() {
    let (found, error) = check_all("# check=error=true\nFROM a as b\n", &options());
    assert_eq!(found.len(), 1);
    assert_eq!(
        error.map(|error| error.to_string()).unwrap_or_default(),
        "lint violation found for rules: FromAsCasing"
    );
    // The build's setting replaces that of the file.
    let options = Options {
        lint: Some(lint::Config::default()),
        ..options()
    };
    let (_, error) = check_all("# check=error=true\nFROM a as b\n", &options);
    assert_eq!(error, None);
    // Without a target, all stages are checked.
    let text = "FROM a AS one\nCMD x\nFROM a\nRUN y\n";
    assert_eq!(warnings(text, &options).len(), 1);
}
