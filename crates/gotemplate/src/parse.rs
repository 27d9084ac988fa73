//! Parses tokens to a syntax tree.

use std::collections::HashMap;

use crate::lex::{Kind, Part, Token, split, unquote};
use crate::value::Typed;
use crate::{Error, functions};

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Text(String),
    Action(Pipeline),
    If {
        condition: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    /// `{{template "name" .}}`
    Template {
        name: String,
        dot: Option<Pipeline>,
        place: Position,
    },
    Break,
    Continue,
}

/// Commands joined by `|`: each result is the last argument of the next command.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    /// The variables that the result is assigned to.
    pub variables: Vec<String>,
    /// Whether the variables are declared here (`:=`).
    pub declares: bool,
    pub commands: Vec<Command>,
    pub place: Position,
}

/// A value, or a function or method with its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub operands: Vec<Operand>,
    pub place: Position,
}

/// The offset and source text of a node, for errors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position {
    pub at: usize,
    pub text: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub kind: Value,
    pub place: Position,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Dot,
    /// `.A.B`
    Fields(Vec<String>),
    /// `$x.A`
    Variable(String, Vec<String>),
    Function(String),
    Literal(Typed),
    /// `(…).A`
    Nested(Pipeline, Vec<String>),
}

/// A template and the templates that it defines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parsed {
    pub nodes: Vec<Node>,
    pub named: HashMap<String, Vec<Node>>,
}

/// Maximum nesting depth of actions and parentheses.
const MAX_DEPTH: usize = 200;

/// What terminated a list of nodes.
#[derive(Debug)]
enum End<'t> {
    Template,
    Close,
    /// `else`, with the tokens after it (`if …`, `with …`).
    Else(Vec<Token<'t>>, usize),
}

pub(crate) fn parse(template: &str) -> Result<Parsed, Error> {
    let parts = split(template)?;
    let mut parser = Parser {
        template,
        parts: parts.into_iter(),
        named: HashMap::new(),
        variables: vec!["$".into()],
        loops: 0,
        depth: 0,
    };
    match parser.nodes()? {
        (nodes, End::Template) => Ok(Parsed {
            nodes,
            named: parser.named,
        }),
        (_, End::Close) => Err(parser.wrong(template.len(), "unexpected {{end}}")),
        (_, End::Else(..)) => Err(parser.wrong(template.len(), "unexpected {{else}}")),
    }
}

struct Parser<'t> {
    template: &'t str,
    parts: std::vec::IntoIter<Part<'t>>,
    named: HashMap<String, Vec<Node>>,
    /// The variables in scope.
    variables: Vec<String>,
    /// The number of enclosing `range` actions.
    loops: usize,
    /// The number of enclosing actions and parentheses.
    depth: usize,
}

impl<'t> Parser<'t> {
    fn wrong(&self, at: usize, text: impl std::fmt::Display) -> Error {
        Error::new(self.template, at, text)
    }

    /// Parses the content of an action or of parentheses, one level deeper.
    fn nested<T>(
        &mut self,
        at: usize,
        content: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.depth == MAX_DEPTH {
            return Err(self.wrong(at, format!("exceeded maximum nesting depth ({MAX_DEPTH})")));
        }
        self.depth += 1;
        let result = content(self);
        self.depth -= 1;
        result
    }

    fn nodes(&mut self) -> Result<(Vec<Node>, End<'t>), Error> {
        let mut nodes = Vec::new();
        while let Some(part) = self.parts.next() {
            let (tokens, close) = match part {
                Part::Text("") => continue,
                Part::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Part::Action(tokens, close) => (tokens, close),
            };
            let word = tokens
                .first()
                .filter(|token| token.kind == Kind::Word)
                .map_or("", |token| token.text);
            let rest = || tokens.get(1..).unwrap_or_default().to_vec();
            match word {
                "end" => return Ok((nodes, End::Close)),
                "else" => return Ok((nodes, End::Else(rest(), close))),
                "if" | "with" | "range" => {
                    nodes.push(self.nested(close, |parser| parser.control(word, rest(), close))?)
                }
                "break" | "continue" if self.loops == 0 => {
                    return Err(self.wrong(close, format!("{{{{{word}}}}} outside {{{{range}}}}")));
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "define" | "block" | "template" => {
                    let template =
                        self.nested(close, |parser| parser.named_template(word, rest(), close))?;
                    nodes.extend(template);
                }
                _ => nodes.push(Node::Action(self.pipeline(tokens, close, "command")?)),
            }
        }
        Ok((nodes, End::Template))
    }

    fn control(&mut self, word: &str, tokens: Vec<Token<'t>>, close: usize) -> Result<Node, Error> {
        let known = self.variables.len();
        let value = self.pipeline(tokens, close, word)?;
        self.loops += usize::from(word == "range");
        let (body, end) = self.nodes()?;
        self.loops -= usize::from(word == "range");
        let otherwise = match end {
            End::Close => Vec::new(),
            End::Else(tokens, close) => match tokens.first().map(|token| token.text) {
                None => match self.nodes()? {
                    (nodes, End::Close) => nodes,
                    (_, End::Else(_, at)) => {
                        return Err(self.wrong(at, "expected end; found {{else}}"));
                    }
                    (_, End::Template) => {
                        return Err(self.wrong(self.template.len(), "unexpected EOF"));
                    }
                },
                // `else if` and `else with` share the `end` of the outer action.
                Some(next) if next == word && word != "range" => {
                    let rest = tokens[1..].to_vec();
                    vec![self.nested(close, |parser| parser.control(next, rest, close))?]
                }
                Some(next) => return Err(self.wrong(close, format!("unexpected <{next}> in else"))),
            },
            End::Template => return Err(self.wrong(self.template.len(), "unexpected EOF")),
        };
        self.variables.truncate(known);
        Ok(match word {
            "if" => Node::If {
                condition: value,
                body,
                otherwise,
            },
            "with" => Node::With {
                value,
                body,
                otherwise,
            },
            _ => Node::Range {
                over: value,
                body,
                otherwise,
            },
        })
    }

    /// Parses `define`, `template`, and `block`, which is both.
    fn named_template(
        &mut self,
        word: &str,
        mut tokens: Vec<Token<'t>>,
        close: usize,
    ) -> Result<Option<Node>, Error> {
        let name = match tokens.first() {
            Some(token) if matches!(token.kind, Kind::Quoted) => unquote(token.text),
            Some(token) if matches!(token.kind, Kind::Raw) => {
                Some(token.text.trim_matches('`').to_owned())
            }
            _ => None,
        };
        let Some(name) = name else {
            return Err(self.wrong(close, format!("unexpected token in {word} clause")));
        };
        let place = Position {
            at: tokens[0].at,
            text: format!("{{{{template {name:?}}}}}"),
        };
        tokens.remove(0);
        let dot = match tokens.is_empty() {
            true => None,
            false => Some(self.pipeline(tokens, close, word)?),
        };
        if word != "template" {
            let (variables, loops) = (
                std::mem::replace(&mut self.variables, vec!["$".into()]),
                std::mem::take(&mut self.loops),
            );
            let (body, end) = self.nodes()?;
            (self.variables, self.loops) = (variables, loops);
            if !matches!(end, End::Close) {
                return Err(self.wrong(self.template.len(), "unexpected EOF"));
            }
            self.named.insert(name.clone(), body);
        }
        Ok((word != "define").then_some(Node::Template { name, dot, place }))
    }

    fn pipeline(
        &mut self,
        tokens: Vec<Token<'t>>,
        close: usize,
        context: &str,
    ) -> Result<Pipeline, Error> {
        let mut tokens = Tokens {
            list: tokens,
            next: 0,
            close,
        };
        let pipeline = self.pipeline_of(&mut tokens, context)?;
        match tokens.peek() {
            None => Ok(pipeline),
            Some(token) => Err(self.wrong(
                token.at,
                format!("unexpected <{}> in {context}", token.text),
            )),
        }
    }

    /// Parses up to the end of the action or a closing parenthesis.
    fn pipeline_of(&mut self, tokens: &mut Tokens<'t>, context: &str) -> Result<Pipeline, Error> {
        let begin = tokens.at();
        let (variables, declares) = self.declared(tokens, context)?;
        let mut commands = Vec::new();
        loop {
            commands.push(self.command(tokens, context)?);
            if !tokens.take("|") {
                break;
            }
        }
        if declares {
            self.variables.extend(variables.iter().cloned());
        }
        for piped in &commands[1..] {
            if matches!(piped.operands[0].kind, Value::Literal(_) | Value::Dot) {
                let stage = commands.len();
                return Err(self.wrong(
                    piped.place.at,
                    format!("non executable command in pipeline stage {stage}"),
                ));
            }
        }
        let place = Position {
            at: begin,
            text: self.template[begin..tokens.previous_end().max(begin)].to_owned(),
        };
        Ok(Pipeline {
            variables,
            declares,
            commands,
            place,
        })
    }

    /// Parses `$x :=`, `$i, $x :=`, `$x =`.
    fn declared(
        &self,
        tokens: &mut Tokens<'t>,
        context: &str,
    ) -> Result<(Vec<String>, bool), Error> {
        let sign = |index: usize| {
            tokens
                .list
                .get(tokens.next + index)
                .filter(|token| token.kind == Kind::Sign)
                .map(|token| token.text)
        };
        let is_variable = |index: usize| {
            tokens
                .list
                .get(tokens.next + index)
                .is_some_and(|token| token.kind == Kind::Variable)
        };
        let count = match (sign(1), sign(3)) {
            (Some(":=" | "="), _) if is_variable(0) => 1,
            (Some(","), Some(":=" | "=")) if is_variable(0) && is_variable(2) => 2,
            _ => return Ok((Vec::new(), false)),
        };
        let names: Vec<String> = (0..count)
            .map(|index| tokens.list[tokens.next + 2 * index].text.to_owned())
            .collect();
        if count == 2 && context != "range" {
            return Err(self.wrong(tokens.at(), format!("too many declarations in {context}")));
        }
        let declares = sign(2 * count - 1) == Some(":=");
        if let Some(unknown) = names
            .iter()
            .find(|name| !declares && !self.variables.contains(name))
        {
            return Err(self.wrong(tokens.at(), format!("undefined variable {unknown:?}")));
        }
        tokens.next += 2 * count;
        Ok((names, declares))
    }

    fn command(&mut self, tokens: &mut Tokens<'t>, context: &str) -> Result<Command, Error> {
        let begin = tokens.at();
        let mut operands = Vec::new();
        while tokens
            .peek()
            .is_some_and(|token| token.kind != Kind::Sign || token.text == "(")
        {
            operands.push(self.operand(tokens)?);
        }
        if operands.is_empty() {
            return Err(match tokens.peek() {
                None => self.wrong(begin, format!("missing value for {context}")),
                Some(token) => {
                    self.wrong(begin, format!("unexpected {:?} in {context}", token.text))
                }
            });
        }
        let place = Position {
            at: begin,
            text: self.template[begin..tokens.previous_end()].to_owned(),
        };
        Ok(Command { operands, place })
    }

    fn operand(&mut self, tokens: &mut Tokens<'t>) -> Result<Operand, Error> {
        let Some(token) = tokens.take_any() else {
            return Err(self.wrong(tokens.close, "unexpected end of action"));
        };
        let mut place = Position {
            at: token.at,
            text: String::new(),
        };
        let bad = |what: &str| {
            Error::new(
                self.template,
                token.at,
                format!("bad {what} syntax: {:?}", token.text),
            )
        };
        let kind = match token.kind {
            Kind::Dot => Value::Dot,
            Kind::Field => {
                let mut path = vec![token.text[1..].to_owned()];
                if let Some(second) = tokens.peek_attached_field() {
                    place.at = second;
                }
                path.extend(tokens.fields());
                Value::Fields(path)
            }
            Kind::Variable if !self.variables.iter().any(|known| known == token.text) => {
                return Err(self.wrong(token.at, format!("undefined variable {:?}", token.text)));
            }
            Kind::Variable => Value::Variable(token.text.to_owned(), tokens.fields()),
            Kind::Word => match token.text {
                "true" => Value::Literal(Typed::literal("bool", true)),
                "false" => Value::Literal(Typed::literal("bool", false)),
                "nil" => Value::Literal(Typed::missing()),
                name if functions::is_known(name) => Value::Function(name.to_owned()),
                name => return Err(self.wrong(token.at, format!("function {name:?} not defined"))),
            },
            Kind::Number => Value::Literal(number(token.text).ok_or_else(|| bad("number"))?),
            Kind::Quoted => Value::Literal(Typed::literal(
                "string",
                unquote(token.text).ok_or_else(|| bad("string"))?,
            )),
            Kind::Raw => Value::Literal(Typed::literal(
                "string",
                &token.text[1..token.text.len() - 1],
            )),
            Kind::Character => {
                let letter = unquote(token.text)
                    .and_then(|text| text.chars().next())
                    .ok_or_else(|| bad("character"))?;
                Value::Literal(Typed::literal("int", i64::from(u32::from(letter))))
            }
            Kind::Sign => {
                let nested = self.nested(token.at, |parser| {
                    parser.pipeline_of(tokens, "parenthesized pipeline")
                })?;
                if !tokens.take(")") {
                    return Err(self.wrong(tokens.at(), "unclosed left paren"));
                }
                Value::Nested(nested, tokens.fields())
            }
        };
        place.text = self.template[token.at..tokens.previous_end()].to_owned();
        Ok(Operand { kind, place })
    }
}

/// A cursor over the tokens of one action.
struct Tokens<'t> {
    list: Vec<Token<'t>>,
    next: usize,
    close: usize,
}

impl<'t> Tokens<'t> {
    fn peek(&self) -> Option<&Token<'t>> {
        self.list.get(self.next)
    }

    /// Returns the offset of the next token.
    fn at(&self) -> usize {
        self.peek().map_or(self.close, |token| token.at)
    }

    fn previous_end(&self) -> usize {
        self.next
            .checked_sub(1)
            .and_then(|index| self.list.get(index))
            .map_or(0, |token| token.at + token.text.len())
    }

    fn take_any(&mut self) -> Option<Token<'t>> {
        let token = self.peek().cloned();
        self.next += 1;
        token
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self
            .peek()
            .is_some_and(|token| token.kind == Kind::Sign && token.text == sign);
        self.next += usize::from(found);
        found
    }

    /// Returns the offset of a field that follows without white space.
    fn peek_attached_field(&self) -> Option<usize> {
        self.peek()
            .filter(|token| token.kind == Kind::Field && !token.spaced)
            .map(|token| token.at)
    }

    fn fields(&mut self) -> Vec<String> {
        let mut path = Vec::new();
        while self.peek_attached_field().is_some() {
            path.extend(self.take_any().map(|token| token.text[1..].to_owned()));
        }
        path
    }
}

/// Parses a number literal as Go does: integers in any base, or floats.
fn number(text: &str) -> Option<Typed> {
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let based = |prefix: &str, radix: u32| {
        let digits = digits
            .strip_prefix(prefix)
            .or_else(|| digits.strip_prefix(&prefix.to_uppercase()))?;
        i64::from_str_radix(digits, radix).ok()
    };
    let whole = based("0x", 16)
        .or_else(|| based("0b", 2))
        .or_else(|| based("0o", 8))
        .or_else(|| {
            let octal = digits.len() > 1
                && digits.starts_with('0')
                && digits.bytes().all(|digit| digit.is_ascii_digit());
            if octal {
                i64::from_str_radix(digits, 8).ok()
            } else {
                digits.parse().ok()
            }
        });
    match whole {
        Some(whole) => Some(Typed::literal("int", sign * whole)),
        None if digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') => plain
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite())
            .map(|number| Typed::literal("float64", number)),
        None => None,
    }
}
