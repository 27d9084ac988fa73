//! `buildx history logs`.

use clap::Args;
use whelk_buildkit::grpc::Result;
use whelk_buildkit::pb::control::{StatusRequest, StatusResponse};

use super::super::BuilderFlags;
use super::{Builds, failed};
use crate::Outcome;
use crate::commands::build::display::{Display, Mode};

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    pub flags: BuilderFlags,
    /// Set type of progress output (`plain`, `rawjson`, `tty`)
    #[arg(long, default_value = "plain")]
    progress: String,
    /// The build; the last one without it
    #[arg(value_name = "REF", default_value = "", hide_default_value = true)]
    name: String,
}

pub(super) async fn logs(builds: &Builds, args: LogsArgs) -> Outcome {
    let mode = Mode::new(&args.progress, false)?;
    let record = builds.find(&args.name).await?;
    let mut display = Display::new(mode, "", false);
    let shown = show(builds, record.r#ref, &mut display).await;
    display.finish();
    shown.map_err(failed)?;
    Ok(0)
}

/// Shows all that clients of a build were told; that of one that runs, until its end.
async fn show(builds: &Builds, name: String, display: &mut Display) -> Result<()> {
    let method = "moby.buildkit.v1.Control/Status";
    let mut stream = builds.channel.stream(method, Default::default())?;
    stream.requests.send(&StatusRequest { r#ref: name }).await?;
    stream.requests.close();
    while let Some(response) = stream.next::<StatusResponse>().await? {
        display.update(&response);
    }
    Ok(())
}
