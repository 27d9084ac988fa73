//! The commands of contexts, one file each. They need no engine.

mod create;
mod endpoint;
mod export;
mod import;
mod inspect;
mod ls;
mod rm;
mod show;
mod switch;
mod update;

use clap::Subcommand;

use crate::context::{Context, ContextStore, DEFAULT, ENDPOINT, TlsFiles};
use crate::endpoint::RootFlags;
use crate::{Failure, Outcome, files, plain};

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Create a context
    Create(create::CreateContextArgs),
    /// Export a context to a tar archive FILE or a tar stream on STDOUT
    Export(export::ExportArgs),
    /// Import a context from a tar file
    Import(import::ImportArgs),
    /// Display detailed information on one or more contexts
    Inspect(inspect::InspectArgs),
    /// List contexts
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove one or more contexts
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
    /// Print the name of the current context
    Show,
    /// Update a context
    Update(update::UpdateArgs),
    /// Set the current context
    Use(switch::UseArgs),
}

/// Runs a command of `whelk context`.
pub(crate) fn group(flags: &RootFlags, command: ContextCommand) -> Outcome {
    flags.check()?;
    match command {
        ContextCommand::Create(args) => create::create(flags, args),
        ContextCommand::Export(args) => export::export(flags, args),
        ContextCommand::Import(args) => import::import(flags, args),
        ContextCommand::Inspect(args) => inspect::inspect(flags, args),
        ContextCommand::Ls(args) => ls::ls(flags, args),
        ContextCommand::Rm(args) => rm::rm(flags, args),
        ContextCommand::Show => show::show(flags),
        ContextCommand::Update(args) => update::update(flags, args),
        ContextCommand::Use(args) => switch::switch(flags, args),
    }
}

/// The description of the default context.
const DEFAULT_DESCRIPTION: &str = "Current DOCKER_HOST based configuration";

fn store(flags: &RootFlags) -> Outcome<ContextStore> {
    let config = flags.config();
    config
        .map(|config| ContextStore::new(&config))
        .ok_or_else(|| Failure::new("no configuration directory: $HOME is not defined"))
}

/// Returns a context, which may be the default one, and its PEM files.
fn load(flags: &RootFlags, name: &str) -> Outcome<(Context, TlsFiles)> {
    if name != DEFAULT {
        let store = store(flags)?;
        let context = store.read(name).map_err(Failure::new)?;
        return Ok((context, store.tls(name)?));
    }
    let (host, certificates) = flags.default_host()?;
    let host = host.to_string();
    let Some(certificates) = certificates else {
        return Ok((Context::new(DEFAULT, "", &host, false), TlsFiles::new()));
    };
    let mut tls = TlsFiles::new();
    for (name, path) in [
        ("ca.pem", &certificates.authorities),
        ("cert.pem", &certificates.certificate),
        ("key.pem", &certificates.key),
    ] {
        let Some(path) = path else {
            continue;
        };
        let content = files::read(path)
            .map_err(|error| Failure::new(format!("open {}: {}", path.display(), plain(&error))))?;
        let endpoint = tls.entry(ENDPOINT.to_owned()).or_default();
        endpoint.insert(name.to_owned(), content);
    }
    Ok((
        Context::new(DEFAULT, "", &host, certificates.skip_verify),
        tls,
    ))
}

/// Checks that a context of this name can be created.
fn check_new(store: &ContextStore, name: &str) -> Outcome<()> {
    crate::context::check_name(name)?;
    if store.exists(name) {
        return Err(Failure::new(format!("context {name:?} already exists")));
    }
    Ok(())
}
