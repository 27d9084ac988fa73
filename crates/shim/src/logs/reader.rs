//! The reading side: every record once, in order, across rotations, also while the log is being written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use whelk_sys::fs::{self, Result};

use super::local::Decoded;
use super::{Driver, LogConfig, Record, json_file, local, rotation};

/// Reads a container's log from its oldest record on.
pub struct Reader {
    config: LogConfig,
    /// Files still to read, oldest first. The last one may still grow.
    files: VecDeque<Box<dyn Read + Send>>,
    /// Rotations at the time the newest of `files` was the current one.
    rotations: u64,
    /// The inode of the newest of `files`.
    newest: u64,
    /// Bytes read but not decoded yet: an unfinished record.
    pending: Vec<u8>,
    start: usize,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("config", &self.config).field("rotations", &self.rotations).finish_non_exhaustive()
    }
}

/// How many bytes are read at a time.
const CHUNK: usize = 128 << 10;

impl Reader {
    /// Opens all files of the log. A log that nobody has written yet is an empty one.
    pub fn open(config: LogConfig) -> Result<Self> {
        let lock = rotation::lock(&config, false)?;
        let rotations = lock.rotations();
        let most = u64::from(config.max_files);
        let mut reader = Self { config, files: VecDeque::new(), rotations, newest: 0, pending: Vec::new(), start: 0 };
        reader.open_from(most)?;
        Ok(reader)
    }

    /// Opens the files from the `index`th one back to the current one.
    fn open_from(&mut self, index: u64) -> Result<()> {
        for index in (0..=index).rev() {
            if let Some(path) = rotation::existing(&self.config, index) {
                let file = fs::open(&path)?;
                self.newest = inode(&file, &path)?;
                self.files.push_back(decompress(file, &path)?);
            }
        }
        Ok(())
    }

    /// The next records, or none when all that is written so far has been read. Call again for what comes later.
    pub fn read(&mut self) -> Result<Vec<Record>> {
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

    /// Reads more of the present file. False at its end.
    fn fill(&mut self) -> Result<bool> {
        let Some(file) = self.files.front_mut() else { return Ok(false) };
        self.pending.drain(..self.start);
        self.start = 0;
        let length = self.pending.len();
        self.pending.resize(length + CHUNK, 0);
        let read = file.read(&mut self.pending[length..]).map_err(fs::at("read", &self.config.path));
        let read = match read {
            Ok(read) => read,
            // A compressed file that was cut short: what came out of it counts.
            Err(error) if error.source.kind() == std::io::ErrorKind::UnexpectedEof => 0,
            Err(error) => {
                self.pending.truncate(length);
                return Err(error);
            }
        };
        self.pending.truncate(length + read);
        Ok(read > 0)
    }

    /// Goes on to the file after the present one. False when there is none yet.
    fn next_file(&mut self) -> Result<bool> {
        if self.files.len() > 1 {
            self.files.pop_front();
            self.pending.clear();
            return Ok(true);
        }
        let lock = rotation::lock(&self.config, false)?;
        let counted = lock.rotations() - self.rotations.min(lock.rotations());
        if counted == 0 {
            // Another may have come without being counted: the first one, or one whose writer was killed.
            let current = fs::metadata(&self.config.path).map(|found| std::os::unix::fs::MetadataExt::ino(&found));
            if current.is_err() || current.is_ok_and(|inode| inode == self.newest && !self.files.is_empty()) {
                return Ok(false);
            }
        }
        // The present file was rotated away. Nothing is appended to it any more, but its last bytes may have come after
        // the last look at it.
        if self.fill()? {
            return Ok(true);
        }
        self.files.clear();
        self.pending.clear();
        self.open_from(counted.max(1) - 1)?;
        self.rotations += counted;
        Ok(!self.files.is_empty())
    }

    fn decode(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let bytes = &self.pending[self.start..];
            match self.config.driver {
                Driver::JsonFile => {
                    let Some(newline) = bytes.iter().position(|&byte| byte == b'\n') else { break };
                    records.extend(json_file::decode(&bytes[..newline]));
                    self.start += newline + 1;
                }
                Driver::Local | Driver::None => match local::decode(bytes, &self.config.attributes) {
                    Decoded::Record(record, length) => {
                        records.push(record);
                        self.start += length;
                    }
                    Decoded::More => break,
                    Decoded::Damaged(length) => self.start += length,
                },
            }
        }
        records
    }
}

fn inode(file: &File, path: &Path) -> Result<u64> {
    file.metadata().map(|found| std::os::unix::fs::MetadataExt::ino(&found)).map_err(fs::at("stat", path))
}

fn decompress(file: File, path: &Path) -> Result<Box<dyn Read + Send>> {
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Some("zst") => Box::new(zstd::stream::read::Decoder::new(file).map_err(fs::at("decompress", path))?),
        _ => Box::new(file),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Stream, Writer};
    use super::*;

    fn config(name: &str, driver: Driver, max_size: u64, max_files: u32) -> LogConfig {
        let dir = std::env::temp_dir().join(format!("whelk-log-{name}-{driver:?}-{}", std::process::id()));
        fs::remove_tree(&dir).unwrap();
        fs::create_dir_all(&dir, 0o700).unwrap();
        LogConfig { driver, path: dir.join("container.log"), max_size, max_files, compress: true, attributes: Default::default() }
    }

    fn text(records: &[Record]) -> String {
        records.iter().map(|record| String::from_utf8_lossy(&record.data)).collect()
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
    fn a_follower_misses_and_repeats_nothing_across_rotations() {
        for driver in [Driver::Local, Driver::JsonFile] {
            // Files hold about ten lines, so a step of 37 lines rotates several times between two looks; enough files
            // are kept that none is removed before it was read.
            let config = config("follow", driver, 600, 12);
            let mut writer = Writer::open(config.clone()).unwrap();
            let mut reader = Reader::open(config.clone()).unwrap();
            let (mut expected, mut seen) = (String::new(), String::new());
            for step in 0..40 {
                for line in 0..37 {
                    let line = format!("line {step}.{line} {}\n", "x".repeat(step % 7));
                    writer.write(if step % 2 == 0 { Stream::Stdout } else { Stream::Stderr }, line.as_bytes());
                    expected += &line;
                    if line.len() % 5 == 0 {
                        seen += &read_all(&mut reader);
                    }
                }
                seen += &read_all(&mut reader);
            }
            assert_eq!(seen, expected, "{driver:?}");
            let kept = read_all(&mut Reader::open(config.clone()).unwrap());
            assert!(expected.ends_with(&kept) && !kept.is_empty(), "{driver:?}: what is kept is the end of all");
            fs::remove_tree(config.path.parent().unwrap()).unwrap();
        }
    }

    #[test]
    fn long_lines_come_in_pieces_and_join_again() {
        for driver in [Driver::Local, Driver::JsonFile] {
            let config = config("long", driver, 0, 1);
            let mut writer = Writer::open(config.clone()).unwrap();
            let long = "y".repeat(40_000) + "\nend";
            writer.write(Stream::Stdout, long.as_bytes());
            let mut reader = Reader::open(config.clone()).unwrap();
            assert_eq!(reader.read().unwrap().iter().map(|record| record.data.len()).collect::<Vec<_>>(), [16_384, 16_384, 7_233]);
            writer.finish();
            assert_eq!(text(&reader.read().unwrap()), "end");
            fs::remove_tree(config.path.parent().unwrap()).unwrap();
        }
    }

    #[test]
    fn one_file_only_is_replaced() {
        let config = config("one", Driver::JsonFile, 200, 1);
        let mut writer = Writer::open(config.clone()).unwrap();
        for line in 0..100 {
            writer.write(Stream::Stdout, format!("{line}\n").as_bytes());
        }
        assert!(fs::metadata(&config.path).map_or(0, |metadata| metadata.len()) < 200);
        assert_eq!(rotation::existing(&config, 1), None);
        fs::remove_tree(config.path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_rotation_that_fails_loses_nothing_and_is_tried_again_later() {
        let config = config("stuck", Driver::Local, 600, 4);
        let mut writer = Writer::open(config.clone()).unwrap();
        let mut lines = (0..).map(|n| format!("line {n}\n"));
        let mut write =
            |writer: &mut Writer, count: usize| lines.by_ref().take(count).for_each(|line| writer.write(Stream::Stdout, line.as_bytes()));
        write(&mut writer, 100);
        let kept = |config: &LogConfig| (1..4).filter(|index| rotation::existing(config, *index).is_some()).count();
        assert_eq!(kept(&config), 3);
        let mut reader = Reader::open(config.clone()).unwrap();
        let oldest_kept = read_all(&mut reader);
        // Without its lock no rotation can begin.
        let blocked = config.path.with_file_name("container.log.lock");
        fs::remove_file(&blocked).unwrap();
        fs::create_dir(&blocked, 0o700).unwrap();
        write(&mut writer, 200);
        assert_eq!(kept(&config), 3, "a failing rotation removes nothing");
        fs::remove_tree(&blocked).unwrap();
        let all = read_all(&mut Reader::open(config.clone()).unwrap());
        assert!(all.starts_with(&oldest_kept) && all.ends_with("line 299\n"), "{}", all.len());
        write(&mut writer, 100);
        assert!(fs::metadata(&config.path).unwrap().len() < 600, "rotated again");
        assert!(read_all(&mut Reader::open(config.clone()).unwrap()).ends_with("line 399\n"));
        fs::remove_tree(config.path.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_follows_a_damaged_record_is_read() {
        use std::io::Write;
        let config = config("damaged", Driver::Local, 0, 1);
        let mut writer = Writer::open(config.clone()).unwrap();
        writer.write(Stream::Stdout, b"before\n");
        // A record whose writer was killed in the middle of it.
        let mut half = Vec::new();
        local::encode(
            &Record { time: super::super::now(), stream: Stream::Stdout, data: vec![b'x'; 100], attributes: Default::default() },
            &mut half,
        );
        fs::append(&config.path, 0o640).unwrap().write_all(&half[..50]).unwrap();
        let mut writer = Writer::open(config.clone()).unwrap();
        for line in 0..20 {
            writer.write(Stream::Stdout, format!("after {line}\n").as_bytes());
        }
        let read = read_all(&mut Reader::open(config.clone()).unwrap());
        assert!(read.starts_with("before\n") && read.ends_with("after 18\nafter 19\n"), "{read}");
        fs::remove_tree(config.path.parent().unwrap()).unwrap();
    }
}
