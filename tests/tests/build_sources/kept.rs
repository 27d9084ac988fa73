//! What was fetched, as records of the build cache.

use whelk_tests::Engine;
use whelk_tests::web::{Answer, Web};

use crate::git::Host;
use crate::{built, only, shows};

#[test]
fn what_was_fetched_is_part_of_the_cache() {
    let engine = Engine::start();
    let host = Host::new();
    host.repository("app", &[("x", &"x".repeat(5000))]);
    let git_url = host.url("app.git");
    let web = Web::start(|_| Answer::new(200, vec![b'y'; 7000]));
    let web_url = web.url("/file");
    let with_token = web_url.replace("http://", "http://user:token@");
    let dockerfile = format!("FROM busybox\nADD {git_url} /git\nADD {with_token} /file\n");
    let context = only(&engine, "add", &dockerfile);
    built(&engine, &[&context]);
    let listed = |filter: &str| {
        let args = ["buildx", "du", "--verbose", "--filter", filter];
        engine.docker(&args).ok()
    };
    let git = "type=source.git.checkout";
    shows(&listed(git), &[&format!("git snapshot for {git_url}#")]);
    let web_files = "description~=^http.url";
    let of_web = listed(web_files);
    shows(&of_web, &[&format!("http url {web_url}"), "7kB"]);
    assert!(!of_web.contains("token"), "{of_web}");
    // One kind alone.
    engine
        .docker(&["buildx", "prune", "-f", "--filter", git])
        .ok();
    assert!(!listed(git).contains("git snapshot"));
    shows(&listed(web_files), &["http url"]);
    engine.docker(&["builder", "prune", "-af"]).ok();
    assert!(!listed(web_files).contains("http url"));
    let left = |kind: &str| {
        let place = engine.root().join("build").join(kind);
        place.read_dir().unwrap().count()
    };
    assert_eq!((left("git"), left("http")), (0, 0));
    built(&engine, &[&context]);
    engine.has_no_builds();
}
