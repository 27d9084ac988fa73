//! The URLs of repositories.

use whelk_ssh::Address;
use whelk_text::url::unescape;

use crate::error::{Error, Result};
use crate::sources::http::redacted;

/// The URL of a repository.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    url: String,
    /// Without a password and, with HTTP, without a user.
    shown: String,
    ssh: Option<Ssh>,
}

/// Where a repository is that is reached over ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ssh {
    pub address: Address,
    pub path: String,
}

impl Ssh {
    /// Parses `ssh://[USER@]HOST[:PORT]/PATH` and `USER@HOST:PATH`. As with git, `ssh://HOST/~USER/PATH` is below a home directory.
    fn parse(url: &str) -> Option<Self> {
        let (authority, path) = match url.strip_prefix("ssh://") {
            Some(rest) => {
                let (authority, path) = rest.split_at(rest.find('/')?);
                let path = unescape(path).ok()?;
                let path = match path.strip_prefix("/~") {
                    Some(rest) => format!("~{rest}"),
                    None => path,
                };
                (authority, path)
            }
            None => {
                let (authority, path) = url.split_once(':')?;
                (authority, path.to_owned())
            }
        };
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        // Without one, git takes the user that it runs as; BuildKit runs it as root.
        let user = user.split(':').next().unwrap_or_default();
        let user = if user.is_empty() { "root" } else { user };
        let (host, port) = match host.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => host.split_at(host.find(':').unwrap_or(host.len())),
        };
        let port = match port {
            "" => 22,
            port => port.strip_prefix(':')?.parse().ok()?,
        };
        let is_of_host = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        let is_bad = |c: char| c.is_control() || c.is_whitespace();
        let is_valid = !host.is_empty()
            && !host.starts_with('-')
            && host.chars().all(is_of_host)
            && !user.starts_with('-')
            && !user.contains(is_bad)
            && !path.trim_matches('/').is_empty()
            && !path.starts_with('-')
            && !path.contains(|c: char| c.is_control());
        is_valid.then(|| Self {
            address: Address {
                user: user.to_owned(),
                host: host.to_owned(),
                port,
            },
            path,
        })
    }
}

impl Remote {
    /// # Errors
    /// Returns an error that names the protocol if it is neither HTTP nor ssh.
    pub fn new(url: &str) -> Result<Self> {
        let shown = redacted(url);
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        // It becomes a line of `.git/config`.
        if url.contains(|c: char| c.is_control()) {
            return Err(Error::invalid(format!("invalid git repository {shown:?}")));
        }
        match scheme {
            Some("https" | "http") => Ok(Self {
                url: url.trim_end_matches('/').to_owned(),
                shown,
                ssh: None,
            }),
            Some("git") => Err(Error::Unsupported(format!(
                "git's own protocol, which is not encrypted ({shown})"
            ))),
            Some("ssh") => Self::over_ssh(url, &shown),
            None if super::is_scp(url) => Self::over_ssh(url, &shown),
            _ => Err(Error::invalid(format!(
                "{shown:?} is not allowed as a git repository: want https://, http:// or ssh://"
            ))),
        }
    }

    fn over_ssh(url: &str, shown: &str) -> Result<Self> {
        let ssh = Ssh::parse(url);
        let ssh = ssh.ok_or_else(|| Error::invalid(format!("invalid git repository {shown:?}")))?;
        // The user is a part of the name: a server may give each another repository.
        let shown = match shown.strip_prefix("ssh://") {
            Some(rest) => format!("ssh://{}@{rest}", ssh.address.user),
            None => shown.to_owned(),
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            shown,
            ssh: Some(ssh),
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the URL without credentials.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    pub fn ssh(&self) -> Option<&Ssh> {
        self.ssh.as_ref()
    }

    /// Returns the repository of a submodule, whose URL may be relative to this one.
    pub fn submodule(&self, path: &str, url: &str) -> Result<Self> {
        let named = |error: Error| Error::invalid(format!("submodule {path}: {error}"));
        if !url.starts_with("./") && !url.starts_with("../") {
            return Self::new(url).map_err(named);
        }
        // `..` leads to nothing above the host.
        let (host, own) = match self.url.split_once("://") {
            Some((scheme, rest)) => {
                let at = rest.find('/').map_or(rest.len(), |at| at + 1);
                let (host, own) = rest.split_at(at);
                (format!("{scheme}://{}/", host.trim_end_matches('/')), own)
            }
            None => {
                let (host, own) = self.url.split_once(':').unwrap_or_default();
                let root = if own.starts_with('/') { "/" } else { "" };
                (format!("{host}:{root}"), own)
            }
        };
        let mut parts: Vec<&str> = own.split('/').filter(|part| !part.is_empty()).collect();
        for part in url.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() => {
                    let text = format!("submodule {path}: {url:?} leads above its server");
                    return Err(Error::invalid(text));
                }
                ".." => {}
                part => parts.push(part),
            }
        }
        Self::new(&format!("{host}{}", parts.join("/"))).map_err(named)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn other_protocols_are_refused_by_name() {
        for (url, error) in [
            ("git://h/r.git", "git's own protocol"),
            ("file:///etc", "\"file:///etc\" is not allowed"),
            ("ext::sh -c x", "\"ext::sh -c x\" is not allowed"),
            ("/etc", "\"/etc\" is not allowed"),
            ("--upload-pack=x", "is not allowed"),
            ("git+ssh://h/r", "is not allowed"),
            ("https://h/r\n[core]", "invalid git repository"),
        ] {
            let found = Remote::new(url).unwrap_err().to_string();
            assert!(found.contains(error), "{url}: {found}");
        }
        let remote = Remote::new("https://user:secret@h/r.git").unwrap();
        assert_eq!(remote.shown(), "https://h/r.git");
    }

    #[test]
    fn repositories_over_ssh_have_users_ports_and_paths() {
        for (url, user, host, port, path) in [
            ("git@h:a/r.git", "git", "h", 22, "a/r.git"),
            ("git@h:/srv/r.git", "git", "h", 22, "/srv/r.git"),
            ("git@h:~x/r", "git", "h", 22, "~x/r"),
            ("ssh://git@h/r.git", "git", "h", 22, "/r.git"),
            ("ssh://h/r", "root", "h", 22, "/r"),
            ("ssh://git@h:2222/a%20b", "git", "h", 2222, "/a b"),
            ("ssh://git@[::1]:2222/r", "git", "::1", 2222, "/r"),
            ("ssh://git@[::1]/r", "git", "::1", 22, "/r"),
            ("ssh://git:secret@h/~me/r", "git", "h", 22, "~me/r"),
            ("ssh://git:secret@h:23/r", "git", "h", 23, "/r"),
        ] {
            let remote = Remote::new(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            let ssh = remote.ssh().unwrap();
            let address = &ssh.address;
            assert_eq!(
                (&*address.user, &*address.host, address.port, &*ssh.path),
                (user, host, port, path)
            );
            assert!(!remote.shown().contains("secret"), "{}", remote.shown());
        }
        for url in [
            "ssh://-oProxyCommand=x/r",
            "ssh://git@-x/r",
            "git@-x:r",
            "-x@h:r",
            "git@h:-x",
            "git@h:",
            "git@h:/",
            "ssh://h",
            "ssh://h/",
            "ssh:///r",
            "ssh://git@h:port/r",
            "ssh://git@h:99999/r",
            "ssh://git@a b/r",
            "ssh://git@h/a%0ab",
            "git@h;x:r",
        ] {
            let error = Remote::new(url).unwrap_err().to_string();
            assert!(error.contains("invalid git repository"), "{url}: {error}");
        }
        let shown = Remote::new("ssh://git:secret@h/r").unwrap();
        assert_eq!(shown.shown(), "ssh://git@h/r");
    }

    #[test]
    fn submodules_have_urls_on_the_same_server_or_of_their_own() {
        let check = |remote: &str, url: &str, expected: &str| {
            let remote = Remote::new(remote).unwrap();
            assert_eq!(remote.submodule("m", url).unwrap().url(), expected);
        };
        let web = "https://u:p@h/group/r.git";
        check(web, "../other.git", "https://u:p@h/group/other.git");
        check(web, "./below", "https://u:p@h/group/r.git/below");
        check(web, "../../x", "https://u:p@h/x");
        check(web, "https://x/y.git", "https://x/y.git");
        check(web, "git@h:x", "git@h:x");
        check("git@h:group/r.git", "../x.git", "git@h:group/x.git");
        check("git@h:/srv/r.git", "../x.git", "git@h:/srv/x.git");
        check("ssh://git@h:23/a/r", "../x", "ssh://git@h:23/a/x");
        let fails = |remote: &str, url: &str| {
            let remote = Remote::new(remote).unwrap();
            let error = remote.submodule("m", url).unwrap_err().to_string();
            assert!(error.starts_with("submodule m: "), "{url}: {error}");
        };
        for url in [
            "../../../x",
            "file:///x",
            "ext::x",
            "-x",
            "/x",
            "x",
            "git@-h:x",
        ] {
            fails(web, url);
        }
        fails("git@h:group/r.git", "../../../x");
        fails("git@h:r.git", "..");
    }
}
