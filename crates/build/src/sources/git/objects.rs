//! The objects of a pack.

use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use bytes::{Buf as _, Bytes};
use gix_hash::{Kind as Hash, ObjectId};
use gix_object::Kind;
use gix_pack::bundle::write::Options;
use gix_pack::{Bundle, cache};
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// Maximum size of an object in bytes.
pub(super) const MAX_OBJECT: usize = 512 << 20;

/// The objects of packs, which are in directories with their indexes.
pub(super) struct Objects {
    hash: Hash,
    bundles: Vec<Bundle>,
    cache: cache::lru::MemoryCappedHashmap,
}

/// The pieces of a pack as they come. Without the last one, `None`, it is not whole.
struct Pieces {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    is_over: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.is_over = true,
                None => return Err(std::io::Error::other("the transfer has ended")),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece[..count]);
        self.piece.advance(count);
        Ok(count)
    }
}

impl Objects {
    /// Writes a pack and its index into a directory. Blocking.
    ///
    /// # Errors
    /// Returns an error if the pack is not valid, or if it needs objects that it does not have.
    pub fn receive(
        directory: &Path,
        pieces: mpsc::Receiver<Option<Bytes>>,
        hash: Hash,
    ) -> Result<Self> {
        let pieces = Pieces {
            pieces,
            piece: Bytes::new(),
            is_over: false,
        };
        let options = Options {
            thread_limit: Some(2),
            alloc_limit_bytes: Some(MAX_OBJECT),
            ..Options::default()
        };
        let outcome = Bundle::write_to_directory(
            &mut BufReader::with_capacity(64 << 10, pieces),
            Some(directory),
            &mut gix_utils::progress::Discard,
            &AtomicBool::new(false),
            None::<gix_object::find::Never>,
            hash,
            options,
        );
        let failed =
            |error: String| Error::invalid(format!("the pack of a git repository: {error}"));
        let outcome = outcome.map_err(|error| failed(error.to_string()))?;
        if let Some(keep) = &outcome.keep_path {
            whelk_sys::fs::remove_if_exists(keep)?;
        }
        let bundle = outcome.to_bundle();
        let bundle = bundle.ok_or_else(|| failed("it is empty".into()))?;
        let mut bundle = bundle.map_err(|error| failed(error.to_string()))?;
        bundle.pack = bundle.pack.with_alloc_limit_bytes(Some(MAX_OBJECT));
        Ok(Self {
            hash,
            bundles: vec![bundle],
            cache: cache::lru::MemoryCappedHashmap::new(16 << 20),
        })
    }

    /// Adds the packs of an earlier fetch. Blocking.
    ///
    /// # Errors
    /// Returns an error if they cannot be read.
    pub fn add(&mut self, directory: &Path) -> Result<()> {
        for entry in whelk_sys::fs::list(directory)? {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "idx") {
                let mut bundle = Bundle::at(&path, self.hash).map_err(|error| {
                    Error::invalid(format!("open the pack {}: {error}", path.display()))
                })?;
                bundle.pack = bundle.pack.with_alloc_limit_bytes(Some(MAX_OBJECT));
                self.bundles.push(bundle);
            }
        }
        Ok(())
    }

    /// Adds the packs of others.
    pub fn join(&mut self, others: Self) {
        self.bundles.extend(others.bundles);
    }

    /// Returns the content of an object.
    ///
    /// # Errors
    /// Returns an error if it is not there, or of another kind.
    pub fn get(&mut self, id: &ObjectId, wanted: Kind) -> Result<Vec<u8>> {
        match self.find(id)? {
            Some((kind, content)) if kind == wanted => Ok(content),
            Some((kind, _)) => Err(Error::invalid(format!(
                "the git object {id} is a {kind}, not a {wanted}"
            ))),
            None => Err(Error::invalid(format!(
                "the git object {id} is not in the pack"
            ))),
        }
    }

    /// Finds an object. Returns its kind and its content.
    ///
    /// # Errors
    /// Returns an error if it cannot be read.
    pub fn find(&mut self, id: &ObjectId) -> Result<Option<(Kind, Vec<u8>)>> {
        if id.kind() != self.hash {
            let hash = self.hash;
            let text = format!("the git object {id} in a repository with object-format={hash}");
            return Err(Error::invalid(text));
        }
        let mut content = Vec::new();
        for bundle in &self.bundles {
            let found = bundle
                .find(id, &mut content, &mut Default::default(), &mut self.cache)
                .map_err(|error| Error::invalid(format!("read the git object {id}: {error}")))?
                .map(|(data, _)| data.kind);
            if let Some(kind) = found {
                return Ok(Some((kind, content)));
            }
        }
        Ok(None)
    }
}

/// Parses an id of 40 or, with SHA-256, 64 digits.
pub(super) fn id(text: &str) -> Result<ObjectId> {
    ObjectId::from_hex(text.as_bytes())
        .map_err(|_| Error::invalid(format!("{text:?} is not the id of a git object")))
}
