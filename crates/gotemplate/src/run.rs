//! Executes the syntax tree of a template.

use std::collections::HashMap;

use crate::parse::{Command, Node, Operand, Parsed, Pipeline, Position, Value as Term};
use crate::print::{plain, receiver_name, shown};
use crate::types::{Kind, Mode, cell};
use crate::value::Typed;
use crate::{Error, MAX_TEXT, functions};

pub(crate) struct Run<'t> {
    pub name: &'t str,
    pub template: &'t str,
    pub named: &'t HashMap<String, Vec<Node>>,
    pub mode: Mode,
    pub variables: Vec<(String, Typed)>,
    pub out: String,
    /// The number of enclosing template calls.
    pub calls: usize,
    /// The number of enclosing actions and parentheses, in all template calls.
    pub depth: usize,
    /// The number of lists of nodes, and of nodes, that were executed.
    pub steps: usize,
}

/// How a list of nodes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Maximum nesting depth of template calls.
const MAX_CALLS: usize = 100;

/// Maximum nesting depth of actions and parentheses, in all template calls.
const MAX_DEPTH: usize = 500;

/// Maximum number of executed lists and nodes: `{{range 999999999999}}` ends after less than a second.
const MAX_STEPS: usize = 1_000_000;

/// Executes a template on a value. Returns the output before an error, and the error.
pub(crate) fn run(
    name: &str,
    template: &str,
    parsed: &Parsed,
    top: &Typed,
    mode: Mode,
) -> (String, Result<(), Error>) {
    let variables = vec![("$".to_owned(), top.clone())];
    let mut run = Run {
        name,
        template,
        named: &parsed.named,
        mode,
        variables,
        out: String::new(),
        calls: 0,
        depth: 0,
        steps: 0,
    };
    let outcome = run.nodes(&parsed.nodes, top);
    (run.out, outcome.map(drop))
}

impl Run<'_> {
    pub(crate) fn wrong<T>(
        &self,
        place: &Position,
        text: impl std::fmt::Display,
    ) -> Result<T, Error> {
        let before = &self.template[..place.at.min(self.template.len())];
        let line = before.matches('\n').count() + 1;
        let column = before
            .rfind('\n')
            .map_or(before.len(), |newline| before.len() - newline - 1);
        let (name, place) = (self.name, &place.text);
        Err(Error(format!(
            "template: {name}:{line}:{column}: executing {name:?} at <{place}>: {text}"
        )))
    }

    /// Executes the content of an action or of parentheses, one level deeper.
    fn nested<T>(
        &mut self,
        place: &Position,
        content: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.depth == MAX_DEPTH {
            return self.wrong(
                place,
                format!("exceeded maximum nesting depth ({MAX_DEPTH})"),
            );
        }
        self.depth += 1;
        let result = content(self);
        self.depth -= 1;
        result
    }

    fn write(&mut self, text: &str, place: &Position) -> Result<(), Error> {
        if self.out.len() + text.len() > MAX_TEXT {
            return self.wrong(place, format!("output exceeds {MAX_TEXT} bytes"));
        }
        self.out += text;
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Typed) -> Result<Flow, Error> {
        self.steps += 1 + nodes.len();
        if self.steps > MAX_STEPS {
            let name = self.name;
            return Err(Error(format!(
                "template: {name}: exceeded maximum number of steps ({MAX_STEPS})"
            )));
        }
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

    fn node(&mut self, node: &Node, dot: &Typed) -> Result<Flow, Error> {
        match node {
            Node::Text(text) => self.write(text, &Position::default())?,
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Action(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    self.write(&shown(&value), &pipeline.place)?;
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
                let flow = self.nested(&condition.place, |run| run.nodes(chosen, dot));
                self.variables.truncate(known);
                return flow;
            }
            Node::With {
                value,
                body,
                otherwise,
            } => {
                let known = self.variables.len();
                let place = &value.place;
                let value = self.pipeline(value, dot)?;
                let flow = self.nested(place, |run| {
                    if value.truth() {
                        run.nodes(body, &value)
                    } else {
                        run.nodes(otherwise, dot)
                    }
                });
                self.variables.truncate(known);
                return flow;
            }
            Node::Range {
                over,
                body,
                otherwise,
            } => {
                return self.nested(&over.place, |run| run.range(over, body, otherwise, dot));
            }
            Node::Template {
                name,
                dot: given,
                place,
            } => {
                let Some(body) = self.named.get(name) else {
                    return self.wrong(place, format!("template {name:?} not defined"));
                };
                if self.calls == MAX_CALLS {
                    return self.wrong(
                        place,
                        format!("exceeded maximum template depth ({MAX_CALLS})"),
                    );
                }
                let dot = given
                    .as_ref()
                    .map_or_else(|| Ok(Typed::missing()), |given| self.pipeline(given, dot))?;
                let variables =
                    std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
                self.calls += 1;
                self.nested(place, |run| run.nodes(body, &dot))?;
                self.calls -= 1;
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
    ) -> Result<Flow, Error> {
        let known = self.variables.len();
        // Range variables are assigned the elements, not the list.
        let value = &self.value(over, dot)?.indirect();
        let items: Box<dyn Iterator<Item = (Typed, Typed)>> = match value.kind() {
            Kind::List(of) => {
                let item = move |(index, item): (usize, &serde_json::Value)| {
                    (Typed::literal("int", index), value.part(of, item.clone()))
                };
                Box::new(value.list().iter().enumerate().map(item))
            }
            Kind::Map(key_type, of) => {
                let item = move |(key, item): (&String, &serde_json::Value)| {
                    (
                        value.part(key_type, key.clone()),
                        value.part(of, item.clone()),
                    )
                };
                Box::new(value.entries().into_iter().map(item))
            }
            Kind::Int => {
                let item =
                    |index: i64| (Typed::literal("int", index), Typed::literal("int", index));
                Box::new((0..value.as_int()).map(item))
            }
            Kind::Nothing => Box::new(std::iter::empty()),
            _ => {
                return self.wrong(
                    &over.place,
                    format!("range can't iterate over {}", plain(value)),
                );
            }
        };
        let mut items = items.peekable();
        if items.peek().is_none() {
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

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Typed) -> Result<Typed, Error> {
        let value = self.value(pipeline, dot)?;
        for name in &pipeline.variables {
            self.assign(name, value.clone(), pipeline.declares);
        }
        Ok(value)
    }

    fn value(&mut self, pipeline: &Pipeline, dot: &Typed) -> Result<Typed, Error> {
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
    ) -> Result<Typed, Error> {
        let Some((head, arguments)) = command.operands.split_first() else {
            return Ok(Typed::missing());
        };
        match &head.kind {
            Term::Function(name) if matches!(name.as_str(), "and" | "or") => {
                self.short_circuit(name == "and", arguments, dot, last)
            }
            Term::Function(name) => {
                let values = self.arguments(arguments, dot, last)?;
                match functions::call(name, &values, self.mode) {
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
    ) -> Result<Vec<Typed>, Error> {
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
    ) -> Result<Typed, Error> {
        let mut value = Typed::missing();
        for operand in operands {
            value = self.operand(operand, dot)?;
            if value.truth() != all {
                return Ok(value);
            }
        }
        Ok(last.unwrap_or(value))
    }

    fn operand(&mut self, operand: &Operand, dot: &Typed) -> Result<Typed, Error> {
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
                let value = self.nested(&operand.place, |run| run.value(pipeline, dot))?;
                self.walk(&value, path, &operand.place)
            }
            Term::Function(name) => {
                let value = functions::call(name, &[], self.mode);
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

    fn walk(&self, value: &Typed, path: &[String], place: &Position) -> Result<Typed, Error> {
        path.iter()
            .try_fold(value.clone(), |value, name| self.field(&value, name, place))
    }

    /// Evaluates a struct field, a map entry, or a method without arguments.
    fn field(&self, receiver: &Typed, name: &str, place: &Position) -> Result<Typed, Error> {
        if let Some(result) = (receiver.types().method)(receiver, name, &[], self.mode) {
            return result.or_else(|text| self.wrong(place, text));
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
            Kind::Map(_, of) => match value.map().and_then(|map| map.get(name)) {
                Some(found) => Ok(value.part(of, found.clone())),
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
        place: &Position,
    ) -> Result<Typed, Error> {
        self.wrong(
            place,
            format!(
                "can't evaluate field {name} in type {}",
                receiver_name(receiver, self.mode == Mode::Raw)
            ),
        )
    }

    /// Evaluates a method with arguments.
    fn method(
        &self,
        dot: &Typed,
        path: &[String],
        arguments: &[Typed],
        place: &Position,
    ) -> Result<Typed, Error> {
        let [path @ .., name] = path else {
            return Ok(Typed::missing());
        };
        let receiver = self.walk(dot, path, place)?;
        match (receiver.types().method)(&receiver, name, arguments, self.mode) {
            Some(result) => result.or_else(|text| self.wrong(place, text)),
            None => {
                self.field(&receiver, name, place)?;
                self.wrong(
                    place,
                    format!("{name} has arguments but cannot be invoked as function"),
                )
            }
        }
    }
}
