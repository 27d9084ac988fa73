//! Error responses: each kind of engine error has one status code.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use whelk_api_types::ErrorResponse;
use whelk_engine::Error;

/// An error to be returned to a client, and its status code if that does not follow from its kind.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Error, Option<StatusCode>);

pub(crate) type ApiResult<T = Response> = Result<T, ApiError>;

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error, None)
    }
}

impl ApiError {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Error::Invalid(text.into()).into()
    }

    /// A client that does not send its request in time.
    pub(crate) fn timeout(text: impl Into<String>) -> Self {
        let error = Error::Invalid(text.into());
        Self(error, Some(StatusCode::REQUEST_TIMEOUT))
    }

    /// The engine has too much to do.
    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        let error = Error::Unavailable(text.into());
        Self(error, Some(StatusCode::SERVICE_UNAVAILABLE))
    }

    pub(crate) fn empty_body() -> Self {
        Self::invalid("invalid JSON: got EOF while reading request body")
    }

    pub(crate) fn status(&self) -> StatusCode {
        if let Some(status) = self.1 {
            return status;
        }
        match &self.0 {
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::Conflict(_) | Error::Restarting(_) => StatusCode::CONFLICT,
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::Denied(_) => StatusCode::FORBIDDEN,
            Error::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Error::TooManyRequests(_) => StatusCode::TOO_MANY_REQUESTS,
            Error::NotModified(_) => StatusCode::NOT_MODIFIED,
            Error::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Error::Internal(_) | Error::Unavailable(_) | Error::ShimSilent(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status == StatusCode::NOT_MODIFIED {
            return status.into_response();
        }
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("{}", self.0);
        }
        message(status, &self.0.to_string())
    }
}

/// Returns a JSON response `{"message":…}` followed by a newline, as Docker does.
pub(crate) fn message(status: StatusCode, text: &str) -> Response {
    let message = text.to_owned();
    crate::routes::json(status, &ErrorResponse { message })
}
