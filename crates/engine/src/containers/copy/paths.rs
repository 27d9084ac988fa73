//! Paths in containers, as Go's `path/filepath` and Docker's clients write them.

/// Maximum number of symbolic links in a path.
const MAX_LINKS: usize = 255;

/// Returns whether a path demands a directory: it ends in `/` or `/.`.
pub(super) fn demands_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.") || path == "."
}

/// Returns the last component of a path: `/` of the root, and `.` where that is the last one.
pub(super) fn base(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return "/";
    }
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns a path as an absolute one without `.` and `..`, but with the `/` or `/.` at its end. `/./` is
/// `/.`.
pub(super) fn absolute(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let mut clean = format!("/{}", names.join("/"));
    let trimmed = path.trim_end_matches('/');
    let ends_in_dot = trimmed == "." || trimmed.ends_with("/.");
    if ends_in_dot || path.ends_with('/') {
        if !clean.ends_with('/') {
            clean.push('/');
        }
        if ends_in_dot {
            clean.push('.');
        }
    }
    clean
}

/// Resolves the symbolic links of a path as far as it exists. `link_at` returns the target of the link at
/// a path without other links.
pub(super) fn resolve(path: &str, link_at: impl Fn(&str) -> Option<String>) -> String {
    let mut pending: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut at = String::new();
    let mut links = 0;
    while let Some(name) = pending.pop() {
        match name.as_str() {
            "" | "." => continue,
            ".." => {
                at.truncate(at.rfind('/').unwrap_or(0));
                continue;
            }
            _ => {}
        }
        let next = format!("{at}/{name}");
        match link_at(&next) {
            Some(target) if links < MAX_LINKS => {
                links += 1;
                if target.starts_with('/') {
                    at.clear();
                }
                pending.extend(target.split('/').rev().map(str::to_owned));
            }
            _ => at = next,
        }
    }
    if at.is_empty() { "/".into() } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_demands_a_directory() {
        for (path, expected, name) in [
            ("/t/file", "/t/file", "file"),
            ("t/dir/", "/t/dir/", "dir"),
            ("/t/dir/.", "/t/dir/.", "."),
            ("../../t", "/t", "t"),
            ("/t/dir/../file", "/t/file", "file"),
            ("/", "/", "/"),
            (".", "/.", "."),
            ("/.", "/.", "."),
            ("./", "/.", "."),
            ("/./", "/.", "."),
            ("/t/dir/./", "/t/dir/.", "."),
            ("//", "/", "/"),
            ("//a//b", "/a/b", "b"),
        ] {
            assert_eq!(absolute(path), expected, "{path}");
            assert_eq!(base(&absolute(path)), name, "{path}");
        }
        assert!(demands_directory("/a/") && demands_directory("/a/.") && demands_directory("."));
        assert!(!demands_directory("/a/..b") && !demands_directory("/a."));
    }

    #[test]
    fn resolves_links_inside_the_root() {
        let link_at = |path: &str| {
            let target = match path {
                "/t/link" => "file",
                "/t/dir/up" => "../../../../etc",
                "/t/abs" => "/t/dir",
                "/loop" => "loop",
                _ => return None,
            };
            Some(target.to_owned())
        };
        for (path, expected) in [
            ("/t/link", "/t/file"),
            ("/t/dir/up", "/etc"),
            ("/t/abs/up/x", "/etc/x"),
            ("/t/abs/../y", "/t/y"),
            ("/loop", "/loop"),
            ("/", "/"),
        ] {
            assert_eq!(resolve(path, link_at), expected, "{path}");
        }
    }
}
