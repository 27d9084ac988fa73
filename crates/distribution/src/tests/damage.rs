//! Content that has changed on disk.

use super::upstream::Pair;
use super::*;

/// Changes a byte of a stored object, or its length.
fn damage(served: &Served, digest: &Digest, is_cut: bool) {
    let path = served.registry.as_ref().unwrap().store.content.path(digest);
    let mut content = std::fs::read(&path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    if is_cut {
        content.truncate(middle);
    }
    std::fs::write(path, content).unwrap();
}

#[tokio::test]
async fn a_damaged_blob_is_refused_until_it_is_pushed_again() {
    let served = Served::new().await;
    let content: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    for is_cut in [false, true] {
        let layer = served.blob("a", &content).await;
        let digest = Digest::of(&content);
        let path = format!("/v2/a/blobs/{digest}");
        assert!(served.get(&path).await.body == content);
        damage(&served, &digest, is_cut);
        // Its end is not sent.
        served.assert_breaks_off(&path).await;
        assert!(served.root.join("damaged").join(digest.hex()).exists());
        let answer = served.get(&path).await;
        answer.is(404, "BLOB_UNKNOWN");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.contains("was damaged on the registry's disk; push it again"));
        let config = served.blob("a", b"{}").await;
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let manifest = manifest.to_string();
        let pushed = served.put("a", "1", MANIFEST, manifest.as_bytes()).await;
        pushed.is(400, "MANIFEST_BLOB_UNKNOWN");
        served.blob("a", &content).await;
        assert!(served.get(&path).await.body == content);
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_refused_until_it_is_pushed_again() {
    let served = Served::new().await;
    let image = served.image("a", "1", json!({})).await;
    let content = served.get("/v2/a/manifests/1").await.body;
    let digest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
    damage(&served, &digest, false);
    let answer = served.get("/v2/a/manifests/1").await;
    answer.is(500, "UNKNOWN");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.contains(&format!("manifest {digest} is damaged; push it again")));
    let pushed = served.put("a", "1", MANIFEST, &content).await;
    assert_eq!(pushed.status, 201);
    assert_eq!(served.get("/v2/a/manifests/1").await.body, content);
}

#[tokio::test]
async fn a_cache_fetches_what_is_damaged_again() {
    let pair = Pair::new().await;
    let image = pair.origin.image("a", "1", json!({})).await;
    let manifest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
    let by_digest = format!("/v2/a/manifests/{manifest}");
    let content = pair.get(&by_digest).await.body;
    damage(&pair.cache, &manifest, false);
    for path in [by_digest.as_str(), "/v2/a/manifests/1"] {
        assert_eq!(pair.get(path).await.body, content);
    }
    let layer = Digest::of(b"layer of 1");
    let path = format!("/v2/a/blobs/{layer}");
    for is_cut in [false, true] {
        assert_eq!(pair.get(&path).await.body, b"layer of 1");
        damage(&pair.cache, &layer, is_cut);
        pair.cache.assert_breaks_off(&path).await;
    }
    assert_eq!(pair.get(&path).await.body, b"layer of 1");
    assert!(!pair.cache.root.join("damaged").exists());
    // A range is not verified; another size than upstream's is noticed where the repository is new.
    pair.origin.blob("b", b"layer of 1").await;
    damage(&pair.cache, &layer, true);
    let other = format!("/v2/b/blobs/{layer}");
    assert_eq!(pair.get(&other).await.body, b"layer of 1");
}
