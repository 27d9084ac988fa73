//! Attributes of images in definitions.

use whelk_buildkit::pb::control::SolveRequest;
use whelk_tests::Engine;
use whelk_tests::grpc::Grpc;
use whelk_tests::images::Archive;
use whelk_tests::registry::Registry;
use whelk_tests::tar::Tar;

use crate::Made;

#[test]
fn images_have_checksums_and_fewer_layers() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let grpc = Grpc::connect(&engine);
    let layer = |name: &str, content: &str| Tar::new().file(name, content).finish();
    let layers = |content: &str| vec![layer("first", content), layer("second", content)];
    let old = registry.push("app", &Archive::new("app:1", layers("old")));
    let bridge = grpc.build("images", SolveRequest::default());
    let image = format!("docker-image://{}", old.name);
    let evaluate = |attributes: &[(&str, &str)]| {
        let mut made = Made::default();
        let result = made.source(&image, attributes);
        bridge.evaluate(&made.definition(result))
    };
    let read =
        |reference: &str| ["/first", "/second"].map(|path| bridge.read(reference, path).ok());
    let whole = |content: &str| [Some(content.to_owned()), Some(content.to_owned())];
    let reference = evaluate(&[("image.checksum", &old.digest)]).unwrap();
    assert_eq!(read(&reference), whole("old"));
    let reference = evaluate(&[("image.layerlimit", "1")]).unwrap();
    assert_eq!(read(&reference), [Some("old".to_owned()), None]);
    let reference = evaluate(&[("image.layerlimit", "3")]).unwrap();
    assert_eq!(read(&reference), whole("old"));

    // The image that is here is not the one that is wanted, but that of the registry is.
    let new = registry.push("app", &Archive::new("app:1", layers("new")));
    let reference = evaluate(&[]).unwrap();
    assert_eq!(read(&reference), whole("old"));
    let reference = evaluate(&[("image.checksum", &new.digest)]).unwrap();
    assert_eq!(read(&reference), whole("new"));
    let text = format!(
        "image digest {} for {} does not match expected checksum {}",
        new.digest, new.name, old.digest
    );
    let status = evaluate(&[("image.checksum", &old.digest)]).unwrap_err();
    assert!(status.message.contains(&text), "{status}");
    for (name, value, text) in [
        ("image.layerlimit", "0", "invalid layer limit 0"),
        (
            "image.checksum",
            "sha256:1",
            "invalid image checksum sha256:1",
        ),
    ] {
        let status = evaluate(&[(name, value)]).unwrap_err();
        assert!(status.message.contains(text), "{status}");
    }
    bridge.finish(None).unwrap();
    engine.has_no_builds();
}
