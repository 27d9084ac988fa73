//! The reader of log files: returns every record once and in order, across rotations, also while
//! the log is being written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;

use whelk_sys::fs::{self, Result};

use super::compression::inode;
use super::local::Found;
use super::tail::{self, Begin, Span};
use super::{Driver, LogConfig, LogRecord, json_file, local, rotation};

/// Which records of a log to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only this many of the last records that exist at the beginning.
    pub tail: Option<u64>,
    /// Whether to read also records that are written later.
    pub follow: bool,
}

/// Reads a container's log in order.
pub struct Reader {
    config: LogConfig,
    follow: bool,
    /// Files still to read, oldest first. The last one may still grow.
    files: VecDeque<Box<dyn Read + Send>>,
    /// Number of records to skip at the front of the current file.
    skip: u64,
    /// Number of rotations of the log when the newest of `files` was its current file.
    rotations: u64,
    /// Inode of the newest of `files`.
    newest: u64,
    /// Bytes that were read but not decoded yet: an incomplete record.
    pending: Vec<u8>,
    start: usize,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("config", &self.config)
            .field("rotations", &self.rotations)
            .finish_non_exhaustive()
    }
}

/// Number of bytes to read at a time.
pub(super) const CHUNK: usize = 128 << 10;

/// A file of a log.
pub(super) struct Part {
    pub file: Arc<File>,
    pub path: PathBuf,
    /// Its length when it was opened.
    pub length: u64,
}

impl Part {
    fn open(path: PathBuf) -> Result<Self> {
        let file = fs::open(&path)?;
        let length = file.metadata().map_err(fs::at("stat", &path))?.len();
        Ok(Self {
            file: Arc::new(file),
            path,
            length,
        })
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.path
            .extension()
            .is_some_and(|extension| extension == "gz" || extension == "zst")
    }

    /// Returns a reader for the content from `offset` to `end`, or to the end of the file even if
    /// that grows. A compressed file is read completely.
    pub(super) fn read(&self, offset: u64, end: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let span = |at, end| Span {
            file: self.file.clone(),
            at,
            end,
        };
        Ok(
            match self
                .path
                .extension()
                .and_then(|extension| extension.to_str())
            {
                Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(span(
                    0,
                    u64::MAX,
                )))),
                Some("zst") => Box::new(
                    zstd::stream::read::Decoder::new(span(0, u64::MAX))
                        .map_err(fs::at("decompress", &self.path))?,
                ),
                _ => Box::new(span(offset, end.unwrap_or(u64::MAX))),
            },
        )
    }
}

impl Reader {
    /// Opens the files of a log. A log that does not exist yet is empty.
    pub fn open(config: LogConfig, selection: Selection) -> Result<Self> {
        let lock = rotation::lock(&config, false)?;
        let parts = parts_from(&config, config.max_files.into())?;
        let rotations = rotations_of_newest(&config, &lock, &parts);
        // Release the lock early, because the writer waits for it.
        drop(lock);
        let begin = selection.tail.map_or(Ok(Begin::default()), |tail| {
            tail::begin(config.driver, &parts, tail)
        })?;
        let mut reader = Self {
            config,
            follow: selection.follow,
            files: VecDeque::new(),
            skip: begin.skip,
            rotations,
            newest: 0,
            pending: Vec::new(),
            start: 0,
        };
        for (index, part) in parts.iter().enumerate().skip(begin.part) {
            let offset = if index == begin.part { begin.offset } else { 0 };
            let end = (!selection.follow).then_some(part.length);
            reader.files.push_back(part.read(offset, end)?);
        }
        reader.set_newest(parts.last())?;
        Ok(reader)
    }

    fn set_newest(&mut self, part: Option<&Part>) -> Result<()> {
        self.newest = part.map_or(Ok(0), |part| inode(&part.file, &part.path))?;
        Ok(())
    }

    /// Returns the next records, or none if all that has been written so far has been read. With
    /// `follow`, call it again for later records.
    pub fn read(&mut self) -> Result<Vec<LogRecord>> {
        loop {
            let records = self.decode();
            if !records.is_empty() {
                return Ok(records);
            }
            if !self.fill()? && !self.next_file()? {
                return Ok(Vec::new());
            }
        }
    }

    /// Reads more of the current file. Returns false at its end.
    fn fill(&mut self) -> Result<bool> {
        let Some(file) = self.files.front_mut() else {
            return Ok(false);
        };
        self.pending.drain(..self.start);
        self.start = 0;
        let length = self.pending.len();
        self.pending.resize(length + CHUNK, 0);
        let read = file
            .read(&mut self.pending[length..])
            .map_err(fs::at("read", &self.config.path));
        let read = match read {
            Ok(read) => read,
            // A truncated compressed file: what can be decompressed counts.
            Err(error) if error.source.kind() == std::io::ErrorKind::UnexpectedEof => 0,
            Err(error) => {
                self.pending.truncate(length);
                return Err(error);
            }
        };
        self.pending.truncate(length + read);
        Ok(read > 0)
    }

    /// Continues with the next file. Returns false if there is none yet.
    fn next_file(&mut self) -> Result<bool> {
        if self.files.len() > 1 {
            self.files.pop_front();
            self.pending.clear();
            self.start = 0;
            return Ok(true);
        }
        if !self.follow {
            return Ok(false);
        }
        let lock = rotation::lock(&self.config, false)?;
        let counted = lock.rotations() - self.rotations.min(lock.rotations());
        if counted == 0 {
            // A file may have been added without being counted: the first one, or one whose writer
            // was killed.
            let current = fs::metadata(&self.config.path)
                .map(|found| std::os::unix::fs::MetadataExt::ino(&found));
            if current.is_err()
                || current.is_ok_and(|inode| inode == self.newest && !self.files.is_empty())
            {
                return Ok(false);
            }
        }
        // The current file was rotated. Nothing is appended to it any more, but its last bytes may
        // have been written after the last read.
        if self.fill()? {
            return Ok(true);
        }
        self.files.clear();
        self.pending.clear();
        self.start = 0;
        let parts = parts_from(&self.config, counted.max(1) - 1)?;
        for part in &parts {
            self.files.push_back(part.read(0, None)?);
        }
        self.set_newest(parts.last())?;
        self.rotations = rotations_of_newest(&self.config, &lock, &parts);
        Ok(!self.files.is_empty())
    }

    fn decode(&mut self) -> Vec<LogRecord> {
        let driver = self.config.driver;
        if self.skip > 0 {
            let (skipped, found) =
                tail::skip_records(driver, &self.pending[self.start..], self.skip);
            self.start += skipped;
            self.skip -= found;
        }
        let mut records = Vec::new();
        // While records are to be skipped, what is left in the buffer is an incomplete one.
        while self.skip == 0 {
            let bytes = &self.pending[self.start..];
            match tail::find(driver, bytes) {
                Found::Record(length) => {
                    let record = &bytes[..length];
                    records.extend(match driver {
                        Driver::JsonFile => json_file::decode(record),
                        Driver::Local | Driver::None => {
                            local::decode(record, &self.config.attributes)
                        }
                    });
                    self.start += length;
                }
                Found::Damaged(length) => self.start += length,
                Found::More => break,
            }
        }
        records
    }
}

/// Returns the number of rotations of the log when the newest of these files was its current file.
/// After a rotation there is no current file until the writer has created it; then the newest file
/// is the one that was rotated last, whether it is in `parts` or has been read before.
fn rotations_of_newest(config: &LogConfig, lock: &rotation::Lock, parts: &[Part]) -> u64 {
    let has_current = parts.last().is_some_and(|part| part.path == config.path);
    lock.rotations().saturating_sub(u64::from(!has_current))
}

/// Opens the files from the `index`th one back from the current one up to the current one.
fn parts_from(config: &LogConfig, index: u64) -> Result<Vec<Part>> {
    (0..=index)
        .rev()
        .filter_map(|index| rotation::existing(config, index))
        .map(Part::open)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use whelk_sys::Scratch;

    use super::super::{Stream, Writer, compress_rotated};
    use super::*;

    /// Returns settings of logs in a directory of their own.
    fn config(name: &str, driver: Driver, max_size: u64, max_files: u32) -> (Scratch, LogConfig) {
        let scratch = Scratch::temporary(&format!("log-{name}-{driver:?}")).unwrap();
        let config = LogConfig {
            driver,
            path: scratch.path().join("container.log"),
            max_size,
            max_files,
            compress: true,
            attributes: Default::default(),
            forwarding: None,
        };
        (scratch, config)
    }

    const ALL: Selection = Selection {
        tail: None,
        follow: true,
    };

    fn text(records: &[LogRecord]) -> String {
        records
            .iter()
            .map(|record| String::from_utf8_lossy(&record.data))
            .collect()
    }

    fn read_all(reader: &mut Reader) -> String {
        let mut all = String::new();
        loop {
            let records = reader.read().unwrap();
            if records.is_empty() {
                return all;
            }
            all += &text(&records);
        }
    }

    #[test]
    fn a_follower_reads_every_record_once_across_rotations() {
        for driver in [Driver::Local, Driver::JsonFile] {
            // A file holds about ten lines, so a step of 37 lines rotates several times between two
            // reads. Enough files are kept that none is deleted before it is read.
            let (_scratch, config) = config("follow", driver, 600, 12);
            let mut writer = Writer::open(config.clone()).unwrap();
            let mut reader = Reader::open(config.clone(), ALL).unwrap();
            let (mut expected, mut seen) = (String::new(), String::new());
            for step in 0..40 {
                for line in 0..37 {
                    let line = format!("line {step}.{line} {}\n", "x".repeat(step % 7));
                    writer.write(
                        if step % 2 == 0 {
                            Stream::Stdout
                        } else {
                            Stream::Stderr
                        },
                        line.as_bytes(),
                    );
                    // Not each time, so that several uncompressed files accumulate now and then.
                    if line.len() % 3 == 0 && writer.take_rotated() {
                        compress_rotated(&config).unwrap();
                    }
                    expected += &line;
                    if line.len() % 5 == 0 {
                        seen += &read_all(&mut reader);
                    }
                }
                seen += &read_all(&mut reader);
            }
            assert_eq!(seen, expected, "{driver:?}");
            let kept = read_all(&mut Reader::open(config.clone(), ALL).unwrap());
            assert!(
                expected.ends_with(&kept) && !kept.is_empty(),
                "{driver:?}: what is kept is the end of all"
            );
        }
    }

    #[test]
    fn a_follower_can_read_between_a_rotation_and_the_next_file() {
        let (_scratch, config) = config("between", Driver::JsonFile, 600, 9);
        let put = |text: &str| {
            fs::write(&config.path, format!("{{\"log\":\"{text}\\n\",\"stream\":\"stdout\",\"time\":\"2024-01-01T00:00:00Z\"}}\n")).unwrap()
        };
        put("one");
        let mut reader = Reader::open(config.clone(), ALL).unwrap();
        assert_eq!(read_all(&mut reader), "one\n");
        rotation::rotate(&config).unwrap();
        assert_eq!(read_all(&mut reader), "");
        let mut late = Reader::open(config.clone(), ALL).unwrap();
        assert_eq!(read_all(&mut late), "one\n");
        for text in ["two", "three"] {
            put(text);
            rotation::rotate(&config).unwrap();
        }
        assert_eq!(
            (read_all(&mut reader), read_all(&mut late)),
            ("two\nthree\n".into(), "two\nthree\n".into())
        );
        put("four");
        rotation::rotate(&config).unwrap();
        put("five");
        assert_eq!(
            (read_all(&mut reader), read_all(&mut late)),
            ("four\nfive\n".into(), "four\nfive\n".into())
        );
        assert_eq!(read_all(&mut reader), "");
    }

    #[test]
    fn long_lines_are_split_into_records() {
        for driver in [Driver::Local, Driver::JsonFile] {
            let (_scratch, config) = config("long", driver, 0, 1);
            let mut writer = Writer::open(config.clone()).unwrap();
            let long = "y".repeat(40_000) + "\nend";
            writer.write(Stream::Stdout, long.as_bytes());
            let mut reader = Reader::open(config.clone(), ALL).unwrap();
            assert_eq!(
                reader
                    .read()
                    .unwrap()
                    .iter()
                    .map(|record| record.data.len())
                    .collect::<Vec<_>>(),
                [16_384, 16_384, 7_233]
            );
            writer.finish();
            assert_eq!(text(&reader.read().unwrap()), "end");
        }
    }

    #[test]
    fn a_single_file_is_replaced_on_rotation() {
        let (_scratch, config) = config("one", Driver::JsonFile, 200, 1);
        let mut writer = Writer::open(config.clone()).unwrap();
        for line in 0..100 {
            writer.write(Stream::Stdout, format!("{line}\n").as_bytes());
        }
        assert!(fs::metadata(&config.path).map_or(0, |metadata| metadata.len()) < 200);
        assert_eq!(rotation::existing(&config, 1), None);
    }

    #[test]
    fn a_failed_rotation_loses_nothing_and_is_retried() {
        let (_scratch, config) = config("stuck", Driver::Local, 600, 4);
        let mut writer = Writer::open(config.clone()).unwrap();
        let mut lines = (0..).map(|n| format!("line {n}\n"));
        let mut write = |writer: &mut Writer, count: usize| {
            lines
                .by_ref()
                .take(count)
                .for_each(|line| writer.write(Stream::Stdout, line.as_bytes()))
        };
        write(&mut writer, 100);
        let kept = |config: &LogConfig| {
            (1..4)
                .filter(|index| rotation::existing(config, *index).is_some())
                .count()
        };
        assert_eq!(kept(&config), 3);
        let mut reader = Reader::open(config.clone(), ALL).unwrap();
        let oldest_kept = read_all(&mut reader);
        // Rotation fails if the lock file cannot be opened.
        let blocked = config.path.with_file_name("container.log.lock");
        fs::remove_file(&blocked).unwrap();
        fs::create_dir(&blocked, 0o700).unwrap();
        write(&mut writer, 200);
        assert_eq!(kept(&config), 3, "a failing rotation removes nothing");
        fs::remove_tree(&blocked).unwrap();
        let all = read_all(&mut Reader::open(config.clone(), ALL).unwrap());
        assert!(
            all.starts_with(&oldest_kept) && all.ends_with("line 299\n"),
            "{}",
            all.len()
        );
        write(&mut writer, 100);
        assert!(
            fs::metadata(&config.path).unwrap().len() < 600,
            "rotated again"
        );
        assert!(read_all(&mut Reader::open(config.clone(), ALL).unwrap()).ends_with("line 399\n"));
    }

    #[test]
    fn reads_records_after_a_damaged_one() {
        use std::io::Write;
        let (_scratch, config) = config("damaged", Driver::Local, 0, 1);
        let mut writer = Writer::open(config.clone()).unwrap();
        writer.write(Stream::Stdout, b"before\n");
        // A record whose writer was killed while writing it.
        let mut half = Vec::new();
        local::encode(
            &LogRecord {
                time: super::super::now(),
                stream: Stream::Stdout,
                data: vec![b'x'; 100],
                attributes: Default::default(),
            },
            &mut half,
        );
        fs::append(&config.path, 0o640)
            .unwrap()
            .write_all(&half[..50])
            .unwrap();
        let mut writer = Writer::open(config.clone()).unwrap();
        for line in 0..20 {
            writer.write(Stream::Stdout, format!("after {line}\n").as_bytes());
        }
        let read = read_all(&mut Reader::open(config.clone(), ALL).unwrap());
        assert!(
            read.starts_with("before\n") && read.ends_with("after 18\nafter 19\n"),
            "{read}"
        );
    }

    #[test]
    fn a_tail_returns_the_last_records_wherever_it_begins() {
        for driver in [Driver::Local, Driver::JsonFile] {
            let (_scratch, config) = config("tail", driver, 2000, 8);
            let mut writer = Writer::open(config.clone()).unwrap();
            for line in 0..300 {
                writer.write(Stream::Stdout, format!("line {line}\n").as_bytes());
                if line == 200 {
                    compress_rotated(&config).unwrap();
                }
            }
            // Files that were rotated before that are left, and there are later ones.
            let is_plain = |index| {
                rotation::existing(&config, index)
                    .map(|path| path == rotation::rotated(&config, index))
            };
            let forms: Vec<bool> = (1..8).filter_map(is_plain).collect();
            assert!(
                forms.contains(&true) && forms.contains(&false),
                "{driver:?}: {forms:?}"
            );
            let read = |tail| {
                read_all(
                    &mut Reader::open(
                        config.clone(),
                        Selection {
                            tail,
                            follow: false,
                        },
                    )
                    .unwrap(),
                )
            };
            let all = read(None);
            let lines: Vec<&str> = all.split_inclusive('\n').collect();
            assert!(
                lines.len() > 50 && lines.last() == Some(&"line 299\n"),
                "{driver:?}: {}",
                lines.len()
            );
            for tail in 0..=lines.len() + 2 {
                let expected = lines[lines.len().saturating_sub(tail)..].concat();
                assert!(
                    read(Some(tail as u64)) == expected,
                    "{driver:?}: tail {tail} of {}",
                    lines.len()
                );
            }
            assert_eq!(read(Some(u64::MAX)), all);
            let mut follower = Reader::open(
                config.clone(),
                Selection {
                    tail: Some(1),
                    follow: true,
                },
            )
            .unwrap();
            assert_eq!(read_all(&mut follower), "line 299\n");
            writer.write(Stream::Stdout, b"later\n");
            assert_eq!(read_all(&mut follower), "later\n");
        }
    }

    #[test]
    fn without_follow_later_records_are_not_read() {
        for driver in [Driver::Local, Driver::JsonFile] {
            let (_scratch, config) = config("snapshot", driver, 600, 12);
            let mut writer = Writer::open(config.clone()).unwrap();
            writer.write(Stream::Stdout, b"before\n");
            let mut reader = Reader::open(config.clone(), Selection::default()).unwrap();
            for _ in 0..100 {
                writer.write(Stream::Stdout, b"after\n");
            }
            assert_eq!(read_all(&mut reader), "before\n", "{driver:?}");
        }
    }

    #[test]
    fn files_are_compressed_while_others_are_rotated() {
        for driver in [Driver::Local, Driver::JsonFile] {
            let (_scratch, config) = config("compress", driver, 600, 5);
            let mut writer = Writer::open(config.clone()).unwrap();
            let (begun, over) = (AtomicUsize::new(0), AtomicBool::new(false));
            let mut expected = String::new();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        begun.fetch_add(1, Ordering::Relaxed);
                        compress_rotated(&config).unwrap();
                    }
                });
                let mut line = 0;
                while line < 3000 || begun.load(Ordering::Relaxed) < 20 {
                    let text = format!("line {line}\n");
                    writer.write(Stream::Stdout, text.as_bytes());
                    expected += &text;
                    line += 1;
                }
                over.store(true, Ordering::Relaxed);
            });
            compress_rotated(&config).unwrap();
            let kept = read_all(&mut Reader::open(config.clone(), ALL).unwrap());
            assert!(
                expected.ends_with(&kept) && kept.lines().count() > 30,
                "{driver:?}: {kept}"
            );
            let plain = (1..5)
                .filter(|index| fs::exists(rotation::rotated(&config, *index)))
                .count();
            let staged = rotation::with_suffix(
                &config.path,
                &format!("{}.new", rotation::compressed_suffix(driver)),
            );
            assert_eq!((plain, fs::exists(staged)), (0, false), "{driver:?}");
        }
    }
}
