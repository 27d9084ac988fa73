//! The records of the build cache in `system df -v`.

use serde::Serialize;
use whelk_api_types::BuildCache;
use whelk_text::size;

use crate::Outcome;
use crate::format::table::Table;
use crate::format::units::{short_id, since, utc_time};

const TABLE: Table = Table {
    row: "*formatter.buildCacheContext",
    id: "ID",
    columns: &[
        ("ID", "CACHE ID"),
        ("Parent", "PARENT"),
        ("CacheType", "CACHE TYPE"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("LastUsedSince", "LAST USED"),
        ("UsageCount", "USAGE"),
        ("InUse", "IN USE"),
        ("Shared", "SHARED"),
        ("Description", "DESCRIPTION"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Row {
    #[serde(rename = "ID")]
    id: String,
    parent: String,
    cache_type: String,
    description: String,
    size: String,
    created_at: String,
    created_since: String,
    last_used_at: String,
    last_used_since: String,
    usage_count: String,
    in_use: String,
    shared: String,
}

/// Returns the rows of records, in the order in which they were used.
pub(super) fn rows(mut records: Vec<BuildCache>, no_trunc: bool) -> Vec<Row> {
    records.sort_by_cached_key(|record| {
        let used = record.last_used_at.as_ref();
        let used = used.and_then(|time| time.parse::<jiff::Timestamp>().ok());
        (used, record.id.clone())
    });
    let rows = records.into_iter().map(|record| row(record, no_trunc));
    rows.collect()
}

fn row(record: BuildCache, no_trunc: bool) -> Row {
    let id = if no_trunc {
        record.id
    } else {
        short_id(&record.id)
    };
    let used = record.last_used_at.as_deref();
    Row {
        id: if record.in_use { id + "*" } else { id },
        parent: record.parents.join(", "),
        cache_type: record.kind,
        description: record.description,
        size: size::decimal(record.size, 3),
        created_since: since(&record.created_at),
        created_at: utc_time(&record.created_at),
        last_used_since: used.map(since).unwrap_or_default(),
        last_used_at: used.map(utc_time).unwrap_or_default(),
        usage_count: record.usage_count.to_string(),
        in_use: record.in_use.to_string(),
        shared: record.shared.to_string(),
    }
}

/// Returns the section of `system df -v`, without its heading.
pub(super) fn table(records: Vec<BuildCache>) -> Outcome<String> {
    let columns = "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}";
    TABLE.text("", false, columns, rows(records, false))
}

/// Returns the size of the records; what images share with them is counted there.
pub(super) fn own_size<'a>(records: impl IntoIterator<Item = &'a BuildCache>) -> u64 {
    let own = records.into_iter().filter(|record| !record.shared);
    own.map(|record| record.size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, used: Option<&str>) -> BuildCache {
        BuildCache {
            id: id.into(),
            parents: vec!["a".into(), "b".into()],
            kind: "regular".into(),
            size: 1500,
            created_at: "2026-01-02T03:04:05.5Z".into(),
            last_used_at: used.map(str::to_owned),
            usage_count: 2,
            ..BuildCache::default()
        }
    }

    #[test]
    fn records_are_in_the_order_of_their_use() {
        let (early, late) = ("2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05.75Z");
        let records = vec![
            record("late", Some(late)),
            record("second", Some(early)),
            record("first", Some(early)),
            record("never", None),
        ];
        let rows = rows(records, true);
        let ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids, ["never", "first", "second", "late"]);
        assert_eq!(rows[0].last_used_at, "");
        assert_eq!(rows[0].last_used_since, "");
        assert_eq!(rows[3].last_used_at, "2026-01-02 03:04:05.75 +0000 UTC");
        assert_eq!(rows[3].parent, "a, b");
    }

    #[test]
    fn records_in_use_are_marked_and_shared_ones_not_counted() {
        let used = BuildCache {
            in_use: true,
            ..record("0123456789abcdef", None)
        };
        let shared = BuildCache {
            shared: true,
            ..record("other", None)
        };
        let records = vec![used, shared];
        assert_eq!(own_size(&records), 1500);
        let shown = table(records).unwrap_or_default();
        let lines: Vec<Vec<_>> = shown
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0][..3], ["CACHE", "ID", "CACHE"]);
        assert_eq!(lines[1][..3], ["0123456789ab*", "regular", "1.5kB"]);
        assert_eq!(lines[1][lines[1].len() - 2..], ["2", "false"]);
        assert_eq!(lines[2][0], "other");
        assert_eq!(lines[2].last(), Some(&"true"));
    }
}
