//! Manifests of repositories, their tags, and what refers to them.

use std::collections::BTreeMap;
use std::fs::File;

use serde::{Deserialize, Serialize};
use whelk_image::descriptor::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, INDEX, MANIFEST};
use whelk_image::{Algorithm, Digest};
use whelk_sys::fs;

use crate::damage::is_intact;
use crate::error::{Error, Kind, Result};
use crate::names::{ManifestKey, RepositoryName, digest as parse_digest};
use crate::records::{Links, Registry, read, remove};

/// Maximum size of a manifest in bytes, as the specification recommends.
pub(crate) const MAX_MANIFEST: usize = 4 << 20;

/// A manifest or an index, as far as the registry looks into it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Reference>,
    layers: Option<Vec<Reference>>,
    manifests: Option<Vec<Reference>>,
    subject: Option<Reference>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    media_type: String,
    digest: Digest,
    size: u64,
    urls: Option<Vec<String>>,
}

impl Reference {
    /// Returns which links of a repository lead to an entry of an index: to a manifest, or to a blob, as in the indexes of build
    /// caches.
    fn links(&self) -> Links {
        match self.media_type.as_str() {
            MANIFEST | DOCKER_MANIFEST | INDEX | DOCKER_MANIFEST_LIST | "" => Links::Manifests,
            _ => Links::Blobs,
        }
    }

    /// Whether it is a layer that its author does not permit to be distributed, or that is elsewhere.
    fn may_be_missing(&self) -> bool {
        self.media_type.contains("nondistributable")
            || self.media_type.contains(".foreign.")
            || self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
    }
}

/// A descriptor in the list of what refers to a manifest.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Referrer {
    media_type: String,
    pub digest: Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

/// A manifest or an index that a repository has.
#[derive(Debug)]
pub(crate) struct FoundManifest {
    pub digest: Digest,
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    pub file: File,
}

/// A manifest or an index with its content.
#[derive(Debug)]
pub(crate) struct Stored {
    pub digest: Digest,
    pub media_type: String,
    pub content: Vec<u8>,
}

fn invalid(text: impl Into<String>) -> Error {
    Kind::ManifestInvalid.error(text)
}

fn unknown() -> Error {
    Kind::ManifestUnknown.error("the manifest is not in the repository")
}

impl Document {
    /// Parses a manifest or an index.
    ///
    /// # Errors
    /// Returns an error if it is not a document of the media type. One that could also be read as
    /// the other kind is refused: clients could disagree on what it is (CVE-2021-41190).
    pub(crate) fn parse(media_type: &str, content: &[u8]) -> Result<Self> {
        let is_index = match media_type {
            MANIFEST | DOCKER_MANIFEST => false,
            INDEX | DOCKER_MANIFEST_LIST => true,
            other => return Err(invalid(format!("unsupported media type {other:?}"))),
        };
        let document: Self = serde_json::from_slice(content)
            .map_err(|error| invalid(format!("invalid manifest: {error}")))?;
        if document.schema_version != whelk_image::descriptor::SCHEMA_VERSION {
            return Err(invalid("unsupported schema version"));
        }
        let written = document
            .media_type
            .as_deref()
            .filter(|written| !written.is_empty());
        if written.is_some_and(|written| written != media_type) {
            return Err(invalid(
                "the manifest's media type is not that of the request",
            ));
        }
        let (has_image, has_index) = (
            document.config.is_some() || document.layers.is_some(),
            document.manifests.is_some(),
        );
        if is_index && has_image || !is_index && has_index {
            return Err(invalid("the document is both a manifest and an index"));
        }
        if !is_index && document.config.is_none() {
            return Err(invalid("the manifest has no configuration"));
        }
        Ok(document)
    }

    /// The blobs that the manifest consists of.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let references = self.config.iter().chain(self.layers.iter().flatten());
        references.map(|reference| &reference.digest)
    }

    /// What it refers to, apart from its subject.
    pub(crate) fn references(&self) -> impl Iterator<Item = &Digest> {
        let manifests = self.manifests.iter().flatten();
        self.blobs()
            .chain(manifests.map(|reference| &reference.digest))
    }

    fn referrer(self, media_type: &str, digest: &Digest, size: usize) -> Referrer {
        let written = self.artifact_type.filter(|kind| !kind.is_empty());
        Referrer {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            size,
            artifact_type: written.or(self.config.map(|config| config.media_type)),
            annotations: self.annotations,
        }
    }
}

impl Registry {
    /// Stores a manifest under a digest of it, or under a tag and its SHA-256 digest. Returns its digest
    /// and that of its subject.
    pub(crate) fn push_manifest(
        &self,
        repository: &RepositoryName,
        version: &ManifestKey,
        media_type: &str,
        content: &[u8],
    ) -> Result<(Digest, Option<Digest>)> {
        let algorithm = match version {
            ManifestKey::Tag(_) => Algorithm::Sha256,
            ManifestKey::Digest(digest) if digest.is_of(content) => digest.algorithm(),
            ManifestKey::Digest(digest) => {
                let text = format!("the manifest does not have the digest {digest}");
                return Err(Kind::DigestInvalid.error(text));
            }
        };
        let document = Document::parse(media_type, content)?;
        let _lock = self.lock(repository);
        self.check_content(repository, &document)?;
        let tag = match version {
            ManifestKey::Tag(tag) => Some(tag.as_str()),
            ManifestKey::Digest(_) => None,
        };
        let subject = document.subject.as_ref();
        let subject = subject.map(|subject| subject.digest.clone());
        let digest =
            self.write_manifest(repository, tag, algorithm, media_type, document, content)?;
        Ok((digest, subject))
    }

    /// Stores a manifest of upstream, also under a tag. What it refers to may be missing. Returns its
    /// digest.
    pub(crate) fn cache_manifest(
        &self,
        repository: &RepositoryName,
        tag: Option<&str>,
        manifest: Stored,
    ) -> Result<Digest> {
        let (media_type, content) = (&manifest.media_type, &manifest.content);
        let document = Document::parse(media_type, content)?;
        let _lock = self.lock(repository);
        let algorithm = manifest.digest.algorithm();
        self.write_manifest(repository, tag, algorithm, media_type, document, content)
    }

    /// Lets a tag name a manifest that the repository has.
    pub(crate) fn tag_manifest(
        &self,
        repository: &RepositoryName,
        tag: &str,
        digest: &Digest,
    ) -> Result<()> {
        let _lock = self.lock(repository);
        if !self.has_link(repository, Links::Manifests, digest) {
            return Err(unknown());
        }
        let path = self.directory(repository, Links::Tags).join(tag);
        self.write(&path, digest.as_str().as_bytes())
    }

    /// Updates a manifest's access time.
    pub(crate) fn touch_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<()> {
        let _lock = self.lock(repository);
        match self.touch(repository, Links::Manifests, digest) {
            // It has been deleted meanwhile.
            Err(_) if self.size(repository, Links::Manifests, digest).is_none() => Ok(()),
            touched => touched,
        }
    }

    /// Stores a manifest and its links, in a repository that is locked.
    fn write_manifest(
        &self,
        repository: &RepositoryName,
        tag: Option<&str>,
        algorithm: Algorithm,
        media_type: &str,
        document: Document,
        content: &[u8],
    ) -> Result<Digest> {
        let lease = self.store.leases.take();
        let digest = self.store.content.put_as(&lease, algorithm, content)?;
        self.sync_blob(&digest)?;
        let at = |links| self.directory(repository, links);
        self.write(
            &at(Links::Manifests).join(digest.hex()),
            media_type.as_bytes(),
        )?;
        let subject = document
            .subject
            .as_ref()
            .map(|subject| subject.digest.clone());
        if let Some(subject) = subject {
            let referrer = document.referrer(media_type, &digest, content.len());
            let text = serde_json::to_vec(&referrer)
                .map_err(|error| Kind::Internal.error(error.to_string()))?;
            let directory = at(Links::Referrers).join(subject.hex());
            self.write(&directory.join(digest.hex()), &text)?;
        }
        if let Some(tag) = tag {
            self.write(&at(Links::Tags).join(tag), digest.as_str().as_bytes())?;
        }
        Ok(digest)
    }

    /// Checks that the repository has what a manifest refers to, except for its subject, which may
    /// come later.
    pub(crate) fn check_content(
        &self,
        repository: &RepositoryName,
        document: &Document,
    ) -> Result<()> {
        let blobs = document
            .config
            .iter()
            .chain(document.layers.iter().flatten());
        let blobs = blobs.map(|reference| (Links::Blobs, reference));
        let manifests = document.manifests.iter().flatten();
        let manifests = manifests.map(|reference| (reference.links(), reference));
        for (links, reference) in blobs.chain(manifests) {
            let digest = &reference.digest;
            match self.size(repository, links, digest) {
                None if reference.may_be_missing() => {}
                None => {
                    let text =
                        format!("the manifest refers to {digest}, which is not in the repository");
                    return Err(Kind::ManifestBlobUnknown.error(text));
                }
                Some(size) if size != reference.size => {
                    let text = format!("{digest} has {size} bytes, not {}", reference.size);
                    return Err(invalid(text));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the digest of a manifest that the repository has.
    fn resolve(&self, repository: &RepositoryName, version: &ManifestKey) -> Result<Digest> {
        match version {
            ManifestKey::Digest(digest) => Ok(digest.clone()),
            ManifestKey::Tag(tag) => {
                let path = self.directory(repository, Links::Tags).join(tag);
                parse_digest(&read(&path)?.ok_or_else(unknown)?)
            }
        }
    }

    /// Finds a manifest, without reading it.
    pub(crate) fn find_manifest(
        &self,
        repository: &RepositoryName,
        version: &ManifestKey,
    ) -> Result<FoundManifest> {
        let digest = self.resolve(repository, version)?;
        let directory = self.directory(repository, Links::Manifests);
        let media_type = read(&directory.join(digest.hex()))?.ok_or_else(unknown)?;
        let path = self.store.content.path(&digest);
        let file = fs::open(&path)?;
        Ok(FoundManifest {
            size: file.metadata().map_err(fs::at("stat", &path))?.len(),
            digest,
            media_type,
            file,
        })
    }

    /// Finds a manifest and verifies its content.
    ///
    /// # Errors
    /// Returns [`Kind::Damaged`] if the content does not have the digest.
    pub(crate) fn open_manifest(
        &self,
        repository: &RepositoryName,
        version: &ManifestKey,
    ) -> Result<FoundManifest> {
        let found = self.find_manifest(repository, version)?;
        match is_intact(&found.digest, &found.file)? {
            true => Ok(found),
            false => {
                let text = format!("manifest {} is damaged; push it again", found.digest);
                Err(Kind::Damaged.error(text))
            }
        }
    }

    /// Reads a manifest.
    pub(crate) fn get_manifest(
        &self,
        repository: &RepositoryName,
        version: &ManifestKey,
    ) -> Result<Stored> {
        let digest = self.resolve(repository, version)?;
        let link = self
            .directory(repository, Links::Manifests)
            .join(digest.hex());
        let media_type = read(&link)?.ok_or_else(unknown)?;
        Ok(Stored {
            content: self.store.content.read(&digest)?,
            media_type,
            digest,
        })
    }

    /// Removes a tag, or a manifest with its tags and its place among its subject's referrers.
    pub(crate) fn delete_manifest(
        &self,
        repository: &RepositoryName,
        version: &ManifestKey,
    ) -> Result<()> {
        let _lock = self.lock(repository);
        let tags = self.directory(repository, Links::Tags);
        let digest = match version {
            ManifestKey::Tag(tag) if remove(&tags.join(tag))? => return Ok(()),
            ManifestKey::Tag(_) => return Err(unknown()),
            ManifestKey::Digest(digest) => digest,
        };
        let manifest = self.get_manifest(repository, version);
        if matches!(&manifest, Err(error) if error.kind == Kind::ManifestUnknown) {
            return Err(unknown());
        }
        for tag in Self::list(&tags)? {
            if read(&tags.join(&tag))?.as_deref() == Some(digest.as_str()) {
                remove(&tags.join(&tag))?;
            }
        }
        // A damaged manifest can be deleted.
        let document =
            manifest.and_then(|manifest| Document::parse(&manifest.media_type, &manifest.content));
        if let Ok(Document {
            subject: Some(subject),
            ..
        }) = document
        {
            let referrers = self.directory(repository, Links::Referrers);
            remove(&referrers.join(subject.digest.hex()).join(digest.hex()))?;
        }
        remove(
            &self
                .directory(repository, Links::Manifests)
                .join(digest.hex()),
        )?;
        Ok(())
    }

    /// Returns whether there is a manifest whose subject is `subject`.
    pub(crate) fn has_referrers(&self, repository: &RepositoryName, subject: &Digest) -> bool {
        let directory = self.directory(repository, Links::Referrers);
        Self::list(&directory.join(subject.hex())).is_ok_and(|names| !names.is_empty())
    }

    /// Returns the descriptors of manifests whose subject is `subject`, and whose digest follows
    /// `last`, and whether there are more: so many that together they are not much larger than a
    /// manifest.
    pub(crate) fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        kind: Option<&str>,
        last: &str,
    ) -> Result<(Vec<Referrer>, bool)> {
        let directory = self
            .directory(repository, Links::Referrers)
            .join(subject.hex());
        let (mut found, mut size) = (Vec::new(), 0);
        for name in Self::list(&directory)? {
            if name.as_str() <= last {
                continue;
            }
            if size > MAX_MANIFEST {
                return Ok((found, true));
            }
            // One that was deleted meanwhile is left out.
            let Some(text) = read(&directory.join(&name))? else {
                continue;
            };
            let referrer: Referrer = serde_json::from_str(&text)
                .map_err(|error| Kind::Internal.error(format!("referrer {name}: {error}")))?;
            if kind.is_none_or(|kind| referrer.artifact_type.as_deref() == Some(kind)) {
                size += text.len();
                found.push(referrer);
            }
        }
        Ok((found, false))
    }

    /// Returns the tags of a repository that follow `last`, in the specification's order.
    ///
    /// # Errors
    /// Returns [`Kind::NameUnknown`] if nothing was ever pushed to the repository.
    pub(crate) fn tags(&self, repository: &RepositoryName, last: &str) -> Result<Vec<String>> {
        if !self.is_known(repository) {
            return Err(Kind::NameUnknown.error(format!("repository {repository} is not known")));
        }
        let key = |tag: &str| (tag.to_ascii_lowercase(), tag.to_owned());
        let mut tags = Self::list(&self.directory(repository, Links::Tags))?;
        tags.retain(|tag| last.is_empty() || key(tag) > key(last));
        tags.sort_by_key(|tag| key(tag));
        Ok(tags)
    }

    /// Returns the repositories that have manifests and follow `last`.
    pub(crate) fn catalog(&self, last: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for repository in self.all()? {
            let manifests = self.directory(&repository, Links::Manifests);
            if repository.as_str() > last
                && fs::exists(&manifests)
                && !Self::list(&manifests)?.is_empty()
            {
                found.push(repository.as_str().to_owned());
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_manifest() {
        let digest = Digest::of(b"");
        let reference = format!(r#"{{"mediaType":"a","digest":"{digest}","size":0}}"#);
        let check = |media_type: &str, content: &str, expected: &str| {
            let error = Document::parse(media_type, content.as_bytes()).unwrap_err();
            assert_eq!(error.kind, Kind::ManifestInvalid);
            assert!(error.text.contains(expected), "{}", error.text);
        };
        let manifest = format!(r#"{{"schemaVersion":2,"config":{reference}"#);
        assert!(Document::parse(MANIFEST, format!("{manifest}}}").as_bytes()).is_ok());
        for (media_type, content, expected) in [
            ("text/plain", "{}", "unsupported media type"),
            (MANIFEST, "", "invalid manifest"),
            (MANIFEST, "[]", "invalid manifest"),
            (MANIFEST, r#"{"schemaVersion":1}"#, "schema version"),
            (MANIFEST, r#"{"schemaVersion":2}"#, "no configuration"),
            (INDEX, &format!("{manifest}}}"), "both"),
            (MANIFEST, &format!(r#"{manifest},"manifests":[]}}"#), "both"),
            (
                MANIFEST,
                &format!(r#"{manifest},"mediaType":"{INDEX}"}}"#),
                "not that of the request",
            ),
            (
                MANIFEST,
                &manifest.replace("sha256:", "sha256:../"),
                "invalid checksum digest",
            ),
            (MANIFEST, &manifest.replace(":0", ":-1"), "invalid"),
        ] {
            check(media_type, content, expected);
        }
        let deep = format!(r#"{manifest},"x":{}"#, "[".repeat(100_000));
        check(MANIFEST, &deep, "EOF");
    }
}
