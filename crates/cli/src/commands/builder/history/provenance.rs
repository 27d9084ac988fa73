//! The provenance of a build that has just ended, for `--metadata-file`.

use serde_json::{Map, Value};
use whelk_buildkit::grpc::Status;
use whelk_buildkit::pb::control::{BuildHistoryRequest, BuildResultInfo, Descriptor};

use super::inspect::attachment::PROVENANCE;
use super::{Builds, failed};
use crate::Outcome;
use crate::client::Client;
use crate::commands::build::{States, connect};

/// The entry of the file; with a platform, it comes after a slash.
const KEY: &str = "buildx.build.provenance";

/// How much is written, which a variable says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    None,
    /// Without the steps and what they were executed with.
    Little,
    Full,
}

impl Detail {
    fn of(text: &str) -> Self {
        match (text, whelk_text::parse_bool(text)) {
            ("max", _) => Self::Full,
            ("disabled", _) | (_, Some(false)) => Self::None,
            _ => Self::Little,
        }
    }
}

/// Returns the entries of a build.
///
/// # Errors
/// Returns an error if the engine does not answer.
pub(crate) async fn entries(client: &Client, build: &str) -> Outcome<Map<String, Value>> {
    let mut entries = Map::new();
    let variable = std::env::var("BUILDX_METADATA_PROVENANCE").unwrap_or_default();
    let detail = Detail::of(&variable);
    if detail == Detail::None {
        return Ok(entries);
    }
    let builds = Builds {
        channel: connect(client).await?,
        builder: client.context().to_owned(),
        states: States::of(client),
    };
    let request = BuildHistoryRequest {
        r#ref: build.to_owned(),
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    for record in builds.records(&request).await.map_err(failed)? {
        let single = record.result.iter().map(|result| (KEY.to_owned(), result));
        let several = record.results.iter();
        let several = several.map(|(platform, result)| (format!("{KEY}/{platform}"), result));
        for (key, result) in single.chain(several) {
            let Some(descriptor) = provenance(result) else {
                continue;
            };
            let bytes = builds.blob(&descriptor.digest).await?;
            let predicate = serde_json::from_slice(&bytes).map_err(|error| {
                failed(Status::unknown(format!(
                    "failed to unmarshal provenance: {error}"
                )))
            })?;
            entries.insert(key, shortened(predicate, detail).into());
        }
    }
    Ok(entries)
}

fn provenance(result: &BuildResultInfo) -> Option<&Descriptor> {
    result.attestations.iter().find(|descriptor| {
        let kind = descriptor.annotations.get("in-toto.io/predicate-type");
        kind.is_some_and(|kind| kind.starts_with(PROVENANCE))
    })
}

fn shortened(mut predicate: Map<String, Value>, detail: Detail) -> Map<String, Value> {
    if detail == Detail::Little {
        for key in ["buildConfig", "metadata"] {
            predicate.shift_remove(key);
        }
    }
    predicate
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_variable_says_how_much_is_written() {
        for (text, expected) in [
            ("", Detail::Little),
            ("min", Detail::Little),
            ("max", Detail::Full),
            ("disabled", Detail::None),
            ("false", Detail::None),
            ("true", Detail::Little),
        ] {
            assert_eq!(Detail::of(text), expected, "{text}");
        }
        let predicate = json!({"builder": {}, "buildConfig": {}, "metadata": {}});
        let predicate = predicate.as_object().unwrap();
        let keys = |detail: Detail| shortened(predicate.clone(), detail).len();
        assert_eq!((keys(Detail::Little), keys(Detail::Full)), (1, 3));
    }
}
