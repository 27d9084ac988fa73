//! Executes the syntax tree of a template.

use std::collections::HashMap;

use super::parse::{Command, Node, Operand, Parsed, Pipeline, Place, Value as Term};
use super::print::{plain, receiver_name, shown};
use super::value::{Kind, Typed, cell};
use super::{Mistake, call};

/// How a template is executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Values,
    /// On the headings of a table: functions return them unchanged.
    Headings,
    /// On untyped JSON: missing fields are errors.
    Raw,
}

pub(super) struct Run<'t> {
    pub name: &'t str,
    pub template: &'t str,
    pub named: &'t HashMap<String, Vec<Node>>,
    pub mode: Mode,
    pub variables: Vec<(String, Typed)>,
    pub out: String,
    pub depth: usize,
}

/// How a list of nodes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Maximum nesting depth of template calls.
const MAX_DEPTH: usize = 100;

/// Executes a template on a value. Returns the output before an error, and the error.
pub(super) fn run(
    name: &str,
    template: &str,
    parsed: &Parsed,
    top: &Typed,
    mode: Mode,
) -> (String, Result<(), Mistake>) {
    let variables = vec![("$".to_owned(), top.clone())];
    let mut run = Run {
        name,
        template,
        named: &parsed.named,
        mode,
        variables,
        out: String::new(),
        depth: 0,
    };
    let outcome = run.nodes(&parsed.nodes, top);
    (run.out, outcome.map(drop))
}

impl Run<'_> {
    pub(super) fn wrong<T>(
        &self,
        place: &Place,
        text: impl std::fmt::Display,
    ) -> Result<T, Mistake> {
        let before = &self.template[..place.at.min(self.template.len())];
        let line = before.matches('\n').count() + 1;
        let column = before
            .rfind('\n')
            .map_or(before.len(), |newline| before.len() - newline - 1);
        let (name, place) = (self.name, &place.text);
        Err(Mistake(format!(
            "template: {name}:{line}:{column}: executing {name:?} at <{place}>: {text}"
        )))
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Typed) -> Result<Flow, Mistake> {
        let known = self.variables.len();
        for node in nodes {
            let flow = self.node(node, dot)?;
            if flow != Flow::Next {
                self.variables.truncate(known);
                return Ok(flow);
            }
        }
        self.variables.truncate(known);
        Ok(Flow::Next)
    }

    fn node(&mut self, node: &Node, dot: &Typed) -> Result<Flow, Mistake> {
        match node {
            Node::Text(text) => self.out += text,
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Action(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    self.out += &shown(&value);
                }
            }
            Node::If {
                condition,
                body,
                otherwise,
            } => {
                let known = self.variables.len();
                let chosen = if self.pipeline(condition, dot)?.truth() {
                    body
                } else {
                    otherwise
                };
                let flow = self.nodes(chosen, dot);
                self.variables.truncate(known);
                return flow;
            }
            Node::With {
                value,
                body,
                otherwise,
            } => {
                let known = self.variables.len();
                let value = self.pipeline(value, dot)?;
                let flow = if value.truth() {
                    self.nodes(body, &value)
                } else {
                    self.nodes(otherwise, dot)
                };
                self.variables.truncate(known);
                return flow;
            }
            Node::Range {
                over,
                body,
                otherwise,
            } => return self.range(over, body, otherwise, dot),
            Node::Template {
                name,
                dot: given,
                place,
            } => {
                let Some(body) = self.named.get(name) else {
                    return self.wrong(place, format!("template {name:?} not defined"));
                };
                if self.depth == MAX_DEPTH {
                    return self.wrong(
                        place,
                        format!("exceeded maximum template depth ({MAX_DEPTH})"),
                    );
                }
                let dot = given
                    .as_ref()
                    .map_or_else(|| Ok(Typed::missing()), |given| self.pipeline(given, dot))?;
                let variables =
                    std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
                self.depth += 1;
                self.nodes(body, &dot)?;
                self.depth -= 1;
                self.variables = variables;
            }
        }
        Ok(Flow::Next)
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Typed,
    ) -> Result<Flow, Mistake> {
        let known = self.variables.len();
        // Range variables are assigned the elements, not the list.
        let value = self.value(over, dot)?.indirect();
        let items: Vec<(Typed, Typed)> = match value.kind() {
            Kind::List(of) => value
                .list()
                .iter()
                .enumerate()
                .map(|(index, item)| (Typed::literal("int", index), Typed::new(of, item.clone())))
                .collect(),
            Kind::Map(of) => {
                let key_type = if value.ty.contains("nat.Port") {
                    "nat.Port"
                } else {
                    "string"
                };
                let item = |(key, item): (&String, &serde_json::Value)| {
                    (
                        Typed::literal(key_type, key.clone()),
                        Typed::new(of, item.clone()),
                    )
                };
                value.entries().into_iter().map(item).collect()
            }
            Kind::Int => (0..value.as_int())
                .map(|index| (Typed::literal("int", index), Typed::literal("int", index)))
                .collect(),
            Kind::Nothing => Vec::new(),
            _ => {
                return self.wrong(
                    &over.place,
                    format!("range can't iterate over {}", plain(&value)),
                );
            }
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            match over.variables.as_slice() {
                [] => {}
                [one] => self.assign(one, item.clone(), over.declares),
                [first, second, ..] => {
                    self.assign(first, key, over.declares);
                    self.assign(second, item.clone(), over.declares);
                }
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(known);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::Next)
    }

    fn assign(&mut self, name: &str, value: Typed, declares: bool) {
        match self
            .variables
            .iter_mut()
            .rev()
            .find(|(known, _)| known == name)
        {
            Some((_, known)) if !declares => *known = value,
            _ => self.variables.push((name.to_owned(), value)),
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Typed) -> Result<Typed, Mistake> {
        let value = self.value(pipeline, dot)?;
        for name in &pipeline.variables {
            self.assign(name, value.clone(), pipeline.declares);
        }
        Ok(value)
    }

    fn value(&mut self, pipeline: &Pipeline, dot: &Typed) -> Result<Typed, Mistake> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or_else(Typed::missing))
    }

    fn command(
        &mut self,
        command: &Command,
        dot: &Typed,
        last: Option<Typed>,
    ) -> Result<Typed, Mistake> {
        let Some((head, arguments)) = command.operands.split_first() else {
            return Ok(Typed::missing());
        };
        match &head.kind {
            Term::Function(name) if matches!(name.as_str(), "and" | "or") => {
                self.short_circuit(name == "and", arguments, dot, last)
            }
            Term::Function(name) => {
                let values = self.arguments(arguments, dot, last)?;
                match call::call(name, &values, self.mode) {
                    Ok(value) => Ok(value),
                    Err(text) if text.starts_with("wrong number of args") => {
                        self.wrong(&head.place, text)
                    }
                    Err(text) => {
                        self.wrong(&command.place, format!("error calling {name}: {text}"))
                    }
                }
            }
            Term::Fields(path) if !arguments.is_empty() || last.is_some() => {
                let values = self.arguments(arguments, dot, last)?;
                self.method(dot, path, &values, &head.place)
            }
            _ if arguments.is_empty() && last.is_none() => self.operand(head, dot),
            _ => self.wrong(
                &head.place,
                format!("can't give argument to non-function {}", head.place.text),
            ),
        }
    }

    fn arguments(
        &mut self,
        operands: &[Operand],
        dot: &Typed,
        last: Option<Typed>,
    ) -> Result<Vec<Typed>, Mistake> {
        let mut values = operands
            .iter()
            .map(|operand| self.operand(operand, dot))
            .collect::<Result<Vec<_>, _>>()?;
        values.extend(last);
        Ok(values)
    }

    /// Evaluates `and` or `or`, stopping at the first operand that determines the result.
    fn short_circuit(
        &mut self,
        all: bool,
        operands: &[Operand],
        dot: &Typed,
        last: Option<Typed>,
    ) -> Result<Typed, Mistake> {
        let mut value = Typed::missing();
        for operand in operands {
            value = self.operand(operand, dot)?;
            if value.truth() != all {
                return Ok(value);
            }
        }
        Ok(last.unwrap_or(value))
    }

    fn operand(&mut self, operand: &Operand, dot: &Typed) -> Result<Typed, Mistake> {
        match &operand.kind {
            Term::Dot => Ok(dot.clone()),
            Term::Literal(value) => Ok(value.clone()),
            Term::Fields(path) => self.walk(dot, path, &operand.place),
            Term::Variable(name, path) => {
                let known = self
                    .variables
                    .iter()
                    .rev()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.clone());
                match known {
                    Some(value) => self.walk(&value, path, &operand.place),
                    None => self.wrong(&operand.place, format!("undefined variable {name:?}")),
                }
            }
            Term::Nested(pipeline, path) => {
                let value = self.value(pipeline, dot)?;
                self.walk(&value, path, &operand.place)
            }
            Term::Function(name) => {
                let value = call::call(name, &[], self.mode);
                value.or_else(|text| {
                    self.wrong(
                        &operand.place,
                        if text.starts_with("wrong number") {
                            text
                        } else {
                            format!("error calling {name}: {text}")
                        },
                    )
                })
            }
        }
    }

    fn walk(&self, value: &Typed, path: &[String], place: &Place) -> Result<Typed, Mistake> {
        path.iter()
            .try_fold(value.clone(), |value, name| self.field(&value, name, place))
    }

    /// Evaluates a struct field, a map entry, or a method without arguments.
    fn field(&self, receiver: &Typed, name: &str, place: &Place) -> Result<Typed, Mistake> {
        if let Some(value) = call::method(receiver, name) {
            return Ok(value);
        }
        let value = receiver.indirect();
        match value.kind() {
            Kind::Nothing if self.mode == Mode::Raw => self.wrong(
                place,
                format!("nil pointer evaluating interface {{}}.{name}"),
            ),
            Kind::Nothing => Ok(Typed::missing()),
            Kind::Pointer(_) => {
                self.wrong(place, format!("nil pointer evaluating {}.{name}", value.ty))
            }
            Kind::Map(of) => match value.map().and_then(|map| map.get(name)) {
                Some(found) => Ok(Typed::new(of, found.clone())),
                None if self.mode == Mode::Raw => {
                    self.wrong(place, format!("map has no entry for key {name:?}"))
                }
                None => Ok(Typed::missing()),
            },
            Kind::Row => match value.map().and_then(|map| map.get(name)) {
                Some(found) => Ok(Typed::any(cell(found))),
                None if self.mode == Mode::Headings => Ok(Typed::missing()),
                None => self.cannot_evaluate(receiver, name, place),
            },
            _ => match value.field(name) {
                Some(found) => Ok(found),
                None => self.cannot_evaluate(receiver, name, place),
            },
        }
    }

    fn cannot_evaluate(
        &self,
        receiver: &Typed,
        name: &str,
        place: &Place,
    ) -> Result<Typed, Mistake> {
        self.wrong(
            place,
            format!(
                "can't evaluate field {name} in type {}",
                receiver_name(receiver, self.mode == Mode::Raw)
            ),
        )
    }

    /// Evaluates a method with arguments. The only one is `.Label "name"`, of table rows and
    /// headings.
    fn method(
        &self,
        dot: &Typed,
        path: &[String],
        values: &[Typed],
        place: &Place,
    ) -> Result<Typed, Mistake> {
        let [path @ .., name] = path else {
            return Ok(Typed::missing());
        };
        let receiver = self.walk(dot, path, place)?;
        match (receiver.kind(), name.as_str(), values) {
            (Kind::Row, "Label", [label]) if label.kind() == Kind::Text => {
                let label = label.as_text().unwrap_or_default();
                Ok(Typed::text(if self.mode == Mode::Headings {
                    heading(&label)
                } else {
                    label_of(&receiver, &label)
                }))
            }
            (Kind::Row, "Label", [_]) => self.wrong(place, "expected string"),
            (Kind::Row, "Label", _) => self.wrong(
                place,
                format!(
                    "wrong number of args for Label: want 1 got {}",
                    values.len()
                ),
            ),
            _ => {
                self.field(&receiver, name, place)?;
                self.wrong(
                    place,
                    format!("{name} has arguments but cannot be invoked as function"),
                )
            }
        }
    }
}

fn label_of(row: &Typed, label: &str) -> String {
    row.json["Labels"][label]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Returns the heading of a label's column: the last component of its name, with `-` and `_`
/// replaced by spaces.
fn heading(label: &str) -> String {
    label
        .rsplit('.')
        .next()
        .unwrap_or_default()
        .replace(['-', '_'], " ")
}
