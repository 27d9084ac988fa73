//! Asks before a removal.

/// Asks for confirmation of a removal. Returns `false` without a terminal.
pub(crate) fn confirmed(what: &str) -> bool {
    asked(&format!(
        "WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] "
    ))
}

/// Asks a yes/no question. Returns `false` without a terminal.
pub(crate) fn asked(question: &str) -> bool {
    use std::io::IsTerminal;
    crate::output::warn(question);
    let mut answer = String::new();
    std::io::stdin().is_terminal()
        && std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y")
}
