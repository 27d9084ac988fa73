//! Debian's `docker-registry`: pulls, pushes and logins by both clients, over HTTP and TLS, with passwords
//! and with tokens.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use whelk_tests::certificates::Authority;
use whelk_tests::images::{Archive, marked};
use whelk_tests::{Engine, Scratch, debian_registry, eventually, free_port, private_host};

/// A registry. It is killed, and its directory removed, on drop.
struct Served {
    directory: Scratch,
    host: String,
    _process: Process,
}

/// Kills and reaps the process on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Served {
    /// Starts a registry. `settings` gets its directory, to create files there, and returns what is added
    /// to its configuration.
    fn start(name: &str, settings: impl FnOnce(&Path) -> Value) -> Self {
        let directory = Scratch::new(&format!("debian-registry-{name}"));
        let host = format!("127.0.0.1:{}", free_port());
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": directory.join("data")}},
            "http": {"addr": host, "secret": "test"},
        });
        if let Value::Object(own) = settings(&directory) {
            for (key, value) in own {
                config[key] = value;
            }
        }
        let path = directory.join("config.yml");
        // JSON is YAML.
        std::fs::write(&path, config.to_string()).unwrap();
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(debian_registry())
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Process(process);
        eventually("the registry", || TcpStream::connect(&host).ok());
        Self {
            directory,
            host,
            _process: process,
        }
    }
}

/// Loads an image and gives it a name in a registry.
fn load(engine: &Engine, image: &Archive, name: &str) {
    engine.load(&image.build());
    engine.whelk(&["tag", &image.tags[0], name]).ok();
}

fn which(engine: &Engine, name: &str) -> String {
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        name,
        "cat",
        "/etc/which",
    ];
    engine.whelk(&run).ok()
}

#[test]
fn images_are_pushed_and_pulled_over_http() {
    let engine = Engine::without_images(&[]);
    let registry = Served::start("http", |_| json!({}));
    engine.both(|cli| {
        let name = format!("{}/team/app:1", registry.host);
        load(&engine, &marked("app:1"), &name);
        let pushed = cli.run(&["push", &name]).ok();
        let digest = pushed.lines().last().unwrap().split(' ').nth(2).unwrap();
        let by_digest = format!("{}/team/app@{digest}", registry.host);
        let again = cli.run(&["push", &name]).ok();
        assert!(again.contains("Layer already exists"), "{again}");
        let second = format!("{}/second:1", registry.host);
        cli.run(&["tag", &name, &second]).ok();
        let mounted = cli.run(&["push", &second]).ok();
        assert!(mounted.contains("Mounted from team/app"), "{mounted}");
        cli.run(&["rmi", "-f", &name, &second, "app:1"]).ok();
        let pulled = cli.run(&["pull", &name]).ok();
        assert!(pulled.contains(&format!("Digest: {digest}")), "{pulled}");
        assert_eq!(which(&engine, &name), "app:1");
        cli.run(&["pull", &by_digest]).ok();
        let missing = format!("{}/team/app:2", registry.host);
        let text = format!("manifest for {missing} not found: manifest unknown: manifest unknown");
        cli.run(&["pull", &missing]).refuses(1, &text);
        cli.run(&["rmi", "-f", &name]).ok();
        std::fs::remove_dir_all(registry.directory.join("data")).unwrap();
    });
}

/// Lets only alice in, with the password `sesame`.
fn passwords(directory: &Path) -> Value {
    let hash = bcrypt::hash("sesame", 4).unwrap();
    let path = directory.join("htpasswd");
    std::fs::write(&path, format!("alice:{hash}\n")).unwrap();
    json!({"auth": {"htpasswd": {"realm": "test", "path": path}}})
}

#[test]
fn docker_py_pushes_and_pulls() {
    let engine = Engine::without_images(&[]);
    let registry = Served::start("docker-py", passwords);
    whelk_tests::docker_py::pushes_and_pulls(&engine, &registry.host, "alice", "sesame");
}

#[test]
fn a_registry_with_passwords_wants_a_login() {
    let engine = Engine::without_images(&[]);
    let registry = Served::start("htpasswd", passwords);
    let config = engine.scratch("config");
    std::fs::create_dir_all(&config).unwrap();
    let flag = format!("--config={}", config.display());
    let name = format!("{}/app:1", registry.host);
    engine.both(|cli| {
        load(&engine, &marked("app:1"), &name);
        let login = [
            &flag,
            "login",
            "-u",
            "alice",
            "--password-stdin",
            &registry.host,
        ];
        std::fs::write(config.join("config.json"), "{}").unwrap();
        cli.run(&[&flag, "push", &name])
            .refuses(1, "no basic auth credentials");
        cli.feed(&login, b"wrong")
            .refuses(1, "failed with status: 401 Unauthorized");
        cli.feed(&login, b"sesame").ok();
        cli.run(&[&flag, "push", &name]).ok();
        cli.run(&["rmi", "-f", &name, "app:1"]).ok();
        cli.run(&["pull", &name])
            .refuses(1, "no basic auth credentials");
        cli.run(&[&flag, "pull", &name]).ok();
        assert_eq!(which(&engine, &name), "app:1");
        cli.run(&[&flag, "logout", &registry.host]).ok();
        cli.run(&[&flag, "pull", &name])
            .refuses(1, "no basic auth credentials");
        cli.run(&["rmi", "-f", &name]).ok();
    });
}

/// A service that issues tokens to alice for everything, and to others for pulls of `public`.
struct TokenService {
    url: String,
    /// The certificate of its key.
    bundle: String,
}

impl TokenService {
    fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["tokens".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let chain = STANDARD.encode(certificate.der());
        let random = ring::rand::SystemRandom::new();
        let key = key.serialize_der();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &random).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &chain, &key, &random);
            }
        });
        Self {
            url,
            bundle: certificate.pem(),
        }
    }
}

/// Answers a request for a token.
fn answer(
    mut stream: TcpStream,
    chain: &str,
    key: &EcdsaKeyPair,
    random: &ring::rand::SystemRandom,
) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)
        .ok()?
        .replace("%3A", ":")
        .replace("%2C", ",");
    let head = head.replace("%2F", "/");
    let mut lines = head.lines();
    let shown = lines.find(|line| line.to_lowercase().starts_with("authorization: "));
    let is_alice = shown.is_some_and(|line| line.ends_with("Basic YWxpY2U6c2VzYW1l"));
    let mut respond = |status: &str, body: &Value| {
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).ok()
    };
    if shown.is_some() && !is_alice {
        let body = json!({"details": "incorrect username or password"});
        return respond("401 Unauthorized", &body);
    }
    let query = head.split(' ').nth(1)?.split_once('?')?.1;
    let scopes = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="));
    let access = scopes.filter_map(|scope| {
        let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
        let actions: Vec<&str> = actions
            .split(',')
            .filter(|action| is_alice || (name == "public" && *action == "pull"))
            .collect();
        Some(json!({"type": "repository", "name": name, "actions": actions}))
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let claims = json!({
        "iss": "test issuer", "sub": "someone", "aud": "test registry", "jti": "1",
        "nbf": now - 60, "iat": now - 60, "exp": now + 300, "access": access.collect::<Vec<_>>(),
    });
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [chain]});
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = key.sign(random, signed.as_bytes()).ok()?;
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    respond("200 OK", &json!({"token": token, "expires_in": 300}))
}

#[test]
fn a_registry_with_a_token_service_grants_scopes() {
    let engine = Engine::without_images(&[]);
    let service = TokenService::start();
    let registry = Served::start("token", |directory| {
        let bundle = directory.join("tokens.pem");
        std::fs::write(&bundle, &service.bundle).unwrap();
        json!({"auth": {"token": {
            "realm": service.url, "service": "test registry", "issuer": "test issuer",
            "rootcertbundle": bundle,
        }}})
    });
    let config = engine.scratch("config");
    std::fs::create_dir_all(&config).unwrap();
    let flag = format!("--config={}", config.display());
    let name = |repository: &str| format!("{}/{repository}:1", registry.host);
    let (public, private) = (name("public"), name("private"));
    engine.both(|cli| {
        load(&engine, &marked("app:1"), &public);
        engine.whelk(&["tag", "app:1", &private]).ok();
        std::fs::write(config.join("config.json"), "{}").unwrap();
        let denied = "denied: requested access to the resource is denied";
        cli.run(&[&flag, "push", &public]).refuses(1, denied);
        let login = [&flag, "login", "-u", "alice", "--password-stdin", &registry.host];
        cli.feed(&login, b"wrong")
            .refuses(1, "unauthorized: incorrect username or password");
        cli.feed(&login, b"sesame").ok();
        cli.run(&[&flag, "push", &public]).ok();
        let pushed = cli.run(&[&flag, "push", &private]).ok();
        assert!(pushed.contains("digest: sha256:"), "{pushed}");
        cli.run(&["rmi", "-f", &public, &private, "app:1"]).ok();
        cli.run(&["pull", &public]).ok();
        assert_eq!(which(&engine, &public), "app:1");
        let text = format!(
            "pull access denied for {}/private, repository does not exist or may require 'docker login': {denied}",
            registry.host
        );
        cli.run(&["pull", &private]).refuses(1, &text);
        cli.run(&[&flag, "pull", &private]).ok();
        cli.run(&["rmi", "-f", &public, &private]).ok();
    });
}

#[test]
fn certificates_of_a_registry_are_those_of_its_directory() {
    let work = Scratch::new("debian-registry-certificates");
    let place = |name: &str| work.directory(name);
    let (own, other) = (Authority::new("own"), Authority::new("other"));
    own.issue_for(&place("server"), "registry.test");
    own.issue_for(&place("client"), "client");
    other.issue_for(&place("stranger"), "client");
    let image = place("image").join("image.tar");
    std::fs::write(&image, marked("app:1").build()).unwrap();
    let server = work.join("server");
    let config = json!({
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": work.join("data")}},
        "http": {"addr": "127.0.0.1:5443", "secret": "test", "tls": {
            "certificate": server.join("cert.pem"),
            "key": server.join("key.pem"),
            "clientcas": [server.join("ca.pem")],
        }},
    });
    std::fs::write(work.join("config.yml"), config.to_string()).unwrap();
    let script = format!(
        r#"
        busybox ip link set lo up
        echo "127.0.0.1 registry.test" >>/etc/hosts
        echo "{{\"instance\": \"$name\"}}" >/etc/whelk/daemon.json
        {registry} serve {work}/config.yml >/dev/null 2>&1 &
        server=$!
        await_port 5443 || exit 9
        certs=/etc/docker/certs.d/registry.test:5443
        mkdir -p $certs
        export DOCKER_HOST=unix:///run/whelk/whelk.sock
        "$0" ps -q >/dev/null || exit 1
        "$0" load -q -i {work}/image/image.tar && "$0" tag app:1 registry.test:5443/app:1 || exit 2
        for cli in "$0" {docker}; do
            rm -f $certs/*
            echo "none:"; $cli push registry.test:5443/app:1
            cp {work}/stranger/ca.pem $certs/ca.crt
            echo "stranger:"; $cli push registry.test:5443/app:1
            cp {work}/server/ca.pem $certs/ca.crt
            echo "nobody:"; $cli push registry.test:5443/app:1
            cp {work}/stranger/cert.pem $certs/client.cert
            cp {work}/stranger/key.pem $certs/client.key
            echo "wrong:"; $cli push registry.test:5443/app:1
            cp {work}/client/cert.pem $certs/client.cert
            cp {work}/client/key.pem $certs/client.key
            echo "right:"; $cli push registry.test:5443/app:1
            $cli rmi -f registry.test:5443/app:1
            $cli pull registry.test:5443/app:1 || exit 3
        done 2>&1
        kill $server
        end_engine || exit 7
        "#,
        registry = debian_registry().display(),
        docker = whelk_tests::Program::Docker.path().display(),
        work = work.display(),
    );
    let output = private_host(&script);
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
    let said = |after: &str, expected: &[&str]| {
        let marker = format!("{after}:\n");
        let mut found = text.match_indices(&marker);
        for _ in 0..2 {
            let (at, _) = found.next().unwrap();
            let rest = &text[at + after.len() + 2..];
            let rest = &rest[..rest.find(":\n").unwrap_or(rest.len())];
            for expected in expected {
                assert!(rest.contains(expected), "{after}: {expected}: {text}");
            }
        }
    };
    let unknown = "cannot connect to registry.test:5443: tls: failed to verify certificate: x509: certificate signed by unknown authority";
    said("none", &[unknown]);
    said("stranger", &[unknown]);
    said(
        "nobody",
        &["registry.test:5443: remote error: tls: certificate required"],
    );
    said("wrong", &["registry.test:5443: remote error: tls: "]);
    said(
        "right",
        &["1: digest: sha256:", "Status: Downloaded newer image"],
    );
}
