//! How many downloads a cache has, and when they end.

use super::upstream::{Line, Pair};
use super::*;
use crate::names::RepositoryName;
use crate::upstream::Limits;

/// Pushes a blob of 3 MB, and returns its path and its content.
async fn large(pair: &Pair, repository: &str, number: u8) -> (String, Vec<u8>) {
    let mut content: Vec<u8> = (0..3_000_000u32).map(|at| (at % 241) as u8).collect();
    content[0] = number;
    pair.origin.blob(repository, &content).await;
    let digest = Digest::of(&content);
    (format!("/v2/{repository}/blobs/{digest}"), content)
}

/// Requests a blob and reads the beginning of the response.
async fn begin(pair: &Pair, path: &str) -> TcpStream {
    let mut client = TcpStream::connect(pair.cache.address).await.unwrap();
    let request = head("GET", path, &[], 0);
    client.write_all(request.as_bytes()).await.unwrap();
    client.read_exact(&mut vec![0; 400_000]).await.unwrap();
    client
}

async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_true() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in a minute: {what}");
}

/// Returns the sizes of what has arrived of incomplete blobs.
fn partials(pair: &Pair) -> Vec<u64> {
    let registry = pair.cache.registry.as_ref().unwrap();
    let partials = registry.store.content.partials().unwrap();
    partials.iter().map(|partial| partial.size).collect()
}

#[tokio::test]
async fn downloads_are_limited_and_end_when_nobody_reads_them() {
    let limits = Limits {
        running: 1,
        waiting: 1,
        unread: Duration::from_millis(100),
    };
    let pair = Pair::with(limits).await;
    let (first, content) = large(&pair, "a", 1).await;
    let (second, other) = large(&pair, "a", 2).await;
    let (third, _) = large(&pair, "a", 3).await;
    // A part that does not exist is not downloaded.
    let range = [("range", "bytes=99999999999999-")];
    let refused = pair.cache.send("GET", &first, &range, b"").await;
    assert_eq!(
        (refused.status, refused.header("content-range")),
        (416, "bytes */3000000")
    );
    assert_eq!(
        (pair.upstream.downloads.count(), partials(&pair).len()),
        (0, 0)
    );
    pair.line(Line::Slow);
    let client = begin(&pair, &first).await;
    let (address, path) = (pair.cache.address, second.clone());
    let waiting = tokio::spawn(async move {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = head("GET", &path, &[], 0);
        client.write_all(request.as_bytes()).await.unwrap();
        Answer::read(&mut client).await
    });
    eventually("two downloads", || pair.upstream.downloads.count() == 2).await;
    let refused = pair.get(&third).await;
    refused.is(429, "TOOMANYREQUESTS");
    assert_eq!(refused.header("retry-after"), "10");
    // One that waits has no file.
    assert_eq!(partials(&pair).len(), 1);
    // What runs stays slow. The next one begins before that would have been complete.
    pair.line(Line::Good);
    drop(client);
    let answer = waiting.await.unwrap();
    assert!(answer.status == 200 && answer.body == other);
    let left = partials(&pair);
    assert!(
        left.len() == 1 && (400_000..3_000_000).contains(&left[0]),
        "{left:?}"
    );
    pair.gate.requests();
    assert!(pair.get(&first).await.body == content);
    let requests = pair.gate.requests();
    let range = format!("GET {first} bytes={}-", left[0]);
    assert!(requests.contains(&range), "{requests:?}");
}

#[tokio::test]
async fn requests_do_not_wait_for_the_disk_work_of_other_blobs() {
    let pair = Pair::new().await;
    let (first, content) = large(&pair, "a", 1).await;
    let (second, other) = large(&pair, "b", 2).await;
    pair.line(Line::Stalled(1_000_000));
    let mut client = begin(&pair, &first).await;
    // The links of the first blob's repository cannot be changed for a while.
    let (release, released) = std::sync::mpsc::channel();
    let registry = pair.cache.registry.clone().unwrap();
    let holder = std::thread::spawn(move || {
        let _lock = registry.lock(&RepositoryName::parse("a").unwrap());
        released.recv().unwrap();
    });
    pair.line(Line::Good);
    let found = tokio::time::timeout(Duration::from_secs(60), pair.get(&second)).await;
    assert!(found.unwrap().body == other);
    release.send(()).unwrap();
    holder.join().unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&content[content.len() - 1000..]));
}

#[tokio::test]
async fn what_has_arrived_counts_for_the_size_of_a_cache() {
    let pair = Pair::new().await;
    let hour = Duration::from_secs(3600);
    let small = pair.origin.blob("a", b"small").await;
    let small = format!("/v2/a/blobs/{}", small["digest"].as_str().unwrap());
    let (path, content) = large(&pair, "a", 1).await;
    assert_eq!(pair.get(&small).await.status, 200);
    pair.line(Line::Stalled(1_000_000));
    let grown = pair.upstream.downloads.wait_for_growth(500_000);
    let client = begin(&pair, &path).await;
    // Bytes count when they arrive, and not when the blob is complete.
    tokio::time::timeout(Duration::from_secs(60), grown)
        .await
        .unwrap();
    // What is being written stays, and the rest makes room for it.
    pair.keep(hour, Some(100));
    assert_eq!(partials(&pair).len(), 1);
    let registry = pair.cache.registry.clone().unwrap();
    assert_eq!(registry.store.content.list().unwrap(), []);
    pair.line(Line::Down);
    eventually("the end", || pair.upstream.downloads.count() == 0).await;
    drop(client);
    pair.keep(hour, Some(10_000_000));
    assert_eq!(partials(&pair).len(), 1);
    pair.keep(hour, Some(100));
    assert_eq!(partials(&pair), [0_u64; 0]);
    pair.line(Line::Good);
    assert!(pair.get(&path).await.body == content);
}

#[tokio::test]
async fn a_blob_without_a_link_is_not_downloaded_again() {
    let pair = Pair::new().await;
    let (path, content) = large(&pair, "a", 1).await;
    assert!(pair.get(&path).await.body == content);
    // As after a kill between the two.
    let digest = Digest::of(&content);
    let link = pair
        .cache
        .root
        .join("repositories/a/_blobs")
        .join(digest.hex());
    std::fs::remove_file(&link).unwrap();
    pair.gate.requests();
    assert!(pair.get(&path).await.body == content);
    assert_eq!(pair.gate.requests(), [format!("HEAD {path}")]);
    assert!(link.exists());
}
