//! `buildx inspect`.

use clap::Args;

use super::{BuilderFlags, platforms, version, worker};
use crate::Outcome;
use crate::client::Client;
use crate::commands::build::options::one_builder;
use crate::output::{print, print_line};
use crate::terminal::one_line;

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    flags: BuilderFlags,
    /// Ensure builder has booted before inspecting: the engine has
    #[arg(long)]
    bootstrap: bool,
    /// The builder
    #[arg(value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
}

pub(crate) async fn inspect(client: &Client, args: InspectArgs) -> Outcome {
    for name in [&args.flags.builder, &args.name] {
        one_builder(client, name)?;
    }
    let worker = worker(client).await?;
    let name = client.context();
    print_line!("Name:          {name}\nDriver:        docker\n\nNodes:")?;
    print_line!("Name:             {name}\nEndpoint:         {name}\nStatus:           running")?;
    print_line!(
        "BuildKit version: {}\nPlatforms:        {}",
        one_line(&version(&worker)),
        one_line(&platforms(&worker))
    )?;
    if !worker.labels.is_empty() {
        print_line!("Labels:")?;
        for (name, value) in &worker.labels {
            print_line!(" {}: {}", one_line(name), one_line(value))?;
        }
    }
    for (index, rule) in worker.gc_policy.iter().enumerate() {
        let mut text = format!("GC Policy rule#{index}:\n All:            {}\n", rule.all);
        if !rule.filters.is_empty() {
            let filters = one_line(&rule.filters.join(" "));
            text += &format!(" Filters:        {filters}\n");
        }
        if rule.keep_duration > 0 {
            let duration = whelk_text::duration::format(rule.keep_duration);
            text += &format!(" Keep Duration:  {duration}\n");
        }
        for (name, bytes) in [
            ("Reserved Space:", rule.reserved_space),
            ("Max Used Space:", rule.max_used_space),
            ("Min Free Space:", rule.min_free_space),
        ] {
            if bytes > 0 {
                let bytes = whelk_text::size::binary(u64::try_from(bytes).unwrap_or(0));
                text += &format!(" {name} {bytes}\n");
            }
        }
        print(&text)?;
    }
    Ok(0)
}
