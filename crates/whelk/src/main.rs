//! The executable's entry points, selected by its name or first argument.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod init;
mod listen;
mod log;
mod pidfile;
mod registry;
mod reload;
mod repair;
mod systemd;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let program = std::path::Path::new(&name)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_owned();
    match program.as_str() {
        "whelkd" => return daemon::main(arguments),
        // Mounted into a container by `--init`: all arguments are the program to run.
        "docker-init" | "whelk-init" => return init::main(arguments),
        _ => {}
    }
    match std::env::args_os()
        .nth(1)
        .as_ref()
        .and_then(|word| word.to_str())
    {
        Some("daemon") => daemon::main(std::env::args_os().skip(1)),
        Some("shim") => shim(),
        Some("init") => init::main(std::env::args_os().skip(2)),
        Some("oci") => whelk_oci::main(std::env::args_os().skip(2)),
        Some("registry") => registry::main(std::env::args_os().skip(2)),
        Some("man") => manual(std::env::args_os().nth(2)),
        _ => whelk_cli::main(repair::repair),
    }
}

/// `whelk man DIRECTORY`: writes the manual pages of all commands.
fn manual(directory: Option<std::ffi::OsString>) -> ExitCode {
    let Some(directory) = directory else {
        return report("man", Err("no output directory specified"));
    };
    let named = |command: clap::Command, name: &'static str| {
        let file = name.replace(' ', "-");
        command
            .name(file.clone())
            .display_name(file)
            .bin_name(name)
            .disable_help_subcommand(true)
    };
    let pages = [
        whelk_cli::definitions(),
        named(daemon::definitions(), "whelk daemon"),
        named(whelk_oci::definitions(), "whelk oci"),
        named(registry::definitions(), "whelk registry"),
    ];
    let written = pages
        .into_iter()
        .try_for_each(|command| clap_mangen::generate_to(command, &directory));
    report(
        "man",
        written.map_err(|error| {
            format!(
                "write pages to {}: {}",
                directory.display(),
                whelk_sys::errno_text(&error)
            )
        }),
    )
}

/// `whelk shim --cgroup PATH`: started only by the engine.
fn shim() -> ExitCode {
    let mut arguments = std::env::args_os()
        .skip(2)
        .map(|word| word.to_string_lossy().into_owned());
    let cgroup = if arguments.next().as_deref() == Some("--cgroup") {
        arguments.next()
    } else {
        None
    };
    report("shim", whelk_shim::boot::run(cgroup.as_deref()))
}

fn report<E: std::fmt::Display>(program: &str, result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Unlike `eprintln!`, this does not panic if standard error is closed.
            let _ = writeln!(std::io::stderr(), "whelk {program}: {error}");
            ExitCode::FAILURE
        }
    }
}
