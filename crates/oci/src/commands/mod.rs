//! The commands of `whelk oci`, one file each.

mod create;
mod delete;
mod example;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod process;
mod ps;
mod start;
mod update;

use std::path::Path;

use serde_json::json;
use whelk_runtime::{Error, Result, state_json};
use whelk_sys::fs;

use crate::state::{StateFile, Status, directory};
use crate::{Cli, Command, Delete, Log};

/// Runs a command, and returns the exit code.
pub(crate) fn run(cli: Cli, log: &Log) -> Result<u8> {
    if cli.systemd_cgroup {
        return Err(Error::invalid(
            "--systemd-cgroup: the systemd cgroup driver is not supported by this version of whelk",
        ));
    }
    let root = cli.root.as_path();
    match cli.command {
        Command::Create(args) => create::create(root, &args, log).map(|()| 0),
        Command::Start { id } => start::start(root, &id).map(|()| 0),
        Command::Run(args) => {
            // Orphans of the container become children of this process, which reaps them.
            let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
            create::create(root, &args.create, log)?;
            start::start(root, &args.create.id)?;
            if args.detach {
                return Ok(0);
            }
            let state = StateFile::load(root, &args.create.id)?;
            let code = process::wait_for(state.pid)?;
            delete::delete(
                root,
                &Delete {
                    force: true,
                    id: args.create.id,
                },
                log,
            )?;
            Ok(code)
        }
        Command::State { id } => {
            let state = describe(root, &StateFile::load(root, &id)?)?;
            print(&format!("{state:#}\n")).map(|()| 0)
        }
        Command::Kill(args) => kill::kill(root, &args).map(|()| 0),
        Command::Delete(args) => delete::delete(root, &args, log).map(|()| 0),
        Command::Exec(args) => exec::exec(root, args, log),
        Command::Ps(args) => ps::ps(root, &args).map(|()| 0),
        Command::List(args) => list::list(root, &args).map(|()| 0),
        Command::Pause { id } => pause::freeze(root, &id, true).map(|()| 0),
        Command::Resume { id } => pause::freeze(root, &id, false).map(|()| 0),
        Command::Update(args) => update::update(root, args).map(|()| 0),
        Command::Features => print(&format!("{:#}\n", features::features())).map(|()| 0),
        Command::Spec(args) => {
            let path = args.bundle.join("config.json");
            if fs::exists(&path) {
                return Err(Error::invalid(format!("{} exists already", path.display())));
            }
            fs::write(&path, format!("{:#}\n", example::example()))?;
            Ok(0)
        }
    }
}

/// Returns a container's state as the OCI runtime specification defines it, and when it was created.
fn describe(root: &Path, state: &StateFile) -> Result<serde_json::Value> {
    let directory = directory(root, &state.id)?;
    let status = state.status(&directory)?;
    let pid = if status == Status::Stopped {
        0
    } else {
        state.pid
    };
    let spec = state.spec(&directory)?;
    let mut value = state_json(
        &state.id,
        status.as_str(),
        pid,
        &state.bundle,
        &spec.annotations,
    );
    value["created"] = json!(state.created);
    Ok(value)
}

/// Writes text to standard output. Unlike `println!`, it does not panic on a closed pipe.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| {
            Error::Os(format!(
                "write to standard output: {}",
                whelk_sys::errno_text(&error)
            ))
        })
}
