//! Dockerfiles as projects have them: packages of Debian, caches of package managers, several stages, many steps.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use whelk_tests::builds::{docker, shows};
use whelk_tests::{Engine, eventually, images, skipped};

/// Time limit of a build that downloads packages.
const PATIENCE: Duration = Duration::from_secs(600);

/// Installs packages as Docker's documentation shows it, with caches that outlive the step.
fn installs(packages: &str) -> String {
    format!(
        "RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \\\n  \
         rm -f /etc/apt/apt.conf.d/docker-clean && apt-get update -qq && \\\n  \
         apt-get install -qq --no-install-recommends -y {packages}\n"
    )
}

fn engine() -> Engine {
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    engine
}

/// Builds with time for downloads. Returns all that was shown.
#[track_caller]
fn built(engine: &Engine, context: &Path, args: &[&str]) -> String {
    let context = context.to_str().unwrap();
    let mut build = docker(engine).spawn(&[&["build"], args, &[context]].concat());
    build.finish_within(PATIENCE).exits(0)
}

/// Returns what a container answers at its port 80, when it does.
fn page(engine: &Engine, container: &str) -> String {
    let address = engine.docker(&["port", container, "80"]).ok();
    eventually("the server to answer", || {
        let mut stream = TcpStream::connect(address.trim()).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text).filter(|text| text.contains("200 OK"))
    })
}

#[test]
fn a_python_application_is_installed_with_pip() {
    let engine = engine();
    let dockerfile = format!(
        "FROM python\n{}\
         WORKDIR /app\n\
         COPY requirements.txt .\n\
         COPY greeting greeting\n\
         RUN --mount=type=cache,target=/root/.cache/pip pip install --break-system-packages --no-index --no-build-isolation -r requirements.txt\n\
         COPY app.py .\n\
         USER nobody\n\
         CMD [\"python3\", \"app.py\"]\n",
        installs("python3-pip")
    );
    let setup = "from setuptools import setup\nsetup(name='greeting', version='1.0', py_modules=['greeting'])\n";
    let context = engine.scratch_with(
        "pip",
        &[
            ("Dockerfile", &dockerfile),
            ("requirements.txt", "./greeting\n"),
            ("greeting/setup.py", setup),
            ("greeting/greeting.py", "def greet(): return 'hello'\n"),
            ("app.py", "import greeting; print(greeting.greet())\n"),
        ],
    );
    built(&engine, &context, &["-t", "app"]);
    let run = || {
        engine
            .docker(&["run", "--rm", "--network", "none", "app"])
            .ok()
    };
    assert_eq!(run(), "hello");
    // Only what comes after the application's source is built again: the base image and five steps are not.
    fs::write(
        context.join("app.py"),
        "import greeting; print(greeting.greet() * 2)\n",
    )
    .unwrap();
    let shown = built(&engine, &context, &["-t", "app"]);
    assert_eq!(shown.matches("CACHED").count(), 6, "{shown}");
    assert_eq!(run(), "hellohello");
}

#[test]
fn a_site_is_generated_and_served() {
    let engine = engine();
    let dockerfile = format!(
        "FROM python AS site\n\
         WORKDIR /site\n\
         COPY <<EOF page.md\nwelcome\nEOF\n\
         RUN echo \"<p>$(cat page.md)</p>\" > index.html\n\
         FROM python\n{}\
         COPY --from=site --chown=www-data:www-data /site/index.html /var/www/html/\n\
         EXPOSE 80\n\
         STOPSIGNAL SIGQUIT\n\
         CMD [\"nginx\", \"-g\", \"daemon off;\"]\n",
        installs("nginx-light")
    );
    let context = engine.dockerfile("site", &dockerfile);
    built(&engine, &context, &["-t", "site"]);
    let run = [
        "run",
        "-d",
        "--rm",
        "--name",
        "site",
        "-p",
        "127.0.0.1::80",
        "site",
    ];
    engine.docker(&run).ok();
    shows(&page(&engine, "site"), &["<p>welcome</p>", "Server: nginx"]);
    // Its own signal ends it at once.
    engine.docker(&["stop", "site"]).ok();
}

#[test]
fn a_node_server_is_installed_with_npm() {
    const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
    let engine = engine();
    let dockerfile = format!(
        "FROM python\n{}\
         WORKDIR /app\n\
         COPY package.json .\n\
         RUN --mount=type=secret,id=authorities,target=/authorities --mount=type=cache,target=/root/.npm \\\n  \
         NODE_EXTRA_CA_CERTS=/authorities npm install\n\
         COPY server.js .\n\
         CMD [\"node\", \"server.js\"]\n",
        installs("npm")
    );
    let context = engine.scratch_with(
        "npm",
        &[
            ("Dockerfile", &dockerfile),
            (
                "package.json",
                r#"{"name": "app", "version": "1.0.0", "dependencies": {"express": "^4", "dockerode": "^4"}}"#,
            ),
            (
                "server.js",
                "require('express')().get('/', (_, answer) => answer.send('welcome')).listen(80)\n",
            ),
        ],
    );
    let authorities = format!("id=authorities,src={AUTHORITIES}");
    let arguments = [
        "build",
        "-t",
        "app",
        "--secret",
        &authorities,
        context.to_str().unwrap(),
    ];
    let output = docker(&engine).spawn(&arguments).finish_within(PATIENCE);
    let shown = output.shown();
    if output.code != 0
        && ["ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT"]
            .iter()
            .any(|error| shown.contains(error))
    {
        return skipped!("the registry of npm cannot be reached");
    }
    output.ok();
    engine
        .docker(&[
            "run",
            "-d",
            "--rm",
            "--name",
            "server",
            "-p",
            "127.0.0.1::80",
            "app",
        ])
        .ok();
    shows(&page(&engine, "server"), &["welcome"]);
    fs::write(
        context.join("server.js"),
        "require('express')().get('/', (_, answer) => answer.send('other')).listen(80)\n",
    )
    .unwrap();
    let shown = docker(&engine)
        .spawn(&arguments)
        .finish_within(PATIENCE)
        .exits(0);
    assert_eq!(shown.matches("CACHED").count(), 5, "{shown}");
    dockerode_builds(&engine);
}

/// Builds with dockerode, in a container of the application that has it installed.
fn dockerode_builds(engine: &Engine) {
    let program = "const Docker = require('/app/node_modules/dockerode')
        const docker = new Docker({socketPath: '/engine/whelk.sock'})
        const build = async (src, options) => {
            const stream = await docker.buildImage({context: '/program', src}, options)
            return new Promise((resolve, reject) =>
                docker.modem.followProgress(stream, (error, messages) => error ? reject(error) : resolve(messages)))
        }
        const shown = messages => messages.map(message => message.stream || '').join('')
        const main = async () => {
            const good = ['Dockerfile', 'file']
            for (const options of [{t: 'classic'}, {t: 'session', version: '2'}]) {
                const messages = await build(good, {...options, buildargs: {WORD: 'said'}, labels: {by: 'dockerode'}})
                if (options.t == 'classic') console.log(shown(messages))
                const {Id, Config} = await docker.getImage(options.t).inspect()
                console.log(options.t, Config.Labels.by, messages.some(({aux}) => aux && aux.ID == Id))
                const failing = await build(['bad.Dockerfile'], {...options, dockerfile: 'bad.Dockerfile'})
                console.log(options.t, failing.find(({error}) => error).error)
            }
        }
        main().catch(error => { console.log(error); process.exit(1) })
        ";
    let dockerfile =
        "FROM busybox\nARG WORD\nRUN --network=none echo $WORD > /made\nCOPY file /file\n";
    let directory = engine.scratch_with(
        "dockerode",
        &[
            ("main.js", program),
            ("Dockerfile", dockerfile),
            (
                "bad.Dockerfile",
                "FROM busybox\nRUN --network=none exit 3\n",
            ),
            ("file", "sent\n"),
        ],
    );
    let directory = format!("{}:/program:ro", directory.display());
    let socket = format!("{}:/engine", engine.socket().parent().unwrap().display());
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        &socket,
        "-v",
        &directory,
        "app",
    ];
    let shown = engine
        .docker(&[&run[..], &["node", "/program/main.js"]].concat())
        .ok();
    shows(
        &shown,
        &[
            "Step 1/4 : FROM busybox",
            "Successfully tagged classic:latest",
            "classic dockerode true",
            "classic The command '/bin/sh -c exit 3' returned a non-zero code: 3",
            "session dockerode true",
            "did not complete successfully: exit code: 3",
        ],
    );
    for image in ["classic", "session"] {
        let run = [
            "run",
            "--rm",
            "--network",
            "none",
            image,
            "cat",
            "/made",
            "/file",
        ];
        assert_eq!(engine.docker(&run).ok(), "said\nsent");
    }
}

#[test]
fn a_rust_program_is_compiled_with_a_cache() {
    let engine = engine();
    let dockerfile = format!(
        "FROM python AS build\n{}\
         WORKDIR /src\n\
         COPY . .\n\
         RUN --mount=type=cache,target=/src/target cargo build --offline && cp target/debug/app /app\n\
         FROM python\n\
         COPY --from=build /app /usr/local/bin/app\n\
         ENTRYPOINT [\"app\"]\n",
        installs("cargo libc6-dev gcc")
    );
    let library = "[package]\nname = \"greeting\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
    let app = "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\ngreeting = { path = \"greeting\" }\n";
    let context = engine.scratch_with(
        "cargo",
        &[
            ("Dockerfile", &dockerfile),
            (".dockerignore", "Dockerfile\n"),
            ("Cargo.toml", app),
            ("greeting/Cargo.toml", library),
            (
                "greeting/src/lib.rs",
                "pub fn greet() -> &'static str { \"hello\" }\n",
            ),
            (
                "src/main.rs",
                "fn main() { println!(\"{}\", greeting::greet()) }\n",
            ),
        ],
    );
    let shown = built(&engine, &context, &["-t", "app"]);
    shows(&shown, &["Compiling greeting", "Compiling app"]);
    let run = || {
        engine
            .docker(&["run", "--rm", "--network", "none", "app"])
            .ok()
    };
    assert_eq!(run(), "hello");
    // The step is executed again, with what it has left in its cache.
    let main = "fn main() { println!(\"{}!\", greeting::greet()) }\n";
    fs::write(context.join("src/main.rs"), main).unwrap();
    let shown = built(&engine, &context, &["-t", "app"]);
    assert!(!shown.contains("Compiling greeting"), "{shown}");
    shows(&shown, &["Compiling app"]);
    assert_eq!(run(), "hello!");
}

#[test]
fn a_debian_package_is_built_in_forty_steps() {
    let engine = engine();
    let mut dockerfile = String::from(
        "FROM python AS package\n\
         ARG VERSION=1.0\n\
         ENV TREE=/tree/greeting_${VERSION}\n\
         WORKDIR ${TREE}/DEBIAN\n\
         COPY <<EOF control\nPackage: greeting\nVersion: ${VERSION}\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: greets\nEOF\n\
         WORKDIR ${TREE}/usr/share/greeting\n",
    );
    for number in 1..=33 {
        writeln!(
            dockerfile,
            "RUN echo {number} >> lines && cp lines lines.{number}"
        )
        .unwrap();
    }
    dockerfile.push_str(
        "RUN dpkg-deb --root-owner-group --build ${TREE} /greeting.deb\n\
         FROM python\n\
         RUN --mount=from=package,source=/greeting.deb,target=/tmp/greeting.deb dpkg -i /tmp/greeting.deb\n\
         CMD [\"dpkg\", \"-L\", \"greeting\"]\n",
    );
    let context = engine.dockerfile("package", &dockerfile);
    let begin = Instant::now();
    built(&engine, &context, &["-t", "package"]);
    assert!(begin.elapsed().as_secs() < 240, "{:?}", begin.elapsed());
    let listed = engine
        .docker(&["run", "--rm", "--network", "none", "package"])
        .ok();
    assert_eq!(
        listed.matches("/usr/share/greeting/lines").count(),
        34,
        "{listed}"
    );
    let shown = built(&engine, &context, &["-t", "package"]);
    assert_eq!(shown.matches("CACHED").count(), 40, "{shown}");
    // The version is a part of all steps but the base image, which is not always said to be cached.
    let shown = built(
        &engine,
        &context,
        &["-t", "package", "--build-arg", "VERSION=2.0"],
    );
    assert!(shown.matches("CACHED").count() <= 1, "{shown}");
    let version = [
        "run",
        "--rm",
        "--network",
        "none",
        "package",
        "dpkg-query",
        "-W",
        "greeting",
    ];
    assert_eq!(engine.docker(&version).ok(), "greeting\t2.0");
}
