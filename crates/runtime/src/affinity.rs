//! Which processors a process runs on.

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::{Error, Result, os};

/// Binds this process to processors given as a list of numbers and ranges: `0-3,7`.
///
/// # Errors
/// What is no such list, or names none that the process may use.
pub(crate) fn set(list: &str) -> Result<()> {
    sched_setaffinity(None, &parse(list)?).map_err(os("set the processors to run on"))
}

fn parse(list: &str) -> Result<CpuSet> {
    let invalid = || Error::invalid(format!("invalid list of processors {list:?}"));
    let mut set = CpuSet::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.parse()
                .ok()
                .filter(|number| *number < CpuSet::MAX_CPU)
                .ok_or_else(invalid)
        };
        (number(first)?..=number(last)?).for_each(|cpu: usize| set.set(cpu));
    }
    if set.count() == 0 {
        Err(invalid())
    } else {
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        let numbers = |list: &str| {
            parse(list).map(|set| (0..16).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>())
        };
        assert_eq!(numbers("0-3,7").unwrap(), [0, 1, 2, 3, 7]);
        assert_eq!(numbers(" 5 , 2").unwrap(), [2, 5]);
        for wrong in ["", "x", "3-1", "1-", "-1", "99999"] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
    }
}
