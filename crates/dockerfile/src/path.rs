//! Paths by the rules of Go's package `path`.

/// Returns the shortest equivalent path: without empty and `.` components, and `..` applied where possible;
/// `.` for an empty one.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&"..") => parts.push(".."),
                Some(_) => {
                    parts.pop();
                }
                None if rooted => {}
                None => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.as_str()) {
        (true, _) => format!("/{joined}"),
        (false, "") => ".".into(),
        (false, _) => joined,
    }
}

/// Joins the elements that are not empty, and cleans the result; nothing gives an empty path.
pub(crate) fn join(elements: &[&str]) -> String {
    let elements: Vec<&str> = elements
        .iter()
        .copied()
        .filter(|element| !element.is_empty())
        .collect();
    if elements.is_empty() {
        String::new()
    } else {
        clean(&elements.join("/"))
    }
}

/// Returns the last component: `.` of an empty path, `/` of the root.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        Some("") | None => "/",
        Some(base) => base,
    }
}

/// Makes `path` absolute in `parent`. A slash or `/.` at its end is kept, because copies give them a meaning.
pub(crate) fn absolute(parent: &str, path: &str, keep_slash: bool) -> String {
    let mut found = if path.starts_with('/') {
        clean(path)
    } else {
        join(&["/", parent, path])
    };
    if keep_slash {
        if path.ends_with('/') && !found.ends_with('/') {
            found.push('/');
        } else if path.ends_with("/.") {
            if found != "/" {
                found.push('/');
            }
            found.push('.');
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_go() {
        for (path, expected) in [
            ("", "."),
            ("a/./b//c/..", "a/b"),
            ("/../a", "/a"),
            ("../../a/..", "../.."),
            ("/", "/"),
            ("./", "."),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
        for (path, expected) in [("", "."), ("/", "/"), ("a/b/", "b"), ("c", "c")] {
            assert_eq!(base(path), expected, "{path}");
        }
        for (parent, path, expected) in [
            ("/w", "a/", "/w/a/"),
            ("/w", "./", "/w/"),
            ("/w", "a/.", "/w/a/."),
            ("/", "/.", "/."),
            ("", "a", "/a"),
            ("/w", "/b/../c", "/c"),
        ] {
            assert_eq!(absolute(parent, path, true), expected, "{parent} {path}");
        }
    }
}
