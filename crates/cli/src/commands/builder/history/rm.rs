//! `buildx history rm`.

use clap::Args;
use whelk_buildkit::pb::control::UpdateBuildHistoryRequest;

use super::super::BuilderFlags;
use super::Builds;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    #[command(flatten)]
    pub flags: BuilderFlags,
    /// Remove all build records
    #[arg(long)]
    all: bool,
    /// The builds
    #[arg(value_name = "REF")]
    names: Vec<String>,
}

pub(super) async fn rm(builds: &Builds, args: RmArgs) -> Outcome {
    let names = match (args.all, args.names.as_slice()) {
        (true, []) => {
            let all = builds.list(Vec::new()).await?.into_iter();
            all.map(|record| record.r#ref).collect()
        }
        (true, _) => return Err(Failure::new("cannot specify refs when using --all")),
        (false, []) => return Err(Failure::new("rm requires at least one argument")),
        (false, _) => {
            let mut found = Vec::new();
            for name in &args.names {
                found.push(builds.find(name).await?.r#ref);
            }
            found
        }
    };
    for name in names {
        let request = UpdateBuildHistoryRequest {
            r#ref: name.clone(),
            delete: true,
            ..UpdateBuildHistoryRequest::default()
        };
        builds.update(&request).await?;
        builds.states.remove(&name);
        if !args.all {
            print_line!("{name}")?;
        }
    }
    Ok(0)
}
