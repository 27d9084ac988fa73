//! Package URLs of images, and URLs without credentials.

use whelk_image::Reference;
use whelk_llb::pb::Platform;

/// The schemes of names that may have an `@` before a digest.
const OF_IMAGES: [&str; 2] = ["docker-image", "oci-layout"];

/// Returns a text without the users and passwords of the URLs in it. The rest stays as it is.
pub fn without_credentials(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = rest.find("://") {
        let (before, after) = rest.split_at(found + 3);
        kept.push_str(before);
        let is_of_scheme = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
        let scheme = before[..found]
            .rsplit(|letter| !is_of_scheme(letter))
            .next();
        // A user or a password may have a comma or an apostrophe in it.
        let is_end = |letter: char| "/?#\"".contains(letter) || letter.is_whitespace();
        let authority = &after[..after.find(is_end).unwrap_or(after.len())];
        rest = match authority.rsplit_once('@') {
            Some((user, _)) if !scheme.is_some_and(|scheme| OF_IMAGES.contains(&scheme)) => {
                &after[user.len() + 1..]
            }
            _ => after,
        };
    }
    kept.push_str(rest);
    kept
}

/// Returns the value of an attribute of a build's frontend without credentials.
pub fn attribute_without_credentials(name: &str, value: &str) -> String {
    let value = without_credentials(value);
    let is_proxy = name.strip_prefix("build-arg:").is_some_and(|argument| {
        let argument = argument.to_ascii_lowercase();
        argument.ends_with("_proxy") && argument != "no_proxy"
    });
    // A proxy may be given without a scheme.
    match value.rsplit_once('@') {
        Some((_, host)) if is_proxy && !value.contains("://") => host.to_owned(),
        _ => value,
    }
}

/// Returns the package URL of an image: `pkg:docker/NAME@TAG?digest=…&platform=…`. A text that is no reference is kept.
pub(crate) fn package_url(kind: &str, reference: &str, platform: Option<&Platform>) -> String {
    let Ok(parsed) = reference.parse::<Reference>() else {
        return escape(reference, "/:@");
    };
    let parsed = match parsed.digest {
        Some(_) => parsed,
        None => parsed.with_default_tag(),
    };
    let mut url = format!("pkg:{kind}/{}", escape(&parsed.familiar_name(), "/"));
    if let Some(tag) = &parsed.tag {
        url = url + "@" + &escape(tag, "");
    }
    let digest = parsed.digest.as_ref();
    let digest = digest.map(|digest| format!("digest={}", escape(digest.as_str(), ":")));
    let platform = platform.map(|platform| {
        let specifier = platform.normalized().short();
        format!("platform={}", escape(&specifier, ""))
    });
    let qualifiers: Vec<String> = digest.into_iter().chain(platform).collect();
    match qualifiers.is_empty() {
        true => url,
        false => url + "?" + &qualifiers.join("&"),
    }
}

/// Escapes all but letters, digits and some other characters.
fn escape(text: &str, kept: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let letter = char::from(byte);
        if letter.is_ascii_alphanumeric() || "-._~".contains(letter) || kept.contains(letter) {
            escaped.push(letter);
        } else {
            use std::fmt::Write as _;
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_are_buildkits() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let amd64 = Platform::new("linux", "amd64", "");
        let check = |reference: &str, platform: Option<&Platform>, expected: &str| {
            assert_eq!(
                package_url("docker", reference, platform),
                expected,
                "{reference}"
            );
        };
        check("alpine", None, "pkg:docker/alpine@latest");
        check(
            "docker.io/library/alpine:3.15",
            None,
            "pkg:docker/alpine@3.15",
        );
        check("user/test:v2", None, "pkg:docker/user/test@v2");
        check("ghcr.io/foo/bar", None, "pkg:docker/ghcr.io/foo/bar@latest");
        check(
            "127.0.0.1:5000/a:1",
            None,
            "pkg:docker/127.0.0.1%3A5000/a@1",
        );
        check(
            "busybox",
            Some(&amd64),
            "pkg:docker/busybox@latest?platform=linux%2Famd64",
        );
        let by_digest = format!("busybox@{digest}");
        check(
            &by_digest,
            Some(&amd64),
            &format!("pkg:docker/busybox?digest={digest}&platform=linux%2Famd64"),
        );
    }

    #[test]
    fn credentials_are_left_out() {
        for (url, expected) in [
            ("https://user:secret@host/a?b#c", "https://host/a?b#c"),
            ("https://secret@host", "https://host"),
            ("http://user:pa,ss@proxy:3128", "http://proxy:3128"),
            ("https://u:p'q@host/x", "https://host/x"),
            ("https://host/a@b", "https://host/a@b"),
            ("git://x:y@host/a.git", "git://host/a.git"),
            ("docker-image://a@sha256:b", "docker-image://a@sha256:b"),
            ("context", "context"),
            ("HTTPS://u:p@host", "HTTPS://host"),
            ("git+https://token@host/a", "git+https://host/a"),
            (
                "--index-url https://u:p@a/x,ftp://u@b",
                "--index-url https://a/x,ftp://b",
            ),
            ("://u@", "://"),
            ("é://ü@ß@h", "é://h"),
        ] {
            assert_eq!(without_credentials(url), expected);
        }
        for (name, value, expected) in [
            ("build-arg:http_proxy", "u:p@proxy:3128", "proxy:3128"),
            ("build-arg:HTTPS_PROXY", "http://u:p@proxy", "http://proxy"),
            ("build-arg:no_proxy", "a@b", "a@b"),
            ("build-arg:MAIL", "a@b", "a@b"),
        ] {
            assert_eq!(attribute_without_credentials(name, value), expected);
        }
    }
}
