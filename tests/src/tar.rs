//! Writes and reads tar archives by hand, so that tests can build archives that regular tools do
//! not write.

/// The type flag of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    File = b'0',
    HardLink = b'1',
    Symlink = b'2',
    CharDevice = b'3',
    Directory = b'5',
    Fifo = b'6',
    /// A pax header for the next entry.
    Pax = b'x',
}

/// An entry to write.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub path: &'a str,
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    /// The target of a link.
    pub target: &'a str,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    pub mtime: u64,
    pub content: &'a [u8],
}

impl<'a> Entry<'a> {
    pub fn new(path: &'a str, kind: Kind) -> Self {
        let mode = if kind == Kind::Directory {
            0o755
        } else {
            0o644
        };
        Self {
            path,
            kind,
            mode,
            owner: (0, 0),
            target: "",
            device: (0, 0),
            mtime: 1_704_067_200,
            content: b"",
        }
    }
}

/// A tar archive under construction.
#[derive(Clone, Debug, Default)]
pub struct Tar(Vec<u8>);

const BLOCK: usize = 512;

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(&Entry {
            content: content.as_ref(),
            ..Entry::new(path, Kind::File)
        })
    }

    #[must_use]
    pub fn program(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(&Entry {
            content: content.as_ref(),
            mode: 0o755,
            ..Entry::new(path, Kind::File)
        })
    }

    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        self.entry(&Entry::new(path, Kind::Directory))
    }

    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(&Entry {
            target,
            mode: 0o777,
            ..Entry::new(path, Kind::Symlink)
        })
    }

    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(&Entry {
            target,
            ..Entry::new(path, Kind::HardLink)
        })
    }

    #[must_use]
    pub fn fifo(self, path: &str) -> Self {
        self.entry(&Entry::new(path, Kind::Fifo))
    }

    #[must_use]
    pub fn device(self, path: &str, major: u32, minor: u32) -> Self {
        self.entry(&Entry {
            device: (major, minor),
            mode: 0o666,
            ..Entry::new(path, Kind::CharDevice)
        })
    }

    /// Appends a pax header (POSIX.1-2001) for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            // The length includes its own digits.
            let length = (1..=10)
                .map(|digits| rest + digits)
                .find(|length| length.to_string().len() + rest == *length);
            content.extend_from_slice(
                format!("{} {key}={value}\n", length.unwrap_or_default()).as_bytes(),
            );
        }
        self.entry(&Entry {
            content: &content,
            ..Entry::new("pax", Kind::Pax)
        })
    }

    /// Appends an entry with all fields as given, without validation.
    ///
    /// # Panics
    /// Panics if a name is too long for the header.
    #[must_use]
    pub fn entry(mut self, entry: &Entry<'_>) -> Self {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, room: usize, bytes: &[u8]| {
            assert!(
                bytes.len() <= room,
                "{:?} is too long for a header",
                entry.path
            );
            header[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let octal = |value: u64, digits: usize| format!("{value:0digits$o}").into_bytes();
        put(0, 100, entry.path.as_bytes());
        put(100, 8, &octal(entry.mode.into(), 7));
        put(108, 8, &octal(entry.owner.0.into(), 7));
        put(116, 8, &octal(entry.owner.1.into(), 7));
        put(124, 12, &octal(entry.content.len() as u64, 11));
        put(136, 12, &octal(entry.mtime, 11));
        put(148, 8, b"        ");
        put(156, 1, &[entry.kind as u8]);
        put(157, 100, entry.target.as_bytes());
        put(257, 8, b"ustar\x0000");
        put(329, 8, &octal(entry.device.0.into(), 7));
        put(337, 8, &octal(entry.device.1.into(), 7));
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        header[154] = 0;
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(entry.content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Returns the archive with the end-of-archive marker.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

/// An entry that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Without leading `./` and trailing `/`.
    pub path: String,
    pub kind: u8,
    pub mode: u64,
    pub owner: (u64, u64),
    pub mtime: u64,
    pub target: String,
    pub content: Vec<u8>,
    /// The extended attributes, by their names.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Returns all entries of an archive.
///
/// # Panics
/// Panics if the archive is malformed.
#[track_caller]
pub fn read(mut archive: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut long_name = None;
    let mut long_target = None;
    let mut records = Vec::new();
    while let Some((header, rest)) = archive.split_first_chunk::<BLOCK>() {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        assert!(
            header[257..262] == *b"ustar",
            "not a tar header: {:?}",
            String::from_utf8_lossy(&header[..100])
        );
        let size = usize::try_from(number(&header[124..136])).expect("a size");
        let (content, rest) = (&rest[..size], &rest[size.next_multiple_of(BLOCK)..]);
        archive = rest;
        match header[156] {
            // The next entry's long name, in GNU's or POSIX format.
            b'L' => long_name = Some(text(content)),
            b'x' => records = pax_records(content),
            b'K' => long_target = Some(text(content)),
            b'g' => {}
            kind => {
                let prefix = if header[257..263] == *b"ustar\0" {
                    text(&header[345..500])
                } else {
                    String::new()
                };
                let short = text(&header[..100]);
                let records = std::mem::take(&mut records);
                let record = |wanted: &str| {
                    let found = records.iter().find(|(name, _)| name == wanted);
                    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
                };
                let id = |name: &str| record(name).and_then(|id| id.parse().ok());
                let path = record("path")
                    .or_else(|| long_name.take())
                    .unwrap_or_else(|| {
                        if prefix.is_empty() {
                            short
                        } else {
                            format!("{prefix}/{short}")
                        }
                    });
                found.push(Found {
                    path: path
                        .trim_start_matches("./")
                        .trim_end_matches('/')
                        .to_owned(),
                    kind: if kind == 0 { b'0' } else { kind },
                    mode: number(&header[100..108]),
                    owner: (
                        id("uid").unwrap_or_else(|| number(&header[108..116])),
                        id("gid").unwrap_or_else(|| number(&header[116..124])),
                    ),
                    mtime: number(&header[136..148]),
                    target: record("linkpath")
                        .or_else(|| long_target.take())
                        .unwrap_or_else(|| text(&header[157..257])),
                    content: content.to_vec(),
                    xattrs: xattrs(&records),
                });
            }
        }
    }
    found
}

/// Returns the content of a file in an archive, following hard links.
///
/// # Panics
/// Panics if the file does not exist.
#[track_caller]
pub fn file(archive: &[u8], path: &str) -> Vec<u8> {
    let entries = read(archive);
    let mut wanted = path.to_owned();
    loop {
        let entry = entries
            .iter()
            .find(|entry| entry.path == wanted)
            .unwrap_or_else(|| panic!("no {wanted} in the archive"));
        if entry.kind != Kind::HardLink as u8 {
            return entry.content.clone();
        }
        wanted = entry.target.trim_start_matches("./").to_owned();
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Parses octal digits, or GNU tar's base-256 form for large numbers.
fn number(bytes: &[u8]) -> u64 {
    if bytes[0] & 0x80 != 0 {
        return bytes[1..]
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    u64::from_str_radix(text(bytes).trim(), 8).unwrap_or(0)
}

/// Returns the records of a pax header: `LENGTH KEY=VALUE`, each with a newline.
fn pax_records(mut content: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut records = Vec::new();
    while let Some(space) = content.iter().position(|byte| *byte == b' ') {
        let length: usize = text(&content[..space]).parse().expect("a length");
        let (record, rest) = content.split_at(length);
        let record = &record[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(equals.expect("KEY=VALUE"));
        records.push((text(key), value[1..].to_vec()));
        content = rest;
    }
    records
}

/// Returns the extended attributes among the records of a pax header.
fn xattrs(records: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let named = records.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix("SCHILY.xattr.")?;
        Some((name.to_owned(), value.clone()))
    });
    let mut named: Vec<_> = named.collect();
    named.sort();
    named
}
