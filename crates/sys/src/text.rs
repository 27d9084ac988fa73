//! What processes say of themselves, for people to read.

/// The words of a process's `cmdline` on one line.
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

/// A text without what would be a command to the terminal it is shown on: `?` for each byte of that
/// and of what is not UTF-8, as `ps` has it.
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

    /// As `docker top` shows the same process.
    #[test]
    fn names_are_no_commands_to_a_terminal() {
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
