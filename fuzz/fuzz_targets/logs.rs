//! Reads log files. Damaged ones must end, and what was written must be read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_shim::logs::{Driver, LogConfig, Reader, Selection, Stream, Writer};

fuzz_target!(|input: (bool, bool, Option<u8>, &[u8])| {
    let (json, damaged, tail, data) = input;
    let Ok(directory) = tempfile::tempdir() else {
        return;
    };
    let config = LogConfig {
        driver: if json {
            Driver::JsonFile
        } else {
            Driver::Local
        },
        path: directory.path().join("log"),
        ..LogConfig::default()
    };
    if damaged {
        std::fs::write(&config.path, data).expect("write the log");
    } else {
        let mut writer = Writer::open(config.clone()).expect("open the log");
        writer.write(Stream::Stdout, data);
        writer.finish();
    }
    let selection = Selection {
        tail: tail.map(u64::from),
        follow: false,
    };
    let mut reader = Reader::open(config, selection).expect("open the log again");
    let mut read = Vec::new();
    loop {
        match reader.read() {
            Ok(records) if records.is_empty() => break,
            Ok(records) => read.extend(records.into_iter().flat_map(|record| record.data)),
            Err(error) if damaged => return drop(error),
            Err(error) => panic!("{error}"),
        }
    }
    if !damaged && tail.is_none() {
        // JSON has only text.
        let expected = if json {
            String::from_utf8_lossy(data).into_owned().into()
        } else {
            data.to_vec()
        };
        assert_eq!(read, expected);
    }
});
