//! Functions of numbers and truth values.

use super::{NO_NUMBER, Returned, count, integer};
use crate::number::Number;
use crate::value::Value;

/// The maximum length of a range, as in go-cty.
const MAX_RANGE: usize = 1024;

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    let one = |change: fn(Number) -> Option<Number>| match arguments {
        [value] => result(change(value.number()?)),
        _ => count("1 argument", arguments),
    };
    let two = |change: fn(Number, Number) -> Option<Number>| match arguments {
        [first, second] => result(change(first.number()?, second.number()?)),
        _ => count("2 arguments", arguments),
    };
    let compare = |holds: fn(Number, Number) -> bool| match arguments {
        [first, second] => Ok(Value::Bool(holds(first.number()?, second.number()?))),
        _ => count("2 arguments", arguments),
    };
    let bools = |holds: fn(bool, bool) -> bool| match arguments {
        [first, second] => Ok(Value::Bool(holds(first.truth()?, second.truth()?))),
        _ => count("2 arguments", arguments),
    };
    Some(match name {
        "absolute" => one(|number| match number {
            Number::Whole(number) => Number::whole(number.abs()),
            Number::Double(number) => Number::of(number.abs()),
        }),
        "ceil" => one(|number| rounded(number, f64::ceil)),
        "floor" => one(|number| rounded(number, f64::floor)),
        "int" => one(|number| rounded(number, f64::trunc)),
        "negate" => one(|number| Number::Whole(0).minus(number)),
        "signum" => one(|number| match number {
            Number::Whole(number) => Number::whole(number.signum()),
            Number::Double(number) => Number::of(number.signum()),
        }),
        "add" => two(Number::plus),
        "subtract" => two(Number::minus),
        "multiply" => two(Number::times),
        "pow" => two(Number::power),
        "divide" | "modulo" => match arguments {
            [_, divisor] if divisor.number().is_ok_and(Number::is_zero) => {
                Err("division by zero".into())
            }
            _ if name == "divide" => two(Number::divided_by),
            _ => two(Number::modulo),
        },
        "log" => two(|number, base| {
            let log = number.double().ln() / base.double().ln();
            Number::of((log * 1e12).round() / 1e12)
        }),
        "max" => extreme(
            arguments,
            |one, other| if other > one { other } else { one },
        ),
        "min" => extreme(
            arguments,
            |one, other| if other < one { other } else { one },
        ),
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

fn result(number: Option<Number>) -> Returned {
    number
        .map(Value::Number)
        .ok_or_else(|| NO_NUMBER.to_owned())
}

fn rounded(number: Number, round: fn(f64) -> f64) -> Option<Number> {
    match number {
        Number::Whole(_) => Some(number),
        Number::Double(number) => Number::of(round(number)),
    }
}

fn extreme(arguments: &[Value], choose: fn(Number, Number) -> Number) -> Returned {
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
    let number = i128::from_str_radix(&text, radix)
        .map_err(|_| format!("cannot parse {text:?} as a base {radix} integer"))?;
    result(Number::whole(number))
}

fn range(arguments: &[Value]) -> Returned {
    let numbers = arguments.iter().map(Value::double);
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
        items.push(result(Number::of(at))?);
        at += step;
    }
    Ok(Value::List(items))
}
