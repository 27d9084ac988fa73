//! The configuration of the result.

use super::*;
use crate::report::OutlineArg;

#[test]
fn instructions_change_the_configuration() {
    let text = "FROM a\nMAINTAINER me\nLABEL a=b \"c d\"=e\nENV X=1 Y=\"2 3\"\nEXPOSE 80-81 53/UDP\nVOLUME /v /w\nUSER u:g\n\
        STOPSIGNAL SIGINT\nSHELL [\"s\", \"-c\"]\nHEALTHCHECK --interval=5s --retries=3 CMD curl x\nENTRYPOINT [\"e\"]\nCMD c d\nONBUILD RUN z\nWORKDIR w\nWORKDIR /\nARG Q=1\n";
    let options = Options {
        labels: build_args(&[("given", "l")]),
        ..options()
    };
    let done = run(text, &options);
    let image = &done.conversion.image;
    assert_eq!(image.author, "me");
    assert_eq!(
        serde_json::to_string(&image.config).unwrap_or_default(),
        r#"{"User":"u:g","ExposedPorts":{"53/udp":{},"80/tcp":{},"81/tcp":{}},"Env":["PATH=/bin","X=1","Y=2 3"],"Entrypoint":["e"],"Cmd":["s","-c","c d"],"Volumes":{"/v":{},"/w":{}},"WorkingDir":"/","Labels":{"a":"b","c d":"e","given":"l"},"StopSignal":"SIGINT","ArgsEscaped":true,"Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Retries":3},"OnBuild":["RUN z"],"Shell":["s","-c"]}"#
    );
    assert_eq!(
        done.history(),
        [
            ("base", false),
            ("MAINTAINER me", true),
            ("LABEL a=b c d=e", true),
            ("ENV X=1 Y=2 3", true),
            ("EXPOSE [53/udp 80/tcp 81/tcp]", true),
            ("VOLUME [/v /w]", true),
            ("USER u:g", true),
            ("STOPSIGNAL SIGINT", true),
            ("SHELL [s -c]", true),
            (
                "HEALTHCHECK &{[\"CMD-SHELL\" \"curl x\"] \"5s\" \"0s\" \"0s\" \"0s\" '\\x03'}",
                true
            ),
            ("ENTRYPOINT [\"e\"]", true),
            ("CMD [\"s\" \"-c\" \"c d\"]", true),
            ("WORKDIR /w", false),
            ("WORKDIR /", true),
            ("ARG Q=1", true),
        ]
    );
    assert!(
        image.history[1..]
            .iter()
            .all(|entry| entry.comment == "buildkit.dockerfile.v0")
    );
}

/// The values are those of images that Docker 28.5 made of these files.
#[test]
fn results_are_those_of_docker() {
    let text = "ARG T=1\nFROM scratch AS base\nARG T\nARG W=${T}w\nENV a=1 b=$a\nENV a=2 b=$a$T\nWORKDIR /w\n\
        FROM base\nARG X=$W\nENV c=$X\nCOPY ok ${X}/\nWORKDIR sub/$c\nCMD [\"\\t\u{2665}\", \"\"]\n";
    let done = run(text, &options());
    let names = [
        "[base 1/1] WORKDIR /w",
        "[internal] load build context",
        "[stage-1 1/2] COPY ok 1w/",
        "[stage-1 2/2] WORKDIR sub/1w",
    ];
    assert_eq!(done.names(), names);
    let shown: Vec<&str> = done.history().into_iter().map(|(text, _)| text).collect();
    assert_eq!(
        shown,
        [
            "ARG T=1",
            "ARG W=1w",
            "ENV a=1 b=",
            "ENV a=2 b=11",
            "WORKDIR /w",
            "ARG X=1w",
            "ENV c=1w",
            "COPY ok 1w/ # buildkit",
            "WORKDIR /w/sub/1w",
            "CMD [\"\\t\u{2665}\" \"\"]"
        ]
    );
    let config = &done.conversion.image.config;
    assert_eq!(config.working_dir, "/w/sub/1w");
    assert_eq!(
        config.env,
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "a=2",
            "b=11",
            "c=1w"
        ]
    );
    let warnings: Vec<String> = done.warnings.iter().map(Warning::short).collect();
    assert_eq!(
        warnings,
        ["UndefinedVar: Usage of undefined variable '$a' (did you mean $T?) (line 5)"]
    );
    let text = "FROM scratch\nWORKDIR w\nWORKDIR /\nCOPY --chown=1:2 --chmod=0640 ok o* /d/\nCOPY <<a.txt <<-\"b.txt\" /h/\n$X\na.txt\n\tb.txt\n\
        COPY --link ok /l/\nADD ok /add\nWORKDIR /a/../b/\n";
    let done = run(text, &options());
    let names: Vec<String> = done
        .names()
        .into_iter()
        .filter(|name| !name.contains("internal"))
        .collect();
    assert_eq!(
        names,
        [
            "[1/7] WORKDIR w",
            "[2/7] COPY --chown=1:2 --chmod=0640 ok o* /d/",
            "[3/7] COPY <<a.txt <<-b.txt /h/",
            "[4/7] COPY --link ok /l/",
            "[4/7] LINK COPY --link ok /l/",
            "[5/7] ADD ok /add",
            "[6/7] WORKDIR /a/../b/"
        ]
    );
    assert_eq!(done.conversion.image.config.working_dir, "/a/../b/");
    let last = done.history().pop().unwrap_or_default();
    assert_eq!(last, ("WORKDIR /a/../b/", false));
}

#[test]
fn an_entrypoint_removes_the_inherited_command() {
    let cmd = |text: &str| run(text, &options()).conversion.image.config.cmd;
    assert_eq!(cmd("FROM a\nRUN x\n"), ["sh"]);
    assert!(cmd("FROM a\nENTRYPOINT [\"e\"]\n").is_empty());
    assert_eq!(cmd("FROM a\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n"), ["c"]);
}

#[test]
fn scratch_has_defaults() {
    let done = run("FROM scratch\nCOPY a /\n", &options());
    let config = &done.conversion.image.config;
    assert_eq!(config.working_dir, "/");
    assert!(config.env[0].starts_with("PATH=/usr/local/sbin:"));
    assert_eq!(done.conversion.image.os, "linux");
    assert!(done.conversion.base_image.is_none());
    // An empty definition is a result without files.
    assert!(run("FROM scratch\n", &options()).graph.result.is_none());
}

#[test]
fn epochs_are_times_of_history() {
    let text = "ARG SOURCE_DATE_EPOCH\nFROM a\nARG SOURCE_DATE_EPOCH\nWORKDIR /x\n";
    let with = |epoch: &str| Options {
        build_args: build_args(&[("SOURCE_DATE_EPOCH", epoch)]),
        ..options()
    };
    let done = run(text, &with("1700000000"));
    assert_eq!(done.conversion.epoch, Some(1_700_000_000));
    let created = &done.conversion.image.history[1].created;
    assert_eq!(created.as_deref(), Some("2023-11-14T22:13:20Z"));
    let file = done.file("WORKDIR");
    assert!(matches!(
        &file.actions[0].action,
        Some(file_action::Action::Mkdir(made)) if made.timestamp == 1_700_000_000_000_000_000
    ));
    // The time of a stage's source.
    let text = "FROM scratch AS src\nADD https://host/x.tar /\nFROM a\nARG SOURCE_DATE_EPOCH\nCOPY --from=src / /\n";
    let done = run(text, &with("src"));
    assert_eq!(done.conversion.epoch, Some(1_700_000_000));
    assert!(
        matches!(&done.requests[0], Request::Time { source, .. } if source.identifier == "https://host/x.tar")
    );
    assert_eq!(done.history()[1].0, "ARG SOURCE_DATE_EPOCH=1700000000");
    assert_eq!(
        failure("FROM a\n", &with("nothing")).to_string(),
        "invalid SOURCE_DATE_EPOCH: nothing"
    );
    for far in ["253402300800", "9223372036854775807", "-62167219201"] {
        assert_eq!(
            failure("FROM a\n", &with(far)).to_string(),
            format!("invalid SOURCE_DATE_EPOCH: {far}: year outside of range [0,9999]")
        );
    }
    let last = run("FROM a\n", &with("253402300799"));
    assert_eq!(last.conversion.epoch, Some(253_402_300_799));
    assert_eq!(
        failure("FROM a AS src\n", &with("src")).to_string(),
        "SOURCE_DATE_EPOCH stage must use FROM scratch"
    );
}

#[test]
fn outlines_list_what_can_be_given() {
    let text = "# A the first\nARG A=1\nARG B=$A\nARG UNUSED\nFROM x:$B AS base\n# C of base\nARG C=3\nFROM base AS final\nARG D\n";
    let done = run(text, &options());
    let outline = &done.conversion.outline;
    assert_eq!(outline.name, "final");
    let args: Vec<(&str, &str, &str, u32)> = outline
        .args
        .iter()
        .map(|arg| {
            let OutlineArg {
                name,
                value,
                description,
                lines,
            } = arg;
            (
                name.as_str(),
                value.as_str(),
                description.as_str(),
                lines.first,
            )
        })
        .collect();
    assert_eq!(
        args,
        [
            ("A", "1", "the first", 2),
            ("B", "1", "", 3),
            ("C", "3", "of base", 7),
            ("D", "", "", 9),
        ]
    );
    let report = crate::report::outline(text, outline);
    assert!(
        report.text.starts_with(
            "TARGET: final\n\nBUILD ARG   VALUE   DESCRIPTION\nA           1       the first\n"
        ),
        "{}",
        report.text
    );
}
