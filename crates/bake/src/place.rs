//! Places of expressions that come from JSON. `hcl-edit` sets the spans of what it has parsed only, so the place is kept as the blanks
//! and comments before an expression, which nothing reads here, and which JSON does not have.

use std::ops::Range;

use hcl_edit::Decorate;
use hcl_edit::expr::Expression;

/// Notes where an expression is.
pub(crate) fn note(expression: &mut Expression, span: &Range<usize>) {
    let text = format!("{}..{}", span.start, span.end);
    expression.decor_mut().set_prefix(text);
}

/// Returns the place that was noted.
pub(crate) fn noted(expression: &Expression) -> Option<Range<usize>> {
    let text: &str = expression.decor().prefix()?;
    let (start, end) = text.split_once("..")?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_noted() {
        let mut expression = Expression::null();
        assert_eq!(noted(&expression), None);
        note(&mut expression, &(12..345));
        assert_eq!(noted(&expression), Some(12..345));
        let parsed: Expression = "x".parse().unwrap();
        assert_eq!(noted(&parsed), None);
    }
}
