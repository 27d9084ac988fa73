//! Outputs of builds with BuildKit's protocol: files, archives and pushes.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use whelk_tests::builds::{BUILDKIT, docker, json_file, scanner, shows, whelk};
use whelk_tests::images::{noise, sha256};
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, Program, eventually};

#[track_caller]
fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A file of an archive that was unpacked.
fn blob(layout: &Path, digest: &Value) -> PathBuf {
    let digest = digest.as_str().unwrap().replace(':', "/");
    layout.join("blobs").join(digest)
}

fn unpacked(engine: &Engine, archive: &str, name: &str) -> PathBuf {
    let directory = engine.scratch(name);
    sh(&format!("tar -xf {archive} -C {}", directory.display()));
    directory
}

const FILES: &str = "FROM busybox\n\
    RUN mkdir -p /out/d.x /out/d && echo one > /out/d/one && ln /out/d/one /out/d/two && ln -s ../d/one /out/d.x/link && chmod 4711 /out/d/one && chmod 1777 /out/d && mknod /out/null c 1 3 && mkfifo /out/pipe && touch -d @1000000000 /out/d/one\n";

#[track_caller]
fn is_whole(root: &Path) {
    let directory = root.join("out");
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    assert_eq!(
        (read("d/one"), read("d.x/link")),
        ("one\n".into(), "one\n".into())
    );
    let stat = |name: &str| fs::symlink_metadata(directory.join(name)).unwrap();
    let (one, two) = (stat("d/one"), stat("d/two"));
    assert_eq!(one.ino(), two.ino());
    assert_eq!(one.permissions().mode() & 0o7777, 0o4711);
    assert_eq!(one.mtime(), 1_000_000_000);
    assert_eq!(stat("d").permissions().mode() & 0o7777, 0o1777);
    let target = fs::read_link(directory.join("d.x/link")).unwrap();
    assert_eq!(target, Path::new("../d/one"));
    let null = stat("null");
    assert!(null.file_type().is_char_device() && stat("pipe").file_type().is_fifo());
    assert_eq!(rustix::fs::major(null.rdev()), 1);
    assert_eq!(rustix::fs::minor(null.rdev()), 3);
}

#[test]
fn files_are_sent_to_the_client() {
    let engine = Engine::start();
    let context = engine.scratch_with("context", &[("Dockerfile", FILES)]);
    let directory = engine.scratch("files");
    fs::create_dir_all(directory.join("out/d")).unwrap();
    fs::write(directory.join("out/d/one"), "of before").unwrap();
    fs::write(directory.join("kept"), "of before").unwrap();
    let output = format!("type=local,dest={}", directory.display());
    let shown = docker(&engine).built(&context, &["-o", &output]);
    assert!(shown.contains("exporting to client directory"), "{shown}");
    assert!(shown.contains("copying files"), "{shown}");
    is_whole(&directory);
    assert!(directory.join("kept").exists());
    // Nothing was tagged or recorded.
    assert!(!engine.docker(&["images", "-aq"]).ok().contains('\n'));

    let split = engine.scratch("split");
    let output = format!("type=local,platform-split=true,dest={}", split.display());
    docker(&engine).built(&context, &["-o", &output]);
    is_whole(&split.join("linux_amd64"));

    let archive = engine.scratch("archive").join("out.tar");
    let output = format!("type=tar,dest={}", archive.display());
    let shown = docker(&engine).built(&context, &["-o", &output]);
    assert!(shown.contains("exporting to client tarball"), "{shown}");
    is_whole(&unpacked(&engine, archive.to_str().unwrap(), "from-tar"));
    let piped = docker(&engine).build(&context, &["-o", "-"]);
    piped.ok();
    assert_eq!(piped.stdout, fs::read(&archive).unwrap());

    // A file system without files.
    let empty = engine.scratch_with("empty", &[("Dockerfile", "FROM scratch\n")]);
    let none = engine.scratch("none");
    docker(&engine).built(&empty, &["-o", none.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&none).unwrap().count(), 0);
}

#[test]
fn many_and_large_files_arrive() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox AS made\n\
        RUN mkdir /out && cd /out && for i in $(seq 60); do mkdir $i && for j in $(seq 10); do echo $i-$j > $i/$j; done; done\n\
        RUN i=0; d=/out/deep; while [ $i -lt 100 ]; do d=$d/d; i=$((i+1)); done; mkdir -p $d && echo end > $d/end\n\
        COPY large /out/large\n\
        FROM scratch\n\
        COPY --from=made /out /\n";
    let context = engine.scratch_with("context", &[("Dockerfile", dockerfile)]);
    let large = noise(20 << 20);
    fs::write(context.join("large"), &large).unwrap();
    let directory = engine.scratch("files");
    docker(&engine).built(&context, &["-o", directory.to_str().unwrap()]);
    assert!(fs::read(directory.join("large")).unwrap() == large);
    let count = format!("find {} -type f | wc -l", directory.display());
    assert_eq!(sh(&count), "602");
    let all = format!(
        "cat {}/*/* 2>/dev/null | sort | uniq | wc -l",
        directory.display()
    );
    assert_eq!(sh(&all), "600");
    let deep = directory.join("deep").join("d/".repeat(100)).join("end");
    assert_eq!(fs::read_to_string(deep).unwrap(), "end\n");
}

/// Returns a blob of an OCI layout, which is what its descriptor says.
#[track_caller]
fn content(directory: &Path, descriptor: &Value) -> Vec<u8> {
    let bytes = fs::read(blob(directory, &descriptor["digest"])).unwrap();
    let digest = format!("sha256:{}", sha256(&bytes));
    assert_eq!(json!(digest), descriptor["digest"]);
    assert_eq!(json!(bytes.len()), descriptor["size"]);
    bytes
}

/// Checks a manifest of an OCI layout, and returns it.
#[track_caller]
fn manifest(directory: &Path, descriptor: &Value) -> Value {
    let manifest: Value = serde_json::from_slice(&content(directory, descriptor)).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    for descriptor in layers.iter().chain([&manifest["config"]]) {
        content(directory, descriptor);
    }
    manifest
}

/// Checks an OCI layout, and returns its entry of the index and its manifest.
#[track_caller]
fn layout(directory: &Path) -> (Value, Value) {
    let index = json_file(&directory.join("index.json"));
    let entry = index["manifests"][0].clone();
    let manifest = manifest(directory, &entry);
    (entry, manifest)
}

/// Checks an OCI layout that has one image with a bill of materials and provenance. Returns its entry of the index, and the manifest of
/// the image.
#[track_caller]
fn attested(directory: &Path) -> (Value, Value) {
    let outer = json_file(&directory.join("index.json"));
    let [entry] = outer["manifests"].as_array().unwrap().as_slice() else {
        panic!("{outer}")
    };
    let index: Value = serde_json::from_slice(&content(directory, entry)).unwrap();
    let [image, statements] = index["manifests"].as_array().unwrap().as_slice() else {
        panic!("{index}")
    };
    let about = &statements["annotations"]["vnd.docker.reference.digest"];
    assert_eq!(about, &image["digest"]);
    let statements = manifest(directory, statements);
    let kinds = statements["layers"].as_array().unwrap().iter();
    let kinds: Vec<&str> = kinds
        .map(|layer| layer["annotations"]["in-toto.io/predicate-type"].as_str())
        .map(Option::unwrap)
        .collect();
    let expected = [
        "https://spdx.dev/Document",
        "https://slsa.dev/provenance/v0.2",
    ];
    assert_eq!(kinds, expected);
    (entry.clone(), manifest(directory, image))
}

#[test]
fn archives_are_made_and_can_be_loaded() {
    let engine = Engine::start();
    let other = Engine::start();
    let dockerfile = "FROM busybox\nRUN echo packed > /file\nCMD cat /file\n";
    let context = engine.scratch_with("context", &[("Dockerfile", dockerfile)]);
    let place = engine.scratch("archives");
    let metadata = place.join("metadata.json");
    let iid = place.join("iid");
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let suffixes = ["+gzip", "+zstd", "", "+gzip"];
    let compressions = [
        "",
        ",compression=zstd,compression-level=3",
        ",compression=uncompressed",
        ",compression-level=9",
    ];
    for (number, (compression, suffix)) in compressions.into_iter().zip(suffixes).enumerate() {
        let archive = at(&format!("{number}.tar"));
        let output = format!("type=oci,dest={archive}{compression},annotation.org.example=yes");
        let args = [
            "-o",
            &output,
            "-t",
            "packed:1",
            "-t",
            "example.com/packed",
            "--metadata-file",
            metadata.to_str().unwrap(),
            "--iidfile",
            iid.to_str().unwrap(),
        ];
        docker(&engine).built(&context, &args);
        let directory = unpacked(&engine, &archive, &format!("layout-{number}"));
        let (entry, manifest) = layout(&directory);
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        assert_eq!(manifest["layers"][1]["mediaType"], json!(media_type));
        assert_eq!(manifest["annotations"]["org.example"], "yes");
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "docker.io/library/packed:1"
        );
        let told = json_file(&metadata);
        assert_eq!(told["containerimage.digest"], entry["digest"]);
        assert_eq!(
            told["containerimage.config.digest"],
            manifest["config"]["digest"]
        );
        assert_eq!(told["containerimage.descriptor"]["digest"], entry["digest"]);
        assert_eq!(
            told["image.name"],
            "docker.io/library/packed:1,example.com/packed:latest"
        );
        assert_eq!(
            json!(fs::read_to_string(&iid).unwrap()),
            manifest["config"]["digest"]
        );
        assert!(!directory.join("manifest.json").exists());
        let members = sh(&format!("tar -tf {archive}"));
        assert!(members.starts_with("blobs/\nblobs/sha256/\n"), "{members}");
        other.docker(&["load", "-i", &archive]).ok();
        assert_eq!(
            other.docker(&["run", "--rm", "example.com/packed"]).ok(),
            "packed"
        );
        other
            .docker(&["rmi", "-f", "packed:1", "example.com/packed"])
            .ok();
    }
    // Docker's form.
    let archive = at("docker.tar");
    let output = format!("type=docker,dest={archive}");
    docker(&engine).built(&context, &["-o", &output, "-t", "packed:1"]);
    let directory = unpacked(&engine, &archive, "docker");
    let (_, manifest) = layout(&directory);
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    let docker_manifest = json_file(&directory.join("manifest.json"));
    assert_eq!(docker_manifest[0]["RepoTags"], json!(["packed:1"]));
    other.docker(&["load", "-i", &archive]).ok();
    assert_eq!(other.docker(&["run", "--rm", "packed:1"]).ok(), "packed");
    // The engine that has built it has no image of it.
    assert_ne!(engine.docker(&["image", "inspect", "packed:1"]).code, 0);
    docker(&engine).built(&context, &["--load", "-t", "loaded"]);
    assert_eq!(engine.docker(&["run", "--rm", "loaded"]).ok(), "packed");
}

#[test]
fn several_outputs_at_once() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN echo several > /file\n";
    let context = engine.scratch_with("context", &[("Dockerfile", dockerfile)]);
    let place = engine.scratch("outputs");
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let (local, archive, layout_directory) = (at("local"), at("oci.tar"), at("layout"));
    let outputs = [
        format!("type=local,dest={local}"),
        format!("type=oci,dest={archive}"),
        "type=image".to_owned(),
        format!("type=oci,tar=false,dest={layout_directory}"),
    ];
    let mut args: Vec<&str> = outputs
        .iter()
        .flat_map(|output| ["--output", output])
        .collect();
    args.extend(["-t", "several"]);
    docker(&engine).built(&context, &args);
    let file = Path::new(&local).join("file");
    assert_eq!(fs::read_to_string(file).unwrap(), "several\n");
    let look = ["run", "--rm", "several", "cat", "/file"];
    assert_eq!(engine.docker(&look).ok(), "several");
    let (entry, _) = layout(&unpacked(&engine, &archive, "unpacked"));
    let (same, _) = layout(Path::new(&layout_directory));
    assert_eq!(entry["digest"], same["digest"]);
    // What is there already is not sent again.
    let output = format!("type=oci,tar=false,dest={layout_directory}");
    docker(&engine).built(&context, &["-o", &output, "-t", "several"]);
    layout(Path::new(&layout_directory));
}

#[test]
fn several_outputs_have_attestations_of_their_own() {
    const SCAN: &str = "echo '{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"spdxVersion\":\"SPDX-2.3\"}}' > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json";
    let engine = Engine::start();
    scanner(&engine, "scanner", SCAN);
    let context = engine.dockerfile("context", "FROM busybox\nRUN echo several > /file\n");
    let clients = || [docker(&engine), whelk(&engine)].into_iter().enumerate();
    for (number, client) in clients() {
        let place = engine.scratch(&format!("outputs-{number}"));
        let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
        let (archive, directory, metadata) = (at("oci.tar"), at("layout"), at("metadata"));
        // The last one is not the layout.
        let outputs = [
            format!("type=oci,dest={archive},name=archived:1,compression=zstd"),
            format!("type=oci,tar=false,dest={directory},name=laid:1"),
            format!("type=image,name=imaged:{number}"),
        ];
        let mut args: Vec<&str> = outputs
            .iter()
            .flat_map(|output| ["--output", output])
            .collect();
        args.extend(["--sbom=generator=scanner", "--provenance=mode=max"]);
        // Otherwise it is one image, with what both clients have had said of it.
        let label = format!("client={number}");
        args.extend(["--metadata-file", &metadata, "--label", &label]);
        client.built(&context, &args);
        let name = "io.containerd.image.name";
        let (entry, manifest) =
            attested(&unpacked(&engine, &archive, &format!("unpacked-{number}")));
        assert_eq!(entry["annotations"][name], "docker.io/library/archived:1");
        let media_type = manifest["layers"][1]["mediaType"].as_str().unwrap();
        assert!(media_type.ends_with("+zstd"), "{media_type}");
        let (entry, manifest) = attested(Path::new(&directory));
        assert_eq!(entry["annotations"][name], "docker.io/library/laid:1");
        let media_type = manifest["layers"][1]["mediaType"].as_str().unwrap();
        assert!(media_type.ends_with("+gzip"), "{media_type}");
        let told = json_file(Path::new(&metadata));
        assert_eq!(told["containerimage.descriptor"]["digest"], entry["digest"]);
        assert_eq!(told["image.name"], "docker.io/library/laid:1");
        let image = format!("/images/imaged:{number}/json?manifests=true");
        let manifests = engine.get(&image)["Manifests"].clone();
        let kinds = manifests.as_array().unwrap().iter();
        let kinds: Vec<&Value> = kinds.map(|one| &one["Kind"]).collect();
        assert_eq!(kinds, [&json!("image"), &json!("attestation")]);
        let image = format!("imaged:{number}");
        let look = ["run", "--rm", &image, "cat", "/file"];
        assert_eq!(engine.docker(&look).ok(), "several");
    }
    // A layout without a name has not that of another output.
    for (number, client) in clients() {
        let place = engine.scratch("unnamed").join(number.to_string());
        let output = format!("type=oci,tar=false,dest={}", place.display());
        let args = ["-o", &output, "-o", "type=image,name=imaged:3"];
        client.built(&context, &args);
        let annotations = layout(&place).0["annotations"].clone();
        assert_eq!(annotations["org.opencontainers.image.ref.name"], "latest");
        assert_eq!(annotations["io.containerd.image.name"], Value::Null);
    }
}

#[test]
fn a_result_may_be_kept_by_the_cache_alone() {
    let engine = Engine::start();
    for (client, name) in [(docker(&engine), "docker"), (whelk(&engine), "whelk")] {
        let text = format!("FROM busybox\nRUN --network=none echo {name} > /x\n");
        let context = engine.dockerfile(name, &text);
        client.built(&context, &["-o", "type=cacheonly", "-t", name]);
        assert_ne!(engine.docker(&["image", "inspect", name]).code, 0);
        shows(&client.built(&context, &["-t", name]), &["CACHED\n"]);
    }
}

#[test]
fn attributes_are_refused_by_name() {
    let engine = Engine::start();
    let context = engine.scratch_with("context", &[("Dockerfile", "FROM busybox\n")]);
    let place = engine.scratch("none").join("x");
    let place = place.to_str().unwrap();
    for (output, expected) in [
        ("type=image,compression=estargz", "compression=estargz"),
        ("type=image,compression-level=10", "from 0 to 9"),
        (
            "type=image,push=true,name=example.com/a,registry.insecure=true",
            "registry.insecure=true for example.com",
        ),
        ("type=image,annotation-none.a=b", "annotation-none.a"),
        (
            "type=image,annotation-index.a=b",
            "index annotations not supported for single platform export",
        ),
        (
            "type=image,annotation[linux/s390x].a=b",
            "no platform linux/s390x found in source",
        ),
        ("type=oci,dest=x,compression=estargz", "compression=estargz"),
        ("type=oci,dest=x,compression-level=99", "99"),
        ("type=tar,dest=x,platform-split=perhaps", "platform-split"),
        ("type=local,dest=x,unknown=1", "unknown"),
    ] {
        let output = output.replace("dest=x", &format!("dest={place}-{}", output.len()));
        docker(&engine).build_fails(&context, &["-o", &output], &[expected]);
    }
}

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    fn new(engine: &Engine) -> Self {
        let place = engine.scratch("small");
        sh(&format!(
            "mount -t tmpfs -o size=1m none {}",
            place.display()
        ));
        Self(place)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn clients_that_fail_or_leave_do_no_harm() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nCOPY large /large\n";
    let context = engine.scratch_with("context", &[("Dockerfile", dockerfile)]);
    fs::write(context.join("large"), noise(30 << 20)).unwrap();
    let small = Small::new(&engine);
    for (number, kind) in ["local", "tar", "oci", "docker", "oci,tar=false"]
        .into_iter()
        .enumerate()
    {
        let output = format!("type={kind},dest={}/{number}", small.0.display());
        docker(&engine).build_fails(&context, &["-o", &output], &["no space left on device"]);
    }
    drop(small);
    // A pipe that nobody reads.
    let pipe = engine.scratch("pipe").join("pipe");
    sh(&format!("mkfifo {}", pipe.display()));
    let context_text = context.to_str().unwrap();
    for (kind, signal) in [("tar", Signal::INT), ("oci", Signal::KILL)] {
        let output = format!("type={kind},dest={}", pipe.display());
        let args = [
            "buildx",
            "build",
            "--progress",
            "plain",
            "-o",
            &output,
            context_text,
        ];
        let mut client = docker(&engine).spawn(&args);
        let reader = fs::File::options()
            .read(true)
            .write(true)
            .open(&pipe)
            .unwrap();
        eventually("it is being sent", || {
            client
                .errors_so_far()
                .contains("sending tarball")
                .then_some(())
        });
        client.signal(signal);
        assert_ne!(client.finish().code, 0);
        drop(reader);
    }
    let piped = format!(
        "{} buildx build -o - {context_text} 2>/dev/null | head -c 1 | wc -c",
        Program::Docker.path().display()
    );
    let host = format!("unix://{}", engine.socket().display());
    // There the client finds its plugins.
    let configuration = engine.root().with_file_name("docker-config");
    let output = Command::new("sh")
        .args(["-c", &piped])
        .env("DOCKER_HOST", &host)
        .env("DOCKER_CONFIG", &configuration)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1");
    // All is as before, and nothing is left of what was being packed.
    let directory = engine.scratch("after");
    docker(&engine).built(&context, &["-o", directory.to_str().unwrap()]);
    assert!(directory.join("large").exists());
    let left = engine.root().join("tmp");
    eventually("nothing is left", || {
        (fs::read_dir(&left).unwrap().count() == 0).then_some(())
    });
}

#[test]
fn the_same_sources_give_the_same_archive() {
    let dockerfile = "FROM busybox\n\
        RUN mkdir -p /made/d && date > /dev/null && echo content > /made/d/file && touch -d @5 /made/old\n\
        WORKDIR /srv\n\
        COPY file /srv/\n\
        ENV A=b\n";
    let (mut archives, mut ids) = (Vec::new(), Vec::new());
    for seconds in [1_000_000_000, 1_600_000_000] {
        let engine = Engine::start();
        let files = [("Dockerfile", dockerfile), ("file", "content")];
        let context = engine.scratch_with("context", &files);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = fs::File::options().write(true).open(context.join("file"));
        file.unwrap().set_modified(time).unwrap();
        let archive = engine.scratch("archive").join("out.tar");
        let output = format!("type=oci,rewrite-timestamp=true,dest={}", archive.display());
        let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=900000000"];
        let args = [&epoch[..], &["-o", &output, "-t", "same"]].concat();
        docker(&engine).built(&context, &args);
        archives.push(fs::read(&archive).unwrap());
        let args = [
            &epoch[..],
            &["-o", "type=image,rewrite-timestamp=true", "-t", "same"],
        ]
        .concat();
        docker(&engine).built(&context, &args);
        let image = engine.get("/images/same/json");
        assert_eq!(image["Created"], "1998-07-09T16:00:00Z");
        ids.push(image["Id"].clone());
        let look = [
            "run",
            "--rm",
            "same",
            "stat",
            "-c",
            "%n %Y",
            "/srv",
            "/srv/file",
            "/made/d",
            "/made/old",
        ];
        assert_eq!(
            engine.docker(&look).ok(),
            "/srv 900000000\n/srv/file 900000000\n/made/d 900000000\n/made/old 5"
        );
        // Files have the time too, in all forms.
        let directory = engine.scratch("files");
        let args = [&epoch[..], &["-o", directory.to_str().unwrap()]].concat();
        docker(&engine).built(&context, &args);
        let file = fs::metadata(directory.join("srv/file")).unwrap();
        assert_eq!(file.mtime(), 900_000_000);
    }
    assert_eq!(sha256(&archives[0]), sha256(&archives[1]));
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn images_are_pushed() {
    let engine = Engine::start();
    let registry = Registry::start();
    let dockerfile = "FROM busybox\nRUN echo pushed > /file\nCMD cat /file\n";
    let context = engine.scratch_with("context", &[("Dockerfile", dockerfile)]);
    let names = ["1", "2"].map(|tag| format!("{}/a/b:{tag}", registry.host));
    let metadata = engine.scratch("metadata").join("file");
    let args = [
        "--push",
        "-t",
        &names[0],
        "-t",
        &names[1],
        "--metadata-file",
        metadata.to_str().unwrap(),
    ];
    let shown = docker(&engine).built(&context, &args);
    assert!(shown.contains("pushing manifest for"), "{shown}");
    let digest = json_file(&metadata)["containerimage.digest"].clone();
    let other = Engine::without_images(&[]);
    for name in &names {
        assert_eq!(other.docker(&["run", "--rm", name]).ok(), "pushed");
    }
    let digests = other.get(&format!("/images/{}/json", names[0]))["RepoDigests"].clone();
    let expected = format!("{}/a/b@{}", registry.host, digest.as_str().unwrap());
    assert_eq!(digests, json!([expected]));
    // What the registry refuses fails the build.
    registry.behave(Behaviour {
        is_read_only: true,
        ..Behaviour::default()
    });
    let output = format!("type=image,push=true,name={}/other:1", registry.host);
    docker(&engine).build_fails(&context, &["-o", &output], &["failed to push"]);
    docker(&engine).build_fails(&context, &["--push"], &["tag is needed"]);
    // With the credentials of the client.
    registry.behave(Behaviour {
        authorization: Some("Basic dXNlcjpwYXNzd29yZA==".into()),
        ..Behaviour::default()
    });
    let name = format!("{}/private:1", registry.host);
    docker(&engine).build_fails(&context, &["--push", "-t", &name], &["failed to push"]);
    let config = engine.scratch("config");
    let plugins = engine
        .docker(&["info", "--format", "{{json .ClientInfo.Plugins}}"])
        .ok();
    let plugins: Value = serde_json::from_str(&plugins).unwrap();
    let buildx = plugins
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["Name"] == "buildx");
    let buildx = Path::new(buildx.unwrap()["Path"].as_str().unwrap());
    let auths = json!({"cliPluginsExtraDirs": [buildx.parent()], "auths": {&registry.host: {"auth": "dXNlcjpwYXNzd29yZA=="}}});
    fs::write(config.join("config.json"), auths.to_string()).unwrap();
    let env = [BUILDKIT[0], ("DOCKER_CONFIG", config.to_str().unwrap())];
    let args = [
        "buildx",
        "build",
        "--push",
        "-t",
        &name,
        context.to_str().unwrap(),
    ];
    engine.cli(Program::Docker).with_env(&env).run(&args).ok();
}

/// As CI does it for several machines: each pushes its image without a tag, and the digests become an index.
#[test]
fn images_are_pushed_by_digest() {
    let engine = Engine::start();
    let registry = Registry::start();
    let socket = engine.scratch("sockets").join("buildkitd.sock");
    let host = format!("unix://{}", socket.display());
    engine.kill9();
    engine.set_arguments(&["--buildkit-host", &host]);
    engine.restart();
    let buildx = |args: &[&str]| docker(&engine).run(&[&["buildx"], args].concat());
    buildx(&["create", "--name", "far", "--driver", "remote", &host]).ok();
    let dockerfile = "FROM busybox\nRUN echo pushed > /file\nCMD cat /file\n";
    let context = engine.dockerfile("context", dockerfile);
    let metadata = engine.scratch("metadata").join("file");
    let other = Engine::without_images(&[]);
    for (number, attestation) in ["--provenance=false", "--provenance=mode=max"]
        .into_iter()
        .enumerate()
    {
        for is_whelk in [false, true] {
            let repository = format!("a/b{number}{is_whelk}");
            let name = format!("{}/{repository}", registry.host);
            let output =
                format!("type=image,name={name},push-by-digest=true,name-canonical=true,push=true");
            let metadata = metadata.to_str().unwrap();
            let args = [
                "build",
                "--output",
                &output,
                attestation,
                "--metadata-file",
                metadata,
                context.to_str().unwrap(),
            ];
            let shown = match is_whelk {
                true => whelk(&engine).run(&args).exits(0),
                false => buildx(&[&["--builder", "far"], &args[..]].concat()).exits(0),
            };
            shows(&shown, &["pushing manifest for"]);
            let told = json_file(Path::new(metadata));
            assert_eq!(told["image.name"], json!(name));
            let digest = told["containerimage.digest"].as_str().unwrap();
            let (document, found) = registry.manifest_of(&repository, digest).unwrap();
            assert_eq!(found, digest);
            assert_eq!(document["manifests"].is_array(), number == 1, "{document}");
            assert_eq!(registry.manifest_of(&repository, "latest"), None);
            let by_digest = format!("{name}@{digest}");
            let run = ["run", "--rm", "--network=none", &by_digest];
            assert_eq!(other.docker(&run).ok(), "pushed");
            let run = [&["run", "--pull=never"], &run[1..]].concat();
            assert_eq!(engine.docker(&run).ok(), "pushed");
            assert_ne!(engine.docker(&["image", "inspect", &name]).code, 0);
        }
    }
    let tagged = format!(
        "type=image,name={}/a:1,push-by-digest=true,push=true",
        registry.host
    );
    let expected = ["can't push tagged ref", "by digest"];
    whelk(&engine).build_fails(&context, &["-o", &tagged], &expected);
}

#[test]
fn images_have_the_form_that_outputs_ask_for() {
    let engine = Engine::start();
    let registry = Registry::start();
    let dockerfile = "FROM busybox\nRUN echo pushed > /file\nCMD cat /file\n";
    let context = engine.dockerfile("context", dockerfile);
    let metadata = engine.scratch("metadata").join("file");
    let other = Engine::without_images(&[]);
    let (oci, docker_types) = (
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    );
    for (number, (attributes, kind)) in [
        (
            "compression=zstd,registry.insecure=true",
            format!("{oci}+zstd"),
        ),
        ("compression=uncompressed", oci.to_owned()),
        ("compression-level=1", format!("{oci}+gzip")),
        ("oci-mediatypes=false", docker_types.to_owned()),
        ("force-compression=true,store=false", format!("{oci}+gzip")),
    ]
    .into_iter()
    .enumerate()
    {
        for (client, is_whelk) in [(docker(&engine), false), (whelk(&engine), true)] {
            let repository = format!("form{is_whelk}");
            let name = format!("{}/{repository}:{number}", registry.host);
            let output = format!("type=image,push=true,name={name},{attributes}");
            let file = metadata.to_str().unwrap();
            client.built(&context, &["-o", &output, "--metadata-file", file]);
            let tag = number.to_string();
            let (manifest, digest) = registry.manifest_of(&repository, &tag).unwrap();
            let layers = manifest["layers"].as_array().unwrap();
            assert!(
                layers.iter().all(|layer| layer["mediaType"] == kind),
                "{manifest}"
            );
            assert_eq!(json_file(&metadata)["containerimage.digest"], json!(digest));
            assert_eq!(other.docker(&["run", "--rm", &name]).ok(), "pushed");
            other.docker(&["rmi", &name]).ok();
            let inspected = engine.docker(&["image", "inspect", &name]);
            if attributes.contains("store=false") {
                assert_ne!(inspected.code, 0);
                continue;
            }
            inspected.ok();
            // What the registry has stays as it is.
            engine.docker(&["push", &name]).ok();
            let again = registry.manifest_of(&repository, &tag).unwrap();
            assert_eq!(again.1, digest);
        }
    }
}
