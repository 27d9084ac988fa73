//! Words of a shell's command line.

/// Splits a line into words as a shell does. Returns the complete words and the one being typed.
pub fn split(line: &str) -> (Vec<String>, String) {
    let (mut words, mut word, mut open) = (Vec::new(), String::new(), false);
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => word.extend(letters.next()),
            (letter, Some(quoted)) if letter == quoted => quote = None,
            ('"' | '\'', None) => (quote, open) = (Some(letter), true),
            (letter, None) if letter.is_whitespace() => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (letter, _) => word.push(letter),
        }
    }
    (words, word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_lines_as_a_shell_does() {
        let words = |line: &str| {
            let (words, typed) = split(line);
            format!("{}|{typed}", words.join("|"))
        };
        assert_eq!(
            words("whelk run -e 'A b' x\\ y \"q\" "),
            "whelk|run|-e|A b|x y|q|"
        );
        assert_eq!(words("whelk rm ab"), "whelk|rm|ab");
    }
}
