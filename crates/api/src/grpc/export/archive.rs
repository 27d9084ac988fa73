//! Outputs that are image archives, or the blobs of an OCI layout.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use whelk_build::{EventKind, Finished, Work};
use whelk_buildkit::content::NewBlob;
use whelk_buildkit::grpc::{Code, Result, Status};
use whelk_buildkit::output;
use whelk_buildkit::session::Session;
use whelk_image::archive::{Packed, Packing};
use whelk_image::descriptor::Descriptor;
use whelk_image::{Error, Reference};
use whelk_sys::sync::IgnorePoison as _;

use super::super::Buildkit;
use super::super::builds::Build;
use super::{Archive, Copying, failed};

/// The store of the client that gets the blobs of a layout.
const STORE: &str = "export";

const DESCRIPTOR: &str = "containerimage.descriptor";
pub(super) const NAMES: &str = "image.name";

/// The entries of an answer that the client writes into the index of a layout.
pub(super) const OF_LAYOUT: [&str; 2] = [DESCRIPTOR, NAMES];

impl Buildkit {
    /// Packs an image, and sends it to the client. Returns what it is told of it.
    pub(super) async fn send_archive(
        self: &Arc<Self>,
        build: &Build,
        session: &Session,
        (id, archive): (usize, &Archive),
        finished: &Finished,
        packing: Packing,
        work: &Work,
    ) -> Result<BTreeMap<String, String>> {
        let part = |name: String, is_done| work.add(EventKind::Part { name, is_done });
        part("exporting layers".into(), false);
        let packed = self.builder.pack(finished, packing, |_| {}).await;
        let packed = packed.map_err(|error| failed(&error))?;
        part("exporting layers".into(), true);
        if let Some(content) = packed.manifest_content() {
            build.note_manifest(id, &packed.manifest.media_type, content.to_vec());
        }
        let (manifest, config) = (packed.manifest.clone(), packed.config.digest.clone());
        part(format!("exporting manifest {}", manifest.digest), true);
        part(format!("exporting config {config}"), true);
        let mut answer = told(&manifest, &archive.names)?;
        answer.insert("containerimage.config.digest".into(), config.to_string());
        self.give(session, (id, &answer), packed, archive, work)
            .await?;
        Ok(answer)
    }

    /// Sends what was packed to the client, as the output with this position of which it is told this.
    pub(super) async fn give(
        self: &Arc<Self>,
        session: &Session,
        place: (usize, &BTreeMap<String, String>),
        packed: Packed,
        archive: &Archive,
        work: &Work,
    ) -> Result<()> {
        super::tell_names(&archive.names, work);
        match archive.is_layout {
            true => self.send_blobs(session, packed).await,
            false => {
                self.send_packed(session, place, packed, archive, work)
                    .await
            }
        }
    }

    async fn send_packed(
        self: &Arc<Self>,
        session: &Session,
        (id, told): (usize, &BTreeMap<String, String>),
        mut packed: Packed,
        archive: &Archive,
        work: &Work,
    ) -> Result<()> {
        let mut copying = Copying::new(work, "sending tarball".into());
        let (builder, names, form) = (self.builder.clone(), archive.names.clone(), archive.form);
        let produce = move |output: &mut dyn Write| {
            packed.write(builder.store(), form, &names, output)?;
            Ok::<_, Error>(())
        };
        let turn = super::turn(work).await;
        let stream = session.export(id, told)?;
        match output::write(stream, turn, produce, |bytes| copying.at(bytes)).await {
            // The client has the image, and needs no archive.
            Err(status) if status.code == Code::AlreadyExists => {}
            result => result?,
        }
        copying.end();
        Ok(())
    }

    /// Puts the blobs into the client's store: the manifest, which is the last of them, refers to nothing that is missing.
    async fn send_blobs(self: &Arc<Self>, session: &Session, packed: Packed) -> Result<()> {
        let wanted = packed.blobs.iter().map(|blob| NewBlob {
            digest: blob.descriptor.digest.to_string(),
            size: blob.descriptor.size,
        });
        let wanted: Vec<NewBlob> = wanted.collect();
        let packed = Arc::new(Mutex::new(packed));
        for (index, wanted) in wanted.iter().enumerate() {
            let (builder, packed) = (self.builder.clone(), packed.clone());
            let produce = move |pieces: &mut dyn Write| {
                let mut packed = packed.lock().ignore_poison();
                match packed.blobs.get_mut(index) {
                    Some(blob) => blob.write(builder.store(), pieces),
                    None => Ok(()),
                }
            };
            session.put(STORE, wanted, produce).await?;
        }
        Ok(())
    }
}

impl Archive {
    /// Returns how an image with these annotations is packed.
    pub(super) fn packing(
        &self,
        annotations: BTreeMap<String, String>,
        entry_annotations: BTreeMap<String, String>,
    ) -> Packing {
        Packing {
            compression: self.compression,
            has_docker_types: self.has_docker_types,
            annotations,
            entry_annotations,
        }
    }
}

/// Returns what a client is told of an image or an index with these names.
pub(super) fn told(
    descriptor: &Descriptor,
    names: &[Reference],
) -> Result<BTreeMap<String, String>> {
    let encoded = serde_json::to_vec(descriptor);
    let encoded = encoded.map_err(|error| Status::unknown(error.to_string()))?;
    let mut answer = BTreeMap::from([
        (
            "containerimage.digest".to_owned(),
            descriptor.digest.to_string(),
        ),
        (DESCRIPTOR.into(), STANDARD.encode(encoded)),
    ]);
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(Reference::to_string).collect();
        answer.insert(NAMES.into(), names.join(","));
    }
    Ok(answer)
}
