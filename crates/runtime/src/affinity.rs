//! CPU affinity of a process.

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::{Error, Result, os};

/// Binds the calling process to the CPUs in a list of numbers and ranges such as `0-3,7`.
///
/// # Errors
/// Returns an error if the list is malformed or contains no CPU that the process may use.
pub(crate) fn set(list: &str) -> Result<()> {
    sched_setaffinity(None, &parse(list)?).map_err(os("set CPU affinity"))
}

fn parse(list: &str) -> Result<CpuSet> {
    let invalid = || Error::invalid(format!("invalid CPU list {list:?}"));
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
    fn parses_cpu_lists() {
        let numbers = |list: &str| {
            parse(list).map(|set| (0..16).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>())
        };
        assert_eq!(numbers("0-3,7").unwrap(), [0, 1, 2, 3, 7]);
        assert_eq!(numbers(" 5 , 2").unwrap(), [2, 5]);
        for wrong in ["", "x", "3-1", "1-", "-1", "99999"] {
            let error = numbers(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("invalid CPU list {wrong:?}"));
        }
    }
}
