//! Outputs of builds.

mod archive;
mod attestations;
mod attributes;
mod files;
mod image;
mod index;
mod packed;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whelk_build::{Error, EventKind, Finished, Solved, Statement, Work};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::control::{Exporter, SolveResponse};
use whelk_buildkit::pb::gateway;
use whelk_buildkit::pb::session::FindExportersRequest;
use whelk_buildkit::turns::{OUTPUTS, Turn};
use whelk_dockerfile::convert::Image;
use whelk_image::Reference;
use whelk_image::archive::{Compression, Form};
use whelk_llb::pb::Platform;

use super::Buildkit;
use super::builds::{self, Build};
use attributes::{Annotations, Attestations, Files};

pub(super) use attributes::{parse, with_epoch};

/// Maximum number of outputs that a session names.
const MAX_FOUND: usize = 64;

/// An output of a build.
#[derive(Clone, Debug)]
pub(super) struct Export {
    /// The position in the request, by which the client knows it.
    id: usize,
    /// The time of what is made, in seconds since 1970, instead of the one that the Dockerfile's `SOURCE_DATE_EPOCH` says.
    epoch: Option<i64>,
    /// The configuration of the image, instead of the result's.
    config: Option<Box<Image>>,
    /// Whether the names of the image are those that the frontend returns.
    is_named_by_frontend: bool,
    output: Output,
}

#[derive(Clone, Debug)]
enum Output {
    /// An image of the engine.
    Image(ImageOutput),
    Archive(Archive),
    /// A directory of the client.
    Directory(Files),
    /// A tar archive of the files.
    Tar(Files),
}

#[derive(Clone, Debug)]
struct ImageOutput {
    names: Vec<Reference>,
    push: Push,
    /// Whether it becomes an image of the engine.
    is_stored: bool,
    /// Whether the registry may be used without TLS, if the engine's settings allow that.
    is_insecure: bool,
    form: ImageForm,
    annotations: Annotations,
    must_rewrite_times: bool,
    attestations: Attestations,
}

/// How an image is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Push {
    Not,
    /// By the tags of its names.
    Tags,
    /// To the repositories of its names, without tags.
    Digest,
}

/// The form of the layers and the manifests that are pushed.
#[derive(Clone, Copy, Debug)]
struct ImageForm {
    compression: Compression,
    /// No layer is taken over as a registry has it.
    is_forced: bool,
    has_docker_types: bool,
}

impl ImageOutput {
    /// Returns the names of the engine's image.
    fn tags(&self) -> Vec<Reference> {
        match self.push {
            Push::Digest => Vec::new(),
            Push::Not | Push::Tags => self.names.clone(),
        }
    }

    /// Returns whether the image is packed when it is made. Otherwise it is when it is pushed, if the registry does not have its
    /// layers: with gzip, and with OCI's media types.
    fn is_packed(&self, has_index: bool) -> bool {
        let form = &self.form;
        let is_usual = form.compression == Compression::Gzip
            && !form.is_forced
            && !form.has_docker_types
            && self.is_stored;
        let has_document = has_index || !self.annotations.is_empty();
        !is_usual || (self.push == Push::Digest && has_document)
    }
}

/// An archive of an image.
#[derive(Clone, Debug)]
struct Archive {
    form: Form,
    names: Vec<Reference>,
    /// Not an archive, but the blobs alone.
    is_layout: bool,
    compression: Compression,
    has_docker_types: bool,
    annotations: Annotations,
    must_rewrite_times: bool,
    attestations: Attestations,
}

impl Export {
    /// Returns the name of the step that clients show while the output is made.
    fn label(&self) -> &'static str {
        match &self.output {
            Output::Image(_) => "exporting to image",
            Output::Archive(archive) if archive.form == Form::Docker => {
                "exporting to docker image format"
            }
            Output::Archive(_) => "exporting to oci image format",
            Output::Directory(_) => "exporting to client directory",
            Output::Tar(_) => "exporting to client tarball",
        }
    }

    /// Returns the output with what a frontend has returned for it: annotations, and the names, if it wants these.
    fn with_returned(&self, metadata: &BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let mut export = self.clone();
        let names = metadata.get(archive::NAMES);
        let names = names.map_or("*".into(), |names| String::from_utf8_lossy(names));
        let names = Some(names).filter(|_| self.is_named_by_frontend);
        match &mut export.output {
            Output::Image(image) => {
                if let Some(names) = names {
                    image.names = attributes::names(&names, image.push)?;
                }
                image.annotations.add_returned(metadata)?;
                image.form.has_docker_types &= !image.annotations.need_oci_types();
            }
            Output::Archive(archive) => {
                if let Some(names) = names {
                    archive.names = attributes::names(&names, Push::Not)?;
                }
                archive.annotations.add_returned(metadata)?;
                archive.has_docker_types &= !archive.annotations.need_oci_types();
            }
            Output::Directory(_) | Output::Tar(_) => {}
        }
        Ok(export)
    }

    /// Returns whether the output is a directory with an OCI layout, whose blobs the client stores itself.
    fn is_layout(&self) -> bool {
        matches!(&self.output, Output::Archive(archive) if archive.is_layout)
    }
}

/// The entries of `SolveResponse`, which describe the outputs to the client.
#[derive(Debug, Default)]
struct Answer {
    /// Of all: an entry is that of the last output that has it.
    entries: BTreeMap<String, String>,
    /// Of a layout.
    layout: Option<BTreeMap<String, String>>,
}

impl Answer {
    fn add(&mut self, export: &Export, told: BTreeMap<String, String>) {
        if export.is_layout() {
            self.layout = Some(told.clone());
        }
        self.entries.extend(told);
    }

    /// Returns all entries. The protocol has one descriptor for all outputs, which clients write into the index of a layout with the
    /// names beside it: these are the layout's, if there is one.
    fn into_entries(mut self) -> BTreeMap<String, String> {
        if let Some(layout) = self.layout {
            self.entries
                .retain(|key, _| !archive::OF_LAYOUT.contains(&key.as_str()));
            let own = layout.into_iter();
            let own = own.filter(|(key, _)| archive::OF_LAYOUT.contains(&key.as_str()));
            self.entries.extend(own);
        }
        self.entries
    }
}

impl Buildkit {
    /// Solves the result of a build, and makes images of it. `wanted` are the platforms that the client has asked for.
    pub(super) async fn export(
        self: &Arc<Self>,
        build: &Build,
        returned: &gateway::Result,
        exports: &[Export],
        wanted: Option<&str>,
    ) -> Result<SolveResponse> {
        let mut answer = Answer::default();
        // Results of subrequests, which the client shows.
        let shown = returned.metadata.iter();
        let shown = shown
            .filter(|(name, _)| name.starts_with("frontend.") || name.starts_with("result."))
            .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()));
        answer.entries.extend(shown);
        let is_subrequest = !answer.entries.is_empty();
        if super::platforms::is_empty(returned) && (exports.is_empty() || is_subrequest) {
            return Ok(SolveResponse {
                exporter_response: answer.into_entries(),
            });
        }
        let (found, is_map) = super::platforms::returned(build, returned)?;
        let solving = found.iter().map(|one| one.reference.solve(&self.builder));
        let solved = futures_util::future::try_join_all(solving).await?;
        let mut results = Results {
            is_map,
            list: Vec::with_capacity(found.len()),
        };
        for (one, solved) in found.into_iter().zip(solved) {
            let provenance = one.reference.provenance(build, &solved);
            let platform = is_map.then(|| one.id.clone());
            build.note_provenance(platform, provenance);
            let own = one.reference.origin.as_ref();
            let own_image = own.map(|origin| origin.image.clone());
            results.list.push(Exported {
                epoch: one.epoch.or(own.and_then(|origin| origin.epoch)),
                image: one
                    .config
                    .or(own_image)
                    .unwrap_or_else(super::frontend::default_image),
                id: one.id,
                platform: one.platform,
                reference: one.reference,
                solved,
                statements: Vec::new(),
            });
        }
        if !exports.is_empty() {
            self.attest(build, &returned.attestations, &mut results)
                .await?;
        }
        if !super::platforms::is_empty(returned) {
            verify::warn(build, wanted, &results);
        }
        for export in exports {
            let export = &export.with_returned(&returned.metadata)?;
            let work = build.request.progress.begin(export.label());
            match self.export_one(build, &results, export, &work).await {
                Ok(told) => {
                    let _ = work.end(Ok(()));
                    answer.add(export, told);
                }
                Err(status) => {
                    let _ = work.end(Err::<(), _>(Error::invalid(status.message.clone())));
                    return Err(status);
                }
            }
        }
        Ok(SolveResponse {
            exporter_response: answer.into_entries(),
        })
    }

    /// Tells which names an image of the engine has, and waits until the image and the names are on the disk.
    async fn recorded(&self, names: &[Reference], work: &Work) -> Result<()> {
        tell_names(names, work);
        let durable = self.engine.durability.wait().await;
        durable.map_err(|error| Status::unknown(error.to_string()))
    }

    /// Refuses pushes without TLS to registries for which the engine's settings do not allow that.
    pub(super) fn check_registries(&self, exports: &[Export]) -> Result<()> {
        let client = self.engine.images.web();
        for export in exports {
            let Output::Image(image) = &export.output else {
                continue;
            };
            if !image.is_insecure || image.push == Push::Not {
                continue;
            }
            let mut domains = image.names.iter().map(|name| &name.domain);
            if let Some(domain) = domains.find(|domain| !client.may_be_insecure(domain)) {
                return Err(Status::unsupported(format_args!(
                    "registry.insecure=true for {domain}, which is not one of the engine's insecure-registries"
                )));
            }
        }
        Ok(())
    }

    /// Returns the outputs of a request, and those that the client names now that the result is there.
    pub(super) async fn with_exporters_of_session(
        self: &Arc<Self>,
        build: &Build,
        returned: &gateway::Result,
        exporters: &[Exporter],
    ) -> Result<Vec<Export>> {
        let ids = returned
            .kind
            .as_ref()
            .map_or_else(Vec::new, super::platforms::ids);
        let ids = ids.into_iter().filter(|id| !id.is_empty());
        let request = FindExportersRequest {
            metadata: returned.metadata.clone(),
            refs: ids.cloned().collect(),
        };
        let session = self.sessions.get(&build.session).await?;
        let found = session.exporters(&request).await?;
        if found.len() > MAX_FOUND {
            let text = format!("the session names more than {MAX_FOUND} outputs");
            return Err(Status::invalid(text));
        }
        parse(&[exporters, &found].concat())
    }

    /// Makes one output. Returns what the client is told of it.
    async fn export_one(
        self: &Arc<Self>,
        build: &Build,
        results: &Results,
        export: &Export,
        work: &Work,
    ) -> Result<BTreeMap<String, String>> {
        let [first, ..] = results.list.as_slice() else {
            return Err(Status::invalid("the build has no result to export"));
        };
        if let Output::Image(output) = &export.output {
            let part = "exporting layers".to_owned();
            work.add(EventKind::Part {
                name: part,
                is_done: false,
            });
            let has_index = results.has_index(output.attestations);
            output.annotations.check(&results.ids(), has_index)?;
            if output.is_packed(has_index) {
                return self.keep_packed(build, results, export, output, work).await;
            }
            if has_index {
                let index = self.keep_index(build, results, export, output, work);
                return index.await;
            }
            let rewrite = output.must_rewrite_times;
            let finished = self.finish(first, export, rewrite, work).await?;
            let place = (export.id, first.id.as_str());
            return self.keep_image(build, place, &finished, output, work).await;
        }
        let session = self.sessions.get(&build.session).await?;
        match &export.output {
            Output::Archive(archive) => {
                let has_index = results.has_index(archive.attestations);
                archive.annotations.check(&results.ids(), has_index)?;
                if has_index {
                    let index = self.send_index(build, &session, results, export, archive, work);
                    return index.await;
                }
                let rewrite = archive.must_rewrite_times;
                let finished = self.finish(first, export, rewrite, work).await?;
                let (manifest, entry) = archive.annotations.of(&first.id);
                let packing = archive.packing(manifest, entry);
                let place = (export.id, archive);
                self.send_archive(build, &session, place, &finished, packing, work)
                    .await
            }
            Output::Directory(files) => {
                self.send_files(&session, export, results, files, work)
                    .await?;
                Ok(BTreeMap::new())
            }
            Output::Tar(files) => {
                self.send_tar(&session, export, results, files, work)
                    .await?;
                Ok(BTreeMap::new())
            }
            Output::Image(_) => Ok(BTreeMap::new()),
        }
    }

    async fn finish(
        self: &Arc<Self>,
        result: &Exported,
        export: &Export,
        must_rewrite_times: bool,
        work: &Work,
    ) -> Result<Finished> {
        let epoch = export.epoch_of(result);
        if must_rewrite_times && epoch.is_none() {
            let name = "rewrite-timestamp has no effect without SOURCE_DATE_EPOCH".to_owned();
            work.add(EventKind::Part {
                name,
                is_done: true,
            });
        }
        let image = export.config.as_deref().unwrap_or(&result.image).clone();
        if image.os.is_empty() {
            let text = "invalid image config for export: missing os";
            return Err(Status::invalid(text));
        }
        let solved = &result.solved;
        let finished = self
            .builder
            .finish(solved, image, epoch, must_rewrite_times)
            .await;
        finished.map_err(|error| failed(&error))
    }
}

/// The results to export.
struct Results {
    list: Vec<Exported>,
    /// Whether they are by platform.
    is_map: bool,
}

/// A result to export.
struct Exported {
    /// The name of the platform.
    id: String,
    platform: Platform,
    reference: Arc<builds::Reference>,
    solved: Arc<Solved>,
    image: Image,
    epoch: Option<i64>,
    /// Its attestations.
    statements: Vec<Statement>,
}

impl Results {
    fn ids(&self) -> Vec<&str> {
        self.list.iter().map(|one| one.id.as_str()).collect()
    }

    fn has_statements(&self) -> bool {
        self.list.iter().any(|one| !one.statements.is_empty())
    }

    /// Returns whether an image becomes part of an index: of several platforms, or with attestations. Those that buildx wants
    /// without being told to make none.
    fn has_index(&self, attestations: Attestations) -> bool {
        let mut statements = self.list.iter().flat_map(|one| &one.statements);
        self.is_map || statements.any(|one| attestations.is_forced || !one.is_inline_only())
    }
}

impl Export {
    fn epoch_of(&self, result: &Exported) -> Option<i64> {
        self.epoch.or(result.epoch)
    }
}

/// Tells which names an image has.
fn tell_names(names: &[Reference], work: &Work) {
    for name in names {
        work.add(EventKind::Part {
            name: format!("naming to {name}"),
            is_done: true,
        });
    }
}

/// Returns the status of an output that has failed.
fn failed(error: &Error) -> Status {
    super::result::status(error, None)
}

/// Takes a turn to send an output. If there is none, the progress says so.
async fn turn(work: &Work) -> Turn {
    if let Some(turn) = OUTPUTS.begin_soon().await {
        return turn;
    }
    let waiting = |is_done| {
        let name = "waiting until one of the outputs of other builds is sent".to_owned();
        work.add(EventKind::Part { name, is_done });
    };
    waiting(false);
    let turn = OUTPUTS.begin().await;
    waiting(true);
    turn
}

/// Tells from time to time how much was sent.
struct Copying<'a> {
    work: &'a Work,
    label: String,
    bytes: u64,
    last: Instant,
}

impl<'a> Copying<'a> {
    fn new(work: &'a Work, label: String) -> Self {
        let mut copying = Self {
            work,
            label,
            bytes: 0,
            last: Instant::now(),
        };
        copying.tell(false);
        copying
    }

    fn at(&mut self, bytes: u64) {
        const INTERVAL: Duration = Duration::from_millis(100);
        self.bytes = bytes;
        if self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            self.tell(false);
        }
    }

    fn end(mut self) {
        self.tell(true);
    }

    fn tell(&mut self, is_done: bool) {
        self.work.add(EventKind::Transfer {
            name: self.label.clone(),
            bytes: self.bytes,
            is_done,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        let entries = entries.iter();
        entries
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn answer(outputs: &[(bool, &[(&str, &str)])]) -> BTreeMap<String, String> {
        let mut answer = Answer::default();
        for (is_layout, entries) in outputs {
            let mut attrs = BTreeMap::new();
            if *is_layout {
                attrs.insert("tar".to_owned(), "false".to_owned());
            }
            let kind = "oci".to_owned();
            let exporter = Exporter { kind, attrs };
            for export in parse(&[exporter]).unwrap_or_default() {
                answer.add(&export, told(entries));
            }
        }
        answer.into_entries()
    }

    #[test]
    fn the_descriptor_is_that_of_the_layout() {
        let (digest, descriptor) = ("containerimage.digest", "containerimage.descriptor");
        let layout: &[_] = &[(digest, "1"), (descriptor, "1")];
        let named: &[_] = &[(digest, "1"), (descriptor, "1"), ("image.name", "a")];
        let other: &[_] = &[(digest, "2"), (descriptor, "2"), ("image.name", "b")];
        let mixed: &[_] = &[(digest, "2"), (descriptor, "1")];
        let mixed_named: &[_] = &[(digest, "2"), (descriptor, "1"), ("image.name", "a")];
        for (outputs, expected) in [
            (vec![(true, layout), (false, other)], mixed),
            (vec![(true, named), (false, other)], mixed_named),
            (vec![(false, other), (true, layout)], layout),
            (vec![(false, layout), (false, other)], other),
            (vec![(false, other)], other),
        ] {
            assert_eq!(answer(&outputs), told(expected), "{outputs:?}");
        }
    }
}
