//! Verifies a registry that does not run: that blobs have the content that their digests say, and that what
//! tags and manifests refer to is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use whelk_image::Digest;
use whelk_sys::fs;

use crate::damage::is_intact;
use crate::error::{Error, Result};
use crate::manifests::Document;
use crate::names::{ManifestKey, RepositoryName, digest as parse_digest};
use crate::records::{Links, Registry, cache_of, read};

/// The result of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub repositories: usize,
    pub manifests: usize,
    /// All content, manifests included.
    pub blobs: usize,
    /// Of all content.
    pub bytes: u64,
    pub problems: usize,
}

impl Registry {
    /// Opens a registry that exists, or a cache.
    ///
    /// # Errors
    /// Returns an error if the directory is not that of a registry, or is in use.
    pub fn open_existing(root: &Path) -> std::result::Result<Arc<Self>, String> {
        if !fs::exists(root.join("repositories")) {
            return Err(format!("{} has no registry", root.display()));
        }
        let upstream = cache_of(root).map_err(|error| error.to_string())?;
        Self::open(root, upstream.as_deref())
    }

    /// Verifies all content and all references. `repair` moves damaged and unreadable content out of the way, so
    /// that it is missing: the next push of an image sends it again, and a cache fetches it again. `tell` is
    /// called with a line for each problem.
    ///
    /// # Errors
    /// Returns an error if the directory of all content cannot be read.
    pub fn check(
        &self,
        repair: bool,
        mut tell: impl FnMut(&str),
    ) -> std::result::Result<Checked, String> {
        let mut check = Check {
            registry: self,
            repair,
            damaged: BTreeSet::new(),
            checked: Checked::default(),
            tell: &mut tell,
        };
        check.all().map_err(|error| error.to_string())?;
        Ok(check.checked)
    }

    /// Returns what is wrong with a manifest whose content is not damaged.
    fn problem_of(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        damaged: &BTreeSet<Digest>,
    ) -> Option<String> {
        if self.size(repository, Links::Manifests, digest).is_none() {
            return Some("the manifest is missing".into());
        }
        let key = ManifestKey::Digest(digest.clone());
        let document = self
            .get_manifest(repository, &key)
            .and_then(|stored| Document::parse(&stored.media_type, &stored.content));
        match document {
            Err(error) => Some(error.to_string()),
            // What a cache lacks it fetches.
            Ok(_) if self.is_cache => None,
            Ok(document) => match document.references().find(|one| damaged.contains(*one)) {
                Some(digest) => Some(format!("the manifest refers to {digest}, which is damaged")),
                None => {
                    let checked = self.check_content(repository, &document);
                    checked.err().map(|error| error.to_string())
                }
            },
        }
    }
}

/// A check that runs. What cannot be read is a problem, and the check goes on.
struct Check<'a> {
    registry: &'a Registry,
    repair: bool,
    /// Content that is damaged, or cannot be read.
    damaged: BTreeSet<Digest>,
    checked: Checked,
    tell: &'a mut dyn FnMut(&str),
}

impl Check<'_> {
    fn problem(&mut self, text: &str) {
        self.checked.problems += 1;
        (self.tell)(text);
    }

    fn all(&mut self) -> Result<()> {
        for digest in self.registry.store.content.list()? {
            self.blob(digest);
        }
        let mut strays = Vec::new();
        let repositories = self.registry.walk(|error| {
            strays.push(error.to_string());
            Ok(())
        })?;
        for stray in strays {
            self.problem(&stray);
        }
        for repository in repositories {
            self.manifests(&repository);
            self.tags(&repository);
        }
        Ok(())
    }

    fn blob(&mut self, digest: Digest) {
        self.checked.blobs += 1;
        let path = self.registry.store.content.path(&digest);
        let opened = fs::open(&path).map_err(Error::from);
        let verified = opened
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|file| {
                let text = |error: Error| error.to_string();
                let metadata = file.metadata().map_err(fs::at("stat", &path));
                self.checked.bytes += metadata.map_err(|error| text(error.into()))?.len();
                is_intact(&digest, file).map_err(text)
            });
        let mut problem = match verified {
            Ok(true) => return,
            Ok(false) => format!("blob {digest} is damaged"),
            Err(error) => format!("blob {digest} cannot be read: {error}"),
        };
        if self.repair {
            problem += &match self.registry.move_aside(&digest, opened.as_ref().ok()) {
                Ok(Some(place)) => format!(": moved to {}", place.display()),
                Ok(None) => ": removed".to_owned(),
                Err(error) => format!(", and cannot be moved: {error}"),
            };
        }
        self.problem(&problem);
        self.damaged.insert(digest);
    }

    fn manifests(&mut self, repository: &RepositoryName) {
        let manifests = match self.registry.digests(repository, Links::Manifests) {
            Ok(manifests) => manifests,
            Err(error) => return self.problem(&format!("manifests of {repository}: {error}")),
        };
        self.checked.repositories += usize::from(!manifests.is_empty());
        for digest in manifests {
            self.checked.manifests += 1;
            // A damaged one has been reported.
            if self.damaged.contains(&digest) {
                continue;
            }
            let problem = self.registry.problem_of(repository, &digest, &self.damaged);
            if let Some(problem) = problem {
                self.problem(&format!("{repository}@{digest}: {problem}"));
            }
        }
    }

    fn tags(&mut self, repository: &RepositoryName) {
        let directory = self.registry.directory(repository, Links::Tags);
        let tags = match Registry::list(&directory) {
            Ok(tags) => tags,
            Err(error) => return self.problem(&format!("tags of {repository}: {error}")),
        };
        for tag in tags {
            let digest = match read(&directory.join(&tag)) {
                Ok(text) => text.and_then(|text| parse_digest(&text).ok()),
                Err(error) => {
                    self.problem(&format!("{repository}:{tag} cannot be read: {error}"));
                    continue;
                }
            };
            let Some(digest) = digest else {
                self.problem(&format!("{repository}:{tag} names no manifest"));
                continue;
            };
            let size = self.registry.size(repository, Links::Manifests, &digest);
            if size.is_none() || self.damaged.contains(&digest) {
                let text = format!("{repository}:{tag} has no manifest: {digest} is missing");
                self.problem(&text);
            }
        }
    }
}
