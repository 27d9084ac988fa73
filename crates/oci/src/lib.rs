//! `whelk oci`: the command line of the OCI runtime, compatible with runc's.
//!
//! ```text
//! <root>/<id>/state.json    pid and start time of the first process, bundle, cgroup
//!            /config.json   the configuration the container was created with
//!            /exec.fifo     exists until the container is started: a byte written to it starts the program
//! ```
//! Each call is a separate, single-threaded process; only the container remains.
#![forbid(unsafe_code)]

mod commands;
mod state;

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use rustix::process::DumpableBehavior;
use whelk_sys::process::exec_fd;
use whelk_sys::program;

/// The OCI runtime command line
#[derive(Debug, Parser)]
#[command(name = "whelk oci", version)]
struct Cli {
    /// Directory for the state of containers
    #[arg(long, global = true, default_value = "/run/whelk/oci")]
    root: PathBuf,
    /// File to log to, in addition to standard error
    #[arg(long, global = true)]
    log: Option<PathBuf>,
    /// Format of the log file: text or json
    #[arg(long, global = true, default_value = "text")]
    log_format: String,
    /// Also log each command
    #[arg(long, global = true)]
    debug: bool,
    /// Let systemd manage cgroups
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a container
    Create(Create),
    /// Run the program of a created container
    Start { id: String },
    /// Create a container, run its program and wait for it
    Run(Run),
    /// Print a container's state
    State { id: String },
    /// Send a signal to a container's first process
    Kill(Kill),
    /// Delete a stopped container
    Delete(Delete),
    /// Run a further process in a container
    Exec(ExecOptions),
    /// List a container's processes
    Ps(Ps),
    /// List containers
    List(List),
    /// Suspend all processes of a container
    Pause { id: String },
    /// Resume all processes of a container
    Resume { id: String },
    /// Change the limits of a container
    Update(Update),
    /// Print the features of this runtime
    Features,
    /// Write an example configuration
    Spec(Bundle),
}

#[derive(Debug, Args)]
struct Bundle {
    /// Directory with config.json
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
}

#[derive(Debug, Args)]
struct Create {
    #[command(flatten)]
    bundle: Bundle,
    /// File for the pid of the first process
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Socket to send the terminal's master to
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// Number of descriptors after standard error to pass to the program
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    id: String,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    create: Create,
    /// Do not wait for the program
    #[arg(short, long)]
    detach: bool,
}

#[derive(Debug, Args)]
struct Kill {
    /// Send the signal to all processes of the container
    #[arg(short, long)]
    all: bool,
    id: String,
    #[arg(default_value = "TERM", allow_hyphen_values = true)]
    signal: String,
}

#[derive(Debug, Args)]
struct Delete {
    /// Kill the container first if it is running; do not fail if it does not exist
    #[arg(short, long)]
    force: bool,
    id: String,
}

#[derive(Debug, Args)]
struct ExecOptions {
    /// File with the process to run (an OCI process object)
    #[arg(short, long)]
    process: Option<PathBuf>,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// Working directory
    #[arg(long)]
    cwd: Option<String>,
    /// Environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// User as UID[:GID]
    #[arg(short, long)]
    user: Option<String>,
    /// Capabilities to add to the container's
    #[arg(short, long)]
    cap: Vec<String>,
    /// Allow in a paused container: the process runs when it is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Number of descriptors after standard error to pass to the program
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    /// Do not wait for the process
    #[arg(short, long)]
    detach: bool,
    /// File for the process's pid
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Socket to send the terminal's master to
    #[arg(long)]
    console_socket: Option<PathBuf>,
    id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct Ps {
    /// Output format: table or json
    #[arg(short, long, default_value = "table")]
    format: String,
    id: String,
}

#[derive(Debug, Args)]
struct List {
    /// Output format: table or json
    #[arg(short, long, default_value = "table")]
    format: String,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct Update {
    /// File with the limits (an OCI resources object), or - for standard input
    #[arg(short, long)]
    resources: Option<PathBuf>,
    /// Memory limit in bytes
    #[arg(long, allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Memory and swap limit in bytes, -1 for none
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Soft memory limit in bytes
    #[arg(long, allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Relative CPU weight
    #[arg(long)]
    cpu_share: Option<u64>,
    /// CPU time allowed per period, in microseconds
    #[arg(long, allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Length of the period, in microseconds
    #[arg(long)]
    cpu_period: Option<u64>,
    /// Processors to use
    #[arg(long, default_value = "")]
    cpuset_cpus: String,
    /// Memory nodes to use
    #[arg(long, default_value = "")]
    cpuset_mems: String,
    /// Maximum number of processes
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    id: String,
}

/// Returns the definitions of the commands, for manual pages.
pub fn definitions() -> clap::Command {
    Cli::command()
}

/// Runs the command line; `arguments` are those after `oci`.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = Cli::parse_from(std::iter::once(OsString::from("whelk oci")).chain(arguments));
    if matches!(
        cli.command,
        Command::Create(_) | Command::Run(_) | Command::Exec(_)
    ) && let Err(error) = protect()
    {
        warn(&format!(
            "error: protect the whelk executable from the container: {}",
            whelk_sys::errno_text(&error)
        ));
        return ExitCode::FAILURE;
    }
    let log = Log {
        file: cli.log.clone(),
        as_json: cli.log_format == "json",
    };
    if cli.debug {
        log.write("debug", &format!("{:?}", cli.command));
    }
    match commands::run(cli, &log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.write("error", &error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Re-executes this program from a file that a container cannot write to ([`whelk_sys::program`]),
/// and makes the process non-dumpable, so that a container cannot access its memory and
/// descriptors. Runs before anything of a container is accessed.
fn protect() -> std::io::Result<()> {
    use std::os::unix::ffi::OsStringExt;
    let c_string = |text: OsString| CString::new(text.into_vec()).map_err(std::io::Error::other);
    if !program::is_sealed()? {
        let sealed = program::sealed(&std::env::current_exe()?)?;
        let arguments = std::env::args_os()
            .map(c_string)
            .collect::<std::io::Result<Vec<_>>>()?;
        let variable = |(mut name, value): (OsString, OsString)| {
            name.push("=");
            name.push(value);
            name
        };
        let environment = std::env::vars_os()
            .map(variable)
            .map(c_string)
            .collect::<std::io::Result<Vec<_>>>()?;
        return Err(exec_fd(sealed.as_fd(), &arguments, &environment));
    }
    // Executed by descriptor, so the name would be the descriptor's number.
    rustix::thread::set_name(c"whelk")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Into::into)
}

/// Writes a line to standard error. Unlike `eprintln!`, it does not panic if that is closed.
fn warn(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "whelk oci: {text}");
}

/// Log for callers: standard error, and a file if one is given.
struct Log {
    file: Option<PathBuf>,
    as_json: bool,
}

impl Log {
    fn write(&self, level: &str, text: &str) {
        warn(&format!("{level}: {text}"));
        let Some(file) = &self.file else { return };
        let line = if self.as_json {
            serde_json::json!({"level": level, "msg": text, "time": jiff::Timestamp::now().to_string()}).to_string()
        } else {
            format!("level={level} msg={text:?}")
        };
        if let Ok(mut file) = whelk_sys::fs::append(file, 0o600) {
            use std::io::Write;
            let _ = writeln!(file, "{line}");
        }
    }
}
