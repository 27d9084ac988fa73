//! Outputs that are files: a directory of the client, and a tar archive. Statements about the files are files beside them.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use whelk_build::{Statement, View, Work};
use whelk_buildkit::files::{self, Outgoing};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::output;
use whelk_buildkit::session::Session;

use super::super::Door;
use super::attributes::Files;
use super::{Copying, Export, Exported, Results, failed};

/// The files of a platform.
struct Mounted {
    view: View,
    /// The directory that they are given in, apart from the one that the client has chosen.
    below: Option<String>,
}

impl Door {
    /// Mounts the files of all results.
    async fn mounted(
        self: &Arc<Self>,
        results: &Results,
        files: &Files,
    ) -> Result<Vec<(Mounted, Option<i64>)>> {
        let is_split = files.is_split.unwrap_or(results.is_map);
        let mut found = Vec::with_capacity(results.list.len());
        let mut known = BTreeMap::new();
        for result in &results.list {
            let Exported { solved, id, .. } = result;
            let directory = id.replace('/', "_");
            let statements = result.statements.iter();
            let statements = statements.filter(|one| !one.is_inline_only()).cloned();
            let statements: Vec<Statement> = statements.collect();
            let suffix = (results.is_map && !is_split).then(|| directory.clone());
            let (prefix, solved) = (files.prefix.clone(), solved.clone());
            let builder = self.builder.clone();
            let must_differ = results.is_map && !is_split;
            let mount = move || {
                let name = |file: &str| match (&suffix, file.rsplit_once('.')) {
                    (None, _) => format!("{prefix}{file}"),
                    (Some(suffix), Some((stem, ending))) => {
                        format!("{prefix}{stem}.{suffix}.{ending}")
                    }
                    (Some(suffix), None) => format!("{prefix}{file}.{suffix}"),
                };
                let view = solved.mount_with(&builder, &statements, name);
                let view = view.map_err(|error| failed(&error))?;
                let paths = match must_differ {
                    true => view.paths().map_err(|error| failed(&error))?,
                    false => Vec::new(),
                };
                Ok((view, paths))
            };
            let (view, paths) = blocking(mount).await?;
            for path in paths {
                if let Some(other) = known.insert(path.clone(), id.clone()) {
                    let text = format!(
                        "cannot overwrite {path} from {other} with {id} when split option is disabled"
                    );
                    return Err(Status::invalid(text));
                }
            }
            let below = is_split.then_some(directory);
            found.push((Mounted { view, below }, result.epoch));
        }
        Ok(found)
    }

    /// Sends the files of results to a directory of the client. Existing files there are replaced, others stay.
    pub(super) async fn send_files(
        self: &Arc<Self>,
        session: &Session,
        export: &Export,
        results: &Results,
        files: &Files,
        work: &Work,
    ) -> Result<()> {
        const SECOND: i64 = 1_000_000_000;
        for (mounted, epoch) in self.mounted(results, files).await? {
            let Mounted { view, below } = mounted;
            let label = match &below {
                Some(directory) => format!("copying files {}", directory.replace('_', "/")),
                None => "copying files".to_owned(),
            };
            let root = view.root.try_clone();
            let outgoing = Outgoing {
                root: root
                    .map_err(|error| Status::unknown(format!("the result's files: {error}")))?,
                below,
                mtime: export
                    .epoch
                    .or(epoch)
                    .map(|seconds| seconds.saturating_mul(SECOND)),
            };
            let mut copying = Copying::new(work, label);
            let stream = session.export(export.id)?;
            let solved: Vec<_> = results.list.iter().map(|one| one.solved.clone()).collect();
            let holder = (view, solved);
            let sent = files::send(stream, outgoing, holder, |bytes| copying.at(bytes)).await;
            sent.map_err(|error| Status::unknown(error.to_string()))?;
            copying.end();
        }
        Ok(())
    }

    /// Sends the files of results as a tar archive.
    pub(super) async fn send_tar(
        self: &Arc<Self>,
        session: &Session,
        export: &Export,
        results: &Results,
        files: &Files,
        work: &Work,
    ) -> Result<()> {
        let mounted = self.mounted(results, files).await?;
        let epoch = mounted.iter().find_map(|(_, epoch)| *epoch);
        let epoch = export.epoch.or(epoch);
        let mut copying = Copying::new(work, "sending tarball".into());
        let solved: Vec<_> = results.list.iter().map(|one| one.solved.clone()).collect();
        let produce = move |output: &mut dyn Write| {
            let _held = solved;
            let mut roots = Vec::with_capacity(mounted.len());
            for (one, _) in &mounted {
                let root = one.view.root.try_clone().map_err(|error| {
                    whelk_build::Error::invalid(format!("the result's files: {error}"))
                })?;
                roots.push((one.below.clone().unwrap_or_default(), root));
            }
            whelk_image::snapshots::export_roots_at(&roots, epoch, output)?;
            Ok::<_, whelk_build::Error>(())
        };
        let stream = session.export(export.id)?;
        output::write(stream, produce, |bytes| copying.at(bytes)).await?;
        copying.end();
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Status::unknown(error.to_string())))
}
