//! The `update` command.

use clap::Args;
use whelk_api_types::{ContainerUpdateResponse, RestartPolicy, UpdateConfig};

use crate::client::{Client, escape_name};
use crate::commands::container::create::limits::{nano_cpus, restart_policy};
use crate::commands::container::create::named;
use crate::commands::each::for_each;
use crate::format::units::parse_size;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long)]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Limit the CPU real-time period in microseconds
    #[arg(long)]
    cpu_rt_period: Option<i64>,
    /// Limit the CPU real-time runtime in microseconds
    #[arg(long)]
    cpu_rt_runtime: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short, long)]
    cpu_shares: Option<i64>,
    /// Number of CPUs
    #[arg(long)]
    cpus: Option<String>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Memory limit
    #[arg(short, long)]
    memory: Option<String>,
    /// Memory soft limit
    #[arg(long)]
    memory_reservation: Option<String>,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Restart policy to apply when a container exits
    #[arg(long)]
    restart: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl UpdateArgs {
    fn changes_something(&self) -> bool {
        let numbers = [
            self.cpu_period,
            self.cpu_quota,
            self.cpu_rt_period,
            self.cpu_rt_runtime,
            self.cpu_shares,
            self.pids_limit,
        ];
        let texts = [
            &self.cpus,
            &self.cpuset_cpus,
            &self.cpuset_mems,
            &self.memory,
            &self.memory_reservation,
            &self.memory_swap,
            &self.restart,
        ];
        numbers.iter().any(Option::is_some)
            || texts.iter().any(|text| text.is_some())
            || self.blkio_weight.is_some()
    }
}

pub(crate) async fn update(client: &Client, args: UpdateArgs) -> Outcome {
    let size = |value: &Option<String>, flag: &str| match value.as_deref() {
        None => Ok(0),
        Some("-1") if flag == "--memory-swap" => Ok(-1),
        Some(text) => named(parse_size(text), text, flag),
    };
    if !args.changes_something() {
        return Err(Failure::new(
            "you must provide one or more flags when using this command",
        ));
    }
    let body = UpdateConfig {
        blkio_weight: args.blkio_weight.unwrap_or(0),
        cpu_period: args.cpu_period.unwrap_or(0),
        cpu_quota: args.cpu_quota.unwrap_or(0),
        cpu_realtime_period: args.cpu_rt_period.unwrap_or(0),
        cpu_realtime_runtime: args.cpu_rt_runtime.unwrap_or(0),
        cpu_shares: args.cpu_shares.unwrap_or(0),
        nano_cpus: args.cpus.as_deref().map_or(Ok(0), nano_cpus)?,
        cpuset_cpus: args.cpuset_cpus.unwrap_or_default(),
        cpuset_mems: args.cpuset_mems.unwrap_or_default(),
        memory: size(&args.memory, "-m, --memory")?,
        memory_reservation: size(&args.memory_reservation, "--memory-reservation")?,
        memory_swap: size(&args.memory_swap, "--memory-swap")?,
        pids_limit: args.pids_limit,
        restart_policy: match &args.restart {
            Some(policy) => restart_policy(policy).map_err(|failure| Failure::new(failure.text))?,
            None => RestartPolicy::default(),
        },
        ..UpdateConfig::default()
    };
    for_each(&args.containers, async |name| {
        let answer: ContainerUpdateResponse = client
            .post_json(&format!("/containers/{}/update", escape_name(name)), &body)
            .await?;
        for warning in answer.warnings.unwrap_or_default() {
            warn_line!("{warning}");
        }
        print_line!("{name}")?;
        Ok(())
    })
    .await
}
