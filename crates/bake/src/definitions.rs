//! Reads files: which targets, groups and variables they define.

use std::collections::{BTreeMap, BTreeSet};

use hcl_edit::expr::Expression;
use serde::Serialize;

use crate::error::{Error, Problem, Result};
use crate::eval::{Scope, span};
use crate::functions::STEP;
use crate::names::{Names, Placed};
use crate::syntax::{self, Attribute, Body};
use crate::target::{self, Group, Target, unique};
use crate::value::{Type, Value};
use crate::{Environment, File, ReadFile, compose};

/// The maximum number of targets, and that of groups.
const MAX_TARGETS: usize = 10_000;

/// The targets, groups and variables that bake files define.
#[derive(Debug, Default)]
pub struct Definitions {
    pub targets: BTreeMap<String, Target>,
    pub groups: BTreeMap<String, Group>,
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
            if let Some(group) = read.group {
                definitions.groups.insert(group.name.clone(), group);
            }
            for target in read.targets {
                definitions.add(target).map_err(Error::new)?;
            }
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
        for group in definitions.groups.values_mut() {
            group.targets = unique(&group.targets);
        }
        Ok(definitions)
    }

    /// Adds a target, or what it defines to the one with its name.
    fn add(&mut self, target: Target) -> std::result::Result<(), String> {
        if let Some(own) = self.targets.get_mut(&target.name) {
            own.merge(&target);
            return Ok(());
        }
        if self.targets.len() >= MAX_TARGETS {
            return Err(format!("more than {MAX_TARGETS} targets are defined"));
        }
        self.targets.insert(target.name.clone(), target);
        Ok(())
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
        let mut renamed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut warned = BTreeSet::new();
        for number in 0..names.blocks.len() {
            let placed = names.blocks[number];
            let named = names.named(number, 0)?;
            let is_group = placed.block.kind == "group";
            let attributes = match is_group {
                true => Vec::new(),
                false => attributes(placed, files, &mut warned),
            };
            let list = || named.iter().map(|(name, _)| name.as_str());
            // A matrix without values is no target, and no group either.
            if !named.is_empty() && !list().eq([placed.label]) {
                let renamed = renamed.entry(placed.label).or_default();
                renamed.extend(list().map(str::to_owned));
            }
            for (name, own) in &*named {
                let scope = Scope {
                    own,
                    ..names.at(placed.file, 0)
                };
                match is_group {
                    true => self.add_group(name, placed, scope)?,
                    false => self.add_target(name, placed, &attributes, scope)?,
                }
            }
        }
        self.warnings.extend(warned);
        for name in names.attribute_names().collect::<Vec<_>>() {
            names.variable(name, 0)?;
        }
        for (name, targets) in renamed {
            // A group that is declared under the name replaces the one made of the matrix.
            let group = self.groups.entry(name.to_owned());
            group.or_insert_with(|| Group {
                name: name.to_owned(),
                targets,
                ..Group::default()
            });
        }
        Ok(())
    }

    fn add_target(
        &mut self,
        name: &str,
        placed: Placed<'_>,
        attributes: &[&Attribute],
        scope: Scope<'_>,
    ) -> std::result::Result<(), Problem> {
        let mut target = Target {
            name: name.to_owned(),
            ..Target::default()
        };
        for attribute in attributes {
            let value = scope.value(&attribute.value)?;
            target
                .set(&attribute.name, &value)
                .map_err(|cause| unsuitable(placed.file, &attribute.value, &cause))?;
        }
        if let Some(own) = self.targets.get(name) {
            // Its lists are looked through for duplicates.
            scope.names.pay(own.size() / STEP)?;
        }
        self.add(target).map_err(|text| too_many(placed, text))
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
        if self.groups.len() >= MAX_TARGETS && !self.groups.contains_key(name) {
            let text = format!("more than {MAX_TARGETS} groups are defined");
            return Err(too_many(placed, text));
        }
        self.groups.insert(name.to_owned(), group);
        Ok(())
    }
}

/// Returns the attributes that make a target, and adds warnings of others.
fn attributes<'a>(
    placed: Placed<'a>,
    files: &[(String, String)],
    warnings: &mut BTreeSet<String>,
) -> Vec<&'a Attribute> {
    let mut known = Vec::new();
    for attribute in &placed.block.body.attributes {
        match &*attribute.name {
            "name" | "matrix" => {}
            name if target::is_attribute(name) => known.push(attribute),
            name => {
                let file = files.get(placed.file).map_or("", |(file, _)| file.as_str());
                warnings.insert(format!(
                    "{file}: target {}: {name} is ignored: there is no such attribute",
                    placed.label
                ));
            }
        }
    }
    known
}

fn too_many(placed: Placed<'_>, text: String) -> Problem {
    Problem::new("Invalid definition", text).at(placed.file, placed.block.span.clone())
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
    fn errors_of_json_have_places() {
        let read = |content: &str| {
            let file = File {
                name: "x.json".into(),
                content: content.into(),
            };
            let read = Definitions::read(&[file], &Environment::default(), &|_| Ok(None));
            read.err().unwrap()
        };
        let default = |text: &str| format!("{{\"target\": {{\"default\": {{{text}}}}}}}");
        for (text, expected) in [
            (
                r#""tags": "x""#,
                "1,33-36: Unsuitable value type; Unsuitable value: list of string required",
            ),
            (r#""args": []"#, "1,33-34: Unsuitable value type; "),
            (r#""platforms": {}"#, "1,38-39: Unsuitable value type; "),
            (
                r#""tags": ["a:${FOO}"]"#,
                "1,39-42: Unknown variable; There is no variable named \"FOO\".",
            ),
            (
                "\"args\": {\n\"A\": 1, \"B\": \"${nofn(1)}\"}",
                "2,17-21: Call to unknown function; ",
            ),
            ("\"args\": {\n\"${A}\": 1}", "2,4-5: Unknown variable; "),
            // The parts of a text with escapes are somewhere in it.
            (r#""tags": ["ä\u00e4${FOO}"]"#, "1,"),
            (r#""matrix": 1, "name": "x""#, "1,35-36: Invalid name; "),
        ] {
            let error = read(&default(text));
            let expected = format!("x.json:{expected}");
            assert!(error.text.starts_with(&expected), "{}", error.text);
            assert!(error.excerpt.contains(">>>"), "{}", error.excerpt);
        }
        let group = read("{\"group\": {\"default\": {}}}").text;
        assert!(group.starts_with("x.json:1,2-9: Missing"), "{group}");
        let name = read("{\"target\": {\"a/b\": {}}}").text;
        assert!(name.starts_with("x.json:1,13-18: Invalid name"), "{name}");
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
        // In itself, a group's name is that of a target, which may not be there.
        let content = "group \"a\" { targets = [\"a\", \"b\"] }\ngroup \"b\" { targets = [\"a\", \"default\"] }\ntarget \"default\" {}\n";
        let failed = resolved(content, &["a"]).err().unwrap();
        assert_eq!(failed.text, "failed to find target a");
        let content = format!("{content}target \"a\" {{}}\n");
        assert_eq!(resolved(&content, &["a"]).unwrap().targets.len(), 2);
        refused(
            "group \"default\" { targets = [\"default\"] }\n",
            "failed to find target default",
        );
        refused(
            "group \"default\" { targets = [\"e\"] }\ngroup \"e\" { targets = [] }\n",
            "failed to find target e",
        );
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
    fn what_targets_inherit_is_bounded() {
        let group = |count: usize| {
            let names: Vec<String> = (0..count).map(|number| format!("\"t{number}\"")).collect();
            format!("group \"default\" {{ targets = [{}] }}\n", names.join(", "))
        };
        let inheriting = |count: usize| -> String {
            let target =
                |number: usize| format!("target \"t{number}\" {{ inherits = [\"base\"] }}\n");
            (0..count).map(target).collect()
        };
        let long = "x".repeat(2 << 20);
        let base = format!("target \"base\" {{ args = {{ A = \"{long}\" }} }}\n");
        let content = |count: usize| format!("{base}{}{}", inheriting(count), group(count));
        refused(&content(100), "more than 67108864 bytes");
        let found = resolved(&content(10), &["default"]).unwrap();
        assert_eq!(found.targets.len(), 10);
        // Each level has what is below twice, in the same lists.
        let levels = |own: &str| -> String {
            let level = |number: usize| {
                let below = format!("\"t{}\"", number + 1);
                format!("target \"t{number}\" {{\n  inherits = [{below}, {below}]\n  {own}\n}}\n")
            };
            (0..100).map(level).collect()
        };
        let content = format!("{}target \"t100\" {{}}\n", levels("tags = [\"x\"]"));
        let found = resolved(&content, &["t0"]).unwrap();
        assert_eq!(found.targets["t0"].tags.as_deref().unwrap(), ["x"]);
        // One target, through many others.
        let parents = vec!["\"base\""; 100].join(", ");
        let content = format!("{base}target \"default\" {{ inherits = [{parents}] }}\n");
        refused(&content, "target default inherits more than 67108864 bytes");
        // Each level stands on both targets of the next one: 2^100 ways.
        let level = |number: usize| {
            let below = number + 1;
            ["a", "b"].map(|own| {
                format!(
                    "target \"{own}{number}\" {{ contexts = {{ x = \"target:a{below}\", y = \"target:b{below}\" }} }}\n"
                )
            })
        };
        let stands: String = (0..100).flat_map(level).collect();
        let content = format!("{stands}target \"a100\" {{}}\ntarget \"b100\" {{}}\n");
        assert_eq!(resolved(&content, &["a0"]).unwrap().targets.len(), 201);
    }

    #[test]
    fn the_number_of_targets_is_bounded() {
        let blocks = |kind: &str, body: &str| -> String {
            let block = |number: usize| format!("{kind} \"x{number}\" {{{body}}}\n");
            (0..10_001).map(block).collect()
        };
        refused(&blocks("target", ""), "more than 10000 targets are defined");
        refused(
            &blocks("group", " targets = [] "),
            "more than 10000 groups are defined",
        );
        let matrix = |name: &str, hundreds: usize| {
            format!(
                "target \"{name}\" {{\n  matrix = {{ n = range(100), m = range({hundreds}) }}\n  name = \"{name}${{n}}-${{m}}\"\n}}\n"
            )
        };
        let most = format!("{}{}", matrix("a", 60), matrix("b", 40));
        assert_eq!(resolved(&most, &["a"]).unwrap().targets.len(), 6000);
        let content = format!("{most}target \"one\" {{}}\n");
        refused(&content, "docker-bake.hcl:9,1-7: Invalid definition");
        // The services of Compose files count as targets, too.
        let services: String = (0..6000)
            .map(|number| format!("  s{number}: {{build: .}}\n"))
            .collect();
        let files = [
            ("compose.yaml", format!("services:\n{services}")),
            ("docker-bake.hcl", matrix("a", 60)),
        ];
        let files = files.map(|(name, content)| File {
            name: name.into(),
            content,
        });
        let read = Definitions::read(&files, &Environment::default(), &|_| Ok(None));
        let text = read.err().unwrap().text;
        assert!(
            text.contains("more than 10000 targets are defined"),
            "{text}"
        );
        // The same target may be defined again and again.
        let again = "target \"default\" {}\n".repeat(10_001);
        assert_eq!(resolved(&again, &["default"]).unwrap().targets.len(), 1);
    }

    #[test]
    fn unknown_attributes_are_told_once_for_all_targets_of_a_matrix() {
        let file = File {
            name: "docker-bake.hcl".into(),
            content: "target \"x\" {\n  matrix = { n = range(100) }\n  name = \"x${n}\"\n  tagz = []\n}\n"
                .into(),
        };
        let read = Definitions::read(&[file], &Environment::default(), &|_| Ok(None)).unwrap();
        assert_eq!(
            read.warnings,
            ["docker-bake.hcl: target x: tagz is ignored: there is no such attribute"]
        );
        assert_eq!((read.targets.len(), read.groups.len()), (100, 1));
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
