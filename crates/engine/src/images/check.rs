//! Compares the images with the blobs and layers on disk, and these with their digests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use whelk_image::content::MAX_PARTIAL_AGE;
use whelk_image::{Digest, Used};
use whelk_sys::fs;

use super::{Image, Images};
use crate::error::{Error, Result};
use crate::findings::Findings;

/// Returns the layers that are mounted, with the name of a container that has them.
pub(crate) type InUse = Arc<dyn Fn() -> BTreeMap<Digest, String> + Send + Sync>;

/// What was verified of the images.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verified {
    pub(crate) layers: usize,
    pub(crate) blobs: usize,
    /// Of all blobs and, if their content was verified, layers.
    pub(crate) bytes: u64,
}

impl Images {
    /// Looks for images that cannot be read, and for what belongs to none. Blocks.
    pub(crate) fn check(self: &Arc<Self>, findings: &mut Findings) {
        let unreadable = self.read().unreadable.clone();
        for id in &unreadable {
            findings.add_unrepairable(format!(
                "image {id} cannot be read, and nothing is collected until it can: pull or load it again"
            ));
        }
        if unreadable.is_empty() {
            let unused = self.check_unused(findings);
            findings.add_failure("unused content", unused);
        }
        let strays = self.check_staging(findings);
        findings.add_failure("tmp and trash", strays);
    }

    fn check_unused(self: &Arc<Self>, findings: &mut Findings) -> Result<()> {
        for path in self.files.unused(MAX_PARTIAL_AGE, || self.used())? {
            let images = self.clone();
            let problem = format!("{} belongs to no image", path.display());
            findings.add(problem, move || {
                images.collect_garbage();
                match fs::exists(&path) {
                    true => Err(Error::conflict("it is used by a pull or load now")),
                    false => Ok("removed".into()),
                }
            });
        }
        Ok(())
    }

    fn check_staging(self: &Arc<Self>, findings: &mut Findings) -> Result<()> {
        for stray in self.files.staging.strays()? {
            let path = stray.path.display();
            let problem = match &stray.failure {
                Some(failure) => format!("{path} could not be removed: {failure}"),
                None => format!("{path} belongs to no operation"),
            };
            let images = self.clone();
            findings.add(problem, move || {
                images.files.staging.remove_stray(&stray.path)?;
                images.files.staging.wait_for_disposal();
                match fs::exists(&stray.path) {
                    true => Err(Error::internal("it cannot be removed")),
                    false => Ok("removed".into()),
                }
            });
        }
        Ok(())
    }

    /// Verifies the content of all images: that it is there, the digests of blobs, and with `deep` also
    /// those of layers. Damaged content is repaired by moving it to `lost+found`, because a pull or load
    /// leaves alone what is there; but not a layer that is in use, or content that cannot be read now. `tell` gets the findings after each object, and returns whether to go on.
    pub(crate) fn verify(
        self: &Arc<Self>,
        deep: bool,
        in_use: &InUse,
        tell: &mut dyn FnMut(Findings) -> bool,
    ) -> Verified {
        let mut verified = Verified::default();
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        let mut seen = BTreeSet::new();
        for image in &images {
            for digest in self.documents(image) {
                if seen.insert(digest.clone()) {
                    let mut findings = Findings::default();
                    verified.blobs += 1;
                    verified.bytes += self.verify_blob(image, &digest, &mut findings);
                    if !tell(findings) {
                        return verified;
                    }
                }
            }
        }
        seen.clear();
        for image in &images {
            for layer in image.layers() {
                if seen.insert(layer.clone()) {
                    let mut findings = Findings::default();
                    verified.layers += 1;
                    verified.bytes += self.verify_layer(image, layer, deep, in_use, &mut findings);
                    if !tell(findings) {
                        return verified;
                    }
                }
            }
        }
        verified
    }

    /// Returns the blobs of an image: configuration, manifests and index.
    fn documents(&self, image: &Image) -> Vec<Digest> {
        let own = image.manifests().chain(&image.origin.index).cloned();
        let index = self.read();
        let tags = index.tags.values().filter(|tag| tag.image == image.id);
        let indexes = tags.filter_map(|tag| tag.index.clone());
        own.chain([image.id.clone()]).chain(indexes).collect()
    }

    /// Returns whether the engine still has an image.
    fn has(&self, image: &Image) -> bool {
        self.read().by_id.contains_key(&image.id)
    }

    fn verify_blob(
        self: &Arc<Self>,
        image: &Image,
        digest: &Digest,
        findings: &mut Findings,
    ) -> u64 {
        let error = match self.files.content.read(digest) {
            Ok(content) => return content.len() as u64,
            Err(error) => error,
        };
        // The image may have been removed meanwhile, or pulled with other manifests.
        if !self.has(image) || !self.used().blobs.contains(digest) {
            return 0;
        }
        let path = self.files.content.path(digest);
        let problem = format!("image {}: {error}", self.describe(image));
        if !fs::exists(&path) {
            findings.add_unrepairable(format!("{problem}; {AGAIN}"));
            return 0;
        }
        // What cannot be read now, for want of descriptors for example, may be sound.
        if !matches!(error, whelk_image::Error::Invalid(_)) {
            findings.add_unrepairable(problem);
            return 0;
        }
        let (images, digest) = (self.clone(), digest.clone());
        findings.add(problem, move || {
            if images.files.content.read(&digest).is_ok() {
                return Ok("it was replaced meanwhile".into());
            }
            let place = images.files.staging.set_aside(&path)?;
            Ok(format!("moved to {}; {AGAIN}", place.display()))
        });
        0
    }

    fn verify_layer(
        self: &Arc<Self>,
        image: &Image,
        layer: &Digest,
        deep: bool,
        in_use: &InUse,
        findings: &mut Findings,
    ) -> u64 {
        let snapshots = &self.files.snapshots;
        let (problem, is_damaged) = match snapshots.lack(layer) {
            Some(lack) => (format!("layer {layer} {lack}"), true),
            None if !deep => return 0,
            None => match snapshots.verify(layer) {
                Ok(()) => return snapshots.size(layer).unwrap_or(0),
                Err(error @ whelk_image::Error::Invalid(_)) => {
                    (format!("layer {layer} is damaged: {error}"), true)
                }
                Err(error) => (format!("layer {layer} cannot be read: {error}"), false),
            },
        };
        if !self.has(image) {
            return 0;
        }
        let problem = format!("image {}: {problem}", self.describe(image));
        if !snapshots.has(layer) {
            findings.add_unrepairable(format!("{problem}; {AGAIN}"));
        } else if !is_damaged {
            findings.add_unrepairable(problem);
        } else if let Some(container) = in_use().get(layer) {
            findings.add_unrepairable(format!(
                "{problem}; stop container {container}, which has the layer mounted, so that it can be repaired"
            ));
        } else {
            let (images, layer, in_use) = (self.clone(), layer.clone(), in_use.clone());
            findings.add(problem, move || {
                // A container may have been started since.
                if let Some(container) = in_use().get(&layer) {
                    return Err(Error::conflict(format!(
                        "container {container} has the layer mounted"
                    )));
                }
                let place = images.files.snapshots.set_aside(&layer)?;
                Ok(format!("moved to {}; {AGAIN}", place.display()))
            });
        }
        0
    }

    /// Returns an image's id and names.
    fn describe(&self, image: &Image) -> String {
        let names = self.names_of(&image.id).join(", ");
        match names.as_str() {
            "" => image.id.to_string(),
            names => format!("{} ({names})", image.id),
        }
    }

    /// Returns the blobs and layers of all images.
    pub(super) fn used(&self) -> Used {
        let index = self.read();
        let images = index.by_id.values();
        let documents = images.clone().flat_map(|image| {
            let documents = image.manifests().chain(&image.origin.index);
            documents.chain([&image.id])
        });
        let indexes = index.tags.values().filter_map(|tag| tag.index.as_ref());
        let layers = images.flat_map(|image| &image.config.rootfs.diff_ids);
        Used {
            blobs: documents.chain(indexes).cloned().collect(),
            layers: layers.cloned().collect(),
        }
    }
}

/// What to do about content that is lost.
const AGAIN: &str = "pull or load the image again";
