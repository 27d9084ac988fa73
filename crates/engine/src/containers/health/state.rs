//! What the result of a health check changes, and when the next check is due. Without clock and I/O.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{Health, HealthResult, HealthStatus, HealthTest, Healthcheck};

// Docker's defaults, in nanoseconds.
const INTERVAL: i64 = 30_000_000_000;
const TIMEOUT: i64 = 30_000_000_000;
const START_INTERVAL: i64 = 5_000_000_000;
const RETRIES: u32 = 3;

/// Number of results that are kept.
const LOG_LENGTH: usize = 5;

/// Returns the check if there is one to run.
pub(super) fn effective(check: Option<&Healthcheck>) -> Option<&Healthcheck> {
    check.filter(|check| matches!(check.test, HealthTest::Command(_) | HealthTest::Shell(_)))
}

/// Returns the command that checks the health. `shell` is the container's own.
pub(super) fn command(check: &Healthcheck, shell: Option<&Vec<String>>) -> Vec<String> {
    match &check.test {
        HealthTest::Inherit | HealthTest::Disabled => Vec::new(),
        HealthTest::Command(words) => words.clone(),
        HealthTest::Shell(words) => match shell.filter(|shell| !shell.is_empty()) {
            Some(shell) => [shell.as_slice(), words].concat(),
            None => [&["/bin/sh".to_owned(), "-c".to_owned()], words.as_slice()].concat(),
        },
    }
}

/// Returns how long a check may take, in nanoseconds.
pub(super) fn timeout(check: &Healthcheck) -> i64 {
    or_default(check.timeout, TIMEOUT)
}

/// Returns the time until the next check of a container that was started `age` nanoseconds ago.
pub(super) fn delay(check: &Healthcheck, status: HealthStatus, age: i64) -> Duration {
    let is_starting = age < check.start_period && status == HealthStatus::Starting;
    let nanoseconds = if is_starting {
        or_default(check.start_interval, START_INTERVAL)
    } else {
        or_default(check.interval, INTERVAL)
    };
    Duration::from_nanos(nanoseconds.unsigned_abs())
}

fn or_default(value: i64, default: i64) -> i64 {
    if value == 0 { default } else { value }
}

/// Returns the health at the beginning of a run. The log of earlier runs is kept.
pub(super) fn begin(before: Option<Health>) -> Health {
    Health {
        log: before.map(|health| health.log).unwrap_or_default(),
        ..Health::default()
    }
}

/// Returns whether as many checks in turn have failed as the settings allow. The status alone does not
/// say so: a pause sets it, too.
pub(super) fn has_failed(health: &Health, check: &Healthcheck) -> bool {
    let retries = u32::try_from(check.retries).unwrap_or(0);
    health.failing_streak >= if retries == 0 { RETRIES } else { retries }
}

/// Applies the result of a check of a container that was started at `started_at`. Returns the status
/// if it has changed.
pub(super) fn apply(
    health: &mut Health,
    check: &Healthcheck,
    started_at: i64,
    result: HealthResult,
) -> Option<HealthStatus> {
    let before = health.status;
    if result.exit_code == 0 {
        health.failing_streak = 0;
        health.status = HealthStatus::Healthy;
    } else if before != HealthStatus::Starting || result.start - started_at >= check.start_period {
        health.failing_streak = health.failing_streak.saturating_add(1);
        if has_failed(health, check) {
            health.status = HealthStatus::Unhealthy;
        }
    }
    health.log.push(Arc::new(result));
    let surplus = health.log.len().saturating_sub(LOG_LENGTH);
    health.log.drain(..surplus);
    Some(health.status).filter(|&status| status != before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthStatus::{Healthy, Starting, Unhealthy};

    const SECOND: i64 = 1_000_000_000;

    /// Runs checks from a start at time 0 on. Each is as long as said, and has the exit code. Returns
    /// after each its begin in milliseconds, the status and the number of failures.
    fn run(check: &Healthcheck, results: &[(i64, i32)]) -> Vec<(i64, HealthStatus, u32)> {
        let mut health = begin(None);
        let mut now = 0;
        let mut seen = Vec::new();
        for &(length, exit_code) in results {
            now += i64::try_from(delay(check, health.status, now).as_nanos()).unwrap();
            let result = HealthResult {
                start: now,
                end: now + length,
                exit_code,
                output: String::new(),
            };
            now += length;
            let before = health.status;
            let changed = apply(&mut health, check, 0, result);
            assert_eq!(changed.is_some(), before != health.status);
            seen.push((
                (now - length) / 1_000_000,
                health.status,
                health.failing_streak,
            ));
        }
        seen
    }

    #[test]
    fn one_failure_after_a_pause_is_not_a_failed_container() {
        let check = Healthcheck {
            retries: 2,
            ..Healthcheck::default()
        };
        // As a pause leaves it.
        let mut health = Health {
            status: Unhealthy,
            ..Health::default()
        };
        let failure = HealthResult {
            start: 0,
            end: 1,
            exit_code: 1,
            output: String::new(),
        };
        apply(&mut health, &check, 0, failure.clone());
        assert!(!has_failed(&health, &check) && health.status == Unhealthy);
        apply(&mut health, &check, 0, failure);
        assert!(has_failed(&health, &check));
    }

    #[test]
    fn a_container_is_unhealthy_after_as_many_failures_as_retries() {
        let check = Healthcheck {
            interval: SECOND,
            retries: 2,
            ..Healthcheck::default()
        };
        assert_eq!(
            run(&check, &[(0, 1), (SECOND, 1), (0, 1), (0, 0), (0, -1)]),
            [
                (1000, Starting, 1),
                (2000, Unhealthy, 2),
                (4000, Unhealthy, 3),
                (5000, Healthy, 0),
                (6000, Healthy, 1),
            ]
        );
    }

    #[test]
    fn zero_means_the_default() {
        let seen = run(&Healthcheck::default(), &[(0, 1), (0, 1), (0, 1)]);
        assert_eq!(
            seen,
            [
                (30_000, Starting, 1),
                (60_000, Starting, 2),
                (90_000, Unhealthy, 3)
            ]
        );
        assert_eq!(timeout(&Healthcheck::default()), 30 * SECOND);
    }

    #[test]
    fn failures_of_the_start_period_do_not_count() {
        let check = Healthcheck {
            interval: 10 * SECOND,
            start_period: 12 * SECOND,
            retries: 1,
            ..Healthcheck::default()
        };
        assert_eq!(
            run(&check, &[(0, 1), (0, 1), (0, 1)]),
            [
                (5000, Starting, 0),
                (10_000, Starting, 0),
                (15_000, Unhealthy, 1)
            ]
        );
        // The first success ends the period.
        assert_eq!(
            run(&check, &[(0, 0), (0, 1)]),
            [(5000, Healthy, 0), (15_000, Unhealthy, 1)]
        );
        let check = Healthcheck {
            start_interval: SECOND,
            ..check
        };
        assert_eq!(run(&check, &[(0, 1), (0, 1)])[1].0, 2000);
    }

    #[test]
    fn the_last_five_results_are_kept_also_after_a_restart() {
        let mut health = begin(None);
        for exit_code in 0..7 {
            let result = HealthResult {
                exit_code,
                ..HealthResult::default()
            };
            apply(&mut health, &Healthcheck::default(), 0, result);
        }
        let codes = |health: &Health| {
            let codes = health.log.iter().map(|result| result.exit_code);
            codes.collect::<Vec<_>>()
        };
        assert_eq!(codes(&health), [2, 3, 4, 5, 6]);
        let again = begin(Some(health));
        assert_eq!((again.status, again.failing_streak), (Starting, 0));
        assert_eq!(codes(&again), [2, 3, 4, 5, 6]);
    }

    #[test]
    fn commands_of_both_forms() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        let of = |test: HealthTest, shell: Option<&Vec<String>>| {
            let check = Healthcheck {
                test,
                ..Healthcheck::default()
            };
            effective(Some(&check)).map(|check| command(check, shell))
        };
        let shell = words(&["/bin/ash", "-xc"]);
        let line = || HealthTest::Shell(words(&["a b"]));
        assert_eq!(of(line(), None), Some(words(&["/bin/sh", "-c", "a b"])));
        assert_eq!(
            of(line(), Some(&shell)),
            Some(words(&["/bin/ash", "-xc", "a b"]))
        );
        assert_eq!(
            of(HealthTest::Command(words(&["a", "b"])), Some(&shell)),
            Some(words(&["a", "b"]))
        );
        assert_eq!(of(HealthTest::Disabled, None), None);
        assert_eq!(of(HealthTest::Inherit, None), None);
        assert_eq!(effective(None), None);
    }
}
