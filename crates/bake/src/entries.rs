//! Entries of targets that have attributes: caches, outputs, secrets, ssh agents and attestations.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::value::Value;

type Attributes = BTreeMap<String, String>;

/// A cache, an output or an attestation: attributes, of which `type` is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry(pub Attributes);

/// A secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Secret {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// A file.
    #[serde(rename = "src", skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// A variable of the environment.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub env: String,
}

/// An ssh agent, or keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ssh {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// What entries have in common.
pub(crate) trait Listed: Sized + Clone + PartialEq {
    /// Reads the text of one flag, which may stand for several entries.
    fn parse(text: &str) -> Result<Vec<Self>>;
    /// Reads the attributes of an object.
    fn of_attributes(attributes: Attributes) -> Result<Self>;
    /// Removes duplicates.
    fn normalized(list: Vec<Self>) -> Vec<Self>;

    /// Reads a value of a definition: a text or an object.
    fn of_value(value: &Value) -> Result<Vec<Self>> {
        match value {
            Value::String(text) if text.is_empty() => Ok(Vec::new()),
            Value::String(text) => Self::parse(text),
            Value::Object(members) => {
                let texts = members.iter().filter(|(_, value)| **value != Value::Null);
                let texts = texts.map(|(key, value)| {
                    // As a flag it would be another key.
                    if key.contains('=') {
                        return Err(Error::new(format!("invalid key {key:?}")));
                    }
                    let text = value.text().map_err(Error::new)?;
                    Ok((key.trim().to_lowercase(), text))
                });
                Ok(vec![Self::of_attributes(texts.collect::<Result<_>>()?)?])
            }
            other => Err(Error::new(format!(
                "map of string required, but have {}",
                other.kind()
            ))),
        }
    }
}

/// Reads the flags of a list.
pub(crate) fn parse<E: Listed>(texts: &[String]) -> Result<Vec<E>> {
    let texts = texts.iter().filter(|text| !text.is_empty());
    let lists = texts.map(|text| E::parse(text));
    Ok(lists.collect::<Result<Vec<_>>>()?.concat())
}

fn fields(text: &str) -> Result<Vec<String>> {
    whelk_dockerfile::csv::fields(text).map_err(|error| Error::new(error.to_string()))
}

/// Reads `key=value` fields. Keys are in lower case.
fn pairs(text: &str) -> Result<Attributes> {
    let pair = |field: &String| match field.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_lowercase(), value.to_owned())),
        None => Err(Error::new(format!("invalid value {field}"))),
    };
    fields(text)?.iter().map(pair).collect()
}

/// Quotes a field of a list if it has to be.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

impl Entry {
    /// Returns the attribute `type`.
    pub fn kind(&self) -> &str {
        self.0.get("type").map_or("", String::as_str)
    }

    /// Returns the text of a flag.
    pub fn flag(&self) -> String {
        let fields = self
            .0
            .iter()
            .map(|(key, value)| quoted(&format!("{key}={value}")));
        fields.collect::<Vec<_>>().join(",")
    }
}

impl Serialize for Entry {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Removes duplicates, in the order of Docker's bake: an earlier entry stays, and its duplicate is replaced by the last one.
fn unique<E: Ord + Clone>(mut list: Vec<E>) -> Vec<E> {
    // Of what is behind `at`.
    let mut places = BTreeMap::new();
    for at in (0..list.len()).rev() {
        if let Some(later) = places.insert(list[at].clone(), at) {
            list.swap_remove(later);
            if let Some(moved) = list.get(later) {
                places.insert(moved.clone(), later);
            }
        }
    }
    list
}

/// Keeps the last entry with each key, at the place of the first.
fn last_of_each<E, K: Ord>(list: Vec<E>, key: impl Fn(&E) -> K) -> Vec<E> {
    let mut kept: Vec<E> = Vec::new();
    let mut places = BTreeMap::new();
    for entry in list {
        let place = *places.entry(key(&entry)).or_insert(kept.len());
        match kept.get_mut(place) {
            Some(other) => *other = entry,
            None => kept.push(entry),
        }
    }
    kept
}

/// A cache: a name alone is one of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Cache(pub Entry);

impl Listed for Cache {
    fn parse(text: &str) -> Result<Vec<Self>> {
        if !text.contains('=') {
            let names = fields(text)?.into_iter().map(|name| {
                let attributes = [("type", "registry".to_owned()), ("ref", name)];
                let attributes = attributes.map(|(key, value)| (key.to_owned(), value));
                Self(Entry(attributes.into()))
            });
            return Ok(names.collect());
        }
        let attributes = pairs(text)?;
        if attributes.get("type").is_none_or(String::is_empty) {
            return Err(Error::new(format!("type required form> {text:?}")));
        }
        Ok(vec![Self(Entry(attributes))])
    }

    fn of_attributes(attributes: Attributes) -> Result<Self> {
        if attributes.get("type").is_none_or(String::is_empty) {
            let text = serde_json::to_string(&attributes).unwrap_or_default();
            return Err(Error::new(format!("type required form> {text:?}")));
        }
        Ok(Self(Entry(attributes)))
    }

    fn normalized(list: Vec<Self>) -> Vec<Self> {
        unique(list)
    }
}

/// An output.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Output(pub Entry);

impl Output {
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs.iter();
        let attributes = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Self(Entry(attributes.collect()))
    }

    /// Returns where files go, if any do.
    pub fn destination(&self) -> Option<&str> {
        self.0.0.get("dest").map(String::as_str)
    }
}

impl Listed for Output {
    fn parse(text: &str) -> Result<Vec<Self>> {
        let output = match text {
            "-" => Self::of(&[("type", "tar"), ("dest", "-")]),
            text if !text.contains([',', '=', '"']) => {
                Self::of(&[("type", "local"), ("dest", text)])
            }
            text => Self::of_attributes(pairs(text)?)?,
        };
        Ok(vec![output])
    }

    fn of_attributes(mut attributes: Attributes) -> Result<Self> {
        if attributes.get("type").is_none_or(String::is_empty) {
            return Err(Error::new("type is required for output"));
        }
        attributes.retain(|key, value| key != "dest" || !value.is_empty());
        Ok(Self(Entry(attributes)))
    }

    fn normalized(list: Vec<Self>) -> Vec<Self> {
        unique(list)
    }
}

/// An attestation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attestation(pub Entry);

impl Serialize for Attestation {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        let value = |(key, text): (&String, &String)| {
            let value = match key.as_str() {
                "disabled" => serde_json::Value::Bool(true),
                _ => text.as_str().into(),
            };
            (key.clone(), value)
        };
        let all: BTreeMap<_, _> = self.0.0.iter().map(value).collect();
        all.serialize(serializer)
    }
}

impl Listed for Attestation {
    fn parse(text: &str) -> Result<Vec<Self>> {
        Ok(vec![Self::of_attributes(pairs(text)?)?])
    }

    fn of_attributes(mut attributes: Attributes) -> Result<Self> {
        if attributes.get("type").is_none_or(String::is_empty) {
            return Err(Error::new("attestation type not specified"));
        }
        if let Some(text) = attributes.get("disabled") {
            match whelk_text::parse_bool(text) {
                Some(true) => {}
                Some(false) => drop(attributes.remove("disabled")),
                None => return Err(Error::new(format!("invalid value disabled={text}"))),
            }
        }
        Ok(Self(Entry(attributes)))
    }

    fn normalized(list: Vec<Self>) -> Vec<Self> {
        last_of_each(list, |entry| entry.0.kind().to_owned())
    }
}

impl Secret {
    /// Returns the text of a flag.
    pub fn flag(&self) -> String {
        let fields = [("id", &self.id), ("src", &self.file), ("env", &self.env)];
        let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let fields = fields.map(|(key, value)| quoted(&format!("{key}={value}")));
        fields.collect::<Vec<_>>().join(",")
    }
}

impl Listed for Secret {
    fn parse(text: &str) -> Result<Vec<Self>> {
        let wrong = |field: &String| {
            Error::new(format!("invalid field '{field}' must be a key=value pair"))
        };
        let pair = |field: &String| {
            let (key, value) = field.split_once('=').ok_or_else(|| wrong(field))?;
            Ok((key.to_lowercase(), value.to_owned()))
        };
        let all = fields(text)?;
        let mut attributes: Attributes = all.iter().map(pair).collect::<Result<_>>()?;
        let kind = attributes.remove("type").unwrap_or_default();
        if !matches!(kind.as_str(), "" | "file" | "env") {
            return Err(Error::new(format!("unsupported secret type {kind:?}")));
        }
        let mut secret = Self::of_attributes(attributes)?;
        if kind == "env" && secret.env.is_empty() {
            secret.env = std::mem::take(&mut secret.file);
        }
        Ok(vec![secret])
    }

    fn of_attributes(mut attributes: Attributes) -> Result<Self> {
        let mut take = |key: &str| attributes.remove(key).unwrap_or_default();
        let (id, env, src, source) = (take("id"), take("env"), take("src"), take("source"));
        match attributes.first_key_value() {
            Some((key, value)) => Err(Error::new(format!(
                "unexpected key '{key}' in '{key}={value}'"
            ))),
            None => Ok(Self {
                id,
                file: if src.is_empty() { source } else { src },
                env,
            }),
        }
    }

    fn normalized(list: Vec<Self>) -> Vec<Self> {
        last_of_each(list, |secret| secret.id.clone())
    }
}

impl Ssh {
    /// Returns the text of a flag.
    pub fn flag(&self) -> String {
        match self.paths.as_slice() {
            [] => self.id.clone(),
            paths => format!("{}={}", self.id, paths.join(",")),
        }
    }
}

impl Listed for Ssh {
    fn parse(text: &str) -> Result<Vec<Self>> {
        let (id, paths) = match text.split_once('=') {
            Some((id, paths)) => (id, paths.split(',').map(str::to_owned).collect()),
            None => (text, Vec::new()),
        };
        Ok(vec![Self {
            id: id.to_owned(),
            paths,
        }])
    }

    fn of_attributes(mut attributes: Attributes) -> Result<Self> {
        let paths = attributes.remove("paths").unwrap_or_default();
        let paths = paths.split(',').filter(|path| !path.is_empty());
        Ok(Self {
            id: attributes.remove("id").unwrap_or_default(),
            paths: paths.map(str::to_owned).collect(),
        })
    }

    /// `paths` of an object is a list.
    fn of_value(value: &Value) -> Result<Vec<Self>> {
        match value {
            Value::String(text) if text.is_empty() => Ok(Vec::new()),
            Value::String(text) => Self::parse(text),
            Value::Object(members) => {
                let text = |value: &Value| value.text().map_err(Error::new);
                let paths = match members.get("paths") {
                    None | Some(Value::Null) => Vec::new(),
                    Some(Value::List(paths)) => paths.iter().map(text).collect::<Result<_>>()?,
                    Some(_) => return Err(Error::new("paths: list of string required")),
                };
                let id = members.get("id").filter(|id| **id != Value::Null);
                let id = id.map(text).transpose()?.unwrap_or_default();
                // As a flag it would have a path.
                if id.contains('=') {
                    return Err(Error::new(format!("invalid id {id:?}")));
                }
                Ok(vec![Self { id, paths }])
            }
            other => Err(Error::new(format!(
                "object required, but have {}",
                other.kind()
            ))),
        }
    }

    fn normalized(list: Vec<Self>) -> Vec<Self> {
        last_of_each(list, |ssh| ssh.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn json<E: Listed + Serialize>(texts: &[&str]) -> String {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        let list = parse::<E>(&texts).map(|list| E::normalized(list));
        list.map_or_else(
            |error| error.text,
            |list| serde_json::to_string(&list).unwrap(),
        )
    }

    #[test]
    fn flags_become_entries() {
        assert_eq!(
            json::<Cache>(&["a:1,b", "type=local,src=x", "a:1"]),
            r#"[{"ref":"a:1","type":"registry"},{"ref":"b","type":"registry"},{"src":"x","type":"local"}]"#
        );
        assert_eq!(json::<Cache>(&["src=x"]), "type required form> \"src=x\"");
        assert_eq!(
            json::<Output>(&["-", "out", "type=docker", "type=oci,dest=x.tar"]),
            r#"[{"dest":"-","type":"tar"},{"dest":"out","type":"local"},{"type":"docker"},{"dest":"x.tar","type":"oci"}]"#
        );
        assert_eq!(json::<Output>(&["dest=x"]), "type is required for output");
        assert_eq!(
            json::<Secret>(&["id=a,src=b", "type=env,id=c,src=D", "id=a,env=E"]),
            r#"[{"id":"a","env":"E"},{"id":"c","env":"D"}]"#
        );
        assert_eq!(json::<Secret>(&["id=a,x=1"]), "unexpected key 'x' in 'x=1'");
        assert_eq!(
            json::<Ssh>(&["default", "k=a,b"]),
            r#"[{"id":"default"},{"id":"k","paths":["a","b"]}]"#
        );
        assert_eq!(
            json::<Attestation>(&[
                "type=sbom",
                "type=provenance,disabled=true",
                "type=sbom,disabled=false"
            ]),
            r#"[{"type":"sbom"},{"disabled":true,"type":"provenance"}]"#
        );
        assert_eq!(
            json::<Attestation>(&["mode=x"]),
            "attestation type not specified"
        );
    }

    #[test]
    fn keys_are_those_of_flags() {
        let of = |key: &str| {
            let members = [("type", "local"), (key, "/x")];
            let members = members.map(|(key, value)| (key.to_owned(), value.into()));
            Cache::of_value(&Value::Object(members.into()))
        };
        assert_eq!(of(" SRC").unwrap()[0].0.0["src"], "/x");
        assert!(of("src=/etc,x").is_err());
        let agent = Value::Object([("id".to_owned(), "a=/run/x".into())].into());
        assert!(Ssh::of_value(&agent).is_err());
    }

    #[test]
    fn entries_become_flags() {
        let secret = Secret {
            id: "a,b".into(),
            file: "c".into(),
            env: String::new(),
        };
        assert_eq!(secret.flag(), "\"id=a,b\",src=c");
        assert_eq!(Secret::parse(&secret.flag()).unwrap(), [secret]);
        let output = Output::of(&[("type", "oci"), ("dest", "x\"y")]);
        assert_eq!(Output::parse(&output.0.flag()).unwrap(), [output]);
    }
}
