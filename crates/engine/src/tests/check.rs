//! Checks of what cannot be damaged from outside while an engine runs.

use std::sync::Arc;

use super::{Services, on_fake_host, request};
use crate::findings::{Finding, Findings};

/// Looks at containers and networks, on a thread that may block.
async fn look(engine: &Services) -> Vec<Finding> {
    let (containers, networks) = (engine.containers.clone(), engine.networks.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let mut findings = Findings::default();
        containers.check(&mut findings);
        networks.check(&mut findings);
        findings.into_vec()
    });
    looked.await.unwrap()
}

/// Repairs the one problem that there is, and returns it with what was done.
async fn repair(engine: &Services) -> (String, String) {
    let mut found = look(engine).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let Finding { problem, repair } = found.remove(0);
    let done = tokio::task::spawn_blocking(|| repair.unwrap()().unwrap());
    let done = done.await.unwrap();
    assert!(look(engine).await.is_empty());
    (problem, done)
}

#[test]
fn a_record_that_the_store_lacks_is_written_again() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.create(request("one")).await.unwrap();
        engine.create(request("two")).await.unwrap();
        // Writes the copies of the records.
        engine.containers.store.flushed().await.unwrap();
        assert!(look(&engine).await.is_empty());
        let store = Arc::clone(&engine.containers.store);
        store.delete_container(&container.id, false).unwrap();
        let (problem, done) = repair(&engine).await;
        let expected = format!(
            "container one ({}): the store has no record of it",
            &container.id[..12]
        );
        assert_eq!((problem, done.as_str()), (expected, "recorded again"));
        assert_eq!(store.containers().unwrap().len(), 2);
    });
}

#[test]
fn missing_rules_are_written_again() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    on_fake_host(async |host| {
        let engine = host.open().await;
        assert!(look(&engine).await.is_empty());
        let others = whelk_network::Firewall::new(&engine.instance.name).unwrap();
        others.remove().unwrap();
        let (problem, done) = repair(&engine).await;
        assert_eq!(
            (problem.as_str(), done.as_str()),
            ("the nf_tables rules are not complete", "written again")
        );
    });
}
