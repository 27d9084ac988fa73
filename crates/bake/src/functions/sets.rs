//! Functions of sets.

use super::{MAX_ITEMS, Returned, count, list, weight};
use crate::eval::MAX_STEPS;
use crate::value::{Value, set};

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    Some(match (name, arguments) {
        ("setunion", [_, ..]) => combined(arguments, |one, other| [one, other].concat()),
        ("setintersection", [_, ..]) => combined(arguments, |one, other| {
            one.iter()
                .filter(|item| other.contains(item))
                .cloned()
                .collect()
        }),
        ("setsymmetricdifference", [_, ..]) => combined(arguments, |one, other| {
            let only = |these: &[Value], those: &[Value]| -> Vec<Value> {
                these
                    .iter()
                    .filter(|item| !those.contains(item))
                    .cloned()
                    .collect()
            };
            [only(one, other), only(other, one)].concat()
        }),
        ("setsubtract", [_, _]) => combined(arguments, |one, other| {
            one.iter()
                .filter(|item| !other.contains(item))
                .cloned()
                .collect()
        }),
        ("sethaselement", [value, wanted]) => {
            list(value).map(|items| items.contains(wanted).into())
        }
        ("setproduct", [_, _, ..]) => product(arguments),
        ("setproduct", _) => Err("at least two arguments are required".into()),
        ("setunion" | "setintersection" | "setsymmetricdifference", _) => {
            count("at least 1 argument", arguments)
        }
        ("setsubtract" | "sethaselement", _) => count("2 arguments", arguments),
        _ => return None,
    })
}

fn combined(arguments: &[Value], combine: fn(&[Value], &[Value]) -> Vec<Value>) -> Returned {
    let lists = arguments.iter().map(list);
    let mut lists = lists.collect::<Result<Vec<_>, _>>()?.into_iter();
    let first = lists.next().map(<[Value]>::to_vec).unwrap_or_default();
    let all = lists.fold(first, |all, other| combine(&all, other));
    Ok(set(all))
}

fn product(arguments: &[Value]) -> Returned {
    let lists = arguments.iter().map(list).collect::<Result<Vec<_>, _>>()?;
    let length = lists.iter().try_fold(1_usize, |length, items| {
        length
            .checked_mul(items.len())
            .filter(|length| *length <= MAX_ITEMS)
    });
    let Some(length) = length else {
        return Err(format!("its result has more than {MAX_ITEMS} items"));
    };
    // Each item is in as many combinations as those of the other lists.
    let weights = lists.iter().map(|items| {
        let weight = items.iter().map(weight).fold(0, usize::saturating_add);
        weight.saturating_mul(length / items.len().max(1))
    });
    if weights.fold(0, usize::saturating_add) > MAX_STEPS {
        return Err("its result is too large".into());
    }
    let mut all = vec![Vec::new()];
    for items in lists {
        let longer = |start: &Vec<Value>| {
            let start = start.clone();
            let items = items.iter();
            items
                .map(move |item| [start.as_slice(), std::slice::from_ref(item)].concat())
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    Ok(Value::List(all.into_iter().map(Value::List).collect()))
}
