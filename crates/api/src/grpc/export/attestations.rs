//! Attestations of results: provenance, and bills of materials.

use std::sync::Arc;

use whelk_build::{Statement, Work};
use whelk_buildkit::grpc::{Result, Status};
use whelk_image::Digest;

use super::super::Buildkit;
use super::super::builds::Build;
use super::{Results, failed};

impl Buildkit {
    /// Makes the attestations of the results that the client has asked for.
    pub(super) async fn attest(
        self: &Arc<Self>,
        build: &Build,
        results: &mut Results,
    ) -> Result<()> {
        let attest = &build.attest;
        for result in &mut results.list {
            if let Some(sbom) = &attest.sbom {
                let scanned = result.reference.scanned(&result.id)?;
                let request = &build.request;
                let bills = self.builder.scan(request, sbom, &scanned).await;
                let bills = bills.map_err(|error| failed(&error))?;
                result
                    .statements
                    .extend(bills.into_iter().map(Statement::Bill));
            }
            if let Some(options) = &attest.provenance {
                let provenance = result.reference.provenance(build, &result.solved);
                if options.must_be_complete && !provenance.is_complete() {
                    let text = "provenance materials are incomplete: the build requested complete provenance materials, but directories of the client are none";
                    return Err(Status::invalid(text));
                }
                let statement = Statement::Provenance(Box::new(provenance), options.clone());
                result.statements.push(statement);
            }
        }
        Ok(())
    }
}

/// Tells which manifests were made.
pub(super) fn tell(work: &Work, manifests: &[Digest], attested: &[Digest], index: &Digest) {
    use whelk_build::EventKind;
    let part = |name: String| {
        work.add(EventKind::Part {
            name,
            is_done: true,
        });
    };
    part("exporting layers".into());
    for manifest in manifests {
        part(format!("exporting manifest {manifest}"));
    }
    for manifest in attested {
        part(format!("exporting attestation manifest {manifest}"));
    }
    part(format!("exporting manifest list {index}"));
}
