//! `Link` headers of upstream's lists, for the clients of this registry.

/// Returns a link to the next page with the path that it has here, which is that of the list.
/// Upstream may write a URL, a path, or what is relative to the list. `None` if the link leads to
/// another path: the list would seem to end early.
pub(super) fn resolve(link: &str, path: &str) -> Option<String> {
    let (target, rest) = link.trim_start().strip_prefix('<')?.split_once('>')?;
    // The host does not matter: the next page, too, is asked for at upstream's URL.
    let target = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") || scheme == "http" => {
            &rest[rest.find(['/', '?'])?..]
        }
        _ => target,
    };
    let (found, query) = target.split_once('?')?;
    let (directory, _) = path.rsplit_once('/')?;
    let is_same = found == path || found.is_empty() || format!("{directory}/{found}") == path;
    is_same.then(|| format!("<{path}?{query}>{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_links_are_resolved() {
        const PATH: &str = "/v2/a/b/tags/list";
        for target in [
            "/v2/a/b/tags/list?n=1&last=x",
            "https://other:5000/v2/a/b/tags/list?n=1&last=x",
            "http://[::1]/v2/a/b/tags/list?n=1&last=x",
            "list?n=1&last=x",
            "?n=1&last=x",
        ] {
            let found = resolve(&format!("<{target}>; rel=\"next\""), PATH);
            let expected = "</v2/a/b/tags/list?n=1&last=x>; rel=\"next\"";
            assert_eq!(found.as_deref(), Some(expected), "{target}");
        }
        for link in [
            "",
            "/v2/a/b/tags/list?n=1",
            "</v2/a/b/tags/list?n=1",
            "</v2/c/tags/list?n=1>; rel=\"next\"",
            "<https://other>",
            "<https://other/list?n=1>",
            "<ftp://other/v2/a/b/tags/list?n=1>",
            "<../list?n=1>",
        ] {
            assert_eq!(resolve(link, PATH), None, "{link}");
        }
    }
}
