//! Places of values in documents, as errors tell them: `services.NAME.build`.

use std::fmt;

/// A place. Its text is made for errors only: names may be long, and each has many values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    above: Option<&'a Place<'a>>,
    name: &'a str,
}

impl<'a> Place<'a> {
    pub fn new(name: &'a str) -> Self {
        Self { above: None, name }
    }

    pub fn below(&'a self, name: &'a str) -> Self {
        Self {
            above: Some(self),
            name,
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = self.above {
            write!(formatter, "{above}.")?;
        }
        formatter.write_str(self.name)
    }
}
