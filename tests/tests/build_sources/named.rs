//! Named contexts of all kinds.

use serde_json::Value;
use whelk_tests::Engine;
use whelk_tests::tar::{self, Tar};
use whelk_tests::web::{Answer, Web};

use crate::{build, built, only, run, shows, text};

#[test]
fn stages_stand_on_directories() {
    let engine = Engine::start();
    let dockerfile = "FROM base AS made\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo made > /made\"]\n\
        FROM made\nCMD [\"/bin/busybox\", \"cat\", \"/made\", \"/own\"]\n";
    let context = only(&engine, "main", dockerfile);
    let root = engine.scratch_with("root", &[("own", "of the directory\n")]);
    std::fs::create_dir(root.join("bin")).unwrap();
    let program = root.join("bin/busybox");
    std::fs::write(&program, whelk_tests::images::busybox_program()).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let flag = format!("base={}", root.display());
    let args = ["-t", "based", "--build-context", &flag, &context];
    built(&engine, &args);
    let ran = || engine.docker(&["run", "--rm", "based"]).ok();
    assert_eq!(ran(), "made\nof the directory");
    // The step on it is cached, as long as no file changes.
    shows(&built(&engine, &args), &["CACHED"]);
    std::fs::write(root.join("own"), "changed\n").unwrap();
    built(&engine, &args);
    assert_eq!(ran(), "made\nchanged");
}

#[test]
fn images_come_from_layouts_of_the_client() {
    let engine = Engine::start();
    let base = only(
        &engine,
        "base",
        "FROM busybox\nRUN echo of-layout > /own\nENV OWN=env\n",
    );
    built(&engine, &["-t", "exported:1", &base]);
    // `save` writes a layout. The engine does not have the image any more then.
    let archive = engine.scratch("layout.tar").join("x.tar");
    engine
        .docker(&["save", "-o", text(&archive), "exported:1"])
        .ok();
    engine.docker(&["rmi", "exported:1"]).ok();
    engine.docker(&["builder", "prune", "-af"]).ok();
    let archive = std::fs::read(&archive).unwrap();
    let layout = engine.scratch("layout");
    for found in tar::read(&archive) {
        if !found.path.ends_with('/') && !found.content.is_empty() {
            let path = layout.join(&found.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &found.content).unwrap();
        }
    }
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let dockerfile = "FROM given\nCOPY --from=given /own /copied\nRUN echo $OWN >> /copied\n";
    let context = only(&engine, "user", dockerfile);
    let flag = format!("given=oci-layout://{}@{digest}", layout.display());
    built(&engine, &["-t", "used", "--build-context", &flag, &context]);
    assert_eq!(run(&engine, "used", "cat /copied"), "of-layout\nenv");
    // The same with whelk's own client, which also finds the digest by a tag, or if there is only one image.
    for given in ["", ":1", &*format!("@{digest}")] {
        engine.docker(&["rmi", "-f", "used"]).ok();
        engine.docker(&["builder", "prune", "-af"]).ok();
        let flag = format!("given=oci-layout://{}{given}", layout.display());
        let args = ["build", "-t", "used", "--build-context", &flag, &context];
        engine.whelk(&args).ok();
        let copied = run(&engine, "used", "cat /copied");
        assert_eq!(copied, "of-layout\nenv", "{given}");
    }
    let missing = [
        "build",
        "--build-context",
        "given=oci-layout:///none",
        &context,
    ];
    shows(
        &engine.whelk(&missing).err(),
        &[
            "oci-layout:///none",
            "could not be resolved",
            "no such file",
        ],
    );
    // A blob that is not what its name says.
    engine.docker(&["rmi", "-f", "used"]).ok();
    engine.docker(&["image", "prune", "-f"]).ok();
    engine.docker(&["builder", "prune", "-af"]).ok();
    let manifest = layout
        .join("blobs/sha256")
        .join(digest.trim_start_matches("sha256:"));
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let name = layer["digest"]
            .as_str()
            .unwrap()
            .trim_start_matches("sha256:")
            .to_owned();
        let path = layout.join("blobs/sha256").join(name);
        let mut content = std::fs::read(&path).unwrap();
        content[600] ^= 1;
        std::fs::write(&path, content).unwrap();
    }
    let failed = build(&engine, &["--build-context", &flag, &context]);
    shows(&failed.err(), &["another content than sha256:"]);
}

#[test]
fn files_of_urls_and_images_are_named_contexts() {
    let engine = Engine::start();
    let web = Web::start(|_| Answer::new(200, Tar::new().file("x", "of a URL").finish()));
    let dockerfile = "FROM mine\nCOPY --from=archive / /got/\n";
    let context = only(&engine, "urls", dockerfile);
    let archive = format!("archive={}", web.url("/a.tar"));
    let args = ["-t", "urls", "--build-context", &archive];
    let image = ["--build-context", "mine=docker-image://busybox", &context];
    built(&engine, &[&args[..], &image[..]].concat());
    assert_eq!(run(&engine, "urls", "ls /got"), "context");
}
