//! Computes the id mapping of a bind mount that shows another owner than the files have on disk.

use whelk_runtime::spec::IdMapping;

/// Returns an id mapping that shows files of `disk` as files of `shown`; all other ids are mapped
/// to themselves. Files of `shown` on disk appear as owned by the overflow id, and creating files
/// as `disk` inside fails (`EOVERFLOW`), because it is not mapped.
pub(crate) fn map_owner(disk: u32, shown: u32) -> Vec<IdMapping> {
    if disk == shown {
        return vec![IdMapping {
            container_id: 0,
            host_id: 0,
            size: u32::MAX,
        }];
    }
    let mut maps = vec![IdMapping {
        container_id: disk,
        host_id: shown,
        size: 1,
    }];
    let (low, high) = (disk.min(shown), disk.max(shown));
    for (begin, end) in [(0, low), (low + 1, high), (high + 1, u32::MAX)] {
        if begin < end {
            maps.push(IdMapping {
                container_id: begin,
                host_id: begin,
                size: end - begin,
            });
        }
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_owner_on_disk_to_the_owner_shown() {
        let maps = |disk, shown| -> Vec<(u32, u32, u32)> {
            map_owner(disk, shown)
                .iter()
                .map(|map| (map.container_id, map.host_id, map.size))
                .collect()
        };
        assert_eq!(maps(5, 5), [(0, 0, u32::MAX)]);
        assert_eq!(
            maps(1000, 0),
            [(1000, 0, 1), (1, 1, 999), (1001, 1001, u32::MAX - 1001)]
        );
        assert_eq!(maps(0, 1), [(0, 1, 1), (2, 2, u32::MAX - 2)]);
    }
}
