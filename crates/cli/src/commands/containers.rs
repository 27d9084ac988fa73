//! Commands that act on each named container: start, stop, kill, rm, …

use clap::Args;
use serde_json::{Value, json};

use super::attach::{
    Ended, KEEPS_RUNNING, Streams, attach_path, follow_size, forward_signals, lost, lost_attached,
    pump, unless_lost,
};
use super::create::{named, nano_cpus, restart_policy};
use super::destination::Destination;
use super::run::{exit_code, wait_request};
use super::{Names, failures_of, for_each, not_available};
use crate::client::{Client, escape_name, no_body, query};
use crate::format::table::align;
use crate::format::units::parse_size;
use crate::output::{print, print_line, warn_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, default_value = "", hide_default_value = true)]
    detach_keys: String,
    /// Restore from this checkpoint
    #[arg(long)]
    checkpoint: Option<String>,
    /// Use a custom checkpoint storage directory
    #[arg(long)]
    checkpoint_dir: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn start(client: &Client, args: StartArgs) -> Outcome {
    not_available(
        &[
            ("--checkpoint", args.checkpoint.is_some()),
            ("--checkpoint-dir", args.checkpoint_dir.is_some()),
        ],
        "checkpoints are",
    )?;
    if !args.attach && !args.interactive {
        let (mut failed, mut unwritten) = (Vec::new(), None);
        for name in &args.containers {
            match client
                .post(&format!("/containers/{}/start", escape_name(name)), None)
                .await
            {
                Ok(_) => match print_line!("{name}") {
                    Err(failure) if failure.is_closed_pipe() => return Err(failure),
                    printed => unwritten = unwritten.or(printed.err()),
                },
                Err(error) => {
                    warn_line!("{error}");
                    failed.push(name.as_str());
                }
            }
        }
        let mut failures: Vec<String> = unwritten.into_iter().map(|failure| failure.text).collect();
        if !failed.is_empty() {
            failures.push(format!(
                "Error: failed to start containers: {}",
                failed.join(", ")
            ));
        }
        return failures_of(&failures);
    }
    let [name] = args.containers.as_slice() else {
        return Err(Failure::new(
            "you cannot start and attach multiple containers at once",
        ));
    };
    let container = client
        .get(&format!("/containers/{}/json", escape_name(name)))
        .await?;
    let id = container["Id"].as_str().unwrap_or_default().to_owned();
    let tty = container["Config"]["Tty"] == true;
    let stdin = args.interactive && container["Config"]["OpenStdin"] == true;
    let connection = client
        .hijack(
            &attach_path(&id, stdin, true, true, &args.detach_keys),
            None,
        )
        .await?;
    let removed = container["HostConfig"]["AutoRemove"] == true;
    let wait = wait_request(client, &id, if removed { "removed" } else { "next-exit" }).await?;
    let signals = (!tty).then(|| forward_signals(client, &id));
    let streams = Streams {
        stdin,
        tty,
        detach_keys: args.detach_keys,
    };
    client
        .post(&format!("/containers/{id}/start"), None)
        .await?;
    let size = tty.then(|| follow_size(client, format!("/containers/{id}/resize")));
    let ended = pump(connection, &streams).await;
    for task in [size, signals].into_iter().flatten() {
        task.abort();
    }
    match ended? {
        Ended::Detached => return Ok(0),
        Ended::Lost => return Err(lost_attached(name)),
        Ended::Output => {}
    }
    let status = crate::client::read(wait)
        .await
        .map_err(|error| unless_lost(error, || lost_attached(name)))?;
    Ok(exit_code(&status))
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "", hide_default_value = true)]
    signal: String,
    /// Seconds to wait before killing the container
    #[arg(short = 't', long, visible_alias = "time", allow_hyphen_values = true)]
    timeout: Option<i64>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn stop(client: &Client, args: StopArgs, action: &str) -> Outcome {
    let timeout = args
        .timeout
        .map(|seconds| seconds.to_string())
        .unwrap_or_default();
    let query = query(&[("signal", &args.signal), ("t", &timeout)]);
    for_each(&args.containers, async |name| {
        client
            .post(
                &format!("/containers/{}/{action}{query}", escape_name(name)),
                None,
            )
            .await?;
        print_line!("{name}")?;
        Ok(())
    })
    .await
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "", hide_default_value = true)]
    signal: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn kill(client: &Client, args: KillArgs) -> Outcome {
    for_each(&args.containers, async |name| {
        client
            .post(
                &format!(
                    "/containers/{}/kill{}",
                    escape_name(name),
                    query(&[("signal", &args.signal)])
                ),
                None,
            )
            .await?;
        print_line!("{name}")?;
        Ok(())
    })
    .await
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove the specified link
    #[arg(short, long)]
    link: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn rm(client: &Client, args: RmArgs) -> Outcome {
    let on = |flag: bool| if flag { "1" } else { "" };
    let query = query(&[
        ("force", on(args.force)),
        ("link", on(args.link)),
        ("v", on(args.volumes)),
    ]);
    for_each(&args.containers, async |given| {
        let name = given.trim_matches('/');
        if name.is_empty() {
            return Err(Failure::new("container name cannot be empty"));
        }
        match client
            .delete(&format!("/containers/{}{query}", escape_name(name)))
            .await
        {
            // With --force, a missing container is no failure.
            Err(error) if args.force && error.status == hyper::StatusCode::NOT_FOUND => {
                warn_line!("{error}");
                return Ok(());
            }
            result => result?,
        };
        print_line!("{given}")?;
        Ok(())
    })
    .await
}

/// Posts an action without parameters for each container.
pub(crate) async fn each(client: &Client, names: &[String], action: &str) -> Outcome {
    for_each(names, async |name| {
        client
            .post(&format!("/containers/{}/{action}", escape_name(name)), None)
            .await?;
        print_line!("{name}")?;
        Ok(())
    })
    .await
}

pub(crate) async fn wait(client: &Client, names: Names) -> Outcome {
    for_each(&names.containers, async |name| {
        let response = wait_request(client, &escape_name(name), "").await?;
        let status = crate::client::read(response)
            .await
            .map_err(|error| unless_lost(error, || lost("waiting for", name, KEEPS_RUNNING)))?;
        print_line!("{}", status["StatusCode"])?;
        Ok(())
    })
    .await
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    container: String,
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ps OPTIONS"
    )]
    options: Vec<String>,
}

pub(crate) async fn top(client: &Client, args: TopArgs) -> Outcome {
    let top = client
        .get(&format!(
            "/containers/{}/top{}",
            escape_name(&args.container),
            query(&[("ps_args", &args.options.join(" "))])
        ))
        .await?;
    let line = |cells: &Value| {
        cells
            .as_array()
            .into_iter()
            .flatten()
            .map(|cell| cell.as_str().unwrap_or_default())
            .collect::<Vec<_>>()
            .join("\t")
    };
    let mut lines = vec![line(&top["Titles"])];
    lines.extend(top["Processes"].as_array().into_iter().flatten().map(line));
    print(&align(&lines))?;
    Ok(0)
}

pub(crate) async fn rename(client: &Client, name: &str, new_name: &str) -> Outcome {
    if name.trim().is_empty() || new_name.trim().is_empty() {
        return Err(Failure::new(
            "Error: Neither old nor new names may be empty",
        ));
    }
    client
        .post(
            &format!(
                "/containers/{}/rename{}",
                escape_name(name),
                query(&[("name", new_name)])
            ),
            None,
        )
        .await
        .map_err(|error| {
            Failure::new(format!(
                "{error}\nError: failed to rename container named {name}"
            ))
        })?;
    Ok(0)
}

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
    let mut body = json!({
        "BlkioWeight": args.blkio_weight.unwrap_or(0), "CpuPeriod": args.cpu_period.unwrap_or(0), "CpuQuota": args.cpu_quota.unwrap_or(0),
        "CpuRealtimePeriod": args.cpu_rt_period.unwrap_or(0), "CpuRealtimeRuntime": args.cpu_rt_runtime.unwrap_or(0), "CpuShares": args.cpu_shares.unwrap_or(0),
        "NanoCpus": args.cpus.as_deref().map_or(Ok(0), nano_cpus)?, "CpusetCpus": args.cpuset_cpus.unwrap_or_default(), "CpusetMems": args.cpuset_mems.unwrap_or_default(),
        "Memory": size(&args.memory, "-m, --memory")?, "MemoryReservation": size(&args.memory_reservation, "--memory-reservation")?, "MemorySwap": size(&args.memory_swap, "--memory-swap")?, "PidsLimit": args.pids_limit,
    });
    if let Some(policy) = &args.restart {
        body["RestartPolicy"] =
            restart_policy(policy).map_err(|failure| Failure::new(failure.text))?;
    }
    for_each(&args.containers, async |name| {
        let answer = client
            .post(
                &format!("/containers/{}/update", escape_name(name)),
                Some(&body),
            )
            .await?;
        for warning in answer["Warnings"].as_array().into_iter().flatten() {
            warn_line!("{}", warning.as_str().unwrap_or_default());
        }
        print_line!("{name}")?;
        Ok(())
    })
    .await
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<String>,
    container: String,
}

pub(crate) async fn export(client: &Client, args: ExportArgs) -> Outcome {
    let destination = Destination::new(args.output.as_deref(), "container")?;
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/containers/{}/export", escape_name(&args.container)),
            &[],
            no_body(),
        )
        .await?;
    destination.write_body(response).await?;
    Ok(0)
}
