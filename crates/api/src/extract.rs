//! Reading requests the way Docker's daemon does: forgiving in form, exact in meaning.

use std::collections::HashMap;

use axum::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use whelk_engine::filters::{Filters, moment};

use crate::error::{ApiError, ApiResult};

/// The parameters of a query. Where one value is wanted, the last one counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params(HashMap<String, Vec<String>>);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Self::Rejection> {
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
        self.0.get(name).and_then(|values| values.last()).map_or("", String::as_str)
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
        match self.0.get(name).and_then(|values| values.last()).map(|value| value.trim().to_lowercase()) {
            None => default,
            Some(value) => !matches!(value.as_str(), "" | "0" | "no" | "false" | "none"),
        }
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| ApiError::invalid(format!("invalid value {text:?} for parameter {name}"))),
        }
    }

    pub(crate) fn filters(&self, known: &[&str]) -> ApiResult<Filters> {
        Ok(Filters::parse(self.text("filters"), known)?)
    }

    /// A moment as seconds with a fraction, RFC 3339, or a duration back from now; in nanoseconds since the epoch.
    pub(crate) fn time(&self, name: &str) -> ApiResult<Option<i64>> {
        let text = self.text(name);
        if text.is_empty() || text == "0" {
            return Ok(None);
        }
        let invalid = || ApiError::invalid(format!("invalid value for {name:?}: {text:?}"));
        moment(text, whelk_engine::events::now()).map(Some).ok_or_else(invalid)
    }
}

/// The largest JSON body that is read, in bytes.
pub(crate) const LARGEST_BODY: usize = 8 << 20;

/// Reads a JSON body. `null` counts as left out, as it does in Go.
pub(crate) fn json<T: DeserializeOwned>(body: &Bytes) -> ApiResult<T> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::invalid("invalid JSON: got EOF while reading request body"));
    }
    let mut documents = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let mut value = documents.next().unwrap_or(Ok(Value::Null)).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    if documents.next().is_some() {
        return Err(ApiError::invalid("unexpected content after JSON"));
    }
    if !value.is_object() && !value.is_null() {
        return Err(ApiError::invalid("invalid JSON: json: cannot unmarshal this value into a Go struct"));
    }
    if value.is_null() {
        value = Value::Object(serde_json::Map::new());
    }
    drop_nulls(&mut value);
    crate::folding::from_value(value).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
}

/// The same for a body that may be missing.
pub(crate) fn json_or_default<T: DeserializeOwned + Default>(body: &Bytes) -> ApiResult<T> {
    if body.iter().all(u8::is_ascii_whitespace) { Ok(T::default()) } else { json(body) }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
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
    fn times() {
        let params = |text: &str| Params([("since".to_owned(), vec![text.to_owned()])].into());
        assert_eq!(params("1700000000.25").time("since").unwrap(), Some(1_700_000_000_250_000_000));
        assert_eq!(params("2023-11-14T22:13:20Z").time("since").unwrap(), Some(1_700_000_000_000_000_000));
        assert!(params("x").time("since").is_err());
    }
}
