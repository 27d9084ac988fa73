//! Archives of contexts (`context export`): a tar file with `meta.json` and
//! `tls/<endpoint>/<file>`.

use std::io::{Read, Write};

use serde_json::Value;

use super::{Context, TlsFiles, go_escaped};
use crate::{Failure, Outcome, plain};

/// Maximum size of an archive in bytes.
const MAX_SIZE: u64 = 10 << 20;
/// The length of a tar header, and the unit of its size.
const BLOCK: usize = 512;

/// Writes an archive.
pub(crate) fn write(context: &Context, tls: &TlsFiles, output: impl Write) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(output);
    let mut append = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content)
    };
    let meta = go_escaped(&Value::from(context.0.clone()).to_string());
    append("meta.json", tar::EntryType::Regular, 0o644, meta.as_bytes())?;
    if !tls.is_empty() {
        append("tls", tar::EntryType::Directory, 0o700, &[])?;
    }
    for (endpoint, files) in tls {
        let directory = format!("tls/{endpoint}");
        append(&directory, tar::EntryType::Directory, 0o700, &[])?;
        for (file, content) in files {
            let path = format!("{directory}/{file}");
            append(&path, tar::EntryType::Regular, 0o600, content)?;
        }
    }
    archive.into_inner()?.flush()
}

/// Reads an archive, which is untrusted: only files with the names above are accepted, and nothing is
/// written before all were read.
///
/// # Errors
/// Returns an error with Docker's text if the archive is too large or has other files.
pub(crate) fn read(input: impl Read, name: &str) -> Outcome<(Context, TlsFiles)> {
    let mut bytes = Vec::new();
    input
        .take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(format!("read {name}: {}", plain(&error))))?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Failure::new("read exceeds the defined limit"));
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Err(Failure::new(format!(
            "{name}: zip files are not available in this version of whelk; use a tar file"
        )));
    }
    if bytes.len() < BLOCK {
        return Err(Failure::new("unexpected EOF"));
    }
    let length = bytes.len() as u64;
    // Docker's archives end without the padding and the two empty blocks.
    bytes.resize(bytes.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    let broken = |error: std::io::Error| Failure::new(format!("read {name}: {}", plain(&error)));
    let (mut context, mut tls) = (None, TlsFiles::new());
    let mut archive = tar::Archive::new(bytes.as_slice());
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refused = |why: &str| Failure::new(format!("{}: {why}", path.escape_debug()));
        let end = entry.raw_file_position().checked_add(entry.size());
        if end.is_none_or(|end| end > length) {
            return Err(Failure::new("unexpected EOF"));
        }
        match entry.header().entry_type() {
            tar::EntryType::Directory => continue,
            tar::EntryType::Regular | tar::EntryType::Continuous => {}
            _ => return Err(refused("unexpected context file")),
        }
        let parts: Vec<&str> = path.split('/').collect();
        let is_clean = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
        let mut content = Vec::new();
        match parts.as_slice() {
            _ if !path.starts_with("tls/") && path != "meta.json" => {
                return Err(refused("unexpected context file"));
            }
            _ if !is_clean || path.contains(['\0', '\u{fffd}']) => {
                return Err(refused("unexpected path format"));
            }
            ["meta.json"] => {
                entry.read_to_end(&mut content).map_err(broken)?;
                let json = serde_json::from_slice(&content)
                    .map_err(|error| Failure::new(format!("parsing meta.json: {error}")))?;
                let Value::Object(json) = json else {
                    return Err(Failure::new("parsing meta.json: not an object"));
                };
                context = Some(Context(json));
            }
            [_, endpoint, file] => {
                entry.read_to_end(&mut content).map_err(broken)?;
                let files = tls.entry((*endpoint).to_owned()).or_default();
                files.insert((*file).to_owned(), content);
            }
            _ => return Err(Failure::new("archive format is invalid")),
        }
    }
    let context = context.ok_or_else(|| Failure::new("invalid context: no metadata found"))?;
    Ok((context, tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an archive of these entries, whose names are written as they are.
    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_cksum();
            archive.append(&header, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn archives_are_read_as_written() {
        let context = Context::new("xy", "a <b>", "tcp://h", false);
        let files = [("ca.pem".to_owned(), b"CA".to_vec())].into();
        let tls: TlsFiles = [("docker".to_owned(), files)].into();
        let mut bytes = Vec::new();
        write(&context, &tls, &mut bytes).unwrap();
        assert_eq!(read(bytes.as_slice(), "x").unwrap(), (context, tls));
        // Docker's archives end with the last file's last byte.
        let end = bytes.windows(2).rposition(|pair| pair == b"CA").unwrap() + 2;
        assert!(read(&bytes[..end], "x").is_ok());
        // One byte of the certificate is missing.
        let cut = read(&bytes[..end - 1], "x").unwrap_err();
        assert_eq!(cut.text, "unexpected EOF");
    }

    #[test]
    fn an_archive_that_cannot_be_flushed_is_an_error() {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let buffered = std::io::BufWriter::with_capacity(1 << 20, full);
        let context = Context::new("xy", "", "tcp://h", false);
        let written = write(&context, &TlsFiles::new(), buffered);
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }

    #[test]
    fn hostile_archives_are_refused() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let meta = ("meta.json", Regular, b"{}".as_slice());
        for (entry, text) in [
            (
                ("other", Regular, b"".as_slice()),
                "other: unexpected context file",
            ),
            (
                ("a\x1b[31m\nb", Regular, b""),
                "a\\u{1b}[31m\\nb: unexpected context file",
            ),
            (
                ("../meta.json", Regular, b""),
                "../meta.json: unexpected context file",
            ),
            (
                ("/tls/docker/a", Regular, b""),
                "/tls/docker/a: unexpected context file",
            ),
            (
                ("tls/../../a", Regular, b""),
                "tls/../../a: unexpected path format",
            ),
            (("tls//a", Regular, b""), "tls//a: unexpected path format"),
            (
                ("tls/docker/..", Regular, b""),
                "tls/docker/..: unexpected path format",
            ),
            (("tls/a", Regular, b""), "archive format is invalid"),
            (
                ("tls/docker/a/b", Regular, b""),
                "archive format is invalid",
            ),
            (
                ("tls/docker/a", Symlink, b""),
                "tls/docker/a: unexpected context file",
            ),
            (
                ("tls/docker/a", Link, b""),
                "tls/docker/a: unexpected context file",
            ),
            (
                ("meta.json", Regular, b"[]"),
                "parsing meta.json: not an object",
            ),
        ] {
            let refused = read(archive(&[meta, entry]).as_slice(), "x");
            assert_eq!(refused.unwrap_err().text, text);
        }
        let text = |bytes: &[u8]| read(bytes, "x").unwrap_err().text;
        assert_eq!(text(b"hi\n"), "unexpected EOF");
        assert!(text(b"PK\x03\x04").contains("zip"));
        let without = archive(&[("tls/docker", Directory, b"")]);
        assert_eq!(text(&without), "invalid context: no metadata found");
        let endless = std::io::repeat(0);
        assert_eq!(
            read(endless, "x").unwrap_err().text,
            "read exceeds the defined limit"
        );
        let error = text(&[0xff; 4096]);
        assert!(error.starts_with("read x: "), "{error}");
    }
}
