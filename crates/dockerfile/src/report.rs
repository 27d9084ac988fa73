//! What `--check` and `--call outline|targets|subrequests.describe` answer, as the JSON and the text of BuildKit's subrequests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::error::{Error, Lines};
use crate::lint::Warning;
use crate::stage::Stages;

/// The result of a subrequest, in the form that clients get it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `result.json`
    pub json: String,
    /// `result.txt`
    pub text: String,
    /// `result.statuscode`, of those that have one.
    pub status: Option<i32>,
}

/// Returns an excerpt of a file with some of its lines marked; empty if there are none.
pub fn excerpt(name: &str, text: &str, marked: &[Lines]) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let first = marked.iter().map(|lines| lines.first).min();
    let last = marked.iter().map(|lines| lines.last).max();
    let (Some(first), Some(last)) = (first, last) else {
        return String::new();
    };
    let count = u32::try_from(lines.len()).unwrap_or(u32::MAX);
    if first == 0 || first > count {
        return String::new();
    }
    let last = last.min(count);
    let wanted = if first == last { 4 } else { 2 };
    let (mut begin, mut end, mut around) = (first, last, 0);
    while around < wanted {
        if begin > 1 {
            begin -= 1;
            around += 1;
        }
        if end != count {
            end += 1;
            around += 1;
        }
        around += 1;
    }
    let rule = "--------------------\n";
    let mut shown = format!("{name}:{first}\n{rule}");
    for (number, line) in (begin..=end).zip(lines.iter().skip(begin as usize - 1)) {
        let is_marked = marked
            .iter()
            .any(|lines| (lines.first..=lines.last).contains(&number));
        let mark = if is_marked { ">>>" } else { "   " };
        shown += &format!(" {number:3} | {mark} {line}\n");
    }
    shown + rule
}

/// Returns the result of `--check`.
pub fn check(name: &str, text: &str, warnings: &[Warning], error: Option<&Error>) -> Report {
    let report = Check {
        warnings: Some(warnings.iter().map(ShownWarning::from).collect())
            .filter(|list: &Vec<_>| !list.is_empty()),
        sources: vec![Source {
            filename: name.to_owned(),
            data: STANDARD.encode(text),
            language: "Dockerfile",
        }],
        error: error.map(|error| BuildError {
            message: error.to_string(),
            location: Location::of(&error.lines).unwrap_or_default(),
        }),
    };
    let mut sorted: Vec<&Warning> = warnings.iter().collect();
    sorted.sort_by_key(|warning| warning.lines.first);
    let mut shown = String::new();
    for Warning {
        rule,
        detail,
        lines,
    } in sorted
    {
        shown += &format!("\nWARNING: {}", rule.name());
        let url = rule.url();
        if !url.is_empty() {
            shown += &format!(" - {url}");
        }
        shown += &format!("\n{detail}\n{}", excerpt(name, text, &[*lines]));
    }
    let clean = warnings.is_empty() && error.is_none();
    Report {
        json: json(&report),
        text: shown,
        status: Some(i32::from(!clean)),
    }
}

/// Returns the result of `--call targets`.
pub fn targets(text: &str, stages: &Stages) -> Report {
    let count = stages.stages.len();
    let list = TargetList {
        targets: stages
            .stages
            .iter()
            .enumerate()
            .map(|(index, stage)| Target {
                name: stage.name.clone(),
                default: index + 1 == count,
                description: stage.description.clone(),
                base: stage.base.clone(),
                platform: stage.platform.clone(),
                location: Location::of(&[stage.lines]),
            })
            .collect(),
        sources: vec![STANDARD.encode(text)],
    };
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in &list.targets {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![name, target.description.clone()]);
    }
    Report {
        json: json(&list),
        text: table(&rows, 1),
        status: None,
    }
}

/// A subrequest, as clients are told of it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    name: &'static str,
    version: &'static str,
    r#type: &'static str,
    description: &'static str,
    opts: Vec<Named>,
    inputs: Option<Vec<Named>>,
    metadata: Vec<Named>,
    refs: Option<Vec<Named>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    name: &'static str,
    description: &'static str,
}

/// Returns the list of subrequests.
pub fn describe() -> Report {
    let named = |name, description| Named { name, description };
    let described = |name, description| Described {
        name,
        version: "1.0.0",
        r#type: "rpc",
        description,
        opts: Vec::new(),
        inputs: None,
        metadata: vec![named("result.json", ""), named("result.txt", "")],
        refs: None,
    };
    let list = [
        Described {
            opts: vec![named("target", "Target build stage")],
            ..described(
                "frontend.outline",
                "List all parameters current build target supports",
            )
        },
        described(
            "frontend.targets",
            "List all targets current build supports",
        ),
        described("frontend.lint", "Lint a Dockerfile"),
        described(
            "frontend.subrequests.describe",
            "List available subrequest types",
        ),
    ];
    let mut rows = vec![
        ["NAME", "VERSION", "DESCRIPTION"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for one in &list {
        let name = one.name.trim_start_matches("frontend.");
        rows.push(
            [name, one.version, one.description]
                .map(str::to_owned)
                .to_vec(),
        );
    }
    Report {
        json: json(&list),
        text: table(&rows, 1),
        status: None,
    }
}

/// What a target can be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    pub name: String,
    pub description: String,
    pub args: Vec<OutlineArg>,
    pub secrets: Vec<OutlineSecret>,
    pub ssh: Vec<OutlineSecret>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutlineArg {
    pub name: String,
    pub description: String,
    pub value: String,
    pub lines: Lines,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutlineSecret {
    pub name: String,
    pub required: bool,
    pub lines: Lines,
}

/// Returns the result of `--call outline`.
pub fn outline(text: &str, outline: &Outline) -> Report {
    let secret = |secret: &OutlineSecret| ShownSecret {
        name: secret.name.clone(),
        required: secret.required,
        location: Location::of(&[secret.lines]),
    };
    let shown = ShownOutline {
        name: outline.name.clone(),
        description: outline.description.clone(),
        args: outline
            .args
            .iter()
            .map(|arg| ShownArg {
                name: arg.name.clone(),
                description: arg.description.clone(),
                value: arg.value.clone(),
                location: Location::of(&[arg.lines]),
            })
            .collect(),
        secrets: outline.secrets.iter().map(secret).collect(),
        ssh: outline.ssh.iter().map(secret).collect(),
        sources: vec![STANDARD.encode(text)],
    };
    let mut written = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = match outline.name.as_str() {
            "" => "(default)",
            name => name,
        };
        let mut rows = vec![vec!["TARGET:".to_owned(), name.to_owned()]];
        if !outline.description.is_empty() {
            rows.push(vec!["DESCRIPTION:".to_owned(), outline.description.clone()]);
        }
        written += &(table(&rows, 1) + "\n");
    }
    if !outline.args.is_empty() {
        let head = ["BUILD ARG", "VALUE", "DESCRIPTION"]
            .map(str::to_owned)
            .to_vec();
        let rows = outline
            .args
            .iter()
            .map(|arg| vec![arg.name.clone(), arg.value.clone(), arg.description.clone()]);
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        written += &(table(&rows, 3) + "\n");
    }
    for (title, list) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if list.is_empty() {
            continue;
        }
        let head = vec![title.to_owned(), "REQUIRED".to_owned()];
        let rows = list.iter().map(|secret| {
            let required = if secret.required { "true" } else { "" };
            vec![secret.name.clone(), required.to_owned()]
        });
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        written += &(table(&rows, 3) + "\n");
    }
    Report {
        json: json(&shown),
        text: written,
        status: None,
    }
}

/// Aligns columns by spaces.
fn table(rows: &[Vec<String>], padding: usize) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + padding
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += cell;
            if column + 1 < columns {
                text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

fn json(value: &impl Serialize) -> String {
    // Structs of texts and numbers always have a JSON form.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Serialize)]
struct Check {
    warnings: Option<Vec<ShownWarning>>,
    sources: Vec<Source>,
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<BuildError>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownWarning {
    rule_name: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

impl From<&Warning> for ShownWarning {
    fn from(warning: &Warning) -> Self {
        Self {
            rule_name: warning.rule.name(),
            description: warning.rule.description(),
            url: warning.rule.url(),
            detail: warning.detail.clone(),
            location: Location::of(&[warning.lines]),
        }
    }
}

#[derive(Serialize)]
struct Source {
    filename: String,
    data: String,
    language: &'static str,
}

#[derive(Serialize)]
struct BuildError {
    message: String,
    location: Location,
}

#[derive(Default, Serialize)]
struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<LineRange>,
}

#[derive(Serialize)]
struct LineRange {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Position {
    line: u32,
}

impl Location {
    /// Returns a range for each line, as BuildKit writes them.
    fn of(lines: &[Lines]) -> Option<Self> {
        let ranges: Vec<LineRange> = lines
            .iter()
            .flat_map(|lines| lines.iter())
            .map(|line| LineRange {
                start: Position { line },
                end: Position { line },
            })
            .collect();
        Some(Self { ranges }).filter(|location| !location.ranges.is_empty())
    }
}

#[derive(Serialize)]
struct TargetList {
    targets: Vec<Target>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "is_false")]
    default: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    base: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

#[derive(Serialize)]
struct ShownOutline {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<ShownArg>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<ShownSecret>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<ShownSecret>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct ShownArg {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

#[derive(Serialize)]
struct ShownSecret {
    name: String,
    #[serde(skip_serializing_if = "is_false")]
    required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::{Linter, Rule};
    use crate::parser::parse;

    #[test]
    fn excerpts_show_the_lines_around() {
        let text = "a\nb\nc\nd\ne";
        assert_eq!(
            excerpt("Dockerfile", text, &[Lines::new(3, 3)]),
            "Dockerfile:3\n--------------------\n   1 |     a\n   2 |     b\n   3 | >>> c\n   4 |     d\n   5 |     e\n--------------------\n"
        );
        assert_eq!(
            excerpt("x", text, &[Lines::new(1, 2)]),
            "x:1\n--------------------\n   1 | >>> a\n   2 | >>> b\n   3 |     c\n--------------------\n"
        );
        assert_eq!(excerpt("x", text, &[]), "");
        assert_eq!(excerpt("x", text, &[Lines::new(9, 9)]), "");
        assert_eq!(
            excerpt("x", "", &[Lines::new(1, 1)]),
            "x:1\n--------------------\n   1 | >>> \n--------------------\n"
        );
    }

    #[test]
    fn checks_have_buildkits_form() {
        let text = "from x AS y\n";
        let mut linter = Linter::default();
        let dockerfile = parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert!(Stages::parse(&dockerfile, &mut linter).is_ok());
        assert_eq!(linter.warnings[0].rule, Rule::FromAsCasing);
        let report = check("Dockerfile", text, &linter.warnings, None);
        assert_eq!(report.status, Some(1));
        assert_eq!(
            report.json,
            r#"{
  "warnings": [
    {
      "ruleName": "FromAsCasing",
      "description": "The 'as' keyword should match the case of the 'from' keyword",
      "url": "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
      "detail": "'AS' and 'from' keywords' casing do not match",
      "location": {
        "ranges": [
          {
            "start": {
              "line": 1
            },
            "end": {
              "line": 1
            }
          }
        ]
      }
    }
  ],
  "sources": [
    {
      "filename": "Dockerfile",
      "data": "ZnJvbSB4IEFTIHkK",
      "language": "Dockerfile"
    }
  ]
}"#
        );
        assert_eq!(
            report.text,
            "\nWARNING: FromAsCasing - https://docs.docker.com/go/dockerfile/rule/from-as-casing/\n'AS' and 'from' keywords' casing do not match\nDockerfile:1\n--------------------\n   1 | >>> from x AS y\n   2 |     \n--------------------\n"
        );
    }

    #[test]
    fn subrequests_are_described() {
        let report = describe();
        let texts = [
            "NAME                 VERSION DESCRIPTION",
            "outline              1.0.0   List all parameters current build target supports",
            "subrequests.describe 1.0.0   List available subrequest types",
        ];
        for text in texts {
            assert!(report.text.contains(text), "{text} in {}", report.text);
        }
        assert!(report.json.contains("\"Name\": \"frontend.lint\""));
    }

    #[test]
    fn targets_are_listed() {
        let text = "# a first one\nFROM x AS a\nFROM a\n";
        let dockerfile = parse(text).unwrap_or_else(|error| panic!("{error}"));
        let stages = Stages::parse(&dockerfile, &mut Linter::default());
        let report = targets(text, &stages.unwrap_or_default());
        assert_eq!(
            report.text,
            "TARGET    DESCRIPTION\na         first one\n(default) \n"
        );
        assert!(report.json.contains("\"base\": \"a\""));
    }
}
