//! A frontend of BuildKit's protocol for tests. What it does is the word behind its image's name: `# syntax=IMAGE WORD`.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests panic on errors"
)]

use std::collections::BTreeMap;
use std::io::Write as _;

use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use whelk_buildkit::details;
use whelk_buildkit::grpc::{Channel, Result, Status};
use whelk_buildkit::pb::control::CacheOptionsEntry;
use whelk_buildkit::pb::gateway::{
    Attestation, Attestations, InputsResponse, PongResponse, ReadFileRequest, ReadFileResponse,
    Ref, RefMap, ResolveImageConfigRequest, ResolveImageConfigResponse, Result as Returned,
    ReturnRequest, SolveRequest, SolveResponse, result,
};
use whelk_buildkit::pb::{Message, Unused};
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    Definition, ExecOp, Meta, Mount, NetMode, Position, Range, SecurityMode, SourceInfo, SourceOp,
};
use whelk_llb::{Builder, Output, Vertex};

const SERVICE: &str = "moby.buildkit.v1.frontend.LLBBridge";

/// A connection to the engine, and the frontend's options.
struct Frontend {
    channel: Channel,
    options: BTreeMap<String, String>,
}

fn main() {
    let options: BTreeMap<String, String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"))
        .filter_map(|(_, value)| {
            let (name, value) = value.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect();
    let cmdline = options.get("cmdline").cloned().unwrap_or_default();
    let mut words = cmdline.split(' ').skip(1).map(str::to_owned);
    let mode = options.get("mode").cloned().or_else(|| words.next());
    let mode = mode.unwrap_or_default();
    // Without an answer, in one way or another.
    match mode.as_str() {
        "silent" => return,
        "exit" => {
            eprintln!("the frontend gives up");
            std::process::exit(3);
        }
        "garbage" => {
            let _ = std::io::stdout().write_all(&[b'x'; 100_000]);
            std::thread::sleep(std::time::Duration::from_secs(600));
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let code = runtime.block_on(run(&mode, options));
    // Dropping the runtime would wait for the thread that reads the standard input.
    std::process::exit(code);
}

async fn run(mode: &str, options: BTreeMap<String, String>) -> i32 {
    let streams = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    let (channel, driver) = Channel::open(TokioIo::new(streams)).await.expect("open");
    tokio::spawn(driver);
    let frontend = Frontend { channel, options };
    let request = match frontend.work(mode).await {
        Ok(result) => ReturnRequest {
            result: Some(result),
            error: None,
        },
        Err(status) => ReturnRequest {
            result: None,
            error: Some(status.to_message()),
        },
    };
    let is_failed = request.error.is_some();
    let answered: Result<Unused> = frontend.call("Return", &request).await;
    answered.expect("return");
    if mode == "stays" {
        std::future::pending::<()>().await;
    }
    i32::from(is_failed)
}

impl Frontend {
    async fn call<M: Message + Default>(&self, method: &str, request: &impl Message) -> Result<M> {
        self.channel
            .unary(&format!("{SERVICE}/{method}"), request)
            .await
    }

    async fn work(&self, mode: &str) -> Result<Returned> {
        match mode {
            "definition" | "stays" => {
                let definition = process("echo from-frontend > /made; echo to-out", |_| {});
                let made = self.define(definition).await?;
                Ok(returned(made, &json!({"Cmd": ["cat", "/made"]})))
            }
            "lines" => self.lines().await,
            // The error of a step is not returned.
            "caught" => {
                let failed = self.evaluate(process("exit 3", |_| {})).await;
                assert!(failed.is_err(), "the step fails");
                let made = self.define(process("true", |_| {})).await?;
                Ok(returned(made, &json!({})))
            }
            // Settings that only clients have: the name of a network of the engine.
            "settings" => {
                let mut options = self.options.clone();
                options.insert("whelk.network".into(), "no-such-network".into());
                let forwarded = self.frontend("dockerfile.v0", &options).await?;
                Ok(forwarded.result.unwrap_or_default())
            }
            "forward" => {
                let forwarded = self.frontend("dockerfile.v0", &self.options).await?;
                let mut result = forwarded.result.unwrap_or_default();
                let config = result.metadata.get_mut("containerimage.config");
                let config = config.ok_or_else(|| Status::unknown("no configuration"))?;
                let mut image: Value = serde_json::from_slice(config).expect("JSON");
                image["config"]["Labels"] = json!({"by": "the frontend"});
                *config = image.to_string().into_bytes();
                Ok(result)
            }
            "platforms" => self.platforms().await,
            "attestations" => {
                let said = process("echo '{\"said\": true}' > /a.json", |_| {});
                let said = reference(&self.define(said).await?).id;
                self.attested(said).await
            }
            "tell" => self.tell().await,
            "inputs" => {
                let inputs: InputsResponse = self.call("Inputs", &Unused {}).await?;
                let names: Vec<_> = inputs.definitions.keys().cloned().collect();
                eprintln!("inputs: {}", names.join(" "));
                let input = inputs.definitions.into_values().next().unwrap_or_default();
                let made = self.define(input).await?;
                Ok(returned(made, &json!({"Cmd": ["cat", "/made"]})))
            }
            other => self.hostile(other).await,
        }
    }

    /// What no frontend should do.
    async fn hostile(&self, mode: &str) -> Result<Returned> {
        match mode {
            "loop" => self.again("loop", "").await,
            "peek" => {
                let made = self.define(process("echo secret > /made", |_| {})).await?;
                self.again("read", &reference(&made).id).await
            }
            "read" => {
                let id = self.options.get("id").cloned().unwrap_or_default();
                self.read(&id, "/made").await?;
                Ok(Returned::default())
            }
            "failed" => {
                let image = self.options.get("build-arg:IMAGE").cloned();
                let image = details::failed_image(&image.unwrap_or_default());
                Err(Status::unknown("it has failed").with(image))
            }
            "unknown" => {
                let id = "another-0".to_owned();
                let kind = result::Kind::Ref(Ref { id, def: None });
                Ok(Returned {
                    kind: Some(kind),
                    ..Returned::default()
                })
            }
            "attests-another" => self.attested("another-0".to_owned()).await,
            "host" => {
                let wanted = process("true", |op| op.network = NetMode::Host.into());
                self.evaluate(wanted).await
            }
            "insecure" => {
                let wanted = process("true", |op| op.security = SecurityMode::Insecure.into());
                self.evaluate(wanted).await
            }
            "cgroup" => {
                let change = |op: &mut ExecOp| {
                    let meta = op.meta.as_mut().unwrap();
                    meta.cgroup_parent = "/elsewhere".into();
                };
                self.evaluate(process("true", change)).await
            }
            "large" => {
                let bytes = vec![0; 20 << 20];
                self.define(Definition {
                    def: vec![bytes],
                    ..Definition::default()
                })
                .await
            }
            "many" => {
                for number in 0.. {
                    let long = format!("echo {number} {}", "x".repeat(1 << 20));
                    self.define(process(&long, |_| {})).await?;
                }
                Ok(Returned::default())
            }
            "names" => loop {
                let request = ResolveImageConfigRequest {
                    r#ref: "docker.io/library/busybox:latest".into(),
                    log_name: "x".repeat(1 << 20),
                    ..ResolveImageConfigRequest::default()
                };
                let _: ResolveImageConfigResponse =
                    self.call("ResolveImageConfig", &request).await?;
            },
            "imports" => {
                for number in 0..20 {
                    let name = format!("localhost:1/cache:{number}");
                    let import = CacheOptionsEntry {
                        kind: "registry".into(),
                        attrs: [("ref".to_owned(), name)].into(),
                    };
                    let request = SolveRequest {
                        definition: Some(process("true", |_| {})),
                        cache_imports: vec![import],
                        ..SolveRequest::default()
                    };
                    self.solve(request).await?;
                }
                Ok(Returned::default())
            }
            "hang" => {
                eprintln!("the frontend waits");
                std::future::pending().await
            }
            "step" => {
                let endless = process("echo the step waits; sleep 600", |_| {});
                self.evaluate(endless).await
            }
            other => Err(Status::unknown(format!(
                "the frontend does not know {other:?}"
            ))),
        }
    }

    async fn solve(&self, request: SolveRequest) -> Result<SolveResponse> {
        let request = SolveRequest {
            allow_result_return: true,
            allow_result_array_ref: true,
            ..request
        };
        self.call("Solve", &request).await
    }

    async fn define(&self, definition: Definition) -> Result<Returned> {
        let request = SolveRequest {
            definition: Some(definition),
            ..SolveRequest::default()
        };
        Ok(self.solve(request).await?.result.unwrap_or_default())
    }

    async fn evaluate(&self, definition: Definition) -> Result<Returned> {
        let request = SolveRequest {
            definition: Some(definition),
            evaluate: true,
            ..SolveRequest::default()
        };
        Ok(self.solve(request).await?.result.unwrap_or_default())
    }

    async fn frontend(
        &self,
        frontend: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<SolveResponse> {
        self.solve(SolveRequest {
            frontend: frontend.into(),
            frontend_opt: options.clone(),
            ..SolveRequest::default()
        })
        .await
    }

    /// Calls this frontend once more.
    async fn again(&self, mode: &str, id: &str) -> Result<Returned> {
        let mut options = self.options.clone();
        options.insert("mode".into(), mode.into());
        options.insert("id".into(), id.into());
        let again = self.frontend("gateway.v0", &options).await?;
        Ok(again.result.unwrap_or_default())
    }

    async fn read(&self, id: &str, path: &str) -> Result<String> {
        let request = ReadFileRequest {
            r#ref: id.to_owned(),
            file_path: path.to_owned(),
            range: None,
        };
        let read: ReadFileResponse = self.call("ReadFile", &request).await?;
        Ok(String::from_utf8_lossy(&read.data).into_owned())
    }

    /// Executes each line of the Dockerfile that begins with `run`.
    async fn lines(&self) -> Result<Returned> {
        let filename = self.options.get("filename").cloned();
        let filename = filename.unwrap_or_else(|| "Dockerfile".into());
        let mut graphs = Builder::default();
        let followed = json!([filename]).to_string();
        let source = SourceOp {
            identifier: "local://dockerfile".into(),
            attrs: [("local.followpaths".to_owned(), followed)].into(),
        };
        let local = graphs.add(Vertex::new(Kind::Source(source), Vec::new()));
        let definition = graphs.definition(Some(local.unwrap()), None);
        let read = self.define(definition).await?;
        let text = self.read(&reference(&read).id, &filename).await?;
        let mut graphs = Builder::default();
        let mut last = base(&mut graphs);
        for (number, line) in text.lines().enumerate() {
            if let Some(command) = line.strip_prefix("run ") {
                last = exec(&mut graphs, last, command, |_| {});
            } else if !line.starts_with('#') {
                let place = SourceInfo {
                    filename,
                    data: text.as_bytes().to_vec(),
                    definition: None,
                    language: String::new(),
                };
                let line = i32::try_from(number + 1).unwrap();
                let position = Some(Position { line, character: 0 });
                let range = Range {
                    start: position,
                    end: position,
                };
                let status = Status::unknown("the frontend does not understand the line");
                return Err(status.with(details::source(&place, &[range])));
            }
        }
        let made = self.define(graphs.definition(Some(last), None)).await?;
        Ok(returned(made, &json!({"Cmd": ["cat", "/made"]})))
    }

    async fn platforms(&self) -> Result<Returned> {
        let (mut refs, mut listed) = (BTreeMap::new(), Vec::new());
        let mut metadata = BTreeMap::new();
        for architecture in ["amd64", "386"] {
            let id = format!("linux/{architecture}");
            let command = format!("echo {architecture} > /made");
            let made = self.define(process(&command, |_| {})).await?;
            refs.insert(id.clone(), reference(&made));
            let platform = json!({"os": "linux", "architecture": architecture});
            let mut config = platform.clone();
            config["config"] = json!({"Cmd": ["cat", "/made"]});
            let name = format!("containerimage.config/{id}");
            metadata.insert(name, config.to_string().into_bytes());
            listed.push(json!({"ID": id, "Platform": platform}));
        }
        let platforms = json!({"Platforms": listed}).to_string();
        metadata.insert("refs.platforms".into(), platforms.into_bytes());
        Ok(Returned {
            kind: Some(result::Kind::Refs(RefMap { refs })),
            metadata,
            ..Returned::default()
        })
    }

    /// Returns a result, and an attestation in a file of another one.
    async fn attested(&self, id: String) -> Result<Returned> {
        let definition = process("echo attested > /made", |_| {});
        let mut result = self.define(definition).await?;
        let attestation = Attestation {
            r#ref: Some(Ref { id, def: None }),
            path: "/a.json".into(),
            in_toto_predicate_type: "https://example.com/a/v1".into(),
            ..Attestation::default()
        };
        let attestation = vec![attestation];
        result.attestations = [("linux/amd64".to_owned(), Attestations { attestation })].into();
        Ok(returned(result, &json!({"Cmd": ["cat", "/made"]})))
    }

    /// Tells what the process has: its variables, capabilities and devices.
    async fn tell(&self) -> Result<Returned> {
        let pong: PongResponse = self.call("Ping", &Unused {}).await?;
        let has_exec = pong
            .frontend_api_caps
            .iter()
            .any(|cap| cap.id.starts_with("gateway.exec"));
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let workers: Value = serde_json::from_str(&variable("BUILDKIT_WORKERS")).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let told = status.lines().filter(|line| {
            ["CapEff", "CapBnd", "Seccomp:", "NoNewPrivs"]
                .iter()
                .any(|name| line.starts_with(name))
        });
        let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap();
        eprintln!("session: {}", !variable("BUILDKIT_SESSION_ID").is_empty());
        eprintln!("product: {}", variable("BUILDKIT_EXPORTEDPRODUCT"));
        eprintln!("platform: {}", workers[0]["platforms"][0]["os"]);
        eprintln!("exec: {has_exec}");
        eprintln!("{interfaces}");
        for line in told {
            eprintln!("{}", line.replace('\t', " "));
        }
        Err(Status::unknown("that was all"))
    }
}

/// The image that the operations stand on.
fn base(graphs: &mut Builder) -> Output {
    let source = SourceOp {
        identifier: "docker-image://docker.io/library/busybox:latest".into(),
        ..SourceOp::default()
    };
    let vertex = Vertex::new(Kind::Source(source), Vec::new());
    graphs.add(vertex).unwrap()
}

fn exec(
    graphs: &mut Builder,
    on: Output,
    command: &str,
    change: impl FnOnce(&mut ExecOp),
) -> Output {
    let args = ["/bin/sh", "-c", command].map(str::to_owned);
    let mut op = ExecOp {
        meta: Some(Meta {
            args: args.to_vec(),
            cwd: "/".into(),
            ..Meta::default()
        }),
        mounts: vec![Mount {
            dest: "/".into(),
            ..Mount::default()
        }],
        network: NetMode::None.into(),
        ..ExecOp::default()
    };
    change(&mut op);
    let vertex = Vertex::new(Kind::Exec(op), vec![on]);
    graphs.add(vertex).unwrap()
}

/// Returns the definition of a process in busybox.
fn process(command: &str, change: impl FnOnce(&mut ExecOp)) -> Definition {
    let mut graphs = Builder::default();
    let on = base(&mut graphs);
    let last = exec(&mut graphs, on, command, change);
    graphs.definition(Some(last), None)
}

fn reference(result: &Returned) -> Ref {
    match &result.kind {
        Some(result::Kind::Ref(reference)) => reference.clone(),
        other => panic!("not a reference: {other:?}"),
    }
}

/// Returns a result with the configuration of an image.
fn returned(made: Returned, config: &Value) -> Returned {
    let image = json!({"os": "linux", "architecture": "amd64", "config": config}).to_string();
    Returned {
        metadata: [("containerimage.config".to_owned(), image.into_bytes())].into(),
        ..made
    }
}
