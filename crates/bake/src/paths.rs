//! Paths as text, by the rules of Go.

pub use whelk_dockerfile::path::clean;

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
