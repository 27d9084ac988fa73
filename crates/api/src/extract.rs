//! Reading requests the way Docker's daemon does: forgiving in form, exact in meaning.

use std::collections::HashMap;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use whelk_engine::filters::{Filters, moment};

use crate::error::{ApiError, ApiResult};
use crate::json::{DecodeError, Syntax, Value, decode, parse};

/// The parameters of a query. Where one value is wanted, the last one counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params(HashMap<String, Vec<String>>);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &S,
    ) -> Result<Self, Self::Rejection> {
        let query = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        let mut params: HashMap<String, Vec<String>> = HashMap::new();
        for (name, value) in query.0 {
            params.entry(name).or_default().push(value);
        }
        Ok(Self(params))
    }
}

impl Params {
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0
            .get(name)
            .and_then(|values| values.last())
            .map_or("", String::as_str)
    }

    /// All values of a parameter that may be given several times.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// What Docker takes for true: anything but these.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    pub(crate) fn flag_or(&self, name: &str, default: bool) -> bool {
        match self
            .0
            .get(name)
            .and_then(|values| values.last())
            .map(|value| value.trim().to_lowercase())
        {
            None => default,
            Some(value) => !matches!(value.as_str(), "" | "0" | "no" | "false" | "none"),
        }
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::invalid(format!("strconv.Atoi: parsing {text:?}: invalid syntax"))
            }),
        }
    }

    /// The height and width of a terminal. What a terminal cannot have becomes the most that it
    /// can.
    pub(crate) fn terminal_size(&self) -> ApiResult<(u16, u16)> {
        let side = |name: &str, what: &str| {
            let text = self.text(name);
            let digits = text.strip_prefix('-').unwrap_or(text);
            let why = match text.parse::<u32>() {
                Ok(number) if !text.starts_with('+') => {
                    return Ok(u16::try_from(number).unwrap_or(u16::MAX));
                }
                _ if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                    "value out of range"
                }
                _ => "invalid syntax",
            };
            Err(ApiError::invalid(format!(
                "invalid resize {what} {text:?}: {why}"
            )))
        };
        Ok((side("h", "height")?, side("w", "width")?))
    }

    pub(crate) fn filters(&self, known: &[&str]) -> ApiResult<Filters> {
        Ok(Filters::parse(self.text("filters"), known)?)
    }

    /// A moment as seconds with a fraction, RFC 3339, or a duration back from now; in nanoseconds
    /// since the epoch.
    pub(crate) fn time(&self, name: &str) -> ApiResult<Option<i64>> {
        let text = self.text(name);
        if text.is_empty() || text == "0" {
            return Ok(None);
        }
        let invalid = || ApiError::invalid(format!("invalid value for {name:?}: {text:?}"));
        moment(text, whelk_engine::events::now())
            .map(Some)
            .ok_or_else(invalid)
    }
}

/// The largest JSON body that is read, in bytes.
pub(crate) const LARGEST_BODY: usize = 8 << 20;

/// What a request's body describes, and what Docker calls it in errors.
pub(crate) trait RequestBody: DeserializeOwned + Default {
    const GO_TYPE: &'static str;
}

/// The JSON body of a request. It is read before the object that the request names is looked up, as
/// Docker does.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: RequestBody + Send + 'static, S: Send + Sync> axum::extract::FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, _: &S) -> Result<Self, Self::Rejection> {
        let (parts, body) = request.into_parts();
        json(&parts.headers, body).await.map(Self)
    }
}

/// Reads a JSON body; one that is empty stands for the defaults.
///
/// # Errors
/// A content type other than JSON, a body that is no JSON, or one that does not fit.
pub(crate) async fn json<T: RequestBody + Send + 'static>(
    headers: &HeaderMap,
    body: Body,
) -> ApiResult<T> {
    let decoded = json_with(headers, body, |value| decode(value, T::GO_TYPE)).await?;
    Ok(decoded.unwrap_or_default())
}

/// Maximum size of bodies that are decoded on the runtime's threads, in bytes; larger ones are decoded
/// on blocking threads.
const MAX_INLINE_BODY: usize = 64 << 10;

/// Limits the larger bodies that are decoded at the same time, in bytes: decoded values can take many
/// times the memory of their JSON.
static DECODING: Semaphore = Semaphore::const_new(LARGEST_BODY);

/// Reads a JSON body and decodes it with `decode`. Returns `None` if it is empty.
///
/// # Errors
/// As [`json`].
pub(crate) async fn json_with<T: Send + 'static>(
    headers: &HeaderMap,
    body: Body,
    decode: impl FnOnce(Value<'_>) -> Result<T, DecodeError> + Send + 'static,
) -> ApiResult<Option<T>> {
    let empty = body.size_hint().exact() == Some(0);
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map_or("".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    if !(empty && content_type.is_empty()) {
        check_media_type(&content_type)?;
    }
    if empty {
        return Ok(None);
    }
    let body = Limited::new(body, LARGEST_BODY)
        .collect()
        .await
        .map_err(|error| ApiError::invalid(format!("read body: {error}")))?;
    let body = body.to_bytes();
    let length = body.len();
    let read = move || match parse(&body) {
        Ok((_, true)) => Err(ApiError::invalid("unexpected content after JSON")),
        Ok((value, false)) => decode(value).map(Some).map_err(invalid_json),
        Err(Syntax::Empty) => Err(ApiError::empty_body()),
        Err(Syntax::Invalid(text)) => Err(invalid_json(text)),
    };
    if length <= MAX_INLINE_BODY {
        return read();
    }
    let interrupted = |error: String| {
        ApiError(whelk_engine::Error::internal(format!(
            "decode a body: {error}"
        )))
    };
    let share = DECODING
        .acquire_many(u32::try_from(length).unwrap_or(u32::MAX))
        .await;
    let _share = share.map_err(|error| interrupted(error.to_string()))?;
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| interrupted(error.to_string()))?
}

pub(crate) fn invalid_json(error: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(format!("invalid JSON: {error}"))
}

/// # Errors
/// A content type other than JSON, in the words of Docker and of Go's `mime` package.
fn check_media_type(text: &str) -> ApiResult<()> {
    let malformed = |why: &str| {
        Err(ApiError::invalid(format!(
            "malformed Content-Type header ({text}): mime: {why}"
        )))
    };
    let token = |text: &str| {
        text.bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
            .count()
    };
    let (kind, parameters) = text.split_once(';').unwrap_or((text, ""));
    let kind = kind.trim().to_ascii_lowercase();
    let (main, rest) = kind.split_at(token(&kind));
    match (main, rest.strip_prefix('/')) {
        ("", _) => return malformed("no media type"),
        (_, None) if !rest.is_empty() => return malformed("expected slash after first token"),
        (_, None) => {}
        (_, Some(sub)) if token(sub) == 0 => return malformed("expected token after slash"),
        (_, Some(sub)) if token(sub) < sub.len() => {
            return malformed("unexpected content after media subtype");
        }
        (_, Some(_)) => {}
    }
    let is_parameter = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        token(name) == name.len()
            && !name.is_empty()
            && (value.starts_with('"') || token(value) == value.len() && !value.is_empty())
    };
    let mut parameters = parameters
        .trim()
        .strip_suffix(';')
        .unwrap_or(parameters.trim())
        .split(';');
    if !parameters.clone().eq([""]) && !parameters.all(|parameter| is_parameter(parameter.trim())) {
        return malformed("invalid media parameter");
    }
    if kind == "application/json" {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "unsupported Content-Type header ({text}): must be 'application/json'"
    )))
}

/// Keys to detach: `ctrl-p,ctrl-q`, or single characters.
pub(crate) fn detach_keys(text: &str) -> ApiResult<Vec<u8>> {
    if text.is_empty() {
        return Ok(vec![16, 17]);
    }
    text.split(',')
        .map(|key| {
            let invalid = || ApiError::invalid(format!("Invalid detach keys ({text}) provided"));
            match key.strip_prefix("ctrl-") {
                Some("@") => Ok(0),
                Some("[") => Ok(27),
                Some("\\") => Ok(28),
                Some("]") => Ok(29),
                Some("^") => Ok(30),
                Some("_") => Ok(31),
                Some(letter) if letter.len() == 1 && letter.as_bytes()[0].is_ascii_alphabetic() => {
                    Ok(letter.as_bytes()[0].to_ascii_lowercase() - b'a' + 1)
                }
                None if key.len() == 1 => Ok(key.as_bytes()[0]),
                _ => Err(invalid()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(detach_keys("").unwrap(), [16, 17]);
        assert_eq!(detach_keys("ctrl-x,q,ctrl-[").unwrap(), [24, b'q', 27]);
        assert!(detach_keys("bogus").is_err() && detach_keys("ctrl-xx").is_err());
    }

    #[test]
    fn media_types() {
        let check = |text: &str, expected: &str| {
            let outcome =
                check_media_type(text).map_or_else(|error| error.0.to_string(), |()| String::new());
            assert_eq!(outcome, expected, "{text}");
        };
        for fine in [
            "application/json",
            "APPLICATION/JSON",
            "application/json; charset=utf-8",
            "application/json;",
        ] {
            check(fine, "");
        }
        check(
            "text/plain",
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        );
        check(
            "text",
            "unsupported Content-Type header (text): must be 'application/json'",
        );
        for (text, why) in [
            ("", "no media type"),
            ("/json", "no media type"),
            ("text/", "expected token after slash"),
            ("a b", "expected slash after first token"),
            (
                "application/json, text/plain",
                "unexpected content after media subtype",
            ),
            ("application/json; x", "invalid media parameter"),
        ] {
            check(
                text,
                &format!("malformed Content-Type header ({text}): mime: {why}"),
            );
        }
    }

    #[test]
    fn times() {
        let params = |text: &str| Params([("since".to_owned(), vec![text.to_owned()])].into());
        assert_eq!(
            params("1700000000.25").time("since").unwrap(),
            Some(1_700_000_000_250_000_000)
        );
        assert_eq!(
            params("2023-11-14T22:13:20Z").time("since").unwrap(),
            Some(1_700_000_000_000_000_000)
        );
        assert!(params("x").time("since").is_err());
    }
}
