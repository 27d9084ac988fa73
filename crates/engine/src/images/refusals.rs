//! Converts errors of registries to the engine's, with Docker's texts, which clients search for words.

use whelk_image::Reference;
use whelk_registry::Kind;

use crate::error::Error;

/// Converts an error about the manifest of a reference that is pulled.
pub(super) fn of_manifest(reference: &Reference, error: whelk_registry::Error) -> Error {
    let cause = first(&error);
    let code = error.reported().map_or("", |reported| &reported.code);
    match (error.kind(), code) {
        (Kind::NotFound, "NAME_UNKNOWN") => Error::NotFound(format!(
            "repository {} not found: {cause}",
            reference.familiar_name()
        )),
        (Kind::NotFound, _) => Error::NotFound(format!(
            "manifest for {} not found: {cause}",
            reference.familiar()
        )),
        (Kind::Denied, "DENIED") => Error::NotFound(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login': {cause}",
            reference.familiar_name()
        )),
        (Kind::Unauthorized | Kind::TooManyRequests, _) => of_request(error),
        _ => of_blob(error).prefixed(&format!("pull {}", reference.familiar())),
    }
}

/// Converts an error about a blob, whose text keeps the failed request.
pub(super) fn of_blob(error: whelk_registry::Error) -> Error {
    let text = error.to_string();
    with_text(error.kind(), text)
}

/// Converts an error to what the registry reports, or else to the failed request.
pub(super) fn of_request(error: whelk_registry::Error) -> Error {
    let text = match error.kind() {
        Kind::Unauthorized | Kind::Denied | Kind::NotFound | Kind::TooManyRequests => first(&error),
        Kind::Unavailable | Kind::Invalid => error.to_string(),
    };
    with_text(error.kind(), text)
}

/// Returns the first error that a registry reports; without one, the cause.
fn first(error: &whelk_registry::Error) -> String {
    let reported = error.reported();
    reported.map_or_else(|| error.cause(), ToString::to_string)
}

fn with_text(kind: Kind, text: String) -> Error {
    match kind {
        Kind::NotFound => Error::NotFound(text),
        Kind::Unauthorized => Error::Unauthorized(text),
        Kind::Denied => Error::Denied(text),
        Kind::TooManyRequests => Error::TooManyRequests(text),
        Kind::Unavailable => Error::Unavailable(text),
        Kind::Invalid => Error::Invalid(text),
    }
}
