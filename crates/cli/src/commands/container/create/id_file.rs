//! The file of `--cidfile`.

use crate::{Failure, Outcome, plain};

/// The file of `--cidfile`. Created before the container, and removed on drop unless the ID was
/// written.
pub(super) struct IdFile<'a> {
    path: &'a str,
    file: std::fs::File,
    written: bool,
}

impl<'a> IdFile<'a> {
    pub fn create(path: &'a str) -> Outcome<Self> {
        match std::fs::File::create_new(path) {
            Ok(file) => Ok(Self {
                path,
                file,
                written: false,
            }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Failure::new(format!(
                    "container ID file found, make sure the other container isn't running or delete {path}"
                )))
            }
            Err(error) => Err(Failure::new(format!(
                "failed to create the container ID file: open {path}: {}",
                plain(&error)
            ))),
        }
    }

    pub fn write(mut self, id: &str) -> Outcome<()> {
        self.written = true;
        std::io::Write::write_all(&mut self.file, id.as_bytes()).map_err(|error| {
            Failure::new(format!(
                "failed to write the container ID ({id}) to file: write {}: {}",
                self.path,
                plain(&error)
            ))
        })
    }
}

impl Drop for IdFile<'_> {
    fn drop(&mut self) {
        if !self.written {
            let _ = std::fs::remove_file(self.path);
        }
    }
}
