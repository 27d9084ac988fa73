//! Go's text templates over JSON, as far as Docker's users write them in `--format`.
//!
//! ```text
//! {{.A.B}}  {{json .}}  {{range .L}}…{{else}}…{{end}}  {{if eq .A "x"}}…{{end}}  {{with .A}}…{{end}}
//! {{$x := .A}}  {{.A | upper | printf "%-5s"}}  {{index .M "key"}}  {{- trimmed -}}
//! ```

use std::fmt::Write;

use serde_json::Value;

use crate::{Failure, Outcome};

#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Pipeline),
    Assign(String, Pipeline),
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    Range { names: Vec<String>, over: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    With(Pipeline, Vec<Node>, Vec<Node>),
}

/// Commands joined by `|`: each one's result is the next one's last argument.
#[derive(Debug)]
struct Pipeline(Vec<Vec<Operand>>);

#[derive(Debug)]
enum Operand {
    /// `.A.B`, from the dot.
    Field(Vec<String>),
    /// `$x.A`, or `$.A` from the top.
    Variable(String, Vec<String>),
    Function(String),
    Literal(Value),
    Nested(Pipeline, Vec<String>),
}

fn fail<T>(text: impl std::fmt::Display) -> Outcome<T> {
    Err(Failure::with_code(64, format!("template parsing error: template: {text}")))
}

impl Template {
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let tokens = split(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0 };
        let (nodes, end) = parser.nodes()?;
        match end {
            None => Ok(Self { nodes }),
            Some(word) => fail(format!("unexpected {{{{{word}}}}}")),
        }
    }

    pub(crate) fn execute(&self, value: &Value) -> Outcome<String> {
        let mut scope = Scope { top: value.clone(), variables: Vec::new(), out: String::new() };
        // A template that is no template is a mistake of its own kind (64); one that does not fit its object is not.
        scope.run(&self.nodes, value).map_err(|failure| Failure { code: 1, ..failure })?;
        Ok(scope.out)
    }
}

#[derive(Debug)]
enum Token {
    Text(String),
    Action(String),
}

/// Splits at `{{` and `}}`; `{{-` and `-}}` take the white space beside them away.
fn split(text: &str) -> Outcome<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some(open) = rest.find("{{") {
        let mut before = if trim { rest[..open].trim_start() } else { &rest[..open] };
        let mut action = &rest[open + 2..];
        if let Some(trimmed) = action.strip_prefix("- ") {
            before = before.trim_end();
            action = trimmed;
        }
        let Some(close) = closing(action) else { return fail(":1: unclosed action") };
        rest = &action[close + 2..];
        let body = &action[..close];
        trim = body.ends_with(" -");
        let body = body.strip_suffix(" -").unwrap_or(body).trim();
        tokens.push(Token::Text(before.to_owned()));
        if !body.starts_with("/*") {
            tokens.push(Token::Action(body.to_owned()));
        }
    }
    tokens.push(Token::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(tokens)
}

/// Where `}}` is, outside of strings.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut quote, mut index) = (None, 0);
    while index < bytes.len() {
        match (bytes[index], quote) {
            (b'\\', Some(b'"')) => index += 1,
            (byte, Some(open)) if byte == open => quote = None,
            (byte @ (b'"' | b'`'), None) => quote = Some(byte),
            (b'}', None) if bytes.get(index + 1) == Some(&b'}') => return Some(index),
            _ => {}
        }
        index += 1;
    }
    None
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Parser<'_> {
    /// Nodes up to an `else` or `end`, which is returned.
    fn nodes(&mut self) -> Outcome<(Vec<Node>, Option<String>)> {
        let mut nodes = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            match token {
                Token::Text(text) if text.is_empty() => {}
                Token::Text(text) => nodes.push(Node::Text(text.clone())),
                Token::Action(action) => {
                    let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
                    match word {
                        "end" | "else" => return Ok((nodes, Some(action.clone()))),
                        "if" => nodes.push(self.branch(rest)?),
                        "range" => nodes.push(self.range(rest)?),
                        "with" => {
                            let pipeline = pipeline(rest)?;
                            let (body, otherwise) = self.bodies()?;
                            nodes.push(Node::With(pipeline, body, otherwise));
                        }
                        _ => nodes.push(statement(action)?),
                    }
                }
            }
        }
        Ok((nodes, None))
    }

    fn branch(&mut self, condition: &str) -> Outcome<Node> {
        let mut arms = Vec::new();
        let mut condition = condition.to_owned();
        loop {
            let parsed = pipeline(&condition)?;
            let (body, end) = self.nodes()?;
            arms.push((parsed, body));
            match end.as_deref() {
                Some("end") => return Ok(Node::If(arms, Vec::new())),
                Some("else") => {
                    let (otherwise, end) = self.nodes()?;
                    return if end.as_deref() == Some("end") { Ok(Node::If(arms, otherwise)) } else { fail("unexpected EOF") };
                }
                Some(other) => match other.strip_prefix("else if ") {
                    Some(next) => condition = next.to_owned(),
                    None => return fail(format!("unexpected {{{{{other}}}}}")),
                },
                None => return fail("unexpected EOF"),
            }
        }
    }

    fn bodies(&mut self) -> Outcome<(Vec<Node>, Vec<Node>)> {
        let (body, end) = self.nodes()?;
        match end.as_deref() {
            Some("end") => Ok((body, Vec::new())),
            Some("else") => match self.nodes()? {
                (otherwise, Some(end)) if end == "end" => Ok((body, otherwise)),
                _ => fail("unexpected EOF"),
            },
            _ => fail("unexpected EOF"),
        }
    }

    fn range(&mut self, rest: &str) -> Outcome<Node> {
        let (names, over) = match rest.split_once(":=") {
            Some((names, over)) => (names.split(',').map(|name| name.trim().to_owned()).collect(), over),
            None => (Vec::new(), rest),
        };
        let over = pipeline(over)?;
        let (body, otherwise) = self.bodies()?;
        Ok(Node::Range { names, over, body, otherwise })
    }
}

fn statement(action: &str) -> Outcome<Node> {
    if let Some((name, value)) =
        action.split_once(":=").or_else(|| action.split_once(" = ")).filter(|(name, _)| name.trim().starts_with('$'))
    {
        return Ok(Node::Assign(name.trim().to_owned(), pipeline(value)?));
    }
    pipeline(action).map(Node::Print)
}

fn pipeline(text: &str) -> Outcome<Pipeline> {
    let words = words(text)?;
    let mut commands = vec![Vec::new()];
    for word in words {
        match word.as_str() {
            "|" => commands.push(Vec::new()),
            word => commands.last_mut().map(|command| operand(word).map(|operand| command.push(operand))).unwrap_or(Ok(()))?,
        }
    }
    if commands.iter().any(Vec::is_empty) { fail("missing value for command") } else { Ok(Pipeline(commands)) }
}

/// Splits at spaces and pipes, outside of strings and parentheses.
fn words(text: &str) -> Outcome<Vec<String>> {
    let (mut words, mut word, mut depth, mut quote) = (Vec::new(), String::new(), 0usize, None);
    let mut letters = text.chars();
    let finish = |word: &mut String, words: &mut Vec<String>| {
        if !word.is_empty() {
            words.push(std::mem::take(word));
        }
    };
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', Some('"')) => {
                word.push(letter);
                word.extend(letters.next());
                continue;
            }
            (letter, Some(open)) if letter == open => {
                quote = None;
            }
            ('"' | '`', None) => quote = Some(letter),
            ('(', None) => depth += 1,
            (')', None) => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return fail("unexpected right paren"),
            },
            ('|', None) if depth == 0 => {
                finish(&mut word, &mut words);
                words.push("|".into());
                continue;
            }
            (letter, None) if letter.is_whitespace() && depth == 0 => {
                finish(&mut word, &mut words);
                continue;
            }
            _ => {}
        }
        word.push(letter);
    }
    if quote.is_some() || depth > 0 {
        return fail("unterminated quoted string or parenthesis");
    }
    finish(&mut word, &mut words);
    Ok(words)
}

fn operand(word: &str) -> Outcome<Operand> {
    let path = |text: &str| text.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    if let Some(inner) = word.strip_prefix('(') {
        let Some((inner, rest)) = inner.rsplit_once(')') else { return fail(format!("unclosed {word:?}")) };
        return Ok(Operand::Nested(pipeline(inner)?, path(rest)));
    }
    if word.starts_with('.') {
        return Ok(Operand::Field(path(word)));
    }
    if word.starts_with('$') {
        let (name, rest) = word.split_once('.').unwrap_or((word, ""));
        return Ok(Operand::Variable(name.to_owned(), path(rest)));
    }
    if word.starts_with('"') {
        return serde_json::from_str(word).map(Operand::Literal).or_else(|_| fail(format!("bad string {word}")));
    }
    if let Some(raw) = word.strip_prefix('`').and_then(|word| word.strip_suffix('`')) {
        return Ok(Operand::Literal(Value::from(raw)));
    }
    match word {
        "true" => Ok(Operand::Literal(Value::Bool(true))),
        "false" => Ok(Operand::Literal(Value::Bool(false))),
        "nil" => Ok(Operand::Literal(Value::Null)),
        _ => match word.parse::<i64>() {
            Ok(number) => Ok(Operand::Literal(Value::from(number))),
            Err(_) if FUNCTIONS.contains(&word) => Ok(Operand::Function(word.to_owned())),
            Err(_) => fail(format!("function {word:?} not defined")),
        },
    }
}

const FUNCTIONS: &[&str] = &[
    "json", "join", "split", "upper", "lower", "title", "truncate", "pad", "println", "print", "printf", "len", "index", "slice", "eq",
    "ne", "lt", "le", "gt", "ge", "and", "or", "not", "html", "urlquery",
];

struct Scope {
    top: Value,
    variables: Vec<(String, Value)>,
    out: String,
}

impl Scope {
    fn run(&mut self, nodes: &[Node], dot: &Value) -> Outcome<()> {
        let depth = self.variables.len();
        for node in nodes {
            match node {
                Node::Text(text) => self.out += text,
                Node::Print(pipeline) => {
                    let value = self.value(pipeline, dot)?;
                    self.out += &display(&value);
                }
                Node::Assign(name, pipeline) => {
                    let value = self.value(pipeline, dot)?;
                    self.variables.push((name.clone(), value));
                    continue;
                }
                Node::If(arms, otherwise) => {
                    let mut chosen = otherwise;
                    for (condition, body) in arms {
                        if truth(&self.value(condition, dot)?) {
                            chosen = body;
                            break;
                        }
                    }
                    self.run(chosen, dot)?;
                }
                Node::With(pipeline, body, otherwise) => {
                    let value = self.value(pipeline, dot)?;
                    if truth(&value) { self.run(body, &value)? } else { self.run(otherwise, dot)? }
                }
                Node::Range { names, over, body, otherwise } => self.range(names, &self.value(over, dot)?, body, otherwise, dot)?,
            }
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn range(&mut self, names: &[String], over: &Value, body: &[Node], otherwise: &[Node], dot: &Value) -> Outcome<()> {
        let items: Vec<(Value, Value)> = match over {
            Value::Array(list) => list.iter().enumerate().map(|(index, value)| (Value::from(index), value.clone())).collect(),
            Value::Object(map) => {
                // Go goes through maps in the order of their keys.
                let mut items: Vec<_> = map.iter().map(|(key, value)| (Value::from(key.clone()), value.clone())).collect();
                items.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
                items
            }
            Value::Null => Vec::new(),
            other => return fail(format!("range can't iterate over {}", display(other))),
        };
        if items.is_empty() {
            return self.run(otherwise, dot);
        }
        for (key, value) in items {
            let depth = self.variables.len();
            match names {
                [] => {}
                [one] => self.variables.push((one.clone(), value.clone())),
                [first, second, ..] => self.variables.extend([(first.clone(), key), (second.clone(), value.clone())]),
            }
            self.run(body, &value)?;
            self.variables.truncate(depth);
        }
        Ok(())
    }

    fn value(&self, pipeline: &Pipeline, dot: &Value) -> Outcome<Value> {
        let mut last: Option<Value> = None;
        for command in &pipeline.0 {
            let (head, arguments) = command.split_first().map_or_else(|| fail("empty command"), Ok)?;
            let mut values = arguments.iter().map(|operand| self.operand(operand, dot)).collect::<Outcome<Vec<_>>>()?;
            values.extend(last.take());
            last = Some(match head {
                Operand::Function(name) => call(name, values)?,
                // The one method that rows of tables have.
                Operand::Field(path) if path.as_slice() == ["Label"] && values.len() == 1 => label(dot, &display(&values[0])),
                other if values.is_empty() => self.operand(other, dot)?,
                other => return fail(format!("can't give argument to non-function {other:?}")),
            });
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Outcome<Value> {
        match operand {
            Operand::Field(path) => walk(dot, path),
            Operand::Variable(name, path) if name == "$" => walk(&self.top, path),
            Operand::Variable(name, path) => match self.variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => walk(value, path),
                None => fail(format!("undefined variable {name:?}")),
            },
            Operand::Function(name) => call(name, Vec::new()),
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Nested(pipeline, path) => walk(&self.value(pipeline, dot)?, path),
        }
    }
}

fn escape_html(text: &str) -> String {
    let names = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&#34;"), ("'", "&#39;")];
    names.iter().fold(text.to_owned(), |text, (letter, name)| text.replace(letter, name))
}

/// The value of a label, out of a list like `a=1,b=2`.
fn label(row: &Value, name: &str) -> Value {
    let list = row["Labels"].as_str().unwrap_or_default();
    let found = list.split(',').find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name));
    Value::from(found.map(|(_, value)| value).unwrap_or_default())
}

fn walk(value: &Value, path: &[String]) -> Outcome<Value> {
    let mut value = value;
    for part in path {
        match value {
            Value::Object(map) => match map.get(part) {
                Some(found) => value = found,
                None => return fail(format!(":1:2: executing \"\" at <.{}>: map has no entry for key {part:?}", path.join("."))),
            },
            Value::Null => return Ok(Value::Null),
            _ => return fail(format!(":1:2: executing \"\" at <.{}>: can't evaluate field {part} in this value", path.join("."))),
        }
    }
    Ok(value.clone())
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as Go prints it: `[a b]`, `map[k:v]`, `<nil>`… except that a missing one reads `<no value>`.
fn display(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(inner).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", inner(value))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

fn inner(value: &Value) -> String {
    if value.is_null() { "<nil>".into() } else { display(value) }
}

fn call(name: &str, arguments: Vec<Value>) -> Outcome<Value> {
    let wrong = || fail(format!("error calling {name}: wrong arguments"));
    let text = |value: &Value| if let Value::String(text) = value { text.clone() } else { display(value) };
    let number = |value: &Value| value.as_i64().and_then(|number| usize::try_from(number).ok());
    Ok(match (name, arguments.as_slice()) {
        ("json", [value]) => Value::from(value.to_string()),
        ("upper", [value]) => Value::from(text(value).to_uppercase()),
        ("lower", [value]) => Value::from(text(value).to_lowercase()),
        ("title", [value]) => {
            let text = text(value);
            let mut letters = text.chars();
            Value::from(letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default())
        }
        ("join", [Value::Array(list), separator]) => Value::from(list.iter().map(text).collect::<Vec<_>>().join(&text(separator))),
        ("join", [Value::Null, _]) => Value::from(""),
        ("split", [value, separator]) => text(value).split(&text(separator)).map(Value::from).collect(),
        ("truncate", [value, length]) => Value::from(text(value).chars().take(number(length).unwrap_or(0)).collect::<String>()),
        ("pad", [value, before, after]) => {
            Value::from(format!("{}{}{}", " ".repeat(number(before).unwrap_or(0)), text(value), " ".repeat(number(after).unwrap_or(0))))
        }
        ("println", values) => Value::from(values.iter().map(display).collect::<Vec<_>>().join(" ") + "\n"),
        ("print", values) => Value::from(values.iter().map(display).collect::<String>()),
        ("urlquery", values) => Value::from(crate::client::escape(&values.iter().map(display).collect::<String>()).replace("%20", "+")),
        ("html", values) => Value::from(escape_html(&values.iter().map(display).collect::<String>())),
        ("printf", [Value::String(format), values @ ..]) => Value::from(printf(format, values)),
        ("len", [value]) => Value::from(match value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            Value::String(text) => text.len(),
            _ => return wrong(),
        }),
        ("index", [value, keys @ ..]) => {
            let mut value = value.clone();
            for key in keys {
                value = match (&value, key) {
                    (Value::Object(map), Value::String(key)) => map.get(key).cloned().unwrap_or(Value::Null),
                    (Value::Array(list), key) => match number(key).and_then(|index| list.get(index)) {
                        Some(found) => found.clone(),
                        None => return fail(format!("error calling index: index out of range: {key}")),
                    },
                    (Value::Null, _) => Value::Null,
                    _ => return wrong(),
                };
            }
            value
        }
        ("slice", [value, bounds @ ..]) => {
            let bound = |index: usize, default: usize| bounds.get(index).and_then(number).unwrap_or(default);
            match value {
                Value::String(text) => match text.get(bound(0, 0)..bound(1, text.len())) {
                    Some(part) => Value::from(part),
                    None => return fail("error calling slice: index out of range"),
                },
                Value::Array(list) => match list.get(bound(0, 0)..bound(1, list.len())) {
                    Some(part) => Value::from(part.to_vec()),
                    None => return fail("error calling slice: index out of range"),
                },
                _ => return wrong(),
            }
        }
        ("eq", [first, rest @ ..]) if !rest.is_empty() => Value::from(rest.iter().any(|other| other == first)),
        ("ne", [a, b]) => Value::from(a != b),
        ("lt" | "le" | "gt" | "ge", [a, b]) => {
            let order = match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => a.partial_cmp(&b),
                _ => Some(text(a).cmp(&text(b))),
            };
            Value::from(match name {
                "lt" => order.is_some_and(std::cmp::Ordering::is_lt),
                "le" => order.is_some_and(std::cmp::Ordering::is_le),
                "gt" => order.is_some_and(std::cmp::Ordering::is_gt),
                _ => order.is_some_and(std::cmp::Ordering::is_ge),
            })
        }
        ("and", values) => values.iter().find(|value| !truth(value)).or(values.last()).cloned().unwrap_or(Value::Null),
        ("or", values) => values.iter().find(|value| truth(value)).or(values.last()).cloned().unwrap_or(Value::Null),
        ("not", [value]) => Value::from(!truth(value)),
        _ => return wrong(),
    })
}

/// `%s %v %d %q %%` with width and `-`.
fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let left = letters.next_if_eq(&'-').is_some();
        let zero = letters.next_if_eq(&'0').is_some();
        let mut width = String::new();
        while let Some(digit) = letters.next_if(char::is_ascii_digit) {
            width.push(digit);
        }
        let width: usize = width.parse().unwrap_or(0);
        let precision: Option<usize> = letters.next_if_eq(&'.').map(|_| {
            let mut digits = String::new();
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            digits.parse().unwrap_or(0)
        });
        let text = match letters.next() {
            Some('%') => "%".to_owned(),
            Some('q') => values.next().map_or_else(String::new, |value| Value::from(display(value)).to_string()),
            Some('s' | 'v' | 'd') => values.next().map_or_else(|| "%!s(MISSING)".to_owned(), display),
            Some(other) => format!("%!{other}"),
            None => "%!(NOVERB)".to_owned(),
        };
        let text = precision.map_or_else(|| text.clone(), |most| text.chars().take(most).collect());
        let _ = match (left, zero) {
            (true, _) => write!(out, "{text:<width$}"),
            (_, true) => write!(out, "{text:0>width$}"),
            _ => write!(out, "{text:>width$}"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(template: &str, expected: &str) {
        let value =
            json!({"A": "x", "N": 5, "L": ["a", "b"], "M": {"k": "v", "a": 1}, "E": [], "Z": null, "T": true, "O": {"P": {"Q": "deep"}}});
        let outcome = Template::parse(template).and_then(|template| template.execute(&value));
        assert_eq!(outcome.unwrap_or_else(|failure| failure.text), expected, "{template}");
    }

    #[test]
    fn fields_and_functions() {
        check("{{.A}}-{{.O.P.Q}}", "x-deep");
        check("{{json .L}} {{.L}} {{.M}}", "[\"a\",\"b\"] [a b] map[a:1 k:v]");
        check("{{.Z}} {{.T}} {{.N}}", "<no value> true 5");
        check("{{join .L \", \"}} {{upper .A}} {{.A | upper | printf \"%-3s|\"}}", "a, b X X  |");
        check("{{index .M \"k\"}} {{index .L 1}} {{len .L}} {{slice .A 0 1}}", "v b 2 x");
        check("{{printf \"%03d %q\" .N .A}}", "005 \"x\"");
        check("{{(index .L 0)}}{{/* note */}}", "a");
    }

    #[test]
    fn control() {
        check("{{range .L}}<{{.}}>{{end}}", "<a><b>");
        check("{{range $i, $x := .L}}{{$i}}={{$x}} {{end}}", "0=a 1=b ");
        check("{{range $k, $v := .M}}{{$k}}:{{$v}};{{end}}", "a:1;k:v;");
        check("{{range .E}}x{{else}}none{{end}}", "none");
        check("{{if eq .A \"x\"}}yes{{else}}no{{end}}{{if and .T (not .Z)}}!{{end}}", "yes!");
        check("{{if .Z}}a{{else if gt .N 4}}b{{else}}c{{end}}", "b");
        check("{{with .O.P}}{{.Q}}{{$.A}}{{end}}", "deepx");
        check("{{$v := .A}}{{$v}}", "x");
        check("a {{- .A -}} b", "axb");
    }

    #[test]
    fn mistakes_are_named() {
        for template in ["{{.A", "{{range .L}}", "{{end}}", "{{bogus .A}}", "{{.Nope}}", "{{index .L 9}}", "{{\"x}}"] {
            let failure = Template::parse(template).and_then(|template| template.execute(&json!({"L": []}))).unwrap_err();
            assert!(failure.text.starts_with("template parsing error"), "{template}: {}", failure.text);
        }
    }
}
