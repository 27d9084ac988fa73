//! What every volume driver must do. Each test runs for each driver, and for the ways in which the
//! `local` driver keeps content, in a mount namespace of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{MountPropagationFlags, mount_change};
use serde_json::{Value, json};
use whelk_plugin::SearchPaths;
use whelk_sys::process::CloneFlags;
use whelk_sys::{Scratch, fs};

use super::{Created, Drivers, VolumeDriver, VolumeRecord};
use crate::error::{Error, Result};

/// A driver, and an empty directory for its volumes.
struct Case {
    name: &'static str,
    driver: &'static str,
    /// The options of its volumes.
    options: &'static [(&'static str, &'static str)],
    place: PathBuf,
}

/// Runs `test` for each driver.
fn with_each_driver(test: impl Fn(&Case) + Sync) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    const TMPFS: &[(&str, &str)] = &[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")];
    for (name, driver, options) in [
        ("local", "local", &[][..]),
        ("local with a tmpfs", "local", TMPFS),
        ("plugin", "keeper", &[("kind", "fast")]),
    ] {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch::temporary(&format!("volume-drivers-{number}")).unwrap();
        let case = Case {
            name,
            driver,
            options,
            place: scratch.path().to_owned(),
        };
        for directory in ["volumes", "plugins", "kept"] {
            fs::create_dir_all(case.place.join(directory), 0o700).unwrap();
        }
        serve(&case.place);
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                whelk_sys::process::unshare(CloneFlags::NEWNS).unwrap();
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change("/", private).unwrap();
                test(&case);
            });
            assert!(run.join().is_ok(), "driver {name}");
        });
    }
}

impl Case {
    /// Returns the driver as an engine has it that has just been started.
    fn open(&self) -> Arc<dyn VolumeDriver> {
        let paths = SearchPaths {
            sockets: vec![self.place.join("plugins")],
            descriptions: Vec::new(),
        };
        let drivers = Drivers::new(self.place.join("volumes"), paths);
        drivers.get(&self.driver.into()).unwrap()
    }

    fn record(&self, name: &str) -> VolumeRecord {
        VolumeRecord {
            name: name.into(),
            driver: self.driver.into(),
            options: Some(options(self.options)).filter(|options| !options.is_empty()),
            ..VolumeRecord::default()
        }
    }

    fn create(&self, name: &str) -> VolumeRecord {
        let record = self.record(name);
        let driver = self.open();
        driver.check(&options(self.options)).unwrap();
        driver.create(&record).unwrap().publish().unwrap();
        record
    }

    /// The volumes that have content, and directories that are about to be deleted.
    fn kept(&self) -> Vec<String> {
        let list = |directory: &str| {
            let entries = fs::list(self.place.join(directory)).unwrap();
            entries
                .into_iter()
                .map(|entry| entry.file_name().into_string().unwrap())
        };
        list("volumes").chain(list("kept")).collect()
    }

    /// Waits until these volumes have content, and what was deleted is gone.
    fn await_content(&self, expected: &[&str]) {
        for _ in 0..6000 {
            if self.kept() == expected {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(self.kept(), expected, "{}", self.name);
    }
}

fn options(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    list.iter().map(owned).collect()
}

fn remove(driver: &dyn VolumeDriver, record: &VolumeRecord) -> Result<()> {
    driver.release(record)?;
    driver.delete(record)
}

#[test]
fn volumes_are_created_and_removed() {
    with_each_driver(|case| {
        let driver = case.open();
        for _ in 0..2 {
            let (first, second) = (case.create("first"), case.create("second"));
            remove(&*driver, &first).unwrap();
            case.await_content(&["second"]);
            // As after a crash between the removal of the content and of the record.
            driver.delete(&first).unwrap();
            case.await_content(&["second"]);
            remove(&*driver, &second).unwrap();
            case.await_content(&[]);
        }
    });
}

#[test]
fn a_second_creation_leaves_the_content() {
    with_each_driver(|case| {
        let record = case.create("data");
        let driver = case.open();
        let path = driver.mount(&record, "one").unwrap();
        fs::write(path.join("file"), "content").unwrap();
        let again = driver.create(&record).and_then(|created| created.publish());
        // Content without a record is an error for the local driver; plugins return what they have.
        match again {
            Err(error) if record.is_local() => {
                let text = error.to_string();
                assert!(text.ends_with("does not belong to a volume"), "{text}");
            }
            again => assert!(again.is_ok() && !record.is_local(), "{}", case.name),
        }
        assert_eq!(
            fs::read_to_string(path.join("file")).unwrap(),
            "content",
            "{}",
            case.name
        );
        driver.unmount(&record, "one", true).unwrap();
        remove(&*driver, &record).unwrap();
        case.await_content(&[]);
    });
}

#[test]
fn a_volume_that_is_not_published_leaves_nothing() {
    with_each_driver(|case| {
        let (driver, record) = (case.open(), case.record("data"));
        let created = driver.create(&record).unwrap();
        if matches!(created, Created::Published { is_new: true }) {
            remove(&*driver, &record).unwrap();
        }
        drop(created);
        case.await_content(&[]);
        // As when the record cannot be stored.
        let created = driver.create(&record).unwrap();
        created.publish().unwrap();
        created.withdraw().unwrap();
        if matches!(created, Created::Published { is_new: true }) {
            remove(&*driver, &record).unwrap();
        }
        drop(created);
        case.await_content(&[]);
    });
}

#[test]
fn options_are_refused_by_name_and_leave_nothing() {
    with_each_driver(|case| {
        let driver = case.open();
        let mut record = case.record("data");
        record
            .options
            .get_or_insert_default()
            .insert("bogus".into(), "1".into());
        let refused = driver
            .check(record.options.as_ref().unwrap())
            .and_then(|()| driver.create(&record).map(drop));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("bogus"), "{}: {text}", case.name);
        case.await_content(&[]);
    });
}

#[test]
fn content_is_mounted_from_the_first_user_to_the_last() {
    with_each_driver(|case| {
        let record = case.create("data");
        let driver = case.open();
        driver.unmount(&record, "nobody", true).unwrap();
        for _ in 0..2 {
            let path = driver.mount(&record, "one").unwrap();
            assert!(path.is_absolute(), "{}", case.name);
            fs::write(path.join("file"), "content").unwrap();
            assert_eq!(driver.mount(&record, "one").unwrap(), path);
            assert_eq!(driver.mount(&record, "two").unwrap(), path);
            driver.unmount(&record, "one", false).unwrap();
            assert!(fs::exists(path.join("file")), "{}", case.name);
            driver.unmount(&record, "two", true).unwrap();
            driver.unmount(&record, "two", true).unwrap();
            // The content of a file system that exists only while it is mounted is gone.
            let is_mounted = record.is_mounted();
            assert_eq!(fs::exists(path.join("file")), !is_mounted, "{}", case.name);
        }
        remove(&*driver, &record).unwrap();
        case.await_content(&[]);
    });
}

#[test]
fn a_new_engine_unmounts_and_removes_what_a_killed_one_mounted() {
    with_each_driver(|case| {
        let record = case.create("data");
        let path = case.open().mount(&record, "one").unwrap();
        fs::write(path.join("file"), "content").unwrap();
        let driver = case.open();
        assert_eq!(driver.mount(&record, "one").unwrap(), path);
        assert!(fs::exists(path.join("file")), "mounted only once");
        driver.unmount(&record, "one", true).unwrap();
        let is_mounted = record.is_mounted();
        assert_eq!(fs::exists(path.join("file")), !is_mounted, "{}", case.name);
        driver.mount(&record, "two").unwrap();
        remove(&*case.open(), &record).unwrap();
        case.await_content(&[]);
    });
}

#[test]
fn a_plugin_that_does_not_answer_is_unavailable() {
    with_each_driver(|case| {
        let record = case.create("data");
        if record.is_local() {
            return;
        }
        let driver = case.open();
        fs::remove_file(case.place.join("plugins/keeper.sock")).unwrap();
        for refused in [
            driver.mount(&record, "one").map(drop),
            driver.unmount(&record, "one", true),
            driver.release(&record),
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::Unavailable(_)), "{error}");
        }
        // What it refuses has certainly not been done.
        serve(&case.place);
        let missing = case.record("missing");
        let error = case.open().mount(&missing, "one").unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error}");
    });
}

/// Serves a plugin, `keeper`, that keeps directories in `kept`.
fn serve(place: &Path) {
    let socket = place.join("plugins/keeper.sock");
    let listener = UnixListener::bind(socket).unwrap();
    let kept = place.join("kept");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            drop(answer(stream, &kept));
        }
    });
}

fn answer(mut stream: UnixStream, kept: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = kept.join(body["Name"].as_str().unwrap_or_default());
    let is_there = fs::exists(&path);
    let method = first.split(' ').nth(1).unwrap_or_default();
    let reply = match method.trim_start_matches("/VolumeDriver.") {
        "/Plugin.Activate" => json!({"Implements": ["VolumeDriver"]}),
        "Create" if body["Opts"]["bogus"].is_string() => json!({"Err": "no option bogus"}),
        "Create" => match fs::create_dir(&path, 0o700) {
            Ok(()) => json!({}),
            Err(error) => json!({"Err": error.to_string()}),
        },
        "Unmount" => json!({}),
        _ if !is_there => json!({"Err": "no such volume of mine"}),
        "Get" => json!({"Volume": {"Name": body["Name"], "Mountpoint": path}}),
        "Mount" => json!({"Mountpoint": path}),
        "Remove" => match fs::remove_tree(&path) {
            Ok(()) => json!({}),
            Err(error) => json!({"Err": error.to_string()}),
        },
        _ => json!({"Err": "unknown"}),
    }
    .to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", reply.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(reply.as_bytes())
}
