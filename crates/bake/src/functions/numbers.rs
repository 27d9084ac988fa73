//! Functions of numbers and truth values.

use super::{Returned, count, integer};
use crate::value::Value;

/// The maximum length of a range, as in go-cty.
const MAX_RANGE: usize = 1024;

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    let one = |change: fn(f64) -> f64| match arguments {
        [value] => finite(change(value.number()?)),
        _ => count("1 argument", arguments),
    };
    let two = |change: fn(f64, f64) -> f64| match arguments {
        [first, second] => finite(change(first.number()?, second.number()?)),
        _ => count("2 arguments", arguments),
    };
    let compare = |holds: fn(f64, f64) -> bool| match arguments {
        [first, second] => Ok(Value::Bool(holds(first.number()?, second.number()?))),
        _ => count("2 arguments", arguments),
    };
    let bools = |holds: fn(bool, bool) -> bool| match arguments {
        [first, second] => Ok(Value::Bool(holds(first.truth()?, second.truth()?))),
        _ => count("2 arguments", arguments),
    };
    Some(match name {
        "absolute" => one(f64::abs),
        "ceil" => one(f64::ceil),
        "floor" => one(f64::floor),
        "int" => one(f64::trunc),
        "negate" => one(|number| -number),
        "signum" => one(|number| if number == 0.0 { 0.0 } else { number.signum() }),
        "add" => two(|one, other| one + other),
        "subtract" => two(|one, other| one - other),
        "multiply" => two(|one, other| one * other),
        "pow" => two(f64::powf),
        "divide" | "modulo" => match arguments {
            [_, divisor] if divisor.number() == Ok(0.0) => Err("division by zero".into()),
            _ if name == "divide" => two(|one, other| one / other),
            _ => two(|one, other| one % other),
        },
        "log" => two(|number, base| (number.ln() / base.ln() * 1e12).round() / 1e12),
        "max" => extreme(arguments, f64::max),
        "min" => extreme(arguments, f64::min),
        "greaterthan" => compare(|one, other| one > other),
        "greaterthanorequalto" => compare(|one, other| one >= other),
        "lessthan" => compare(|one, other| one < other),
        "lessthanorequalto" => compare(|one, other| one <= other),
        "and" => bools(|one, other| one && other),
        "or" => bools(|one, other| one || other),
        "not" => match arguments {
            [value] => value.truth().map(|value| Value::Bool(!value)),
            _ => count("1 argument", arguments),
        },
        "equal" | "notequal" => match arguments {
            [one, other] => Ok(Value::Bool((one == other) == (name == "equal"))),
            _ => count("2 arguments", arguments),
        },
        "parseint" => parseint(arguments),
        "range" => range(arguments),
        _ => return None,
    })
}

fn finite(number: f64) -> Returned {
    match number.is_finite() {
        true => Ok(Value::Number(number)),
        false => Err("the result is no finite number".into()),
    }
}

fn extreme(arguments: &[Value], choose: fn(f64, f64) -> f64) -> Returned {
    let numbers = arguments.iter().map(Value::number);
    let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
    let found = numbers.into_iter().reduce(choose);
    found
        .map(Value::Number)
        .ok_or("must pass at least one number".into())
}

fn parseint(arguments: &[Value]) -> Returned {
    let [text, base] = arguments else {
        return count("2 arguments", arguments);
    };
    let (text, base) = (text.text()?, integer(base)?);
    let radix = u32::try_from(base)
        .ok()
        .filter(|radix| (2..=36).contains(radix));
    let radix = radix.ok_or("base must be a whole number between 2 and 36 inclusive")?;
    let number = i64::from_str_radix(&text, radix)
        .map_err(|_| format!("cannot parse {text:?} as a base {radix} integer"))?;
    #[allow(clippy::cast_precision_loss, reason = "as in all numbers here")]
    let number = number as f64;
    Ok(Value::Number(number))
}

fn range(arguments: &[Value]) -> Returned {
    let numbers = arguments.iter().map(Value::number);
    let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
    let (start, end, step) = match numbers.as_slice() {
        [end] => (0.0, *end, if *end < 0.0 { -1.0 } else { 1.0 }),
        [start, end] => (*start, *end, if end < start { -1.0 } else { 1.0 }),
        [start, end, step] => (*start, *end, *step),
        _ => return count("1 to 3 arguments", arguments),
    };
    if step == 0.0 || (end < start) != (step < 0.0) && start != end {
        return Err("the step does not lead from the start to the end".into());
    }
    let mut items = Vec::new();
    let mut at = start;
    while if step > 0.0 { at < end } else { at > end } {
        if items.len() == MAX_RANGE {
            return Err(format!(
                "more than {MAX_RANGE} values were generated; either decrease the difference between start and end or use a smaller step"
            ));
        }
        items.push(Value::Number(at));
        at += step;
    }
    Ok(Value::List(items))
}
