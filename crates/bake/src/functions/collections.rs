//! Functions of lists, maps and objects.

use super::{MAX_ITEMS, Returned, bounded_list, count, list, object, position};
use crate::eval;
use crate::value::Value;

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    Some(match (name, arguments) {
        ("coalesce", values) => {
            let found = values.iter().find(|value| **value != Value::Null);
            found.cloned().ok_or("no non-null arguments".into())
        }
        ("coalescelist", values) => {
            let is_filled =
                |value: &&Value| matches!(value, Value::List(items) if !items.is_empty());
            let found = values.iter().find(is_filled);
            found.cloned().ok_or("no non-null arguments".into())
        }
        ("compact", [value]) => list(value).map(|items| {
            let is_empty = |item: &Value| matches!(item, Value::Null) || *item == Value::from("");
            Value::List(
                items
                    .iter()
                    .filter(|item| !is_empty(item))
                    .cloned()
                    .collect(),
            )
        }),
        ("concat", values) => {
            let lists = values.iter().map(list).collect::<Result<Vec<_>, _>>();
            lists.and_then(|lists| bounded_list(lists.concat()))
        }
        ("contains", [value, wanted]) => list(value).map(|items| items.contains(wanted).into()),
        ("distinct", [value]) => list(value).map(|items| {
            let mut found: Vec<Value> = Vec::new();
            for item in items {
                if !found.contains(item) {
                    found.push(item.clone());
                }
            }
            Value::List(found)
        }),
        ("element", [value, index]) => element(value, index),
        ("flatten", [value]) => list(value).and_then(|items| {
            let mut flat = Vec::new();
            flatten(items, &mut flat)?;
            Ok(Value::List(flat))
        }),
        ("chunklist", [value, size]) => chunklist(value, size),
        ("hasindex", [value, key]) => Ok(Value::Bool(eval::index(value, key).is_ok())),
        ("index", [value, key]) => {
            eval::index(value, key).map_err(|problem| problem.detail.to_lowercase())
        }
        ("indexof", [value, wanted]) => list(value).and_then(|items| {
            let found = items.iter().position(|item| item == wanted);
            found.map(Value::from).ok_or("item not found".into())
        }),
        ("keys", [value]) => object(value)
            .map(|members| Value::List(members.keys().cloned().map(Value::String).collect())),
        ("values", [value]) => {
            object(value).map(|members| Value::List(members.values().cloned().collect()))
        }
        ("length", [value]) => match value {
            Value::List(items) => Ok(items.len().into()),
            Value::Object(members) => Ok(members.len().into()),
            other => Err(format!(
                "collection must be a list, a map or a tuple, not {}",
                other.kind()
            )),
        },
        ("lookup", [value, key]) => object(value).and_then(|members| {
            let key = key.text()?;
            let found = members.get(&key).cloned();
            found.ok_or_else(|| format!("the given object has no attribute {key:?}"))
        }),
        ("lookup", [value, key, default]) => object(value)
            .and_then(|members| Ok(members.get(&key.text()?).unwrap_or(default).clone())),
        ("merge", values) => merge(values),
        ("reverselist", [value]) => {
            list(value).map(|items| Value::List(items.iter().rev().cloned().collect()))
        }
        ("slice", [value, start, end]) => slice(value, start, end),
        ("sort", [value]) => super::texts(value).map(|mut texts| {
            texts.sort();
            Value::List(texts.into_iter().map(Value::String).collect())
        }),
        ("zipmap", [keys, values]) => zipmap(keys, values),
        (
            "compact" | "distinct" | "flatten" | "keys" | "values" | "length" | "reverselist"
            | "sort",
            _,
        ) => count("1 argument", arguments),
        ("contains" | "element" | "chunklist" | "hasindex" | "index" | "indexof" | "zipmap", _) => {
            count("2 arguments", arguments)
        }
        ("slice", _) => count("3 arguments", arguments),
        ("lookup", _) => count("2 or 3 arguments", arguments),
        _ => return None,
    })
}

fn element(value: &Value, index: &Value) -> Returned {
    let (items, index) = (list(value)?, position(index)?);
    match items.len() {
        0 => Err("cannot use element function with an empty list".into()),
        length => Ok(items[index % length].clone()),
    }
}

fn flatten(items: &[Value], into: &mut Vec<Value>) -> Result<(), String> {
    for item in items {
        match item {
            Value::List(inner) => flatten(inner, into)?,
            other if into.len() < MAX_ITEMS => into.push(other.clone()),
            _ => return Err(format!("its result has more than {MAX_ITEMS} items")),
        }
    }
    Ok(())
}

fn chunklist(value: &Value, size: &Value) -> Returned {
    let (items, size) = (list(value)?, position(size)?);
    if items.is_empty() {
        return Ok(Value::List(Vec::new()));
    }
    let size = if size == 0 { items.len() } else { size };
    let chunks = items.chunks(size).map(|chunk| Value::List(chunk.to_vec()));
    Ok(Value::List(chunks.collect()))
}

fn merge(values: &[Value]) -> Returned {
    let mut merged = std::collections::BTreeMap::new();
    for value in values.iter().filter(|value| **value != Value::Null) {
        merged.extend(object(value)?.clone());
    }
    Ok(Value::Object(merged))
}

fn slice(value: &Value, start: &Value, end: &Value) -> Returned {
    let (items, start, end) = (list(value)?, position(start)?, position(end)?);
    match items.get(start..end) {
        Some(items) => Ok(Value::List(items.to_vec())),
        None => Err("end index must not be greater than the length of the list, nor less than the start index".into()),
    }
}

fn zipmap(keys: &Value, values: &Value) -> Returned {
    let (keys, values) = (super::texts(keys)?, list(values)?);
    if keys.len() != values.len() {
        return Err(format!(
            "number of keys ({}) does not match number of values ({})",
            keys.len(),
            values.len()
        ));
    }
    Ok(Value::Object(
        keys.into_iter().zip(values.iter().cloned()).collect(),
    ))
}
