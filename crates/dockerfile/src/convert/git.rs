//! References to git repositories: `https://host/x.git#ref:dir`, `git@host:x`, with query parameters.

use std::collections::BTreeMap;

use whelk_llb::pb::SourceOp;
use whelk_text::{parse_bool, url};

use crate::error::{Error, Result};
use crate::path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Git {
    /// The URL without parameters.
    remote: String,
    /// Host and path.
    location: String,
    ssh: bool,
    reference: String,
    directory: String,
    pub checksum: String,
    pub keep_git_dir: Option<bool>,
    submodules: Option<bool>,
    mtime: String,
    fetch_by_commit: bool,
    /// `github.com/…`, which ADD takes as a path.
    pub maybe_local: bool,
}

/// Splits a URL with a scheme that git knows: scheme, host with user, path, query, fragment.
fn split(text: &str) -> Option<(&str, &str, &str, &str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    Some((scheme, host, path, query, fragment))
}

impl Git {
    /// Parses a reference. Returns `None` if `text` is no reference to a repository.
    ///
    /// # Errors
    /// Returns an error if its parameters are invalid.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        if text.starts_with("./") || text.starts_with("../") {
            return Ok(None);
        }
        if text.starts_with("github.com/") {
            let found = Self::with_parameters(&format!("https://{text}"), true)?;
            return Ok(found.map(|git| Self {
                maybe_local: true,
                ..git
            }));
        }
        Self::with_parameters(text, false)
    }

    fn with_parameters(text: &str, any_path: bool) -> Result<Option<Self>> {
        let Some(mut git) = Self::of(text, any_path) else {
            return Ok(None);
        };
        let (query, fragment) = match split(text) {
            Some((_, _, _, query, fragment)) => (query, fragment),
            None => {
                let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
                (
                    rest.split_once('?').map_or("", |(_, query)| query),
                    fragment,
                )
            }
        };
        let fragment = unescaped(fragment);
        let (reference, directory) = fragment.split_once(':').unwrap_or((&fragment, ""));
        git.reference = reference.to_owned();
        git.directory = path::join(&["/", directory])
            .trim_start_matches('/')
            .to_owned();
        git.parameters(query)?;
        Ok(Some(git))
    }

    /// Parses what comes before the parameters. The path of a web server's URL ends with `.git`, unless any may
    /// be a repository.
    fn of(text: &str, any_path: bool) -> Option<Self> {
        if let Some((scheme, host, path, _, _)) = split(text) {
            let scheme = scheme.to_lowercase();
            let is_git = match scheme.as_str() {
                "http" | "https" => any_path || path.ends_with(".git"),
                "git" | "ssh" => true,
                _ => false,
            };
            let bare = host.rsplit_once('@').map_or(host, |(_, host)| host);
            return is_git.then(|| Self {
                remote: format!("{scheme}://{host}{path}"),
                location: format!("{bare}{}", path::join(&["/", &unescaped(path)])),
                ssh: scheme == "ssh",
                ..Self::default()
            });
        }
        // USER@HOST:PATH
        let (user, rest) = text.split_once('@')?;
        let (host, rest) = rest.split_once(':')?;
        let word = |text: &str, extra: char| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == extra)
        };
        if !word(user, '_') || !word(host, '.') {
            return None;
        }
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        Some(Self {
            remote: format!("{user}@{host}:{path}"),
            location: format!("{host}{}", path::join(&["/", path])),
            ssh: true,
            ..Self::default()
        })
    }

    fn parameters(&mut self, query: &str) -> Result<()> {
        let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (
                unescaped(&name.replace('+', " ")),
                unescaped(&value.replace('+', " ")),
            );
            let value = Some(value).filter(|value| !value.is_empty());
            let optional = matches!(
                name.as_str(),
                "submodules" | "keep-git-dir" | "fetch-by-commit"
            );
            if value.is_none() && !optional {
                return Err(Error::new(format!("query {name:?} has no value")));
            }
            if known.insert(name.clone(), value).is_some() {
                return Err(Error::new(format!("query {name:?} has multiple values")));
            }
        }
        let (mut tag, mut branch) = (None, None);
        for (name, value) in known {
            let flag = || match &value {
                None => Ok(true),
                Some(text) => parse_bool(text)
                    .ok_or_else(|| Error::new(format!("invalid {name} value: {text:?}"))),
            };
            let text = value.clone().unwrap_or_default();
            match name.as_str() {
                "ref" => set(&mut self.reference, text, "ref")?,
                "subdir" => set(&mut self.directory, text, "subdir")?,
                "tag" => tag = Some(text),
                "branch" => branch = Some(text),
                "checksum" | "commit" => self.checksum = text,
                "keep-git-dir" => self.keep_git_dir = Some(flag()?),
                "submodules" => self.submodules = Some(flag()?),
                "fetch-by-commit" => self.fetch_by_commit = flag()?,
                "mtime" if matches!(text.as_str(), "checkout" | "commit") => self.mtime = text,
                "mtime" => {
                    return Err(Error::new(format!(
                        "invalid mtime value: {text:?} (must be \"checkout\" or \"commit\")"
                    )));
                }
                _ => return Err(Error::new(format!("unexpected query {name:?}"))),
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err(Error::new("branch conflicts with tag"));
        }
        for (name, prefix) in [(tag, "refs/tags/"), (branch, "refs/heads/")] {
            if let Some(name) = name {
                let full = if name.starts_with(prefix) {
                    name
                } else {
                    format!("{prefix}{name}")
                };
                set(&mut self.reference, full, "ref")?;
            }
        }
        Ok(())
    }

    /// Returns the host of its server, with the port.
    pub fn host(&self) -> &str {
        self.location.split('/').next().unwrap_or_default()
    }

    /// Returns the operation that fetches it, and the capabilities that it needs.
    pub fn source(&self) -> (SourceOp, Vec<&'static str>) {
        let mut caps = vec!["source.git", "source.git.fullurl"];
        let mut attrs = BTreeMap::new();
        let mut set = |name: &str, value: &str| {
            attrs.insert(name.to_owned(), value.to_owned());
        };
        let mut identifier = format!("git://{}", self.location);
        if !self.reference.is_empty() || !self.directory.is_empty() {
            identifier = identifier + "#" + &self.reference;
            if !self.directory.is_empty() {
                identifier = identifier + ":" + &self.directory;
            }
        }
        set("git.fullurl", &self.remote);
        set("git.authtokensecret", "GIT_AUTH_TOKEN");
        set("git.authheadersecret", "GIT_AUTH_HEADER");
        if self.ssh {
            set("git.mountsshsock", "default");
            caps.push("source.git.mountsshsock");
        }
        let optional = [
            (
                self.keep_git_dir == Some(true),
                "git.keepgitdir",
                "true",
                "source.git.keepgitdir",
            ),
            (
                self.submodules == Some(false),
                "git.skipsubmodules",
                "true",
                "source.git.skipsubmodules",
            ),
            (
                self.fetch_by_commit,
                "git.fetchbycommit",
                "true",
                "source.git.fetchbycommit",
            ),
            (
                !self.checksum.is_empty(),
                "git.checksum",
                self.checksum.as_str(),
                "source.git.checksum",
            ),
            (
                !self.mtime.is_empty(),
                "git.mtime",
                self.mtime.as_str(),
                "source.git.mtime",
            ),
        ];
        for (wanted, name, value, cap) in optional {
            if wanted {
                set(name, value);
                caps.push(cap);
            }
        }
        (SourceOp { identifier, attrs }, caps)
    }
}

fn set(field: &mut String, value: String, name: &str) -> Result<()> {
    if !field.is_empty() && *field != value {
        return Err(Error::new(format!(
            "{name} conflicts: {field:?} vs {value:?}"
        )));
    }
    *field = value;
    Ok(())
}

fn unescaped(text: &str) -> String {
    url::unescape(text).unwrap_or_else(|_| text.to_owned())
}

/// Returns a reference without a user and a password. Those of ssh keep the user, which is a part of the place.
pub(super) fn redacted(text: &str) -> String {
    let Some((scheme, host, ..)) = split(text) else {
        return text.to_owned();
    };
    let Some((user, bare)) = host.rsplit_once('@') else {
        return text.to_owned();
    };
    let shown = match (scheme, user.split_once(':')) {
        ("ssh", Some((name, _))) => format!("{name}@{bare}"),
        ("ssh", None) => return text.to_owned(),
        _ => bare.to_owned(),
    };
    text.replacen(host, &shown, 1)
}

/// Returns the host of a URL, with the port and without a user.
pub(super) fn host(text: &str) -> Option<&str> {
    let (_, host, ..) = split(text)?;
    host.rsplit('@').next().filter(|host| !host.is_empty())
}

/// Returns whether ADD takes a source as a URL of a file.
pub(super) fn is_http(source: &str) -> bool {
    let has_scheme = source.starts_with("http://") || source.starts_with("https://");
    has_scheme && !matches!(Git::parse(source), Ok(Some(_)) | Err(_))
}

/// Returns the name that the file of a URL gets.
pub(super) fn file_name(source: &str) -> String {
    let path = split(source).map_or("", |(_, _, path, _, _)| path);
    let path = unescaped(path);
    match path::base(&path) {
        "." | "/" => "__unnamed__".into(),
        base => base.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_sources() {
        for (text, expected) in [
            (
                "https://host/a/b.git#v1:dir/",
                Some("git://host/a/b.git#v1:dir"),
            ),
            ("https://host/a/b.git", Some("git://host/a/b.git")),
            (
                "https://user@host/b.git?tag=v1",
                Some("git://host/b.git#refs/tags/v1"),
            ),
            ("https://host/b.git?subdir=x", Some("git://host/b.git#:x")),
            ("git@host:a/b.git#main", Some("git://host/a/b.git#main")),
            ("ssh://git@host/b", Some("git://host/b")),
            ("git://host/b", Some("git://host/b")),
            ("github.com/a/b", Some("git://github.com/a/b")),
            ("https://host/file.tar", None),
            ("./a.git", None),
            ("a/b", None),
            ("ftp://x/a.git", None),
        ] {
            let found = Git::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let found = found.map(|git| git.source().0.identifier);
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        for (text, expected) in [
            ("https://host/b.git?x=1", "unexpected query \"x\""),
            ("https://host/b.git?ref", "query \"ref\" has no value"),
            (
                "https://host/b.git?ref=a#b",
                "ref conflicts: \"b\" vs \"a\"",
            ),
            (
                "https://host/b.git?submodules=x",
                "invalid submodules value: \"x\"",
            ),
        ] {
            assert_eq!(Git::parse(text).unwrap_err().to_string(), expected);
        }
        let git = Git::parse("https://h/b.git?submodules=0&keep-git-dir&checksum=ab")
            .ok()
            .flatten();
        let attrs = git.unwrap_or_default().source().0.attrs;
        for (name, value) in [
            ("git.skipsubmodules", "true"),
            ("git.keepgitdir", "true"),
            ("git.checksum", "ab"),
            ("git.fullurl", "https://h/b.git"),
        ] {
            assert_eq!(attrs.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        for (text, expected) in [
            ("https://u:secret@h/b.git#x", "https://h/b.git#x"),
            ("https://h/b.git", "https://h/b.git"),
            ("git@h:b", "git@h:b"),
            ("ssh://git@h/b", "ssh://git@h/b"),
            ("ssh://git:secret@h/b", "ssh://git@h/b"),
        ] {
            assert_eq!(redacted(text), expected);
        }
    }

    #[test]
    fn files_of_urls_have_names() {
        for (text, expected) in [
            ("https://host/a/b%20c.tar?x#y", "b c.tar"),
            ("https://host/", "__unnamed__"),
            ("https://host", "__unnamed__"),
        ] {
            assert!(is_http(text));
            assert_eq!(file_name(text), expected);
        }
    }
}
