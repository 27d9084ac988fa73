//! Inline caches: records in the configuration of an image, whose layers they refer to.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use whelk_dockerfile::convert::Image;
use whelk_image::Digest;

use super::config::{Chain, Config, Record, Top};
use super::records::{self, ExportedStep};
use crate::Builder;
use crate::error::{Error, Result};
use crate::request::Solved;

/// Maximum size of an inline cache in bytes: clients read only configurations of a limited size.
const MAX_INLINE: usize = 2 << 20;

/// The configuration of an image with a cache.
#[derive(Serialize)]
struct WithCache<'a> {
    #[serde(flatten)]
    image: &'a Image,
    #[serde(
        rename = "moby.buildkit.cache.v0",
        skip_serializing_if = "Option::is_none"
    )]
    cache: Option<String>,
}

/// Returns the records in the configuration of an image; `None` if there are none.
pub(super) fn records(config: &[u8]) -> Result<Option<Vec<Record>>> {
    #[derive(Deserialize)]
    struct Cached {
        #[serde(rename = "moby.buildkit.cache.v0")]
        cache: Option<String>,
    }
    let invalid = |error: String| Error::invalid(format!("inline cache of an image: {error}"));
    let cached: Cached =
        serde_json::from_slice(config).map_err(|error| invalid(error.to_string()))?;
    let Some(text) = cached.cache else {
        return Ok(None);
    };
    let bytes = STANDARD
        .decode(text)
        .map_err(|error| invalid(error.to_string()))?;
    Config::parse_inline(&bytes).map(Some)
}

impl Builder {
    /// Encodes the configuration of an image, with an inline cache if the build was asked for one. `layers` are those of the
    /// result, which may have been rewritten for the image.
    pub(crate) async fn image_config(
        self: &Arc<Self>,
        solved: &Solved,
        image: &Image,
        layers: &[Digest],
    ) -> Result<Vec<u8>> {
        let cache = match solved.made.has_inline_cache {
            false => None,
            true => {
                let progress = &solved.made.progress;
                let work = progress.begin("preparing layers for inline cache");
                let outcomes = self.outcomes(solved).await;
                let outcomes = outcomes.and_then(|outcomes| encode(outcomes, layers));
                Some(work.end(outcomes)?)
            }
        };
        serde_json::to_vec(&WithCache { image, cache })
            .map_err(|error| Error::internal(error.to_string()))
    }
}

/// Returns the inline cache of an image with these layers.
fn encode(mut outcomes: Vec<ExportedStep>, layers: &[Digest]) -> Result<String> {
    records::only_final(&mut outcomes, layers);
    // A step that the build did not need comes last: the same image has the same cache, and so the same id, however much of it was
    // cached.
    outcomes.sort_by_key(ExportedStep::order);
    let list = list(&outcomes, layers);
    let bytes = serde_json::to_vec(&list).map_err(|error| Error::internal(error.to_string()))?;
    if bytes.len() > MAX_INLINE {
        let text = format!("the inline cache has more than {MAX_INLINE} bytes: use another type");
        return Err(Error::invalid(text));
    }
    Ok(STANDARD.encode(bytes))
}

fn list(outcomes: &[ExportedStep], layers: &[Digest]) -> Vec<Record> {
    let mut list = Vec::new();
    let mut known = HashMap::new();
    for outcome in outcomes {
        let own: Vec<&Digest> = outcome.layers.iter().map(|(layer, _)| layer).collect();
        let is_prefix = own.len() <= layers.len() && own.iter().zip(layers).all(|(a, b)| *a == b);
        let positions = own
            .iter()
            .map(|layer| layers.iter().position(|one| one == *layer))
            .map(|found| i64::try_from(found?).ok());
        // The layers of another base image are not in this one.
        let Some(positions) = positions.collect::<Option<Vec<i64>>>() else {
            continue;
        };
        let result = || match is_prefix {
            true => Record {
                results: vec![Top {
                    layer: i64::try_from(own.len() - 1).unwrap_or(0),
                    created: None,
                }],
                ..Record::default()
            },
            false => Record {
                chains: vec![Chain {
                    layers: positions.clone(),
                    created: None,
                }],
                ..Record::default()
            },
        };
        records::add(&mut list, &mut known, outcome, result);
    }
    list
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;
    use crate::transfer::Place;
    use whelk_llb::Digest as Key;

    #[test]
    fn results_are_positions_in_the_image() {
        let id = |text: &str| Digest::of(text.as_bytes());
        let outcome = |key: &str, layers: &[&str]| ExportedStep {
            key: Some(Key::of(key.as_bytes())),
            canonical: None,
            is_foreign: false,
            place: Place::ONLY,
            layers: layers.iter().map(|text| (id(text), 1)).collect(),
            offer: None,
            name: String::new(),
        };
        let layers = [id("a"), id("b"), id("c")];
        let outcomes = vec![
            outcome("prefix", &["a", "b"]),
            outcome("linked", &["c"]),
            outcome("other", &["a", "x"]),
        ];
        let text = encode(outcomes.clone(), &layers).unwrap();
        let config = format!(r#"{{"os":"linux","moby.buildkit.cache.v0":"{text}"}}"#);
        let list = records(config.as_bytes()).unwrap().unwrap();
        assert_eq!(list.len(), 2);
        let results = list.iter().flat_map(|record| &record.results);
        let results: Vec<i64> = results.map(|result| result.layer).collect();
        assert_eq!(results, [1]);
        let chains = list.iter().flat_map(|record| &record.chains);
        let chains: Vec<i64> = chains.flat_map(|chain| chain.layers.clone()).collect();
        assert_eq!(chains, [2]);
        let reversed: Vec<ExportedStep> = outcomes.iter().rev().cloned().collect();
        assert_eq!(encode(reversed, &layers).unwrap(), text);
        assert_eq!(records(br#"{"os":"linux"}"#).unwrap(), None);
        for text in ["%", "W3t9", "e30="] {
            let config = format!(r#"{{"moby.buildkit.cache.v0":"{text}"}}"#);
            assert!(records(config.as_bytes()).is_err(), "{text}");
        }
    }
}
