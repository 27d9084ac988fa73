//! Parameters of `POST /build`, one by one.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use whelk_tests::Engine;
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::tar::Tar;

struct Built {
    status: u16,
    text: String,
}

fn build(engine: &Engine, query: &str, headers: &[(&str, &str)], body: &[u8]) -> Built {
    let query = query
        .replace('"', "%22")
        .replace('{', "%7B")
        .replace('}', "%7D");
    let query = query.replace('[', "%5B").replace(']', "%5D");
    let answer = engine.http("POST", &format!("/build?{query}"), headers, body);
    Built {
        status: answer.status,
        text: answer.text(),
    }
}

fn context(dockerfile: &str) -> Vec<u8> {
    let archive = Tar::new().file("Dockerfile", dockerfile);
    archive.file("x", "of the context").finish()
}

#[test]
fn parameters_of_classic_builds_have_their_effect() {
    let engine = Engine::start();
    engine.docker(&["tag", "busybox", "localhost:1/own:1"]).ok();
    let network = ["network", "create", "--subnet", "10.211.7.0/24", "own"];
    engine.docker(&network).ok();
    let stages = "FROM busybox AS one\nRUN echo from-one\nFROM busybox AS two\nRUN echo from-two\n";
    // Files of cgroups of both versions.
    let cpu = "cd /sys/fs/cgroup; cat cpu.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu.weight cpu/cpu.shares memory.max memory/memory.limit_in_bytes 2>/dev/null | tr '\\n' ' '; nproc; true";
    let limits = format!("FROM busybox\nRUN {cpu}\n");
    // Of 512 shares, with version 2 the weight.
    let shares = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => " 59 ",
        false => " 512 ",
    };
    let argument = "FROM busybox\nARG X=default\nARG Y=default\nRUN echo x-$X-y-$Y\n";
    // Texts that are there, and texts that are not.
    let cases: &[(&str, &str, &[&str], &[&str])] = &[
        ("target=one", stages, &["from-one"], &["from-two"]),
        ("target=TWO", stages, &["from-two"], &["from-one"]),
        ("target=none", stages, &["none"], &["Successfully"]),
        (
            "t=a:1&t=b:2&t=a:1",
            stages,
            &["tagged a:1", "tagged b:2"],
            &[],
        ),
        (
            "t=a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            stages,
            &["build tag cannot contain a digest"],
            &["Step"],
        ),
        (
            "buildargs={\"X\":null,\"Y\":\"set\"}",
            argument,
            &["x-default-y-set"],
            &[],
        ),
        (
            "buildargs={\"X\":1}",
            argument,
            &["error reading build args"],
            &["Step"],
        ),
        (
            "labels={\"a\":\"b\"}&t=labelled",
            stages,
            &["tagged labelled"],
            &[],
        ),
        (
            "cpuquota=50000&cpuperiod=100000",
            &limits,
            &["50000", "100000"],
            &[],
        ),
        (
            "cpushares=512&nocache=1&cpusetcpus=0",
            &limits,
            &[shares, "1\\n"],
            &[],
        ),
        (
            "memory=67108864&memswap=67108864&nocache=1",
            &limits,
            &["67108864"],
            &[],
        ),
        ("cpuquota=much", &limits, &["much"], &["Step"]),
        (
            "cpusetcpus=999&nocache=1",
            &limits,
            &["999"],
            &["Successfully"],
        ),
        (
            "networkmode=own",
            "FROM busybox\nRUN hostname -i; ip route\n",
            &["10.211.7."],
            &[],
        ),
        (
            "networkmode=none-such",
            stages,
            &["none-such"],
            &["Successfully"],
        ),
        (
            "rm=0",
            stages,
            &["Successfully built"],
            &["Removed intermediate container", "Removing intermediate"],
        ),
        ("rm=1&nocache=1", stages, &["Successfully built"], &[]),
        (
            "pull=0",
            "FROM localhost:1/own:1\n",
            &["Successfully built"],
            &[],
        ),
        // The registry is asked, also for an image that is here.
        (
            "pull=1",
            "FROM localhost:1/own:1\n",
            &["localhost:1"],
            &["Successfully"],
        ),
        (
            "platform=linux/arm64&t=foreign",
            "FROM scratch\nCOPY x /x\n",
            &["tagged foreign"],
            &[],
        ),
        ("dockerfile=other", stages, &["other"], &["Step"]),
        ("q=1", stages, &["sha256:"], &["Step"]),
        (
            "",
            "FROM busybox\nRUN exit 7\n",
            &["\"code\":7", "returned a non-zero code: 7"],
            &["Successfully"],
        ),
        (
            "securityopt=[\"seccomp=x\"]",
            stages,
            &["security options"],
            &["Step"],
        ),
        ("isolation=hyperv", stages, &["isolation"], &["Step"]),
        (
            "version=2&securityopt=[\"seccomp=x\"]",
            stages,
            &["security options"],
            &["moby"],
        ),
        (
            "version=2&isolation=hyperv",
            stages,
            &["isolation"],
            &["moby"],
        ),
    ];
    for (query, dockerfile, there, missing) in cases {
        let built = build(&engine, query, &[], &context(dockerfile));
        for text in *there {
            assert!(
                built.text.contains(text),
                "{query}: {text} in {}",
                built.text
            );
        }
        for text in *missing {
            assert!(
                !built.text.contains(text),
                "{query}: {text} in {}",
                built.text
            );
        }
    }
    assert_eq!(engine.image("labelled")["Config"]["Labels"]["a"], "b");
    assert_eq!(engine.image("foreign")["Architecture"], "arm64");
    // The id is told in the form that SDKs read.
    let built = build(&engine, "t=told", &[], &context(stages));
    let aux = built.text.lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["aux"]["ID"].as_str().map(str::to_owned)
    });
    assert_eq!(aux, engine.image("told")["Id"].as_str().map(str::to_owned));
    // Credentials that cannot be read are none.
    let headers = [("X-Registry-Config", "no base64")];
    let built = build(&engine, "", &headers, &context(stages));
    assert!(built.text.contains("Successfully built"), "{}", built.text);
    let ping = engine.http("GET", "/_ping", &[], b"");
    assert_eq!(ping.header("builder-version"), Some("2"));
}

#[test]
fn base_images_are_pulled_with_the_credentials_of_the_client() {
    use base64::Engine as _;
    let engine = Engine::start();
    let registry = Registry::start();
    let name = format!("{}/private:1", registry.host);
    engine.docker(&["tag", "busybox", &name]).ok();
    engine.docker(&["push", &name]).ok();
    engine.docker(&["rmi", &name]).ok();
    registry.behave(Behaviour {
        authorization: Some("Basic dXNlcjpwYXNzd29yZA==".into()),
        ..Behaviour::default()
    });
    let context = context(&format!("FROM {name}\nCOPY x /x\n"));
    for (password, is_built) in [("wrong", false), ("password", true)] {
        let credentials = json!({"username": "user", "password": password});
        let config = json!({&registry.host: credentials}).to_string();
        let config = base64::engine::general_purpose::URL_SAFE.encode(config);
        let headers = [("X-Registry-Config", config.as_str())];
        let built = build(&engine, "t=of-private", &headers, &context);
        let found = built.text.contains("Successfully tagged of-private");
        assert_eq!(found, is_built, "{password}: {}", built.text);
        assert!(!built.text.contains(&config), "{}", built.text);
    }
}

/// Returns bytes as a zstd frame that is not compressed.
pub(super) fn zstd(content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 128 << 10;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
    let count = content.chunks(BLOCK).count();
    for (number, block) in content.chunks(BLOCK).enumerate() {
        let is_last = u32::from(number + 1 == count);
        let header = is_last | (u32::try_from(block.len()).unwrap() << 3);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}

#[test]
fn contexts_may_be_compressed() {
    let engine = Engine::start();
    let plain = context("FROM busybox\nCOPY x /x\nRUN echo $(cat /x)\n");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    for (name, body) in [
        ("plain", plain.clone()),
        ("gzip", gzip.clone()),
        ("zstd", zstd(&plain)),
    ] {
        for version in ["1", "2"] {
            let query = format!("version={version}&networkmode=none&t={name}:{version}");
            let built = build(&engine, &query, &[], &body);
            assert_eq!(built.status, 200, "{query}: {}", built.text);
            let image = engine.image(&format!("{name}:{version}"));
            let layers = image["RootFS"]["Layers"].as_array().unwrap();
            assert!(layers.len() > 1, "{query}");
        }
    }
    // Of one that ends too early nothing is built.
    for version in ["1", "2"] {
        let query = format!("version={version}&t=cut");
        let built = build(&engine, &query, &[], &gzip[..gzip.len() / 2]);
        assert!(built.text.contains("message"), "{}", built.text);
        assert_eq!(engine.api("GET", "/images/cut/json", None).0, 404);
    }
    engine.has_no_builds();
}
