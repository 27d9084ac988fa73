//! Directories of clients, which are kept so that only what has changed is sent again.
//!
//! ```text
//! <root>/build/contexts/KEY-FILTERS-NUMBER   one of whelk_buildkit::files::Directory, and `name`
//! ```
//! KEY stands for the directory's name and the client's key, FILTERS for the patterns of what is wanted. A session has a
//! directory for itself, which its builds have together: those for several platforms, and targets of a bake file. Others of the
//! same kind that run at the same time have others. A new one begins with the files of another one of its KEY, which share their
//! content.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::Stat;
use whelk_build::{
    Builder, Content, Directory, Error, EventKind, Index, Locals, Result, StoredDirectory,
    WeakDirectory, Work, blocking,
};
use whelk_buildkit::files::{self, Chosen, Contents, Directory as Received};
use whelk_buildkit::session::{FilesRequest, Session};
use whelk_dockerfile::ignore::Matcher;
use whelk_llb::Digest;
use whelk_llb::key::Selector;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

/// Number of digits of a key.
const KEY: usize = 24;

/// Number of directories that are kept; the ones that were used last.
const KEPT: usize = 64;

/// Number of digests that are kept of what builds have selected of a directory.
const SELECTIONS: usize = 64;

/// The time between two reports of a transfer's progress.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Contexts {
    builder: Arc<Builder>,
    root: PathBuf,
    used: Arc<Mutex<HashSet<PathBuf>>>,
    /// Of directories that have not changed since then.
    selections: Mutex<HashMap<PathBuf, Arc<Selections>>>,
    /// The directories that were received from sessions, which builds of the same session share while one of them has it.
    shared: Mutex<HashMap<Digest, Shared>>,
}

/// A directory of a session. Whoever has locked it receives it, and others wait.
type Shared = Arc<tokio::sync::Mutex<Option<WeakDirectory>>>;

/// Identifies the directories that were received for the same client, name and filters.
#[derive(Clone, Debug)]
struct Kind {
    key: String,
    filters: String,
    /// The name of the context, which `du` shows.
    name: String,
}

impl Kind {
    fn of(session: &Session, wanted: &FilesRequest, shared_key: &str) -> Self {
        let digits = |parts: &[&[u8]]| {
            let digest = Digest::of_parts(parts.iter().copied()).to_string();
            digest.trim_start_matches("sha256:")[..KEY].to_owned()
        };
        let lists = [&wanted.include, &wanted.exclude, &wanted.follow];
        let lists = lists.into_iter().chain(&wanted.contents);
        let lists: Vec<String> = lists.map(|list| format!("{list:?}")).collect();
        let lists: Vec<&[u8]> = lists.iter().map(String::as_bytes).collect();
        Self {
            key: digits(&[
                session.shared_key.as_bytes(),
                shared_key.as_bytes(),
                wanted.name.as_bytes(),
            ]),
            filters: digits(&lists),
            name: wanted.name.clone(),
        }
    }

    fn place(&self, number: usize) -> String {
        format!("{}-{}-{number}", self.key, self.filters)
    }
}

/// A directory that one build uses, as long as this exists.
#[derive(Debug)]
struct Claim {
    path: PathBuf,
    used: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.used.lock().ignore_poison().remove(&self.path);
    }
}

/// A directory that is being received.
struct Receiving {
    directory: Received,
    place: Claim,
    /// Whether this transfer has created the directory. Its index is written at the end of the transfer.
    is_new: bool,
}

impl AsMut<Received> for Receiving {
    fn as_mut(&mut self) -> &mut Received {
        &mut self.directory
    }
}

impl Contexts {
    /// Blocking.
    pub fn new(builder: Arc<Builder>, root: &Path) -> Arc<Self> {
        let contexts = Arc::new(Self {
            builder: builder.clone(),
            root: root.join("build/contexts"),
            used: Arc::default(),
            selections: Mutex::default(),
            shared: Mutex::default(),
        });
        if let Err(error) = contexts.remove_others() {
            tracing::warn!("remove contexts of builds of another boot: {error}");
        }
        let locals: Arc<dyn Locals> = contexts.clone();
        builder.set_locals(&locals);
        contexts
    }

    /// Removes directories that are not complete, or of another boot: they are of no use.
    fn remove_others(&self) -> Result<()> {
        if !fs::exists(&self.root) {
            return Ok(());
        }
        for entry in fs::list(&self.root)? {
            if Received::size_at(&entry.path(), self.builder.boot()).is_none() {
                self.trash(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Receives what is wanted of a client's directory. Builds of one session that want the same at the same time receive it once:
    /// the others wait for the first one, and if that fails or ends, the next one receives it.
    pub async fn receive(
        self: &Arc<Self>,
        id: &str,
        session: &Session,
        wanted: &FilesRequest,
        shared_key: &str,
        work: &Work,
    ) -> Result<Directory> {
        let kind = Kind::of(session, wanted, shared_key);
        let place = kind.place(usize::from(wanted.in_full));
        let shared = self.shared(Digest::of_parts([id.as_bytes(), place.as_bytes()]));
        let mut known = shared.lock().await;
        if let Some(directory) = known.as_ref().and_then(WeakDirectory::upgrade) {
            return Ok(directory);
        }
        let directory = self.receive_alone(session, wanted, kind, work).await?;
        *known = Some(directory.downgrade());
        Ok(directory)
    }

    /// Returns the directory of a session with this key, and forgets those that nobody has or waits for.
    fn shared(&self, key: Digest) -> Shared {
        let mut all = self.shared.lock().ignore_poison();
        all.retain(|_, shared| {
            let known = || shared.try_lock().ok()?.as_ref()?.upgrade();
            Arc::strong_count(shared) > 1 || known().is_some()
        });
        all.entry(key).or_default().clone()
    }

    async fn receive_alone(
        self: &Arc<Self>,
        session: &Session,
        wanted: &FilesRequest,
        kind: Kind,
        work: &Work,
    ) -> Result<Directory> {
        let chosen = wanted.contents.as_ref().map(|patterns| {
            let matcher = Matcher::new(patterns.iter().map(String::as_str))?;
            Ok::<_, Error>(Chosen::new(move |path| matcher.excludes(path)))
        });
        let chosen = chosen.transpose()?;
        let contexts = self.clone();
        // Without a key, nobody knows whose directory it was the last time.
        let in_full = wanted.in_full || session.shared_key.is_empty();
        // The client begins to walk while what it has sent before is looked up.
        let stream = session
            .files(wanted)
            .map_err(|status| Error::invalid(status.message))?;
        let mut receiving = blocking(move || contexts.take(&kind, in_full)).await?;
        if let Some(chosen) = chosen {
            receiving.directory.choose(chosen);
        }
        let mut last = Instant::now();
        let report = |bytes, is_done| {
            let name = format!("transferring {}:", wanted.name);
            work.add(EventKind::Transfer {
                name,
                bytes,
                is_done,
            });
        };
        let sometimes = |bytes| {
            if last.elapsed() >= INTERVAL {
                last = Instant::now();
                report(bytes, false);
            }
        };
        let path = receiving.place.path.clone();
        let (receiving, received) = match files::receive(stream, receiving, sometimes).await {
            Ok(received) => received,
            Err(error) => {
                let contexts = self.clone();
                blocking(move || contexts.remove_incomplete(path)).await?;
                return Err(Error::invalid(error.to_string()));
            }
        };
        report(received.bytes, true);
        let boot = self.builder.boot().to_owned();
        let is_same = !received.is_changed && !receiving.is_new;
        let selections = self.selections_of(&receiving.place.path, is_same);
        blocking(move || {
            let Receiving {
                directory,
                place,
                is_new: _,
            } = receiving;
            if !is_same {
                directory
                    .remember(&boot)
                    .map_err(|error| Error::internal(error.to_string()))?;
            }
            let path = place.path.clone();
            let contents = Arc::new(ReceivedIndex {
                contents: directory.into_contents(),
                selections,
            });
            Ok(Directory::kept(&path, Arc::new(place), contents))
        })
        .await
    }

    /// Returns the digests of what was selected of a directory: none, if it is not the same as before.
    fn selections_of(&self, path: &Path, is_same: bool) -> Arc<Selections> {
        let mut all = self.selections.lock().ignore_poison();
        if !is_same {
            all.remove(path);
        }
        all.entry(path.to_owned()).or_default().clone()
    }

    /// Removes a directory without an index: nothing of it can be used again.
    fn remove_incomplete(&self, path: PathBuf) -> Result<()> {
        let Some(place) = self.claim(path) else {
            return Ok(());
        };
        match Received::size_at(&place.path, self.builder.boot()) {
            Some(_) => Ok(()),
            None => self.trash(&place.path),
        }
    }

    /// Takes a directory that no build uses, with what was received before unless all is to be received again.
    fn take(&self, kind: &Kind, in_full: bool) -> Result<Receiving> {
        fs::create_dir_all(&self.root, 0o700)?;
        let place = {
            let mut used = self.used.lock().ignore_poison();
            let mut places = (0..).map(|number| self.root.join(kind.place(number)));
            // The iterator has no end, so that one is found.
            let path = places
                .find(|path| !used.contains(path))
                .unwrap_or_else(|| self.root.join(&kind.key));
            used.insert(path.clone());
            Claim {
                path,
                used: self.used.clone(),
            }
        };
        let path = &place.path;
        if !in_full
            && fs::exists(path)
            && let Some(directory) = Received::open(path, self.builder.boot()).map_err(failed)?
        {
            let _ = fs::touch(path);
            return Ok(Receiving {
                directory,
                place,
                is_new: false,
            });
        }
        self.make_room()?;
        let seeded = match in_full {
            true => Ok(None),
            false => self.seeded(kind, path),
        };
        let directory = match seeded {
            Ok(Some(directory)) => directory,
            Ok(None) => self.create(kind, path)?,
            Err(error) => {
                tracing::debug!("begin with the files of another directory: {error}");
                self.create(kind, path)?
            }
        };
        Ok(Receiving {
            directory,
            place,
            is_new: true,
        })
    }

    /// Creates an empty directory.
    fn create(&self, kind: &Kind, path: &Path) -> Result<Received> {
        self.trash(path)?;
        fs::create_dir(path, 0o700)?;
        fs::write(path.join("name"), &kind.name)?;
        Received::create(path).map_err(failed)
    }

    /// Creates a directory with the files of another one of the same client, if there is one.
    fn seeded(&self, kind: &Kind, path: &Path) -> Result<Option<Received>> {
        let mut others = Vec::new();
        for entry in fs::list(&self.root)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", kind.key)) && entry.path() != path {
                let used = entry.metadata().and_then(|metadata| metadata.modified());
                others.push((used.ok(), entry.path()));
            }
        }
        others.sort();
        // The one that was used last, of those that do not change meanwhile.
        while let Some((_, other)) = others.pop() {
            let Some(other) = self.claim(other) else {
                continue;
            };
            let opened = Received::open(&other.path, self.builder.boot()).map_err(failed)?;
            if let Some(from) = opened {
                let mut directory = self.create(kind, path)?;
                directory.seed(&from).map_err(failed)?;
                return Ok(Some(directory));
            }
        }
        Ok(None)
    }

    /// Removes directories that were not used for the longest time, if there are too many.
    fn make_room(&self) -> Result<()> {
        let mut all = Vec::new();
        for entry in fs::list(&self.root)? {
            let path = entry.path();
            let used = entry.metadata().and_then(|metadata| metadata.modified());
            if !self.used.lock().ignore_poison().contains(&path) {
                all.push((used.ok(), path));
            }
        }
        all.sort();
        let over = (all.len() + 1).saturating_sub(KEPT);
        for (_, path) in all.into_iter().take(over) {
            // A build may have taken it meanwhile.
            if let Some(place) = self.claim(path) {
                self.trash(&place.path)?;
            }
        }
        Ok(())
    }

    /// Takes a directory, so that no build does until what is returned is dropped. Returns `None` if one has.
    fn claim(&self, path: PathBuf) -> Option<Claim> {
        let is_free = self.used.lock().ignore_poison().insert(path.clone());
        is_free.then(|| Claim {
            path,
            used: self.used.clone(),
        })
    }

    fn trash(&self, path: &Path) -> Result<()> {
        self.selections.lock().ignore_poison().remove(path);
        if fs::exists(path) {
            let staging = &self.builder.store().staging;
            let trashed = staging.trash(path)?;
            staging.dispose(trashed);
        }
        Ok(())
    }

    /// Describes a directory.
    fn kept(&self, path: &Path) -> Option<StoredDirectory> {
        let metadata = fs::metadata(path).ok()?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        let id = fs::read_to_string(path.join("name")).unwrap_or_default();
        let size = Received::size_at(path, self.builder.boot()).unwrap_or(0);
        let is_used = self.used.lock().ignore_poison().contains(path);
        Some(StoredDirectory::new(
            name,
            id,
            size,
            is_used,
            Some(&metadata),
        ))
    }
}

impl Locals for Contexts {
    fn list(&self) -> Result<Vec<StoredDirectory>> {
        if !fs::exists(&self.root) {
            return Ok(Vec::new());
        }
        let entries = fs::list(&self.root)?.into_iter();
        // A directory that was removed since the list was read is left out.
        Ok(entries
            .filter_map(|entry| self.kept(&entry.path()))
            .collect())
    }

    fn remove(&self, name: &str) -> Result<bool> {
        let Some(place) = self.claim(self.root.join(name)) else {
            return Ok(false);
        };
        self.trash(&place.path)?;
        Ok(true)
    }
}

/// Digests of what builds have selected of a directory, and of the selectors, which may be long.
#[derive(Debug, Default)]
struct Selections(Mutex<Vec<(Digest, Digest)>>);

fn digest_of(selectors: &[Selector]) -> Digest {
    Digest::of(format!("{selectors:?}").as_bytes())
}

/// The digests of a directory's files, from its index, and of what was selected of them.
#[derive(Debug)]
struct ReceivedIndex {
    contents: Contents,
    selections: Arc<Selections>,
}

impl Index for ReceivedIndex {
    fn content(&self, path: &str, _: &Stat) -> Option<Content<'_>> {
        let (digest, xattrs) = self.contents.get(path)?;
        Some(Content { digest, xattrs })
    }

    fn selected(&self, selectors: &[Selector]) -> Option<Digest> {
        let selectors = digest_of(selectors);
        let all = self.selections.0.lock().ignore_poison();
        let found = all.iter().find(|(known, _)| *known == selectors);
        found.map(|(_, digest)| *digest)
    }

    fn keep_selected(&self, selectors: &[Selector], digest: Digest) {
        let mut all = self.selections.0.lock().ignore_poison();
        if all.len() == SELECTIONS {
            all.remove(0);
        }
        all.push((digest_of(selectors), digest));
    }
}

fn failed(error: files::Error) -> Error {
    Error::internal(error.to_string())
}
