//! Build caches that a client imports, or wants to be exported.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use whelk_build::{CacheExport, CacheImport};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::control::{CacheOptionsEntry, SolveRequest};
use whelk_buildkit::pb::gateway::{self, result};

use super::Buildkit;
use super::builds::Build;

/// The frontend's attribute that lists imported caches.
pub(super) const IMPORTS: &str = "cache-imports";

/// The attributes of an imported cache that its record keeps. Others may be credentials, such as the keys of a cloud.
const SHOWN: [&str; 3] = ["ref", "src", "tag"];

/// Maximum number of caches that a request imports. Of these, a build reads the first hundred.
const MAX_IMPORTS: usize = 1000;

/// An entry of the attribute `cache-imports`.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    r#type: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// Reads the attribute `cache-imports`.
fn listed(text: &str) -> serde_json::Result<Vec<Entry>> {
    match text {
        "" => Ok(Vec::new()),
        text => serde_json::from_str(text),
    }
}

/// Returns the attribute `cache-imports` as the record of a build has it, without credentials.
pub(super) fn shown_imports(text: &str) -> String {
    let mut entries = listed(text).unwrap_or_default();
    for entry in &mut entries {
        entry.attrs.retain(|name, _| SHOWN.contains(&name.as_str()));
    }
    serde_json::to_string(&entries).unwrap_or_default()
}

/// Returns the caches that are imported: clients name them in several places.
fn parse<'a>(
    attributes: &BTreeMap<String, String>,
    entries: impl IntoIterator<Item = &'a CacheOptionsEntry>,
) -> Result<Vec<CacheImport>> {
    let get = |name: &str| attributes.get(name).map_or("", String::as_str);
    let listed = listed(get(IMPORTS));
    let listed =
        listed.map_err(|error| Status::invalid(format!("attribute {IMPORTS}: {error}")))?;
    let own = entries.into_iter();
    let own = own.map(|entry| (entry.kind.clone(), entry.attrs.clone()));
    let listed = listed.into_iter().map(|entry| (entry.r#type, entry.attrs));
    // Of clients from before 2018.
    let references = get("cache-from").split(',').filter(|name| !name.is_empty());
    let references = references.map(|name| {
        let attrs = [("ref".to_owned(), name.to_owned())].into();
        ("registry".to_owned(), attrs)
    });
    let all = listed.chain(own).chain(references);
    let imports = all.map(|(kind, attrs)| CacheImport::parse(&kind, &attrs));
    let imports: Vec<CacheImport> = imports.take(MAX_IMPORTS + 1).collect();
    match imports.len() > MAX_IMPORTS {
        true => Err(Status::invalid(format!(
            "more than {MAX_IMPORTS} caches to import"
        ))),
        false => Ok(imports),
    }
}

/// Returns the caches that a request imports.
///
/// # Errors
/// Returns an error for an attribute that is not as clients write it.
pub(super) fn imports(request: &SolveRequest) -> Result<Vec<CacheImport>> {
    let entries = request.cache.iter().flat_map(|cache| &cache.imports);
    parse(&request.frontend_attrs, entries)
}

/// Returns the caches that a frontend imports for what it asks for.
///
/// # Errors
/// As [`imports`].
pub(super) fn imports_of_frontend(request: &gateway::SolveRequest) -> Result<Vec<CacheImport>> {
    parse(&request.frontend_opt, &request.cache_imports)
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

impl Buildkit {
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
            let reference = build.scope.reference(&id)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_imports_has_no_credentials() {
        let text = r#"[{"Type":"s3","Attrs":{"bucket":"b","secret_access_key":"hidden"}},{"Type":"registry","Attrs":{"ref":"host/app"}}]"#;
        assert_eq!(
            shown_imports(text),
            r#"[{"Type":"s3","Attrs":{}},{"Type":"registry","Attrs":{"ref":"host/app"}}]"#
        );
        // It may be anything.
        assert_eq!(shown_imports("hidden"), "[]");
    }

    #[test]
    fn imports_that_cannot_be_read_are_refused() {
        let request = |text: &str| SolveRequest {
            frontend_attrs: [(IMPORTS.to_owned(), text.to_owned())].into(),
            ..SolveRequest::default()
        };
        assert!(imports(&request("")).is_ok_and(|imports| imports.is_empty()));
        let error = imports(&request("{")).err().map(|error| error.message);
        let error = error.unwrap_or_default();
        assert!(error.starts_with("attribute cache-imports: "), "{error}");
    }
}
