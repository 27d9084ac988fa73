//! Caches of others that are damaged or hostile, and engines that are killed during a transfer.

use std::time::Duration;

use serde_json::{Value, json};
use whelk_tests::builds::docker;
use whelk_tests::images::sha256;
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, eventually};

use super::{STEPS, all_cached, built, cache, context, context_with, fetched};

/// Puts a cache into a registry, with this as its list of layers and records.
fn put_cache(registry: &Registry, manifest: &Value, config: &Value) {
    let text = config.to_string();
    let mut manifest = manifest.clone();
    manifest["config"]["digest"] = json!(registry.blob(text.as_bytes()));
    // Unless it is a size that no cache has.
    if manifest["config"]["size"].as_u64() < Some(1 << 30) {
        manifest["config"]["size"] = json!(text.len());
    }
    registry.pushed("caches/bad", "1", &manifest);
}

#[test]
fn hostile_caches_do_no_harm() {
    let registry = Registry::start();
    let one = Engine::start();
    let name = format!("{}/caches/app:1", registry.host);
    let to = format!("type=registry,ref={name},mode=max,compression=uncompressed");
    built(&one, &context(&one), &["--cache-to", &to]);
    let (manifest, config) = cache(&registry, "caches/app", "1");
    let engine = Engine::start();
    let context = context(&engine);
    let bad = format!("{}/caches/bad:1", registry.host);
    let check = |what: &str, manifest: &Value, config: &Value| {
        put_cache(&registry, manifest, config);
        engine.docker(&["builder", "prune", "-af"]).ok();
        let shown = built(&engine, &context, &["--cache-from", &bad, "-t", "made"]);
        all_cached(&shown, &["RUN head -c 100000"], false);
        let run = ["run", "--rm", "made", "wc", "-c", "/made"];
        assert_eq!(engine.docker(&run).ok(), "100000 /made", "{what}");
        shown
    };
    let edit = |what: &str, edit: &dyn Fn(&mut Value, &mut Value)| {
        let (mut manifest, mut config) = (manifest.clone(), config.clone());
        edit(&mut manifest, &mut config);
        check(what, &manifest, &config)
    };
    let each = |list: &mut Value, edit: &dyn Fn(&mut Value)| {
        list.as_array_mut().unwrap().iter_mut().for_each(edit);
    };
    edit("layers in a circle", &|_, config| {
        each(&mut config["layers"], &|layer| layer["parent"] = json!(0));
    });
    edit("layers that do not exist", &|_, config| {
        each(&mut config["records"], &|record| {
            record["layers"][0]["layer"] = json!(99_999)
        });
    });
    edit("records in a circle", &|_, config| {
        each(&mut config["records"], &|record| {
            record["inputs"] = json!([[{"selector": "canonical", "link": 0}]]);
            record["layers"] = json!([{"layer": -5}]);
        });
    });
    edit("no blobs", &|manifest, _| manifest["layers"] = json!([]));
    // The diff IDs are those of other layers.
    let shown = edit("other layers", &|_, config| {
        each(&mut config["layers"], &|layer| {
            if layer["annotations"]["createdAt"].is_string() {
                let other = format!("sha256:{}", sha256(layer.to_string().as_bytes()));
                layer["annotations"]["diffID"] = json!(other);
            }
        });
    });
    assert!(shown.contains("invalid diffID"), "{shown}");
    edit("sizes that are too small", &|manifest, _| {
        each(&mut manifest["layers"], &|layer| layer["size"] = json!(10));
    });
    edit("sizes without an end", &|manifest, _| {
        each(&mut manifest["layers"], &|layer| {
            layer["size"] = json!(u64::MAX)
        });
    });
    edit("a huge list", &|manifest, _| {
        manifest["config"]["size"] = json!(1_u64 << 40)
    });
    edit("many records", &|_, config| {
        let records: Vec<Value> = (0..60_000).map(|_| json!({})).collect();
        config["records"] = json!(records);
    });
    // Records of another builder, which match nothing.
    let shown = edit("the cache of another builder", &|_, config| {
        each(&mut config["records"], &|record| {
            record["digest"] = json!(format!("sha256:{}", sha256(record.to_string().as_bytes())));
        });
    });
    assert!(!shown.contains("ERROR"), "{shown}");
    // Blobs with another content, and none at all.
    for layer in manifest["layers"].as_array().unwrap() {
        registry.corrupt(layer["digest"].as_str().unwrap(), b"other");
    }
    edit("other contents", &|_, _| {});
    engine.has_no_builds();
}

/// A cache answers only for the steps that it was asked for: what it says of other keys is not recorded.
#[test]
fn caches_do_not_poison_other_steps() {
    let registry = Registry::start();
    let attacker = Engine::start();
    let name = format!("{}/caches/bad:1", registry.host);
    let to = format!("type=registry,ref={name},mode=max");
    let wanted = "FROM busybox\nRUN echo wanted > /x\n";
    let bad = context_with(&attacker, "bad", "FROM busybox\nRUN echo bad > /x\n");
    built(&attacker, &bad, &["--cache-to", &to]);
    let (manifest, bad_config) = cache(&registry, "caches/bad", "1");
    let good = context_with(&attacker, "good", wanted);
    let to = format!("type=registry,ref={}/caches/good:1,mode=max", registry.host);
    built(&attacker, &good, &["--cache-to", &to]);
    let (_, good_config) = cache(&registry, "caches/good", "1");
    let other = context_with(&attacker, "other", "FROM busybox\nRUN echo other > /y\n");
    let to = format!(
        "type=registry,ref={}/caches/other:1,mode=max",
        registry.host
    );
    built(&attacker, &other, &["--cache-to", &to]);
    let (_, other_config) = cache(&registry, "caches/other", "1");
    let of = |config: &Value| config["records"][0]["digest"].clone();
    let last = "RUN cat /x; ls / > /z\n";
    let honest = format!("FROM busybox\nRUN echo other > /y\n{last}");
    let context = context_with(&attacker, "honest", &honest);
    let to = format!(
        "type=registry,ref={}/caches/honest:1,mode=max",
        registry.host
    );
    built(&attacker, &context, &["--cache-to", &to]);
    let (_, honest_config) = cache(&registry, "caches/honest", "1");
    let records = honest_config["records"].as_array().unwrap();
    let mut records = records.iter().map(|record| record["digest"].clone());
    let honest_last = records.find(|digest| *digest != of(&other_config));
    // For the step that is asked for, the bad result, with the canonical key of another one.
    let mut config = bad_config;
    let result = config["records"][0]["layers"].clone();
    config["records"] = json!([
        {"digest": of(&other_config)},
        {"digest": of(&good_config), "layers": result, "inputs": [[{"selector": "canonical", "link": 0}]]},
        {"digest": honest_last.unwrap(), "layers": result},
    ]);
    put_cache(&registry, &manifest, &config);
    let engine = Engine::start();
    let longer = context_with(&engine, "longer", &format!("{wanted}{last}"));
    let to = format!(
        "type=registry,ref={}/caches/passed:1,mode=max",
        registry.host
    );
    let shown = built(
        &engine,
        &longer,
        &["--cache-from", &name, "--cache-to", &to],
    );
    // Who uses such a cache gets what it says.
    assert!(shown.contains(" bad"), "{shown}");
    let honest = context_with(&engine, "honest", &honest);
    let shown = built(&engine, &honest, &[]);
    all_cached(&shown, &["RUN echo other", "RUN cat /x"], false);
    // What the cache says of its results is not passed on.
    let (_, passed) = cache(&registry, "caches/passed", "1");
    let records = passed["records"].as_array().unwrap();
    let is_other = |record: &&Value| record["digest"] == of(&other_config);
    let mut named = records.iter().filter(is_other);
    assert!(
        named.all(|record| record.get("layers").is_none()),
        "{passed}"
    );
}

#[test]
fn an_engine_killed_during_a_transfer_leaves_nothing() {
    let registry = Registry::start();
    let engine = Engine::start();
    let name = format!("{}/caches/app:1", registry.host);
    let to = format!("type=registry,ref={name},mode=max");
    let context = context(&engine);
    let place = context.to_str().unwrap();
    registry.behave(Behaviour {
        upload_pause: Some(Duration::from_secs(2)),
        ..Behaviour::default()
    });
    let args = [
        "buildx",
        "build",
        "--progress",
        "plain",
        "--cache-to",
        &to,
        place,
    ];
    let mut running = docker(&engine).spawn(&args);
    eventually("the cache to be sent", || {
        (!registry.requests("/blobs/uploads").is_empty()).then_some(())
    });
    engine.kill9();
    let _ = running.finish();
    engine.restart();
    engine.has_no_builds();
    registry.behave(Behaviour::default());
    let shown = built(&engine, &context, &["--cache-to", &to]);
    all_cached(&shown, &STEPS, true);
    let other = Engine::start();
    registry.behave(Behaviour {
        pause: Some(Duration::from_millis(500)),
        ..Behaviour::default()
    });
    registry.forget_requests();
    let args = ["build", "--cache-from", &name, place];
    let mut running = docker(&other).spawn(&args);
    eventually("layers to be fetched", || {
        (fetched(&registry).len() > 1).then_some(())
    });
    other.kill9();
    let _ = running.finish();
    other.restart();
    other.has_no_builds();
    registry.behave(Behaviour::default());
    let shown = built(&other, &context, &["--cache-from", &name]);
    all_cached(&shown, &STEPS, true);
    other.has_no_builds();
}
