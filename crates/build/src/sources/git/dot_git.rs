//! The directory `.git` of a checkout (`--keep-git-dir`).

use std::path::Path;

use gix_hash::Kind as Hash;
use whelk_sys::fs;

use super::checkout::{Checked, Entry};
use super::objects;
use super::server::ResolvedReference;
use crate::error::{Error, Result};

/// Writes a repository of one commit, whose pack is taken from a directory. `found` is the name that the commit has there, if any.
/// Blocking.
pub(super) fn write(
    path: &Path,
    pack: &Path,
    remote: &str,
    checked: &Checked,
    found: &ResolvedReference,
) -> Result<()> {
    for directory in [
        "",
        "objects",
        "objects/pack",
        "objects/info",
        "refs",
        "refs/heads",
        "refs/tags",
    ] {
        fs::create_dir(path.join(directory), 0o755)?;
    }
    for entry in fs::list(pack)? {
        let to = path.join("objects/pack").join(entry.file_name());
        fs::rename(entry.path(), &to)?;
        fs::set_mode(&to, 0o444)?;
    }
    let commit = format!("{}\n", checked.commit);
    let hash = objects::id(&checked.commit)?.kind();
    let (version, extensions) = match hash {
        Hash::Sha1 => (0, String::new()),
        hash => (1, format!("[extensions]\n\tobjectformat = {hash}\n")),
    };
    let config = format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         {extensions}[remote \"origin\"]\n\turl = {remote}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
    );
    let index = index(&checked.entries, hash)?;
    let references = references(found);
    let files: [(&str, &[u8]); 5] = [
        ("HEAD", commit.as_bytes()),
        // The parents of the commit are not here.
        ("shallow", commit.as_bytes()),
        ("config", config.as_bytes()),
        ("packed-refs", references.as_bytes()),
        ("index", &index),
    ];
    for (name, content) in files {
        fs::write_with_mode(path.join(name), content, 0o644)?;
    }
    Ok(())
}

/// Returns the file `packed-refs` with a branch or tag, by which `git describe` finds it. A server may have given it any name.
fn references(found: &ResolvedReference) -> String {
    let ResolvedReference {
        reference,
        commit,
        tag,
    } = found;
    let mut text = "# pack-refs with: peeled fully-peeled sorted \n".to_owned();
    if reference.starts_with("refs/") && super::check_reference(reference).is_ok() {
        match tag.as_str() {
            "" => text += &format!("{commit} {reference}\n"),
            tag => text += &format!("{tag} {reference}\n^{commit}\n"),
        }
    }
    text
}

/// Returns an index of version 2. What it says of the files' times is zero, so that git looks at their content.
fn index(entries: &[Entry], hash: Hash) -> Result<Vec<u8>> {
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let mut index = Vec::new();
    index.extend_from_slice(b"DIRC");
    index.extend_from_slice(&2_u32.to_be_bytes());
    index.extend_from_slice(&count.to_be_bytes());
    for entry in entries {
        let start = index.len();
        // Two times, device and inode.
        index.extend_from_slice(&[0; 24]);
        index.extend_from_slice(&entry.mode.to_be_bytes());
        // Owner, group and size.
        index.extend_from_slice(&[0; 12]);
        index.extend_from_slice(entry.id.as_bytes());
        let length = u16::try_from(entry.path.len().min(0xfff)).unwrap_or(0xfff);
        index.extend_from_slice(&length.to_be_bytes());
        index.extend_from_slice(&entry.path);
        // At least one, up to a multiple of eight.
        let padding = 8 - (index.len() - start) % 8;
        index.resize(index.len() + padding, 0);
    }
    let mut hasher = gix_hash::hasher(hash);
    hasher.update(&index);
    let sum = hasher.try_finalize();
    let sum = sum.map_err(|error| Error::internal(error.to_string()))?;
    index.extend_from_slice(sum.as_bytes());
    Ok(index)
}
