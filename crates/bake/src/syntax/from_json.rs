//! The structure of a file in JSON, as HCL's JSON syntax has it: a key that occurs twice is several blocks, and an attribute once only.

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::expr::{Array, Expression, Object, ObjectKey, ObjectValue};
use hcl_edit::template::{StringTemplate, Template};
use serde_json::Value as Json;

use super::json::{self, Member, Node, Value};
use super::{Attribute, Block, Body, counted};
use crate::error::{Error, Problem, Result, place_of, syntax};
use crate::number::SMALLEST;
use crate::place;

/// Names of blocks that have a name themselves.
const NAMED: [&str; 4] = ["function", "group", "target", "variable"];

/// A key whose value is a comment.
const COMMENT: &str = "//";

/// Reads a file in JSON.
///
/// # Errors
/// Returns an error, with its place, for what is no JSON, is of another structure, or is defined twice.
pub(super) fn body(files: &[(String, String)], file: usize, content: &str) -> Result<Body> {
    if content.trim().is_empty() {
        let name = files.get(file).map_or("", |(name, _)| name.as_str());
        let text = format!("couldn't find a bake definition in {name}: it is empty");
        return Err(Error::new(text));
    }
    let root = json::read(content).map_err(|error| {
        let lines = content.split_inclusive('\n');
        let before: usize = lines
            .take(error.line().saturating_sub(1))
            .map(str::len)
            .sum();
        let text = error.to_string();
        // The place is written before the text.
        let what = text
            .rsplit_once(" at line ")
            .map_or(&*text, |(what, _)| what);
        syntax(files, file, before + error.column().saturating_sub(1), what)
    })?;
    let mut reader = Reader {
        files,
        file,
        count: 0,
    };
    reader.body(root)
}

struct Reader<'a> {
    files: &'a [(String, String)],
    file: usize,
    /// Blocks and attributes so far.
    count: usize,
}

/// Where the names of a block or an object are written.
type Seen = BTreeMap<String, Range<usize>>;

impl Reader<'_> {
    fn wrong(&self, span: &Range<usize>, what: &'static str, detail: impl Into<String>) -> Error {
        let problem = Problem::new(what, detail);
        problem.at(self.file, Some(span.clone())).error(self.files)
    }

    fn counted(&mut self, span: &Range<usize>) -> Result<()> {
        let counted = counted(&mut self.count);
        counted.map_err(|text| self.wrong(span, "Invalid definition", text))
    }

    /// Writes a range of this file.
    fn written(&self, span: &Range<usize>) -> String {
        let file = self.files.get(self.file);
        file.map_or_else(String::new, |(name, content)| place_of(name, content, span))
    }

    fn body(&mut self, root: Node) -> Result<Body> {
        let Value::Object(members) = root.value else {
            let first = root.span.start..root.span.start + 1;
            let text = "a JSON object is required";
            return Err(self.wrong(&first, "Incorrect JSON value type", text));
        };
        let mut body = Body::default();
        let mut seen = Seen::new();
        for member in members {
            self.counted(&member.span)?;
            if !NAMED.contains(&member.name.as_str()) {
                let twice = "Duplicate attribute definition";
                self.attribute(&mut body, &mut seen, member, twice)?;
                continue;
            }
            for labelled in self.objects(&member.name, member.value)? {
                for label in labelled {
                    for members in self.objects(&label.name, label.value)? {
                        self.counted(&label.span)?;
                        let mut block = self.block(&member.name, &member.span, members)?;
                        let label = (label.name.clone(), Some(label.span.clone()));
                        block.labels.push(label);
                        body.blocks.push(block);
                    }
                }
            }
        }
        Ok(body)
    }

    /// Returns an object, or those of a list, or nothing for `null`.
    fn objects(&self, name: &str, node: Node) -> Result<Vec<Vec<Member>>> {
        let nodes = match node.value {
            Value::Plain(Json::Null) => return Ok(Vec::new()),
            Value::Array(nodes) => nodes,
            value => vec![Node { value, ..node }],
        };
        let object = |node: Node| match node.value {
            Value::Object(members) => Ok(members),
            _ => {
                let text = format!("{name}: a JSON object is required, or an array of them");
                Err(self.wrong(&node.span, "Incorrect JSON value type", text))
            }
        };
        nodes.into_iter().map(object).collect()
    }

    fn block(&self, kind: &str, span: &Range<usize>, members: Vec<Member>) -> Result<Block> {
        let mut body = Body::default();
        let mut seen = Seen::new();
        for member in members {
            if kind == "variable" && member.name == "validation" {
                for members in self.objects(&member.name, member.value)? {
                    let block = self.block(&member.name, &member.span, members)?;
                    body.blocks.push(block);
                }
                continue;
            }
            self.attribute(&mut body, &mut seen, member, "Duplicate argument")?;
        }
        Ok(Block {
            kind: kind.to_owned(),
            labels: Vec::new(),
            span: Some(span.clone()),
            body,
        })
    }

    /// Adds an attribute, which must not be there yet.
    fn attribute(
        &self,
        body: &mut Body,
        seen: &mut Seen,
        member: Member,
        twice: &'static str,
    ) -> Result<()> {
        if member.name == COMMENT {
            return Ok(());
        }
        let whole = member.span.start..member.value.span.end;
        if let Some(first) = seen.insert(member.name.clone(), whole) {
            let (name, first) = (&member.name, self.written(&first));
            let text = format!("The argument {name:?} was already set at {first}.");
            return Err(self.wrong(&member.span, twice, text));
        }
        body.attributes.push(Attribute {
            name: member.name,
            value: self.expression(member.value)?,
        });
        Ok(())
    }

    /// Returns the expression of a value. Texts are templates.
    fn expression(&self, node: Node) -> Result<Expression> {
        // A list or an object is where it begins.
        let span = match node.value {
            Value::Array(_) | Value::Object(_) => node.span.start..node.span.start + 1,
            _ => node.span,
        };
        let mut expression = match node.value {
            Value::Plain(value) => plain(&value),
            Value::String(text) => template(text),
            Value::Array(items) => {
                let mut array = Array::new();
                for item in items {
                    array.push(self.expression(item)?);
                }
                Expression::Array(array)
            }
            Value::Object(members) => {
                let mut object = Object::new();
                let mut seen = Seen::new();
                for member in members {
                    let Member { name, span, value } = member;
                    if let Some(first) = seen.insert(name.clone(), span.clone()) {
                        let first = self.written(&first);
                        let text =
                            format!("An attribute named {name:?} was already defined at {first}.");
                        return Err(self.wrong(&span, "Duplicate object attribute", text));
                    }
                    let mut key = template(name);
                    place::note(&mut key, &span);
                    let value = ObjectValue::new(self.expression(value)?);
                    object.insert(ObjectKey::Expression(key), value);
                }
                Expression::Object(object)
            }
        };
        place::note(&mut expression, &span);
        Ok(expression)
    }
}

/// Returns the expression of a value that has no others in it.
fn plain(value: &Json) -> Expression {
    match value {
        Json::Bool(value) => Expression::from(*value),
        Json::Number(number) => {
            use hcl_edit::Number;
            let whole = number.as_i64().map(Number::from);
            let whole = whole.or_else(|| number.as_u64().map(Number::from));
            // What was rounded to the least number of 64 bits is none of them.
            let rounded = |double: f64| match double <= SMALLEST {
                true => double.next_down(),
                false => double,
            };
            let double = number.as_f64().map(rounded).and_then(Number::from_f64);
            let number = whole.or(double);
            number.map_or_else(Expression::null, Expression::from)
        }
        _ => Expression::null(),
    }
}

fn template(text: String) -> Expression {
    if !text.contains("${") && !text.contains("%{") {
        return Expression::from(text);
    }
    let parsed: std::result::Result<Template, _> = text.parse();
    match parsed {
        Ok(template) => {
            let mut elements = StringTemplate::new();
            for element in &template {
                elements.push(element.clone());
            }
            Expression::StringTemplate(elements)
        }
        // As Docker's bake, which says of it what is wrong where it is used.
        Err(_) => Expression::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Body> {
        body(&[("x.json".to_owned(), content.to_owned())], 0, content)
    }

    #[track_caller]
    fn refused(content: &str, expected: &str) {
        let failed = read(content).unwrap_err();
        assert_eq!(failed.text, expected);
        assert!(failed.excerpt.contains(">>>"), "{}", failed.excerpt);
    }

    #[test]
    fn keys_that_occur_twice_are_several_blocks() {
        let content = r#"{
            "target": {"a": {"tags": ["x"]}, "a": [{"pull": true}, {"target": "s"}]},
            "target": [{"b": {}, "//": {}}, {"a": null}],
            "variable": {"V": {"validation": {"condition": true}, "validation": [{}, {}]}},
            "//": 1, "//": 2, "A": 1
        }"#;
        let body = read(content).unwrap();
        let labels = body.blocks.iter();
        let labels = labels.flat_map(|block| block.labels.iter().map(|(label, _)| &**label));
        let labels: Vec<&str> = labels.collect();
        assert_eq!(labels, ["a", "a", "a", "b", "//", "V"]);
        assert_eq!(body.blocks[5].body.blocks.len(), 3);
        assert_eq!(body.attributes.len(), 1);
    }

    #[test]
    fn attributes_that_occur_twice_are_refused() {
        refused(
            r#"{"target": {"default": {"tags": ["a"], "tags": ["b"]}}}"#,
            "x.json:1,40-46: Duplicate argument; The argument \"tags\" was already set at x.json:1,25-38.",
        );
        refused(
            "{\"target\": {\"default\": {\"args\": {\"A\": 1,\n \"A\": \"x\"}}}}",
            "x.json:2,2-5: Duplicate object attribute; An attribute named \"A\" was already defined at x.json:1,34-37.",
        );
        refused(
            "{\"A\": 1, \"A\": 2}",
            "x.json:1,10-13: Duplicate attribute definition; The argument \"A\" was already set at x.json:1,2-8.",
        );
    }

    #[test]
    fn errors_of_syntax_have_one_place() {
        refused(
            "{\"target\": {\n  \"a\": x}}",
            "x.json:2,8-8: Invalid syntax; expected value",
        );
        refused(
            "{\"target\": {",
            "x.json:1,12-12: Invalid syntax; EOF while parsing an object",
        );
        let empty = "couldn't find a bake definition in x.json: it is empty";
        assert_eq!(read(" \n").unwrap_err(), Error::new(empty));
    }
}
