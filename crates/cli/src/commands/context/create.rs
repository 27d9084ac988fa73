//! The `context create` command.

use clap::Args;

use super::{DEFAULT_DESCRIPTION, check_new, endpoint, load, store};
use crate::context::{Context, DEFAULT};
use crate::endpoint::RootFlags;
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct CreateContextArgs {
    /// Description of the context
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Set the docker endpoint: from=CONTEXT, or host=…,ca=FILE,cert=FILE,key=FILE,skip-tls-verify=…
    #[arg(long)]
    docker: Vec<String>,
    /// Create context from a named context
    #[arg(long, default_value = "", hide_default_value = true)]
    from: String,
    context: String,
}

pub(super) fn create(flags: &RootFlags, args: CreateContextArgs) -> Outcome {
    let store = store(flags)?;
    let name = args.context.as_str();
    let settings = endpoint::settings(&args.docker)?;
    check_new(&store, name)?;
    let (context, tls) = if settings.is_empty() {
        let from = match args.from.as_str() {
            "" => flags.context(),
            from => from.to_owned(),
        };
        let (mut context, tls) = load(flags, &from)?;
        context.set_name(name);
        if !args.description.is_empty() {
            context.set_description(&args.description);
        } else if from == DEFAULT {
            context.set_description(DEFAULT_DESCRIPTION);
        }
        (context, tls)
    } else if args.from.is_empty() {
        let endpoint = endpoint::of(flags, &settings)?;
        let (host, skip_verify) = (&endpoint.host, endpoint.skip_verify);
        let context = Context::new(name, &args.description, host, skip_verify);
        (context, endpoint.tls)
    } else {
        return Err(Failure::new("cannot use --docker flag when --from is set"));
    };
    store.create(&context, &tls)?;
    print_line!("{name}")?;
    warn_line!("Successfully created context {name:?}");
    Ok(0)
}
