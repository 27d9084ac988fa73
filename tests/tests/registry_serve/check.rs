//! `whelk registry check`.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use whelk_tests::Program;
use whelk_tests::images::marked;

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
    let nowhere = served.directory.join("nowhere");
    let mut command = Command::new(Program::Whelk.path());
    command.args(["registry", "check", "--root"]).arg(&nowhere);
    let error = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(error.contains("has no registry"), "{error}");
    assert!(!nowhere.exists());
}
