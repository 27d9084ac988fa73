//! Export of results as images: of the engine, and packed for archives.

use std::collections::HashMap;
use std::sync::Arc;

use whelk_dockerfile::convert::{History, Image};
use whelk_engine::images::BuiltImage;
use whelk_image::archive::{Packed, Packing, describe};
use whelk_image::descriptor::Descriptor;
use whelk_image::{Digest, Lease, Reference};

use crate::error::Result;
use crate::request::Solved;
use crate::{Builder, blocking};

/// An image made of a result: a configuration, and layers that stay as long as this exists.
#[derive(Clone, Debug)]
pub struct Finished {
    pub config: Vec<u8>,
    pub(crate) lease: Arc<Lease>,
}

/// An image that was recorded with its manifest.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// Of the image.
    pub id: Digest,
    /// Refers to the manifest.
    pub descriptor: Descriptor,
    pub bytes: Vec<u8>,
}

impl Builder {
    /// Makes an image of a result. `epoch` is the time of the image, in seconds since 1970, if there is one; with
    /// `must_rewrite_times`, no file of the layers that were built is newer.
    ///
    /// # Errors
    /// Returns an error if a layer cannot be stored.
    pub async fn finish(
        self: &Arc<Self>,
        solved: &Solved,
        mut image: Image,
        epoch: Option<i64>,
        must_rewrite_times: bool,
    ) -> Result<Finished> {
        let built = solved.stack.digests().await?;
        let mut layers = built.clone();
        // So that the next build finds the results, even if the engine is killed right after this one.
        self.recorded(&solved.keys).await;
        let times: Vec<i64> = solved.stack.0.iter().map(|layer| layer.created).collect();
        if let Some(epoch) = epoch.filter(|_| must_rewrite_times) {
            layers = self.retimed(solved, layers, &times, epoch).await?;
        }
        let described = image.history.iter().filter(|entry| !entry.empty_layer);
        let makers = match described.count() < layers.len() {
            true => self.makers(solved).await?,
            false => HashMap::new(),
        };
        let makers = built.iter().map(|layer| makers.get(layer).cloned());
        let makers: Vec<String> = makers.map(Option::unwrap_or_default).collect();
        complete(&mut image, &layers, &times, &makers, epoch);
        let config = self.image_config(solved, &image, &built).await?;
        Ok(Finished {
            config,
            lease: solved.lease.clone(),
        })
    }

    /// Returns the layers with limited times. Those of the base image, which have no time of their own here, stay.
    async fn retimed(
        self: &Arc<Self>,
        solved: &Solved,
        layers: Vec<Digest>,
        times: &[i64],
        epoch: i64,
    ) -> Result<Vec<Digest>> {
        let (builder, lease, times) = (self.clone(), solved.lease.clone(), times.to_vec());
        blocking(move || {
            let layers = layers.into_iter().zip(times);
            let layers = layers.map(|(layer, time)| {
                if time == 0 {
                    return Ok(layer);
                }
                let snapshots = &builder.store().snapshots;
                Ok(snapshots.retime(&lease, &layer, epoch)?.diff_id)
            });
            layers.collect()
        })
        .await
    }

    /// Records an image with these names. Returns its id.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, or if the disk fails.
    pub async fn store_image(
        self: &Arc<Self>,
        finished: &Finished,
        names: Vec<Reference>,
    ) -> Result<Digest> {
        let (builder, finished) = (self.clone(), finished.clone());
        blocking(move || {
            let built = BuiltImage {
                config: finished.config,
                manifest: None,
                names,
            };
            builder.add_image(&finished.lease, built)
        })
        .await
    }

    /// Records an image with its annotated manifest, which the names stand for. The manifest lists the layers as a push compresses
    /// them.
    ///
    /// # Errors
    /// As [`Builder::store_image`]; also if a layer was changed.
    pub async fn store_annotated(
        self: &Arc<Self>,
        finished: &Finished,
        packing: Packing,
        names: Vec<Reference>,
    ) -> Result<StoredManifest> {
        let (builder, finished) = (self.clone(), finished.clone());
        blocking(move || {
            let (store, lease) = (builder.store(), &finished.lease);
            let described = describe(store, lease, &finished.config, &packing.annotations)?;
            let mut descriptor = described.descriptor;
            descriptor.annotations = packing.entry_annotations;
            let built = BuiltImage {
                config: finished.config,
                manifest: Some(described.bytes.clone()),
                names,
            };
            Ok(StoredManifest {
                id: builder.add_image(&finished.lease, built)?,
                descriptor,
                bytes: described.bytes,
            })
        })
        .await
    }

    pub(crate) fn add_image(&self, lease: &Lease, built: BuiltImage) -> Result<Digest> {
        let newest = self.cache.newest();
        let added = self.engine.images.add_built(lease, built)?;
        if added.is_flushed {
            self.cache.flushed(newest);
        }
        Ok(added.id)
    }

    /// Makes an image of a result, and records it with these names. Returns its id.
    ///
    /// # Errors
    /// As [`Builder::finish`] and [`Builder::store_image`].
    pub async fn export(
        self: &Arc<Self>,
        solved: &Solved,
        image: Image,
        epoch: Option<i64>,
        names: Vec<Reference>,
    ) -> Result<Digest> {
        let finished = self.finish(solved, image, epoch, false).await?;
        self.store_image(&finished, names).await
    }

    /// Packs an image for an archive or a registry. `progress` is called with the digest of each layer that is packed.
    ///
    /// # Errors
    /// Returns an error if a layer was changed, or if the disk is full.
    pub async fn pack(
        self: &Arc<Self>,
        finished: &Finished,
        packing: Packing,
        progress: impl FnMut(&Digest) + Send + 'static,
    ) -> Result<Packed> {
        let (builder, finished) = (self.clone(), finished.clone());
        blocking(move || {
            let (store, lease) = (builder.store(), &finished.lease);
            let packed = Packed::new(store, lease, &finished.config, &packing, progress);
            Ok(packed?)
        })
        .await
    }
}

/// Adds the layers and the times to a configuration. `times` are those of the layers, in nanoseconds since the epoch; 0
/// for those of the base image. So the same steps out of the cache give the same image. `makers` say what has made the layers.
fn complete(
    image: &mut Image,
    layers: &[Digest],
    times: &[i64],
    makers: &[String],
    epoch: Option<i64>,
) {
    image.rootfs.kind = "layers".into();
    image.rootfs.diff_ids = layers.iter().map(Digest::to_string).collect();
    let mut next = 0;
    for entry in image.history.iter_mut().filter(|entry| !entry.empty_layer) {
        match times.get(next) {
            Some(time) if entry.created.is_none() && *time != 0 => {
                entry.created = Some(rfc3339(*time));
            }
            Some(_) => {}
            // There are more entries than layers: this step has none.
            None => entry.empty_layer = true,
        }
        next += 1;
    }
    for (at, time) in times.iter().enumerate().skip(next) {
        let maker = makers.get(at).filter(|maker| !maker.is_empty());
        image.history.push(History {
            created: (*time != 0).then(|| rfc3339(*time)),
            created_by: maker.map_or("created by buildkit", String::as_str).into(),
            comment: "buildkit.exporter.image.v0".into(),
            ..History::default()
        });
    }
    // Entries without a time get that of the first new layer, or of the layer before them, as with BuildKit.
    let first_missing = image.history.iter().position(|one| one.created.is_none());
    if let Some(first) = first_missing {
        let after = image.history[first..].iter();
        let mut after = after.filter_map(|one| one.created.clone());
        let before = image.history[..first].iter().rev();
        let mut before = before.filter_map(|one| one.created.clone());
        let mut current = after.next().or_else(|| before.next());
        for entry in &mut image.history[first..] {
            match &entry.created {
                Some(time) => current = Some(time.clone()),
                None => entry.created.clone_from(&current),
            }
        }
    }
    if let Some(seconds) = epoch {
        // Nanoseconds would end with 2262.
        let epoch = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
        let of_history = image.history.iter_mut().map(|entry| &mut entry.created);
        for created in of_history.chain([&mut image.created]) {
            let time = created.as_deref().and_then(|text| text.parse().ok());
            if time.is_none_or(|time: jiff::Timestamp| time > epoch) {
                *created = Some(epoch.to_string());
            }
        }
    }
    // A frontend may have set it.
    if image.created.is_none() {
        let mut times = image.history.iter().rev();
        image.created = times.find_map(|one| one.created.clone());
    }
}

fn rfc3339(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map(|time| time.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entries: &[(&str, bool)]) -> Image {
        let history = entries.iter().map(|(created, empty_layer)| History {
            created: (!created.is_empty()).then(|| (*created).to_owned()),
            empty_layer: *empty_layer,
            ..History::default()
        });
        Image {
            history: history.collect(),
            ..Image::default()
        }
    }

    fn check(entries: &[(&str, bool)], times: &[i64], expected: &[(&str, bool)]) {
        let layers: Vec<Digest> = times
            .iter()
            .map(|time| Digest::of(time.to_string().as_bytes()))
            .collect();
        let mut image = image(entries);
        complete(&mut image, &layers, times, &[], None);
        let history = image.history.iter();
        let found: Vec<(&str, bool)> = history
            .map(|entry| {
                (
                    entry.created.as_deref().unwrap_or_default(),
                    entry.empty_layer,
                )
            })
            .collect();
        assert_eq!(found, expected);
        assert_eq!(image.created.as_deref(), expected.last().map(|last| last.0));
    }

    const BASE: &str = "2020-01-01T00:00:00Z";
    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn the_same_layers_have_the_same_times() {
        let (one, two) = ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z");
        check(
            &[
                (BASE, false),
                ("", true),
                ("", false),
                ("", true),
                ("", false),
            ],
            &[0, SECOND, 2 * SECOND],
            &[
                (BASE, false),
                (one, true),
                (one, false),
                (one, true),
                (two, false),
            ],
        );
        check(
            &[(BASE, false), ("", true)],
            &[0],
            &[(BASE, false), (BASE, true)],
        );
        // Steps whose layers are missing, and layers without a step.
        check(
            &[("", false), ("", false)],
            &[SECOND],
            &[(one, false), (one, true)],
        );
        check(&[], &[SECOND], &[(one, false)]);
    }

    #[test]
    fn the_time_that_a_frontend_has_set_stays() {
        let completed = |epoch: Option<i64>| {
            let mut image = image(&[("", false)]);
            image.created = Some(BASE.to_owned());
            let layer = Digest::of(b"layer");
            complete(&mut image, &[layer], &[2_000_000_000 * SECOND], &[], epoch);
            image.created.unwrap_or_default()
        };
        assert_eq!(completed(None), BASE);
        assert_eq!(completed(Some(1_900_000_000)), BASE);
        assert_eq!(completed(Some(1)), "1970-01-01T00:00:01Z");
    }

    #[test]
    fn the_epoch_may_be_in_the_far_future() {
        let mut image = image(&[("", true)]);
        complete(&mut image, &[], &[], &[], Some(20_000_000_000));
        let expected = Some("2603-10-11T11:33:20Z");
        assert_eq!(image.created.as_deref(), expected);
        assert_eq!(image.history[0].created.as_deref(), expected);
    }
}
