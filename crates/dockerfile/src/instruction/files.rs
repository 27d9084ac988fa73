//! ADD and COPY.

use super::flags::{Flags, Kind};
use crate::error::{Error, Result};
use crate::expand::Lexer;
use crate::heredoc::{self, Heredoc};
use crate::parser::Line;

/// What ADD and COPY have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Paths, patterns, and for ADD also URLs.
    pub sources: Vec<String>,
    /// Files whose content is in the Dockerfile.
    pub documents: Vec<Heredoc>,
    pub destination: String,
    pub chown: String,
    /// An octal number, or a mode in chmod's symbolic form.
    pub chmod: String,
    pub link: bool,
    pub exclude: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Add {
    pub files: Files,
    pub keep_git_dir: Option<bool>,
    pub checksum: String,
    pub unpack: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    pub files: Files,
    /// A stage, its number, an image or a named context; empty for the build's context.
    pub from: String,
    pub parents: bool,
}

const COMMON: [(&str, Kind); 4] = [
    ("chown", Kind::One),
    ("chmod", Kind::One),
    ("link", Kind::Bool),
    ("exclude", Kind::Many),
];

impl Add {
    pub(super) fn parse(line: &Line) -> Result<Self> {
        let own = [
            ("keep-git-dir", Kind::Bool),
            ("checksum", Kind::One),
            ("unpack", Kind::Bool),
        ];
        let (files, flags) = files(line, "ADD", &own)?;
        Ok(Self {
            files,
            keep_git_dir: flags.bool("keep-git-dir"),
            checksum: flags.get("checksum").to_owned(),
            unpack: flags.bool("unpack"),
        })
    }
}

impl Copy {
    pub(super) fn parse(line: &Line) -> Result<Self> {
        let own = [("from", Kind::One), ("parents", Kind::Bool)];
        let (files, flags) = files(line, "COPY", &own)?;
        Ok(Self {
            files,
            from: flags.get("from").to_owned(),
            parents: flags.bool("parents").unwrap_or_default(),
        })
    }
}

fn files<'a>(
    line: &'a Line,
    name: &str,
    own: &[(&'static str, Kind)],
) -> Result<(Files, Flags<'a>)> {
    let (destination, sources) = match line.arguments.split_last() {
        Some((destination, sources)) if !sources.is_empty() => (destination, sources),
        _ => {
            return Err(Error::new(format!(
                "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
            )));
        }
    };
    let known = [&COMMON[..], own].concat();
    let flags = Flags::read(&line.flags, &known)?;
    // A name with an unterminated quote is a path.
    let document = |word: &str| heredoc::parse(word).ok().flatten();
    if document(destination).is_some() {
        return Err(Error::new(format!(
            "{name} cannot accept a heredoc as a destination"
        )));
    }
    let mut files = Files {
        destination: destination.clone(),
        chown: flags.get("chown").to_owned(),
        chmod: flags.get("chmod").to_owned(),
        link: flags.bool("link").unwrap_or_default(),
        exclude: flags.list("exclude"),
        ..Files::default()
    };
    for source in sources {
        let Some(mut found) = document(source) else {
            files.sources.push(source.clone());
            continue;
        };
        // Of several with one name, the last one counts.
        let content = line.heredocs.iter().rfind(|doc| doc.name == found.name);
        found.content = content.map(|doc| doc.content.clone()).unwrap_or_default();
        files.documents.push(found);
    }
    Ok((files, flags))
}

impl Files {
    pub(super) fn expand(&mut self, lexer: &mut super::Expander<'_>) -> Result<()> {
        lexer.word(&mut self.chown)?;
        lexer.word(&mut self.chmod)?;
        for source in &mut self.sources {
            lexer.word(source)?;
        }
        lexer.word(&mut self.destination)?;
        for document in self.documents.iter_mut().filter(|doc| doc.expand) {
            let inner = lexer.lexer;
            let mut keep = inner.keep;
            keep.quotes_are_text = true;
            let lexer_of_documents = Lexer {
                escape: '\\',
                keep,
                ..inner
            };
            document.content = lexer_of_documents.word_noting(&document.content, lexer.unset)?;
        }
        Ok(())
    }
}
