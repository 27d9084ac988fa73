//! Operations of definitions: what is announced as a capability works.

use std::collections::BTreeSet;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use whelk_buildkit::grpc::Status;
use whelk_buildkit::pb::Unused;
use whelk_buildkit::pb::control::SolveRequest;
use whelk_buildkit::pb::gateway::{EvaluateRequest, PongResponse};
use whelk_buildkit::pb::session::{GetSecretRequest, GetSecretResponse};
use whelk_buildkit::session::SECRET;
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    CacheOpt, ChownOpt, Definition, DiffOp, FileAction, FileActionCopy, FileActionMkDir,
    FileActionRm, FileActionSymlink, FileOp, InputIndex, MergeOp, Mount, MountType, NamedUserOpt,
    PassthroughOp, ProxyEnv, SecretEnv, SecretOpt, TmpfsOpt, Ulimit, UserOpt, user_opt,
};
use whelk_llb::{Output, Vertex};
use whelk_tests::Engine;
use whelk_tests::grpc::{Grpc, Pending};
use whelk_tests::web::{Answer, Web};

use crate::{Made, NOTHING, make_file, script};

/// Capabilities of definitions that other suites are about.
const ELSEWHERE: &[(&str, &str)] = &[
    // The module `images`.
    ("source.image.checksum", "bridge"),
    ("source.image.layerlimit", "bridge"),
    ("source.git", "build_sources"),
    ("source.http", "build_sources"),
    ("soruce.http.uidgid", "build_sources"),
    ("source.local", "buildx"),
    ("source.ocilayout", "build_sources"),
    ("exec.mount.ssh", "build_sources"),
    ("meta.exportcache", "build_cache_transfer"),
    ("exporter.image.attestations", "buildx_attestations"),
    ("exporter.multiple", "buildx_outputs"),
    // The module `exporters`.
    ("exporter.session", "bridge"),
    ("exporter.sourcedateepoch", "buildx_outputs"),
    ("gc.freespacefilter", "buildx_history"),
    ("history.filter", "buildx_history"),
];

/// Of the bridge, whose calls the modules `calls` and `containers` make.
const FRONTEND: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "source.metaresolver",
    // The module `attestations`.
    "reference.attestations",
];

/// A definition, what it is about, and the files of its result; one that is not there has no content.
struct Case {
    caps: &'static [&'static str],
    definition: Definition,
    files: &'static [(&'static str, Option<&'static str>)],
}

fn case(
    caps: &'static [&'static str],
    files: &'static [(&'static str, Option<&'static str>)],
    make: impl FnOnce(&mut Made) -> Output,
) -> Case {
    let mut made = Made::default();
    let result = make(&mut made);
    Case {
        caps,
        definition: made.definition(result),
        files,
    }
}

fn remove(path: &str, wildcard: bool) -> Action {
    Action::Rm(FileActionRm {
        path: path.into(),
        allow_not_found: false,
        allow_wildcard: wildcard,
    })
}

fn link(old: &str, new: &str) -> Action {
    Action::Symlink(FileActionSymlink {
        oldpath: old.into(),
        newpath: new.into(),
        owner: None,
        timestamp: -1,
    })
}

fn directory(path: &str) -> Action {
    Action::Mkdir(FileActionMkDir {
        path: path.into(),
        mode: 0o755,
        make_parents: true,
        owner: None,
        timestamp: -1,
    })
}

/// Adds a copy of what another result has into a result.
fn copy(made: &mut Made, into: Output, from: Output, copy: FileActionCopy) -> Output {
    let op = FileOp {
        actions: vec![FileAction {
            input: 0,
            secondary_input: 1,
            output: 0,
            action: Some(Action::Copy(copy)),
        }],
    };
    made.add(Kind::File(op), &[into, from])
}

fn mount(dest: &str, kind: MountType) -> Mount {
    Mount {
        input: -1,
        output: -1,
        dest: dest.into(),
        mount_type: kind.into(),
        ..Mount::default()
    }
}

/// Runs a script in busybox with mounts, and inputs behind the base.
fn mounted(made: &mut Made, text: &str, mounts: Vec<Mount>, inputs: &[Output]) -> Output {
    let base = made.busybox();
    let mut exec = script(text);
    exec.mounts.extend(mounts);
    made.exec(exec, &[&[base], inputs].concat())
}

fn files() -> Vec<Case> {
    let tree = |made: &mut Made| {
        let mut tree = made.file(make_file("/a1", "1"), None);
        for (path, content) in [("/a2", "2"), ("/b", "3")] {
            tree = made.file(make_file(path, content), Some(tree));
        }
        tree
    };
    vec![
        case(&["file.base"], &[("/a1", Some("1"))], tree),
        case(
            &["file.rm.wildcard"],
            &[("/a1", None), ("/a2", None), ("/b", Some("3"))],
            |made| {
                let tree = tree(made);
                made.file(remove("/a*", true), Some(tree))
            },
        ),
        // The link goes, what it leads to stays.
        case(
            &["file.rm.symlink", "file.symlink.create"],
            &[("/l", None), ("/k", Some("3")), ("/b", Some("3"))],
            |made| {
                let tree = tree(made);
                let tree = made.file(link("b", "/l"), Some(tree));
                let tree = made.file(link("/b", "/k"), Some(tree));
                made.file(remove("/l", false), Some(tree))
            },
        ),
        case(
            &["file.copy.includeexcludepatterns"],
            &[("/to/a1", Some("1")), ("/to/a2", None), ("/to/b", None)],
            |made| {
                let (tree, into) = (tree(made), made.file(directory("/to"), None));
                let wanted = FileActionCopy {
                    src: "/".into(),
                    dest: "/to".into(),
                    mode: -1,
                    timestamp: -1,
                    dir_copy_contents: true,
                    include_patterns: vec!["a*".into()],
                    exclude_patterns: vec!["a2".into()],
                    ..FileActionCopy::default()
                };
                copy(made, into, tree, wanted)
            },
        ),
        case(
            &["file.copy.alwaysreplaceexistingdestpaths"],
            &[("/b", Some("3"))],
            |made| {
                let (tree, into) = (tree(made), made.file(directory("/b/d"), None));
                let wanted = FileActionCopy {
                    src: "/".into(),
                    dest: "/".into(),
                    mode: -1,
                    timestamp: -1,
                    dir_copy_contents: true,
                    always_replace_existing_dest_paths: true,
                    ..FileActionCopy::default()
                };
                copy(made, into, tree, wanted)
            },
        ),
        // Names of owners are those of another input.
        case(&["file.base"], &[("/found", Some("8 100\n"))], |made| {
            let base = made.busybox();
            let accounts = "sed -i '/^mail:/d' /etc/passwd; echo mail:x:8:8::/:/bin/sh >> /etc/passwd; \
                 echo extra:x:100: >> /etc/group";
            let accounts = made.exec(script(accounts), &[base]);
            let named = |name: &str| {
                let user = user_opt::User::ByName(NamedUserOpt {
                    name: name.into(),
                    input: 1,
                });
                Some(UserOpt { user: Some(user) })
            };
            let make = Action::Mkdir(FileActionMkDir {
                path: "/owned".into(),
                mode: 0o700,
                make_parents: false,
                owner: Some(ChownOpt {
                    user: named("mail"),
                    group: named("extra"),
                }),
                timestamp: -1,
            });
            let op = FileOp {
                actions: vec![FileAction {
                    input: 0,
                    secondary_input: -1,
                    output: 0,
                    action: Some(make),
                }],
            };
            let owned = made.add(Kind::File(op), &[base, accounts]);
            made.exec(script("stat -c '%u %g' /owned > /found"), &[owned])
        }),
    ]
}

fn processes() -> Vec<Case> {
    vec![
        case(
            &[
                "exec.meta.base",
                "exec.meta.network",
                "exec.meta.setsdefaultpath",
                "source.image",
                "constraints",
                "platform",
            ],
            &[(
                "/made",
                Some("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin lo\n"),
            )],
            |made| made.script("echo $PATH $(ls /sys/class/net) > /made"),
        ),
        case(
            &["exec.meta.ulimit", "exec.meta.proxyenv"],
            &[("/made", Some("123 http://proxy http://proxy\n"))],
            |made| {
                let base = made.busybox();
                let mut exec = script("echo $(ulimit -n) $HTTP_PROXY $http_proxy > /made");
                let meta = exec.meta.as_mut().unwrap();
                meta.ulimit = vec![Ulimit {
                    name: "nofile".into(),
                    soft: 123,
                    hard: 123,
                }];
                meta.proxy_env = Some(ProxyEnv {
                    http_proxy: "http://proxy".into(),
                    ..ProxyEnv::default()
                });
                made.exec(exec, &[base])
            },
        ),
        case(&["exec.validexitcode"], &[("/made", Some("x\n"))], |made| {
            let base = made.busybox();
            let mut exec = script("echo x > /made; exit 3");
            exec.meta.as_mut().unwrap().valid_exit_codes = vec![2, 3];
            made.exec(exec, &[base])
        }),
        case(
            &["exec.mount.bind", "exec.mount.selector"],
            &[("/made", Some("inside\n")), ("/m/f", None)],
            |made| {
                let from = made.file(directory("/d"), None);
                let from = made.file(make_file("/d/f", "inside\n"), Some(from));
                let bind = Mount {
                    input: 1,
                    selector: "/d".into(),
                    readonly: true,
                    ..mount("/m", MountType::Bind)
                };
                let text =
                    "cat /m/f > /made; touch /m/new 2>/dev/null && echo writable >> /made; true";
                mounted(made, text, vec![bind], &[from])
            },
        ),
        case(
            &["exec.mount.cache.content"],
            &[("/made", Some("x"))],
            |made| {
                let from = made.file(make_file("/f", "x"), None);
                let bind = Mount {
                    input: 1,
                    readonly: true,
                    content_cache: 2,
                    ..mount("/m", MountType::Bind)
                };
                mounted(made, "cat /m/f > /made", vec![bind], &[from])
            },
        ),
        // What is written is not kept.
        case(
            &["exec.mount.bind.readwrite-nooutput"],
            &[("/made", Some("old new\n")), ("/m/f", None)],
            |made| {
                let from = made.file(make_file("/f", "old"), None);
                let bind = Mount {
                    input: 1,
                    ..mount("/m", MountType::Bind)
                };
                let text = "echo \" new\" >> /m/f && cat /m/f > /made";
                mounted(made, text, vec![bind], &[from])
            },
        ),
        case(
            &["exec.mount.cache", "exec.mount.cache.sharing"],
            &[("/made", Some("kept\n")), ("/m/f", None)],
            |made| {
                let cache = |dest: &str, sharing: i32| Mount {
                    cache_opt: Some(CacheOpt {
                        id: "operations".into(),
                        sharing,
                    }),
                    ..mount(dest, MountType::Cache)
                };
                let base = made.busybox();
                let mut first = script("echo kept > /m/f");
                first.mounts.push(cache("/m", 2));
                let first = made.exec(first, &[base]);
                let mut second = script("cat /n/f > /made");
                second.mounts.push(cache("/n", 0));
                made.exec(second, &[first])
            },
        ),
        case(
            &[
                "exec.mount.tmpfs",
                "exec.mount.tmpfs.size",
                "exec.meta.removemountstubs.recursive",
            ],
            &[("/made", Some("1024 full\n")), ("/a/b/c", None)],
            |made| {
                let tmpfs = Mount {
                    tmpfs_opt: Some(TmpfsOpt { size: 1 << 20 }),
                    ..mount("/a/b/c", MountType::Tmpfs)
                };
                let text = "size=$(df -k /a/b/c | tail -1 | awk '{print $2}'); \
                            dd if=/dev/zero of=/a/b/c/f bs=1M count=2 2>/dev/null || echo $size full > /made";
                mounted(made, text, vec![tmpfs], &[])
            },
        ),
        case(
            &["exec.mount.secret", "exec.secretenv"],
            &[("/made", Some("of key 400 0 of token\n"))],
            |made| {
                let base = made.busybox();
                let mut exec = script("echo $(cat /s) $(stat -c '%a %u' /s) $TOKEN > /made");
                exec.mounts.push(Mount {
                    secret_opt: Some(SecretOpt {
                        id: "key".into(),
                        mode: 0o400,
                        ..SecretOpt::default()
                    }),
                    ..mount("/s", MountType::Secret)
                });
                exec.secretenv = vec![SecretEnv {
                    id: "token".into(),
                    name: "TOKEN".into(),
                    optional: false,
                }];
                made.exec(exec, &[base])
            },
        ),
    ]
}

fn graphs() -> Vec<Case> {
    let merge = |count: i64| {
        let inputs = (0..count).map(|input| InputIndex { input });
        Kind::Merge(MergeOp {
            inputs: inputs.collect(),
        })
    };
    let diff = || {
        Kind::Diff(DiffOp {
            lower: Some(InputIndex { input: 0 }),
            upper: Some(InputIndex { input: 1 }),
        })
    };
    vec![
        case(
            &["mergeop"],
            &[("/x", Some("two")), ("/a", Some("a")), ("/b", Some("b"))],
            move |made| {
                let one = made.file(make_file("/x", "one"), None);
                let one = made.file(make_file("/a", "a"), Some(one));
                let two = made.file(make_file("/x", "two"), None);
                let two = made.file(make_file("/b", "b"), Some(two));
                made.add(merge(2), &[one, two])
            },
        ),
        case(
            &["diffop"],
            &[("/new", Some("n")), ("/bin/sh", None)],
            move |made| {
                let base = made.busybox();
                let upper = made.file(make_file("/new", "n"), Some(base));
                made.add(diff(), &[base, upper])
            },
        ),
        // A removal is part of the difference.
        case(
            &["diffop", "mergeop"],
            &[("/new", Some("n")), ("/x", None), ("/y", Some("y"))],
            move |made| {
                let base = made.file(make_file("/x", "x"), None);
                let upper = made.file(remove("/x", false), Some(base));
                let upper = made.file(make_file("/new", "n"), Some(upper));
                let change = made.add(diff(), &[base, upper]);
                let other = made.file(make_file("/x", "other"), None);
                let other = made.file(make_file("/y", "y"), Some(other));
                made.add(merge(2), &[other, change])
            },
        ),
        case(
            &[
                "meta.ignorecache",
                "meta.description",
                "source.image.resolvemode",
            ],
            &[("/made", Some("x\n"))],
            |made| {
                let image = "docker-image://docker.io/library/busybox:latest";
                let base = made.source(image, &[("image.resolvemode", "local")]);
                let exec = Kind::Exec(script("echo x > /made"));
                let mut vertex = Vertex::new(exec, vec![base]);
                vertex.metadata.ignore_cache = true;
                let name = (whelk_llb::CUSTOM_NAME.to_owned(), "a name".to_owned());
                vertex.metadata.description = [name].into();
                made.0.add(vertex).unwrap()
            },
        ),
        case(&[], &[("/x", Some("one"))], |made| {
            let one = made.file(make_file("/x", "one"), None);
            let two = made.file(make_file("/y", "two"), None);
            let pass = Kind::Passthrough(PassthroughOp {
                id: "p".into(),
                outputs: vec![1, 0],
            });
            made.add(pass, &[one, two]).at(1)
        }),
    ]
}

#[test]
fn announced_operations_work() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    grpc.session(&engine, "secrets", &[SECRET], |mut call| async move {
        if call.method != SECRET {
            return Err(Status::unimplemented("only secrets"));
        }
        let request: GetSecretRequest = call.request().await?;
        let data = format!("of {}", request.id).into_bytes();
        call.responses.send(&GetSecretResponse { data }).await
    });
    let request = SolveRequest {
        session: "secrets".into(),
        ..SolveRequest::default()
    };
    let bridge = grpc.build("operations", request);
    let pong: PongResponse = bridge.call("Ping", &NOTHING).unwrap();
    let names = |caps: &[whelk_buildkit::pb::gateway::ApiCap]| {
        let caps = caps.iter().filter(|cap| cap.enabled);
        caps.map(|cap| cap.id.clone()).collect::<BTreeSet<_>>()
    };
    let cases: Vec<Case> = [files(), processes(), graphs()]
        .into_iter()
        .flatten()
        .collect();
    // Whatever is announced has a test.
    let announced = names(&pong.llb_caps);
    for cap in &announced {
        let here = cases.iter().any(|case| case.caps.contains(&&**cap));
        let elsewhere = ELSEWHERE.iter().any(|(known, _)| {
            cap == known || cap.starts_with(&format!("{known}.")) || cap == "source.metaresolver"
        });
        assert!(here || elsewhere, "{cap} has no test");
    }
    let known: BTreeSet<String> = FRONTEND.iter().map(|cap| (*cap).to_owned()).collect();
    let bare: BTreeSet<String> = names(&pong.frontend_api_caps);
    let untested: Vec<&String> = bare.difference(&known).collect();
    assert!(untested.is_empty(), "{untested:?} have no test");
    for Case {
        caps,
        definition,
        files,
    } in &cases
    {
        for cap in *caps {
            assert!(announced.contains(*cap), "{cap} is not announced");
        }
        let reference = bridge.evaluate(definition);
        let reference = reference.unwrap_or_else(|status| panic!("{caps:?}: {status}"));
        for (path, content) in *files {
            let found = bridge.read(&reference, path).ok();
            assert_eq!(found.as_deref(), *content, "{caps:?} {path}");
        }
    }
    bridge.finish(None).unwrap();
    engine.has_no_builds();
}

#[test]
fn what_a_copy_misses_is_told_as_docker_tells_it() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("missing", SolveRequest::default());
    let file = || FileActionCopy {
        src: "/bar".into(),
        dest: "/baz".into(),
        mode: -1,
        timestamp: -1,
        ..FileActionCopy::default()
    };
    let of_base = {
        let mut made = Made::default();
        let base = made.file(make_file("/foo", "foo"), None);
        let action = FileAction {
            input: 0,
            secondary_input: 0,
            output: 0,
            action: Some(Action::Copy(file())),
        };
        let actions = vec![action];
        let result = made.add(Kind::File(FileOp { actions }), &[base]);
        made.definition(result)
    };
    let of_nothing = {
        let mut made = Made::default();
        let result = made.file(Action::Copy(file()), None);
        made.definition(result)
    };
    let of_empty = {
        let mut made = Made::default();
        let base = made.file(make_file("/foo", "foo"), None);
        let empty = Mount {
            output: 1,
            readonly: true,
            ..mount("/empty", MountType::Bind)
        };
        let empty = mounted(&mut made, "true", vec![empty], &[]).at(1);
        let result = copy(&mut made, base, empty, file());
        made.definition(result)
    };
    let of_rm = {
        let mut made = Made::default();
        let base = made.file(make_file("/foo", "foo"), None);
        let result = made.file(remove("/bar", false), Some(base));
        made.definition(result)
    };
    let of_other = {
        let mut made = Made::default();
        let base = made.file(make_file("/foo", "foo"), None);
        let other = made.file(make_file("/other", "other"), None);
        let result = copy(&mut made, base, other, file());
        made.definition(result)
    };
    for (definition, text) in [
        (of_base, "lstat /bar: no such file or directory"),
        (of_nothing, "lstat /bar: no such file or directory"),
        (of_empty, "lstat /bar: no such file or directory"),
        (of_rm, "rm /bar: no such file or directory"),
        (of_other, "failed to calculate checksum of ref"),
    ] {
        let status = bridge.evaluate(&definition).unwrap_err();
        assert!(status.message.contains(text), "{status} instead of {text}");
    }
    bridge.finish(None).unwrap();
    // Steps without a name of their own tell what they do.
    let told = grpc.status("missing").unwrap();
    for name in ["mkfile /foo", "rm /bar"] {
        let is_told = told.vertexes.iter().any(|vertex| vertex.name == name);
        assert!(is_told, "{name}: {told:?}");
    }
}

/// As for several platforms: the steps of one are executed while the sources of another one are received.
#[test]
fn caches_are_emptied_before_sources_are_received() {
    let engine = Engine::start();
    let (asked, is_asked) = mpsc::channel();
    let (answer, may_answer) = mpsc::channel::<()>();
    let may_answer = Mutex::new(may_answer);
    let web = Web::start(move |_| {
        let _ = asked.send(());
        // Until the other side is dropped.
        let _ = may_answer.lock().unwrap().recv();
        Answer::new(200, "x")
    });
    let step = |text: &str, url: Option<&str>| {
        let mut made = Made::default();
        let mut inputs = vec![made.busybox()];
        let mut exec = script(text);
        exec.mounts.push(Mount {
            cache_opt: Some(CacheOpt {
                id: "kept".into(),
                ..CacheOpt::default()
            }),
            ..mount("/c", MountType::Cache)
        });
        if let Some(url) = url {
            inputs.push(made.source(url, &[]));
            exec.mounts.push(Mount {
                input: 1,
                readonly: true,
                ..mount("/from-web", MountType::Bind)
            });
        }
        let mut vertex = Vertex::new(Kind::Exec(exec), inputs);
        vertex.metadata.ignore_cache = url.is_some();
        let result = made.0.add(vertex).unwrap();
        made.definition(result)
    };
    let bridge = Grpc::connect(&engine).build("caches", SolveRequest::default());
    bridge.evaluate(&step("touch /c/before", None)).unwrap();
    let again = step("ls /c > /list", Some(&web.url("/x")));
    let again = bridge.solve(&again).unwrap().id;
    let request = EvaluateRequest {
        r#ref: again.clone(),
    };
    let evaluating: Pending<Unused> = bridge.begin("Evaluate", &request);
    is_asked.recv_timeout(Duration::from_secs(60)).unwrap();
    bridge.evaluate(&step("touch /c/meanwhile", None)).unwrap();
    drop(answer);
    evaluating.wait().unwrap();
    assert_eq!(bridge.read(&again, "/list").unwrap(), "meanwhile\n");
    bridge.finish(None).unwrap();
    engine.has_no_builds();
}
