//! Build caches that a client imports, or wants to be exported.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use whelk_build::{CacheExport, CacheImport};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::control::SolveRequest;
use whelk_buildkit::pb::gateway::{self, result};

use super::Door;
use super::builds::Build;

/// An entry of the attribute `cache-imports`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    r#type: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// Returns the caches that a request imports: clients name them in several places.
pub(super) fn imports(request: &SolveRequest) -> Vec<CacheImport> {
    let get = |name: &str| request.frontend_attrs.get(name).map_or("", String::as_str);
    let listed: Vec<Entry> = serde_json::from_str(get("cache-imports")).unwrap_or_default();
    let listed = listed.into_iter().map(|entry| (entry.r#type, entry.attrs));
    let own = request.cache.iter().flat_map(|cache| &cache.imports);
    let own = own.map(|entry| (entry.kind.clone(), entry.attrs.clone()));
    // Of clients from before 2018.
    let references = get("cache-from").split(',').filter(|name| !name.is_empty());
    let references = references.map(|name| {
        let attrs = [("ref".to_owned(), name.to_owned())].into();
        ("registry".to_owned(), attrs)
    });
    let all = listed.chain(own).chain(references);
    all.map(|(kind, attrs)| CacheImport::parse(&kind, &attrs))
        .collect()
}

/// Returns the exports that a request asks for.
///
/// # Errors
/// Returns an error for one that is not supported or invalid, by the name of the attribute.
pub(super) fn exports(request: &SolveRequest) -> Result<Vec<CacheExport>> {
    let entries = request.cache.iter().flat_map(|cache| &cache.exports);
    let exports = entries.map(|entry| CacheExport::parse(&entry.kind, &entry.attrs));
    let exports: std::result::Result<Vec<_>, _> = exports.collect();
    let mut exports = exports.map_err(|error| match error {
        whelk_build::Error::Unsupported(_) => Status::unimplemented(error.to_string()),
        error => Status::invalid(error.to_string()),
    })?;
    // The client writes the manifest of the last one into its directory.
    exports.sort_by_key(CacheExport::is_local);
    Ok(exports)
}

impl Door {
    /// Exports the cache of a build whose outputs were made. Returns what the client is told of it.
    pub(super) async fn export_caches(
        self: &Arc<Self>,
        build: &Build,
        returned: &gateway::Result,
        exports: &[CacheExport],
    ) -> Result<BTreeMap<String, String>> {
        let mut answer = BTreeMap::new();
        if exports.iter().all(CacheExport::is_inline) {
            return Ok(answer);
        }
        let mut solved = Vec::new();
        for id in ids(returned) {
            let reference = build.reference(&id)?;
            solved.push(reference.solve(&self.builder).await?);
        }
        if solved.is_empty() {
            return Ok(answer);
        }
        for export in exports {
            let exported = self
                .builder
                .export_cache(&build.request, &solved, export)
                .await;
            let exported = exported.map_err(|error| super::result::status(&error, None))?;
            if let Some(descriptor) = exported {
                let text = serde_json::to_string(&descriptor);
                let text = text.map_err(|error| Status::unknown(error.to_string()))?;
                answer.insert("cache.manifest".to_owned(), text);
            }
        }
        Ok(answer)
    }
}

/// Returns the names of the results of a build.
fn ids(returned: &gateway::Result) -> Vec<String> {
    let ids: Vec<String> = match &returned.kind {
        None => Vec::new(),
        Some(result::Kind::Ref(reference)) => vec![reference.id.clone()],
        Some(result::Kind::RefName(id)) => vec![id.clone()],
        Some(result::Kind::Refs(map)) => map.refs.values().map(|one| one.id.clone()).collect(),
        Some(result::Kind::RefNames(map)) => map.refs.values().cloned().collect(),
    };
    ids.into_iter().filter(|id| !id.is_empty()).collect()
}
