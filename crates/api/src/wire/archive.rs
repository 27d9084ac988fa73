//! Files of containers.

use rustix::fs::FileType;
use whelk_api_types::{ContainerPathStat, FilesystemChange};
use whelk_engine::containers::{Change, ChangeKind, PathStat};

pub(crate) fn path_stat(stat: PathStat) -> ContainerPathStat {
    let (seconds, nanoseconds) = stat.modified;
    let modified = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    ContainerPathStat {
        name: stat.name,
        size: stat.size,
        mode: go_mode(stat.mode),
        // Not `time`, which has no time before 1678.
        mtime: jiff::Timestamp::from_nanosecond(modified)
            .unwrap_or_default()
            .to_string(),
        link_target: stat.link_target,
    }
}

pub(crate) fn change(change: &Change) -> FilesystemChange {
    FilesystemChange {
        path: change.shown(),
        kind: match change.kind {
            ChangeKind::Modified => 0,
            ChangeKind::Added => 1,
            ChangeKind::Deleted => 2,
        },
    }
}

/// Converts a mode of stat(2) to Go's `os.FileMode`.
fn go_mode(mode: u32) -> u32 {
    type Stat = ContainerPathStat;
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => Stat::DIRECTORY,
        FileType::Symlink => Stat::SYMLINK,
        FileType::CharacterDevice => Stat::DEVICE | Stat::CHARACTER_DEVICE,
        FileType::BlockDevice => Stat::DEVICE,
        FileType::Fifo => Stat::FIFO,
        FileType::Socket => Stat::SOCKET,
        FileType::RegularFile | FileType::Unknown => 0,
    };
    let special = [
        (0o4000, Stat::SET_UID),
        (0o2000, Stat::SET_GID),
        (0o1000, Stat::STICKY),
    ];
    let special = special.iter().filter(|(bit, _)| mode & bit != 0);
    mode & 0o777 | kind | special.map(|(_, go)| go).sum::<u32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_go() {
        for (mode, expected) in [
            (0o104_751, 8_389_097),
            (0o040_755, 2_147_484_141),
            (0o120_777, 134_218_239),
            (0o100_755, 493),
        ] {
            assert_eq!(go_mode(mode), expected, "{mode:o}");
        }
    }
}
