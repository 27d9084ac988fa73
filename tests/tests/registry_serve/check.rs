//! `whelk registry check`.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use whelk_tests::Program;
use whelk_tests::images::{Archive, marked};

use super::{Served, spawn};

impl Served {
    fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.process.0.wait().unwrap();
    }

    /// Runs the check. Returns whether it found nothing, what it printed, and the error.
    fn check(&self, flags: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(Program::Whelk.path());
        let root = self.directory.join("root");
        command.args(["registry", "check", "--root"]).arg(root);
        let done = command.args(flags).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.success(), text(done.stdout), text(done.stderr))
    }
}

#[test]
fn damage_is_found_and_moved_out_of_the_way() {
    let mut served = Served::start("check");
    let image = marked("app:1");
    let (_, digest) = served.push("team/app", "1", &image);
    served.push("other", "1", &marked("other:1"));
    let (_, _, manifest) = served.send("GET", "/v2/team/app/manifests/1", "", b"");
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    // Of this image alone.
    let layer = manifest["layers"][1]["digest"].as_str().unwrap().to_owned();
    let config = manifest["config"]["digest"].as_str().unwrap().to_owned();

    let (is_sound, _, error) = served.check(&[]);
    assert!(
        !is_sound && error.contains("in use by another registry"),
        "{error}"
    );
    served.stop();
    let (is_sound, out, error) = served.check(&[]);
    assert!(is_sound, "{out}{error}");
    // Two configurations, the common layer and one of each image, two manifests.
    assert!(
        out.starts_with("2 repositories, 2 manifests, 7 blobs of "),
        "{out}"
    );

    let blobs = served.directory.join("root/blobs/sha256");
    let path = |digest: &str| blobs.join(&digest["sha256:".len()..]);
    let mut content = std::fs::read(path(&layer)).unwrap();
    content[10] ^= 1;
    std::fs::write(path(&layer), &content).unwrap();
    let refers = format!("team/app@{digest}: the manifest refers to {layer}, which is ");
    for (flags, damaged, missing) in [
        (&[][..], format!("blob {layer} is damaged\n"), "damaged\n"),
        (
            &["--repair"],
            format!("blob {layer} is damaged: moved to "),
            "damaged\n",
        ),
        (&[], String::new(), "not in the repository\n"),
    ] {
        let (is_sound, out, error) = served.check(flags);
        assert!(!is_sound && error.contains(" problem"), "{out}{error}");
        assert!(
            out.contains(&damaged) && out.contains(&format!("{refers}{missing}")),
            "{out}"
        );
        assert!(!out.contains("other"), "{out}");
        assert_eq!(
            out.contains(&format!("blob {layer}")),
            !damaged.is_empty(),
            "{out}"
        );
    }
    let put_aside = served
        .directory
        .join("root/damaged")
        .join(&layer["sha256:".len()..]);
    assert_eq!(std::fs::read(put_aside).unwrap(), content);
    std::fs::remove_file(path(&config)).unwrap();
    std::fs::remove_file(path(&digest)).unwrap();
    let (_, out, _) = served.check(&[]);
    assert!(
        out.contains(&format!("team/app@{digest}: the manifest is missing")),
        "{out}"
    );
    assert!(
        out.contains(&format!("team/app:1 has no manifest: {digest} is missing")),
        "{out}"
    );

    // A push repairs the image.
    served.process = spawn(&served.directory, &served.host, &served.flags);
    served.push("team/app", "1", &image);
    served.stop();
    let (is_sound, out, error) = served.check(&[]);
    assert!(is_sound, "{out}{error}");
    check_unreadable(&mut served, &image, &digest);
    let nowhere = served.directory.join("nowhere");
    let mut command = Command::new(Program::Whelk.path());
    command.args(["registry", "check", "--root"]).arg(&nowhere);
    let error = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(error.contains("has no registry"), "{error}");
    assert!(!nowhere.exists());
}

/// The check goes on after what cannot be read, here directories in place of files, and reports all of it.
fn check_unreadable(served: &mut Served, image: &Archive, digest: &str) {
    let root = served.directory.join("root");
    let place = |path: &str| root.join(path);
    let hex = &digest["sha256:".len()..];
    let blob = place("blobs/sha256").join(hex);
    let unused = format!("blobs/sha256/{}", "0".repeat(64));
    let kept = std::fs::read(&blob).unwrap();
    std::fs::remove_file(&blob).unwrap();
    for directory in [&blob, &place(&unused)] {
        std::fs::create_dir(directory).unwrap();
    }
    let tags = "repositories/other/_tags";
    std::fs::create_dir(place(tags).join("directory")).unwrap();
    std::fs::write(place(tags).join("binary"), b"\xff\xfe").unwrap();
    std::fs::write(place("repositories/stray"), "").unwrap();
    let unreadable = format!("blob {digest} cannot be read: ");
    for (flags, after) in [
        (&[][..], "is a directory\n"),
        (&["--repair"], ": moved to "),
    ] {
        let (is_sound, out, error) = served.check(flags);
        assert!(!is_sound && error.contains("problem"), "{out}{error}");
        let line = out
            .split_inclusive('\n')
            .find(|line| line.starts_with(&unreadable));
        assert!(line.is_some_and(|line| line.contains(after)), "{out}");
        for expected in [
            &format!("blob sha256:{} cannot be read: ", "0".repeat(64)),
            "other:directory cannot be read: ",
            "other:binary cannot be read: ",
            "repositories/stray is not a repository\n",
            &format!("team/app:1 has no manifest: {digest} is missing\n"),
            // The summary.
            "2 repositories, 2 manifests, 8 blobs of ",
        ] {
            assert!(out.contains(expected), "{expected}: {out}");
        }
    }
    assert!(!blob.exists() && !place(&unused).exists());
    assert!(place("damaged").join(hex).is_dir());
    for name in ["directory", "binary"] {
        let path = place(tags).join(name);
        let _ = std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path));
    }
    // A stray file does not keep the server from its work; a push brings back what was unreadable.
    served.process = spawn(&served.directory, &served.host, &served.flags);
    served.push("team/app", "1", image);
    assert_eq!(std::fs::read(&blob).unwrap(), kept);
    let (_, _, catalog) = served.send("GET", "/v2/_catalog", "", b"");
    let catalog: Value = serde_json::from_slice(&catalog).unwrap();
    assert_eq!(
        catalog["repositories"],
        serde_json::json!(["other", "team/app"])
    );
    served.stop();
    std::fs::remove_file(place("repositories/stray")).unwrap();
    let (is_sound, out, error) = served.check(&[]);
    assert!(is_sound, "{out}{error}");
}
