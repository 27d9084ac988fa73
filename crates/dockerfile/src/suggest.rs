//! Suggestions for misspelled names.

/// Edit distance from which on a name is not similar.
const TOO_FAR: usize = 3;

/// Names longer than this have no suggestions, because the time that a comparison takes is the product of both
/// lengths.
const LONGEST: usize = 128;

/// Returns the first of the `options` with the smallest edit distance to `written`, if that is at most 2;
/// `None` if one of them is equal.
pub fn similar<'a>(
    written: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    if written.len() > LONGEST {
        return None;
    }
    let normal = |text: &str| {
        if case_sensitive {
            text.to_owned()
        } else {
            text.to_lowercase()
        }
    };
    let wanted = normal(written);
    let mut best: Option<(usize, String)> = None;
    for option in options {
        if option.len() > LONGEST {
            continue;
        }
        let option = normal(option);
        if option == wanted {
            return None;
        }
        let distance = distance(&wanted, &option);
        if distance < best.as_ref().map_or(TOO_FAR, |(least, _)| *least) {
            best = Some((distance, option));
        }
    }
    let (_, found) = best?;
    if case_sensitive {
        Some(found)
    } else if written == written.to_uppercase() && written != written.to_lowercase() {
        Some(found.to_uppercase())
    } else {
        Some(found)
    }
}

/// Returns the Levenshtein distance.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, wanted) in other.iter().enumerate() {
            let above = row[column + 1];
            let replaced = diagonal + usize::from(letter != *wanted);
            row[column + 1] = replaced.min(above + 1).min(row[column] + 1);
            diagonal = above;
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_similar_names() {
        for (written, options, case_sensitive, expected) in [
            ("chown", vec!["chmod", "from"], true, None),
            ("chmo", vec!["chown", "chmod"], true, Some("chmod")),
            ("chownn", vec!["chown", "chmod"], true, Some("chown")),
            ("FORM", vec!["FROM", "RUN"], false, Some("FROM")),
            ("form", vec!["FROM"], false, Some("from")),
            ("form", vec!["FROM"], true, None),
            ("entirely", vec!["other"], true, None),
            ("from", vec!["from", "fromm"], true, None),
        ] {
            let found = similar(written, options, case_sensitive);
            assert_eq!(found.as_deref(), expected, "{written}");
        }
    }
}
