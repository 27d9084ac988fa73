//! Compression as gzip (RFC 1952) with ISA-L, Intel's library in assembly language.

use std::io;

use isal_sys::igzip_lib::{
    COMP_OK, IGZIP_GZIP, ISAL_DEF_LVL2_DEFAULT, isal_deflate_stateless,
    isal_deflate_stateless_init, isal_zstream,
};

/// The other levels are no better: 1 takes an eighth less time for blobs that are 8 % larger, 3 a third
/// more time for the same size, and its output depends on the processor.
const LEVEL: u32 = 2;
/// Size of the library's working memory for the level in bytes.
const BUFFER: u32 = ISAL_DEF_LVL2_DEFAULT;
#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const GZIP: u16 = IGZIP_GZIP as u16;
/// Size of header and trailer of a gzip member.
const FRAME: usize = 10 + 8;
/// Maximum length of a stored block of deflate, and the size of its header.
const STORED: usize = 65535;
const STORED_HEADER: usize = 5;

/// Compresses pieces of content, one after the other, in 400 KB of memory and that for the largest
/// piece.
///
/// The output is the same on all x86-64 processors with SSE 4.2, and another one on those without and
/// on other architectures.
#[derive(Debug)]
pub struct Compressor {
    stream: Box<isal_zstream>,
    /// The library's working memory. It has tables of integers.
    buffer: Vec<u64>,
    output: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        // SAFETY: the fields of the struct are integers, pointers, and arrays and structs of these, for
        // all of which zero is valid.
        let stream = unsafe { Box::new(std::mem::zeroed()) };
        Self {
            stream,
            buffer: vec![0; (BUFFER as usize).div_ceil(size_of::<u64>())],
            output: Vec::new(),
        }
    }
}

impl Compressor {
    /// Returns `content` as a complete gzip member, without a name and a time. Content that does not
    /// compress is stored.
    ///
    /// # Errors
    /// Returns an error if the content has 4 GiB or more.
    pub fn compress(&mut self, content: &[u8]) -> io::Result<Vec<u8>> {
        let most = content.len() + STORED_HEADER * content.len().div_ceil(STORED).max(1) + FRAME;
        let (Ok(length), Ok(available)) = (u32::try_from(content.len()), u32::try_from(most))
        else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        if self.output.len() < most {
            self.output.resize(most, 0);
        }
        let stream = &mut *self.stream;
        // SAFETY: `stream` is valid for writes, which is all that the function needs.
        unsafe { isal_deflate_stateless_init(stream) };
        stream.level = LEVEL;
        stream.level_buf = self.buffer.as_mut_ptr().cast();
        stream.level_buf_size = BUFFER;
        stream.gzip_flag = GZIP;
        stream.end_of_stream = 1;
        stream.next_in = content.as_ptr().cast_mut();
        stream.avail_in = length;
        stream.next_out = self.output.as_mut_ptr();
        stream.avail_out = available;
        // SAFETY: `stream` is initialized. Its pointers are valid during the call for as many bytes as the
        // fields beside them say; the library does not write to the input, and nothing else refers to
        // the output and to the working memory, whose alignment is that of its largest integers.
        let status = unsafe { isal_deflate_stateless(stream) };
        if u32::try_from(status) != Ok(COMP_OK) {
            return Err(io::Error::other(format!("ISA-L has failed with {status}")));
        }
        Ok(self.output[..stream.total_out as usize].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_content_does_not_change_the_output() {
        let noise: Vec<u8> = (0_u64..300_000)
            .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let text: Vec<u8> = (0_u32..50_000)
            .flat_map(|n| format!("line {n}, {}\n", n.wrapping_mul(n)).into_bytes())
            .collect();
        let mut used = Compressor::default();
        let contents = [
            &noise[..],
            &text,
            b"",
            b"a",
            &[0; 70_000],
            &text[..1000],
            &noise[7..],
        ];
        for content in contents.into_iter().chain(contents.into_iter().rev()) {
            let fresh = Compressor::default().compress(content).unwrap();
            assert!(
                used.compress(content).unwrap() == fresh,
                "{} bytes",
                content.len()
            );
            let trailer = u32::try_from(content.len()).unwrap().to_le_bytes();
            assert_eq!(fresh[fresh.len() - 4..], trailer);
            assert_eq!(fresh[..3], [0x1f, 0x8b, 8]);
        }
    }

    #[test]
    fn content_that_does_not_compress_grows_by_its_frame_only() {
        let mut state = 1_u64;
        let noise: Vec<u8> = (0..STORED * 3 + 1)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect();
        for length in [1, 100, STORED, STORED + 1, noise.len()] {
            let compressed = Compressor::default().compress(&noise[..length]).unwrap();
            let most = length + length.div_ceil(STORED) * STORED_HEADER + FRAME;
            assert!(compressed.len() <= most, "{length}: {}", compressed.len());
        }
        assert!(Compressor::default().compress(&[7; 1 << 20]).unwrap().len() < 8000);
    }

    /// Without this output, layers that were pushed are compressed and sent again to registries that
    /// have them.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_output_is_that_of_all_processors_with_sse_4_2() {
        if !is_x86_feature_detected!("sse4.2") {
            return;
        }
        let text: Vec<u8> = (0_u32..50_000)
            .flat_map(|n| format!("line {n}, {}\n", n.wrapping_mul(n)).into_bytes())
            .collect();
        let output = Compressor::default().compress(&text).unwrap();
        let sum = output.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!((output.len(), sum), (360_183, 6_265_725_101_598_601_752));
    }
}
