use std::io::{Read as _, Write as _};

use super::*;
use crate::pb::Timestamp;

fn place(name: &str) -> whelk_sys::Scratch {
    whelk_sys::Scratch::temporary(&format!("history-{name}")).unwrap()
}

fn record(history: &History, name: &str, logs: &[u8]) -> BuildHistoryRecord {
    let mut writer = history.writer().unwrap();
    writer.write_all(logs).unwrap();
    BuildHistoryRecord {
        r#ref: name.to_owned(),
        created_at: Some(Timestamp::from_nanos(1)),
        completed_at: Some(Timestamp::from_nanos(2)),
        logs: Some(history.finish(writer, "logs").unwrap()),
        ..BuildHistoryRecord::default()
    }
}

fn names(history: &History, request: &BuildHistoryRequest) -> Vec<(i32, String)> {
    let (events, _) = history.listen(request).unwrap();
    let events = events.into_iter();
    events
        .map(|event| (event.kind, event.record.unwrap().r#ref))
        .collect()
}

#[test]
fn records_are_kept_and_removed() {
    let place = place("kept");
    let history = History::open(place.path());
    let all = BuildHistoryRequest::default();
    let (one, two) = (
        record(&history, "../one", b"same"),
        record(&history, "two", b"same"),
    );
    let digest = one.logs.clone().unwrap().digest;
    // Nothing but a blob of a record can be read.
    assert!(history.blob(&digest).unwrap().is_none());
    history.begin(one.clone());
    assert_eq!(names(&history, &all), [(0, "../one".to_owned())]);
    history.complete(one).unwrap();
    let two_again = record(&history, "two", b"same");
    assert_eq!(two, two_again);
    history.complete(two_again).unwrap();
    assert_eq!(names(&history, &all).len(), 2);
    history.pin("two", true).unwrap();
    let mut writer = history.writer().unwrap();
    writer.write_all(b"trace").unwrap();
    let trace = history.finish(writer, "trace").unwrap();
    assert!(history.add_trace("three", trace.clone()).is_err());
    assert!(history.add_trace("two", trace.clone()).is_ok());
    drop(history);
    // Another engine finds them.
    let history = History::open(place.path());
    let two = history.get("two").unwrap();
    assert!(two.pinned && two.trace.as_ref() == Some(&trace));
    let (mut file, size) = history.blob(&digest).unwrap().unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!((content.as_str(), size), ("same", 4));
    history.delete("../one").unwrap();
    assert!(history.blob(&digest).unwrap().is_some());
    history.delete("two").unwrap();
    assert!(history.blob(&digest).unwrap().is_none());
    assert_eq!(fs::list(place.path().join("blobs")).unwrap().len(), 0);
    for digest in ["sha256:../../x", "", "sha256:", "x"] {
        assert!(history.blob(digest).unwrap().is_none());
    }
    assert!(history.delete("two").is_err() && history.pin("two", true).is_err());
    let negative = BuildHistoryRequest {
        limit: -1,
        ..BuildHistoryRequest::default()
    };
    assert!(history.listen(&negative).is_err());
}

#[test]
fn damaged_records_are_removed() {
    let place = place("damaged");
    let history = History::open(place.path());
    for name in ["whole", "cut", "without"] {
        let record = record(&history, name, name.as_bytes());
        history.complete(record).unwrap();
    }
    fs::write(history.path("cut"), b"\xff\xff").unwrap();
    let digest = history.get("without").unwrap().logs.unwrap().digest;
    fs::remove_file(blobs::path(place.path(), &digest).unwrap()).unwrap();
    let _unfinished = history.writer().unwrap();
    drop(history);
    let history = History::open(place.path());
    let all = BuildHistoryRequest::default();
    assert_eq!(names(&history, &all), [(1, "whole".to_owned())]);
    assert_eq!(fs::list(place.path().join("new")).unwrap().len(), 0);
    assert_eq!(fs::list(place.path().join("blobs")).unwrap().len(), 1);
}

#[test]
fn a_build_that_runs_can_be_deleted() {
    let place = place("active");
    let history = History::open(place.path());
    let one = record(&history, "one", b"x");
    history.begin(one.clone());
    history.delete("one").unwrap();
    let all = BuildHistoryRequest::default();
    assert!(names(&history, &all).is_empty());
    history.complete(one).unwrap();
    assert!(names(&history, &all).is_empty());
    assert_eq!(fs::list(place.path().join("blobs")).unwrap().len(), 0);
}
