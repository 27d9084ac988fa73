//! Request extractors with the semantics of Docker's daemon.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use whelk_engine::filters::Filters;
use whelk_text::time;

use crate::error::{ApiError, ApiResult};
use crate::json::{DecodeError, Syntax, Value, decode, parse};

/// The query parameters. If a single value is expected, the first one is used, as by Go.
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
            .and_then(|values| values.first())
            .map_or("", String::as_str)
    }

    /// Returns all values of a parameter that can be repeated.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Returns whether a flag is set. As in Docker, every value except these is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    pub(crate) fn flag_or(&self, name: &str, default: bool) -> bool {
        match self
            .0
            .get(name)
            .and_then(|values| values.first())
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

    /// Returns the height and width of a terminal in characters, clamped to `u16::MAX`.
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

    /// Parses seconds with a fraction, an RFC 3339 time, or a duration before now. Returns
    /// nanoseconds since the epoch.
    pub(crate) fn time(&self, name: &str) -> ApiResult<Option<i64>> {
        let text = self.text(name);
        if text.is_empty() || text == "0" {
            return Ok(None);
        }
        let invalid = || ApiError::invalid(format!("invalid value for {name:?}: {text:?}"));
        time::parse(text, whelk_engine::events::now())
            .map(Some)
            .ok_or_else(invalid)
    }
}

/// Maximum size of a JSON body in bytes.
pub(crate) const MAX_BODY_SIZE: usize = 8 << 20;

/// A type that a request body is decoded to, with its Go name in Docker for error texts.
pub(crate) trait RequestBody: DeserializeOwned + Default {
    const GO_TYPE: &'static str;
}

/// The JSON body of a request. It is decoded before the object that the request refers to is looked
/// up, as in Docker.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: RequestBody + Send + 'static, S: Send + Sync> axum::extract::FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, _: &S) -> Result<Self, Self::Rejection> {
        let (parts, body) = request.into_parts();
        json(&parts.headers, body).await.map(Self)
    }
}

/// Decodes a JSON body. An empty body gives the default value.
///
/// # Errors
/// Returns an error if the content type is not JSON, the body is not valid JSON, or it does not
/// match the type.
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

/// Limits the larger bodies that are received, decoded or used at the same time, in bytes: decoded
/// values can take many times the memory of their JSON.
static BODIES: Semaphore = Semaphore::const_new(MAX_BODY_SIZE);

/// Held by the one request whose body may exceed [`BODIES`]. Otherwise requests that have a part of
/// it each could wait for each other.
static EXCESS: Mutex<()> = Mutex::const_new(());

/// Time limit between two parts of a body whose request has a share of [`BODIES`].
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit for receiving the rest of a body whose request holds [`EXCESS`], for which other
/// requests wait.
const EXCESS_TIMEOUT: Duration = Duration::from_secs(60);

/// A request's share of the memory for bodies.
#[derive(Debug, Default)]
struct Share {
    part: Option<SemaphorePermit<'static>>,
    /// [`EXCESS`], and until when the body must have arrived.
    excess: Option<(MutexGuard<'static, ()>, Instant)>,
}

impl Share {
    fn is_empty(&self) -> bool {
        self.part.is_none() && self.excess.is_none()
    }

    /// Adds `bytes` to the share; waits while other requests use all memory.
    async fn grow(&mut self, bytes: usize) {
        if self.excess.is_some() {
            return;
        }
        // Not more than `MAX_BODY_SIZE`.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            Ok(more) = BODIES.acquire_many(bytes) => match &mut self.part {
                Some(part) => part.merge(more),
                part => *part = Some(more),
            },
            excess = EXCESS.lock() => {
                self.excess = Some((excess, Instant::now() + EXCESS_TIMEOUT));
            }
        }
    }

    /// Returns until when the client has to send more.
    fn deadline(&self) -> Instant {
        let idle = Instant::now() + IDLE_TIMEOUT;
        let excess = self.excess.as_ref().map(|(_, deadline)| *deadline);
        excess.map_or(idle, |deadline| deadline.min(idle))
    }
}

tokio::task_local! {
    /// The shares that are held until the current request is answered.
    static SHARES: RefCell<Vec<Share>>;
}

/// Runs a request's handler, and holds the memory of its body for as long: the handler has the
/// decoded value.
pub(crate) async fn hold_bodies<T>(handler: impl Future<Output = T>) -> T {
    SHARES.scope(RefCell::default(), handler).await
}

/// Reads a JSON body and decodes it with `decode`. Returns `None` if it is empty.
///
/// # Errors
/// Returns the same errors as [`json`].
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
    let (body, share) = receive(body).await?;
    let read = move || match parse(&body) {
        Ok((_, true)) => Err(ApiError::invalid("unexpected content after JSON")),
        Ok((value, false)) => decode(value).map(Some).map_err(invalid_json),
        Err(Syntax::Empty) => Err(ApiError::empty_body()),
        Err(Syntax::Invalid(text)) => Err(invalid_json(text)),
    };
    if share.is_empty() {
        return read();
    }
    let decoded = tokio::task::spawn_blocking(move || (read(), share)).await;
    let (decoded, share) = decoded.map_err(|error| {
        ApiError::from(whelk_engine::Error::internal(format!(
            "decode a body: {error}"
        )))
    })?;
    // Without a value the share is released now; so it is outside of `hold_bodies`.
    if decoded.is_ok() {
        let _ = SHARES.try_with(|shares| shares.borrow_mut().push(share));
    }
    decoded
}

/// Receives a body. Takes a share of the memory if it is larger than [`MAX_INLINE_BODY`], as its
/// bytes arrive.
async fn receive(body: Body) -> ApiResult<(Vec<u8>, Share)> {
    let failed = |error: String| ApiError::invalid(format!("read body: {error}"));
    let mut body = Limited::new(body, MAX_BODY_SIZE);
    let (mut received, mut share) = (Vec::new(), Share::default());
    loop {
        let next = if share.is_empty() {
            body.frame().await
        } else {
            tokio::time::timeout_at(share.deadline(), body.frame())
                .await
                .map_err(|_| ApiError::timeout("read body: the client sends it too slowly"))?
        };
        let Some(frame) = next else {
            return Ok((received, share));
        };
        let frame = frame.map_err(|error| failed(error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if received.len() + data.len() > MAX_INLINE_BODY {
            let before = if share.is_empty() { received.len() } else { 0 };
            share.grow(before + data.len()).await;
        }
        received.extend_from_slice(&data);
    }
}

pub(crate) fn invalid_json(error: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(format!("invalid JSON: {error}"))
}

/// Checks the content type.
///
/// # Errors
/// Returns an error with the text of Docker and Go's `mime` package if it is not JSON.
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

/// Parses detach keys: `ctrl-p,ctrl-q`, or single characters. An empty text gives the default.
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

    #[tokio::test]
    async fn bodies_take_memory_as_they_arrive_and_until_their_request_is_answered() {
        use futures_util::{FutureExt, StreamExt, stream};
        let kind = (header::CONTENT_TYPE, "application/json".parse().unwrap());
        let headers: HeaderMap = [kind].into_iter().collect();
        let read = |body: Body| json_with(&headers, body, |_| Ok(()));
        let largest = || Body::from(format!("[{}]", " ".repeat(MAX_BODY_SIZE - 2)));
        let free = || BODIES.available_permits();
        // A client that sends half of it.
        let half = vec![b' '; 1 << 20];
        let stalls = stream::iter([Ok::<_, std::io::Error>(half)]).chain(stream::pending());
        let mut receiving = Box::pin(read(Body::from_stream(stalls)));
        assert!((&mut receiving).now_or_never().is_none());
        assert_eq!(free(), MAX_BODY_SIZE - (1 << 20));
        drop(receiving);
        assert_eq!(free(), MAX_BODY_SIZE);
        hold_bodies(async {
            read(largest()).await.unwrap();
            assert_eq!(free(), 0);
            // One more is possible, and a third waits for it.
            let mut third = Box::pin(read(largest()));
            hold_bodies(async {
                read(largest()).await.unwrap();
                assert!((&mut third).now_or_never().is_none());
            })
            .await;
            third.await.unwrap();
        })
        .await;
        assert_eq!(free(), MAX_BODY_SIZE);
        // A waiting request continues as soon as a share is free, while `EXCESS` is still held.
        let excess = EXCESS.lock().await;
        let mut waiting = None;
        hold_bodies(async {
            read(largest()).await.unwrap();
            let mut next = Box::pin(read(largest()));
            assert!((&mut next).now_or_never().is_none());
            waiting = Some(next);
        })
        .await;
        waiting.unwrap().await.unwrap();
        // The client that the others wait for has no more time because it sends something.
        let late = Share {
            part: None,
            excess: Some((excess, Instant::now())),
        };
        assert!(late.deadline() <= Instant::now());
        drop(late);
        assert_eq!(free(), MAX_BODY_SIZE);
        // A body that cannot be decoded releases its share.
        hold_bodies(async {
            let wrong = Body::from(" ".repeat(MAX_BODY_SIZE));
            let text = read(wrong).await.unwrap_err().0.to_string();
            assert!(text.starts_with("invalid JSON: "), "{text}");
            assert_eq!(free(), MAX_BODY_SIZE);
        })
        .await;
    }

    #[test]
    fn parses_detach_keys() {
        assert_eq!(detach_keys("").unwrap(), [16, 17]);
        assert_eq!(detach_keys("ctrl-x,q,ctrl-[").unwrap(), [24, b'q', 27]);
        for text in ["bogus", "ctrl-xx"] {
            assert_eq!(
                detach_keys(text).unwrap_err().0.to_string(),
                format!("Invalid detach keys ({text}) provided")
            );
        }
    }

    #[test]
    fn checks_media_types() {
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
    fn parses_times() {
        let params = |text: &str| Params([("since".to_owned(), vec![text.to_owned()])].into());
        assert_eq!(
            params("1700000000.25").time("since").unwrap(),
            Some(1_700_000_000_250_000_000)
        );
        assert_eq!(
            params("2023-11-14T22:13:20Z").time("since").unwrap(),
            Some(1_700_000_000_000_000_000)
        );
        assert_eq!(
            params("x").time("since").unwrap_err().0.to_string(),
            "invalid value for \"since\": \"x\""
        );
    }
}
