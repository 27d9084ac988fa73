//! The flags of health checks.

use whelk_api_types::HealthConfig;
use whelk_text::duration;

use super::{CreateContainerArgs, invalid, named};
use crate::{Failure, Outcome};

/// Returns the health check that the flags describe. The error texts are Docker's.
pub(super) fn healthcheck(args: &CreateContainerArgs) -> Outcome<Option<HealthConfig>> {
    let time = |flag: &str, given: &Option<String>| -> Outcome<i64> {
        let Some(text) = given else {
            return Ok(0);
        };
        let parsed = duration::parse(text).map_err(|error| Failure::new(error.to_string()));
        named(parsed, text, flag)
    };
    let check = HealthConfig {
        test: args
            .health_cmd
            .clone()
            .filter(|command| !command.is_empty())
            .map(|command| vec!["CMD-SHELL".into(), command]),
        interval: time("--health-interval", &args.health_interval)?,
        timeout: time("--health-timeout", &args.health_timeout)?,
        start_period: time("--health-start-period", &args.health_start_period)?,
        start_interval: time("--health-start-interval", &args.health_start_interval)?,
        retries: args.health_retries.unwrap_or_default(),
        on_failure: args.health_on_failure.clone().unwrap_or_default(),
    };
    let is_given = check != HealthConfig::default();
    if args.no_healthcheck {
        if is_given {
            return Err(invalid(
                "--no-healthcheck conflicts with --health-* options",
            ));
        }
        return Ok(Some(HealthConfig {
            test: Some(vec!["NONE".into()]),
            ..check
        }));
    }
    let numbers = [
        ("interval", check.interval),
        ("timeout", check.timeout),
        ("retries", check.retries),
        ("start-period", check.start_period),
        ("start-interval", check.start_interval),
    ];
    match numbers.iter().find(|(_, number)| *number < 0) {
        Some((name, _)) => Err(invalid(format!("--health-{name} cannot be negative"))),
        None => Ok(is_given.then_some(check)),
    }
}
