//! Archives whose last file is not filled up to a block: Docker's client sends such contexts when the Dockerfile comes from
//! its input.

use std::io::{self, Read};

const BLOCK: usize = 512;

/// Adds the zeros that are missing behind the last file of a plain archive. A file that is cut itself stays cut.
pub(crate) struct Padded<R> {
    input: R,
    header: Vec<u8>,
    /// Bytes of the current file, and of zeros behind it, that are still to come.
    content: u64,
    padding: u64,
    /// Behind the end-of-archive marker.
    is_over: bool,
}

impl<R> Padded<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            header: Vec::with_capacity(BLOCK),
            content: 0,
            padding: 0,
            is_over: false,
        }
    }

    /// Follows the bytes that pass.
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_over {
            let part = if self.content > 0 {
                self.content
            } else if self.padding > 0 {
                self.padding
            } else {
                (BLOCK - self.header.len()) as u64
            };
            let count = usize::try_from(part).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at(count);
            bytes = rest;
            if self.content > 0 {
                self.content -= count as u64;
            } else if self.padding > 0 {
                self.padding -= count as u64;
            } else {
                self.header.extend_from_slice(now);
                if self.header.len() == BLOCK {
                    self.begin();
                }
            }
        }
    }

    /// Reads the header of an entry.
    fn begin(&mut self) {
        const KIND: usize = 156;
        let header = tar_size(&self.header);
        self.is_over = self.header.iter().all(|byte| *byte == 0);
        // Links, devices and directories have no content, whatever size they have.
        let has_content = !matches!(self.header[KIND], b'1'..=b'6');
        self.content = header.filter(|_| has_content).unwrap_or(0);
        self.padding = self.content.next_multiple_of(BLOCK as u64) - self.content;
        self.header.clear();
    }
}

/// Returns the size in a header: octal digits, or a binary number; `None` for another form.
fn tar_size(header: &[u8]) -> Option<u64> {
    let field = &header[124..136];
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(4);
        let number = <[u8; 8]>::try_from(low).ok().map(u64::from_be_bytes);
        let is_small = high == [0x80, 0, 0, 0];
        return number.filter(|size| is_small && *size <= u64::MAX / 2);
    }
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

impl<R: Read> Read for Padded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if count > 0 {
            self.pass(&buffer[..count]);
            return Ok(count);
        }
        if self.content > 0 {
            return Ok(0);
        }
        let zeros = usize::try_from(self.padding).unwrap_or(0).min(buffer.len());
        buffer[..zeros].fill(0);
        self.padding -= zeros as u64;
        Ok(zeros)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn header(size: &[u8], kind: u8) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[0] = b'x';
        header[124..124 + size.len()].copy_from_slice(size);
        header[156] = kind;
        header
    }

    #[test]
    fn only_padding_is_added() {
        let check = |archive: &[u8], expected: usize| {
            let mut all = Vec::new();
            Padded::new(archive).read_to_end(&mut all).unwrap();
            assert_eq!(all.len(), expected);
            assert!(all.starts_with(archive));
        };
        let file = header(b"00000000005\0", b'0');
        check(&[&file[..], b"12345"].concat(), 1024);
        check(&[&file[..], b"1234"].concat(), 516);
        check(&[&file[..], b"12345", &[0; 507]].concat(), 1024);
        check(&file, 512);
        check(
            &[&header(b"00000000005\0", b'5')[..], &file, b"12345"].concat(),
            1536,
        );
        check(&[&[0; 1024][..], b"rest"].concat(), 1028);
        let binary = header(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5], b'0');
        check(&[&binary[..], b"12345"].concat(), 1024);
        check(b"", 0);
    }
}
