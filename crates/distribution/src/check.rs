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

    /// Verifies all content and all references. `repair` moves damaged content out of the way, so that it is
    /// missing: the next push of an image sends it again, and a cache fetches it again. `tell` is called with a
    /// line for each problem.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be read.
    pub fn check(
        &self,
        repair: bool,
        mut tell: impl FnMut(&str),
    ) -> std::result::Result<Checked, String> {
        let mut checked = Checked::default();
        let mut tell = |checked: &mut Checked, text: &str| {
            checked.problems += 1;
            tell(text);
        };
        let outcome = self.check_all(repair, &mut checked, &mut tell);
        outcome.map(|()| checked).map_err(|error| error.to_string())
    }

    fn check_all(
        &self,
        repair: bool,
        checked: &mut Checked,
        tell: &mut impl FnMut(&mut Checked, &str),
    ) -> Result<()> {
        let mut damaged = BTreeSet::new();
        for digest in self.store.content.list()? {
            checked.blobs += 1;
            let path = self.store.content.path(&digest);
            let verified = fs::open(&path).map_err(Error::from).and_then(|file| {
                checked.bytes += file.metadata().map_err(fs::at("stat", &path))?.len();
                Ok((is_intact(&digest, &file)?, file))
            });
            match verified {
                Ok((true, _)) => continue,
                Ok((false, _)) if !repair => {
                    tell(checked, &format!("blob {digest} is damaged"));
                }
                Ok((false, file)) => {
                    let done = match self.move_aside(&digest, &file)? {
                        Some(place) => format!("moved to {}", place.display()),
                        None => "removed".to_owned(),
                    };
                    tell(checked, &format!("blob {digest} is damaged: {done}"));
                }
                Err(error) => tell(checked, &format!("blob {digest} cannot be read: {error}")),
            }
            damaged.insert(digest);
        }
        for repository in self.all()? {
            let manifests = self.digests(&repository, Links::Manifests)?;
            checked.repositories += usize::from(!manifests.is_empty());
            for digest in manifests {
                checked.manifests += 1;
                // A damaged one has been reported.
                if damaged.contains(&digest) {
                    continue;
                }
                let problem = self.problem_of(&repository, &digest, &damaged);
                if let Some(problem) = problem {
                    tell(checked, &format!("{repository}@{digest}: {problem}"));
                }
            }
            let tags = self.directory(&repository, Links::Tags);
            for tag in Self::list(&tags)? {
                let digest = read(&tags.join(&tag))?;
                let digest = digest.map(|text| parse_digest(&text));
                let Some(Ok(digest)) = digest else {
                    tell(checked, &format!("{repository}:{tag} names no manifest"));
                    continue;
                };
                let is_there = self.size(&repository, Links::Manifests, &digest).is_some();
                if !is_there || damaged.contains(&digest) {
                    let text = format!("{repository}:{tag} has no manifest: {digest} is missing");
                    tell(checked, &text);
                }
            }
        }
        Ok(())
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
