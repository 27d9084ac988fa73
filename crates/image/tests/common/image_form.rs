//! Compares the two forms of layers: what a directory shows, an image must show too.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use whelk_image::Digest;
use whelk_image::snapshots::Form;
use whelk_sys::fs;

use super::{Bench, apply, line, xattr};

/// Unpacks an archive to an image, and checks that the outcome is that of unpacking it to a directory:
/// the same files, or the same error. Does nothing if the kernel cannot mount images.
#[track_caller]
pub(crate) fn check(archive: &[u8], directory: Result<&Path, &str>) {
    let mut bench = Bench::new();
    if bench.store.snapshots.set_form(Some(Form::Images)).is_err() {
        return;
    }
    let guard = bench.guard();
    match (apply(&bench.store, archive, None), directory) {
        (Ok(layer), Ok(directory)) => {
            let diff_id = Digest::of(archive);
            assert_eq!(layer.diff_id, diff_id);
            assert!(
                bench.written(&diff_id) == archive,
                "the archive that was reproduced from the image differs"
            );
            let image = bench.store.snapshots.files(&diff_id);
            let mounted = whelk_sys::erofs::mount(&image).unwrap();
            let mounted_at = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
            let forms = Forms {
                image: mounted_at,
                directory,
                // What was replaced is kept in the directory's form as one more link.
                has_more_links: fs::exists(directory.with_file_name("replaced")),
            };
            forms.same(Path::new(""));
            bench.check_temporary("unpacked to an image");
        }
        (Err(error), Err(text)) => {
            assert_eq!(error.to_string(), text);
            bench.check_empty("refused");
        }
        (image, directory) => panic!("image: {image:?}, directory: {directory:?}"),
    }
    assert_eq!(bench.guard(), guard);
}

/// A layer in both forms.
struct Forms<'a> {
    image: PathBuf,
    directory: &'a Path,
    has_more_links: bool,
}

impl Forms<'_> {
    /// Checks that everything below a path is the same.
    #[track_caller]
    fn same(&self, below: &Path) {
        let (here, there) = (self.image.join(below), self.directory.join(below));
        let what = below.display();
        assert_eq!(attributes(&here), attributes(&there), "{what}");
        assert_eq!(sorted(&here), sorted(&there), "{what}");
        for entry in fs::list(&there).unwrap() {
            let name = below.join(entry.file_name());
            self.same_file(&name);
            if fs::metadata(self.directory.join(&name)).unwrap().is_dir() {
                self.same(&name);
            }
        }
    }

    #[track_caller]
    fn same_file(&self, name: &Path) {
        let (here, there) = (self.image.join(name), self.directory.join(name));
        let what = name.display();
        assert_eq!(line(&here, name), line(&there, name));
        assert_eq!(attributes(&here), attributes(&there), "{what}");
        let (found, expected) = (fs::metadata(&here).unwrap(), fs::metadata(&there).unwrap());
        if !self.has_more_links {
            assert_eq!(found.nlink(), expected.nlink(), "{what}");
        }
        if !expected.is_dir() {
            assert_eq!(found.len(), expected.len(), "{what}");
        }
        // What has no entry has no time in an image.
        let time = (found.mtime(), found.mtime_nsec());
        if time != (0, 0) {
            assert_eq!(time, (expected.mtime(), expected.mtime_nsec()), "{what}");
        }
    }
}

fn sorted(directory: &Path) -> Vec<String> {
    let mut names = super::names(directory);
    names.sort();
    names
}

/// Returns the extended attributes of a file.
fn attributes(path: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0);
    let mut attributes: Vec<_> = names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .map(|name| (name.clone(), xattr(path, &name)))
        .collect();
    attributes.sort();
    attributes
}
