//! What builds say about their results: provenance, and bills of materials.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use whelk_tests::builds::{docker, json_file, scanner, whelk};
use whelk_tests::images::OWN_ARCHITECTURE;
use whelk_tests::registry::Registry;
use whelk_tests::{Engine, Program};

const DOCKERFILE: &str = "ARG BUILDKIT_SBOM_SCAN_STAGE=true\nARG BUILDKIT_SBOM_SCAN_CONTEXT=true\n\
    FROM busybox AS stage\nRUN echo staged > /staged\n\
    FROM busybox\nARG WHAT\nCOPY --from=stage /staged /staged\nCOPY file /file\n\
    RUN --mount=type=secret,id=key,required=false echo $WHAT > /made\n";

fn context(engine: &Engine, dockerfile: &str) -> PathBuf {
    engine.scratch_with("context", &[("Dockerfile", dockerfile), ("file", "x")])
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns what buildx finds in a registry.
fn imagetools(engine: &Engine, name: &str, field: &str) -> Value {
    let format = format!("{{{{json .{field}}}}}");
    let words = ["buildx", "imagetools", "inspect", "--format", &format, name];
    parsed(&docker(engine).run(&words).ok())
}

#[test]
fn provenance_is_beside_the_image() {
    let engine = Engine::start();
    let registry = Registry::start();
    let context = context(&engine, DOCKERFILE);
    let name = format!("{}/app:1", registry.host);
    let metadata = engine.scratch("metadata").join("file");
    let id = engine.scratch("id").join("file");
    let args = [
        "--provenance=mode=max",
        "--build-arg",
        "WHAT=built",
        "-t",
        &name,
        "--push",
        "--metadata-file",
        metadata.to_str().unwrap(),
        "--iidfile",
        id.to_str().unwrap(),
    ];
    let shown = docker(&engine).built(&context, &args);
    assert!(shown.contains("exporting attestation manifest"), "{shown}");
    // The id stays that of the configuration.
    let id = fs::read_to_string(id).unwrap();
    assert_eq!(
        engine.docker(&["run", "--rm", &id, "cat", "/made"]).ok(),
        "built"
    );
    assert_eq!(
        engine.get(&format!("/images/{name}/json"))["Id"],
        id.as_str()
    );
    let index = imagetools(&engine, &name, "Manifest");
    let told = json_file(&metadata);
    assert_eq!(index["digest"], told["containerimage.digest"]);
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries[0]["platform"]["architecture"], OWN_ARCHITECTURE);
    assert_eq!(entries[1]["platform"]["os"], "unknown");
    let annotations = &entries[1]["annotations"];
    assert_eq!(
        annotations["vnd.docker.reference.type"],
        "attestation-manifest"
    );
    assert_eq!(
        annotations["vnd.docker.reference.digest"],
        entries[0]["digest"]
    );
    let slsa = imagetools(&engine, &name, "Provenance")["SLSA"].clone();
    let parameters = &slsa["invocation"]["parameters"];
    assert_eq!(parameters["frontend"], "dockerfile.v0");
    assert_eq!(parameters["args"]["build-arg:WHAT"], "built");
    assert_eq!(
        parameters["secrets"],
        json!([{"id": "key", "optional": true}])
    );
    let material = slsa["materials"][0]["uri"].as_str().unwrap();
    assert!(
        material.starts_with("pkg:docker/busybox@latest?platform=linux%2F"),
        "{material}"
    );
    let own = &slsa["metadata"]["https://mobyproject.org/buildkit@v1#metadata"];
    assert_eq!(own["source"]["infos"][0]["filename"], "Dockerfile");
    let layers = own["layers"].as_object().unwrap();
    assert!(
        layers
            .values()
            .all(|layers| layers[0][0]["digest"].is_string())
    );
    // What the file of metadata has is less.
    let short = &told["buildx.build.provenance"];
    assert_eq!(
        short["invocation"]["parameters"]["frontend"],
        "dockerfile.v0"
    );
    // A push of the engine's own has it, too; also after a restart.
    engine.kill9();
    engine.restart();
    let other = Registry::start();
    let again = format!("{}/again:2", other.host);
    engine.docker(&["tag", &name, &again]).ok();
    engine.docker(&["push", &again]).ok();
    assert_eq!(imagetools(&engine, &again, "Provenance")["SLSA"], slsa);
    let check = engine.cli(Program::Whelk).run(&["system", "check"]);
    check.ok();
    // It is removed with the image.
    engine.docker(&["rmi", &name, &again]).ok();
    let check = engine.cli(Program::Whelk).run(&["system", "check"]);
    check.ok();
}

#[test]
fn the_history_has_provenance_of_all_builds() {
    let engine = Engine::start();
    let context = context(&engine, DOCKERFILE);
    docker(&engine).built(&context, &["-t", "plain", "--build-arg", "WHAT=x"]);
    // Without being told to, an image of the engine is what it was.
    let manifests = engine.get("/images/plain/json?manifests=true");
    assert_eq!(manifests["Manifests"].as_array().map_or(0, Vec::len), 0);
    let inspect = ["buildx", "history", "inspect", "--format", "json"];
    let record = parsed(&docker(&engine).run(&inspect).ok());
    let materials = record["Materials"].as_array().unwrap();
    assert_eq!(materials.len(), 1, "{record}");
    let attachments = record["Attachments"].as_array().unwrap();
    let kinds: Vec<&Value> = attachments.iter().map(|one| &one["Type"]).collect();
    assert!(
        kinds.contains(&&json!("https://slsa.dev/provenance/v0.2")),
        "{record}"
    );
    let attachment = [
        "buildx",
        "history",
        "inspect",
        "attachment",
        "--type",
        "provenance",
    ];
    let predicate = parsed(&docker(&engine).run(&attachment).ok());
    let arguments = &predicate["invocation"]["parameters"]["args"];
    assert_eq!(arguments["build-arg:WHAT"], "x");
    for (flag, expected) in [
        ("--provenance=mode=most", "invalid mode"),
        ("--provenance=version=v7", "invalid provenance SLSA version"),
        ("--provenance=capture-usage=true", "capture-usage"),
        ("--attest=type=other", "unknown attestation type"),
    ] {
        docker(&engine).build_fails(&context, &[flag], &[expected]);
    }
}

const SCAN: &str = "set -e\ncd $BUILDKIT_SCAN_DESTINATION\n\
    for from in $BUILDKIT_SCAN_SOURCE $(ls -d ${BUILDKIT_SCAN_SOURCE_EXTRAS:-/none/}* 2>/dev/null); do\n\
    name=$(basename $from)\n\
    ! touch $from/x 2>/dev/null\n\
    files=$(cd $from && ls | tr '\\n' ' ')\n\
    printf '{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"spdxVersion\":\"SPDX-2.3\",\"name\":\"%s\",\"comment\":\"%s%s\"}}' $name \"$files\" \"$BUILDKIT_SCAN_LEVEL\" > $name.spdx.json\n\
    done\n";

#[test]
fn bills_of_materials_are_made_by_a_program_in_an_image() {
    let engine = Engine::start();
    let registry = Registry::start();
    scanner(&engine, "scanner", SCAN);
    let context = context(&engine, DOCKERFILE);
    let name = format!("{}/app:1", registry.host);
    let args = [
        "--attest=type=sbom,generator=scanner,LEVEL=7",
        "--provenance=false",
        "-t",
        &name,
        "--push",
    ];
    let shown = docker(&engine).built(&context, &args);
    assert!(
        shown.contains("generating sbom using docker.io/library/scanner"),
        "{shown}"
    );
    let sbom = imagetools(&engine, &name, "SBOM");
    let comment = sbom["SPDX"]["comment"].as_str().unwrap();
    assert!(comment.contains("made") && comment.ends_with('7'), "{sbom}");
    let more = sbom["AdditionalSPDXs"].as_array().unwrap();
    let names: Vec<&str> = more
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["sbom-context", "sbom-stage"], "{sbom}");
    assert_eq!(imagetools(&engine, &name, "Provenance"), json!({}));
    let attachment = [
        "buildx",
        "history",
        "inspect",
        "attachment",
        "--type",
        "sbom",
    ];
    let statement = parsed(&docker(&engine).run(&attachment).ok());
    assert_eq!(statement["predicateType"], "https://spdx.dev/Document");
}

#[test]
fn statements_are_beside_files_and_in_archives() {
    let engine = Engine::start();
    scanner(&engine, "scanner", SCAN);
    let context = context(&engine, DOCKERFILE);
    let place = engine.scratch("files");
    let output = format!(
        "type=local,dest={},attestation-prefix=about-",
        place.display()
    );
    let args = [
        "--sbom=generator=scanner",
        "--provenance=mode=min",
        "-o",
        &output,
    ];
    docker(&engine).built(&context, &args);
    let statement = json_file(&place.join("about-provenance.json"));
    let subjects = statement["subject"].as_array().unwrap();
    let made = subjects
        .iter()
        .find(|subject| subject["name"] == "made")
        .unwrap();
    assert_eq!(made["digest"]["sha256"].as_str().unwrap().len(), 64);
    assert!(
        subjects
            .iter()
            .all(|subject| subject["name"] != "about-provenance.json")
    );
    assert!(place.join("about-sbom.spdx.json").exists());
    let archive = place.join("archive.tar");
    let output = format!("type=tar,dest={}", archive.display());
    docker(&engine).built(&context, &["--sbom=generator=scanner", "-o", &output]);
    let listed = Command::new("tar")
        .arg("-tf")
        .arg(&archive)
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.contains("sbom.spdx.json") && !listed.contains("provenance.json"),
        "{listed}"
    );
    // In an archive of an image.
    let archive = place.join("oci.tar");
    let output = format!("type=oci,dest={}", archive.display());
    docker(&engine).built(&context, &["--sbom=generator=scanner", "-o", &output]);
    // Docker's media types have none, so they are OCI's nevertheless, as with BuildKit.
    let output = format!("{output},oci-mediatypes=false");
    docker(&engine).built(&context, &["--sbom=generator=scanner", "-o", &output]);
    let unpack = ["-xOf", archive.to_str().unwrap(), "index.json"];
    let index = Command::new("tar").args(unpack).output().unwrap();
    let index = parsed(&String::from_utf8_lossy(&index.stdout));
    let kind = "application/vnd.oci.image.index.v1+json";
    assert_eq!(index["manifests"][0]["mediaType"], kind);
    // With whelk's own client, which tells the id of the image, not that of its index.
    let id = place.join("id");
    let words = [
        "build",
        "-q",
        "--sbom",
        "generator=scanner",
        "--provenance",
        "mode=max",
        "--label",
        "of=whelk",
        "-t",
        "whelks",
        "--iidfile",
        id.to_str().unwrap(),
        context.to_str().unwrap(),
    ];
    let told = engine.cli(Program::Whelk).run(&words).ok();
    assert_eq!(told, engine.image("whelks")["Id"]);
    assert_eq!(told, fs::read_to_string(id).unwrap());
    let manifests = engine.get("/images/whelks/json?manifests=true")["Manifests"].clone();
    let kinds: Vec<&Value> = manifests
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["Kind"])
        .collect();
    assert_eq!(kinds, [&json!("image"), &json!("attestation")]);
}

#[test]
fn outputs_say_how_statements_are_attached() {
    let engine = Engine::start();
    let context = context(&engine, "FROM busybox\nCOPY file /file\n");
    // What clients ask for without being told to, as a part of the image.
    let output = "type=image,name=inline,attestation-inline=true";
    docker(&engine).built(&context, &["-o", output]);
    let manifests = engine.get("/images/inline/json?manifests=true")["Manifests"].clone();
    let is_statement = |one: &Value| one["Kind"] == "attestation";
    let statements = manifests.as_array().unwrap().iter();
    assert_eq!(statements.filter(|one| is_statement(one)).count(), 1);
    // As an artifact of OCI.
    let place = engine.scratch("layout");
    let blob = |digest: &Value| {
        let digest = digest.as_str().unwrap().replace(':', "/");
        json_file(&place.join("blobs").join(digest))
    };
    for is_artifact in [true, false] {
        let layout = format!("type=oci,tar=false,dest={}", place.display());
        let output = format!("{layout},name=attached:{is_artifact},oci-artifact={is_artifact}");
        docker(&engine).built(&context, &["--provenance=mode=max", "-o", &output]);
        let layout = json_file(&place.join("index.json"));
        let mut entries = layout["manifests"].as_array().unwrap().iter();
        let name = format!("docker.io/library/attached:{is_artifact}");
        let is_own = |entry: &&Value| entry["annotations"]["io.containerd.image.name"] == *name;
        let index = blob(&entries.find(is_own).unwrap()["digest"]);
        let statement = blob(&index["manifests"][1]["digest"]);
        let subject = index["manifests"][0]["digest"].clone();
        let (kind, subject) = match is_artifact {
            true => (
                json!("application/vnd.docker.attestation.manifest.v1+json"),
                subject,
            ),
            false => (Value::Null, Value::Null),
        };
        assert_eq!(statement["artifactType"], kind, "{statement}");
        assert_eq!(statement["subject"]["digest"], subject, "{statement}");
    }
}

#[test]
fn scanners_are_not_trusted() {
    let engine = Engine::start();
    let context = engine.scratch_with(
        "context",
        &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")],
    );
    for (number, (script, expected)) in [
        (
            "echo no JSON > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json",
            "cannot decode in-toto statement",
        ),
        (
            "ln -s /etc/passwd $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json",
            "cannot decode in-toto statement",
        ),
        (
            "ln -s /proc/1/environ $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json",
            "no such file",
        ),
        (
            "mkfifo $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json",
            "not a regular file",
        ),
        (
            "head -c 52428800 /dev/zero > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json",
            "larger than",
        ),
        ("exit 3", "exit code: 3"),
        (
            "echo '{\"predicateType\":\"x\",\"predicate\":1}' > $BUILDKIT_SCAN_DESTINATION/a",
            "does not match",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("bad{number}");
        scanner(&engine, &name, script);
        let flag = format!("--sbom=generator={name}");
        docker(&engine).build_fails(&context, &[&flag, "-t", "never"], &[expected]);
    }
    let place = engine.scratch_with("none", &[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    docker(&engine).built(&place, &["-t", "empty"]);
    docker(&engine).build_fails(
        &context,
        &["--sbom=generator=empty"],
        &["does not have cmd"],
    );
    docker(&engine).build_fails(&context, &["--sbom=generator=UPPER CASE"], &["generator"]);
    assert_eq!(engine.docker(&["images", "-q", "never"]).ok(), "");
}

#[test]
fn annotations_are_in_the_manifest_that_is_pushed() {
    let engine = Engine::start();
    let registry = Registry::start();
    let context = context(&engine, "FROM busybox\nCOPY file /file\n");
    let metadata = engine.scratch("metadata").join("file");
    let name = |tag: &str| format!("{}/app:{tag}", registry.host);
    let pushed = |tag: &str| registry.manifest_of("app", tag).unwrap();
    for (client, tag) in [(docker(&engine), "docker"), (whelk(&engine), "whelk")] {
        let name = name(tag);
        let args = [
            "--annotation",
            "org.example.a=<b>",
            "--annotation",
            "manifest-descriptor:c=d",
            "--metadata-file",
            metadata.to_str().unwrap(),
            "-t",
            &name,
            "--push",
        ];
        client.built(&context, &args);
        let (manifest, digest) = pushed(tag);
        assert_eq!(manifest["annotations"], json!({"org.example.a": "<b>"}));
        // The id stays that of the configuration.
        let id = engine.image(&name)["Id"].clone();
        assert_eq!(manifest["config"]["digest"], id);
        // The second time from the cache.
        for _ in 0..2 {
            let told = json_file(&metadata);
            assert_eq!(told["containerimage.digest"], digest.as_str());
            assert_eq!(told["containerimage.config.digest"], id);
            let descriptor = &told["containerimage.descriptor"];
            assert_eq!(descriptor["digest"], digest.as_str());
            assert_eq!(descriptor["annotations"], json!({"c": "d"}));
            client.built(&context, &args);
        }
    }
    // Names of one image have manifests of their own, or none.
    let build = |tag: &str, args: &[&str]| {
        let name = name(tag);
        docker(&engine).built(&context, &[&["-t", &name], args].concat());
    };
    build("other", &["--load", "--annotation", "org.example.a=other"]);
    build("plain", &[]);
    build(
        "whelk",
        &["-o", "type=image,annotation.org.example.a=again"],
    );
    build("gone", &["--load", "--annotation", "org.example.a=gone"]);
    build("gone", &[]);
    engine.docker(&["tag", &name("docker"), &name("copy")]).ok();
    engine.kill9();
    engine.restart();
    for (tag, expected) in [
        ("other", json!("other")),
        ("plain", Value::Null),
        ("whelk", json!("again")),
        ("gone", Value::Null),
        ("copy", json!("<b>")),
    ] {
        engine.docker(&["push", &name(tag)]).ok();
        let (manifest, _) = pushed(tag);
        assert_eq!(manifest["annotations"]["org.example.a"], expected, "{tag}");
    }
    engine.has_no_builds();
    for tag in ["other", "plain", "whelk", "gone", "copy", "docker"] {
        engine.docker(&["rmi", &name(tag)]).ok();
    }
    engine.has_no_builds();
}

#[test]
fn annotations_are_in_the_index_that_is_pushed() {
    let engine = Engine::start();
    let registry = Registry::start();
    let context = context(&engine, "FROM busybox\nCOPY file /file\n");
    let metadata = engine.scratch("metadata").join("file");
    let of_manifest = format!("manifest[linux/{OWN_ARCHITECTURE}]:y=2");
    for (client, tag) in [(docker(&engine), "docker"), (whelk(&engine), "whelk")] {
        let name = format!("{}/app:{tag}", registry.host);
        let args = [
            "--provenance=mode=max",
            "--annotation=index:x=1",
            "--annotation",
            &of_manifest,
            "--annotation=index-descriptor,manifest-descriptor:z=3",
            "--metadata-file",
            metadata.to_str().unwrap(),
            "-t",
            &name,
            "--push",
        ];
        client.built(&context, &args);
        let (index, digest) = registry.manifest_of("app", tag).unwrap();
        assert_eq!(index["annotations"], json!({"x": "1"}));
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"], json!({"z": "3"}));
        let manifest = format!("app/{}", entry["digest"].as_str().unwrap());
        let manifest = String::from_utf8(registry.document(&manifest).unwrap()).unwrap();
        assert_eq!(parsed(&manifest)["annotations"], json!({"y": "2"}));
        let descriptor = json_file(&metadata)["containerimage.descriptor"].clone();
        assert_eq!(descriptor["digest"], digest.as_str());
        assert_eq!(descriptor["annotations"], json!({"z": "3"}));
    }
}

/// So that scanners of registries know which layer a file, and what is wrong with it, comes from.
#[test]
fn bills_say_which_layers_files_are_in() {
    let files = [
        ("bin/busybox", 0),
        ("/made", 1),
        ("/changed", 2),
        ("/removed", 1),
    ];
    let listed = files.map(|(name, _)| json!({"fileName": name, "SPDXID": "SPDXRef-x"}));
    let mut listed = listed.to_vec();
    listed.push(json!({"fileName": "/none"}));
    listed.push(json!({"fileName": "/made", "comment": "mine"}));
    let predicate = json!({"spdxVersion": "SPDX-2.3", "files": listed, "creationInfo": {"creators": ["Tool: scan"]}});
    let statement = json!({"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document", "predicate": predicate});
    let engine = Engine::start();
    let registry = Registry::start();
    let script = format!("echo '{statement}' > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json\n");
    scanner(&engine, "scanner", &script);
    let dockerfile = "FROM busybox\n\
        RUN echo 1 > /made && echo 1 > /changed && echo 1 > /removed\n\
        RUN echo 2 > /changed && rm /removed\n";
    let context = context(&engine, dockerfile);
    let name = format!("{}/app:1", registry.host);
    let args = ["--sbom=generator=scanner", "-t", &name, "--push"];
    docker(&engine).built(&context, &args);
    let sbom = imagetools(&engine, &name, "SBOM")["SPDX"].clone();
    let (index, _) = registry.manifest_of("app", "1").unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap();
    let (manifest, _) = registry.manifest_of("app", manifest).unwrap();
    for (number, (name, layer)) in files.into_iter().enumerate() {
        let digest = manifest["layers"][layer]["digest"].as_str().unwrap();
        let comment = format!("layerID: {digest}");
        assert_eq!(sbom["files"][number]["comment"], json!(comment), "{name}");
    }
    assert_eq!(sbom["files"][4]["comment"], Value::Null);
    assert_eq!(sbom["files"][5]["comment"], "mine");
    let creators = sbom["creationInfo"]["creators"].as_array().unwrap();
    assert_eq!((creators.len(), &creators[0]), (2, &json!("Tool: scan")));
}
