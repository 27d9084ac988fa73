//! Parses the options of a tmpfs mount.

use super::check_target;
use super::propagation::PROPAGATIONS;
use crate::error::{Error, Result};
use crate::model::mount::{MountPlan, Source};

pub(super) fn tmpfs(target: &str, options: &str) -> Result<MountPlan> {
    const FLAGS: [&str; 18] = [
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "ro",
        "rw",
        "sync",
        "async",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ];
    const KEYS: [&str; 9] = [
        "size",
        "mode",
        "uid",
        "gid",
        "nr_inodes",
        "nr_blocks",
        "mpol",
        "huge",
        "noswap",
    ];
    let target = check_target(target)?;
    let mut words: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
    for word in options.split(',').filter(|word| !word.is_empty()) {
        let key = word.split('=').next().unwrap_or(word);
        if !FLAGS.contains(&word) && !(KEYS.contains(&key)) && !PROPAGATIONS.contains(&word) {
            return Err(Error::invalid(format!("invalid tmpfs option {word:?}")));
        }
        words.push(word.to_owned());
    }
    let read_only = words
        .iter()
        .rev()
        .find(|word| *word == "ro" || *word == "rw")
        .is_some_and(|word| word == "ro");
    Ok(MountPlan {
        source: Source::Tmpfs,
        target,
        options: words,
        read_only,
        mode: options.to_owned(),
        propagation: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_tmpfs_options() {
        assert_eq!(
            tmpfs("/x", "size=1m,exec").unwrap().options.join(","),
            "noexec,nosuid,nodev,size=1m,exec"
        );
        assert_eq!(
            tmpfs("/x", "bogus").unwrap_err().to_string(),
            "invalid tmpfs option \"bogus\""
        );
        assert_eq!(
            tmpfs("rel", "").unwrap_err().to_string(),
            "invalid mount path: 'rel' mount path must be absolute"
        );
    }
}
