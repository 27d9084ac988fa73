//! What a frontend learns of sources before it uses them (`LLBBridge.ResolveSourceMeta`).

use std::collections::BTreeMap;

use hyper::header::{HeaderMap, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use whelk_buildkit::grpc::Channel;
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse};
use whelk_buildkit::pb::gateway::{
    ResolveSourceGitRequest, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use whelk_llb::pb::SourceOp;
use whelk_tests::web::{Answer, Web};
use whelk_tests::{Engine, images};

use crate::git::{Host, commit, git};
use crate::shows;

/// Asks, as the frontend of a build.
async fn ask(
    engine: &Engine,
    requests: Vec<ResolveSourceMetaRequest>,
) -> Vec<Result<ResolveSourceMetaResponse, String>> {
    let mut stream = UnixStream::connect(engine.socket()).await.unwrap();
    let head = b"POST /grpc HTTP/1.1\r\nHost: whelk\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let (channel, driver) = Channel::open(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(driver);
    let request = SolveRequest {
        r#ref: "meta".into(),
        internal: true,
        ..SolveRequest::default()
    };
    let solving = channel.clone();
    let solving = tokio::spawn(async move {
        let solve = "moby.buildkit.v1.Control/Solve";
        solving.unary::<SolveResponse>(solve, &request).await
    });
    let mut answers = Vec::new();
    for request in requests {
        let mut metadata = HeaderMap::new();
        let id = HeaderValue::from_static("meta");
        metadata.insert("buildkit-controlapi-buildid", id);
        let method = "moby.buildkit.v1.frontend.LLBBridge/ResolveSourceMeta";
        let mut call = channel.stream(method, metadata).unwrap();
        call.requests.send(&request).await.unwrap();
        call.requests.close();
        let answer = call.next::<ResolveSourceMetaResponse>().await;
        answers.push(answer.map(Option::unwrap).map_err(|status| status.message));
    }
    solving.abort();
    answers
}

fn of(identifier: &str, attributes: &[(&str, &str)]) -> ResolveSourceMetaRequest {
    let attrs: BTreeMap<String, String> = attributes
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    ResolveSourceMetaRequest {
        source: Some(SourceOp {
            identifier: identifier.into(),
            attrs,
        }),
        ..ResolveSourceMetaRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frontends_learn_what_sources_are_now() {
    let engine = Engine::start();
    let host = Host::new();
    let path = host.repository("app", &[("x", "one")]);
    let first = git(&path, &["rev-parse", "HEAD"]);
    git(&path, &["tag", "-a", "v1", "-m", "first"]);
    let tag = git(&path, &["rev-parse", "v1"]);
    let second = commit(&path, &[("x", "two")]);
    let url = host.url("app.git");
    let web = Web::start(|asked| match asked.path.as_str() {
        "/file.txt" => {
            Answer::new(200, "content").header("Last-Modified", "Thu, 01 Jan 2015 00:00:00 GMT")
        }
        "/named" if asked.header("user-agent") == Some("tester") => {
            let disposition = "attachment; filename=\"a; b.txt\"";
            Answer::new(200, "content").header("Content-Disposition", disposition)
        }
        _ => Answer::new(404, "no"),
    });
    let repository = |fragment: &str| {
        of(
            &format!("git://host/app.git{fragment}"),
            &[("git.fullurl", &url)],
        )
    };
    let mut objects = repository("#main");
    objects.git = Some(ResolveSourceGitRequest {
        return_object: true,
    });
    let requests = vec![
        repository(""),
        repository("#v1"),
        repository(&format!("#{first}")),
        of(&web.url("/file.txt"), &[]),
        repository("#none"),
        objects,
        of(&web.url("/none"), &[]),
        of("local://context", &[]),
        of(
            &web.url("/named"),
            &[
                ("http.header.user-agent", "tester"),
                ("http.header.x-other", "is not sent"),
            ],
        ),
    ];
    let answers = ask(&engine, requests).await;
    let git = |number: usize| {
        let found = answers[number].as_ref().unwrap().git.clone().unwrap();
        (found.r#ref, found.checksum, found.commit_checksum)
    };
    assert_eq!(git(0), ("refs/heads/main".into(), second, String::new()));
    assert_eq!(git(1), ("refs/tags/v1".into(), tag, first.clone()));
    assert_eq!(git(2), (first.clone(), first, String::new()));
    let file = answers[3].as_ref().unwrap().http.clone().unwrap();
    let digest = format!("sha256:{}", images::sha256(b"content"));
    let seconds = file.last_modified.unwrap().seconds;
    assert_eq!(
        (file.checksum, file.filename.as_str(), seconds),
        (digest, "file.txt", 1_420_070_400)
    );
    let named = answers[8].as_ref().unwrap().http.clone().unwrap();
    assert_eq!(named.filename, "a; b.txt");
    for (number, error) in [
        (4, "does not contain ref none"),
        (5, "the objects of git commits"),
        (6, "invalid response status 404"),
        (7, "metadata of the source local://context"),
    ] {
        shows(answers[number].as_ref().unwrap_err(), &[error]);
    }
}
