//! Takes the files of a build's result into a directory.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::sync::mpsc;
use whelk_buildkit::files::{Directory, Error};
use whelk_buildkit::grpc::{Call, Result, Status};
use whelk_buildkit::pb::files::Packet;

use crate::{files, plain};

/// Number of packets that wait for the disk.
const WAITING: usize = 128;

/// Receives the files of a call, and moves them into a directory when all of them are there. What the directory has
/// besides them stays.
pub(super) async fn receive(call: Call, target: &Path) -> Result<()> {
    let Call {
        mut requests,
        responses,
        ..
    } = call;
    let failed = |what: &str, error: &std::io::Error| {
        Status::unknown(format!("{what} {}: {}", target.display(), plain(error)))
    };
    std::fs::create_dir_all(target).map_err(|error| failed("create", &error))?;
    let place = files::stage_directory(&target.join("files"))
        .map_err(|error| failed("create a directory in", &error))?;
    // Removed by this future, which ends in any case, also when the process is about to end.
    let (ended, until_end) = std::sync::mpsc::channel();
    let staged = Staged { place, until_end };
    let files = staged.place.clone();
    let (packets, mut queue) = mpsc::channel::<Packet>(WAITING);
    let target = target.to_owned();
    let answers = responses.clone();
    let mut writing = tokio::task::spawn_blocking(move || {
        let _ended: std::sync::mpsc::Sender<()> = ended;
        let mut directory = Directory::create(&files)?;
        directory.receive(
            || queue.blocking_recv(),
            |packet| Ok(answers.send_blocking(&packet)?),
        )?;
        merge(&directory.files(), &target)
    });
    let passing = async move {
        while let Some(packet) = requests.next().await? {
            // It has failed: the thread says why.
            if packets.send(packet).await.is_err() {
                break;
            }
        }
        Ok::<_, Status>(())
    };
    // A thread that has failed asks for no more, so that no more may come.
    let written = tokio::select! {
        written = &mut writing => written,
        passed = passing => {
            passed?;
            writing.await
        }
    };
    let written = written.map_err(|error| Status::unknown(error.to_string()))?;
    written.map_err(|error| Status::unknown(error.to_string()))
}

/// A directory that is removed when nobody writes to it any more.
struct Staged {
    place: PathBuf,
    until_end: Receiver<()>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        /// The thread ends when it gets no more packets; but the disk may be slow.
        const PATIENCE: Duration = Duration::from_secs(2);
        let _ = self.until_end.recv_timeout(PATIENCE);
        let _ = files::remove_directory(&self.place);
    }
}

/// Lets the owner change a directory. Returns its permissions as they were.
fn open(path: &Path) -> std::io::Result<Permissions> {
    let old = path.symlink_metadata()?.permissions();
    let open = Permissions::from_mode(old.mode() | 0o700);
    if open != old {
        std::fs::set_permissions(path, open)?;
    }
    Ok(old)
}

/// Moves a directory. The kernel wants its owner to be able to write to it, because its parent changes.
fn move_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    let permissions = open(from)?;
    std::fs::rename(from, to)?;
    std::fs::set_permissions(to, permissions)
}

/// Moves a file, also into another file system, as behind a mount point: then the target is replaced when all is copied.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {}
        result => return result,
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let copy = to.with_file_name(format!(".{name}.{}", std::process::id()));
    let metadata = from.symlink_metadata()?;
    let copied = if metadata.is_symlink() {
        std::os::unix::fs::symlink(std::fs::read_link(from)?, &copy)
    } else if metadata.is_file() {
        std::fs::copy(from, &copy)
            .and_then(|_| std::fs::File::open(&copy))
            .and_then(|file| file.set_modified(metadata.modified()?))
    } else {
        Err(std::io::ErrorKind::CrossesDevices.into())
    };
    let moved = copied.and_then(|()| std::fs::rename(&copy, to));
    if moved.is_err() {
        let _ = std::fs::remove_file(&copy);
    }
    moved
}

/// Moves what is in a directory into another one. A directory that is there gets the permissions of the new one.
fn merge(from: &Path, to: &Path) -> std::result::Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |cause: std::io::Error| Error::Io {
            operation: "write",
            path,
            cause,
        }
    };
    for entry in std::fs::read_dir(from).map_err(failed(from))? {
        let entry = entry.map_err(failed(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let old = target.symlink_metadata().ok();
        match (is_directory, old.map(|old| old.is_dir())) {
            (true, Some(true)) => {
                let permissions = open(&source).map_err(failed(&source))?;
                open(&target).map_err(failed(&target))?;
                merge(&source, &target)?;
                std::fs::set_permissions(&target, permissions).map_err(failed(&target))?;
            }
            (true, Some(false)) => {
                std::fs::remove_file(&target).map_err(failed(&target))?;
                move_directory(&source, &target).map_err(failed(&target))?;
            }
            (true, None) => move_directory(&source, &target).map_err(failed(&target))?,
            // A directory is not replaced by a file: it may have what nobody wants to lose.
            _ => move_file(&source, &target).map_err(failed(&target))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn files_are_moved_into_what_is_there() {
        let scratch = Scratch::temporary("merge").unwrap();
        let write = |path: &str, text: &str| {
            let path = scratch.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (path, text) in [
            ("from/a/x", "new"),
            ("from/b", "new"),
            ("to/a/x", "old"),
            ("to/a/y", "kept"),
            ("to/c", "kept"),
        ] {
            write(path, text);
        }
        let to = scratch.path().join("to");
        merge(&scratch.path().join("from"), &to).unwrap();
        let read = |path: &str| std::fs::read_to_string(to.join(path)).unwrap();
        assert_eq!(
            ["a/x", "a/y", "b", "c"].map(read),
            ["new", "kept", "new", "kept"]
        );
        // Another file system.
        let other = Path::new("/dev/shm").join(scratch.path().file_name().unwrap());
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("file"), "moved").unwrap();
        std::os::unix::fs::symlink("file", other.join("link")).unwrap();
        let moved = ["file", "link"].map(|name| move_file(&other.join(name), &to.join(name)));
        std::fs::remove_dir_all(&other).unwrap();
        assert!(moved.iter().all(|one| one.is_ok()), "{moved:?}");
        assert_eq!(read("link"), "moved");
        write("more/c/x", "new");
        write("more/a", "new");
        assert!(merge(&scratch.path().join("more"), &to).is_err());
        assert_eq!(read("a/y"), "kept");
    }
}
