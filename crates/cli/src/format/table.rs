//! Prints lists as tables, templates or JSON, as selected by `--format`.

use serde::Serialize;
use serde_json::Value;

use super::template::{Mode, Template, failure, json, typed};
use crate::Outcome;
use crate::output::print;
use crate::terminal::one_line;

/// A column: its field name in templates, and its heading.
pub(crate) type Column = (&'static str, &'static str);

/// The columns of a list.
#[derive(Debug)]
pub(crate) struct Table {
    /// Go type of a row in Docker's client, named in errors.
    pub row: &'static str,
    /// The field shown by `--quiet`.
    pub id: &'static str,
    /// All fields that `--format` can refer to.
    pub columns: &'static [Column],
}

/// Minimum column width and padding in characters, as in Docker's CLI.
const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

impl Table {
    /// Validates a template before the request is sent, as Docker's `ps` does.
    pub(crate) fn check(&self, format: &str) -> Outcome<()> {
        if matches!(format, "" | "table" | "json") {
            return Ok(());
        }
        let template = Template::parse(format)
            .map_err(|mistake| failure(&mistake, 1, "failed to parse template: "))?;
        let empty = self
            .columns
            .iter()
            .map(|&(name, _)| (name.to_owned(), Value::from("")))
            .collect();
        let row = typed(self.row, Value::Object(empty));
        template
            .execute(&row, Mode::Values)
            .map(drop)
            .map_err(|mistake| failure(&mistake, 1, "failed to execute template: "))
    }

    /// Prints rows, whose fields are the columns. `default` is the template of the table.
    pub(crate) fn print(
        &self,
        format: &str,
        quiet: bool,
        default: &str,
        rows: Vec<impl Serialize>,
    ) -> Outcome<()> {
        print(&self.text(format, quiet, default, rows)?)
    }

    /// Returns the text that [`Table::print`] prints.
    pub(crate) fn text(
        &self,
        format: &str,
        quiet: bool,
        default: &str,
        rows: Vec<impl Serialize>,
    ) -> Outcome<String> {
        let format = match format {
            "" | "table" if quiet => format!("{{{{.{}}}}}", self.id),
            "" | "table" => format!("table {default}"),
            "json" => "{{json .}}".to_owned(),
            other => other.to_owned(),
        };
        let (is_table, text) = format
            .strip_prefix("table")
            .map_or((false, format.as_str()), |text| (true, text));
        // On a command line, a tab is typed as `\t`.
        let text = text
            .trim_matches(' ')
            .replace("\\t", "\t")
            .replace("\\n", "\n");
        let template = Template::parse(&text)
            .map_err(|mistake| failure(&mistake, 1, "template parsing error: "))?;
        let execute = |fields: Value, mode| {
            let row = typed(self.row, fields);
            template
                .execute(&row, mode)
                .map_err(|mistake| failure(&mistake, 1, "template parsing error: "))
        };
        let lines = rows
            .into_iter()
            .map(|row| {
                let row = json(&row)?;
                let row = if is_table { cells(row) } else { row };
                execute(row, Mode::Values)
            })
            .collect::<Outcome<Vec<_>>>()?;
        if !is_table {
            return Ok(lines.iter().map(|line| format!("{line}\n")).collect());
        }
        let headings = self
            .columns
            .iter()
            .map(|&(name, heading)| (name.to_owned(), Value::from(heading)))
            .collect();
        let all: Vec<String> = std::iter::once(execute(Value::Object(headings), Mode::Headings)?)
            .chain(lines)
            .collect();
        Ok(align(&all))
    }
}

/// Returns a row whose texts are cells: what an engine knows may come from anybody, and must neither break the table nor control the
/// terminal.
fn cells(row: Value) -> Value {
    match row {
        Value::String(text) => Value::String(one_line(&text)),
        Value::Array(items) => items.into_iter().map(cells).collect(),
        Value::Object(members) => {
            let members = members.into_iter();
            let members = members.map(|(key, value)| (one_line(&key), cells(value)));
            members.collect()
        }
        other => other,
    }
}

/// Aligns tab-separated lines to columns. A column is as wide as its widest cell; the last cell of
/// a line is not padded.
pub(crate) fn align(lines: &[String]) -> String {
    align_at_least(lines, MIN_WIDTH)
}

/// As [`align`], with columns of at least this many characters.
pub(crate) fn align_at_least(lines: &[String], min_width: usize) -> String {
    let rows: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split('\t').collect())
        .collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (index, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            let width = (cell.chars().count() + PADDING).max(min_width);
            match widths.get_mut(index) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (index, cell) in row.iter().enumerate() {
            text += cell;
            if index + 1 < row.len() {
                text += &" ".repeat(widths[index] - cell.chars().count());
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
    fn a_row_is_one_line() {
        #[derive(Serialize)]
        struct Row {
            #[serde(rename = "Name")]
            name: &'static str,
        }
        const TABLE: Table = Table {
            row: "*x.row",
            id: "Name",
            columns: &[("Name", "NAME")],
        };
        let row = || {
            vec![Row {
                name: "a\tb\nc\u{1b}[2J",
            }]
        };
        let text = |format: &str| TABLE.text(format, false, "{{.Name}}\t{{.Name}}", row());
        assert_eq!(
            text("").unwrap(),
            "NAME        NAME\na b c\u{fffd}[2J   a b c\u{fffd}[2J\n"
        );
        // For programs.
        assert_eq!(text("{{.Name}}").unwrap(), "a\tb\nc\u{1b}[2J\n");
        // Names of labels are from anybody, too.
        let labels = serde_json::json!({"Labels": {"a\u{1b}": ["b\n"]}});
        let expected = serde_json::json!({"Labels": {"a\u{fffd}": ["b "]}});
        assert_eq!(cells(labels), expected);
    }

    #[test]
    fn aligns_columns() {
        let lines = ["REPOSITORY\tTAG\tID".to_owned(), "b\tlatest\tx".to_owned()];
        assert_eq!(
            align(&lines),
            "REPOSITORY   TAG       ID\nb            latest    x\n"
        );
    }
}
