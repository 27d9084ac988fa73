//! Searches of registries.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use serde_json::json;
use whelk_tests::Engine;
use whelk_tests::registry::{Behaviour, Registry};

fn registry() -> Registry {
    let registry = Registry::start();
    let long = "A small image\nwith a description of more than forty-five characters\u{1b}[2J";
    registry.behave(Behaviour {
        search_results: Some(json!([
            {"name": "team/app", "description": null, "star_count": 3, "is_official": false},
            {"name": "app", "description": long, "star_count": 120, "is_official": true, "is_automated": true},
        ])),
        ..Behaviour::default()
    });
    registry
}

#[test]
fn a_registry_is_searched() {
    let engine = Engine::without_images(&[]);
    let registry = registry();
    let term = format!("{}/app", registry.host);
    let expected = "NAME       DESCRIPTION                                     STARS     OFFICIAL\n\
        team/app                                                   3         \n\
        app        A small image with a description of more tha\u{2026}   120       [OK]";
    engine.both(|cli| {
        let search = |flags: &[&str]| cli.run(&[&["search"], flags, &[&term]].concat());
        assert_eq!(search(&[]).ok(), expected);
        assert!(
            search(&["--no-trunc"])
                .ok()
                .contains("forty-five characters")
        );
        let names = ["--format", "{{.Name}} {{.StarCount}}{{.IsOfficial}}"];
        assert_eq!(search(&names).ok(), "team/app 3\napp 120[OK]");
        search(&["--format", "{{.IsAutomated}}"]).refuses(
            1,
            "can't evaluate field IsAutomated in type *registry.searchContext",
        );
        let one = search(&["--format", "json", "--limit", "1"]).ok();
        let fields = r#"{"Description":"","IsOfficial":"false","Name":"team/app","StarCount":"3"}"#;
        assert_eq!(one, fields);
        for (filter, names) in [
            ("stars=100", "app"),
            ("is-official=false", "team/app"),
            ("is-official=true", "app"),
            ("is-automated=true", ""),
        ] {
            let found = search(&["-f", filter, "--format", "{{.Name}}"]).ok();
            assert_eq!(found, names, "{filter}");
        }
        search(&["--limit", "101"]).refuses(1, "limit 101 is outside the range of [1, 100]");
        search(&["-f", "foo=1"]).refuses(1, "invalid filter 'foo'");
        search(&["-f", "stars=x"]).refuses(1, "invalid filter 'stars=x'");
        cli.run(&["search", &format!("https://{term}")])
            .refuses(1, "should not have a scheme");
    });
    let requests = registry.requests("/v1/search");
    assert_eq!(requests[0], "GET /v1/search?q=app&n=25");
    let found = engine.get(&format!("/images/search?term={term}&limit=5"));
    assert_eq!(found[1]["is_automated"], false);
    assert_eq!(found[1]["star_count"], 120);
    assert!(!found[1]["description"].as_str().unwrap().contains('\u{1b}'));
}

#[test]
fn a_registry_without_searches_or_with_a_password_is_reported() {
    let engine = Engine::without_images(&[]);
    let other = Registry::start();
    let registry = registry();
    registry.behave(Behaviour {
        authorization: Some("Basic YWxpY2U6c2VzYW1l".into()),
        search_results: Some(json!([{"name": "app", "star_count": 1}])),
        ..Behaviour::default()
    });
    let config = engine.scratch("config");
    std::fs::create_dir_all(&config).unwrap();
    let flag = format!("--config={}", config.display());
    let (host, term) = (registry.host.as_str(), format!("{}/app", registry.host));
    engine.both(|cli| {
        cli.run(&["search", &format!("{}/x", other.host)])
            .refuses(1, "search \"");
        std::fs::write(config.join("config.json"), "{}").unwrap();
        cli.run(&[&flag, "search", &term])
            .refuses(1, "no basic auth credentials");
        let auths = json!({"auths": {host: {"auth": "YWxpY2U6c2VzYW1l"}}});
        std::fs::write(config.join("config.json"), auths.to_string()).unwrap();
        let found = cli.run(&[&flag, "search", "--format", "{{.Name}}", &term]);
        assert_eq!(found.ok(), "app");
    });
}
