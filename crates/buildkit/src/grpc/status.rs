//! Results of calls.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use prost::Message as _;

use crate::cut::beginning;
use crate::pb::{Any, RpcStatus};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Maximum length of a text in a header. Clients take 1 MiB for all; the text is in the details a second time.
const MAX_TEXT: usize = 64 << 10;

/// Maximum size of all details: one that is too large, such as the lines of an enormous Dockerfile, is left out, because
/// clients would refuse all headers.
const MAX_DETAILS: usize = 256 << 10;

/// Like the standard's, and padding may be missing.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// gRPC's codes, as far as they are distinguished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    /// Clients print the text without a code in front of it.
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    const ALL: [Self; 17] = [
        Self::Ok,
        Self::Canceled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    fn of(number: i64) -> Self {
        let found = usize::try_from(number)
            .ok()
            .and_then(|number| Self::ALL.get(number));
        found.copied().unwrap_or(Self::Unknown)
    }
}

/// Why a call has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: Code,
    pub message: String,
    pub details: Vec<Any>,
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// An error whose text is printed alone.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(Code::Unknown, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// Returns the status of something that this version of whelk does not have.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::unimplemented(format!("{what}: not available in this version of whelk"))
    }

    pub fn canceled() -> Self {
        Self::new(Code::Canceled, "context canceled")
    }

    /// The other side, or the connection to it, is gone.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Puts a text in front of the message.
    #[must_use]
    pub fn context(mut self, text: impl std::fmt::Display) -> Self {
        self.message = format!("{text}: {}", self.message);
        self
    }

    #[must_use]
    pub fn with(mut self, detail: Any) -> Self {
        self.details.push(detail);
        self
    }

    pub fn to_message(&self) -> RpcStatus {
        RpcStatus {
            code: self.code as i32,
            message: self.message.clone(),
            details: self.details.clone(),
        }
    }

    pub fn from_message(status: RpcStatus) -> Self {
        Self {
            code: Code::of(status.code.into()),
            message: status.message,
            details: status.details,
        }
    }

    /// Returns the trailers of a call.
    pub(super) fn trailers(result: &super::Result<()>) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        let Err(status) = result else {
            trailers.insert(STATUS, HeaderValue::from_static("0"));
            return trailers;
        };
        trailers.insert(STATUS, HeaderValue::from(status.code as i32));
        let message = beginning(&status.message, MAX_TEXT);
        let text = utf8_percent_encode(message, ESCAPED).to_string();
        if let Ok(text) = HeaderValue::from_str(&text) {
            trailers.insert(MESSAGE, text);
        }
        let mut room = MAX_DETAILS;
        let details = status.details.iter().filter(|detail| {
            let left = room.checked_sub(detail.encoded_len());
            room = left.unwrap_or(room);
            left.is_some()
        });
        let details: Vec<Any> = details.cloned().collect();
        if !details.is_empty() {
            let whole = RpcStatus {
                code: status.code as i32,
                message: message.to_owned(),
                details,
            };
            let encoded = STANDARD_NO_PAD.encode(whole.encode_to_vec());
            if let Ok(details) = HeaderValue::from_str(&encoded) {
                trailers.insert(DETAILS, details);
            }
        }
        trailers
    }

    /// Reads the status from trailers, or from the headers of an answer without a message; `None` if it is not there.
    pub(super) fn from_trailers(trailers: &HeaderMap) -> Option<super::Result<()>> {
        let code = trailers.get(STATUS)?.to_str().ok()?.parse().ok()?;
        let code = match Code::of(code) {
            Code::Ok => return Some(Ok(())),
            code => code,
        };
        let message = trailers.get(MESSAGE).map(HeaderValue::as_bytes);
        let message = percent_decode(message.unwrap_or_default()).decode_utf8_lossy();
        let details = trailers.get(DETAILS);
        let details = details.and_then(|encoded| LENIENT.decode(encoded.as_bytes()).ok());
        let details = details.and_then(|bytes| RpcStatus::decode(bytes.as_slice()).ok());
        Some(Err(Self {
            code,
            message: message.into_owned(),
            details: details.map(|status| status.details).unwrap_or_default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: &Status) {
        let trailers = Status::trailers(&Err(status.clone()));
        assert_eq!(Status::from_trailers(&trailers), Some(Err(status.clone())));
    }

    #[test]
    fn statuses_survive_both_ways() {
        check(&Status::unknown(""));
        check(&Status::invalid("100 % é\n\u{7f}"));
        check(&Status::unimplemented("x").with(Any {
            type_url: "t".into(),
            value: vec![0, 255],
        }));
        let ok = Status::trailers(&Ok(()));
        assert_eq!(Status::from_trailers(&ok), Some(Ok(())));
        assert_eq!(Status::from_trailers(&HeaderMap::new()), None);
        for code in Code::ALL {
            assert_eq!(Code::of(code as i64), code);
        }
        assert_eq!(Code::of(99), Code::Unknown);
    }

    #[test]
    fn long_texts_are_cut() {
        let detail = |size: usize| Any {
            type_url: "t".into(),
            value: vec![0; size],
        };
        let long = Status::unknown("é".repeat(MAX_TEXT));
        let large = detail(MAX_DETAILS / 2);
        let long = long.with(detail(1)).with(detail(MAX_DETAILS));
        let long = long.with(large.clone()).with(large.clone());
        let long = long.with(detail(2));
        let trailers = Status::trailers(&Err(long));
        let Some(Err(found)) = Status::from_trailers(&trailers) else {
            panic!("no status");
        };
        assert_eq!(found.message.len(), MAX_TEXT);
        assert_eq!(found.details, [detail(1), large, detail(2)]);
        let size: usize = trailers.values().map(HeaderValue::len).sum();
        assert!(size < 1 << 20, "{size}");
    }
}
