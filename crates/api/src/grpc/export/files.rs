//! Outputs that are files: a directory of the client, and a tar archive. Statements about the files are files beside them.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use whelk_build::{Solved, Statement, View, Work};
use whelk_buildkit::files::{self, Outgoing};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::output;
use whelk_buildkit::session::Session;

use super::super::{Buildkit, blocking};
use super::attributes::Files;
use super::{Copying, Export, Exported, Results, failed};

/// The files of a platform.
struct Mounted {
    root: OwnedFd,
    /// Keeps the files as long as the root is read.
    view: View,
    /// The directory that they are given in, apart from the one that the client has chosen.
    below: Option<String>,
    /// In seconds since 1970, if all files have the same time.
    epoch: Option<i64>,
}

/// Keeps the layers of results as long as it exists.
fn layers(results: &Results) -> Vec<Arc<Solved>> {
    let results = results.list.iter();
    results.map(|result| result.solved.clone()).collect()
}

impl Buildkit {
    /// Mounts the files of all results.
    async fn mounted(
        self: &Arc<Self>,
        export: &Export,
        results: &Results,
        files: &Files,
    ) -> Result<Vec<Mounted>> {
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
                let root = view.root.try_clone();
                let root =
                    root.map_err(|error| Status::unknown(format!("the result's files: {error}")))?;
                Ok((root, view, paths))
            };
            let (root, view, paths) = blocking(mount).await?;
            for path in paths {
                if let Some(other) = known.insert(path.clone(), id.clone()) {
                    let text = format!(
                        "cannot overwrite {path} from {other} with {id} when split option is disabled"
                    );
                    return Err(Status::invalid(text));
                }
            }
            found.push(Mounted {
                root,
                view,
                below: is_split.then_some(directory),
                epoch: export.epoch_of(result),
            });
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
        for mounted in self.mounted(export, results, files).await? {
            let Mounted {
                root,
                view,
                below,
                epoch,
            } = mounted;
            let label = match &below {
                Some(directory) => format!("copying files {}", directory.replace('_', "/")),
                None => "copying files".to_owned(),
            };
            let outgoing = Outgoing {
                root,
                below,
                mtime: epoch.map(|seconds| seconds.saturating_mul(SECOND)),
            };
            let mut copying = Copying::new(work, label);
            let turn = super::turn(work).await;
            let stream = session.export(export.id, &BTreeMap::new())?;
            let holder = (view, layers(results));
            let sent = files::send(stream, turn, outgoing, holder, |bytes| copying.at(bytes));
            sent.await
                .map_err(|error| Status::unknown(error.to_string()))?;
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
        let mounted = self.mounted(export, results, files).await?;
        let epoch = mounted.iter().find_map(|one| one.epoch);
        let mut copying = Copying::new(work, "sending tarball".into());
        let layers = layers(results);
        let produce = move |output: &mut dyn Write| {
            let mut views = Vec::with_capacity(mounted.len());
            let roots = mounted.into_iter().map(|one| {
                views.push(one.view);
                (one.below.unwrap_or_default(), one.root)
            });
            let roots: Vec<_> = roots.collect();
            whelk_image::snapshots::export_roots_at(&roots, epoch, output)?;
            drop((views, layers));
            Ok::<_, whelk_build::Error>(())
        };
        let turn = super::turn(work).await;
        let stream = session.export(export.id, &BTreeMap::new())?;
        output::write(stream, turn, produce, |bytes| copying.at(bytes)).await?;
        copying.end();
        Ok(())
    }
}
