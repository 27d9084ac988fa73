//! What `rmi` and `image prune` remove and print, and their events, as Docker's.

use serde_json::Value;
use whelk_tests::images::marked;
use whelk_tests::registry::Registry;
use whelk_tests::{Cli, Engine};

/// Runs a command and returns its lines and the actions of the events that it has caused.
fn with_events(cli: Cli<'_>, command: &[&str]) -> (Vec<String>, Vec<Value>) {
    let mut events = cli.engine().events("");
    let out = cli.run(command).ok();
    cli.run(&["volume", "create", "end"]).ok();
    cli.run(&["volume", "rm", "end"]).ok();
    let mut actions = Vec::new();
    loop {
        let event = events.next_event().unwrap();
        if event["Type"] == "volume" {
            break;
        }
        actions.push(event["Action"].clone());
    }
    (out.lines().map(str::to_owned).collect(), actions)
}

#[test]
fn a_digest_is_removed_alone_and_the_last_tag_with_its_digests() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let by_digest = format!("{}/app@{}", registry.host, pushed.digest);
    engine.both(|cli| {
        cli.run(&["pull", "-q", &pushed.name]).ok();
        let id = cli.run(&["images", "-q", "--no-trunc"]).ok();
        // With any tag; it is shown as it was given.
        let given = format!("{}/app:2@{}", registry.host, pushed.digest);
        let (lines, actions) = with_events(cli, &["rmi", &given]);
        assert_eq!(lines, [format!("Untagged: {given}")]);
        assert_eq!(actions, ["untag"]);
        for name in [&given, &by_digest] {
            let text = format!("Error response from daemon: No such image: {name}");
            cli.run(&["rmi", name]).refuses(1, &text);
        }
        let list = [
            "images",
            "--digests",
            "--format",
            "{{.Repository}}:{{.Tag}} {{.Digest}}",
        ];
        assert_eq!(cli.run(&list).ok(), format!("{} <none>", pushed.name));
        cli.run(&["pull", "-q", &pushed.name]).ok();
        let (lines, actions) = with_events(cli, &["rmi", &pushed.name]);
        let untagged = [&pushed.name, &by_digest].map(|name| format!("Untagged: {name}"));
        assert_eq!(lines[..2], untagged);
        assert_eq!(lines[2], format!("Deleted: {id}"));
        assert_eq!(actions, ["untag", "delete"]);
        // By its id, each reference has an event.
        cli.run(&["pull", "-q", &pushed.name]).ok();
        let (lines, actions) = with_events(cli, &["rmi", &id]);
        assert_eq!(lines[..2], untagged);
        assert_eq!(actions, ["untag", "untag", "delete"]);
        // The only reference.
        cli.run(&["pull", "-q", &by_digest]).ok();
        let (lines, _) = with_events(cli, &["rmi", &by_digest]);
        assert_eq!(lines[..2], [untagged[1].clone(), format!("Deleted: {id}")]);
    });
}

#[test]
fn a_digest_of_a_used_image_is_removed_by_force_and_its_tag_stays() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let by_digest = format!("{}/app@{}", registry.host, pushed.digest);
    engine.both(|cli| {
        cli.run(&["pull", "-q", &pushed.name]).ok();
        let words = ["create", "--network", "none", "--name", "user", &pushed.name, "true"];
        let container = cli.run(&words).ok();
        let text = format!(
            "conflict: unable to remove repository reference \"{by_digest}\" (must force) - container {} is using its referenced image",
            &container[..12]
        );
        cli.run(&["rmi", &by_digest]).refuses(1, &text);
        assert_eq!(cli.run(&["rmi", "-f", &by_digest]).ok(), format!("Untagged: {by_digest}"));
        let list = ["images", "--format", "{{.Repository}}:{{.Tag}}"];
        assert_eq!(cli.run(&list).ok(), pushed.name);
        cli.run(&["rm", "user"]).ok();
        cli.run(&["rmi", &pushed.name]).ok();
    });
}

#[test]
fn prunes_have_an_event_and_dockers_filters() {
    let engine = Engine::without_images(&[]);
    engine.both(|cli| {
        engine.load(&marked("a:1").build());
        let (_, actions) = with_events(cli, &["image", "prune", "-f"]);
        assert_eq!(actions, ["prune"]);
        let prune = ["image", "prune", "-f", "--filter"];
        let refused = |filter: &str, text: &str| {
            let text = format!("Error response from daemon: {text}");
            cli.run(&[&prune[..], &[filter]].concat()).refuses(1, &text);
        };
        refused(
            "until=bad",
            "failed to parse value as time or duration: \"bad\"",
        );
        refused("=x", "invalid filter");
        refused("foo=bar", "invalid filter 'foo'");
        cli.run(&[&prune[..], &["dangling=maybe"]].concat()).ok();
        cli.run(&["images", "--filter", "label!=a"])
            .refuses(1, "Error response from daemon: invalid filter 'label!'");
        assert_eq!(cli.run(&["images", "-q"]).ok().lines().count(), 1);
        let (lines, actions) = with_events(cli, &["image", "prune", "-af"]);
        assert_eq!(lines[..2], ["Deleted Images:", "untagged: a:1"]);
        assert_eq!(actions, ["untag", "delete", "prune"]);
        for kind in ["container", "network"] {
            let mut events = engine.events("");
            cli.run(&[kind, "prune", "-f"]).ok();
            let event = events.next_event().unwrap();
            assert_eq!(
                (&event["Type"], &event["Action"]),
                (&kind.into(), &"prune".into())
            );
            assert_eq!(event["Actor"]["Attributes"]["reclaimed"], "0");
        }
    });
}

#[test]
fn references_match_digests_too() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let by_digest = format!("{}/app@{}", registry.host, pushed.digest);
    engine.both(|cli| {
        cli.run(&["pull", "-q", &pushed.name]).ok();
        cli.run(&["tag", &pushed.name, "a:1"]).ok();
        let list = |filter: &str| {
            let words = ["images", "--digests", "--filter", filter, "--format"];
            cli.run(&[&words[..], &["{{.Repository}}:{{.Tag}} {{.Digest}}"]].concat())
                .ok()
        };
        assert_eq!(list("reference=a"), "a:1 <none>");
        let named = format!("reference={}/app", registry.host);
        assert_eq!(list(&named), format!("{} {}", pushed.name, pushed.digest));
        assert_eq!(
            list(&format!("{named}:*")),
            format!("{} <none>", pushed.name)
        );
        let only = format!("{}/app:<none> {}", registry.host, pushed.digest);
        assert_eq!(list(&format!("reference={by_digest}")), only);
        cli.run(&["rmi", "a:1", &pushed.name]).ok();
    });
}

#[test]
fn a_pull_of_what_is_here_says_only_that() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let by_digest = format!("{}/app@{}", registry.host, pushed.digest);
    engine.both(|cli| {
        let first = cli.run(&["pull", &pushed.name]).ok();
        assert!(!first.contains("Extracting"), "{first}");
        let end = |name: &str| {
            format!(
                "Digest: {}\nStatus: Image is up to date for {name}\n{name}",
                pushed.digest
            )
        };
        let again = cli.run(&["pull", &pushed.name]).ok();
        assert_eq!(again, format!("1: Pulling from app\n{}", end(&pushed.name)));
        let again = cli.run(&["pull", &by_digest]).ok();
        assert_eq!(
            again,
            format!("{by_digest}: Pulling from app\n{}", end(&by_digest))
        );
        let image = engine.get(&format!("/images/{}/json", pushed.name));
        assert_eq!(image["Metadata"]["LastTagTime"], "0001-01-01T00:00:00Z");
        cli.run(&["rmi", &pushed.name]).ok();
    });
}
