//! Lists as tables, templates or JSON, as `--format` says.

use serde_json::{Map, Value};

use super::template::Template;
use crate::Outcome;

/// A column: the field's name in templates and its heading.
pub(crate) type Column = (&'static str, &'static str);

/// Cells no narrower than this, and this far apart: Docker's numbers.
const LEAST_WIDTH: usize = 10;
const PADDING: usize = 3;

/// Prints rows of fields. `default` is the template for a table; all `columns` may be named in `--format`.
pub(crate) fn print(format: &str, quiet: bool, default: &str, id: &str, columns: &[Column], rows: &[Map<String, Value>]) -> Outcome<()> {
    let format = match format {
        "" | "table" if quiet => format!("{{{{.{id}}}}}"),
        "" | "table" => format!("table {default}"),
        "json" => "{{json .}}".to_owned(),
        other => other.to_owned(),
    };
    let parse = |text: &str| Template::parse(text).map_err(|failure| crate::Failure { code: 1, ..failure });
    let mut lines = Vec::new();
    let template = match format.strip_prefix("table ") {
        Some(table) => {
            // Typed on a command line, a tab is two characters.
            let template = parse(&table.replace("\\t", "\t").replace("\\n", "\n"))?;
            let headings: Map<String, Value> = columns.iter().map(|&(name, heading)| (name.to_owned(), Value::from(heading))).collect();
            lines.push(template.execute(&Value::Object(headings))?);
            template
        }
        None => parse(&format.replace("\\t", "\t").replace("\\n", "\n"))?,
    };
    for row in rows {
        lines.push(template.execute(&Value::Object(row.clone()))?);
    }
    print_text(&align(&lines));
    Ok(())
}

/// Prints without dying when the reader has gone.
pub(crate) fn print_text(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Lines with tabs as columns. A column is as wide as its widest cell; the last cell of a line is not padded.
pub(crate) fn align(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (index, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            let width = (cell.chars().count() + PADDING).max(LEAST_WIDTH);
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
    fn columns_line_up() {
        let lines = ["REPOSITORY\tTAG\tID".to_owned(), "b\tlatest\tx".to_owned()];
        assert_eq!(align(&lines), "REPOSITORY   TAG       ID\nb            latest    x\n");
    }
}
