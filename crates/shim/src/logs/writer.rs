//! The writer of log files: splits output into records, with one write(2) per chunk of output.

use std::fs::File;
use std::io::Write;

use whelk_sys::fs::{self, Result};

use super::{Driver, LogConfig, LogRecord, PIECE, Stream, json_file, local, now, rotation};

/// Writes the log of a container.
#[derive(Debug)]
pub struct Writer {
    config: LogConfig,
    file: Option<File>,
    size: u64,
    /// Size in bytes at which the file is rotated next; 0 for never.
    rotate_at: u64,
    /// The beginning of an incomplete line, for each stream.
    unfinished: [Vec<u8>; 2],
    /// Records for the file, and their number.
    encoded: Vec<u8>,
    count: u64,
    rotated: bool,
    /// Records for the collector; `None` if there is none.
    outgoing: Option<Outgoing>,
    /// Number of records that could not be written (full disk), and why the last of them could not.
    lost: Option<(u64, String)>,
}

/// Records of the `local` format that are to be sent to a collector.
#[derive(Debug, Default)]
pub struct Outgoing {
    pub bytes: Vec<u8>,
    /// Number of records.
    pub count: u64,
}

impl Writer {
    /// Opens the current file of a log to append to it.
    pub fn open(config: LogConfig) -> Result<Self> {
        let file = if config.driver == Driver::None {
            None
        } else {
            Some(fs::append(&config.path, 0o640)?)
        };
        let size = file
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .map_or(0, |metadata| metadata.len());
        let rotate_at = config.max_size;
        Ok(Self {
            outgoing: config.forwarding.is_some().then(Outgoing::default),
            config,
            file,
            size,
            rotate_at,
            unfinished: Default::default(),
            encoded: Vec::new(),
            count: 0,
            rotated: false,
            lost: None,
        })
    }

    /// Adds a chunk of output. Complete lines are written at once; the rest is kept until its
    /// newline or until it has [`PIECE`] bytes.
    pub fn write(&mut self, stream: Stream, mut data: &[u8]) {
        if self.file.is_none() && self.outgoing.is_none() {
            return;
        }
        let time = now();
        let slot = stream as usize - 1;
        while !data.is_empty() {
            let room = PIECE - self.unfinished[slot].len();
            let window = &data[..data.len().min(room)];
            let (taken, complete) = match window.iter().position(|&byte| byte == b'\n') {
                Some(newline) => (newline + 1, true),
                // [`PIECE`] bytes without a newline: stored as a record; the line continues in the
                // next one.
                None => (window.len(), window.len() == room),
            };
            self.unfinished[slot].extend(&data[..taken]);
            data = &data[taken..];
            if complete {
                self.encode(time, stream);
            }
        }
        self.flush();
    }

    /// Writes the incomplete lines of both streams, for a program that ends without a final
    /// newline.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.unfinished[stream as usize - 1].is_empty() {
                self.encode(now(), stream);
            }
        }
        self.flush();
    }

    /// Whether a file that is to be compressed has been rotated since the last call; use
    /// [`super::compress_rotated`] then.
    pub fn take_rotated(&mut self) -> bool {
        std::mem::take(&mut self.rotated) && self.config.compress && self.config.max_files > 1
    }

    /// Returns the records that were written since the last call, if there is a collector.
    pub fn take_outgoing(&mut self) -> Outgoing {
        self.outgoing
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Returns how many lines could not be written since the last call, and why the last of them could not.
    pub fn take_lost(&mut self) -> Option<(u64, String)> {
        self.lost.take()
    }

    fn encode(&mut self, time: i64, stream: Stream) {
        let data = std::mem::take(&mut self.unfinished[stream as usize - 1]);
        let attributes = if self.config.driver == Driver::JsonFile {
            self.config.attributes.clone()
        } else {
            Default::default()
        };
        let record = LogRecord {
            time,
            stream,
            data,
            attributes,
        };
        if let Some(outgoing) = &mut self.outgoing {
            local::encode(&record, &mut outgoing.bytes);
            outgoing.count += 1;
        }
        match self.config.driver {
            Driver::JsonFile => json_file::encode(&record, &mut self.encoded),
            Driver::Local => local::encode(&record, &mut self.encoded),
            Driver::None => {}
        }
        self.count += 1;
        // Reuse the allocation for the next line.
        let mut data = record.data;
        data.clear();
        self.unfinished[stream as usize - 1] = data;
        if self.must_rotate(self.encoded.len()) {
            self.flush();
        }
    }

    fn must_rotate(&self, more: usize) -> bool {
        self.rotate_at > 0 && self.size + more as u64 >= self.rotate_at
    }

    fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        if self.encoded.is_empty() {
            return;
        }
        match file.write_all(&self.encoded) {
            Ok(()) => self.size += self.encoded.len() as u64,
            // The container must not stop because the disk is full; the loss is counted. A partial
            // record is removed, because it would make the following ones unreadable.
            Err(error) => {
                let before = self.lost.take().map_or(0, |(lines, _)| lines);
                let cause = fs::at("write", &self.config.path)(error).to_string();
                self.lost = Some((before + self.count, cause));
                let _ = file.set_len(self.size);
            }
        }
        self.encoded.clear();
        self.count = 0;
        if self.must_rotate(0) {
            self.rotate();
        }
    }

    fn rotate(&mut self) {
        match rotation::rotate(&self.config).and_then(|()| fs::append(&self.config.path, 0o640)) {
            Ok(file) => {
                self.file = Some(file);
                self.size = 0;
                self.rotated = true;
                self.rotate_at = self.config.max_size;
            }
            Err(error) => {
                // Retried after a further 1/8 of the maximum size, not with every line.
                const RETRY_FRACTION: u64 = 8;
                self.rotate_at = self.size + self.config.max_size.div_ceil(RETRY_FRACTION);
                crate::log_error(&error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        for driver in [Driver::JsonFile, Driver::Local] {
            let mut writer = Writer::open(LogConfig {
                driver,
                path: "/dev/full".into(),
                ..Default::default()
            })
            .unwrap();
            assert_eq!(writer.take_lost(), None);
            writer.write(Stream::Stdout, b"one\ntwo\nthr");
            writer.write(Stream::Stderr, b"ee\n");
            let cause = "write /dev/full: no space left on device";
            assert_eq!(writer.take_lost(), Some((3, cause.to_owned())));
            assert_eq!(writer.take_lost(), None);
            writer.finish();
            assert_eq!(writer.take_lost().unwrap().0, 1);
        }
    }
}
