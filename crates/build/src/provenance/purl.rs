//! Package URLs of images, and URLs without credentials.

use whelk_image::Reference;
use whelk_llb::pb::Platform;

/// The schemes of URLs that may have credentials.
const SCHEMES: [&str; 4] = ["http", "https", "git", "ssh"];

/// Returns a URL without the user and the password that it may have. Other texts stay as they are.
pub(super) fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) if SCHEMES.contains(&scheme) => format!("{scheme}://{host}{path}"),
        _ => url.to_owned(),
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
    let mut url = format!("pkg:{kind}/{}", escape(&parsed.familiar_name(), "/:"));
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
        check("127.0.0.1:5000/a:1", None, "pkg:docker/127.0.0.1:5000/a@1");
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
            ("https://host/a@b", "https://host/a@b"),
            ("git://x:y@host/a.git", "git://host/a.git"),
            ("docker-image://a@sha256:b", "docker-image://a@sha256:b"),
            ("context", "context"),
        ] {
            assert_eq!(without_credentials(url), expected);
        }
    }
}
