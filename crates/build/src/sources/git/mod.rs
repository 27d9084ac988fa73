//! Git repositories: contexts, and `ADD https://host/repository.git`.
//!
//! ```text
//! reference ─ls-refs─► commit ─fetch (depth 1)─► pack ─► files ─► submodules: the same again
//! ```
//! Only commits are fetched that are needed, without their history, over HTTP or ssh (`server`), also from servers of plain files
//! (`files`).
//! Packs are read by `gix-pack` (`objects`); files are created by descriptor, from the objects alone (`checkout`): nothing
//! of a repository is executed, and none of its links is followed. What was fetched is kept by the commit.

mod checkout;
mod dot_git;
mod files;
mod link;
mod modules;
mod objects;
mod packets;
mod remote;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gix_hash::Kind as Hash;
use whelk_llb::Digest;
use whelk_llb::pb::SourceOp;
use whelk_sys::in_root;
use whelk_sys::{Scratch, fs};

use super::Resolved;
use super::fetched::{Info, Use};
use crate::client::Client;
use crate::directory::Directory;
use crate::error::{Error, Result, os};
use crate::progress::{EventKind, Work};
use crate::sources::http::redacted;
use crate::{Builder, blocking};
use checkout::{Checked, Checkout};
use modules::Submodule;
use remote::Remote;
use server::{ResolvedReference, Server, origin};

/// Maximum number of submodules of a repository, and of their depth.
const MAX_MODULES: usize = 1000;
const MAX_DEPTH: usize = 16;

/// Maximum number of packs that a repository is kept as. When there are more, all is fetched again.
const MAX_PACKS: usize = 8;

/// What a source wants of a repository.
#[derive(Debug, PartialEq, Eq)]
struct GitSource {
    remote: String,
    /// A branch, a tag, a full name or a commit; empty for the default branch.
    reference: String,
    /// The directory whose files are wanted, without slashes at its ends; empty for all.
    directory: String,
    /// The beginning of the commit, or of the tag that names it.
    checksum: String,
    keep_git_dir: bool,
    submodules: bool,
    /// Whether files have the time of the commit.
    commit_time: bool,
    access: Access,
}

/// What servers of a repository get to see of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Access {
    secrets: Secrets,
    /// The id of the ssh agent; empty for none.
    agent: String,
    /// Known hosts of the source, in OpenSSH's format.
    known_hosts: String,
}

/// The names of secrets for the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Secrets {
    token: String,
    header: String,
    /// Whether those without the name of a host count.
    is_general: bool,
}

/// Returns whether a source is a repository.
pub(crate) fn is_repository(source: &SourceOp) -> bool {
    source.identifier.starts_with("git://")
}

impl GitSource {
    fn of(source: &SourceOp) -> Result<Self> {
        let identifier = source.identifier.trim_start_matches("git://");
        let (location, fragment) = identifier.split_once('#').unwrap_or((identifier, ""));
        let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut wanted = Self {
            remote: format!("https://{location}"),
            reference: reference.to_owned(),
            directory: crate::select::clean(directory).trim_matches('/').to_owned(),
            checksum: String::new(),
            keep_git_dir: false,
            submodules: true,
            commit_time: false,
            access: Access::default(),
        };
        for (name, value) in &source.attrs {
            match name.as_str() {
                "git.fullurl" if value.contains("://") || is_scp(value) => {
                    wanted.remote.clone_from(value);
                }
                "git.fullurl" => wanted.remote = format!("https://{value}"),
                "git.keepgitdir" => wanted.keep_git_dir = value == "true",
                "git.skipsubmodules" => wanted.submodules = value != "true",
                "git.checksum" => wanted.checksum = value.to_lowercase(),
                "git.mtime" => wanted.commit_time = value == "commit",
                "git.authtokensecret" => wanted.access.secrets.token.clone_from(value),
                "git.authheadersecret" => wanted.access.secrets.header.clone_from(value),
                "git.mountsshsock" => wanted.access.agent.clone_from(value),
                "git.knownsshhosts" => wanted.access.known_hosts.clone_from(value),
                // A commit is always fetched by itself.
                "git.fetchbycommit" => {}
                _ => {
                    let text = format!("the attribute {name} of a git repository");
                    return Err(Error::Unsupported(text));
                }
            }
        }
        // As in BuildKit: only all of a repository has its directory.
        wanted.keep_git_dir &= wanted.directory.is_empty();
        check_reference(&wanted.reference)?;
        let is_hex = wanted.checksum.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex || wanted.checksum.len() > Hash::longest().len_in_hex() {
            return Err(Error::invalid(format!(
                "invalid checksum {} for Git URL, expected hex commit hash",
                wanted.checksum
            )));
        }
        Ok(wanted)
    }

    /// Returns the key of what is checked out.
    fn key(&self, remote: &Remote, found: &ResolvedReference) -> Digest {
        let mut how = format!(
            "{} {} {}",
            self.keep_git_dir, self.submodules, self.commit_time
        );
        // The directory `.git` has the name.
        if self.keep_git_dir {
            how = format!("{how} {} {}", found.reference, found.tag);
        }
        let parts = [remote.shown(), &found.commit, &self.directory, &how];
        Digest::of_parts(parts.map(str::as_bytes))
    }
}

/// Returns whether a text is a commit's id, of SHA-1 or SHA-256.
fn is_commit(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let mut kinds = Hash::all().iter();
    kinds.any(|kind| kind.len_in_hex() == text.len()) && text.bytes().all(is_digit)
}

/// Returns whether a URL is of the form `USER@HOST:PATH`.
fn is_scp(url: &str) -> bool {
    let at = url.find('@');
    at.is_some_and(|at| url[at..].contains(':'))
}

/// Refuses a name that git does not allow for a reference (git-check-ref-format), or takes for an option.
fn check_reference(name: &str) -> Result<()> {
    let is_bad = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let parts = || name.split('/');
    if name.starts_with(['-', '/'])
        || name.ends_with(['/', '.'])
        || name.contains(is_bad)
        || name.contains("..")
        || name.contains("@{")
        || name.len() > 1024
        || !name.is_empty() && parts().any(|part| part.is_empty() || part.starts_with('.'))
    {
        return Err(Error::invalid(format!("invalid git ref {name:?}")));
    }
    Ok(())
}

/// A repository that is to be checked out below a directory.
struct Task {
    remote: Remote,
    found: ResolvedReference,
    /// Relative to the topmost directory; empty for that.
    path: String,
    depth: usize,
}

impl Task {
    /// Returns the tasks for the submodules. `directory` is the one that is checked out of the topmost repository.
    fn submodules(&self, checked: &Checked, directory: &str) -> Result<Vec<Self>> {
        let prefix = if self.depth == 0 { directory } else { "" };
        let submodules = checked.submodules(prefix)?.into_iter();
        let tasks = submodules.map(|Submodule { path, url, commit }| {
            Ok(Self {
                remote: self.remote.submodule(&path, &url)?,
                found: ResolvedReference::commit(&commit),
                path: match self.path.as_str() {
                    "" => path,
                    above => format!("{above}/{path}"),
                },
                depth: self.depth + 1,
            })
        });
        tasks.collect()
    }
}

/// A commit of a repository that is here, with the packs that it was taken of.
struct Base {
    commit: String,
    packs: PathBuf,
    _use: Use,
}

impl Builder {
    /// Asks a server which commit a reference is now.
    pub(crate) async fn resolve_repository(
        self: &Arc<Self>,
        client: &dyn Client,
        source: &SourceOp,
        work: &Work,
    ) -> Result<Resolved> {
        let wanted = GitSource::of(source)?;
        let remote = Remote::new(&wanted.remote)?;
        if is_commit(&wanted.reference) {
            check_sum(&wanted, &[&wanted.reference])?;
            return Ok(Resolved::Git {
                reference: wanted.reference.clone(),
                checksum: wanted.reference,
                commit: String::new(),
            });
        }
        let server = self.git_server(client, &wanted, &remote, work).await?;
        let found = server.resolve(&wanted.reference).await?;
        check_sum(&wanted, &[&found.commit, &found.tag])?;
        let (checksum, commit) = match found.tag.is_empty() {
            true => (found.commit, String::new()),
            false => (found.tag, found.commit),
        };
        Ok(Resolved::Git {
            reference: found.reference,
            checksum,
            commit,
        })
    }

    /// Fetches a repository, unless its commit is here. Returns the files, and the commit's time.
    pub(crate) async fn repository(
        self: &Arc<Self>,
        client: &dyn Client,
        source: &SourceOp,
        work: &Work,
    ) -> Result<(Directory, Option<i64>)> {
        let wanted = GitSource::of(source)?;
        let remote = Remote::new(&wanted.remote)?;
        let find = async |key: Digest| {
            let builder = self.clone();
            let found = blocking(move || builder.git.find(&key)).await?;
            let found = found.into_iter().next().map(|(directory, info)| {
                work.add(EventKind::Cached);
                (directory, info.time)
            });
            Ok::<_, Error>(found)
        };
        // As in BuildKit, the server is not asked for a name whose whole commit is known and here.
        let known = ResolvedReference::commit(&wanted.checksum);
        if is_commit(&wanted.checksum)
            && !wanted.keep_git_dir
            && let Some(found) = find(wanted.key(&remote, &known)).await?
        {
            return Ok(found);
        }
        let (found, server) = if is_commit(&wanted.reference) {
            check_sum(&wanted, &[&wanted.reference])?;
            (ResolvedReference::commit(&wanted.reference), None)
        } else {
            let server = self.git_server(client, &wanted, &remote, work).await?;
            let found = server.resolve(&wanted.reference).await?;
            check_sum(&wanted, &[&found.commit, &found.tag])?;
            (found, Some(server))
        };
        let key = wanted.key(&remote, &found);
        if let Some(known) = find(key).await? {
            return Ok(known);
        }
        // Before the commit is locked: a client may take its time for its secrets, and an agent for its user.
        let server = match server {
            Some(server) => server,
            None => self.git_server(client, &wanted, &remote, work).await?,
        };
        let _lock = self.git.lock(key).await;
        if let Some(known) = find(key).await? {
            return Ok(known);
        }
        let (scratch, info) = self
            .check_out(client, &wanted, remote, found, server, work)
            .await?;
        let time = info.time;
        let builder = self.clone();
        let directory = blocking(move || builder.git.add(&key, &scratch, &info)).await?;
        Ok((directory, time))
    }

    /// Connects to the server of a repository.
    async fn git_server(
        &self,
        client: &dyn Client,
        wanted: &GitSource,
        remote: &Remote,
        work: &Work,
    ) -> Result<Server> {
        let access = wanted.access_to(remote);
        Server::open(self.engine.images.web(), client, remote, &access, work).await
    }

    /// Fetches a commit and those of its submodules, and writes their files below `fs` of a new directory.
    async fn check_out(
        self: &Arc<Self>,
        client: &dyn Client,
        wanted: &GitSource,
        remote: Remote,
        found: ResolvedReference,
        server: Server,
        work: &Work,
    ) -> Result<(Scratch, Info)> {
        let builder = self.clone();
        let scratch = blocking(move || {
            let scratch = builder.store().staging.scratch()?;
            fs::create_dir(scratch.path().join("fs"), 0o755)?;
            Ok(Arc::new(scratch))
        })
        .await?;
        // Its pack is in the repository, and not kept besides; others are of use to servers that know of them.
        let keeps_packs = !wanted.keep_git_dir && server.knows_haves();
        let mut info = Info {
            boot: self.git.boot.clone(),
            content: format!("git {} {}", found.commit, wanted.key(&remote, &found)),
            description: format!("git snapshot for {}#{}", remote.shown(), found.commit),
            repository: match keeps_packs {
                true => remote.shown().to_owned(),
                false => String::new(),
            },
            ..Info::default()
        };
        let mut server = Some(server);
        let mut tasks = vec![Task {
            remote,
            found,
            path: String::new(),
            depth: 0,
        }];
        let mut count = 0;
        let mut base = match keeps_packs {
            true => self.base(&tasks[0].remote).await?,
            false => None,
        };
        while let Some(task) = tasks.pop() {
            let named = |error: Error| match task.depth {
                0 => error,
                _ => Error::invalid(format!("submodule {}: {error}", task.path)),
            };
            let server = match server.take() {
                Some(server) => server,
                None => {
                    let opened = self.git_server(client, wanted, &task.remote, work).await;
                    opened.map_err(named)?
                }
            };
            let base = base.take().filter(|base| {
                // A server that is asked for what is known sends no pack.
                server.knows_haves()
                    && base.commit != task.found.commit
                    && base.commit.len() == task.found.commit.len()
            });
            let checked = self
                .check_out_task(client, wanted, (server, base), &task, &scratch, work)
                .await;
            let checked = checked.map_err(named)?;
            info.size += checked.size;
            if task.depth == 0 {
                info.time = Some(checked.time);
            }
            if !wanted.submodules {
                continue;
            }
            let submodules = task.submodules(&checked, &wanted.directory)?;
            count += submodules.len();
            if count > MAX_MODULES || task.depth >= MAX_DEPTH && !submodules.is_empty() {
                return Err(Error::invalid(format!(
                    "more than {MAX_MODULES} submodules, or more than {MAX_DEPTH} in each other"
                )));
            }
            tasks.extend(submodules);
        }
        let scratch = Arc::into_inner(scratch);
        let scratch = scratch.ok_or_else(|| Error::internal("a checkout that goes on"))?;
        Ok((scratch, info))
    }

    /// Checks out a repository; once more, without its base, if it fails with that.
    async fn check_out_task(
        self: &Arc<Self>,
        client: &dyn Client,
        wanted: &GitSource,
        (server, base): (Server, Option<Base>),
        task: &Task,
        scratch: &Arc<Scratch>,
        work: &Work,
    ) -> Result<Checked> {
        let had_base = base.is_some();
        let checking = self.check_out_one(wanted, &server, task, scratch, base, work);
        match checking.await {
            // The server, or the base, may lack objects. An error of this machine would come again.
            Err(error @ Error::Invalid(_)) if had_base => {
                let shown = task.remote.shown();
                tracing::info!("git: {shown}: all is fetched again: {error}");
                let place = scratch.clone();
                blocking(move || begin_again(place.path())).await?;
                let server = self.git_server(client, wanted, &task.remote, work).await?;
                let checking = self.check_out_one(wanted, &server, task, scratch, None, work);
                checking.await
            }
            checked => checked,
        }
    }

    /// Returns the commit of a repository that was used last.
    async fn base(self: &Arc<Self>, remote: &Remote) -> Result<Option<Base>> {
        let (builder, repository) = (self.clone(), remote.shown().to_owned());
        let find = move || {
            let Some((held, packs, info)) = builder.git.packs(&repository)? else {
                return Ok(None);
            };
            // A pack and its index.
            let is_full = fs::list(&packs)?.len() >= 2 * MAX_PACKS;
            let commit = info.content.split(' ').nth(1);
            let commit = commit.filter(|commit| is_commit(commit) && !is_full);
            Ok(commit.map(|commit| Base {
                commit: commit.to_owned(),
                packs,
                _use: held,
            }))
        };
        blocking(find).await
    }

    async fn check_out_one(
        self: &Arc<Self>,
        wanted: &GitSource,
        server: &Server,
        task: &Task,
        scratch: &Arc<Scratch>,
        base: Option<Base>,
        work: &Work,
    ) -> Result<Checked> {
        let shown = task.remote.shown().to_owned();
        let (hash, commit) = (server.hash(), &task.found.commit);
        if commit.len() != hash.len_in_hex() {
            return Err(Error::invalid(format!(
                "failed to fetch remote {shown}: {commit} is not a commit of a repository with object-format={hash}"
            )));
        }
        let report = |bytes, is_done| {
            let name = shown.clone();
            work.add(EventKind::Transfer {
                name,
                bytes,
                is_done,
            });
        };
        let turn = self.transfers.clone().acquire_owned().await;
        let turn = turn.map_err(|error| Error::internal(error.to_string()))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let is_root = task.depth == 0;
        let plan = Checkout {
            commit: commit.clone(),
            directory: match is_root {
                true => wanted.directory.clone(),
                false => String::new(),
            },
            commit_time: wanted.commit_time,
        };
        let known = base.as_ref().map(|base| base.commit.clone());
        let served = scratch.path().join("served");
        let (scratch, path) = (scratch.clone(), task.path.clone());
        let keep = is_root && wanted.keep_git_dir;
        let wanted = match &task.found.tag {
            tag if keep && !tag.is_empty() => tag,
            _ => commit,
        };
        let keep = keep.then(|| (task.remote.shown().to_owned(), task.found.clone()));
        let keeps_packs = is_root && server.knows_haves();
        let written = tokio::spawn(blocking(move || {
            let _turn = turn;
            let top = fs::open(scratch.path().join("fs"))?;
            let into = match path.as_str() {
                "" => top.into(),
                path => in_root::open_no_links(
                    &top,
                    path,
                    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
                )
                .map_err(os(format!("open {path}")))?,
            };
            let place = scratch.path().join("pack");
            fs::create_dir(&place, 0o700)?;
            let mut objects = objects::Objects::receive(&place, receiver, hash)?;
            if let Some(base) = &base {
                objects.add(&base.packs)?;
            }
            let mut checked = plan.run(&mut objects, &into)?;
            drop(objects);
            match keep {
                Some((remote, found)) => {
                    let to = scratch.path().join("fs/.git");
                    dot_git::write(&to, &place, &remote, &checked, &found)?;
                    fs::remove_tree(&place)?;
                }
                None if keeps_packs => {
                    checked.size += keep_packs(&scratch.path().join("packs"), &place, base)?;
                }
                None => fs::remove_tree(&place)?,
            }
            Ok(checked)
        }));
        let fetching = server.fetch(wanted, known.as_deref(), &served, sender, report);
        let received = fetching.await;
        let written = written.await;
        let written = written.map_err(|error| Error::internal(error.to_string()))?;
        received?;
        written
    }
}

impl GitSource {
    /// Returns what is for a repository. Secrets without a host are only for the main one; on github.com, for
    /// all, as in BuildKit.
    fn access_to(&self, remote: &Remote) -> Access {
        let scope = match self.remote.strip_prefix("https://github.com/") {
            Some(_) => "https://github.com",
            None => self.remote.trim_end_matches('/'),
        };
        let rest = remote.url().strip_prefix(scope);
        let is_same_server = || origin(remote.shown()) == origin(&redacted(&self.remote));
        let secrets = match remote.url().starts_with("http://") && !is_same_server() {
            // A submodule may say `http` of any server, and what is sent there is not encrypted.
            true => Secrets::default(),
            false => Secrets {
                is_general: rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
                ..self.access.secrets.clone()
            },
        };
        Access {
            secrets,
            ..self.access.clone()
        }
    }
}

impl Secrets {
    /// Returns the names that may be asked for, in their order, with whether they are tokens. `host` is that of the
    /// server.
    fn names(&self, host: &str) -> Vec<(String, bool)> {
        let both = [(&self.header, false), (&self.token, true)];
        let known = both.into_iter().filter(|(name, _)| !name.is_empty());
        let of_host = known
            .clone()
            .map(|(name, is_token)| (format!("{name}.{host}"), is_token));
        let general = known.map(|(name, is_token)| (name.clone(), is_token));
        of_host.chain(general.filter(|_| self.is_general)).collect()
    }
}

/// Removes what an attempt has left.
fn begin_again(scratch: &Path) -> Result<()> {
    for name in ["fs", "pack"] {
        let path = scratch.join(name);
        if fs::exists(&path) {
            fs::remove_tree(&path)?;
        }
    }
    Ok(fs::create_dir(scratch.join("fs"), 0o755)?)
}

/// Keeps packs for the next commit: the one that was fetched, and those of the commit that it builds on, which share their content.
/// Returns the size of the one that was fetched.
fn keep_packs(to: &Path, fetched: &Path, base: Option<Base>) -> Result<u64> {
    let mut size = 0;
    for entry in fs::list(fetched)? {
        size += fs::metadata(entry.path())?.len();
    }
    if let Some(base) = base {
        for entry in fs::list(&base.packs)? {
            let path = entry.path();
            let shown = path.display().to_string();
            match rustix::fs::link(&path, fetched.join(entry.file_name())) {
                // Packs are called by their content: the same one came again, as one without objects does.
                Err(rustix::io::Errno::EXIST) => {}
                linked => linked.map_err(os(format!("link {shown}")))?,
            }
        }
    }
    fs::rename(fetched, to)?;
    Ok(size)
}

/// Decodes bytes in each way that those of a server are.
pub(crate) fn decode(bytes: &[u8]) {
    packets::decode(bytes);
    checkout::decode(bytes);
    files::decode(bytes);
    let text = String::from_utf8_lossy(bytes);
    for (path, url) in modules::parse(&text) {
        for remote in [
            "https://host/group/repository.git",
            "git@host:group/repository.git",
        ] {
            if let Ok(remote) = Remote::new(remote) {
                let _ = remote.submodule(&path, &url);
            }
        }
    }
    let _ = check_reference(&text);
}

/// Refuses a commit with another checksum.
fn check_sum(wanted: &GitSource, found: &[&str]) -> Result<()> {
    let checksum = wanted.checksum.as_str();
    if found.iter().any(|found| found.starts_with(checksum)) {
        return Ok(());
    }
    let found = found.first().unwrap_or(&"");
    Err(Error::invalid(format!(
        "expected checksum to match {checksum}, got {found}"
    )))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn wanted(identifier: &str, attributes: &[(&str, &str)]) -> Result<GitSource> {
        let attrs: BTreeMap<String, String> = attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        GitSource::of(&SourceOp {
            identifier: identifier.into(),
            attrs,
        })
    }

    #[test]
    fn sources_are_parsed() {
        let found = wanted("git://h/r.git#v1:a//b/", &[("git.keepgitdir", "true")]).unwrap();
        assert_eq!(found.remote, "https://h/r.git");
        assert_eq!(
            (found.reference.as_str(), found.directory.as_str()),
            ("v1", "a/b")
        );
        assert!(!found.keep_git_dir && found.submodules);
        let found = wanted("git://h/r", &[("git.fullurl", "git@h:r")]).unwrap();
        assert_eq!(found.remote, "git@h:r");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let found = wanted("git://h/r", &[("git.checksum", commit)]).unwrap();
        // As in BuildKit: without a name, it is compared with the default branch.
        assert_eq!(
            (found.reference.as_str(), found.checksum.as_str()),
            ("", commit)
        );
        let longest = "ab".repeat(32);
        let found = wanted("git://h/r", &[("git.checksum", longest.as_str())]).unwrap();
        assert_eq!(found.checksum, longest);
        for checksum in ["foobar", &format!("{longest}0")] {
            let error = wanted("git://h/r", &[("git.checksum", checksum)]).unwrap_err();
            let expected =
                format!("invalid checksum {checksum} for Git URL, expected hex commit hash");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn references_are_names() {
        for name in [
            "",
            "main",
            "v1.0",
            "feature/x-y",
            "refs/heads/a",
            "a@b",
            "é",
        ] {
            check_reference(name).unwrap();
        }
        for name in [
            "-x",
            "--upload-pack=touch /x",
            "a..b",
            "a b",
            "a:b",
            "a~1",
            "HEAD^",
            "a\nb",
            "/a",
            "a/",
            "a//b",
            "a/.b",
            "a.",
            "x@{1}",
        ] {
            let error = check_reference(name).unwrap_err().to_string();
            assert!(error.starts_with("invalid git ref"), "{name}");
        }
        let found = wanted("git://h/r#--upload-pack=x", &[]).unwrap_err();
        assert!(found.to_string().contains("invalid git ref"));
    }

    #[test]
    fn secrets_without_a_host_are_for_the_main_repository() {
        let attributes = [
            ("git.authtokensecret", "TOKEN"),
            ("git.authheadersecret", "HEADER"),
            ("git.fullurl", "https://h/r.git"),
        ];
        let wanted = wanted("git://h/r.git", &attributes).unwrap();
        let names = |url: &str, host: &str| {
            let access = wanted.access_to(&Remote::new(url).unwrap());
            let names = access.secrets.names(host);
            names.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(
            names("https://h/r.git", "h"),
            ["HEADER.h", "TOKEN.h", "HEADER", "TOKEN"]
        );
        assert_eq!(names("https://h/other.git", "h"), ["HEADER.h", "TOKEN.h"]);
        assert_eq!(names("https://h/r.git2", "h"), ["HEADER.h", "TOKEN.h"]);
        assert_eq!(names("https://x/r.git", "x"), ["HEADER.x", "TOKEN.x"]);
        for plain in ["http://h/r.git", "http://x/r.git"] {
            assert!(names(plain, "h").is_empty(), "{plain}");
        }
    }

    #[test]
    fn checksums_are_beginnings() {
        let wanted = wanted("git://h/r#main", &[("git.checksum", "AB12")]).unwrap();
        check_sum(&wanted, &["ab12ff", ""]).unwrap();
        check_sum(&wanted, &["ff", "ab12"]).unwrap();
        let error = check_sum(&wanted, &["ff", ""]).unwrap_err().to_string();
        assert_eq!(error, "expected checksum to match ab12, got ff");
    }
}
