//! Tags, removal, lists, history and inspect.

use std::fs;

use whelk_tests::Engine;
use whelk_tests::images;

#[test]
fn tags_are_added_and_removed() {
    Engine::start().both(|cli| {
        let id = cli.run(&["images", "-q", "--no-trunc", "busybox"]).ok();
        assert_eq!(cli.run(&["tag", "busybox", "mine:1"]).ok(), "");
        cli.run(&["tag", &id, "localhost:5000/a/b"]).ok();
        let names = cli.run(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
        for name in ["busybox:latest", "mine:1", "localhost:5000/a/b:latest"] {
            assert!(names.lines().any(|line| line == name), "{names}");
        }
        let short = &id.trim_start_matches("sha256:")[..12];
        cli.run(&["rmi", short])
            .refuses(1, &format!("conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"));
        assert_eq!(cli.run(&["rmi", "mine:1", "localhost:5000/a/b"]).ok(), "Untagged: mine:1\nUntagged: localhost:5000/a/b:latest");
        cli.run(&["tag", "nosuch", "x"]).refuses(1, "Error response from daemon: No such image: nosuch:latest");
        cli.run(&["tag", "busybox", "UPPER"]).refuses(
            1,
            "\"UPPER\" is not a valid repository/tag: invalid reference format: repository name (library/UPPER) must be lowercase",
        );
        cli.run(&["rmi", "nosuch"]).refuses(1, "No such image: nosuch:latest");
        assert_eq!(cli.run(&["images", "-q", "--no-trunc"]).ok(), id);
    });
}

#[test]
fn an_image_in_use_is_not_removed() {
    Engine::start().both(|cli| {
        let id = cli.run(&["images", "-q", "busybox"]).ok();
        let container = cli.up("user", &[], &["sleep", "600"]);
        let short = &container[..12];
        cli.run(&["rmi", "busybox"])
            .refuses(1, &format!("conflict: unable to remove repository reference \"busybox\" (must force) - container {short} is using its referenced image {id}"));
        cli.run(&["rmi", "-f", &id]).refuses(1, &format!("conflict: unable to delete {id} (cannot be forced) - image is being used by running container {short}"));
        cli.run(&["kill", "user"]).ok();
        cli.run(&["rmi", &id]).refuses(1, &format!("conflict: unable to delete {id} (must be forced) - image is being used by stopped container {short}"));
        // Untagged by force, the container still runs.
        assert_eq!(cli.run(&["rmi", "-f", "busybox"]).ok().lines().next(), Some("Untagged: busybox:latest"));
        cli.run(&["start", "user"]).ok();
        assert_eq!(cli.run(&["exec", "user", "echo", "fine"]).ok(), "fine");
        cli.run(&["rm", "-f", "user"]).ok();
        cli.engine().load(&fs::read(images::busybox()).unwrap());
    });
}

#[test]
fn lists_history_and_inspect_look_like_dockers() {
    Engine::start().both(|cli| {
        let text = cli.run(&["images"]).ok();
        let words: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        );
        let row = text.lines().nth(1).unwrap();
        assert!(
            row.starts_with("busybox      latest    ")
                && row.contains(" years ago ")
                && row.ends_with("MB"),
            "{row}"
        );
        let text = cli
            .run(&["history", "--format", "{{.CreatedBy}}|{{.Size}}", "busybox"])
            .ok();
        assert_eq!(text.lines().next(), Some("CMD [\"sh\"]|0B"));
        assert_eq!(text.lines().count(), 2);
        let text = cli
            .run(&[
                "image",
                "inspect",
                "-f",
                "{{.Os}} {{.Config.Cmd}} {{len .RootFS.Layers}} {{index .RepoTags 0}} {{.Created}}",
                "busybox",
            ])
            .ok();
        assert_eq!(text, "linux [sh] 1 busybox:latest 2024-01-01T00:00:00Z");
        assert_eq!(cli.run(&["images", "-q", "nosuch"]).ok(), "");
        assert_eq!(
            cli.run(&["images", "-q", "-f", "reference=busy*"])
                .ok()
                .len(),
            12
        );
        assert_eq!(cli.run(&["images", "-q", "-f", "dangling=true"]).ok(), "");
        cli.run(&["image", "inspect", "nosuch"])
            .refuses(1, "No such image: nosuch:latest");
        cli.run(&["history", "nosuch"])
            .refuses(1, "No such image: nosuch:latest");
    });
}
