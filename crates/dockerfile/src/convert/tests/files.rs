//! ADD and COPY.

use whelk_llb::pb::user_opt;

use super::*;

#[test]
fn copies_select_paths() {
    let text =
        "FROM scratch\nWORKDIR /w\nCOPY --chown=user:5 --chmod=0640 --exclude=*.md a/../b c* d/\n";
    let done = run(text, &options());
    let (_, attrs) = done.source("build context");
    assert_eq!(attrs["local.followpaths"], r#"["b","c*"]"#);
    assert_eq!(attrs["local.sharedkeyhint"], "context");
    let file = done.file("COPY");
    let [first, second] = done.copies("COPY")[..] else {
        panic!("{file:?}")
    };
    assert_eq!((first.src.as_str(), first.dest.as_str()), ("/b", "/w/d/"));
    assert_eq!(second.src, "/c*");
    assert_eq!((first.mode, first.timestamp), (0o640, -1));
    assert!(first.follow_symlink && first.dir_copy_contents && first.create_dest_path);
    assert!(first.allow_wildcard && first.allow_empty_wildcard);
    assert!(!first.attempt_unpack_docker_compatibility);
    assert_eq!(first.exclude_patterns, ["*.md"]);
    let owner = first.owner.clone().unwrap_or_default();
    let Some(user_opt::User::ByName(user)) = owner.user.and_then(|user| user.user) else {
        panic!("no name")
    };
    assert_eq!((user.name.as_str(), user.input), ("user", 0));
    let group = owner.group.and_then(|group| group.user);
    assert_eq!(group, Some(user_opt::User::ById(5)));
    // The second copy continues the first one.
    let [one, two] = file.actions.as_slice() else {
        panic!("{file:?}")
    };
    assert_eq!((one.input, one.secondary_input, one.output), (0, 1, -1));
    assert_eq!((two.input, two.secondary_input, two.output), (2, 1, 0));
    let history = done.history();
    assert_eq!(history[0], ("WORKDIR /w", false));
    assert_eq!(
        history[1],
        (
            "COPY --chown=user:5 --chmod=0640 a/../b c* d/ # buildkit",
            false
        )
    );
    assert_eq!(done.conversion.image.config.working_dir, "/w");
}

#[test]
fn destinations_keep_their_meaning() {
    for (destination, expected) in [
        (".", "/w/"),
        ("./", "/w/"),
        ("x", "/w/x"),
        ("x/", "/w/x/"),
        ("/", "/"),
        ("/a/../b/", "/b/"),
        ("/a/.", "/a/."),
        ("${D}x", "/d/x"),
    ] {
        let text = format!("FROM scratch\nENV D=/d/\nWORKDIR /w\nCOPY a {destination}\n");
        assert_eq!(run(&text, &options()).copies("COPY")[0].dest, expected);
    }
}

#[test]
fn parents_are_patterns() {
    for (source, src, include, required) in [
        ("a/b/c", "/", "a/b/c", Some("/a/b/c")),
        ("a/./b/c", "/a", "b/c", Some("/a/b/c")),
        ("a/./b/*.c", "/a", "b/*.c", None),
        ("**/d", "/", "**/d", None),
    ] {
        let text = format!("FROM scratch\nCOPY --parents {source} /\n");
        let done = run(&text, &options());
        let copy = done.copies("COPY")[0];
        assert_eq!(
            (copy.src.as_str(), copy.include_patterns[0].as_str()),
            (src, include)
        );
        assert_eq!(copy.required_paths.first().map(String::as_str), required);
    }
}

#[test]
fn links_are_layers_of_their_own() {
    let text = "FROM a\nCOPY --link x /\nRUN y\n";
    let done = run(text, &options());
    assert_eq!(
        done.names()[1..],
        [
            "[2/3] COPY --link x /",
            "[2/3] LINK COPY --link x /",
            "[3/3] RUN y",
            "[internal] load build context",
        ]
    );
    let merge = done.node("LINK");
    assert!(matches!(&merge.op.kind, Some(Kind::Merge(merge)) if merge.inputs.len() == 2));
    assert_eq!(done.file("] COPY").actions[0].input, -1);
    // A mode needs the files below.
    let text = "FROM a\nCOPY --link --chmod=u+rwX x /\n";
    let done = run(text, &options());
    let copy = done.copies("COPY")[0];
    assert_eq!((copy.mode_str.as_str(), copy.mode), ("u+rwX", 0));
    assert_eq!(done.graph.nodes.len(), 3);
    // So does the name of a user, but no id.
    let nodes = |owner: &str| {
        let text = format!("FROM a\nCOPY --link --chown={owner} x /\n");
        run(&text, &options()).graph.nodes.len()
    };
    assert_eq!([nodes("web"), nodes("1:web"), nodes("1:2")], [3, 3, 4]);
    // Nothing to merge with.
    let done = run("FROM scratch\nCOPY --link x /\n", &options());
    assert_eq!(done.graph.nodes.len(), 2);
}

#[test]
fn add_has_remote_sources() {
    let sum = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    let text = format!(
        "FROM scratch\nADD --checksum={sum} --unpack https://host/a/b.tar?x /d/\n\
         ADD --keep-git-dir=true https://host/r.git#v1:sub /r\nADD local.tar /l\nADD --unpack=false other.tar /o\n"
    );
    let done = run(&text, &options());
    let url = done
        .graph
        .nodes
        .iter()
        .find_map(|node| match &node.op.kind {
            Some(Kind::Source(source)) if source.identifier.starts_with("https") => Some(source),
            _ => None,
        });
    let url = url.unwrap_or_else(|| panic!("no URL"));
    assert_eq!(url.identifier, "https://host/a/b.tar?x");
    assert_eq!(url.attrs["http.filename"], "b.tar");
    assert_eq!(url.attrs["http.checksum"], sum);
    let find = |src: &str| {
        done.graph
            .nodes
            .iter()
            .filter_map(|node| match &node.op.kind {
                Some(Kind::File(file)) => file.actions.first(),
                _ => None,
            })
            .find_map(|action| match &action.action {
                Some(file_action::Action::Copy(copy)) if copy.src == src => Some(copy.clone()),
                _ => None,
            })
            .unwrap_or_else(|| panic!("{src}"))
    };
    assert!(find("/b.tar").attempt_unpack_docker_compatibility);
    assert!(find("/local.tar").attempt_unpack_docker_compatibility);
    assert!(!find("/other.tar").attempt_unpack_docker_compatibility);
    assert_eq!(find("/").dest, "/r");
    let git = done
        .graph
        .nodes
        .iter()
        .find_map(|node| match &node.op.kind {
            Some(Kind::Source(source)) if source.identifier.starts_with("git") => Some(source),
            _ => None,
        });
    let git = git.unwrap_or_else(|| panic!("no repository"));
    assert_eq!(git.identifier, "git://host/r.git#v1:sub");
    assert_eq!(git.attrs["git.keepgitdir"], "true");
}

#[test]
fn credentials_of_sources_are_not_shown() {
    let text = "FROM scratch\nARG TOKEN=secret\nADD https://u:$TOKEN@host/a https://$TOKEN@host/r.git#v1 /d/\n\
        ADD [\"http://u:secret@host/b\", \"/e/\"]\nADD ssh://git@host/s.git /f/\nADD a@b /g\n\
        ADD [\"https://host/c\",\"https://u:secret@host/d\",\"/h/\"]\n";
    let done = run(text, &options());
    let shown: Vec<&str> = done.history().into_iter().map(|(text, _)| text).collect();
    assert_eq!(
        shown[1..],
        [
            "ADD https://host/a https://host/r.git#v1 /d/ # buildkit",
            "ADD http://host/b /e/ # buildkit",
            "ADD ssh://git@host/s.git /f/ # buildkit",
            "ADD a@b /g # buildkit",
            "ADD https://host/c https://host/d /h/ # buildkit",
        ]
    );
    let names: Vec<&str> = done.graph.nodes.iter().map(name).collect();
    assert!(
        names.iter().all(|name| !name.contains("secret")),
        "{names:?}"
    );
    let list = "[5/5] ADD [https://host/c,https://host/d,/h/]";
    assert!(names.contains(&list), "{names:?}");
    // They are used.
    let is_used = |node: &&Node| match &node.op.kind {
        Some(Kind::Source(source)) => {
            let url = source
                .attrs
                .get("git.fullurl")
                .unwrap_or(&source.identifier);
            url.contains("secret@host")
        }
        _ => false,
    };
    assert_eq!(done.graph.nodes.iter().filter(is_used).count(), 4);
}

#[test]
fn documents_are_files() {
    let text =
        "FROM scratch\nENV X=1\nCOPY <<a.txt <<-\"b.txt\" /d/\n$X \"q\"\na.txt\n\t$X\n\tb.txt\n";
    let done = run(text, &options());
    let documents: Vec<(String, String)> = done
        .graph
        .nodes
        .iter()
        .filter(|node| name(node) == "[internal] preparing inline document")
        .filter_map(|node| match &node.op.kind {
            Some(Kind::File(file)) => match &file.actions[0].action {
                Some(file_action::Action::Mkfile(made)) => Some((
                    made.path.clone(),
                    String::from_utf8_lossy(&made.data).into_owned(),
                )),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(
        documents,
        [
            ("/a.txt".to_owned(), "1 \"q\"\n".to_owned()),
            ("/b.txt".to_owned(), "$X\n".to_owned())
        ]
    );
    let history = done.history();
    assert_eq!(history[1].0, "COPY <<a.txt <<b.txt /d/ # buildkit");
}
