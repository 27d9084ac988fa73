//! Determines the size of a layer's files again, as it was when the layer was unpacked.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::scope;

use tar::Entry;
use whelk_sys::fs;

use super::Snapshots;
use super::apply::{Contents, Destination, Head, Hidden, Purpose, add_all, is_regular};
use super::commit::{Pieces, WAITING, joined};
use super::metadata::Metadata;
use super::sparse::Holes;
use super::tap::{Place, Tap};
use super::unchanged;
use crate::digest::{Digest, Hashing};
use crate::error::Result;

impl Snapshots {
    /// Writes the size of a layer that has lost it. Reads all of the layer.
    ///
    /// # Errors
    /// Returns an error if the layer was changed on disk, or cannot be read.
    pub fn restore_size(&self, diff_id: &Digest) -> Result<u64> {
        let mut measured = Measured(Contents::new());
        let (sender, pieces) = sync_channel(WAITING);
        scope(|threads| {
            let replayed = threads.spawn(move || {
                let mut hashing = Hashing::new(Sent(sender));
                self.replay(diff_id, &mut hashing)?;
                let (digest, ..) = hashing.finish();
                unchanged(diff_id, &digest)
            });
            let read = add_all(&mut measured, Pieces::of(pieces), &Tap::new(None));
            // An archive that ends early is a consequence.
            joined(replayed).flatten()?;
            read.map(drop)
        })?;
        let size = measured.0.size;
        fs::replace(self.path(diff_id).join("size"), size.to_string(), 0o600)?;
        Ok(size)
    }
}

/// Passes what is written on to another thread, as long as that takes it.
struct Sent(SyncSender<Vec<u8>>);

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts the content of files.
struct Measured(Contents);

impl Destination for Measured {
    fn purpose(&self) -> Purpose {
        Purpose::Layer
    }

    fn describe_root(&mut self, _: &Metadata) -> Result<()> {
        Ok(())
    }

    fn hide(&mut self, _: &Path, _: Hidden) -> Result<()> {
        Ok(())
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, tap: &Tap, head: Head) -> Result<()> {
        if !is_regular(head.kind) {
            return Ok(());
        }
        self.0.measure(entry, head.holes.as_ref())?;
        let place = Place::Image { offset: 0 };
        self.0.copy(entry, tap, head.holes, &mut Nowhere, place)
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Discards a file's content.
struct Nowhere;

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Holes for Nowhere {
    fn skip(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn end_at(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
