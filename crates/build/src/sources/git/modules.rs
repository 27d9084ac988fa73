//! The file `.gitmodules`.

use std::collections::HashMap;

/// A submodule of a commit.
#[derive(Debug)]
pub(super) struct Submodule {
    pub path: String,
    pub url: String,
    pub commit: String,
}

/// Returns the URLs of submodules by their paths.
pub(super) fn parse(text: &str) -> HashMap<String, String> {
    let mut all = HashMap::new();
    let (mut path, mut url) = (String::new(), String::new());
    let mut is_module = false;
    for line in text.lines().chain(["["]) {
        let line = line.trim();
        if line.starts_with('[') {
            if is_module && !path.is_empty() && !url.is_empty() {
                all.insert(std::mem::take(&mut path), std::mem::take(&mut url));
            }
            path.clear();
            url.clear();
            is_module = line.to_ascii_lowercase().starts_with("[submodule ");
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        match name.trim().to_ascii_lowercase().as_str() {
            "path" => path = value_of(value).trim_matches('/').to_owned(),
            "url" => url = value_of(value),
            _ => {}
        }
    }
    all
}

/// Returns a value without its quotes and without a comment.
fn value_of(text: &str) -> String {
    let mut value = String::new();
    let mut is_quoted = false;
    let mut letters = text.trim().chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => is_quoted = !is_quoted,
            '\\' => value.extend(letters.next().map(|letter| match letter {
                'n' => '\n',
                't' => '\t',
                other => other,
            })),
            '#' | ';' if !is_quoted => break,
            letter => value.push(letter),
        }
    }
    value.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_parsed() {
        let text = "# comment\n[core]\n\tpath = x\n[submodule \"a\"]\n\tpath = lib/a/\n\turl = \"https://h/a.git\" ; x\n\
            [Submodule \"b\"]\nURL=../b\npath=b\n[submodule \"c\"]\npath = c\n";
        let found = parse(text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            found.get("lib/a").map(String::as_str),
            Some("https://h/a.git")
        );
        assert_eq!(found.get("b").map(String::as_str), Some("../b"));
    }
}
