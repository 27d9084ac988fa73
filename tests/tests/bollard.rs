//! Builds by bollard, Rust's client of the Engine API: classic ones, those of BuildKit with a session, and by BuildKit's protocol.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;

use bollard::Docker;
use bollard::errors::Error;
use bollard::grpc::build::{ImageBuildFrontendOptions, ImageBuildLoadInput, SecretSource};
use bollard::grpc::driver::Build as _;
use bollard::grpc::driver::moby::Moby;
use bollard::models::{BuildInfo, BuildInfoAux};
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion};
use futures_util::TryStreamExt as _;
use http_body_util::{Either, Full};
use tokio::runtime::Runtime;
use whelk_tests::Engine;
use whelk_tests::builds::shows;
use whelk_tests::tar::Tar;

/// Seconds until a request fails.
const TIMEOUT: u64 = 120;

const DOCKERFILE: &str = "FROM busybox AS made
RUN --network=none echo made > /made
FROM busybox
COPY --from=made /made /made
COPY file /file
";

fn client(engine: &Engine) -> Docker {
    let socket = engine.socket();
    let socket = socket.to_str().unwrap();
    Docker::connect_with_unix(socket, TIMEOUT, bollard::API_DEFAULT_VERSION).unwrap()
}

fn archive(dockerfile: &str) -> Vec<u8> {
    let archive = Tar::new().file("Dockerfile", dockerfile);
    archive.file("file", "sent\n").finish()
}

/// Builds, and returns all messages.
async fn build(
    client: &Docker,
    options: BuildImageOptions,
    dockerfile: &str,
) -> Result<Vec<BuildInfo>, Error> {
    let body = Either::Left(Full::new(archive(dockerfile).into()));
    let messages = client.build_image(options, None, Some(body));
    messages.try_collect().await
}

fn named(name: &str) -> BuildImageOptionsBuilder {
    let options = BuildImageOptionsBuilder::default();
    options.dockerfile("Dockerfile").t(name)
}

fn cat(engine: &Engine, image: &str, files: &[&str]) -> String {
    let run = ["run", "--rm", "--network", "none", image, "cat"];
    engine.docker(&[&run[..], files].concat()).ok()
}

#[test]
fn classic_builds_show_their_steps_and_the_image() {
    let engine = Engine::start();
    Runtime::new().unwrap().block_on(async {
        let client = client(&engine);
        let options = || named("classic").rm(true).build();
        let messages = build(&client, options(), DOCKERFILE).await.unwrap();
        let text: String = messages.iter().filter_map(|m| m.stream.clone()).collect();
        shows(
            &text,
            &[
                "Step 1/5 : FROM busybox AS made",
                "Successfully built ",
                "Successfully tagged classic:latest",
            ],
        );
        let id = messages.iter().find_map(|message| match &message.aux {
            Some(BuildInfoAux::Default(image)) => image.id.clone(),
            _ => None,
        });
        assert_eq!(id.unwrap(), engine.image("classic")["Id"]);
        assert_eq!(cat(&engine, "classic", &["/made", "/file"]), "made\nsent");
        let again = build(&client, options(), DOCKERFILE).await.unwrap();
        let cached =
            |message: &&BuildInfo| message.stream.as_deref() == Some(" ---> Using cache\n");
        assert_eq!(again.iter().filter(cached).count(), 3, "{again:?}");
        let failing = "FROM busybox\nRUN --network=none exit 3\n";
        let error = build(&client, named("failing").build(), failing).await;
        let error = error.unwrap_err().to_string();
        shows(
            &error,
            &["The command '/bin/sh -c exit 3' returned a non-zero code: 3"],
        );
    });
    engine.has_no_builds();
}

#[test]
fn builds_with_a_session_show_buildkits_progress() {
    let engine = Engine::start();
    Runtime::new().unwrap().block_on(async {
        let client = client(&engine);
        let options = |name: &str| {
            let options = named(name).version(BuilderVersion::BuilderBuildKit);
            options.session(&format!("session-of-{name}")).build()
        };
        let messages = build(&client, options("two"), DOCKERFILE).await.unwrap();
        let mut names: Vec<String> = Vec::new();
        for message in &messages {
            if let Some(BuildInfoAux::BuildKit(status)) = &message.aux {
                names.extend(status.vertexes.iter().map(|vertex| vertex.name.clone()));
            }
        }
        shows(
            &names.join("\n"),
            &["RUN --network=none echo made > /made", "COPY file /file"],
        );
        assert_eq!(cat(&engine, "two", &["/made", "/file"]), "made\nsent");
        let failing = "FROM busybox\nRUN --network=none exit 3\n";
        let error = build(&client, options("failing"), failing).await;
        let error = error.unwrap_err().to_string();
        shows(
            &error,
            &["\"/bin/sh -c exit 3\" did not complete successfully: exit code: 3"],
        );
    });
    engine.has_no_builds();
}

#[test]
fn buildkits_protocol_gives_secrets_and_arguments() {
    let engine = Engine::start();
    let secret = engine.scratch_with("secrets", &[("token", "of-the-client")]);
    let text = "FROM busybox
ARG WORD
RUN --network=none --mount=type=secret,id=token echo $WORD $(cat /run/secrets/token) > /made
COPY file /file
";
    Runtime::new().unwrap().block_on(async {
        let client = client(&engine);
        let token = SecretSource::File(secret.join("token"));
        let options = ImageBuildFrontendOptions::builder();
        let options = options.set_secret("token", &token).buildarg("WORD", "said");
        let input = ImageBuildLoadInput::Upload(archive(text).into());
        let driver = Moby::new(&client);
        let built = driver
            .docker_build("driven", options.build(), input, None, None)
            .await;
        built.unwrap();
        assert_eq!(
            cat(&engine, "driven", &["/made", "/file"]),
            "said of-the-client\nsent"
        );
        let input = ImageBuildLoadInput::Upload(archive("FROM busybox\nCOPY none /\n").into());
        let options = ImageBuildFrontendOptions::builder().build();
        let driver = Moby::new(&client);
        let built = driver
            .docker_build("failing", options, input, None, None)
            .await;
        shows(
            &format!("{:?}", built.unwrap_err()),
            // Quotes are escaped there.
            &["/none", ": not found"],
        );
    });
    fs::remove_dir_all(secret).unwrap();
    engine.has_no_builds();
}
