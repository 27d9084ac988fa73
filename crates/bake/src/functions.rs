//! The functions of bake files: HCL's standard library, as far as it is pure.

mod collections;
mod formats;
mod hashes;
mod networks;
mod numbers;
mod sets;
mod strings;
mod times;

use std::collections::BTreeMap;

use crate::Environment;
use crate::number::Number;
use crate::value::Value;

/// What a function returns: a value, or why there is none.
type Returned = Result<Value, String>;

/// Why an operation on numbers has no result.
pub(crate) const NO_NUMBER: &str = "the result is no number that can be had without a loss: it is not finite, or has more than 64 bits";

/// The maximum length of a text that a function makes, in bytes.
const MAX_TEXT: usize = 4 << 20;

/// The maximum number of items of a list that a function makes.
const MAX_ITEMS: usize = 100_000;

/// The functions, with those that evaluate their arguments themselves.
#[rustfmt::skip]
pub(crate) const NAMES: &[&str] = &[
    "absolute", "add", "and", "base64decode", "base64encode", "basename", "bcrypt", "byteslen", "can", "ceil", "chomp",
    "chunklist", "cidrhost", "cidrnetmask", "cidrsubnet", "cidrsubnets", "coalesce", "coalescelist", "compact",
    "concat", "contains", "convert", "csvdecode", "dirname", "distinct", "divide", "element", "equal", "flatten",
    "floor", "format", "formatdate", "formatlist", "formattimestamp", "greaterthan", "greaterthanorequalto", "hasindex",
    "homedir", "indent", "index", "indexof", "int", "join", "jsondecode", "jsonencode", "keys", "length", "lessthan",
    "lessthanorequalto", "log", "lookup", "lower", "max", "md5", "merge", "min", "modulo", "multiply", "negate", "not",
    "notequal", "or", "parseint", "pow", "range", "regex", "regex_replace", "regexall", "replace", "reverse",
    "reverselist", "sanitize", "sethaselement", "setintersection", "setproduct", "setsubtract",
    "setsymmetricdifference", "setunion", "sha1", "sha256", "sha512", "signum", "slice", "sort", "split", "strlen",
    "substr", "subtract", "timeadd", "timestamp", "title", "trim", "trimprefix", "trimspace", "trimsuffix", "try",
    "unixtimestampparse", "upper", "urlencode", "uuidv4", "uuidv5", "values", "zipmap",
];

/// Functions of Docker's bake that are not here: definitions have no bytes, private keys do not belong into them, and the last one is newer.
const REFUSED: &[&str] = &["bytesslice", "rsadecrypt", "semvercmp"];

/// Whether Docker's bake has a function that is not available here.
pub(crate) fn is_refused(name: &str) -> bool {
    REFUSED.contains(&name)
}

/// How many bytes count as one value.
pub(crate) const STEP: usize = 64;

/// How much an object counts beside its members: its memory is that of several values, also if there is but one.
pub(crate) const OBJECT: usize = 10;

/// How deep values may be in others: their copies are made level by level.
const MAX_NESTED: usize = 500;

/// Returns how much a value counts towards the limit of all values. Nothing can pay for one that is nested too deeply.
pub(crate) fn weight(value: &Value) -> usize {
    weight_at(value, 0)
}

fn weight_at(value: &Value, depth: usize) -> usize {
    if depth > MAX_NESTED {
        return usize::MAX;
    }
    match value {
        Value::String(text) => 1 + text.len() / STEP,
        Value::List(items) => {
            let items = items.iter().map(|item| weight_at(item, depth + 1));
            items.fold(1, usize::saturating_add)
        }
        Value::Object(members) => weight_of_members(members, depth + 1),
        _ => 1,
    }
}

/// Returns how much values with names count that are `depth` levels deep.
pub(crate) fn weight_of_members(members: &BTreeMap<String, Value>, depth: usize) -> usize {
    let members = members.iter();
    let members =
        members.map(|(name, value)| weight_at(value, depth).saturating_add(name.len() / STEP));
    members.fold(OBJECT, usize::saturating_add)
}

/// The maximum length of all texts of a list that a function makes, in bytes.
const MAX_TEXTS: usize = 16 * MAX_TEXT;

/// Functions that compare each item with all others.
const QUADRATIC: &[&str] = &[
    "distinct",
    "setintersection",
    "setsubtract",
    "setsymmetricdifference",
];

/// Returns how much a call counts towards the limit of all values.
pub(crate) fn cost(name: &str, arguments: &[Value]) -> usize {
    let size = arguments.iter().map(weight);
    let size = size.fold(0, usize::saturating_add);
    match name {
        "bcrypt" => hashes::cost_of_bcrypt(arguments).saturating_add(size),
        name if QUADRATIC.contains(&name) => size.saturating_add(size.saturating_mul(size) / 256),
        _ => size,
    }
}

/// Calls a function. Returns `None` if there is none of this name. `turn` is a number that no other call has.
pub(crate) fn call(
    environment: &Environment,
    turn: usize,
    name: &str,
    arguments: &[Value],
) -> Option<Returned> {
    let groups = [
        strings::call,
        formats::call,
        numbers::call,
        collections::call,
        sets::call,
        networks::call,
    ];
    groups
        .iter()
        .find_map(|call| call(name, arguments))
        .or_else(|| hashes::call(name, arguments, &|| environment.random(turn)))
        .or_else(|| times::call(environment, name, arguments))
}

/// Returns the error of a wrong number of arguments.
fn count(expected: &str, arguments: &[Value]) -> Returned {
    Err(format!(
        "{expected} expected, but there are {}",
        arguments.len()
    ))
}

fn list(value: &Value) -> Result<&[Value], String> {
    match value {
        Value::List(items) => Ok(items),
        other => Err(format!("list required, but have {}", other.kind())),
    }
}

fn object(value: &Value) -> Result<&BTreeMap<String, Value>, String> {
    match value {
        Value::Object(members) => Ok(members),
        other => Err(format!("map required, but have {}", other.kind())),
    }
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    list(value)?.iter().map(Value::text).collect()
}

/// Converts to a whole number.
fn integer(value: &Value) -> Result<i64, String> {
    match value.number()? {
        Number::Whole(number) => {
            i64::try_from(number).map_err(|_| format!("{number} is too large"))
        }
        Number::Double(_) => Err("a whole number is required".into()),
    }
}

/// Converts to a number of items or a position.
fn position(value: &Value) -> Result<usize, String> {
    usize::try_from(integer(value)?).map_err(|_| "a number that is not negative is required".into())
}

fn bounded_text(text: String) -> Returned {
    check_length(text.len())?;
    Ok(Value::String(text))
}

/// Checks the length of a text before it is made.
fn check_length(length: usize) -> Result<(), String> {
    match length > MAX_TEXT {
        true => Err(format!("its result is longer than {MAX_TEXT} bytes")),
        false => Ok(()),
    }
}

fn bounded_list(items: Vec<Value>) -> Returned {
    match items.len() > MAX_ITEMS {
        true => Err(format!("its result has more than {MAX_ITEMS} items")),
        false => Ok(Value::List(items)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Scope;
    use crate::names::Names;

    #[track_caller]
    fn check(expression: &str, expected: &str) {
        let environment = Environment {
            now: 1_700_000_000,
            home: "/home/me".into(),
            ..Environment::default()
        };
        let names = Names::empty(&environment);
        let own = BTreeMap::new();
        let scope = Scope {
            names: &names,
            file: 0,
            own: &own,
            within: None,
            depth: 0,
        };
        let parsed = expression.parse().unwrap();
        let found = match scope.value(&parsed) {
            Ok(value) => value.json().to_string(),
            Err(problem) => problem.detail,
        };
        assert_eq!(found, expected, "{expression}");
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn functions_return_what_those_of_go_cty_do() {
        for (expression, expected) in [
            ("upper(\"ä\")", "\"Ä\""),
            ("upper(\"straße\")", "\"STRAßE\""),
            ("lower(\"İIΑΣ\")", "\"iiασ\""),
            (
                "jsonencode(\"<a&b>\")",
                "\"\\\"\\\\u003ca\\\\u0026b\\\\u003e\\\"\"",
            ),
            ("title(\"hello world\")", "\"Hello World\""),
            ("trim(\"?!hi?!\", \"!?\")", "\"hi\""),
            ("trimprefix(\"v1\", \"v\")", "\"1\""),
            ("trimsuffix(\"a.b\", \".b\")", "\"a\""),
            ("chomp(\"x\\n\\n\")", "\"x\""),
            ("indent(2, \"a\\nb\")", "\"a\\n  b\""),
            ("substr(\"hello\", 1, 3)", "\"ell\""),
            ("substr(\"hello\", -3, -1)", "\"llo\""),
            ("strlen(\"äö\")", "2"),
            ("byteslen(\"äö\")", "4"),
            ("reverse(\"abc\")", "\"cba\""),
            ("split(\",\", \"a,b\")", "[\"a\",\"b\"]"),
            ("join(\"-\", [\"a\"], [\"b\", 1])", "\"a-b-1\""),
            ("replace(\"a.b\", \".\", \"_\")", "\"a_b\""),
            (
                "regex_replace(\"a1b2\", \"[0-9]\", \"<$0>\")",
                "\"a<1>b<2>\"",
            ),
            ("regex(\"[a-z]+\", \"53 abc\")", "\"abc\""),
            ("regex(\"(?P<n>[0-9])x\", \"3x\")", "{\"n\":\"3\"}"),
            (
                "regexall(\"([a-z])([0-9])\", \"a1b2\")",
                "[[\"a\",\"1\"],[\"b\",\"2\"]]",
            ),
            ("sanitize(\"a/b.c\")", "\"a_b_c\""),
            ("basename(\"/a/b\")", "\"b\""),
            ("dirname(\"/a/b\")", "\"/a\""),
            ("urlencode(\"a b/ä\")", "\"a+b%2F%C3%A4\""),
            (
                "format(\"%s-%03d-%.2f-%q-%v-%%\", \"a\", 7, 1.5, \"x\", [1])",
                "\"a-007-1.50-\\\"x\\\"-[1]-%\"",
            ),
            (
                "format(\"%5s|%-5s|%#v\", \"a\", \"b\", \"c\")",
                "\"    a|b    |\\\"c\\\"\"",
            ),
            (
                "formatlist(\"%s:%s\", [\"a\", \"b\"], 1)",
                "[\"a:1\",\"b:1\"]",
            ),
            ("absolute(-2)", "2"),
            ("add(1, 2)", "3"),
            ("divide(1, 4)", "0.25"),
            ("modulo(7, 3)", "1"),
            ("ceil(1.2)", "2"),
            ("floor(-1.2)", "-2"),
            ("int(-1.7)", "-1"),
            ("max(1, 3, 2)", "3"),
            ("pow(2, 10)", "1024"),
            ("log(8, 2)", "3"),
            ("signum(-3)", "-1"),
            ("parseint(\"ff\", 16)", "255"),
            ("range(3)", "[0,1,2]"),
            ("range(1, 7, 2)", "[1,3,5]"),
            ("range(3, 0)", "[3,2,1]"),
            ("greaterthan(2, 1)", "true"),
            ("equal([1], [1])", "true"),
            ("and(true, false)", "false"),
            ("coalesce(null, \"a\")", "\"a\""),
            ("coalescelist([], [1])", "[1]"),
            ("compact([\"a\", \"\"])", "[\"a\"]"),
            ("concat([1], [2])", "[1,2]"),
            ("contains([1, 2], 2)", "true"),
            ("distinct([1, 2, 1])", "[1,2]"),
            ("element([1, 2], 3)", "2"),
            ("flatten([1, [2, [3]]])", "[1,2,3]"),
            ("chunklist([1, 2, 3], 2)", "[[1,2],[3]]"),
            ("hasindex({a = 1}, \"a\")", "true"),
            ("index([5, 6], 1)", "6"),
            ("indexof([5, 6], 6)", "1"),
            ("keys({b = 1, a = 2})", "[\"a\",\"b\"]"),
            ("values({b = 1, a = 2})", "[2,1]"),
            ("length({a = 1})", "1"),
            ("lookup({a = 1}, \"b\", 2)", "2"),
            ("merge({a = 1}, {a = 2, b = 3})", "{\"a\":2,\"b\":3}"),
            ("reverselist([1, 2])", "[2,1]"),
            ("slice([1, 2, 3], 1, 2)", "[2]"),
            ("sort([\"b\", \"a\"])", "[\"a\",\"b\"]"),
            ("zipmap([\"a\"], [1])", "{\"a\":1}"),
            ("setunion([2], [1, 2])", "[1,2]"),
            ("setintersection([1, 2], [2, 3])", "[2]"),
            ("setsubtract([1, 2], [2])", "[1]"),
            ("setsymmetricdifference([1, 2], [2, 3])", "[1,3]"),
            ("setproduct([\"a\", \"b\"], [1])", "[[\"a\",1],[\"b\",1]]"),
            ("sethaselement([1], 1)", "true"),
            ("jsonencode({a = [1, null]})", "\"{\\\"a\\\":[1,null]}\""),
            ("jsondecode(\"{\\\"a\\\":1.5}\")", "{\"a\":1.5}"),
            ("base64encode(\"hi\")", "\"aGk=\""),
            ("base64decode(\"aGk=\")", "\"hi\""),
            (
                "sha256(\"\")",
                "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
            ),
            ("md5(\"a\")", "\"0cc175b9c0f1b6a831c399e269772661\""),
            (
                "sha1(\"a\")",
                "\"86f7e437faa5a7fce15d1ddcb9eaeaea377667b8\"",
            ),
            (
                "uuidv5(\"dns\", \"example.com\")",
                "\"cfbff0d1-9375-5685-968c-48ce8b15ae17\"",
            ),
            (
                "length(regexall(\"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab]\", uuidv4()))",
                "1",
            ),
            ("substr(bcrypt(\"x\", 4), 0, 7)", "\"$2a$04$\""),
            ("cidrhost(\"10.1.2.3/8\", 258)", "\"10.0.1.2\""),
            (
                "cidrhost(\"fd00::/64\", -1)",
                "\"fd00::ffff:ffff:ffff:ffff\"",
            ),
            ("cidrnetmask(\"172.16.0.0/12\")", "\"255.240.0.0\""),
            ("cidrsubnet(\"10.0.0.0/8\", 8, 2)", "\"10.2.0.0/16\""),
            (
                "cidrsubnets(\"10.1.0.0/16\", 4, 8, 4)",
                "[\"10.1.0.0/20\",\"10.1.16.0/24\",\"10.1.32.0/20\"]",
            ),
            (
                "csvdecode(\"a,b\\r\\n1,\\\"x\\\"\\\"y,\\\"\\n\\n,2\\n\")",
                "[{\"a\":\"1\",\"b\":\"x\\\"y,\"},{\"a\":\"\",\"b\":\"2\"}]",
            ),
            ("timestamp()", "\"2023-11-14T22:13:20Z\""),
            (
                "timeadd(\"2023-01-01T00:00:00Z\", \"1h30m\")",
                "\"2023-01-01T01:30:00Z\"",
            ),
            (
                "formatdate(\"DD MMM YYYY hh:mm 'at' ZZZ\", \"2023-01-02T03:04:05Z\")",
                "\"02 Jan 2023 03:04 at UTC\"",
            ),
            ("unixtimestampparse(0).year", "1970"),
            ("homedir()", "\"/home/me\""),
            ("try(nothing, 1)", "1"),
            ("can(nothing)", "false"),
            ("convert(\"1\", number)", "1"),
        ] {
            check(expression, expected);
        }
    }

    #[test]
    fn wrong_arguments_are_errors() {
        for (expression, expected) in [
            (
                "upper()",
                "Call to function \"upper\" failed: 1 argument expected, but there are 0.",
            ),
            (
                "upper([])",
                "Call to function \"upper\" failed: string required, but have tuple.",
            ),
            (
                "rsadecrypt(\"\", \"\")",
                "The function \"rsadecrypt\" is not available in this version of whelk.",
            ),
            ("bcrypt(\"a\", 30)", "its arguments are too large"),
            (
                "cidrhost(\"10.0.0.0/30\", 4)",
                "Call to function \"cidrhost\" failed: prefix of 30 does not accommodate a host numbered 4.",
            ),
            (
                "cidrsubnet(\"10.0.0.0/30\", 4, 0)",
                "Call to function \"cidrsubnet\" failed: insufficient address space to extend prefix of 30 by 4.",
            ),
            (
                "cidrsubnets(\"10.0.0.0/30\", 1, 1, 1)",
                "Call to function \"cidrsubnets\" failed: not enough remaining address space for a subnet with a prefix of 31 bits.",
            ),
            (
                "cidrnetmask(\"10.0.0.0\")",
                "Call to function \"cidrnetmask\" failed: invalid CIDR expression: invalid CIDR address: 10.0.0.0.",
            ),
            (
                "csvdecode(\"a,a\")",
                "Call to function \"csvdecode\" failed: duplicate column name \"a\".",
            ),
            (
                "csvdecode(\"a\\n1,2\")",
                "Call to function \"csvdecode\" failed: CSV parse error on record 2: wrong number of fields.",
            ),
            (
                "uuidv5(\"x\", \"\")",
                "Call to function \"uuidv5\" failed: uuidv5() doesn't support namespace x.",
            ),
            ("nothing()", "There is no function named \"nothing\"."),
            (
                "upperr(\"a\")",
                "There is no function named \"upperr\". Did you mean \"upper\"?",
            ),
            (
                "bcrypt(\"a\", 100)",
                "Call to function \"bcrypt\" failed: cost 100 is outside allowed range (4,31).",
            ),
            (
                "divide(1, 0)",
                "Call to function \"divide\" failed: division by zero.",
            ),
            (
                "range(100000)",
                "Call to function \"range\" failed: more than 1024 values were generated; either decrease the difference between start and end or use a smaller step.",
            ),
            (
                "indent(9999999, \"a\\nb\")",
                "Call to function \"indent\" failed: its result is longer than 4194304 bytes.",
            ),
            (
                "format(\"%9999999s\", \"a\")",
                "Call to function \"format\" failed: a width or precision is larger than 10000.",
            ),
            (
                "format(\"%s\")",
                "Call to function \"format\" failed: not enough arguments for \"%s\" at 0: need index 1 but have 0 total.",
            ),
            (
                "regex(\"(\", \"\")",
                "Call to function \"regex\" failed: invalid regexp pattern.",
            ),
            (
                "element([], 0)",
                "Call to function \"element\" failed: cannot use element function with an empty list.",
            ),
            (
                "1 / 0",
                "Unsuitable value for right operand: a number other than 0 is required.",
            ),
            (
                "[1][2]",
                "The given key does not identify an element in this collection value.",
            ),
            ("substr(\"a\", 99999999999, 1)", "\"\""),
        ] {
            check(expression, expected);
        }
    }

    #[test]
    fn results_are_bounded_before_they_are_made() {
        let long = "x".repeat(1 << 20);
        for (expression, expected) in [
            (
                format!("join(\"{long}\", range(1024))"),
                "Call to function \"join\" failed: its result is longer than 4194304 bytes.",
            ),
            (
                format!("formatlist(\"%s %s\", \"{long}\", range(1024))"),
                "Call to function \"formatlist\" failed: its results are longer than 67108864 bytes.",
            ),
            (
                format!("setproduct([\"{long}\"], range(1024))"),
                "Call to function \"setproduct\" failed: its result is too large.",
            ),
            (
                format!(
                    "regexall(\"(?P<{}>x)\", \"{}\")",
                    "n".repeat(1 << 14),
                    "x".repeat(5000)
                ),
                "Call to function \"regexall\" failed: its result has more than 4096 items.",
            ),
        ] {
            check(&expression, expected);
        }
    }

    #[test]
    fn all_functions_have_names() {
        let environment = Environment::default();
        for name in NAMES {
            let is_there = matches!(*name, "can" | "convert" | "try")
                || call(&environment, 0, name, &[]).is_some();
            assert!(is_there, "{name}");
        }
    }

    #[test]
    fn expressions_are_evaluated() {
        for (expression, expected) in [
            ("1 + 2 * 3 == 7 && !false", "true"),
            ("\"a${1 + 1}b\"", "\"a2b\""),
            ("\"${[1]}\"", "[1]"),
            ("\"%{ if true }yes%{ else }no%{ endif }\"", "\"yes\""),
            ("\"%{ for x in [1, 2] ~} ${x} %{~ endfor }\"", "\"12\""),
            (
                "[for i, x in [\"a\", \"b\"]: \"${i}${x}\" if x != \"a\"]",
                "[\"1b\"]",
            ),
            ("{for k, v in {a = 1}: v => k}", "{\"1\":\"a\"}"),
            (
                "{for x in [\"a\", \"b\"]: \"k\" => x...}",
                "{\"k\":[\"a\",\"b\"]}",
            ),
            ("[{a = 1}, {a = 2}][*].a", "[1,2]"),
            ("{a = {b = [1, 2]}}.a.b[1]", "2"),
            ("true ? 1 : nothing", "1"),
            ("max([1, 5]...)", "5"),
            ("<<-EOT\n  a\n    b\n  EOT", "\"a\\n  b\\n\""),
            ("-\"3\"", "-3"),
            ("-\t9007199254740993.0", "-9007199254740993"),
            (
                "-9223372036854775809",
                "whole numbers of more than 64 bits are not available in this version of whelk",
            ),
            (
                "-\t9223372036854775809",
                "whole numbers of more than 64 bits are not available in this version of whelk",
            ),
        ] {
            check(expression, expected);
        }
        let splats = format!("[1]{}", "[*]".repeat(1000));
        check(&splats, "there are more than 50 attributes and indices");
        let long = format!("distinct(concat({}))", vec!["range(1000)"; 99].join(", "));
        check(&long, "its arguments are too large");
        let nested = "concat(range(1000), range(1000))";
        let wide = format!("setproduct({nested}, {nested})");
        check(
            &wide,
            "Call to function \"setproduct\" failed: its result has more than 100000 items.",
        );
    }
}
