//! Streams that are truncated, damaged, or decompress without end.

use std::io::{self, Read};

use crate::check_refused;
use crate::common::{
    Bench, apply, bzip2, compressed_by, dir, file, gzip, noise, pack, pack_open, symlink, xz,
    zstandard,
};
use whelk_image::compression::decompress;
use whelk_image::{Digest, Error};

/// Wherever a stream is truncated, a partial file must not be accepted as complete.
#[test]
fn rejects_truncated_archives() {
    let archive = pack(&[
        file("a", noise(700)),
        dir("d/").xattr("user.x", "y"),
        file("d/b", noise(2000)),
        symlink("l", "a"),
    ]);
    let bench = Bench::new();
    for length in (1..archive.len())
        .step_by(61)
        .chain((512..archive.len()).step_by(512))
    {
        let cut = &archive[..length];
        match apply(&bench.store, cut, None) {
            // Truncated between two entries, it is an archive without an end-of-archive marker.
            Ok(layer) => {
                assert_eq!(layer.diff_id, Digest::of(cut), "{length}");
                assert!(
                    length % 512 == 0 || length > archive.len() - 1024,
                    "{length}"
                );
                bench
                    .store
                    .staging
                    .discard(&bench.store.snapshots.path(&layer.diff_id))
                    .unwrap();
            }
            Err(Error::Invalid(_)) => {}
            Err(error) => panic!("{length}: {error}"),
        }
        // The expected digest detects truncation in any case.
        let result = apply(&bench.store, cut, Some(&Digest::of(&archive)));
        assert!(
            matches!(result, Err(Error::Invalid(_))),
            "{length}: {result:?}"
        );
        bench.check_empty("cut");
    }
}

#[test]
fn rejects_damaged_end_of_archive_markers() {
    let open = pack_open(&[file("a", "x")]);
    let behind = pack(&[file("b", "y")]);
    // Both blocks, the first one alone, and none.
    for whole in [1024, 512, 0] {
        let archive = [&open[..], &vec![0; whole]].concat();
        let bench = Bench::new();
        let layer = apply(&bench.store, &archive[..], None).unwrap();
        assert_eq!(layer.diff_id, Digest::of(&archive), "{whole}");
    }
    for damaged in [
        [&open[..], &[0; 1023]].concat(),
        [&open[..], &[0; 513]].concat(),
        // The entries behind it would be lost.
        [&open[..], &[0; 512], &behind].concat(),
    ] {
        let bench = Bench::new();
        let result = apply(&bench.store, &damaged[..], None);
        assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
        bench.check_empty("damaged");
    }
}

#[test]
fn rejects_truncated_compressed_streams() {
    let archive = pack(&[file("a", noise(3000)), file("b", vec![b'x'; 50_000])]);
    for compressed in [gzip, zstandard, bzip2, xz].map(|compress| compress(&archive)) {
        let bench = Bench::new();
        for length in (1..compressed.len())
            .step_by(37)
            .chain(compressed.len() - 12..compressed.len())
        {
            let result = apply(&bench.store, &compressed[..length], None);
            assert!(
                matches!(result, Err(Error::Invalid(_))),
                "{length} of {}: {result:?}",
                compressed.len()
            );
            bench.check_empty("cut");
        }
    }
}

/// A reader that fails at its end, as that of a client that leaves.
struct Failing<'a>(&'a [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the client has left",
            )),
            count => Ok(count),
        }
    }
}

#[test]
fn truncated_streams_have_the_same_text_in_all_compressions() {
    fn text(input: &mut (dyn Read + Send)) -> String {
        let mut plain = decompress(input).unwrap();
        let read = plain.read_to_end(&mut Vec::new());
        read.unwrap_err().to_string()
    }
    let content = noise(50_000);
    for compressed in [gzip, zstandard, bzip2].map(|compress| compress(&content)) {
        let mut cut = &compressed[..compressed.len() / 2];
        assert_eq!(text(&mut Failing(cut)), "the client has left");
        assert_eq!(text(&mut cut), "unexpected EOF");
    }
}

#[test]
fn rejects_damaged_streams() {
    let archive = pack(&[file("a", noise(3000)), file("b", vec![b'x'; 50_000])]);
    let compressed = [gzip, zstandard, bzip2, xz].map(|compress| compress(&archive));
    for whole in compressed.into_iter().chain([archive.clone()]) {
        let bench = Bench::new();
        for position in (0..whole.len()).step_by(whole.len() / 50) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x55;
            match apply(
                &bench.store,
                damaged.as_slice(),
                Some(&Digest::of(&archive)),
            ) {
                Err(Error::Invalid(_)) => bench.check_empty("damaged"),
                // Some bytes of the gzip header (such as its mtime) do not affect the content.
                Ok(layer) => {
                    assert!(position < 10, "{position}");
                    bench
                        .store
                        .staging
                        .discard(&bench.store.snapshots.path(&layer.diff_id))
                        .unwrap();
                }
                Err(error) => panic!("{position} of {}: {error}", whole.len()),
            }
        }
    }
}

#[test]
fn rejects_a_layer_with_another_diff_id() {
    let bench = Bench::new();
    let archive = pack(&[file("f", "x")]);
    for stream in [archive.clone(), gzip(&archive), zstandard(&archive)] {
        let text = match apply(&bench.store, stream.as_slice(), Some(&Digest::of(b"other"))) {
            Err(Error::Invalid(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(
            text.contains(Digest::of(b"other").as_str())
                && text.contains(Digest::of(&archive).as_str()),
            "{text}"
        );
        bench.check_empty("not expected");
    }
}

/// Bytes behind the beginning that only has to be right for the compression to be known.
#[test]
fn rejects_noise_behind_a_magic_number() {
    let starts: [&[u8]; 2] = [
        b"BZh91AY&SY\x01\x02\x03\x04",
        b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46",
    ];
    for start in starts {
        let stream = [start, &noise(5000)].concat();
        let mut whole = Vec::new();
        let mut reader = decompress(stream.as_slice()).unwrap();
        reader.read_to_end(&mut whole).unwrap_err();
        assert_eq!(whole, b"");
        reader.read_to_end(&mut whole).unwrap_err();
    }
}

/// No change of a byte makes a decoder panic, or read without end.
#[test]
fn damaged_streams_end() {
    let content = [noise(900), b"text ".repeat(4000), vec![0; 70_000]].concat();
    let x86 = ["-c", "--x86", "--delta=dist=3", "--lzma2=dict=64KiB"];
    let streams = [
        bzip2(&content),
        xz(&content),
        compressed_by(
            "xz",
            &["-c", "--check=sha256", "--block-size=8KiB"],
            &content,
        ),
        compressed_by("xz", &x86, &content),
    ];
    for whole in streams {
        let read = |stream: &[u8]| {
            let mut all = Vec::new();
            decompress(stream)
                .unwrap()
                .take(64 << 20)
                .read_to_end(&mut all)
                .map(|_| all)
        };
        assert_eq!(read(&whole).unwrap(), content);
        for position in (5..whole.len().min(200)).chain((200..whole.len()).step_by(13)) {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] ^= flip;
                // Checksums find what decoders do not.
                if let Ok(all) = read(&damaged) {
                    assert_eq!(all, content, "{position}");
                }
            }
        }
    }
}

#[test]
fn concatenated_streams_and_padding_are_one_stream() {
    let check = |parts: &[&[u8]], expected: Result<&[u8], &str>| {
        let mut all = Vec::new();
        let read = decompress(parts.concat().as_slice())
            .unwrap()
            .read_to_end(&mut all);
        match expected {
            Ok(content) => assert_eq!(
                (read.map_err(|error| error.to_string()), all.as_slice()),
                (Ok(content.len()), content)
            ),
            Err(text) => {
                let error = read.unwrap_err().to_string();
                assert!(error.contains(text), "{error}");
            }
        }
    };
    let [first, second] = [xz(b"one"), xz(b"two")];
    check(&[&first, &second], Ok(b"onetwo"));
    check(&[&first, &[0; 8], &second, &[0; 512]], Ok(b"onetwo"));
    check(&[&first, &[0; 3]], Err("padding"));
    check(&[&first, b"rest"], Err("invalid data after stream"));
    let [first, second] = [bzip2(b"one"), bzip2(b"two")];
    check(&[&first, &second, &bzip2(b"")], Ok(b"onetwo"));
    check(&[&first, b"rest"], Err("bz2 header missing"));
}

/// The dictionary is allocated before the first byte of content.
#[test]
fn rejects_xz_dictionaries_that_need_too_much_memory() {
    let with = |size: &str| {
        let filter = format!("--lzma2=dict={size},mode=fast,mf=hc3,nice=8");
        let stream = compressed_by("xz", &["-c", "-T1", &filter], &pack(&[file("f", "x")]));
        apply(&Bench::new().store, stream.as_slice(), None)
    };
    with("128MiB").unwrap();
    let error = with("192MiB").unwrap_err().to_string();
    assert!(
        error.contains("the xz dictionary is larger than 128 MiB"),
        "{error}"
    );
}

/// A zstd frame may request a window of any size; the decoder must not allocate it.
#[test]
fn rejects_zstd_frames_with_huge_windows() {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff];
    frame.extend_from_slice(&noise(1000));
    check_refused("window", "requires too much memory", &frame);
}

/// Repeats a compressed stream.
struct Again {
    stream: Vec<u8>,
    times: usize,
    position: usize,
}

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.times == 0 {
            return Ok(0);
        }
        let rest = &self.stream[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        if self.position == self.stream.len() {
            self.position = 0;
            self.times -= 1;
        }
        Ok(count)
    }
}

/// 5 GiB of zeros, compressed to some kilobytes.
fn bomb(compress: fn(&[u8]) -> Vec<u8>) -> Again {
    Again {
        stream: compress(&vec![0u8; 64 << 20]),
        times: 80,
        position: 0,
    }
}

#[test]
fn stops_decompression_bombs() {
    for compress in [zstandard, bzip2, xz] {
        stops(bomb(compress));
    }
}

fn stops(bomb: Again) {
    let mut stream = decompress(bomb).unwrap();
    let mut buffer = vec![0u8; 1 << 20];
    let mut total = 0u64;
    let error = loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("all {total} bytes came out"),
            Ok(count) => total += count as u64,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("decompression bomb"), "{error}");
    assert!(total < (4 << 30) + (16 << 20), "{total}");
}

/// Fast gzip does not make bombs: its ratio stays below the limit, which real layers reach.
#[test]
fn a_refused_decompression_bomb_leaves_nothing() {
    let bench = Bench::new();
    let result = apply(&bench.store, bomb(zstandard), None);
    assert!(
        matches!(&result, Err(Error::Invalid(text)) if text.contains("decompression bomb")),
        "{result:?}"
    );
    bench.check_empty("bomb");
}
