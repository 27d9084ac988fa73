//! Paths as text, as Go cleans them.

/// Returns the shortest path that is lexically the same.
pub fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&"..") => parts.push(".."),
                Some(_) => drop(parts.pop()),
                None if is_absolute => {}
                None => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    match (is_absolute, parts.join("/")) {
        (true, path) => format!("/{path}"),
        (false, path) if path.is_empty() => ".".into(),
        (false, path) => path,
    }
}

/// Returns a path of a file in a directory.
pub fn join(directory: &str, path: &str) -> String {
    clean(&format!("{directory}/{path}"))
}

/// Returns whether a name matches a pattern of Go's `path.Match`.
///
/// # Errors
/// Returns an error if the pattern is malformed.
pub fn matches(pattern: &str, name: &str) -> Result<bool, String> {
    whelk_text::glob::matches(pattern, name).map_err(|error| error.to_string())
}

/// Whether a text has the form of what is fetched by the engine: a URL, or a repository.
pub fn is_remote(text: &str) -> bool {
    let schemes = [
        "http://",
        "https://",
        "git://",
        "ssh://",
        "git@",
        "github.com/",
    ];
    schemes.iter().any(|scheme| text.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in [
            ("", "."),
            ("./a//b/", "a/b"),
            ("a/../..", ".."),
            ("/../a", "/a"),
            ("../../x", "../../x"),
            ("/", "/"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
        assert_eq!(join("a", "../b"), "b");
    }

    #[test]
    fn what_is_remote_is_known_by_its_beginning() {
        for (text, expected) in [
            ("https://example.com/x.tar", true),
            ("git@example.com:x.git", true),
            ("github.com/a/b", true),
            ("./https:", false),
            ("dir", false),
        ] {
            assert_eq!(is_remote(text), expected, "{text}");
        }
    }
}
