//! `ADD` of URLs.

use std::path::Path;
use std::sync::Arc;

use whelk_tests::certificates::Authority;
use whelk_tests::tar::Tar;
use whelk_tests::web::{Answer, Stream, Web, Wrap};
use whelk_tests::{Engine, images};

use crate::{build, built, classic, only, run, shows};

const TIME: &str = "Thu, 01 Jan 2015 00:00:00 GMT";

/// Serves files that have tags and times, and others.
fn server() -> Web {
    Web::start(|asked| {
        let body = format!("content of {}", asked.path);
        match asked.path.as_str() {
            "/tagged" if asked.header("if-none-match") == Some("\"one\"") => Answer::new(304, ""),
            "/tagged" => Answer::new(200, body)
                .header("ETag", "\"one\"")
                .header("Last-Modified", TIME),
            "/plain" => Answer::new(200, body),
            "/packed" => {
                assert_eq!(asked.header("accept-encoding"), Some("gzip"));
                Answer::new(200, images::gzip(body.as_bytes()))
                    .header("Content-Encoding", "gzip")
                    .header("Last-Modified", "Thursday, 01-Jan-15 00:00:00 GMT")
            }
            "/cut" => Answer::new(200, &images::gzip(body.as_bytes())[..20])
                .header("Content-Encoding", "gzip"),
            "/archive.tar" => Answer::new(200, Tar::new().file("inner", "of an archive").finish()),
            "/archive.tar.xz" => Answer::new(200, images::xz(&Tar::new().file("xz", "").finish())),
            "/moved" => Answer::new(302, "").header("Location", "/tagged"),
            "/loop" => Answer::new(302, "").header("Location", "/loop"),
            "/file" => Answer::new(302, "").header("Location", "file:///etc/passwd"),
            "/ftp" => Answer::new(302, "").header("Location", "ftp://host/x"),
            "/short" => Answer::new(200, "x").header("Content-Length", "100"),
            _ => Answer::new(404, "no"),
        }
    })
}

#[test]
fn files_of_urls_are_added() {
    let engine = Engine::start();
    let server = server();
    let [tagged, plain, tar, moved, packed] =
        ["/tagged", "/plain", "/archive.tar", "/moved", "/packed"].map(|path| server.url(path));
    let dockerfile = format!(
        "FROM busybox\nADD {tagged} {moved} {packed} /dir/\nADD --chmod=755 --chown=7:8 {plain} /named\nADD {tar} /whole/\n\
         ADD --unpack=true {tar} {tar}.xz /unpacked/\nADD local.tar.bz2 local.txz notes.bz2 /local/\n"
    );
    let context = only(&engine, "add", &dockerfile);
    for (name, content) in [
        (
            "local.tar.bz2",
            images::bzip2(&Tar::new().file("bz2", "").finish()),
        ),
        (
            "local.txz",
            images::xz(&Tar::new().file("txz", "").finish()),
        ),
        // Compressed, but no archive.
        ("notes.bz2", images::bzip2(&[b'x'; 1000])),
    ] {
        std::fs::write(Path::new(&context).join(name), content).unwrap();
    }
    let look = "cat /dir/tagged /dir/moved /dir/packed; stat -c '%n %a %u %Y' /dir/tagged /dir/packed /named; \
        ls /local /whole /unpacked";
    let expected = "content of /taggedcontent of /taggedcontent of /packed/dir/tagged 600 0 1420070400\n\
        /dir/packed 600 0 1420070400\n/named 755 7 0\n\
        /local:\nbz2\nnotes.bz2\ntxz\n\n/unpacked:\ninner\nxz\n\n/whole:\narchive.tar";
    built(&engine, &["-t", "add:1", &context]);
    assert_eq!(run(&engine, "add:1", look), expected);
    server.asked();
    // What has a tag is not sent again; the steps are the same.
    let again = built(&engine, &["-t", "add:2", &context]);
    shows(&again, &["CACHED"]);
    let asked = server.asked();
    let of_tagged = asked.iter().filter(|one| one.path == "/tagged");
    for one in of_tagged {
        assert_eq!(one.header("if-none-match"), Some("\"one\""));
        assert!(
            one.header("user-agent")
                .is_some_and(|agent| agent.contains("whelk"))
        );
    }
    let ids =
        ["add:1", "add:2"].map(|name| engine.get(&format!("/images/{name}/json"))["Id"].clone());
    assert_eq!(ids[0], ids[1]);
    classic(&engine, &["-t", "add:3", &context]);
    assert_eq!(run(&engine, "add:3", look), expected);
}

#[test]
fn checksums_are_verified_and_need_no_server() {
    let engine = Engine::start();
    let server = server();
    let url = server.url("/plain");
    let sum = format!("sha256:{}", images::sha256(b"content of /plain"));
    let right = only(
        &engine,
        "right",
        &format!("FROM busybox\nADD --checksum={sum} {url} /\n"),
    );
    built(&engine, &["-t", "sum", &right]);
    assert_eq!(server.asked().len(), 1);
    built(&engine, &["--no-cache", &right]);
    assert!(server.asked().is_empty());
    let wrong = format!("sha256:{}", "0".repeat(64));
    let context = only(
        &engine,
        "wrong",
        &format!("FROM busybox\nADD --checksum={wrong} {url} /\n"),
    );
    shows(
        &build(&engine, &[&context]).err(),
        &["digest mismatch", &sum, &wrong],
    );
    // `builder prune` removes the files, too.
    engine.docker(&["builder", "prune", "-af"]).ok();
    let kept = engine.root().join("build/http").read_dir().unwrap().count();
    assert_eq!(kept, 0);
}

#[test]
fn hostile_servers_are_refused_by_name() {
    let engine = Engine::start();
    let server = server();
    for (path, error) in [
        ("/none", "invalid response status 404"),
        ("/loop", "more than 10 redirects"),
        ("/file", "a redirect to an invalid URL"),
        ("/ftp", "a redirect to another protocol"),
        ("/short", "GET http://"),
        ("/cut", "/cut: decompress the body"),
    ] {
        let url = server.url(path);
        let name = path.trim_start_matches('/');
        let context = only(&engine, name, &format!("FROM busybox\nADD {url} /\n"));
        let failed = build(&engine, &[&context]);
        assert_eq!(failed.code, 1);
        shows(&failed.err(), &[error]);
    }
    engine.has_no_steps();
}

/// Returns a server's side of TLS with the certificate in a directory.
fn tls(place: &std::path::Path) -> Wrap {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_file(place.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(place.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    Arc::new(move |stream| {
        let session = rustls::ServerConnection::new(config.clone()).ok()?;
        Some(Box::new(rustls::StreamOwned::new(session, stream)) as Box<dyn Stream>)
    })
}

#[test]
fn certificates_are_verified_and_credentials_stay_with_their_server() {
    let scratch = whelk_tests::Scratch::new("web-certificates");
    let place = scratch.directory("server");
    Authority::new("web").issue(&place, "web");
    let authority = place.join("ca.pem");
    let engine = Engine::with_env(&[("SSL_CERT_FILE", authority.to_str().unwrap())]);
    let other = Web::start(|_| Answer::new(200, "elsewhere"));
    let plain = other.url("/x");
    let secure = Web::wrapped(tls(&place), move |asked| match asked.path.as_str() {
        "/down" => Answer::new(302, "").header("Location", &plain),
        _ => Answer::new(200, asked.header("authorization").unwrap_or("none")),
    });
    let add = |engine: &Engine, name: &str, user: &str, path: &str, args: &[&str]| {
        let url = format!("https://{user}{}{path}", secure.address);
        let context = only(engine, name, &format!("FROM busybox\nADD {url} /got\n"));
        build(engine, &[args, &["-t", name, &context]].concat())
    };
    add(&engine, "none", "", "/x", &[]).ok();
    assert_eq!(run(&engine, "none", "cat /got"), "none");
    let basic = add(&engine, "basic", "user:secret-word@", "/x", &[]);
    let told = [
        &["image", "history", "--no-trunc", "basic"][..],
        &["buildx", "history", "inspect"],
        &["buildx", "du", "--verbose"],
    ];
    let mut shown = basic.exits(0);
    shown.extend(told.map(|args| engine.docker(args).exits(0)));
    shows(&shown, &["ADD https://127.0.0.1:"]);
    assert!(!shown.contains("secret-word"), "{shown}");
    assert_eq!(
        run(&engine, "basic", "cat /got"),
        "Basic dXNlcjpzZWNyZXQtd29yZA=="
    );
    let values = [
        ("token", "secret-token"),
        ("header", "Digest secret-digest"),
    ];
    let token = engine.scratch_with("token", &values);
    let secret = format!("id=HTTP_AUTH_TOKEN_127.0.0.1,src={}/token", token.display());
    add(&engine, "token", "", "/y", &["--secret", &secret]).ok();
    assert_eq!(run(&engine, "token", "cat /got"), "Bearer secret-token");
    let header = token.join("header");
    let header = format!("id=HTTP_AUTH_HEADER_127.0.0.1,src={}", header.display());
    add(&engine, "header", "", "/z", &["--secret", &header]).ok();
    assert_eq!(run(&engine, "header", "cat /got"), "Digest secret-digest");
    let failed = add(&engine, "down", "", "/down", &["--secret", &secret]);
    shows(&failed.err(), &["a redirect from https to http"]);
    assert!(other.asked().is_empty());
    let words = engine.last_words();
    assert!(!words.contains("secret-"), "{words}");
    // A server on loopback may be an insecure registry, but a file is not taken from one that nobody knows.
    let strict = Engine::start();
    let failed = add(&strict, "unknown", "", "/x", &[]);
    shows(&failed.err(), &["certificate"]);
}

#[test]
fn proxies_are_used() {
    let proxy = Web::start(|asked| Answer::new(200, format!("{} by proxy", asked.path)));
    let url = format!("http://{}", proxy.address);
    let engine = Engine::with_env(&[("HTTP_PROXY", &url)]);
    let context = only(
        &engine,
        "proxy",
        "FROM busybox\nADD http://files.test/x /x\n",
    );
    built(&engine, &["-t", "proxy", &context]);
    assert_eq!(
        run(&engine, "proxy", "cat /x"),
        "http://files.test/x by proxy"
    );
}
