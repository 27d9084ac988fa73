//! Errors, with the codes of the distribution specification.

use hyper::StatusCode;
use serde::Serialize;

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An error, with the text that the client gets.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Error {
    pub kind: Kind,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Upstream has sent something that is not valid.
    BadUpstream,
    BlobUnknown,
    /// Content does not have its digest any more.
    Damaged,
    /// The user may not do this.
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    /// An invalid number of names.
    PageInvalid,
    /// The requested part of a blob does not exist.
    RangeNotSatisfiable,
    /// The resource or method does not exist.
    NotFound,
    TooLarge,
    /// Upstream, or this registry, has had too many requests.
    TooManyRequests,
    TooSlow,
    Unauthorized,
    /// Upstream does not answer at this time.
    Unavailable,
    UnsupportedMethod,
    UploadBusy,
    UploadInvalid,
    /// A chunk that does not continue the upload.
    UploadOutOfOrder,
    UploadUnknown,
    /// An error of the server. The text is logged, and not sent.
    Internal,
}

impl Kind {
    /// Returns whether the same request may succeed a while later.
    pub(crate) fn is_temporary(self) -> bool {
        matches!(self, Self::Unavailable | Self::TooManyRequests)
    }

    /// Returns the status, and the code as in the specification's table.
    pub(crate) fn code(self) -> (StatusCode, &'static str) {
        match self {
            Self::BadUpstream => (StatusCode::BAD_GATEWAY, "UNKNOWN"),
            Self::Denied => (StatusCode::FORBIDDEN, "DENIED"),
            Self::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Self::BlobUnknown => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::DigestInvalid => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Self::ManifestBlobUnknown => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestInvalid => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestUnknown => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            // Docker's code; the specification has none for it.
            Self::PageInvalid => (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
            Self::NameInvalid => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::RangeNotSatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID"),
            Self::NotFound => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::UnsupportedMethod => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::UploadBusy => (StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID"),
            Self::UploadInvalid => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::UploadOutOfOrder => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::Internal | Self::Damaged => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }

    pub(crate) fn error(self, text: impl Into<String>) -> Error {
        Error {
            kind: self,
            text: text.into(),
        }
    }
}

impl Error {
    /// Returns whether upstream may answer the same request at another time.
    pub(crate) fn is_outage(&self) -> bool {
        self.kind.is_temporary()
    }
}

impl From<whelk_image::Error> for Error {
    fn from(error: whelk_image::Error) -> Self {
        Kind::Internal.error(error.to_string())
    }
}

impl From<whelk_sys::fs::PathError> for Error {
    fn from(error: whelk_sys::fs::PathError) -> Self {
        Kind::Internal.error(error.to_string())
    }
}

/// The body of a response with an error.
#[derive(Serialize)]
pub(crate) struct Errors<'a> {
    pub errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
pub(crate) struct Entry<'a> {
    pub code: &'a str,
    pub message: &'a str,
}
