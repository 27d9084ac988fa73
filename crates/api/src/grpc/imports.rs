//! Caches that a client wants to import. There is none that can be: the client is told so for each, and the build goes on, as
//! it does with BuildKit when a cache cannot be read.

use std::collections::BTreeMap;

use serde::Deserialize;
use whelk_build::{Error, Progress};
use whelk_buildkit::pb::control::SolveRequest;

/// An entry of the attribute `cache-imports`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Import {
    r#type: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// Tells of the caches of a request.
pub(super) fn refuse(request: &SolveRequest, progress: &Progress) {
    let get = |name: &str| request.frontend_attrs.get(name).map_or("", String::as_str);
    let imports: Vec<Import> = serde_json::from_str(get("cache-imports")).unwrap_or_default();
    let listed = imports
        .into_iter()
        .map(|import| (import.r#type, import.attrs));
    let cache = request.cache.iter();
    let own = cache.flat_map(|cache| cache.imports.iter().cloned());
    let all = listed.chain(own.map(|import| (import.kind, import.attrs)));
    let mut names: Vec<(String, String)> = all
        .map(|(kind, attrs)| {
            let attr = |name: &str| attrs.get(name).cloned().unwrap_or_default();
            let name = [attr("ref"), attr("src"), attr("digest")].into_iter();
            let name = name.filter(|text| !text.is_empty()).collect::<Vec<_>>();
            (kind, name.join(" "))
        })
        .collect();
    // Of clients from before 2018.
    let references = get("cache-from").split(',').filter(|name| !name.is_empty());
    names.extend(references.map(|name| ("registry".to_owned(), name.to_owned())));
    names.sort();
    names.dedup();
    for (kind, name) in names {
        let work = progress.begin(format!("importing cache manifest from {kind} {name}"));
        let what = format!("cache import from {kind} (the engine's own cache is used)");
        let _ = work.end(Err::<(), _>(Error::Unsupported(what)));
    }
}
