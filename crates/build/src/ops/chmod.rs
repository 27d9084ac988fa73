//! Symbolic modes (`--chmod=u+x,go=rX`), as in chmod(1) without a umask.

use crate::error::{Error, Result};

/// A parsed symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Symbolic(Vec<Change>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// The classes, as bits of user, group and others: 4, 2, 1.
    who: u32,
    operator: char,
    /// Permissions by letter, or the class that they are taken from.
    permissions: String,
}

/// The bits of `rwx` for each class, and its special bit: set-user-id, set-group-id, sticky.
const CLASSES: [(u32, u32, u32); 3] = [(4, 6, 0o4000), (2, 3, 0o2000), (1, 0, 0o1000)];

impl Symbolic {
    /// # Errors
    /// Returns an error for another form.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = || Error::invalid(format!("invalid mode {text:?} of --chmod"));
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let first = clause.find(['+', '-', '=']).ok_or_else(invalid)?;
            let (classes, mut rest) = clause.split_at(first);
            let mut who = 0;
            for class in classes.chars() {
                who |= match class {
                    'u' => 4,
                    'g' => 2,
                    'o' => 1,
                    'a' => 7,
                    _ => return Err(invalid()),
                };
            }
            while let Some(operator) = rest.chars().next() {
                let end = rest[1..]
                    .find(['+', '-', '='])
                    .map_or(rest.len(), |at| at + 1);
                let permissions = &rest[1..end];
                let are_letters = permissions.chars().all(|letter| "rwxXst".contains(letter));
                if !are_letters && !matches!(permissions, "u" | "g" | "o") {
                    return Err(invalid());
                }
                changes.push(Change {
                    who: if who == 0 { 7 } else { who },
                    operator,
                    permissions: permissions.to_owned(),
                });
                rest = &rest[end..];
            }
        }
        Ok(Self(changes))
    }

    /// Returns the permissions that a file with `mode` gets.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let mut mode = mode & 0o7777;
        for change in &self.0 {
            let before = mode;
            for (class, shift, special) in CLASSES {
                if change.who & class == 0 {
                    continue;
                }
                let mut all = change.bits(before, is_directory) << shift;
                // As in chmod(1): `s` is for users and groups, `t` for others.
                let letter = if class == 1 { 't' } else { 's' };
                if change.permissions.contains(letter) {
                    all |= special;
                }
                mode = match change.operator {
                    '+' => mode | all,
                    '-' => mode & !all,
                    _ => (mode & !(7 << shift) & !special) | all,
                };
            }
        }
        mode
    }
}

impl Change {
    /// Returns the bits of one class.
    fn bits(&self, mode: u32, is_directory: bool) -> u32 {
        match self.permissions.as_str() {
            "u" => return (mode >> 6) & 7,
            "g" => return (mode >> 3) & 7,
            "o" => return mode & 7,
            _ => {}
        }
        let mut bits = 0;
        for letter in self.permissions.chars() {
            bits |= match letter {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                'X' if is_directory || mode & 0o111 != 0 => 1,
                _ => 0,
            };
        }
        bits
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_chmod() {
        let check = |text: &str, mode: u32, is_directory: bool, expected: u32| {
            let found = Symbolic::parse(text).unwrap().apply(mode, is_directory);
            assert_eq!(
                format!("{found:o}"),
                format!("{expected:o}"),
                "{text} {mode:o}"
            );
        };
        check("u+x", 0o644, false, 0o744);
        check("+x", 0o644, false, 0o755);
        check("a=rX", 0o640, false, 0o444);
        check("a=rX", 0o640, true, 0o555);
        check("u=rwX,go=rX", 0o755, false, 0o755);
        check("go-w+x", 0o666, false, 0o655);
        check("g=u,o=", 0o750, false, 0o770);
        check("u+s,g+s", 0o755, false, 0o6755);
        check("+t", 0o777, true, 0o1777);
        check("u-s", 0o4755, false, 0o755);
        for wrong in ["", "x", "u+q", "z+x", "u", "u+ux"] {
            assert!(Symbolic::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
