//! Export of results as images of the engine.

use std::sync::Arc;

use whelk_dockerfile::convert::{History, Image};
use whelk_engine::events::now;
use whelk_engine::images::BuiltImage;
use whelk_image::{Digest, Reference};

use crate::error::{Error, Result};
use crate::request::Solved;
use crate::{Builder, blocking};

impl Builder {
    /// Records a result as an image with these names. `epoch` is the time of the image, in seconds since 1970, if
    /// there is one. Returns its id.
    ///
    /// # Errors
    /// Returns an error if a layer cannot be stored, or if the configuration is invalid.
    pub async fn export(
        self: &Arc<Self>,
        solved: &Solved,
        mut image: Image,
        epoch: Option<i64>,
        names: Vec<Reference>,
    ) -> Result<Digest> {
        let layers = solved.stack.digests().await?;
        // The next build may begin as soon as this one has ended, also after a kill.
        self.recorded(&solved.keys).await;
        let times: Vec<i64> = solved.stack.0.iter().map(|layer| layer.created).collect();
        complete(&mut image, &layers, &times, epoch);
        let config =
            serde_json::to_vec(&image).map_err(|error| Error::internal(error.to_string()))?;
        let (builder, lease) = (self.clone(), solved.lease.clone());
        blocking(move || {
            let begun = now();
            let built = BuiltImage { config, names };
            let (id, _) = builder.engine.images.add_built(&lease, built)?;
            builder.cache.flushed(begun);
            Ok(id)
        })
        .await
    }
}

/// Adds the layers and the times to a configuration. `times` are those of the layers, in nanoseconds since the epoch; 0
/// for those of the base image. So the same steps out of the cache give the same image.
fn complete(image: &mut Image, layers: &[Digest], times: &[i64], epoch: Option<i64>) {
    image.rootfs.kind = "layers".into();
    image.rootfs.diff_ids = layers.iter().map(Digest::to_string).collect();
    let mut next = 0;
    for entry in image.history.iter_mut().filter(|entry| !entry.empty_layer) {
        match times.get(next) {
            Some(time) if entry.created.is_none() && *time != 0 => {
                entry.created = Some(rfc3339(*time));
            }
            Some(_) => {}
            // More entries than layers: the steps had none.
            None => entry.empty_layer = true,
        }
        next += 1;
    }
    for time in times.iter().skip(next) {
        image.history.push(History {
            created: (*time != 0).then(|| rfc3339(*time)),
            created_by: "created by an operation that is not known".into(),
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
    image.created = match epoch {
        Some(seconds) => Some(rfc3339(seconds.saturating_mul(1_000_000_000))),
        None => image
            .history
            .iter()
            .rev()
            .find_map(|one| one.created.clone()),
    };
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
        complete(&mut image, &layers, times, None);
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
}
