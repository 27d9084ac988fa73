//! Stages: FROM and the instructions up to the next one.

use crate::error::{Error, Lines, Result};
use crate::instruction::{Arg, Instruction, description};
use crate::lint::{Linter, Rule};
use crate::parser::{Dockerfile, Line};

/// An instruction with where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub instruction: Instruction,
    /// The instruction's name as written.
    pub name: String,
    /// The whole line.
    pub code: String,
    pub lines: Lines,
    pub comments: Vec<String>,
}

impl Step {
    pub(crate) fn of(line: &Line) -> Result<Self> {
        Ok(Self {
            instruction: Instruction::parse(line)?,
            name: line.instruction.clone(),
            code: line.original.trim().to_owned(),
            lines: line.lines,
            comments: line.comments.clone(),
        })
    }
}

/// A stage. Its base and platform may contain variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// In lower case; empty if it has none.
    pub name: String,
    pub base: String,
    pub platform: String,
    pub steps: Vec<Step>,
    /// `FROM` as written.
    pub keyword: String,
    /// From a comment above it that begins with the name.
    pub description: String,
    /// The whole line of FROM.
    pub code: String,
    pub lines: Lines,
    pub comments: Vec<String>,
}

/// The build arguments of an ARG before the first FROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalArgs {
    pub args: Vec<Arg>,
    pub lines: Lines,
}

/// The stages of a Dockerfile, and the arguments before the first one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    pub stages: Vec<Stage>,
    pub args: Vec<GlobalArgs>,
}

impl Stages {
    /// Parses all lines as instructions.
    ///
    /// # Errors
    /// Returns an error with BuildKit's text and the line.
    pub fn parse(dockerfile: &Dockerfile, linter: &mut Linter) -> Result<Self> {
        let mut found = Self::default();
        for line in &dockerfile.lines {
            let failed = |error: Error| {
                error.at(line.lines).context(format_args!(
                    "dockerfile parse error on line {}",
                    line.lines.first
                ))
            };
            lint(line, linter);
            if line.is("from") {
                found.stages.push(stage(line).map_err(failed)?);
                continue;
            }
            let step = Step::of(line).map_err(failed)?;
            match (found.stages.last_mut(), step) {
                (Some(stage), step) => stage.steps.push(step),
                (
                    None,
                    Step {
                        instruction: Instruction::Arg(args),
                        lines,
                        ..
                    },
                ) => found.args.push(GlobalArgs { args, lines }),
                (None, step) => {
                    return Err(Error::new("no build stage in current context").at(step.lines));
                }
            }
        }
        Ok(found)
    }
}

fn stage(line: &Line) -> Result<Stage> {
    use crate::instruction::from_platform;
    let name = match line.arguments.as_slice() {
        [_] => String::new(),
        [_, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let valid = lower.starts_with(|first: char| first.is_ascii_lowercase())
                && lower.chars().all(|letter| {
                    letter.is_ascii_lowercase()
                        || letter.is_ascii_digit()
                        || matches!(letter, '-' | '_' | '.')
                });
            if !valid {
                return Err(Error::new(format!(
                    "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
                )));
            }
            lower
        }
        _ => return Err(Error::new("FROM requires either one or three arguments")),
    };
    Ok(Stage {
        description: description(&line.comments, &name),
        name,
        base: line.arguments.first().cloned().unwrap_or_default(),
        platform: from_platform(line)?,
        steps: Vec::new(),
        keyword: line.instruction.clone(),
        code: line.original.trim().to_owned(),
        lines: line.lines,
        comments: line.comments.clone(),
    })
}

/// Checks what depends on a single line only.
fn lint(line: &Line, linter: &mut Linter) {
    let mut warn = |rule, detail| linter.warn(&line.comments, rule, line.lines, detail);
    if line.is("maintainer") {
        warn(
            Rule::MaintainerDeprecated,
            "Maintainer instruction is deprecated in favor of using label".to_owned(),
        );
    }
    if line.is("from") {
        if let [_, _, name] = line.arguments.as_slice()
            && *name != name.to_lowercase()
        {
            warn(
                Rule::StageNameCasing,
                format!("Stage name '{name}' should be lowercase"),
            );
        }
        let from = &line.instruction;
        let casing: Option<fn(&str) -> String> = if *from == from.to_lowercase() {
            Some(str::to_lowercase)
        } else if *from == from.to_uppercase() {
            Some(str::to_uppercase)
        } else {
            None
        };
        if let ([_, keyword, _, ..], Some(casing)) = (line.arguments.as_slice(), casing)
            && *keyword != casing(keyword)
        {
            warn(
                Rule::FromAsCasing,
                format!("'{keyword}' and '{from}' keywords' casing do not match"),
            );
        }
    }
    let names: Vec<&str> = match line.arguments.as_slice() {
        [_, _, name] if line.is("from") => vec![name],
        arguments if line.is("arg") => {
            let names = arguments.iter().filter_map(|arg| arg.split('=').next());
            names.collect()
        }
        _ => Vec::new(),
    };
    let lower: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
    let names: Vec<&str> = if line.is("from") {
        lower.iter().map(String::as_str).collect()
    } else {
        names
    };
    if let (Some(comment), Some(first)) = (line.comments.last(), names.first()) {
        let described = comment.split(' ').next().unwrap_or_default();
        if !names.contains(&described) {
            let example = if names.len() > 1 { "<arg_key>" } else { first };
            warn(
                Rule::InvalidDefinitionDescription,
                format!(
                    "Comment for {} should follow the format: `# {example} <description>`",
                    line.instruction.to_uppercase()
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parser::parse;

    fn stages(text: &str) -> Result<Stages> {
        Stages::parse(&parse(text)?, &mut Linter::default())
    }

    #[test]
    fn splits_into_stages() {
        let text =
            "ARG A=1\nARG B\nFROM a:$A AS One\nRUN x\n# two it is\nFROM --platform=$B one as two\n";
        let found = stages(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.args.len(), 2);
        let [one, two] = found.stages.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!((one.name.as_str(), one.base.as_str()), ("one", "a:$A"));
        assert_eq!(one.steps[0].code, "RUN x");
        assert_eq!(
            (two.platform.as_str(), two.description.as_str()),
            ("$B", "it is")
        );
    }

    #[test]
    fn rejects_invalid_stages() {
        for (text, expected) in [
            ("RUN x", "no build stage in current context"),
            (
                "FROM a b",
                "dockerfile parse error on line 1: FROM requires either one or three arguments",
            ),
            (
                "FROM a AS 1b",
                "dockerfile parse error on line 1: invalid name for build stage: \"1b\", name can't start with a number or contain symbols",
            ),
            (
                "FROM a\n\nRUNN x",
                "dockerfile parse error on line 3: unknown instruction: RUNN (did you mean RUN?)",
            ),
            (
                "FROM --platfrm=x a",
                "dockerfile parse error on line 1: unknown flag: --platfrm (did you mean platform?)",
            ),
        ] {
            assert_eq!(stages(text).unwrap_err().to_string(), expected, "{text}");
        }
    }
}
