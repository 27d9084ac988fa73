//! Counts who reads a container's files: a removal waits for them before it deletes the files.

use tokio::sync::watch;

/// A reader, from its creation until it is dropped.
#[derive(Debug)]
pub struct FileReader(watch::Sender<usize>);

impl FileReader {
    pub(super) fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|readers| *readers += 1);
        Self(count.clone())
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        self.0.send_modify(|readers| *readers -= 1);
    }
}
