//! The results of a build as records and layers of a cache.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use whelk_image::Digest as LayerDigest;
use whelk_image::descriptor::{Descriptor, LAYER};
use whelk_llb::Digest;

use super::config::{Annotations, CANONICAL, Config, Input, Layer, Link, Record, Top};
use super::imports::{Imports, Offer};
use crate::error::Result;
use crate::layers::Stack;
use crate::progress::Progress;
use crate::request::Solved;
use crate::{Builder, blocking};

/// What an export of the cache needs to know of a build.
#[derive(Debug, Default)]
pub(crate) struct ExportedSteps {
    /// The outputs of all operations.
    pub steps: Vec<Step>,
    /// The layers of base images.
    pub bases: HashSet<LayerDigest>,
    pub imports: Arc<Imports>,
    pub has_inline_cache: bool,
    pub progress: Progress,
}

/// Which output of its operation something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub output: usize,
    /// The number of outputs that the operation has.
    pub count: usize,
}

impl Place {
    /// The place of what is the only output.
    #[cfg(test)]
    pub const ONLY: Self = Self {
        output: 0,
        count: 1,
    };

    /// Returns the key that a cache has the output under: that of the operation, if there is no other output.
    pub(super) fn key(self, operation: &Digest) -> Digest {
        match self.count {
            1 => *operation,
            _ => {
                let output = (self.output as u64).to_le_bytes();
                Digest::of_parts([&b"output"[..], &output, operation.as_bytes()])
            }
        }
    }
}

/// An output of an operation of a build.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The key of the operation that was known before it was executed, unless it says something of the place of a client's directory.
    pub key: Option<Digest>,
    pub canonical: Option<Digest>,
    /// Whether the canonical key is what an imported cache says.
    pub is_foreign: bool,
    pub place: Place,
    /// `None` if the build did not need the result.
    pub stack: Option<Stack>,
    /// What the operation does, for the history of an image.
    pub name: String,
}

/// An output of a step. The keys are those of the step.
#[derive(Clone, Debug)]
pub(super) struct ExportedStep {
    pub key: Option<Digest>,
    pub canonical: Option<Digest>,
    /// Whether the canonical key is what an imported cache says. Its record has no result then.
    pub is_foreign: bool,
    pub place: Place,
    /// With when each was made; 0 for those of base images.
    pub layers: Vec<(LayerDigest, i64)>,
    /// Where the layers are that are not here.
    pub offer: Option<Offer>,
    pub name: String,
}

impl ExportedStep {
    /// Returns its place among the others: keys that are only named come behind those with results.
    pub fn order(&self) -> (bool, Option<Digest>, Option<Digest>, Place) {
        (self.is_foreign, self.key, self.canonical, self.place)
    }
}

impl Builder {
    /// Returns the results of a build, also those that the build did not need, as far as a cache has them. Their layers are
    /// held as long as the build's.
    pub(super) async fn outcomes(self: &Arc<Self>, solved: &Solved) -> Result<Vec<ExportedStep>> {
        let made = &solved.made;
        let mut outcomes = Vec::with_capacity(made.steps.len());
        let mut others = Vec::new();
        for step in &made.steps {
            let Some(stack) = &step.stack else {
                others.extend(step.key.map(|key| (key, step.place, step.name.clone())));
                continue;
            };
            let digests = stack.digests().await?;
            let times = stack.0.iter().map(|layer| layer.created);
            outcomes.push(ExportedStep {
                key: step.key,
                canonical: step.canonical,
                is_foreign: step.is_foreign,
                place: step.place,
                layers: digests.into_iter().zip(times).collect(),
                offer: None,
                name: step.name.clone(),
            });
        }
        let (builder, lease) = (self.clone(), solved.lease.clone());
        let imports = made.imports.clone();
        let found = blocking(move || {
            let uses = builder.cache.uses();
            let found = others.into_iter().filter_map(|(key, place, name)| {
                let needed = [place.output];
                if let Some(mut found) = builder.cache.find(&key, &needed, &lease, &uses) {
                    return Some(ExportedStep {
                        key: Some(key),
                        canonical: Some(found.canonical),
                        is_foreign: found.is_foreign,
                        place,
                        layers: found.outputs.swap_remove(place.output)?,
                        offer: None,
                        name,
                    });
                }
                let offer = imports.find(&key, place.count, &needed)?;
                let layers = offer.outputs.get(place.output)?.as_ref()?.iter();
                Some(ExportedStep {
                    key: Some(key),
                    canonical: Some(offer.canonical),
                    is_foreign: offer.canonical != offer.key,
                    place,
                    layers: layers
                        .map(|one| (one.diff_id.clone(), one.created.max(1)))
                        .collect(),
                    offer: Some(offer),
                    name,
                })
            });
            Ok(found.collect::<Vec<_>>())
        });
        outcomes.extend(found.await?);
        for (layer, time) in outcomes.iter_mut().flat_map(|one| &mut one.layers) {
            if made.bases.contains(layer) {
                *time = 0;
            }
        }
        outcomes.retain(|one| !one.layers.is_empty());
        Ok(outcomes)
    }

    /// Returns what has made the layers of a build's results, as far as that is known.
    pub(crate) async fn makers(
        self: &Arc<Self>,
        solved: &Solved,
    ) -> Result<HashMap<LayerDigest, String>> {
        let mut outcomes = self.outcomes(solved).await?;
        // Other results may end with the same layer.
        outcomes.sort_by_key(|one| one.layers.len());
        let mut found = HashMap::new();
        for ExportedStep { layers, name, .. } in outcomes {
            if let Some((layer, _)) = layers.into_iter().next_back() {
                found.entry(layer).or_insert(name);
            }
        }
        Ok(found)
    }
}

/// Leaves only results that consist of layers of the final one, and of base images.
pub(super) fn only_final(outcomes: &mut Vec<ExportedStep>, layers: &[LayerDigest]) {
    let kept: HashSet<&LayerDigest> = layers.iter().collect();
    outcomes.retain(|one| {
        let mut layers = one.layers.iter();
        layers.all(|(layer, time)| *time == 0 || kept.contains(layer))
    });
}

/// Makes a cache of results. `blob` returns the blob of a layer; without one, the results with that layer are left out. Layers
/// of base images have none, and none is needed.
pub(super) fn config(
    outcomes: &[ExportedStep],
    blob: impl Fn(&LayerDigest) -> Option<Descriptor>,
) -> Config {
    let mut config = Config::default();
    // The same files may be those of a stage and those of a copy, which have other times.
    let mut layers: HashMap<(i64, &LayerDigest, i64), i64> = HashMap::new();
    let mut known: HashMap<Digest, i64> = HashMap::new();
    for outcome in outcomes {
        let tops = outcome.layers.iter().try_fold(-1, |parent, (layer, time)| {
            if let Some(position) = layers.get(&(parent, layer, *time)) {
                return Some(*position);
            }
            let descriptor = match time {
                0 => Descriptor::new(LAYER, layer.clone(), 0),
                _ => blob(layer)?,
            };
            let position = position(config.layers.len());
            config.layers.push(Layer {
                blob: descriptor.digest.to_string(),
                parent,
                annotations: Some(Annotations {
                    media_type: descriptor.media_type,
                    diff_id: layer.to_string(),
                    size: descriptor.size,
                    created: text(*time),
                }),
            });
            layers.insert((parent, layer, *time), position);
            Some(position)
        });
        if let Some(top) = tops {
            let result = || Record {
                results: vec![Top {
                    layer: top,
                    created: outcome.layers.last().and_then(|(_, time)| text(*time)),
                }],
                ..Record::default()
            };
            add(&mut config.records, &mut known, outcome, result);
        }
    }
    config
}

/// Adds the records of an output: that of the canonical key, and that of the other one, which refers to it. Those of one of
/// several outputs have keys of their own, and refer to the record of the step's canonical key, which has no result.
pub(super) fn add(
    records: &mut Vec<Record>,
    known: &mut HashMap<Digest, i64>,
    outcome: &ExportedStep,
    result: impl Fn() -> Record,
) {
    let mut record = |key: Digest, inputs: Vec<Input>, result: Record| {
        *known.entry(key).or_insert_with(|| {
            records.push(Record {
                digest: key.to_string(),
                inputs,
                ..result
            });
            position(records.len() - 1)
        })
    };
    let is_named_only = outcome.is_foreign && outcome.key != outcome.canonical;
    if outcome.place.count != 1 {
        let canonical = outcome
            .canonical
            .map(|key| record(key, Vec::new(), Record::default()));
        let inputs = canonical.map(|link| {
            let selector = CANONICAL.to_owned();
            Input(vec![Link { selector, link }])
        });
        let proven = outcome.canonical.filter(|_| !is_named_only);
        for key in proven.iter().chain(&outcome.key) {
            record(
                outcome.place.key(key),
                inputs.iter().cloned().collect(),
                result(),
            );
        }
        return;
    }
    let canonical = outcome.canonical.map(|key| {
        let result = match is_named_only {
            true => Record::default(),
            false => result(),
        };
        (key, record(key, Vec::new(), result))
    });
    match (outcome.key, canonical) {
        (Some(key), Some((canonical, link))) if key != canonical => {
            let selector = CANONICAL.to_owned();
            record(key, vec![Input(vec![Link { selector, link }])], result());
        }
        (Some(key), None) => drop(record(key, Vec::new(), result())),
        _ => {}
    }
}

fn position(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

fn text(nanoseconds: i64) -> Option<String> {
    if nanoseconds == 0 {
        return None;
    }
    let time = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds));
    time.ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> LayerDigest {
        LayerDigest::of(text.as_bytes())
    }

    fn outcome(key: &str, canonical: &str, layers: &[(&str, i64)]) -> ExportedStep {
        let digest = |text: &str| (!text.is_empty()).then(|| Digest::of(text.as_bytes()));
        ExportedStep {
            key: digest(key),
            canonical: digest(canonical),
            is_foreign: false,
            place: Place::ONLY,
            layers: layers
                .iter()
                .map(|(text, time)| (id(text), *time))
                .collect(),
            offer: None,
            name: String::new(),
        }
    }

    fn blob(layer: &LayerDigest) -> Option<Descriptor> {
        (*layer != id("lost"))
            .then(|| Descriptor::new("x", LayerDigest::of(layer.as_str().as_bytes()), 7))
    }

    #[test]
    fn stacks_share_their_lower_layers() {
        let base = ("base", 0);
        let outcomes = [
            outcome("k1", "k1", &[base, ("a", 1)]),
            outcome("k2", "c2", &[base, ("a", 1), ("b", 2)]),
            outcome("k3", "", &[("b", 2)]),
            outcome("k4", "k4", &[base, ("lost", 1), ("b", 2)]),
        ];
        let config = config(&outcomes, blob);
        let parents: Vec<i64> = config.layers.iter().map(|layer| layer.parent).collect();
        assert_eq!(parents, [-1, 0, 1, -1]);
        let records: Vec<(String, i64)> = config
            .records
            .iter()
            .map(|record| (record.digest.clone(), record.results[0].layer))
            .collect();
        let of = |text: &str, layer| (Digest::of(text.as_bytes()).to_string(), layer);
        assert_eq!(
            records,
            [of("k1", 1), of("c2", 2), of("k2", 2), of("k3", 3)]
        );
        let link = &config.records[2].inputs[0].0[0];
        assert_eq!((link.selector.as_str(), link.link), (CANONICAL, 1));
        // That of the base image has no time, by which it is known.
        let created = |at: usize| {
            config.layers[at]
                .annotations
                .as_ref()
                .map(|one| one.created.is_some())
        };
        assert_eq!((created(0), created(1)), (Some(false), Some(true)));
    }

    #[test]
    fn outputs_have_keys_of_their_own() {
        let of = |output: usize, canonical: &str, is_foreign| ExportedStep {
            is_foreign,
            place: Place { output, count: 2 },
            ..outcome("k", canonical, &[("a", 1)])
        };
        let digest = |text: &str| Digest::of(text.as_bytes());
        let key = |output, text: &str| Place { output, count: 2 }.key(&digest(text)).to_string();
        let records = |outcomes: &[ExportedStep]| -> Vec<(String, bool, Option<i64>)> {
            let records = config(outcomes, blob).records.into_iter();
            let link = |record: &Record| record.inputs.first().map(|input| input.0[0].link);
            records
                .map(|record| {
                    let link = link(&record);
                    (record.digest, !record.results.is_empty(), link)
                })
                .collect()
        };
        let named = (digest("c").to_string(), false, None);
        assert_eq!(
            records(&[of(0, "c", false), of(1, "c", false)]),
            [
                named.clone(),
                (key(0, "c"), true, Some(0)),
                (key(0, "k"), true, Some(0)),
                (key(1, "c"), true, Some(0)),
                (key(1, "k"), true, Some(0)),
            ]
        );
        // What an imported cache says of the canonical key is passed on, and proves nothing.
        let foreign = records(&[of(1, "c", true)]);
        assert_eq!(foreign, [named, (key(1, "k"), true, Some(0))]);
        assert_eq!(records(&[of(1, "", false)]), [(key(1, "k"), true, None)]);
        assert_ne!(key(0, "k"), key(1, "k"));
        assert_eq!(Place::ONLY.key(&digest("k")), digest("k"));
    }

    #[test]
    fn a_smaller_cache_has_only_what_the_result_consists_of() {
        let mut outcomes = vec![
            outcome("k1", "k1", &[("base", 0), ("a", 1)]),
            outcome("k2", "k2", &[("other", 0), ("stage", 1)]),
            outcome("k3", "k3", &[("other", 0)]),
        ];
        only_final(&mut outcomes, &[id("base"), id("a")]);
        let left: Vec<Option<Digest>> = outcomes.iter().map(|one| one.key).collect();
        assert_eq!(left, [Some(Digest::of(b"k1")), Some(Digest::of(b"k3"))]);
    }
}
