//! The structure of a file, from HCL or from JSON.

mod from_json;
mod json;
mod mistakes;

use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Body as HclBody, Structure};

use crate::error::{Error, Result};

/// The maximum size of a file in bytes.
const MAX_FILE: usize = 4 << 20;

/// The maximum number of blocks and attributes of all files.
const MAX_ITEMS: usize = 50_000;

#[derive(Debug, Default)]
pub(crate) struct Body {
    pub attributes: Vec<Attribute>,
    pub blocks: Vec<Block>,
}

#[derive(Debug)]
pub(crate) struct Attribute {
    pub name: String,
    pub value: Expression,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub kind: String,
    pub labels: Vec<(String, Option<Range<usize>>)>,
    pub span: Option<Range<usize>>,
    pub body: Body,
}

impl Body {
    /// Returns the last attribute of a name.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().rev().find(|own| own.name == name)
    }
}

/// Reads a file: JSON if it begins as an object.
pub(crate) fn parse(files: &[(String, String)], number: usize) -> Result<Body> {
    let Some((name, content)) = files.get(number) else {
        return Ok(Body::default());
    };
    if content.len() > MAX_FILE {
        let text = format!("{name} has more than {MAX_FILE} bytes");
        return Err(Error::new(text));
    }
    let is_json = content.trim_start().starts_with('{') && !name.ends_with(".hcl");
    match is_json || name.ends_with(".json") {
        true => from_json::body(files, number, content),
        false => {
            let parsed = hcl_edit::parser::parse_body(content).map_err(|error| {
                let offset = error.location().offset();
                mistakes::explained(files, number, offset, error.message()).error(files)
            })?;
            let mut count = 0;
            hcl(parsed, &mut count).map_err(|text| Error::new(format!("{name}: {text}")))
        }
    }
}

fn counted(count: &mut usize) -> std::result::Result<(), String> {
    *count += 1;
    match *count > MAX_ITEMS {
        true => Err(format!("more than {MAX_ITEMS} definitions")),
        false => Ok(()),
    }
}

fn hcl(parsed: HclBody, count: &mut usize) -> std::result::Result<Body, String> {
    let mut body = Body::default();
    for structure in parsed {
        counted(count)?;
        match structure {
            Structure::Attribute(attribute) => body.attributes.push(Attribute {
                name: attribute.key.as_str().to_owned(),
                value: attribute.value,
            }),
            Structure::Block(block) => {
                let labels = block.labels.iter();
                let labels = labels.map(|label| (label.as_str().to_owned(), label.span()));
                body.blocks.push(Block {
                    kind: block.ident.as_str().to_owned(),
                    labels: labels.collect(),
                    span: block.ident.span(),
                    body: hcl(block.body, count)?,
                });
            }
        }
    }
    Ok(body)
}
