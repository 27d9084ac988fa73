//! Reads files: which targets, groups and variables they define.

use hcl_edit::expr::Expression;
use serde::Serialize;

use crate::error::{Problem, Result};
use crate::eval::{Scope, span};
use crate::names::{Names, Placed};
use crate::syntax::{self, Body};
use crate::target::{self, Group, Target, unique};
use crate::value::{Type, Value};
use crate::{Environment, File, ReadFile, compose};

/// The targets, groups and variables that bake files define.
#[derive(Debug, Default)]
pub struct Definitions {
    pub targets: Vec<Target>,
    pub groups: Vec<Group>,
    /// Sorted by name.
    pub variables: Vec<VariableInfo>,
    /// Warnings for the user, such as of attributes that are ignored.
    pub warnings: Vec<String>,
}

/// A variable, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VariableInfo {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Whether a file is one of Compose.
fn is_compose(file: &File) -> bool {
    let name = file.name.to_lowercase();
    if name.ends_with(".yml") || name.ends_with(".yaml") {
        return true;
    }
    if name.ends_with(".json") || name.ends_with(".hcl") {
        return false;
    }
    compose::looks_like(&file.content)
}

impl Definitions {
    /// Reads files, in their order. `more` reads those that Compose's files extend and include.
    ///
    /// # Errors
    /// Returns an error, with its place, for what is not valid.
    pub fn read(files: &[File], environment: &Environment, more: &ReadFile<'_>) -> Result<Self> {
        let (composes, others): (Vec<&File>, Vec<&File>) =
            files.iter().partition(|file| is_compose(file));
        let mut definitions = Self::default();
        if !composes.is_empty() {
            let read = compose::read(&composes, environment, more)?;
            definitions.groups.extend(read.group);
            definitions.targets = read.targets;
            definitions.warnings = read.warnings;
        }
        let files: Vec<(String, String)> = others
            .iter()
            .map(|file| (file.name.clone(), file.content.clone()))
            .collect();
        let mut bodies: Vec<(usize, Body)> = Vec::with_capacity(files.len());
        for number in 0..files.len() {
            bodies.push((number, syntax::parse(&files, number)?));
        }
        let evaluated = definitions.evaluate(environment, &bodies, &files);
        evaluated.map_err(|problem| problem.error(&files))?;
        for group in &mut definitions.groups {
            group.targets = unique(&group.targets);
        }
        Ok(definitions)
    }

    fn evaluate(
        &mut self,
        environment: &Environment,
        bodies: &[(usize, Body)],
        files: &[(String, String)],
    ) -> std::result::Result<(), Problem> {
        let names = Names::new(environment, bodies)?;
        for name in names.variable_names().collect::<Vec<_>>() {
            if environment.builtin.contains_key(name) {
                continue;
            }
            let Some(variable) = names.variable_block(name) else {
                continue;
            };
            let value = names.variable(name, 0)?.unwrap_or_default();
            self.variables.push(info(&names, variable, &value)?);
        }
        for name in names.variable_names().collect::<Vec<_>>() {
            if let Some(variable) = names.variable_block(name) {
                validate(&names, variable)?;
            }
        }
        let mut renamed: Vec<Group> = Vec::new();
        for number in 0..names.blocks.len() {
            let placed = names.blocks[number];
            let named = names.named(number, 0)?;
            let list: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
            // A matrix without values is no target, and no group either.
            if !list.is_empty() && list != [placed.label] {
                match renamed.iter_mut().find(|group| group.name == placed.label) {
                    Some(group) => group.targets.extend(list),
                    None => renamed.push(Group {
                        name: placed.label.to_owned(),
                        targets: list,
                        ..Group::default()
                    }),
                }
            }
            for (name, own) in &*named {
                let scope = Scope {
                    own,
                    ..names.at(placed.file, 0)
                };
                match placed.block.kind.as_str() {
                    "group" => self.add_group(name, placed, scope)?,
                    _ => self.add_target(name, placed, scope, files)?,
                }
            }
        }
        for name in names.attribute_names().collect::<Vec<_>>() {
            names.variable(name, 0)?;
        }
        self.groups.extend(renamed);
        Ok(())
    }

    fn add_target(
        &mut self,
        name: &str,
        placed: Placed<'_>,
        scope: Scope<'_>,
        files: &[(String, String)],
    ) -> std::result::Result<(), Problem> {
        let mut target = Target {
            name: name.to_owned(),
            ..Target::default()
        };
        for attribute in &placed.block.body.attributes {
            if matches!(&*attribute.name, "name" | "matrix") {
                continue;
            }
            if !target::is_attribute(&attribute.name) {
                let file = files.get(placed.file).map_or("", |(name, _)| name.as_str());
                let text = format!(
                    "{file}: target {name}: {} is ignored: there is no such attribute",
                    attribute.name
                );
                if !self.warnings.contains(&text) {
                    self.warnings.push(text);
                }
                continue;
            }
            let value = scope.value(&attribute.value)?;
            target
                .set(&attribute.name, &value)
                .map_err(|cause| unsuitable(placed.file, &attribute.value, &cause))?;
        }
        match self.targets.iter_mut().find(|own| own.name == name) {
            Some(own) => own.merge(&target),
            None => self.targets.push(target),
        }
        Ok(())
    }

    fn add_group(
        &mut self,
        name: &str,
        placed: Placed<'_>,
        scope: Scope<'_>,
    ) -> std::result::Result<(), Problem> {
        let body = &placed.block.body;
        let Some(targets) = body.attribute("targets") else {
            let text = "The argument \"targets\" is required, but no definition was found.";
            let problem = Problem::new("Missing required argument", text);
            return Err(problem.at(placed.file, placed.block.span.clone()));
        };
        let list = target::list_of_texts(&scope.value(&targets.value)?)
            .map_err(|cause| unsuitable(placed.file, &targets.value, &cause))?;
        let description = match body.attribute("description") {
            Some(given) => {
                let value = scope.value(&given.value)?;
                let text = value.text();
                text.map_err(|cause| unsuitable(placed.file, &given.value, &cause))?
            }
            None => String::new(),
        };
        let group = Group {
            name: name.to_owned(),
            description,
            targets: list,
        };
        match self.groups.iter_mut().find(|own| own.name == name) {
            Some(own) => *own = group,
            None => self.groups.push(group),
        }
        Ok(())
    }
}

fn unsuitable(file: usize, expression: &Expression, cause: &str) -> Problem {
    let text = format!("Unsuitable value: {cause}");
    Problem::new("Unsuitable value type", text).at(file, span(expression))
}

/// Returns what is listed of a variable.
fn info(
    names: &Names<'_>,
    variable: Placed<'_>,
    value: &Value,
) -> std::result::Result<VariableInfo, Problem> {
    let ty = Names::type_of(variable)?;
    let description = match variable.block.body.attribute("description") {
        Some(given) => {
            let value = names.at(variable.file, 0).value(&given.value)?;
            value.text().unwrap_or_default()
        }
        None => String::new(),
    };
    let text = match (value, &ty) {
        (Value::Null, _) => None,
        (Value::String(text), None | Some(Type::String)) => Some(text.clone()),
        (value @ (Value::Number(_) | Value::Bool(_)), _) => value.text().ok(),
        (value, _) => Some(value.json().to_string()),
    };
    Ok(VariableInfo {
        name: variable.label.to_owned(),
        description,
        r#type: ty.map_or(String::new(), |ty| ty.name()),
        value: text,
    })
}

/// Checks the blocks `validation` of a variable.
fn validate(names: &Names<'_>, variable: Placed<'_>) -> std::result::Result<(), Problem> {
    let scope = names.at(variable.file, 0);
    for block in &variable.block.body.blocks {
        if block.kind != "validation" {
            continue;
        }
        let required = |name: &str| {
            block.body.attribute(name).ok_or_else(|| {
                let text =
                    format!("The argument {name:?} is required, but no definition was found.");
                let problem = Problem::new("Missing required argument", text);
                problem.at(variable.file, block.span.clone())
            })
        };
        let condition = &required("condition")?.value;
        let message = &required("error_message")?.value;
        let at = |problem: Problem| problem.at(variable.file, span(condition));
        let value = scope.value(condition)?;
        if value == Value::Null {
            let text = "Condition expression must return either true or false, not null.";
            return Err(at(Problem::new("Invalid condition result", text)));
        }
        let holds = value.truth().map_err(|cause| {
            let text = format!("Invalid condition result value: {cause}");
            at(Problem::new("Invalid condition result", text))
        })?;
        if !holds {
            let message = scope.value(message)?.text();
            let message =
                message.unwrap_or("This check failed, but has an invalid error message.".into());
            return Err(at(Problem::new("Validation failed", message)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resolved;

    fn resolved(content: &str, names: &[&str]) -> Result<Resolved> {
        let file = File {
            name: "docker-bake.hcl".into(),
            content: content.into(),
        };
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let definitions = Definitions::read(&[file], &Environment::default(), &|_| Ok(None))?;
        definitions.resolve(&names, &[], |_| None)
    }

    #[track_caller]
    fn refused(content: &str, expected: &str) {
        let failed = resolved(content, &["default"]).err().unwrap();
        assert!(failed.text.contains(expected), "{}", failed.text);
    }

    #[test]
    fn names_are_evaluated_when_they_are_needed() {
        let content = "A = B\nvariable \"B\" { default = \"b-${target.one.args.X}\" }\n\
            function \"twice\" {\n  params = [text]\n  result = \"${text}${text}\"\n}\n\
            target \"one\" {\n  args = { X = twice(\"x\") }\n}\n\
            target \"default\" {\n  inherits = [\"one\"]\n  tags = [A, target.one.dockerfile != null ? \"set\" : \"unset\"]\n}\n";
        let resolved = resolved(content, &["default"]).unwrap();
        let target = &resolved.targets["default"];
        assert_eq!(target.tags.as_deref().unwrap(), ["b-xx", "unset"]);
        assert_eq!(target.args["X"].as_deref(), Some("xx"));
    }

    #[test]
    fn circles_are_errors() {
        refused(
            "function \"f\" {\n  params = []\n  result = f()\n}\ntarget \"default\" { tags = [f()] }\n",
            "function cycle not allowed for f",
        );
        refused(
            "target \"default\" {\n  tags = target.default.tags\n}\n",
            "reference cycle not allowed for target.default.tags",
        );
        refused(
            "target \"default\" { contexts = { a = \"target:b\" } }\ntarget \"b\" { contexts = { a = \"target:default\" } }\n",
            "infinite loop from b to default",
        );
        // A target that inherits from itself inherits nothing of it.
        let content = "target \"default\" { inherits = [\"b\"] }\ntarget \"b\" {\n  inherits = [\"default\"]\n  tags = [\"x\"]\n}\n";
        let found = resolved(content, &["default"]).unwrap();
        assert_eq!(found.targets["default"].tags.as_deref().unwrap(), ["x"]);
        let content = "group \"a\" { targets = [\"a\", \"b\"] }\ngroup \"b\" { targets = [\"a\", \"default\"] }\ntarget \"default\" {}\n";
        assert_eq!(resolved(content, &["a"]).unwrap().targets.len(), 1);
    }

    #[test]
    fn sizes_and_depths_are_bounded() {
        let reversed: String = (0..2000)
            .map(|number| format!("variable \"V{number}\" {{ default = (V{}) }}\n", number + 1))
            .collect();
        refused(&reversed, "expressions are nested too deeply");
        refused(
            &format!(
                "target \"default\" {{ tags = [{}1{}] }}",
                "(".repeat(500),
                ")".repeat(500)
            ),
            "Invalid syntax",
        );
        refused(
            "target \"default\" {\n  matrix = { a = range(1000), b = range(1000) }\n  name = \"x${a}-${b}\"\n}\n",
            "matrix has more than 10000 combinations",
        );
        let inherits: String = (0..1000)
            .map(|number| {
                format!(
                    "target \"t{number}\" {{ inherits = [\"t{}\"] }}\n",
                    number + 1
                )
            })
            .collect();
        refused(
            &format!(
                "target \"default\" {{ inherits = [\"t0\"] }}\n{inherits}target \"t1000\" {{}}\n"
            ),
            "is inherited through more than 200 others",
        );
        let stands: String = (0..1000)
            .map(|number| {
                format!(
                    "target \"t{number}\" {{ contexts = {{ x = \"target:t{}\" }} }}\n",
                    number + 1
                )
            })
            .collect();
        refused(
            &format!(
                "target \"default\" {{ contexts = {{ x = \"target:t0\" }} }}\n{stands}target \"t1000\" {{}}\n"
            ),
            "stands on more than 200 others",
        );
        let groups: String = (0..5000)
            .map(|number| {
                format!(
                    "group \"g{number}\" {{ targets = [\"g{}\"] }}\n",
                    number + 1
                )
            })
            .collect();
        let groups = format!(
            "{groups}group \"g5000\" {{ targets = [\"default\"] }}\ntarget \"default\" {{}}\n"
        );
        assert_eq!(resolved(&groups, &["g0"]).unwrap().targets.len(), 1);
        refused(
            "function \"f\" {\n  params = [n]\n  result = [for a in range(1000): [for b in range(1000): [for c in range(1000): n]]]\n}\ntarget \"default\" { tags = [f(1)] }\n",
            "evaluating it takes too long",
        );
    }

    #[test]
    fn copies_of_values_cost_as_much_as_they_are_large() {
        let target = "target \"default\" {}\n";
        let too_large = "evaluating it takes too long";
        let long = "x".repeat(1 << 16);
        let many = |value: &str| format!("[for a in range(1024): [for b in range(1024): {value}]]");
        // A text, its literal, a name of an object, and the names around a `for`.
        for value in [
            "T == null".to_owned(),
            format!("\"{long}\" == null"),
            format!("({{ {long} = 1 }}) == null"),
        ] {
            let content = format!("{target}T = \"{long}\"\nA = {}\n", many(&value));
            refused(&content, too_large);
        }
        let inner = many("[for c in []: c]");
        let content = format!("{target}T = \"{long}\"\nA = [for t in [T]: {inner}]\n");
        refused(&content, too_large);
        // A list of 100,000 values.
        let tens: String = (1..6)
            .map(|number| {
                let items = vec![format!("a{}", number - 1); 10].join(", ");
                format!("a{number} = [{items}]\n")
            })
            .collect();
        let content = format!("{target}a0 = 1\n{tens}b = [for b in range(1024): a5 == null]\n");
        refused(&content, too_large);
        // Most is spent before, so that the matrix needs little memory here.
        let content = format!(
            "T = \"{long}\"\nvariable \"V\" {{ default = [for a in range(4): [for b in range(1000): T == null]] }}\n\
            target \"default\" {{\n  matrix = {{ a = range(20), b = range(50), t = [T] }}\n  name = \"x${{a}}-${{b}}\"\n}}\n"
        );
        refused(&content, too_large);
        // Each value is in the next one: copies are made level by level, on the stack.
        let deep: String = (1..40)
            .map(|number| {
                let (open, close) = ("[".repeat(20), "]".repeat(20));
                format!("a{number:03} = {open}a{:03}{close}\n", number - 1)
            })
            .collect();
        refused(&format!("{target}a000 = 1\n{deep}"), too_large);
        // What is of a usual size is not refused.
        let content = "A = { for a in range(100): \"k${a}\" => { x = a } }\ntarget \"default\" {\n  tags = [for a in range(100): \"t${A[\"k${a}\"].x}\"]\n}\n";
        let found = resolved(content, &["default"]).unwrap();
        assert_eq!(found.targets["default"].tags.as_ref().unwrap().len(), 100);
    }
}
