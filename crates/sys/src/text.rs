//! Printable forms of process names and command lines.

/// Returns the arguments in a process's `cmdline` on one line, separated by spaces.
pub fn command_line(mut words: Vec<u8>) -> String {
    words.truncate(
        words
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1),
    );
    words
        .iter_mut()
        .filter(|byte| matches!(byte, 0 | b'\n'))
        .for_each(|byte| *byte = b' ');
    printable(&words)
}

/// Replaces each byte of control characters and of invalid UTF-8 by `?`, like `ps`, so that the
/// text cannot contain terminal escape sequences.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() {
                text.extend(std::iter::repeat_n('?', letter.len_utf8()))
            } else {
                text.push(letter)
            }
        }
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected text is what `docker top` shows for the same process.
    #[test]
    fn replaces_control_characters() {
        assert_eq!(
            command_line(b"sh\0-c\0x\x1b[31mb\tc\nd\xc3\xa9\xffe\x7f\0\0".to_vec()),
            "sh -c x?[31mb?c d\u{e9}?e?"
        );
        assert_eq!(
            printable(b"a\x1bb\nc\td\xc2\x85e\xe2\x80\xaef\xff"),
            "a?b?c?d??e\u{202e}f?"
        );
        assert_eq!(command_line(Vec::new()), "");
    }
}
