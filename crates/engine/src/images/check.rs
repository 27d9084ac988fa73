//! Compares the images with the blobs and layers on disk, and these with their digests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use whelk_image::snapshots::Lack;
use whelk_image::{Digest, Removal, SetAside, Used};
use whelk_sys::fs;

use super::{Image, Images};
use crate::error::{Error, Result};
use crate::findings::Findings;

/// Returns the layers that are mounted, with the name of a container that has them.
pub(crate) type InUse = Arc<dyn Fn() -> BTreeMap<Digest, String> + Send + Sync>;

/// Returns whether somebody still wants the result of the check.
pub(crate) type GoesOn = Arc<dyn Fn() -> bool + Send + Sync>;

/// How layers are verified.
struct Deep<'a> {
    /// Also their content.
    deep: bool,
    in_use: &'a InUse,
    goes_on: &'a GoesOn,
}

/// What is wrong with a layer.
enum Damage {
    Lacks(Lack),
    Content(whelk_image::Error),
    /// It cannot be read now, but may be sound.
    Unreadable(whelk_image::Error),
    /// Nobody wants to know any more.
    Stopped,
}

/// A predicate for an error text.
impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacks(lack) => lack.fmt(formatter),
            Self::Content(error) => write!(formatter, "is damaged: {error}"),
            Self::Unreadable(error) => write!(formatter, "cannot be read: {error}"),
            Self::Stopped => formatter.write_str("was not verified to its end"),
        }
    }
}

/// Returns what a repair has done with damaged content.
fn done(set_aside: SetAside) -> Result<String> {
    match set_aside {
        SetAside::Moved(place) => Ok(format!("moved to {}; {AGAIN}", place.display())),
        SetAside::Sound => Ok("it was replaced meanwhile".into()),
        SetAside::Held => Err(Error::conflict(
            "an operation that has begun needs it where it is; check again later",
        )),
        SetAside::Used(container) => Err(Error::conflict(format!(
            "container {container} has the layer mounted"
        ))),
    }
}

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
        for path in self.files.unused(|| self.used())? {
            let images = self.clone();
            let problem = format!("{} belongs to no image", path.display());
            findings.add(problem, move || {
                // One collection removes all that is found.
                if fs::exists(&path) {
                    images.collect_garbage();
                }
                match fs::exists(&path) {
                    true => Err(Error::conflict("it is used by a pull or load now")),
                    false => Ok("removed".into()),
                }
            });
        }
        Ok(())
    }

    fn check_staging(self: &Arc<Self>, findings: &mut Findings) -> Result<()> {
        /// How long one object may take.
        const PATIENCE: Duration = Duration::from_secs(3);
        for stray in self.files.staging.strays()? {
            let path = stray.path.display();
            let problem = match &stray.failure {
                Some(failure) => format!("{path} could not be removed: {failure}"),
                None => format!("{path} belongs to no operation"),
            };
            let images = self.clone();
            findings.add(problem, move || {
                match images.files.staging.remove_stray(&stray.path, PATIENCE)? {
                    Removal::Done => Ok("removed".into()),
                    Removal::Runs => Ok("is being removed".into()),
                    Removal::Failed(failure) => Err(Error::internal(failure)),
                }
            });
        }
        Ok(())
    }

    /// Verifies the content of all images: that it is there, the digests of blobs, and with `deep` also
    /// those of layers. Damaged content is repaired by moving it to `lost+found`, because a pull or load
    /// leaves alone what is there; but not a layer that is in use, or content that cannot be read now. `tell`
    /// gets the findings after each object; it and `goes_on` return whether to go on.
    pub(crate) fn verify(
        self: &Arc<Self>,
        deep: bool,
        in_use: &InUse,
        goes_on: &GoesOn,
        tell: &mut dyn FnMut(Findings) -> bool,
    ) -> Verified {
        let mut verified = Verified::default();
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        let mut seen = BTreeSet::new();
        for digest in images.iter().flat_map(|image| self.documents(image)) {
            if seen.insert(digest.clone()) {
                let mut findings = Findings::default();
                verified.blobs += 1;
                verified.bytes += self.verify_blob(&digest, &mut findings);
                if !tell(findings) {
                    return verified;
                }
            }
        }
        seen.clear();
        for layer in images.iter().flat_map(|image| image.layers()) {
            if seen.insert(layer.clone()) {
                let mut findings = Findings::default();
                verified.layers += 1;
                let whether = Deep {
                    deep,
                    in_use,
                    goes_on,
                };
                verified.bytes += self.verify_layer(layer, &whether, &mut findings);
                if !tell(findings) {
                    return verified;
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

    /// Returns id and names of an image that the engine has and that `is_it` accepts.
    fn describe_one(&self, is_it: impl Fn(&Image) -> bool) -> Option<String> {
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        let found = images.iter().find(|image| is_it(image))?;
        Some(self.describe(found))
    }

    fn verify_blob(self: &Arc<Self>, digest: &Digest, findings: &mut Findings) -> u64 {
        let error = match self.files.content.read(digest) {
            Ok(content) => return content.len() as u64,
            Err(error) => error,
        };
        // Its images may have been removed meanwhile, or pulled with other manifests.
        let has_it = |image: &Image| self.documents(image).contains(digest);
        let Some(image) = self.describe_one(has_it) else {
            return 0;
        };
        let problem = format!("image {image}: {error}");
        if !fs::exists(self.files.content.path(digest)) {
            findings.add_unrepairable(format!("{problem}; {AGAIN}"));
            return 0;
        }
        // What cannot be read now, for want of descriptors for example, may be sound.
        if !matches!(error, whelk_image::Error::Invalid(_)) {
            findings.add_unrepairable(problem);
            return 0;
        }
        let (images, digest) = (self.clone(), digest.clone());
        findings.add(problem, move || done(images.files.set_blob_aside(&digest)?));
        0
    }

    fn verify_layer(
        self: &Arc<Self>,
        layer: &Digest,
        whether: &Deep<'_>,
        findings: &mut Findings,
    ) -> u64 {
        let snapshots = &self.files.snapshots;
        let damage = self.damage(layer, whether.deep, whether.goes_on);
        let Some(damage) = damage else {
            let size = || snapshots.size(layer).unwrap_or(0);
            return if whether.deep { size() } else { 0 };
        };
        // Its images may have been removed meanwhile.
        let Some(image) = self.describe_one(|image| image.layers().contains(&layer)) else {
            return 0;
        };
        let problem = format!("image {image}: layer {layer} {damage}");
        match damage {
            Damage::Stopped => {}
            Damage::Lacks(Lack::Layer) => {
                findings.add_unrepairable(format!("{problem}; {AGAIN}"));
            }
            // Its files are whole: containers can run.
            Damage::Lacks(Lack::Index) => findings.add_unrepairable(format!(
                "{problem}: the image cannot be saved or pushed; if it can be had again, remove it, and pull or load it"
            )),
            Damage::Lacks(Lack::Size) => {
                let (images, layer) = (self.clone(), layer.clone());
                findings.add(problem, move || {
                    images.files.snapshots.restore_size(&layer)?;
                    Ok("written again".into())
                });
            }
            Damage::Unreadable(_) => findings.add_unrepairable(problem),
            Damage::Lacks(Lack::Files | Lack::Image) | Damage::Content(_) => {
                self.layer_is_damaged(layer, problem, whether, findings);
            }
        }
        0
    }

    /// Adds the problem of a layer that can only be moved away.
    fn layer_is_damaged(
        self: &Arc<Self>,
        layer: &Digest,
        problem: String,
        whether: &Deep<'_>,
        findings: &mut Findings,
    ) {
        if let Some(container) = (whether.in_use)().get(layer) {
            findings.add_unrepairable(format!(
                "{problem}; stop container {container}, which has the layer mounted, so that it can be repaired"
            ));
            return;
        }
        let (images, layer, in_use) = (self.clone(), layer.clone(), whether.in_use.clone());
        let (deep, goes_on) = (whether.deep, whether.goes_on.clone());
        findings.add(problem, move || {
            let snapshots = &images.files.snapshots;
            let damaged = snapshots.identity(&layer)?;
            // The first look may be old, and what it has read a passing error.
            match images.damage(&layer, deep, &goes_on) {
                Some(Damage::Lacks(Lack::Files | Lack::Image) | Damage::Content(_)) => {}
                Some(damage) => return Err(Error::conflict(format!("now the layer {damage}"))),
                None => return Ok("it was replaced meanwhile".into()),
            }
            let user = || in_use().remove(&layer);
            done(images.files.set_layer_aside(&layer, &damaged, user)?)
        });
    }

    /// Returns what is wrong with a layer, with `deep` also with its content.
    fn damage(&self, layer: &Digest, deep: bool, goes_on: &GoesOn) -> Option<Damage> {
        let snapshots = &self.files.snapshots;
        if let Some(lack) = snapshots.lack(layer) {
            return Some(Damage::Lacks(lack));
        }
        let verified = if deep {
            snapshots.verify(layer, &**goes_on)
        } else {
            Ok(())
        };
        match verified {
            Ok(()) => None,
            Err(_) if !goes_on() => Some(Damage::Stopped),
            // It was removed meanwhile.
            Err(_) if !snapshots.has(layer) => Some(Damage::Lacks(Lack::Layer)),
            Err(error @ whelk_image::Error::Invalid(_)) => Some(Damage::Content(error)),
            Err(error) => Some(Damage::Unreadable(error)),
        }
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
            blobs: documents
                .chain(indexes)
                .chain(index.attached())
                .cloned()
                .collect(),
            layers: layers.cloned().collect(),
        }
    }
}

/// What to do about content that is lost.
const AGAIN: &str = "pull or load the image again";

#[cfg(test)]
mod tests {
    use whelk_image::archive::Import;
    use whelk_sys::Scratch;

    use super::*;
    use crate::store::RecordStore;

    /// Two images with the same layer, of which one is removed during the check.
    #[test]
    fn a_shared_layer_is_reported_for_the_image_that_is_left() {
        let root = Scratch::temporary("shared-layer").unwrap();
        let images = Images::open(
            whelk_image::Store::open(root.path()).unwrap(),
            Arc::new(RecordStore::open(root.path()).unwrap()),
            Arc::default(),
            &Default::default(),
        )
        .unwrap();
        // An archive without entries.
        let import = |label: &str| {
            let changes = [format!("LABEL a={label}")];
            images.import(&[0; 1024][..], Import::default(), &changes)
        };
        let mut ids = [import("1").unwrap(), import("2").unwrap()];
        ids.sort();
        let layer = images.get(&ids[0]).unwrap().config.rootfs.diff_ids[0].clone();
        let index = images.files.snapshots.path(&layer).join("split.zst");
        fs::remove_file(index).unwrap();
        let (in_use, goes_on): (InUse, GoesOn) = (Arc::new(BTreeMap::new), Arc::new(|| true));
        let mut problems = Vec::new();
        images.verify(false, &in_use, &goes_on, &mut |findings: Findings| {
            problems.extend(findings.problems());
            if images.count() == 2 {
                let removed = images.remove(ids[0].as_str(), true, &[], |_| Vec::new());
                removed.unwrap();
            }
            true
        });
        assert_eq!(problems.len(), 1, "{problems:?}");
        let expected = format!(
            "image {}: layer {layer} has lost the index of its archive",
            ids[1]
        );
        assert!(problems[0].starts_with(&expected), "{problems:?}");
        // Nobody wants to know more.
        let mut asked = 0;
        images.verify(false, &in_use, &goes_on, &mut |_: Findings| {
            asked += 1;
            false
        });
        assert_eq!(asked, 1);
    }
}
