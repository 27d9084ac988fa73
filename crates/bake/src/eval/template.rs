//! Templates: texts with `${…}` and `%{…}`.

use hcl_edit::template::{Directive, Element, Strip, Template};

use super::{Evaluated, Scope, entries};
use crate::error::Problem;
use crate::value::Value;

/// Which sides of a sequence lose their spaces.
fn strips(strip: Strip) -> (bool, bool) {
    match strip {
        Strip::None => (false, false),
        Strip::Start => (true, false),
        Strip::End => (false, true),
        Strip::Both => (true, true),
    }
}

/// Returns whether an element strips what is before it, and what is behind it.
fn outer(element: &Element) -> (bool, bool) {
    match element {
        Element::Literal(_) => (false, false),
        Element::Interpolation(part) => strips(part.strip),
        Element::Directive(directive) => match &**directive {
            Directive::If(part) => (
                strips(part.if_expr.strip).0,
                strips(part.endif_expr.strip).1,
            ),
            Directive::For(part) => (
                strips(part.for_expr.strip).0,
                strips(part.endfor_expr.strip).1,
            ),
        },
    }
}

impl Scope<'_> {
    /// Returns a template's text; the value itself if it is a single interpolation.
    pub(super) fn template<'t>(self, elements: impl Iterator<Item = &'t Element>) -> Evaluated {
        let elements: Vec<&Element> = elements.collect();
        if let [Element::Interpolation(only)] = elements.as_slice() {
            return self.value(&only.expr);
        }
        self.text(&elements, (false, false)).map(Value::String)
    }

    /// Returns the text of elements between others that strip spaces.
    fn text(self, elements: &[&Element], between: (bool, bool)) -> Result<String, Problem> {
        let mut text = String::new();
        for (number, element) in elements.iter().enumerate() {
            match element {
                Element::Literal(literal) => {
                    // Also for the spaces that it loses.
                    self.names.pay_for(literal.value())?;
                    let before = match number.checked_sub(1) {
                        Some(before) => outer(elements[before]).1,
                        None => between.0,
                    };
                    let after = elements.get(number + 1);
                    let after = after.map_or(between.1, |after| outer(after).0);
                    let mut literal = literal.value().as_str();
                    if before {
                        literal = literal.trim_start();
                    }
                    if after {
                        literal = literal.trim_end();
                    }
                    text += literal;
                }
                Element::Interpolation(part) => {
                    let part_text = self.value(&part.expr)?.text().map_err(|cause| {
                        let text = format!(
                            "Cannot include the given value in a string template: {cause}."
                        );
                        let problem = Problem::new("Invalid template interpolation value", text);
                        problem.at(self.file, self.place(&part.expr))
                    })?;
                    text += &part_text;
                }
                Element::Directive(directive) => text += &self.directive(directive)?,
            }
            if !self.names.spend(text.len() / 64) {
                return Err(Problem::new(
                    "Expression too complex",
                    "its text is too long",
                ));
            }
        }
        Ok(text)
    }

    fn directive(self, directive: &Directive) -> Result<String, Problem> {
        match directive {
            Directive::If(part) => {
                let first = &part.if_expr;
                let last = strips(part.endif_expr.strip).0;
                if self.condition(&first.cond_expr)? {
                    let end = part.else_expr.as_ref();
                    let end = end.map_or(last, |part| strips(part.strip).0);
                    return self.inner(&first.template, (strips(first.strip).1, end));
                }
                match &part.else_expr {
                    Some(part) => self.inner(&part.template, (strips(part.strip).1, last)),
                    None => Ok(String::new()),
                }
            }
            Directive::For(part) => {
                let intro = &part.for_expr;
                let collection = self.value(&intro.collection_expr)?;
                let entries = entries(collection)
                    .map_err(|problem| problem.at(self.file, self.place(&intro.collection_expr)))?;
                let between = (strips(intro.strip).1, strips(part.endfor_expr.strip).0);
                let mut own = self.names.copy_all(self.own)?;
                let mut text = String::new();
                for (key, value) in entries {
                    if let Some(name) = &intro.key_var {
                        self.names.pay_for(name.as_str())?;
                        own.insert(name.as_str().to_owned(), key);
                    }
                    self.names.pay_for(intro.value_var.as_str())?;
                    own.insert(intro.value_var.as_str().to_owned(), value);
                    text += &Scope { own: &own, ..self }.inner(&intro.template, between)?;
                }
                Ok(text)
            }
        }
    }

    fn inner(self, template: &Template, between: (bool, bool)) -> Result<String, Problem> {
        let elements: Vec<&Element> = template.iter().collect();
        self.text(&elements, between)
    }
}
