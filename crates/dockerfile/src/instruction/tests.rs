use super::*;
use crate::{Budget, Environment, parse};

fn read(text: &str) -> Result<Instruction> {
    let environment = Environment::new(["X=80 443", "P=/a:/b", "D=/d"]);
    let dockerfile = parse(text)?;
    let budget = Budget::default();
    Instruction::read(
        &dockerfile.lines[0],
        &Lexer::new(dockerfile.escape, &environment, &budget),
    )
}

fn pair(key: &str, value: &str) -> Pair {
    Pair {
        key: key.into(),
        value: value.into(),
        legacy: false,
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn parses_arguments_like_docker() {
    let check = Healthcheck {
        test: strings(&["CMD-SHELL", "echo a  b"]),
        interval: 5_000_000_000,
        retries: 3,
        ..Healthcheck::default()
    };
    for (text, expected) in [
        (
            "cmd [\"a\", \"b c\"]",
            Instruction::Cmd(Command::Exec(strings(&["a", "b c"]))),
        ),
        (
            "CMD ['a']",
            Instruction::Cmd(Command::Shell(Some("['a']".into()))),
        ),
        ("CMD", Instruction::Cmd(Command::Shell(None))),
        ("ENV A=1 B=\"two words\" C=x\\ y P=$P:/c", {
            Instruction::Env(vec![
                pair("A", "1"),
                pair("B", "two words"),
                pair("C", "x y"),
                pair("P", "/a:/b:/c"),
            ])
        }),
        (
            "ENV OLD the  rest",
            Instruction::Env(vec![Pair {
                legacy: true,
                ..pair("OLD", "the  rest")
            }]),
        ),
        (
            "LABEL \"c d\"=e",
            Instruction::Label(vec![pair("c d", "e")]),
        ),
        (
            "EXPOSE $X 53/udp",
            Instruction::Expose(strings(&["80", "443", "53/udp"])),
        ),
        (
            "HEALTHCHECK --interval=5s --retries=3 CMD echo a  b",
            Instruction::Healthcheck(check),
        ),
        ("ONBUILD RUN x  y", Instruction::Onbuild("RUN x  y".into())),
        (
            "ONBUILD COPY <<A /a\nx\nA",
            Instruction::Onbuild("COPY <<A /a\nx\nA".into()),
        ),
        (
            "VOLUME /a /b$N",
            Instruction::Volume(strings(&["/a", "/b"])),
        ),
        ("USER $X", Instruction::User("80 443".into())),
        ("WORKDIR a b", Instruction::Workdir("a b".into())),
        ("MAINTAINER $X", Instruction::Maintainer("$X".into())),
        ("SHELL [\"a\"]", Instruction::Shell(strings(&["a"]))),
        (
            "ARG a b=$X",
            Instruction::Arg(vec![
                Arg {
                    key: "a".into(),
                    ..Arg::default()
                },
                Arg {
                    key: "b".into(),
                    value: Some("$X".into()),
                    ..Arg::default()
                },
            ]),
        ),
        (
            "# a of this\nARG a",
            Instruction::Arg(vec![Arg {
                key: "a".into(),
                value: None,
                description: "of this".into(),
            }]),
        ),
        (
            "COPY --from=x --chown=$D --chmod=u+x --link --parents --exclude=a --exclude=b $D /b/",
            Instruction::Copy(Copy {
                from: "x".into(),
                parents: true,
                files: Files {
                    sources: strings(&["/d"]),
                    destination: "/b/".into(),
                    chown: "/d".into(),
                    chmod: "u+x".into(),
                    link: true,
                    exclude: strings(&["a", "b"]),
                    ..Files::default()
                },
            }),
        ),
        (
            "ADD --checksum=sha256:x --keep-git-dir=false --unpack <<A <<\"B\" https://x /\n$D '$D'\nA\n$D\nB",
            Instruction::Add(Add {
                checksum: "sha256:x".into(),
                keep_git_dir: Some(false),
                unpack: Some(true),
                files: Files {
                    sources: strings(&["https://x"]),
                    documents: vec![
                        document("A", true, "/d '/d'\n"),
                        document("B", false, "$D\n"),
                    ],
                    destination: "/".into(),
                    ..Files::default()
                },
            }),
        ),
    ] {
        assert_eq!(read(text), Ok(expected), "{text}");
    }
}

fn document(name: &str, expand: bool, content: &str) -> crate::heredoc::Heredoc {
    crate::heredoc::Heredoc {
        name: name.into(),
        expand,
        strip_tabs: false,
        content: content.into(),
    }
}

fn run(text: &str) -> Run {
    match read(text) {
        Ok(Instruction::Run(run)) => run,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn parses_mounts() {
    let read_only = |kind| Mount {
        kind,
        read_only: true,
        ..Mount::default()
    };
    for (text, expected) in [
        (
            "target=$D",
            Mount {
                target: "/d".into(),
                ..read_only(MountKind::Bind)
            },
        ),
        (
            "type=bind,from=x,src=a,dst=/b,rw",
            Mount {
                from: "x".into(),
                source: "a".into(),
                target: "/b".into(),
                ..Mount::default()
            },
        ),
        (
            "TYPE=cache,target=/c,id=k,sharing=locked,mode=0750,uid=1,gid=2",
            Mount {
                kind: MountKind::Cache,
                target: "/c".into(),
                id: "k".into(),
                sharing: Some(Sharing::Locked),
                mode: Some(0o750),
                uid: Some(1),
                gid: Some(2),
                ..Mount::default()
            },
        ),
        (
            "type=tmpfs,target=/t,size=1m",
            Mount {
                kind: MountKind::Tmpfs,
                target: "/t".into(),
                size: 1 << 20,
                ..Mount::default()
            },
        ),
        (
            "type=secret,id=s,env=S,required",
            Mount {
                id: "s".into(),
                env: Some("S".into()),
                required: true,
                ..read_only(MountKind::Secret)
            },
        ),
        ("type=ssh", read_only(MountKind::Ssh)),
    ] {
        let found = run(&format!("RUN --mount={text} x"));
        assert_eq!(found.mounts, [expected], "{text}");
    }
    let devices = run("RUN --device=vendor1.com/device=foo,required --device=name=a/b=c x").devices;
    let devices: Vec<(&str, bool)> = devices
        .iter()
        .map(|device| (device.name.as_str(), device.required))
        .collect();
    assert_eq!(
        devices,
        [("vendor1.com/device=foo", true), ("a/b=c", false)]
    );
    let found = run("RUN --network=host --security=insecure [\"a\"]");
    assert_eq!((found.network, found.insecure), (Network::Host, true));
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn errors_have_buildkits_texts() {
    for (text, expected) in [
        ("ENV A", "ENV must have two arguments"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =x", "ENV names can not be blank"),
        (
            "ENV A=1 B",
            "Syntax error - can't find = in \"B\". Must be of the form: name=value",
        ),
        (
            "ENV A=\"open",
            "failed to process \"\\\"open\": unexpected end of statement while looking for matching double-quote",
        ),
        (
            "CMD [\"a\", 1]",
            "when using JSON array syntax, arrays must be comprised of strings only",
        ),
        ("CMD --x y", "unknown flag: --x"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("VOLUME []", "VOLUME requires at least one argument"),
        (
            "VOLUME [\"\"]",
            "VOLUME specified can not be an empty string",
        ),
        ("VOLUME $N", "VOLUME specified can not be an empty string"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        (
            "HEALTHCHECK FOO x",
            "Unknown type \"FOO\" in HEALTHCHECK (try CMD)",
        ),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        (
            "HEALTHCHECK --interval=1us CMD x",
            "Interval \"interval\" cannot be less than 1ms",
        ),
        (
            "HEALTHCHECK --interval=x CMD x",
            "time: invalid duration \"x\"",
        ),
        (
            "HEALTHCHECK --retries=-1 CMD x",
            "--retries cannot be negative (-1)",
        ),
        ("HEALTHCHECK --bogus=1 CMD x", "unknown flag: --bogus"),
        (
            "ONBUILD ONBUILD RUN x",
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("RUNN x", "unknown instruction: RUNN (did you mean RUN?)"),
        ("copi a b", "unknown instruction: copi (did you mean copy?)"),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "COPY a <<B\nB",
            "COPY cannot accept a heredoc as a destination",
        ),
        (
            "COPY --chmow=1 a b",
            "unknown flag: --chmow (did you mean chmod?)",
        ),
        ("COPY --chown a b", "missing a value on flag: --chown"),
        (
            "COPY --link=x a b",
            "expecting boolean value for flag --link, not: x",
        ),
        (
            "COPY --from=a --from=b c d",
            "duplicate flag specified: --from",
        ),
        ("SHELL x", "SHELL requires the arguments to be in JSON form"),
        ("ARG =x", "ARG names can not be blank"),
        ("RUN --network=x y", "invalid network mode \"x\""),
        ("RUN --security=x y", "security \"x\" is not valid"),
        (
            "RUN --mount=from=$x,target=/a y",
            "'from' doesn't support variable expansion, define alias stage instead",
        ),
        (
            "RUN --mount=type=cash y",
            "unsupported mount type \"cash\" (did you mean cache?)",
        ),
        (
            "RUN --mount=targt=/a y",
            "unexpected key 'targt' in 'targt=/a' (did you mean target?)",
        ),
        (
            "RUN --mount=type=bind,size=1 y",
            "unexpected key 'size' for mount type 'bind'",
        ),
        (
            "RUN --mount=type=bind,uid=1 y",
            "uid not allowed for \"bind\" type mounts",
        ),
        (
            "RUN --mount=type=secret y",
            "invalid secret mount. one of source, target required",
        ),
        (
            "RUN --mount=x y",
            "invalid field 'x' must be a key=value pair",
        ),
        (
            "RUN --mount=type=cache,uid=+1 y",
            "invalid value +1 for uid",
        ),
        (
            "RUN --device=a/b=c,name=d y",
            "device name already set to a/b=c",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }
}
