//! Bills of materials say which layer of the image each of their files is in, as BuildKit's do.

use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use serde_json::{Value, json};
use whelk_image::descriptor::Descriptor;
use whelk_image::{ImageConfig, Store};
use whelk_sys::in_root;

use crate::error::{Error, Result};
use crate::layers::Layer;

/// Who has supplemented a bill.
const CREATOR: &str = concat!("Tool: whelk-", env!("CARGO_PKG_VERSION"));

/// Adds the layers to the files of a bill, unless they have a comment. `layers` are the blobs of the image with this configuration.
///
/// # Errors
/// Returns an error if a layer cannot be read.
pub(crate) fn supplement(
    store: &Store,
    config: &[u8],
    layers: &[Descriptor],
    predicate: &mut Value,
) -> Result<()> {
    let Some(document) = predicate.as_object_mut() else {
        return Ok(());
    };
    let files = document.get_mut("files").and_then(Value::as_array_mut);
    let files = files.into_iter().flatten();
    let mut wanted: Vec<(String, &mut Value)> = files.filter_map(uncommented).collect();
    let layer_ids = ImageConfig::parse(config)?.rootfs.diff_ids;
    if layer_ids.len() != layers.len() {
        return Err(Error::internal("a bill of materials of other layers"));
    }
    for (id, blob) in layer_ids.into_iter().zip(layers).rev() {
        if wanted.is_empty() {
            break;
        }
        let view = Layer::sealed(id, 0).mount(store)?;
        wanted.retain_mut(|(path, file)| {
            let is_there = has(&view.root, path);
            if is_there {
                file["comment"] = json!(format!("layerID: {}", blob.digest));
            }
            !is_there
        });
    }
    drop(wanted);
    let creation = document.entry("creationInfo");
    let creation = creation.or_insert_with(|| json!({}));
    if let Some(creation) = creation.as_object_mut() {
        let creators = creation.entry("creators").or_insert_with(|| json!([]));
        if let Some(creators) = creators.as_array_mut() {
            creators.push(json!(CREATOR));
        }
    }
    Ok(())
}

/// Returns a file without a comment, with its path.
fn uncommented(file: &mut Value) -> Option<(String, &mut Value)> {
    let known = file.get("comment").and_then(Value::as_str);
    if !file.is_object() || known.is_some_and(|comment| !comment.is_empty()) {
        return None;
    }
    let path = file.get("fileName")?.as_str()?;
    Some((path.to_owned(), file))
}

/// Returns whether a layer has a file, and not only hides one.
fn has(root: &std::os::fd::OwnedFd, path: &str) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = Path::new("/").join(path);
    let Ok(file) = in_root::open(root, path, flags, Mode::empty()) else {
        return false;
    };
    rustix::fs::fstat(&file).is_ok_and(|stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        !(kind == FileType::CharacterDevice && stat.st_rdev == 0)
    })
}
