//! What a check of an instance finds, and how it is repaired.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::Result;

/// Repairs what was found, if it is still so. Returns what was done, for an error text such as
/// `PROBLEM: moved to …`. Blocks.
pub(crate) type Repair = Box<dyn FnOnce() -> Result<String> + Send>;

/// A problem, and how to repair it.
pub(crate) struct Finding {
    /// What is wrong with which object; the same text each time it is found.
    pub(crate) problem: String,
    /// `None` if only the user can do something about it.
    pub(crate) repair: Option<Repair>,
}

/// The problems that a check has found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl fmt::Debug for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problem)
    }
}

impl Findings {
    pub(crate) fn add(
        &mut self,
        problem: String,
        repair: impl FnOnce() -> Result<String> + Send + 'static,
    ) {
        self.0.push(Finding {
            problem,
            repair: Some(Box::new(repair)),
        });
    }

    /// Adds a problem that only the user can do something about.
    pub(crate) fn add_unrepairable(&mut self, problem: String) {
        self.0.push(Finding {
            problem,
            repair: None,
        });
    }

    /// Adds the error of a part of the check, which could not look at everything then.
    pub(crate) fn add_failure(&mut self, what: &str, checked: Result<()>) {
        if let Err(error) = checked {
            self.add_unrepairable(format!("{what} cannot be checked: {error}"));
        }
    }

    pub(crate) fn problems(&self) -> BTreeSet<String> {
        let problems = self.0.iter().map(|finding| finding.problem.clone());
        problems.collect()
    }

    /// Keeps the problems that an earlier look has found, too.
    pub(crate) fn keep(&mut self, earlier: &BTreeSet<String>) {
        self.0.retain(|finding| earlier.contains(&finding.problem));
    }

    pub(crate) fn into_vec(self) -> Vec<Finding> {
        self.0
    }
}
