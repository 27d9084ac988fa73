//! Heredocs: `<<EOF`, `<<-EOF`, `<<"EOF"`.

use crate::error::Result;
use crate::expand::{Budget, Environment, Keep, Lexer};

/// A heredoc of an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, without quotes.
    pub name: String,
    /// Whether variables are replaced: the word has no quotes.
    pub expand: bool,
    /// Whether leading tabs are removed: it begins with `<<-`.
    pub strip_tabs: bool,
    /// The lines up to the one that ends it.
    pub content: String,
}

impl Heredoc {
    /// Returns the content, without leading tabs if it is to have none.
    pub fn stripped(&self) -> String {
        strip(&self.content, self.strip_tabs)
    }
}

/// Removes the tabs at the beginning of each line.
pub(crate) fn strip(content: &str, tabs: bool) -> String {
    if !tabs {
        return content.to_owned();
    }
    let lines = content.split_inclusive('\n');
    lines.map(|line| line.trim_start_matches('\t')).collect()
}

/// Parses a word such as `<<EOF`. Returns `None` if it is no heredoc.
///
/// # Errors
/// Returns an error if the name has an unterminated quote.
pub fn parse(word: &str) -> Result<Option<Heredoc>> {
    let rest = word.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let Some(rest) = rest.strip_prefix("<<") else {
        return Ok(None);
    };
    let (strip_tabs, rest) = rest
        .strip_prefix('-')
        .map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let (environment, budget) = (Environment::default(), Budget::default());
    let mut lexer = Lexer::new('\\', &environment, &budget);
    lexer.keep.unset = true;
    let words = lexer.words(rest)?;
    lexer.keep.quotes = true;
    let raw = lexer.words(rest)?;
    let ([name], [raw]) = (words.as_slice(), raw.as_slice()) else {
        return Ok(None);
    };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        expand: quotes(name) == quotes(raw),
        strip_tabs,
        content: String::new(),
    }))
}

/// Returns the heredocs that a line begins, without their content.
pub(crate) fn of_line(line: &str) -> Result<Vec<Heredoc>> {
    let (environment, budget) = (Environment::default(), Budget::default());
    let lexer = Lexer {
        keep: Keep {
            quotes: true,
            escapes: true,
            unset: true,
            quotes_are_text: false,
        },
        ..Lexer::new('\\', &environment, &budget)
    };
    // A line that is no sequence of words for the lexer may be one for the shell.
    let words = lexer.words(line).unwrap_or_default();
    let parsed = words.iter().map(|word| parse(word));
    Ok(parsed
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_words() {
        for (word, expected) in [
            ("<<EOF", Some(("EOF", true, false))),
            ("<<-EOF", Some(("EOF", true, true))),
            ("<<\"EOF\"", Some(("EOF", false, false))),
            ("<<'E O F'", Some(("E O F", false, false))),
            ("<<E\"O\"F", Some(("EOF", false, false))),
            ("<< EOF", Some(("EOF", true, false))),
            ("3<<EOF", Some(("EOF", true, false))),
            ("<<$EOF", Some(("$EOF", true, false))),
            ("<<<EOF", None),
            ("<<", None),
            ("<EOF", None),
            ("a<<EOF", None),
            ("<<a b", None),
        ] {
            let found = parse(word).unwrap_or_else(|error| panic!("{word}: {error}"));
            let found = found
                .as_ref()
                .map(|doc| (doc.name.as_str(), doc.expand, doc.strip_tabs));
            assert_eq!(found, expected, "{word}");
        }
        assert!(parse("<<'EOF").is_err());
    }

    #[test]
    fn finds_those_of_a_line() {
        let names = |line: &str| -> Vec<String> {
            let found = of_line(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            found.into_iter().map(|doc| doc.name).collect()
        };
        assert_eq!(names("RUN cat <<A <<-B > x"), ["A", "B"]);
        assert_eq!(names("RUN echo \"<<A\""), Vec::<String>::new());
        assert_eq!(names("RUN cat <<< A"), Vec::<String>::new());
        assert_eq!(names("RUN echo 'unterminated <<A"), Vec::<String>::new());
        assert_eq!(names("COPY <<a.txt <<b.txt /x/"), ["a.txt", "b.txt"]);
    }
}
