//! `bake --list`.

use serde::Serialize;
use whelk_bake::{Definitions, VariableInfo};

use crate::output::print;
use crate::terminal::one_line;
use crate::{Failure, Outcome};

/// What is listed, and whether as JSON.
struct Wanted {
    kind: String,
    is_json: bool,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    group: bool,
}

fn wanted(text: &str) -> Outcome<Wanted> {
    let fields =
        whelk_dockerfile::csv::fields(text).map_err(|error| Failure::new(error.to_string()))?;
    let (mut kind, mut format) = (String::new(), "table".to_owned());
    match fields.as_slice() {
        [only] if !only.starts_with("type=") => kind.clone_from(only),
        fields => {
            for field in fields {
                match field.split_once('=') {
                    Some(("type", value)) => kind = value.to_owned(),
                    Some(("format", value)) => format = value.to_owned(),
                    Some((key, _)) => {
                        return Err(Failure::new(format!("unexpected key '{key}' in '{field}'")));
                    }
                    None => return Err(Failure::new(format!("invalid value {field}"))),
                }
            }
        }
    }
    if !matches!(kind.as_str(), "targets" | "variables") {
        return Err(Failure::new(format!("invalid list type {kind:?}")));
    }
    match format.as_str() {
        "table" | "json" => Ok(Wanted {
            kind,
            is_json: format == "json",
        }),
        _ => Err(Failure::new(format!("invalid list format {format:?}"))),
    }
}

pub(super) fn list(definitions: &Definitions, text: &str) -> Outcome {
    let wanted = wanted(text)?;
    let shown = match (wanted.kind.as_str(), wanted.is_json) {
        ("targets", true) => json(&targets(definitions))?,
        ("targets", false) => {
            let rows = targets(definitions).into_iter();
            table(
                &["TARGET", "DESCRIPTION"],
                rows.map(|row| vec![row.name, row.description]).collect(),
            )
        }
        (_, true) => json(&definitions.variables)?,
        (_, false) => {
            let row = |variable: &VariableInfo| {
                vec![
                    variable.name.clone(),
                    variable.r#type.clone(),
                    variable.value.clone().unwrap_or("<null>".into()),
                    variable.description.clone(),
                ]
            };
            table(
                &["VARIABLE", "TYPE", "VALUE", "DESCRIPTION"],
                definitions.variables.iter().map(row).collect(),
            )
        }
    };
    print(&shown)?;
    Ok(0)
}

fn json(list: &impl Serialize) -> Outcome<String> {
    Ok(super::printed(list)? + "\n")
}

/// Returns targets and groups, without those whose name begins with `_`.
fn targets(definitions: &Definitions) -> Vec<Listed> {
    let targets = definitions.targets.values().map(|target| Listed {
        name: target.name.clone(),
        description: target.description.clone(),
        group: false,
    });
    let groups = definitions.groups.values().map(|group| {
        let mut members = group.targets.clone();
        members.sort();
        let members = members.join(", ");
        Listed {
            name: group.name.clone(),
            description: match (group.description.as_str(), members.as_str()) {
                ("", members) => members.to_owned(),
                (description, "") => description.to_owned(),
                (description, members) => format!("{description} ({members})"),
            },
            group: true,
        }
    });
    let mut all: Vec<Listed> = targets.chain(groups).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all.retain(|row| !row.name.starts_with('_'));
    all
}

/// Returns a table whose columns are separated by tabs, as Docker's bake prints it. Cells are lines without control characters:
/// definitions may come from a server.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    /// Width of a tab.
    const TAB: usize = 8;
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows = std::iter::once(head).chain(rows);
    let cells =
        |row: Vec<String>| -> Vec<String> { row.iter().map(|cell| one_line(cell)).collect() };
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    let count = rows.first().map_or(0, Vec::len);
    let length = |cell: &String| cell.chars().count();
    // A column is wider than its cells, and ends at a tab.
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(length).max().unwrap_or(0);
        (longest + 1).div_ceil(TAB) * TAB
    };
    // Behind the last column is nothing.
    let widths: Vec<usize> = (0..count.saturating_sub(1)).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            text += cell;
            if let Some(width) = widths.get(column) {
                let tabs = (width - length(cell)).div_ceil(TAB);
                text += &"\t".repeat(tabs);
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_end_at_tabs() {
        let rows = ["V|number|3|dd", "W||[\"a\"]|", "X|list of string|<null>|"];
        let rows = rows.map(|row| row.split('|').map(str::to_owned).collect());
        let text = table(&["VARIABLE", "TYPE", "VALUE", "DESCRIPTION"], rows.to_vec());
        assert_eq!(
            text,
            "VARIABLE\tTYPE\t\tVALUE\tDESCRIPTION\nV\t\tnumber\t\t3\tdd\nW\t\t\t\t[\"a\"]\t\nX\t\tlist of string\t<null>\t\n"
        );
    }

    #[test]
    fn a_row_is_one_line_without_control_characters() {
        let rows = vec![vec![
            "a".to_owned(),
            "one\n\ttwo \u{1b}]0;x\u{7}".to_owned(),
        ]];
        assert_eq!(
            table(&["TARGET", "DESCRIPTION"], rows),
            "TARGET\tDESCRIPTION\na\tone  two \u{fffd}]0;x\u{fffd}\n"
        );
    }

    #[test]
    fn what_is_listed_is_checked() {
        assert!(wanted("targets").is_ok_and(|wanted| !wanted.is_json));
        assert!(wanted("type=variables,format=json").is_ok_and(|wanted| wanted.is_json));
        for (text, expected) in [
            ("foo", "invalid list type \"foo\""),
            ("type=targets,format=x", "invalid list format \"x\""),
            ("type=targets,x=y", "unexpected key 'x' in 'x=y'"),
        ] {
            assert_eq!(wanted(text).err().unwrap().text, expected);
        }
    }
}
