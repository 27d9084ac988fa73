//! What names stand for: variables, functions, and attributes of other targets. They are evaluated when they are needed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use hcl_edit::expr::Expression;

use crate::Environment;
use crate::error::Problem;
use crate::eval::{MAX_STEPS, Scope, span};
use crate::functions;
use crate::syntax::{Attribute, Block, Body};
use crate::value::{Type, Value};
use crate::{target, types};

type Found<T> = Result<T, Problem>;
type Own = BTreeMap<String, Value>;
type Named = Rc<Vec<(String, Own)>>;

/// The maximum number of targets that a matrix makes.
const MAX_MATRIX: usize = 10_000;

/// A block of a file.
#[derive(Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub file: usize,
    pub block: &'a Block,
    pub label: &'a str,
}

#[derive(Clone, Copy)]
struct Global<'a> {
    file: usize,
    value: &'a Attribute,
}

pub(crate) struct Names<'a> {
    environment: &'a Environment,
    variables: BTreeMap<&'a str, Placed<'a>>,
    attributes: BTreeMap<&'a str, Global<'a>>,
    functions: BTreeMap<&'a str, Placed<'a>>,
    /// Targets and groups, in the order of the files.
    pub blocks: Vec<Placed<'a>>,
    values: RefCell<BTreeMap<String, Value>>,
    /// What is being evaluated: it must not need itself.
    open: RefCell<BTreeSet<String>>,
    /// Of each block, the names that it has with the values of its matrix.
    named: RefCell<BTreeMap<usize, Named>>,
    steps: Cell<usize>,
}

/// Removes a name from those that are being evaluated.
struct Open<'n, 'a> {
    names: &'n Names<'a>,
    name: String,
}

impl Drop for Open<'_, '_> {
    fn drop(&mut self) {
        self.names.open.borrow_mut().remove(&self.name);
    }
}

fn invalid(text: impl Into<String>) -> Problem {
    Problem::new("Invalid expression", text)
}

impl<'a> Names<'a> {
    #[cfg(test)]
    pub fn empty(environment: &'a Environment) -> Self {
        Self::new(environment, &[]).expect("nothing to be wrong")
    }

    /// Collects the names of files. Later files replace what earlier ones define.
    pub fn new(environment: &'a Environment, bodies: &'a [(usize, Body)]) -> Found<Self> {
        let mut names = Self {
            environment,
            variables: BTreeMap::new(),
            attributes: BTreeMap::new(),
            functions: BTreeMap::new(),
            blocks: Vec::new(),
            values: RefCell::default(),
            open: RefCell::default(),
            named: RefCell::default(),
            steps: Cell::new(0),
        };
        for (file, body) in bodies {
            let file = *file;
            for value in &body.attributes {
                names.attributes.insert(&value.name, Global { file, value });
            }
            for block in &body.blocks {
                if !matches!(&*block.kind, "function" | "group" | "target" | "variable") {
                    continue;
                }
                let [(label, _)] = block.labels.as_slice() else {
                    let labels: Vec<&str> =
                        block.labels.iter().map(|(label, _)| &**label).collect();
                    let text = format!("invalid block label: [{}]", labels.join(" "));
                    return Err(Problem::new("Invalid block", text).at(file, block.span.clone()));
                };
                let placed = Placed { file, block, label };
                match block.kind.as_str() {
                    "variable" => drop(names.variables.insert(label, placed)),
                    "function" => drop(names.functions.insert(label, placed)),
                    _ => names.blocks.push(placed),
                }
            }
        }
        Ok(names)
    }

    pub fn environment(&self) -> &'a Environment {
        self.environment
    }

    pub fn variable_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.variables.keys().copied()
    }

    pub fn attribute_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        let reserved = |name: &&str| !self.environment.builtin.contains_key(*name);
        self.attributes.keys().copied().filter(reserved)
    }

    pub fn function_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.functions.keys().copied()
    }

    pub fn variable_block(&self, name: &str) -> Option<Placed<'a>> {
        self.variables.get(name).copied()
    }

    /// Counts a step. Returns whether there may be more.
    pub fn step(&self) -> bool {
        self.spend(1)
    }

    /// Returns the steps so far.
    pub fn spent(&self) -> usize {
        self.steps.get()
    }

    pub fn spend(&self, steps: usize) -> bool {
        let steps = self.steps.get().saturating_add(steps);
        self.steps.set(steps);
        steps <= MAX_STEPS
    }

    /// Counts steps.
    ///
    /// # Errors
    /// Returns an error if there may not be as many.
    pub fn pay(&self, steps: usize) -> Found<()> {
        match self.spend(steps) {
            true => Ok(()),
            false => Err(Problem::new(
                "Expression too complex",
                "evaluating it takes too long or too much memory",
            )),
        }
    }

    /// Counts the bytes of a text that is copied.
    pub fn pay_for(&self, text: &str) -> Found<()> {
        self.pay(text.len() / functions::STEP)
    }

    /// Returns a copy of a value, which costs as much as the value is large.
    pub fn copy(&self, value: &Value) -> Found<Value> {
        self.pay(functions::weight(value))?;
        Ok(value.clone())
    }

    /// Returns a copy of values with names, as `copy` does.
    pub fn copy_all(&self, own: &Own) -> Found<Own> {
        self.pay(functions::weight_of_members(own, 0))?;
        Ok(own.clone())
    }

    /// Marks that something is being evaluated. Returns `None` if it is already.
    fn open(&self, name: String) -> Option<Open<'_, 'a>> {
        let is_new = self.open.borrow_mut().insert(name.clone());
        is_new.then_some(Open { names: self, name })
    }

    /// Returns a variable's value.
    pub fn variable(&self, name: &str, depth: usize) -> Found<Option<Value>> {
        if let Some(value) = self.environment.builtin.get(name) {
            return Ok(Some(value.as_str().into()));
        }
        if let Some(value) = self.values.borrow().get(name) {
            return self.copy(value).map(Some);
        }
        let attribute = self.attributes.get(name).copied();
        let variable = self.variables.get(name).copied();
        if attribute.is_none() && variable.is_none() {
            return match name {
                "target" | "group" => Err(invalid(format!("cannot access {name} as a variable"))),
                _ => Ok(None),
            };
        }
        let cycle = || invalid(format!("variable cycle not allowed for {name}"));
        let _open = self.open(format!("variable {name}")).ok_or_else(cycle)?;
        let value = match (attribute, variable) {
            (Some(Global { file, value }), None) => self.at(file, depth).value(&value.value)?,
            (attribute, Some(variable)) => {
                let default = attribute.map(|global| (global.file, &global.value.value));
                self.variable_value(name, variable, default, depth)?
            }
            (None, None) => return Ok(None),
        };
        let copy = self.copy(&value)?;
        self.values.borrow_mut().insert(name.to_owned(), value);
        Ok(Some(copy))
    }

    /// Returns the scope of a file without own names.
    pub fn at(&self, file: usize, depth: usize) -> Scope<'_> {
        static NOTHING: Own = Own::new();
        Scope {
            names: self,
            file,
            own: &NOTHING,
            within: None,
            depth,
        }
    }

    /// Returns a variable's type, if it has one.
    pub fn type_of(variable: Placed<'_>) -> Found<Option<Type>> {
        let given = variable.block.body.attribute("type");
        let given = given.filter(|given| !given.value.is_null());
        let read = |given: &Attribute| {
            let found = types::constraint(&given.value);
            found.map_err(|problem| problem.at(variable.file, span(&given.value)))
        };
        given.map(read).transpose()
    }

    fn variable_value(
        &self,
        name: &str,
        variable: Placed<'a>,
        attribute: Option<(usize, &'a Expression)>,
        depth: usize,
    ) -> Found<Value> {
        let ty = Self::type_of(variable)?;
        let body = &variable.block.body;
        let own = body
            .attribute("default")
            .map(|own| (variable.file, &own.value));
        let default = attribute.or(own);
        let place = |problem: Problem| problem.at(variable.file, variable.block.span.clone());
        let mut value = match default {
            Some((file, expression)) => {
                let value = self.at(file, depth).value(expression)?;
                let to = ty.as_ref().unwrap_or(&Type::Any);
                let converted = value.convert(to).map_err(|cause| {
                    let text = format!(
                        "invalid type {} for variable {name} default value: {cause}",
                        to.name()
                    );
                    Problem::new("Invalid value", text).at(file, span(expression))
                });
                Some(converted?)
            }
            None => None,
        };
        if let Some((text, is_json)) = self.given(name, ty.is_some()) {
            let found = from_environment(name, &text, is_json, ty.as_ref(), value.as_ref());
            let found = found.map_err(|text| place(Problem::new("Invalid value", text)))?;
            value = Some(found);
        }
        // An untyped variable without a value is an empty text.
        Ok(value.unwrap_or_else(|| match ty {
            Some(_) => Value::Null,
            None => "".into(),
        }))
    }

    /// Returns what the environment says a variable is, and whether that is JSON.
    fn given(&self, name: &str, prefers_json: bool) -> Option<(String, bool)> {
        let variables = &self.environment.variables;
        let plain = variables.get(name).map(|text| (text.clone(), false));
        if plain.is_some() && !prefers_json {
            return plain;
        }
        let other = format!("{name}_JSON");
        let is_own =
            self.variables.contains_key(&*other) || self.environment.builtin.contains_key(&other);
        let json = variables.get(&other).filter(|_| !is_own);
        json.map(|text| (text.clone(), true)).or(plain)
    }

    /// Calls a function of the files, after those of the library. Returns `None` if there is none.
    pub fn call(&self, name: &str, arguments: &[Value], depth: usize) -> Found<Option<Value>> {
        let Some(function) = self.functions.get(name).copied() else {
            return Ok(None);
        };
        let wrong = |text: String| Problem::new("Invalid function", text);
        let place = |problem: Problem| problem.at(function.file, function.block.span.clone());
        let cycle = || invalid(format!("function cycle not allowed for {name}"));
        let _open = self.open(format!("function {name}")).ok_or_else(cycle)?;
        let body = &function.block.body;
        let result = body.attribute("result");
        let result =
            result.ok_or_else(|| place(wrong(format!("empty result not allowed for {name}"))))?;
        let parameters = body.attribute("params");
        let parameters = parameters
            .ok_or_else(|| place(wrong(format!("empty params not allowed for {name}"))))?;
        let Expression::Array(parameters) = &parameters.value else {
            return Err(place(wrong("params must be a list of names".into())));
        };
        let keyword = |expression: &Expression| match expression {
            Expression::Variable(name) => Ok(name.as_str().to_owned()),
            Expression::String(name) => Ok(name.value().clone()),
            other => Err(Problem::new(
                "Invalid param element",
                "Each parameter name must be an identifier.",
            )
            .at(function.file, span(other))),
        };
        let parameters = parameters.iter().map(keyword).collect::<Found<Vec<_>>>()?;
        let variadic = body.attribute("variadic_params");
        let variadic = variadic.map(|rest| keyword(&rest.value)).transpose()?;
        let is_right = match variadic {
            Some(_) => arguments.len() >= parameters.len(),
            None => arguments.len() == parameters.len(),
        };
        if !is_right {
            let text = format!(
                "Function {name:?} expects {} argument(s), but there are {}.",
                parameters.len(),
                arguments.len()
            );
            return Err(Problem::new("Error in function call", text));
        }
        parameters.iter().try_for_each(|name| self.pay_for(name))?;
        let (fixed, rest) = arguments.split_at(parameters.len());
        let mut own: Own = parameters.into_iter().zip(fixed.iter().cloned()).collect();
        if let Some(name) = variadic {
            own.insert(name, Value::List(rest.to_vec()));
        }
        let scope = Scope {
            own: &own,
            ..self.at(function.file, depth)
        };
        scope.value(&result.value).map(Some)
    }

    /// Returns the names of a block, and the values of its matrix for each.
    pub fn named(&self, number: usize, depth: usize) -> Found<Named> {
        if let Some(known) = self.named.borrow().get(&number) {
            return Ok(Rc::clone(known));
        }
        let Some(placed) = self.blocks.get(number).copied() else {
            return Ok(Named::default());
        };
        let cycle = || invalid(format!("reference cycle not allowed for {}", placed.label));
        let _open = self.open(format!("block {number}")).ok_or_else(cycle)?;
        let body = &placed.block.body;
        let label_span = placed
            .block
            .labels
            .first()
            .and_then(|(_, span)| span.clone());
        let at = |problem: Problem| problem.at(placed.file, label_span.clone());
        let wrong = |text: &str| at(Problem::new("Invalid name", text));
        check_name(placed.label).map_err(at)?;
        let name = body.attribute("name");
        let is_group = placed.block.kind == "group";
        let contexts = match body.attribute("matrix") {
            Some(_) if is_group => return Err(wrong("matrix is not supported for groups")),
            Some(matrix) => self.matrix(placed.file, &matrix.value, depth)?,
            None if name.is_some() && is_group => {
                return Err(wrong("name is not supported for groups"));
            }
            None if name.is_some() => return Err(wrong("name requires matrix")),
            None => vec![Own::new()],
        };
        let mut found: Vec<(String, Own)> = Vec::with_capacity(contexts.len());
        let mut seen = BTreeSet::new();
        for own in contexts {
            let name = match name {
                Some(name) => {
                    let scope = Scope {
                        own: &own,
                        ..self.at(placed.file, depth)
                    };
                    let text = scope.value(&name.value)?.text();
                    let text = text.map_err(|cause| wrong(&cause))?;
                    check_name(&text).map_err(at)?;
                    text
                }
                None => placed.label.to_owned(),
            };
            if !seen.insert(name.clone()) {
                return Err(wrong(&format!("duplicate name {name:?}")));
            }
            found.push((name, own));
        }
        let found = Rc::new(found);
        self.named.borrow_mut().insert(number, Rc::clone(&found));
        Ok(found)
    }

    /// Returns all combinations of a matrix.
    fn matrix(&self, file: usize, matrix: &Expression, depth: usize) -> Found<Vec<Own>> {
        let wrong = |text: String| Problem::new("Invalid name", text).at(file, span(matrix));
        let Value::Object(axes) = self.at(file, depth).value(matrix)? else {
            return Err(wrong("matrix must be a map".into()));
        };
        let mut all = vec![Own::new()];
        for (name, values) in axes {
            let values = match values {
                Value::List(values) => values,
                Value::Object(members) => members.into_values().collect(),
                _ => return Err(wrong("matrix values must be a list".into())),
            };
            if all.len().saturating_mul(values.len()) > MAX_MATRIX {
                return Err(wrong(format!(
                    "matrix has more than {MAX_MATRIX} combinations"
                )));
            }
            let mut longer = Vec::new();
            for own in &all {
                for value in &values {
                    let mut own = self.copy_all(own)?;
                    self.pay_for(&name)?;
                    own.insert(name.clone(), self.copy(value)?);
                    longer.push(own);
                }
            }
            all = longer;
        }
        Ok(all)
    }

    /// Returns an attribute of another target or group.
    pub fn attribute(&self, kind: &str, name: &str, key: &str, depth: usize) -> Found<Value> {
        // All blocks are looked through.
        self.pay(self.blocks.len() / 16)?;
        let mut found = None;
        let mut is_there = false;
        for (number, placed) in self.blocks.iter().enumerate() {
            if placed.block.kind != kind {
                continue;
            }
            let named = self.named(number, depth)?;
            self.pay(named.len() / 16)?;
            let Some((_, own)) = named.iter().find(|(own, _)| own == name) else {
                continue;
            };
            is_there = true;
            if let Some(attribute) = placed.block.body.attribute(key) {
                let what = format!("{kind}.{name}.{key}");
                let cycle = || invalid(format!("reference cycle not allowed for {what}"));
                let _open = self.open(what.clone()).ok_or_else(cycle)?;
                let scope = Scope {
                    own,
                    ..self.at(placed.file, depth)
                };
                found = Some(scope.value(&attribute.value)?);
            }
        }
        match found {
            Some(value) => Ok(value),
            None if is_there && target::is_attribute(key) => Ok(target::unset(key)),
            None if is_there => Err(Problem::new(
                "Unsupported attribute",
                format!("This object does not have an attribute named {key:?}."),
            )),
            None => Err(Problem::new(
                "Unsupported attribute",
                format!("This object does not have an attribute named {name:?}."),
            )),
        }
    }
}

/// Checks the name of a target or a group.
pub(crate) fn check_name(name: &str) -> Found<()> {
    let is_valid = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    match is_valid {
        true => Ok(()),
        false => Err(Problem::new(
            "Invalid name",
            "only \"[a-zA-Z0-9_-]+\" are allowed",
        )),
    }
}

/// Converts what the environment says to the type of a variable, or to that of its default.
fn from_environment(
    name: &str,
    text: &str,
    is_json: bool,
    ty: Option<&Type>,
    default: Option<&Value>,
) -> Result<Value, String> {
    let Some(ty) = ty else {
        return match default {
            None | Some(Value::Null | Value::String(_)) => Ok(text.into()),
            Some(Value::Bool(_)) => primitive(name, text, &Type::Bool),
            Some(Value::Number(_)) => primitive(name, text, &Type::Number),
            Some(other) => Err(format!(
                "unsupported type {} for variable {name}",
                other.kind()
            )),
        };
    };
    if is_json {
        let failed =
            |cause: String| format!("failed to convert variable {name} from JSON: {cause}");
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|error| failed(error.to_string()))?;
        let value = Value::try_from(json).and_then(|value| value.convert(ty));
        return value.map_err(failed);
    }
    let fields = || {
        let fields = whelk_dockerfile::csv::fields(text);
        fields.map_err(|error| format!("failed to parse {text} as CSV: {error}"))
    };
    match ty {
        Type::List(of) | Type::Set(of) => {
            let items = fields()?;
            let items = items.iter().map(|item| primitive(name, item, of));
            let items = items
                .collect::<Result<Vec<_>, _>>()
                .map_err(|cause| format!("failed to convert variable {name} from CSV: {cause}"))?;
            Value::List(items).convert(ty)
        }
        Type::Tuple(types) => {
            let items = fields()?;
            if items.len() != types.len() {
                return Err(format!(
                    "failed to convert variable {name} from CSV: tuple expects {} elements but only {} provided",
                    types.len(),
                    items.len()
                ));
            }
            let items = items.iter().zip(types);
            let items = items.map(|(item, of)| primitive(name, item, of));
            items.collect::<Result<_, _>>().map(Value::List)
        }
        Type::Map(of) => {
            let items = fields()?;
            let items = items.iter().map(|item| {
                let (key, value) = item
                    .split_once('=')
                    .ok_or_else(|| format!("expected a k=v pair, not {item}"))?;
                Ok((key.to_owned(), primitive(name, value, of)?))
            });
            let items = items
                .collect::<Result<_, String>>()
                .map_err(|cause| format!("failed to convert variable {name} from CSV: {cause}"))?;
            Ok(Value::Object(items))
        }
        Type::Object(_) => Err(format!(
            "unsupported type {} for variable {name}",
            ty.name()
        )),
        Type::Any => Ok(text.into()),
        ty => primitive(name, text, ty),
    }
}

fn primitive(name: &str, text: &str, to: &Type) -> Result<Value, String> {
    match to {
        Type::String | Type::Any => Ok(text.into()),
        Type::Bool => whelk_text::parse_bool(text)
            .map(Value::Bool)
            .ok_or_else(|| format!("failed to parse {name} as bool: {text:?} is none")),
        Type::Number => {
            let number = Value::from(text).number();
            number
                .map(Value::Number)
                .map_err(|cause| format!("failed to parse {name} as number: {text:?}: {cause}"))
        }
        other => Err(format!(
            "{name} of type {} is not a primitive",
            other.name()
        )),
    }
}
