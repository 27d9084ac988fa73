//! Copies content through large buffers: fewer system calls than with `std::io::copy`, and fewer calls of
//! decoders, for which small pieces are expensive.

use std::io::{self, Read, Write};

/// Returns a buffer for [`copy`].
pub(crate) fn buffer() -> Vec<u8> {
    const SIZE: usize = 256 << 10;
    vec![0; SIZE]
}

/// Copies `input` to `output`, and returns the number of bytes. What fits into the buffer is written at
/// once.
pub(crate) fn copy(
    input: &mut impl Read,
    output: &mut impl Write,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok(copied);
        }
        output.write_all(&buffer[..filled])?;
        copied += filled as u64;
    }
}
