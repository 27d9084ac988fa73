//! Listing images, and the disk usage of their layers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use whelk_image::{Digest, Reference};

use super::{Image, Images};
use crate::error::{Error, Result};
use crate::filters::Filters;

/// The filters of a list request.
pub const FILTERS: &[&str] = &[
    "before",
    "dangling",
    "label",
    "label!",
    "reference",
    "since",
    "until",
];

/// An image as lists show it, with those of its names that match.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    pub image: Arc<Image>,
    pub names: Vec<String>,
}

impl Images {
    /// Returns all images that match, the newest first.
    ///
    /// # Errors
    /// Returns an error if a filter value is invalid.
    pub fn list(&self, filters: &Filters) -> Result<Vec<ImageSummary>> {
        let bound = |key: &str| -> Result<Vec<Option<jiff::Timestamp>>> {
            filters
                .get(key)
                .into_iter()
                .flatten()
                .map(|name| self.find(name).map(|image| image.created()))
                .collect()
        };
        let until = until(filters)?;
        let (before, since, dangling) =
            (bound("before")?, bound("since")?, filters.flag("dangling")?);
        let patterns: Vec<&String> = filters.get("reference").into_iter().flatten().collect();
        let index = self.read();
        let mut names: BTreeMap<&Digest, Vec<Reference>> = BTreeMap::new();
        for (name, id) in &index.tags {
            names
                .entry(id)
                .or_default()
                .extend(name.parse::<Reference>());
        }
        let mut listed = Vec::new();
        for image in index.by_id.values() {
            let all = names.get(&image.id).map_or(&[][..], Vec::as_slice);
            let created = image.created();
            let in_time = until.is_none_or(|until| image.created_before(until))
                && before.iter().all(|bound| {
                    bound.is_none_or(|bound| created.is_some_and(|created| created < bound))
                })
                && since.iter().all(|bound| {
                    bound.is_none_or(|bound| created.is_some_and(|created| created > bound))
                });
            if !in_time
                || dangling.is_some_and(|dangling| all.is_empty() != dangling)
                || !filters.labels(&image.config.config.labels)
            {
                continue;
            }
            let mut matching = Vec::new();
            for name in all {
                if patterns.is_empty() || matches_any(&patterns, name)? {
                    matching.push(name.familiar());
                }
            }
            if patterns.is_empty() || !matching.is_empty() {
                listed.push(ImageSummary {
                    image: image.clone(),
                    names: matching,
                });
            }
        }
        listed.sort_by_key(|one| (std::cmp::Reverse(one.image.created()), one.image.id.clone()));
        Ok(listed)
    }

    /// Returns the ids of an image and of all images that have further layers on top of its layers.
    /// An image with the same layers is not included.
    pub fn built_on(&self, name: &str) -> Vec<String> {
        let Ok(image) = self.find(name) else {
            return Vec::new();
        };
        let layers = &image.config.rootfs.diff_ids;
        let is_on_top = |other: &&Arc<Image>| {
            let others = &other.config.rootfs.diff_ids;
            other.id == image.id
                || !layers.is_empty() && others.len() > layers.len() && others.starts_with(layers)
        };
        self.read()
            .by_id
            .values()
            .filter(is_on_top)
            .map(|other| other.id.to_string())
            .collect()
    }

    /// Returns the total size of all layers, each counted once, and for each image the size of its
    /// layers that other images share, in bytes.
    pub fn layer_usage(&self) -> Result<(u64, BTreeMap<Digest, u64>)> {
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        let mut users: BTreeMap<&Digest, usize> = BTreeMap::new();
        for image in &images {
            image
                .layers()
                .into_iter()
                .for_each(|layer| *users.entry(layer).or_default() += 1);
        }
        let mut sizes = BTreeMap::new();
        for layer in users.keys() {
            sizes.insert(*layer, self.files.layer_size(layer)?);
        }
        let shared = images.iter().map(|image| {
            let shared = image
                .layers()
                .into_iter()
                .filter(|layer| users[layer] > 1)
                .map(|layer| sizes[layer])
                .sum();
            (image.id.clone(), shared)
        });
        Ok((sizes.values().sum(), shared.collect()))
    }
}

impl Image {
    /// Returns the creation time in its configuration.
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.config
            .created
            .as_deref()
            .and_then(|text| text.parse().ok())
    }

    /// Returns whether the image was created before `time`. An image without a creation time counts
    /// as older than any other.
    pub(super) fn created_before(&self, time: jiff::Timestamp) -> bool {
        self.config.created.is_none() || self.created().is_some_and(|created| created < time)
    }

    /// Returns its distinct layers.
    pub(super) fn layers(&self) -> BTreeSet<&Digest> {
        self.config.rootfs.diff_ids.iter().collect()
    }
}

/// Returns the `until` filter.
pub(super) fn until(filters: &Filters) -> Result<Option<jiff::Timestamp>> {
    Ok(filters
        .until()?
        .and_then(|nanoseconds| jiff::Timestamp::from_nanosecond(nanoseconds.into()).ok()))
}

/// Returns whether one of the patterns matches a name, with or without its tag.
fn matches_any(patterns: &[&String], name: &Reference) -> Result<bool> {
    let (full, bare) = (name.familiar(), name.familiar_name());
    for pattern in patterns {
        if matches(pattern, &full)? || matches(pattern, &bare)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Matches like Go's `path.Match`: `*` and `?` do not match a slash, `[a-z]` and `[^a-z]` match one
/// character, and `\` escapes the next character. Takes time proportional to the product of both
/// lengths, whatever the pattern.
///
/// # Errors
/// Returns an error if the pattern is malformed.
fn matches(pattern: &str, text: &str) -> Result<bool> {
    let tokens = tokens(pattern)?;
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut read) = (0, 0);
    // The index of the last star's token, and the end of the text it has matched. On a mismatch the
    // star matches one character more.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match (tokens.get(at), text.get(read)) {
            (None, None) => return Ok(true),
            (Some(Token::Star), _) => {
                star = Some((at, read));
                at += 1;
                continue;
            }
            (Some(token), Some(letter)) if token.matches(*letter) => {}
            _ => {
                let Some((after, taken)) =
                    star.filter(|(_, taken)| text.get(*taken).is_some_and(|letter| *letter != '/'))
                else {
                    return Ok(false);
                };
                star = Some((after, taken + 1));
                (at, read) = (after + 1, taken + 1);
                continue;
            }
        }
        at += 1;
        read += 1;
    }
}

enum Token {
    Star,
    Any,
    Letter(char),
    /// The ranges, and whether the class is negated.
    Class(Vec<(char, char)>, bool),
}

impl Token {
    fn matches(&self, letter: char) -> bool {
        match self {
            Self::Star => false,
            Self::Any => letter != '/',
            Self::Letter(wanted) => *wanted == letter,
            Self::Class(ranges, negated) => {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&letter))
                    != *negated
            }
        }
    }
}

/// Parses a pattern.
fn tokens(pattern: &str) -> Result<Vec<Token>> {
    let bad = || Error::invalid("syntax error in pattern");
    let mut letters = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(letter) = letters.next() {
        tokens.push(match letter {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Letter(letters.next().ok_or_else(bad)?),
            '[' => {
                let negated = letters.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || letters.next_if_eq(&']').is_none() {
                    let mut bound = || match letters.next() {
                        Some('\\') => letters.next().ok_or_else(bad),
                        None | Some('-' | ']') => Err(bad()),
                        Some(letter) => Ok(letter),
                    };
                    let first = bound()?;
                    let last = if letters.next_if_eq(&'-').is_some() {
                        match letters.next() {
                            Some('\\') => letters.next().ok_or_else(bad)?,
                            None | Some('-' | ']') => return Err(bad()),
                            Some(letter) => letter,
                        }
                    } else {
                        first
                    };
                    ranges.push((first, last));
                }
                Token::Class(ranges, negated)
            }
            letter => Token::Letter(letter),
        });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_references_with_and_without_tag() {
        for (pattern, name, expected) in [
            ("busybox", "busybox:latest", true),
            ("busy*", "busybox:1", true),
            ("*:latest", "a:latest", true),
            ("*", "a/b:1", false),
            ("*/*", "a/b:1", true),
            ("x", "y:1", false),
            ("a*c*e", "abcde:1", true),
            ("a*c*e", "ab/cde:1", false),
            ("*/b?", "a/bc:1", true),
            ("a?", "a:1", false),
            ("b_f", "b_f:1", true),
            ("a[0-9b]", "a7:x", true),
            ("a[^0-9]", "a7:x", false),
            ("a\\*", "ab:1", false),
        ] {
            let name: Reference = name.parse().unwrap();
            assert_eq!(
                matches_any(&[&pattern.to_owned()], &name).unwrap(),
                expected,
                "{pattern} {name}"
            );
        }
        for bad in ["[", "[]", "[a", "[-]", "a\\", "[a-]"] {
            assert_eq!(
                matches(bad, "a").unwrap_err().to_string(),
                "syntax error in pattern",
                "{bad}"
            );
        }
        // Without exponential backtracking.
        assert!(!matches(&("*a".repeat(30) + "b"), &"a".repeat(200)).unwrap());
    }
}
