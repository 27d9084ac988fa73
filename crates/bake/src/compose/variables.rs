//! Variables of a project, and of those around it.

use std::collections::BTreeMap;

/// Variables by their names. Those around them come first; they are not copied, however deep projects include each other.
#[derive(Debug)]
pub(crate) struct Variables<'a> {
    own: BTreeMap<String, String>,
    around: Option<&'a Variables<'a>>,
}

impl<'a> Variables<'a> {
    pub fn new(own: BTreeMap<String, String>) -> Self {
        Self { own, around: None }
    }

    /// Returns these variables with further ones, which replace none.
    pub fn with(&'a self, own: BTreeMap<String, String>) -> Self {
        Self {
            own,
            around: Some(self),
        }
    }

    pub fn get(&self, name: &str) -> Option<&String> {
        let around = self.around.and_then(|around| around.get(name));
        around.or_else(|| self.own.get(name))
    }

    /// Sets a variable that none around has.
    pub fn set(&mut self, name: &str, value: String) {
        self.own.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_around_come_first() {
        let map = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let mut outer = Variables::new(map(&[("A", "1")]));
        outer.set("B", "2".into());
        let inner = outer.with(map(&[("A", "3"), ("C", "4")]));
        let found = ["A", "B", "C", "D"].map(|name| inner.get(name).map(String::as_str));
        assert_eq!(found, [Some("1"), Some("2"), Some("4"), None]);
    }
}
