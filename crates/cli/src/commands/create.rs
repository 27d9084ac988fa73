//! `create`, and the flags it shares with `run`.

use clap::Args;
use serde_json::{Map, Value, json};

use super::networking::NetworkArgs;
use super::{key_values, labels_of, mounts};
use crate::client::{Client, query};
use crate::format::units::parse_size;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome, plain};

/// Flags and arguments of `create`, shared with `run`.
#[derive(Debug, Default, Args)]
pub(crate) struct CreateContainerArgs {
    /// Assign a name to the container
    #[arg(long)]
    pub name: Option<String>,
    /// Automatically remove the container when it exits
    #[arg(long)]
    pub rm: bool,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub tty: bool,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short, long)]
    pub attach: Vec<String>,
    /// Set environment variables
    #[arg(short, long)]
    pub env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long)]
    pub env_file: Vec<String>,
    /// Set meta data on a container
    #[arg(short, long)]
    pub label: Vec<String>,
    /// Read in a line delimited file of labels
    #[arg(long)]
    pub label_file: Vec<String>,
    /// Add an annotation to the container
    #[arg(long)]
    pub annotation: Vec<String>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long)]
    pub entrypoint: Option<String>,
    /// Working directory inside the container
    #[arg(short, long)]
    pub workdir: Option<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long)]
    pub user: Option<String>,
    /// Add additional groups to join
    #[arg(long)]
    pub group_add: Vec<String>,
    /// Container host name
    #[arg(short = 'h', long)]
    pub hostname: Option<String>,
    /// Container NIS domain name
    #[arg(long)]
    pub domainname: Option<String>,
    #[command(flatten)]
    pub networks: NetworkArgs,
    /// Bind mount a volume
    #[arg(short, long)]
    pub volume: Vec<String>,
    /// Attach a filesystem mount to the container
    #[arg(long)]
    pub mount: Vec<String>,
    /// Mount a tmpfs directory
    #[arg(long)]
    pub tmpfs: Vec<String>,
    /// Optional volume driver for the container
    #[arg(long)]
    pub volume_driver: Option<String>,
    /// Mount volumes from the specified container(s)
    #[arg(long)]
    pub volumes_from: Vec<String>,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    pub read_only: bool,
    /// Give extended privileges to this container
    #[arg(long)]
    pub privileged: bool,
    /// Add Linux capabilities
    #[arg(long)]
    pub cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long)]
    pub cap_drop: Vec<String>,
    /// Security Options
    #[arg(long)]
    pub security_opt: Vec<String>,
    /// Add a host device to the container
    #[arg(long)]
    pub device: Vec<String>,
    /// Add a rule to the cgroup allowed devices list
    #[arg(long)]
    pub device_cgroup_rule: Vec<String>,
    /// GPU devices to add to the container
    #[arg(long)]
    pub gpus: Option<String>,
    /// PID namespace to use
    #[arg(long)]
    pub pid: Option<String>,
    /// IPC mode to use
    #[arg(long)]
    pub ipc: Option<String>,
    /// UTS namespace to use
    #[arg(long)]
    pub uts: Option<String>,
    /// User namespace to use
    #[arg(long)]
    pub userns: Option<String>,
    /// Cgroup namespace to use (host|private)
    #[arg(long)]
    pub cgroupns: Option<String>,
    /// Optional parent cgroup for the container
    #[arg(long)]
    pub cgroup_parent: Option<String>,
    /// Sysctl options
    #[arg(long)]
    pub sysctl: Vec<String>,
    /// Ulimit options
    #[arg(long)]
    pub ulimit: Vec<String>,
    /// Memory limit
    #[arg(short, long)]
    pub memory: Option<String>,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Memory soft limit
    #[arg(long)]
    pub memory_reservation: Option<String>,
    /// Tune container memory swappiness (0 to 100)
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swappiness: Option<i64>,
    /// Disable OOM Killer
    #[arg(long)]
    pub oom_kill_disable: bool,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, allow_hyphen_values = true)]
    pub oom_score_adj: Option<i64>,
    /// Number of CPUs
    #[arg(long, allow_hyphen_values = true)]
    pub cpus: Option<String>,
    /// CPU shares (relative weight)
    #[arg(short, long, allow_hyphen_values = true)]
    pub cpu_shares: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long)]
    pub cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Limit CPU real-time period in microseconds
    #[arg(long)]
    pub cpu_rt_period: Option<i64>,
    /// Limit CPU real-time runtime in microseconds
    #[arg(long)]
    pub cpu_rt_runtime: Option<i64>,
    /// CPU count (Windows only)
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_count: Option<i64>,
    /// CPU percent (Windows only)
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_percent: Option<i64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// Block IO weight (relative device weight)
    #[arg(long)]
    pub blkio_weight_device: Vec<String>,
    /// Limit read rate (bytes per second) from a device
    #[arg(long)]
    pub device_read_bps: Vec<String>,
    /// Limit write rate (bytes per second) to a device
    #[arg(long)]
    pub device_write_bps: Vec<String>,
    /// Limit read rate (IO per second) from a device
    #[arg(long)]
    pub device_read_iops: Vec<String>,
    /// Limit write rate (IO per second) to a device
    #[arg(long)]
    pub device_write_iops: Vec<String>,
    /// Maximum IO bandwidth limit for the system drive (Windows only)
    #[arg(long)]
    pub io_maxbandwidth: Option<String>,
    /// Maximum IOps limit for the system drive (Windows only)
    #[arg(long)]
    pub io_maxiops: Option<String>,
    /// Kernel memory limit (deprecated: kernels have no such limit any more)
    #[arg(long)]
    pub kernel_memory: Option<String>,
    /// Container isolation technology
    #[arg(long)]
    pub isolation: Option<String>,
    /// Size of /dev/shm
    #[arg(long)]
    pub shm_size: Option<String>,
    /// Storage driver options for the container
    #[arg(long)]
    pub storage_opt: Vec<String>,
    /// Restart policy to apply when a container exits
    #[arg(long, default_value = "no")]
    pub restart: String,
    /// Signal to stop the container
    #[arg(long)]
    pub stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(long, allow_hyphen_values = true)]
    pub stop_timeout: Option<i64>,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long)]
    pub init: bool,
    /// Logging driver for the container
    #[arg(long)]
    pub log_driver: Option<String>,
    /// Log driver options
    #[arg(long)]
    pub log_opt: Vec<String>,
    /// Command to run to check health
    #[arg(long)]
    pub health_cmd: Option<String>,
    /// Time between running the check
    #[arg(long)]
    pub health_interval: Option<String>,
    /// Maximum time to allow one check to run
    #[arg(long)]
    pub health_timeout: Option<String>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long)]
    pub health_retries: Option<String>,
    /// Start period for the container to initialize before starting health-retries countdown
    #[arg(long)]
    pub health_start_period: Option<String>,
    /// Time between running the check during the start period
    #[arg(long)]
    pub health_start_interval: Option<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    pub no_healthcheck: bool,
    /// Runtime to use for this container
    #[arg(long)]
    pub runtime: Option<String>,
    /// Write the container ID to the file
    #[arg(long)]
    pub cidfile: Option<String>,
    /// Set platform if server is multi-platform capable
    #[arg(long)]
    pub platform: Option<String>,
    /// Skip image verification
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    pub disable_content_trust: bool,
    /// Bind mount the engine's API socket into the container
    #[arg(long)]
    pub use_api_socket: bool,
    /// Pull image before running ("always", "missing", "never")
    #[arg(long, default_value = "missing")]
    pub pull: String,
    /// Suppress the pull output
    #[arg(short, long)]
    pub quiet: bool,
    /// Image, and the command to run in it
    #[arg(required = true, value_names = ["IMAGE", "COMMAND"], trailing_var_arg = true, allow_hyphen_values = true)]
    pub image_and_command: Vec<String>,
}

pub(crate) async fn create(client: &Client, args: CreateContainerArgs) -> Outcome {
    let id = make(client, &args, args.attach.is_empty(), None).await?;
    print_line!("{id}")?;
    Ok(0)
}

/// Creates a container and returns its ID. Prints warnings to standard error.
pub(crate) async fn make(
    client: &Client,
    args: &CreateContainerArgs,
    attach_all: bool,
    detach: Option<bool>,
) -> Outcome<String> {
    if !matches!(args.pull.as_str(), "always" | "missing" | "never") {
        return Err(invalid(format!(
            "invalid pull option: '{}': must be one of \"always\", \"missing\" or \"never\"",
            args.pull
        )));
    }
    let health = [
        ("interval", &args.health_interval),
        ("timeout", &args.health_timeout),
        ("retries", &args.health_retries),
        ("start-period", &args.health_start_period),
        ("start-interval", &args.health_start_interval),
    ];
    if let Some((name, _)) = health.iter().find(|(_, value)| value.is_some()) {
        return Err(Failure::with_code(
            125,
            format!("--health-{name}: health checks are not available in this version of whelk"),
        ));
    }
    check_supported(args)?;
    if args.pull == "always" {
        return Err(Failure::new(
            "--pull always: pulling from registries is not available in this version of whelk; use load or import",
        ));
    }
    let mut body = body(args, attach_all, detach)?;
    if args.use_api_socket
        && let Some(mounts) = body["HostConfig"]["Mounts"].as_array_mut()
    {
        let socket = client.socket().map_err(|host| {
            Failure::new(format!("flag --use-api-socket can only be used with unix sockets: docker endpoint {host} incompatible"))
        })?;
        mounts.push(json!({"Type": "bind", "Source": socket, "Target": "/var/run/docker.sock", "BindOptions": {}}));
    }
    let id_file = args.cidfile.as_deref().map(IdFile::create).transpose()?;
    let platform = args
        .platform
        .clone()
        .or_else(|| std::env::var("DOCKER_DEFAULT_PLATFORM").ok())
        .unwrap_or_default();
    let name = args.name.as_deref().unwrap_or_default();
    let path = format!(
        "/containers/create{}",
        query(&[("name", name), ("platform", &platform)])
    );
    let created = client.post(&path, Some(&body)).await?;
    for warning in created["Warnings"].as_array().into_iter().flatten() {
        warn_line!("WARNING: {}", warning.as_str().unwrap_or_default());
    }
    let id = created["Id"].as_str().unwrap_or_default().to_owned();
    if let Some(file) = id_file {
        file.write(&id)?;
    }
    Ok(id)
}

/// Rejects flags of Docker's CLI that are not supported.
fn check_supported(args: &CreateContainerArgs) -> Outcome<()> {
    let windows = [
        ("--cpu-count", args.cpu_count.is_some()),
        ("--cpu-percent", args.cpu_percent.is_some()),
        ("--io-maxbandwidth", args.io_maxbandwidth.is_some()),
        ("--io-maxiops", args.io_maxiops.is_some()),
    ];
    if let Some((flag, _)) = windows.iter().find(|(_, given)| *given) {
        return Err(Failure::new(format!(
            "{flag:?} is only supported on a Docker daemon running on windows, but the Docker daemon is running on linux"
        )));
    }
    if !args.disable_content_trust {
        return Err(Failure::with_code(
            125,
            "--disable-content-trust=false: content trust is not available in this version of whelk",
        ));
    }
    if let Some(limit) = &args.kernel_memory {
        named(parse_size(limit), limit, "--kernel-memory")?;
        warn_line!("WARNING: --kernel-memory is ignored: kernels have no such limit any more");
    }
    Ok(())
}

/// The file of `--cidfile`. Created before the container, and removed on drop unless the ID was
/// written.
struct IdFile<'a> {
    path: &'a str,
    file: std::fs::File,
    written: bool,
}

impl<'a> IdFile<'a> {
    fn create(path: &'a str) -> Outcome<Self> {
        match std::fs::File::create_new(path) {
            Ok(file) => Ok(Self {
                path,
                file,
                written: false,
            }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Failure::new(format!(
                    "container ID file found, make sure the other container isn't running or delete {path}"
                )))
            }
            Err(error) => Err(Failure::new(format!(
                "failed to create the container ID file: open {path}: {}",
                plain(&error)
            ))),
        }
    }

    fn write(mut self, id: &str) -> Outcome<()> {
        self.written = true;
        std::io::Write::write_all(&mut self.file, id.as_bytes()).map_err(|error| {
            Failure::new(format!(
                "failed to write the container ID ({id}) to file: write {}: {}",
                self.path,
                plain(&error)
            ))
        })
    }
}

impl Drop for IdFile<'_> {
    fn drop(&mut self) {
        if !self.written {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn list(values: &[String]) -> Value {
    if values.is_empty() {
        Value::Null
    } else {
        json!(values)
    }
}

/// Returns the body of the create request.
fn body(args: &CreateContainerArgs, attach_all: bool, detach: Option<bool>) -> Outcome<Value> {
    let (image, command) = args
        .image_and_command
        .split_first()
        .ok_or_else(|| Failure::new("no image specified"))?;
    if image.is_empty() {
        return Err(Failure::new("invalid reference format"));
    }
    let attached = |stream: &str| {
        args.attach
            .iter()
            .any(|given| given.eq_ignore_ascii_case(stream))
    };
    if let Some(wrong) = args
        .attach
        .iter()
        .find(|stream| !["stdin", "stdout", "stderr"].contains(&stream.to_lowercase().as_str()))
    {
        return Err(Failure::with_code(
            125,
            format!(
                "invalid argument {wrong:?} for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
            ),
        ));
    }
    let networking = args.networks.parse()?;
    let (binds, anonymous) = mounts::parse_volumes(&args.volume)?;
    let detached = detach == Some(true);
    let all = attach_all && args.attach.is_empty() && !detached;
    let stdin = !detached && (attached("stdin") || all && args.interactive && detach.is_some());
    Ok(json!({
        "Hostname": args.hostname.clone().unwrap_or_default(),
        "Domainname": args.domainname.clone().unwrap_or_default(),
        "User": args.user.clone().unwrap_or_default(),
        "AttachStdin": stdin, "AttachStdout": all || attached("stdout"), "AttachStderr": all || attached("stderr"),
        "Tty": args.tty, "OpenStdin": args.interactive, "StdinOnce": args.interactive && !detached,
        "Env": environment(&args.env, &args.env_file)?,
        "Cmd": if command.is_empty() { Value::Null } else { json!(command) },
        "Image": image,
        "WorkingDir": args.workdir.clone().unwrap_or_default(),
        "Entrypoint": args.entrypoint.as_ref().map(|entrypoint| vec![entrypoint]),
        "ExposedPorts": networking.exposed,
        "Labels": labels(args)?,
        "StopSignal": args.stop_signal.clone().unwrap_or_default(),
        "StopTimeout": args.stop_timeout,
        "Healthcheck": healthcheck(args),
        "Volumes": anonymous,
        "HostConfig": host_config(args, networking.mode, networking.bindings, binds)?,
        "NetworkingConfig": {"EndpointsConfig": networking.endpoints},
    }))
}

fn healthcheck(args: &CreateContainerArgs) -> Value {
    match &args.health_cmd {
        Some(command) => json!({"Test": ["CMD-SHELL", command]}),
        None if args.no_healthcheck => json!({"Test": ["NONE"]}),
        None => Value::Null,
    }
}

/// Checks the namespace modes.
fn check_modes(args: &CreateContainerArgs) -> Outcome<()> {
    let is_container = |mode: &str| {
        mode.strip_prefix("container:")
            .is_some_and(|name| !name.is_empty())
    };
    let modes = [
        (
            "--pid: invalid PID mode",
            args.pid
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host") || is_container(mode)),
        ),
        (
            "--uts: invalid UTS mode",
            args.uts
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host")),
        ),
        (
            "--userns: invalid USER mode",
            args.userns
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host")),
        ),
        (
            "--cgroupns: invalid CGROUP mode",
            args.cgroupns
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host" | "private")),
        ),
    ];
    if let Some((text, _)) = modes.iter().find(|(_, valid)| !valid) {
        return Err(invalid(*text));
    }
    Ok(())
}

fn host_config(
    args: &CreateContainerArgs,
    network_mode: String,
    bindings: Map<String, Value>,
    binds: Vec<String>,
) -> Outcome<Value> {
    let networks = &args.networks;
    let size = |value: &Option<String>, flag: &str| {
        value
            .as_deref()
            .map_or(Ok(0), |text| named(parse_size(text), text, flag))
    };
    check_modes(args)?;
    let (security, paths) = security(args)?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut host = json!({
        "Binds": list(&binds),
        "ContainerIDFile": text(&args.cidfile),
        "LogConfig": {"Type": text(&args.log_driver), "Config": log_options(args)?},
        "NetworkMode": network_mode,
        "PortBindings": bindings,
        "PublishAllPorts": networks.publish_all,
        "Links": list(&networks.link),
        "RestartPolicy": restart_policy(&args.restart)?,
        "AutoRemove": args.rm,
        "VolumesFrom": list(&args.volumes_from),
        "Annotations": key_values(&args.annotation),
        "CapAdd": list(&args.cap_add), "CapDrop": list(&args.cap_drop),
        "CgroupnsMode": text(&args.cgroupns),
        "Dns": list(&networks.dns), "DnsOptions": list(&networks.dns_option), "DnsSearch": list(&networks.dns_search),
        "ExtraHosts": list(&networks.add_host.iter().map(|host| host.replacen('=', ":", 1)).collect::<Vec<_>>()), "GroupAdd": list(&args.group_add),
        "IpcMode": text(&args.ipc), "PidMode": text(&args.pid), "UTSMode": text(&args.uts), "UsernsMode": text(&args.userns),
        "OomScoreAdj": args.oom_score_adj.unwrap_or(0), "OomKillDisable": args.oom_kill_disable,
        "Privileged": args.privileged, "ReadonlyRootfs": args.read_only,
        "SecurityOpt": list(&security),
        "StorageOpt": storage_options(&args.storage_opt)?,
        "Tmpfs": args.tmpfs.iter().map(|tmpfs| { let (path, options) = tmpfs.split_once(':').unwrap_or((tmpfs, "")); (path.to_owned(), json!(options)) }).collect::<Map<_, _>>(),
        "ShmSize": size(&args.shm_size, "--shm-size")?,
        "Sysctls": sysctls(&args.sysctl)?,
        "Runtime": text(&args.runtime),
        "CpuShares": args.cpu_shares.unwrap_or(0),
        "Memory": size(&args.memory, "-m, --memory")?,
        "MemoryReservation": size(&args.memory_reservation, "--memory-reservation")?,
        "MemorySwap": match args.memory_swap.as_deref() { Some("-1") => -1, _ => size(&args.memory_swap, "--memory-swap")? },
        "MemorySwappiness": args.memory_swappiness.unwrap_or(-1),
        "NanoCpus": args.cpus.as_deref().map_or(Ok(0), nano_cpus)?,
        "CgroupParent": text(&args.cgroup_parent),
        "BlkioWeight": args.blkio_weight.unwrap_or(0),
    });
    let more = json!({
        "BlkioWeightDevice": rates(&args.blkio_weight_device, "--blkio-weight-device", "Weight", false)?,
        "BlkioDeviceReadBps": rates(&args.device_read_bps, "--device-read-bps", "Rate", true)?,
        "BlkioDeviceWriteBps": rates(&args.device_write_bps, "--device-write-bps", "Rate", true)?,
        "BlkioDeviceReadIOps": rates(&args.device_read_iops, "--device-read-iops", "Rate", false)?,
        "BlkioDeviceWriteIOps": rates(&args.device_write_iops, "--device-write-iops", "Rate", false)?,
        "CpuPeriod": args.cpu_period.unwrap_or(0), "CpuQuota": args.cpu_quota.unwrap_or(0),
        "CpuRealtimePeriod": args.cpu_rt_period.unwrap_or(0), "CpuRealtimeRuntime": args.cpu_rt_runtime.unwrap_or(0),
        "CpusetCpus": text(&args.cpuset_cpus), "CpusetMems": text(&args.cpuset_mems),
        "Devices": args.device.iter().map(|device| parse_device(device)).collect::<Outcome<Vec<_>>>()?,
        "DeviceCgroupRules": device_rules(&args.device_cgroup_rule)?,
        "DeviceRequests": args.gpus.as_ref().map(|gpus| json!([{"Driver": "", "Count": if gpus == "all" { -1 } else { 1 }, "Capabilities": [["gpu"]]}])),
        "PidsLimit": args.pids_limit,
        "Ulimits": args.ulimit.iter().map(|limit| parse_ulimit(limit)).collect::<Outcome<Vec<_>>>()?,
        "Mounts": args.mount.iter().map(|mount| mounts::parse_mount(mount)).collect::<Outcome<Vec<_>>>()?,
        "Init": args.init.then_some(true),
        "VolumeDriver": text(&args.volume_driver),
        "Isolation": text(&args.isolation),
    });
    if let (Value::Object(host), Value::Object(more)) = (&mut host, more) {
        host.extend(more);
        if paths {
            host.insert("MaskedPaths".into(), json!([]));
            host.insert("ReadonlyPaths".into(), json!([]));
        }
        if let Some((height, width)) = crate::terminal::size().filter(|_| args.tty) {
            host.insert("ConsoleSize".into(), json!([height, width]));
        }
    }
    Ok(host)
}

fn log_options(args: &CreateContainerArgs) -> Outcome<Map<String, Value>> {
    if args.log_driver.as_deref() == Some("none") && !args.log_opt.is_empty() {
        return Err(invalid("invalid logging opts for driver none"));
    }
    Ok(key_values(&args.log_opt))
}

fn storage_options(given: &[String]) -> Outcome<Map<String, Value>> {
    if given.iter().any(|option| !option.contains('=')) {
        return Err(invalid("invalid storage option"));
    }
    Ok(key_values(given))
}

/// Returns the error for an invalid command line.
fn invalid(text: impl Into<String>) -> Failure {
    Failure::with_code(125, text)
}

/// Adds the flag and its value to an error.
pub(super) fn named<T>(outcome: Outcome<T>, value: &str, flag: &str) -> Outcome<T> {
    outcome.map_err(|failure| {
        Failure::with_code(
            125,
            format!(
                "invalid argument {value:?} for {flag:?} flag: {}",
                failure.text
            ),
        )
    })
}

pub(super) fn nano_cpus(text: &str) -> Outcome<i64> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    let number = number.ok_or_else(|| {
        Failure::with_code(125, format!("invalid argument {text:?} for \"--cpus\" flag: failed to parse {text} as a rational number"))
    })?;
    Ok(whelk_text::number::saturating((number * 1e9).round()))
}

/// Converts security options to the engine's form: a path of a seccomp profile is replaced by its
/// content. Also returns whether `systempaths=unconfined` was given.
fn security(args: &CreateContainerArgs) -> Outcome<(Vec<String>, bool)> {
    let mut options = Vec::new();
    let mut open_paths = false;
    for option in &args.security_opt {
        match option.split_once('=').or_else(|| option.split_once(':')) {
            Some(("systempaths", "unconfined")) => open_paths = true,
            Some(("seccomp", profile)) if !matches!(profile, "unconfined" | "builtin") => {
                if profile.is_empty() {
                    return Err(Failure::with_code(
                        125,
                        format!("Invalid --security-opt: {option:?}"),
                    ));
                }
                let text = std::fs::read_to_string(profile).map_err(|error| {
                    Failure::with_code(
                        125,
                        format!(
                            "opening seccomp profile ({profile}) failed: open {profile}: {}",
                            plain(&error)
                        ),
                    )
                })?;
                let json: Value = serde_json::from_str(&text).map_err(|error| {
                    Failure::with_code(
                        125,
                        format!("compacting json for seccomp profile ({profile}) failed: {error}"),
                    )
                })?;
                options.push(format!("seccomp={json}"));
            }
            None if option != "no-new-privileges" => {
                return Err(Failure::with_code(
                    125,
                    format!("Invalid --security-opt: {option:?}"),
                ));
            }
            _ => options.push(option.clone()),
        }
    }
    Ok((options, open_paths))
}

/// Parses `NAME[:COUNT]`.
pub(super) fn restart_policy(text: &str) -> Outcome<Value> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() && !text.is_empty() {
        return Err(invalid(
            "invalid restart policy format: no policy provided before colon",
        ));
    }
    let count: i64 = if count.is_empty() {
        0
    } else {
        count.parse().map_err(|_| {
            Failure::with_code(
                125,
                "invalid restart policy format: maximum retry count must be an integer",
            )
        })?
    };
    Ok(json!({"Name": name, "MaximumRetryCount": count}))
}

/// Returns the environment from files and flags; later entries replace earlier ones. A name without
/// a value takes the value of this process's environment. If that has none, a flag removes the
/// image's variable and a line of a file is ignored.
pub(crate) fn environment(given: &[String], files: &[String]) -> Outcome<Value> {
    let mut entries: Vec<(String, String)> = Vec::new();
    let from_files = lines_of(files)?.into_iter().map(|line| (line, false));
    for (entry, is_flag) in from_files.chain(given.iter().map(|entry| (entry.clone(), true))) {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Failure::with_code(
                125,
                format!(
                    "invalid argument {entry:?} for \"-e, --env\" flag: invalid environment variable: {entry}"
                ),
            ));
        }
        let entry = match std::env::var(&name) {
            _ if entry.contains('=') => entry,
            Ok(value) => format!("{name}={value}"),
            Err(_) if is_flag => entry,
            Err(_) => continue,
        };
        match entries.iter_mut().find(|(other, _)| *other == name) {
            Some((_, earlier)) => *earlier = entry,
            None => entries.push((name, entry)),
        }
    }
    let list: Vec<String> = entries.into_iter().map(|(_, entry)| entry).collect();
    Ok(if list.is_empty() {
        Value::Null
    } else {
        json!(list)
    })
}

fn lines_of(files: &[String]) -> Outcome<Vec<String>> {
    let mut lines = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let text = plain(&error);
            invalid(match error.kind() {
                std::io::ErrorKind::IsADirectory | std::io::ErrorKind::InvalidData => {
                    format!("invalid env file ({file}): read {file}: {text}")
                }
                _ => format!("open {file}: {text}"),
            })
        })?;
        lines.extend(
            text.lines()
                .map(str::trim_start)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    Ok(lines)
}

/// Returns the labels; those of flags replace those of files.
fn labels(args: &CreateContainerArgs) -> Outcome<Map<String, Value>> {
    let mut labels = labels_of(&lines_of(&args.label_file)?, "--label-file")?;
    labels.extend(labels_of(&args.label, "-l, --label")?);
    Ok(labels)
}

/// Returns the kernel parameters of `--sysctl`. Only namespaced ones are allowed.
fn sysctls(given: &[String]) -> Outcome<Map<String, Value>> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for entry in given {
        let key = entry.split('=').next().unwrap_or_default();
        if !entry.contains('=')
            || !(IPC.contains(&key)
                || key.starts_with("net.")
                || key.starts_with("fs.mqueue.")
                || key == "kernel.domainname")
        {
            return Err(Failure::with_code(
                125,
                format!(
                    "invalid argument {entry:?} for \"--sysctl\" flag: sysctl '{entry}' is not allowed"
                ),
            ));
        }
    }
    Ok(key_values(given))
}

/// Parses `DEVICE:NUMBER`; with `bytes`, the number may have a size suffix.
fn rates(given: &[String], flag: &str, field: &str, bytes: bool) -> Outcome<Vec<Value>> {
    given
        .iter()
        .map(|entry| rate(entry, field, bytes))
        .collect::<Result<_, _>>()
        .or_else(|(entry, reason): (&String, String)| named(Err(Failure::new(reason)), entry, flag))
}

fn rate<'e>(entry: &'e String, field: &str, bytes: bool) -> Result<Value, (&'e String, String)> {
    const WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;
    let fail = |reason: String| (entry, reason);
    let parts = entry.split_once(':').filter(|(path, _)| !path.is_empty());
    let (path, rate) = parts.ok_or_else(|| fail(format!("bad format: {entry}")))?;
    if !path.starts_with("/dev/") {
        return Err(fail(format!("bad format for device path: {entry}")));
    }
    let number = match rate.parse::<u64>() {
        _ if bytes => parse_size(rate).ok().and_then(|size| size.try_into().ok()),
        Ok(weight) if field == "Weight" && weight != 0 && !WEIGHTS.contains(&weight) => None,
        number => number.ok(),
    };
    match number {
        Some(number) => Ok(json!({"Path": path, field: number})),
        None if field == "Weight" => Err(fail(format!("invalid weight for device: {entry}"))),
        None if bytes => Err(fail(format!(
            "invalid rate for device: {entry}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        ))),
        None => Err(fail(format!(
            "invalid rate for device: {entry}. The correct format is <device-path>:<number>. Number must be a positive integer"
        ))),
    }
}

/// Checks rules such as `c 1:3 rwm`.
fn device_rules(given: &[String]) -> Outcome<Value> {
    let number = |text: &str| {
        text == "*" || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let valid = |rule: &str| match rule.split(' ').collect::<Vec<_>>()[..] {
        ["a" | "c" | "b", device, mode] => {
            device
                .split_once(':')
                .is_some_and(|(major, minor)| number(major) && number(minor))
                && (1..=3).contains(&mode.len())
                && mode.bytes().all(|letter| b"rwm".contains(&letter))
        }
        _ => false,
    };
    match given.iter().find(|rule| !valid(rule)) {
        Some(rule) => {
            let wrong = Failure::new(format!("invalid device cgroup format '{rule}'"));
            named(Err(wrong), rule, "--device-cgroup-rule")
        }
        None => Ok(list(given)),
    }
}

/// Parses `HOST[:CONTAINER[:MODE]]`.
fn parse_device(text: &str) -> Outcome<Value> {
    // Each of the letters at most once.
    let is_mode = |mode: &str| {
        !mode.is_empty()
            && mode.chars().all(|letter| "rwm".contains(letter))
            && "rwm"
                .chars()
                .all(|letter| mode.matches(letter).count() <= 1)
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, mode) = match parts.as_slice() {
        [host] if !host.is_empty() => (*host, *host, "rwm"),
        [host, mode] if !host.is_empty() && is_mode(mode) => (*host, *host, *mode),
        [host, container] if !host.is_empty() => (*host, *container, "rwm"),
        [host, container, mode] if !host.is_empty() => {
            if !is_mode(mode) {
                return Err(invalid(format!("bad mode specified: {mode}")));
            }
            (*host, *container, *mode)
        }
        _ => return Err(invalid(format!("bad format for path: {text}"))),
    };
    if !container.starts_with('/') {
        return Err(invalid(format!("{container} is not an absolute path")));
    }
    Ok(json!({"PathOnHost": host, "PathInContainer": container, "CgroupPermissions": mode}))
}

/// Parses `TYPE=SOFT[:HARD]`.
fn parse_ulimit(text: &str) -> Outcome<Value> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let fail = |reason: String| {
        Failure::with_code(
            125,
            format!("invalid argument {text:?} for \"--ulimit\" flag: {reason}"),
        )
    };
    let (name, values) = text
        .split_once('=')
        .ok_or_else(|| fail(format!("invalid ulimit argument: {text}")))?;
    if !NAMES.contains(&name) {
        return Err(fail(format!("invalid ulimit type: {name}")));
    }
    if values.split(':').count() > 2 {
        return Err(fail(format!(
            "too many limit value arguments - {values}, can only have up to two, `soft[:hard]`"
        )));
    }
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |value: &str| {
        value.parse::<i64>().map_err(|_| {
            fail(format!(
                "strconv.ParseInt: parsing {value:?}: invalid syntax"
            ))
        })
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(fail(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    Ok(json!({"Name": name, "Soft": soft, "Hard": hard}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_finite_numbers() {
        assert_eq!(nano_cpus("1.5").unwrap(), 1_500_000_000);
        for text in ["nan", "NaN", "inf", "-inf", "x"] {
            let text = nano_cpus(text).unwrap_err().text;
            assert!(text.contains("as a rational number"), "{text}");
        }
    }

    #[test]
    fn parses_devices_and_ulimits() {
        assert_eq!(
            parse_ulimit("nofile=10:20").unwrap(),
            json!({"Name": "nofile", "Soft": 10, "Hard": 20})
        );
        assert!(
            parse_ulimit("foo=1")
                .unwrap_err()
                .text
                .ends_with("invalid ulimit type: foo")
        );
        assert_eq!(
            parse_device("/dev/a:r").unwrap(),
            json!({"PathOnHost": "/dev/a", "PathInContainer": "/dev/a", "CgroupPermissions": "r"})
        );
    }

    #[test]
    fn rejects_devices_with_dockers_texts() {
        for (device, text) in [
            ("x", "x is not an absolute path"),
            ("/dev/null:x", "x is not an absolute path"),
            ("/dev/null:rr", "rr is not an absolute path"),
            ("/dev/null:", " is not an absolute path"),
            ("/dev/null:/a:z", "bad mode specified: z"),
            ("/a:/b:c:d", "bad format for path: /a:/b:c:d"),
            ("", "bad format for path: "),
        ] {
            assert_eq!(parse_device(device).unwrap_err().text, text, "{device}");
        }
        let rate = |entry: &str, field, bytes| {
            rates(&[entry.to_owned()], "--x", field, bytes).map_err(|failure| failure.text)
        };
        assert_eq!(
            rate("/dev/sda:1k", "Rate", true),
            Ok(vec![json!({"Path": "/dev/sda", "Rate": 1024})])
        );
        for (entry, field, bytes, text) in [
            ("foo", "Rate", true, "bad format: foo"),
            (":5", "Rate", true, "bad format: :5"),
            ("foo:1", "Rate", true, "bad format for device path: foo:1"),
            (
                "/dev/a:-5",
                "Rate",
                true,
                "invalid rate for device: /dev/a:-5. The correct format is <device-path>:<number>[<unit>]. ",
            ),
            (
                "/dev/a:1k",
                "Rate",
                false,
                "invalid rate for device: /dev/a:1k. The correct format is <device-path>:<number>. ",
            ),
            (
                "/dev/a:5",
                "Weight",
                false,
                "invalid weight for device: /dev/a:5",
            ),
        ] {
            let text = format!("invalid argument {entry:?} for \"--x\" flag: {text}");
            assert!(
                rate(entry, field, bytes).unwrap_err().starts_with(&text),
                "{entry}"
            );
        }
        let rules = |rule: &str| device_rules(&[rule.to_owned()]).is_ok();
        assert!(rules("c 1:3 rwm") && rules("a *:* r"));
        assert!(!rules("foo") && !rules("c 1:3 rwmr") && !rules("c 1 r"));
    }

    #[test]
    fn environment_contains_each_name_once() {
        let given = ["A=1", "A=2", "NOT_SET_ANYWHERE_X"].map(str::to_owned);
        assert_eq!(
            environment(&given, &[]).unwrap(),
            json!(["A=2", "NOT_SET_ANYWHERE_X"])
        );
        assert!(environment(&["=x".into()], &[]).is_err());
    }
}
