//! Deserializes JSON lists with a maximum number of elements. An element of a few bytes of text can
//! take a hundred bytes of memory.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// Maximum number of layers: the limit of overlayfs.
pub(crate) const MAX_LAYERS: usize = 500;
/// Maximum number of history entries of an image, including those without a layer.
pub(crate) const MAX_HISTORY: usize = 10_000;
/// Maximum number of images, or of image names, in one archive.
pub(crate) const MAX_NAMES: usize = 10_000;

/// Deserializes a list of at most `N` elements; `null` gives an empty list.
///
/// # Errors
/// Returns an error if the list is longer, if an element is invalid, or if it is no list.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Option::<AtMost<T, N>>::deserialize(deserializer)
        .map(|list| list.map_or_else(Vec::new, |list| list.0))
}

/// Deserializes `null` as the default value.
pub(crate) fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Words, or one as a string, as old images have them; null is none.
pub(crate) fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Several(words)) => words,
    })
}

/// A list of at most `N` elements.
pub(crate) struct AtMost<T, const N: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for AtMost<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T, const N: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for ListVisitor<T, N> {
    type Value = AtMost<T, N>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a list of at most {N} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() == N {
                return Err(A::Error::custom(format!(
                    "a list of more than {N} elements"
                )));
            }
            list.push(element);
        }
        Ok(AtMost(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_lists_that_are_too_long() {
        let read = |text: &str| serde_json::from_str::<AtMost<u8, 3>>(text).map(|list| list.0);
        assert_eq!(read("[1,2,3]").unwrap(), [1, 2, 3]);
        for (text, expected) in [
            ("[1,2,3,4]", "a list of more than 3 elements"),
            (
                "{}",
                "invalid type: map, expected a list of at most 3 elements",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
