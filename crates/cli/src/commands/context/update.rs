//! The `context update` command.

use clap::Args;

use super::{endpoint, store};
use crate::context::{ENDPOINT, check_name};
use crate::endpoint::RootFlags;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Description of the context
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Set the docker endpoint: from=CONTEXT, or host=…,ca=FILE,cert=FILE,key=FILE,skip-tls-verify=…
    #[arg(long)]
    docker: Vec<String>,
    context: String,
}

pub(super) fn update(flags: &RootFlags, args: UpdateArgs) -> Outcome {
    let name = args.context.as_str();
    let settings = endpoint::settings(&args.docker)?;
    check_name(name)?;
    let store = store(flags)?;
    let mut context = store.read(name).map_err(Failure::new)?;
    context.set_name(name);
    if !args.description.is_empty() {
        context.set_description(&args.description);
    }
    if !settings.is_empty() {
        let endpoint = endpoint::of(flags, &settings)?;
        context.set_endpoint(&endpoint.host, endpoint.skip_verify);
        store.set_tls(name, Some(ENDPOINT), &endpoint.tls)?;
    }
    store.write(&context)?;
    print_line!("{name}")?;
    warn_line!("Successfully updated context {name:?}");
    Ok(0)
}
