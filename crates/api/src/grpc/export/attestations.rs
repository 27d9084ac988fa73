//! Attestations of results: those that a frontend has returned, bills of materials, and provenance.

use std::collections::BTreeMap;
use std::sync::Arc;

use whelk_build::{Attestation, SPDX, Solved, Statement, Subject, Work, subject};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::gateway;
use whelk_image::Digest;
use whelk_text::parse_bool;

use super::super::Buildkit;
use super::super::builds::Build;
use super::{Results, failed};

/// The kinds of attestations, and of what they are about.
const PREDICATE: i32 = 0;
const BUNDLE: i32 = 1;
const ITSELF: i32 = 0;
const RAW: i32 = 1;

/// Metadata of attestations: the statement that comes first, and whether it is only for images.
const CORE: &str = "sbom-core";
const INLINE_ONLY: &str = "inline-only";

/// Maximum number of attestations that a frontend returns for one result, and of the subjects of all of these: a statement has each
/// subject once or twice for each name of the image.
const MAX_ATTESTATIONS: usize = 1000;
const MAX_SUBJECTS: usize = 1000;

impl Buildkit {
    /// Makes the attestations of the results: those that the frontend has returned, and those that the client has asked for.
    pub(super) async fn attest(
        self: &Arc<Self>,
        build: &Build,
        returned: &BTreeMap<String, gateway::Attestations>,
        results: &mut Results,
    ) -> Result<()> {
        let attest = &build.attest;
        // A frontend that makes bills itself makes those that the client wants.
        let mut all = returned.values().flat_map(|all| &all.attestation);
        let has_bills = all.any(|one| one.in_toto_predicate_type == SPDX);
        for result in &mut results.list {
            if let Some(own) = returned.get(&result.id) {
                let found = self.returned(build, &own.attestation).await?;
                let bills = self.builder.read_attestations(found).await;
                let bills = bills.map_err(|error| failed(&error))?;
                result
                    .statements
                    .extend(bills.into_iter().map(Statement::Bill));
            }
            if let Some(sbom) = attest.sbom.as_ref().filter(|_| !has_bills) {
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

    /// Returns attestations of a frontend, each with the result that has its file.
    async fn returned(
        self: &Arc<Self>,
        build: &Build,
        attestations: &[gateway::Attestation],
    ) -> Result<Vec<(Arc<Solved>, Attestation)>> {
        check_number(attestations)?;
        let mut found = Vec::with_capacity(attestations.len());
        for one in attestations {
            let attestation = attestation(one)?;
            let own = one.r#ref.as_ref().filter(|own| !own.id.is_empty());
            let Some(own) = own else {
                let text = match attestation.is_bundle {
                    true => "no ref provided for attestation bundle",
                    false => "attestation does not have available content",
                };
                return Err(Status::invalid(text));
            };
            let reference = build.scope.reference(&own.id)?;
            found.push((reference.solve(&self.builder).await?, attestation));
        }
        Ok(found)
    }
}

fn check_number(attestations: &[gateway::Attestation]) -> Result<()> {
    let subjects = attestations.iter().map(|one| one.in_toto_subjects.len());
    let subjects: usize = subjects.sum();
    if attestations.len() > MAX_ATTESTATIONS || subjects > MAX_SUBJECTS {
        let text = format!(
            "a frontend returns more than {MAX_ATTESTATIONS} attestations for a result, or more than {MAX_SUBJECTS} subjects"
        );
        return Err(Status::invalid(text));
    }
    Ok(())
}

/// Reads an attestation of a frontend.
fn attestation(one: &gateway::Attestation) -> Result<Attestation> {
    let is_bundle = match one.kind {
        PREDICATE => false,
        BUNDLE => true,
        kind => {
            let text = format!("unknown attestation kind {kind}");
            return Err(Status::invalid(text));
        }
    };
    let metadata = |name: &str| {
        let value = one.metadata.get(name);
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let subjects = one.in_toto_subjects.iter();
    let subjects = subjects.map(|about| match about.kind {
        ITSELF => Ok(Subject::Result(
            Some(about.name.clone()).filter(|name| !name.is_empty() && name != "_"),
        )),
        RAW => {
            let name = match about.name.as_str() {
                "" => "_",
                name => name,
            };
            Ok(Subject::Other(subject(name, &about.digest)))
        }
        kind => {
            let text = format!("unknown attestation subject type {kind}");
            Err(Status::invalid(text))
        }
    });
    Ok(Attestation {
        is_bundle,
        path: one.path.clone(),
        kind: one.in_toto_predicate_type.clone(),
        subjects: subjects.collect::<Result<_>>()?,
        core: metadata(CORE),
        is_inline_only: metadata(INLINE_ONLY).is_some_and(|text| parse_bool(&text) == Some(true)),
    })
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

#[cfg(test)]
mod tests {
    use whelk_buildkit::pb::gateway::{Attestation, InTotoSubject};

    use super::*;

    #[test]
    fn attestations_have_limits() {
        let about = |count: usize| Attestation {
            in_toto_subjects: vec![InTotoSubject::default(); count],
            ..Attestation::default()
        };
        for (attestations, is_allowed) in [
            (vec![about(0); MAX_ATTESTATIONS], true),
            (vec![about(0); MAX_ATTESTATIONS + 1], false),
            (vec![about(MAX_SUBJECTS / 2); 2], true),
            (vec![about(MAX_SUBJECTS), about(1)], false),
        ] {
            assert_eq!(check_number(&attestations).is_ok(), is_allowed);
        }
    }
}
