//! What is removed of the build cache: pure functions of its records.

use std::time::Duration;

use regex_lite::Regex;

/// What a record is, by BuildKit's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordKind {
    /// The result of a step, or the file of a URL.
    #[default]
    Regular,
    /// A cache of steps (`RUN --mount=type=cache`).
    CacheMount,
    /// A directory of a client.
    Local,
    /// The files of a git repository.
    Git,
}

impl RecordKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::CacheMount => "exec.cachemount",
            Self::Local => "source.local",
            Self::Git => "source.git.checkout",
        }
    }

    /// Returns whether builds change the files of such records.
    pub fn is_mutable(self) -> bool {
        matches!(self, Self::CacheMount | Self::Local)
    }
}

/// A record of the build cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub id: String,
    /// The record that it stands on.
    pub parent: Option<String>,
    pub kind: RecordKind,
    /// The step.
    pub description: String,
    /// Whether a build uses it now.
    pub in_use: bool,
    /// Whether an image has its layers.
    pub shared: bool,
    /// In bytes, without what it stands on.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// The last use; nanoseconds since the epoch.
    pub used: i64,
    pub uses: u64,
}

/// What is to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Also what images share, which frees no space.
    pub all: bool,
    /// Records that were used within this time stay.
    pub keep_duration: Duration,
    /// What the cache may have in any case, in bytes.
    pub reserved_space: u64,
    /// What it may have at most, in bytes; 0 without a limit.
    pub max_used_space: u64,
    /// What the disk should have free, in bytes.
    pub min_free_space: u64,
    pub filters: Vec<Vec<Condition>>,
}

impl Policy {
    /// Returns whether nothing is spared by its age, its size or a filter.
    pub fn is_everything(&self) -> bool {
        let limits = [
            self.reserved_space,
            self.max_used_space,
            self.min_free_space,
        ];
        self.keep_duration.is_zero() && self.filters.is_empty() && limits == [0; 3]
    }
}

/// A condition of a filter: `type==regular`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub field: String,
    pub operator: Operator,
    /// None for a field that is true.
    pub value: Option<String>,
    /// The value that a field has to match.
    expression: Option<Expression>,
}

/// A regular expression, which equals another one with the same text.
#[derive(Clone, Debug)]
struct Expression(Regex);

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Expression {}

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Is,
    /// `!=`
    IsNot,
    /// `~=`: a regular expression that matches a part.
    Matches,
}

impl std::fmt::Display for Condition {
    /// In the form that [`Condition::parse_all`] reads.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(value) = &self.value else {
            return formatter.write_str(&self.field);
        };
        let operator = match self.operator {
            Operator::Is => "==",
            Operator::IsNot => "!=",
            Operator::Matches => "~=",
        };
        write!(formatter, "{}{operator}", self.field)?;
        match value.contains([',', '"', '\'', '|', '/', '\\']) {
            true => write!(
                formatter,
                "\"{}\"",
                value.replace('\\', "\\\\").replace('"', "\\\"")
            ),
            false => formatter.write_str(value),
        }
    }
}

impl Condition {
    /// Fields of records that conditions of the API may name.
    pub const FIELDS: [&str; 7] = [
        "id",
        "parent",
        "type",
        "description",
        "inuse",
        "shared",
        "private",
    ];
    /// Further fields that conditions in BuildKit's protocol may name.
    const MORE_FIELDS: [&str; 3] = ["parents", "mutable", "immutable"];

    /// Returns a condition about a field of a record.
    ///
    /// # Errors
    /// Returns a text for a value that has to be a regular expression, and is none.
    pub fn new(field: &str, operator: Operator, value: Option<String>) -> Result<Self, String> {
        let mut condition = Self {
            field: field.to_owned(),
            operator,
            value,
            expression: None,
        };
        if operator == Operator::Matches {
            let expression = Regex::new(condition.value.as_deref().unwrap_or_default());
            let expression = expression.map_err(|error| {
                let text = condition.to_string();
                format!("invalid filter {text:?} of the build cache: {error}")
            })?;
            condition.expression = Some(Expression(expression));
        }
        Ok(condition)
    }

    /// Parses a condition; several that must all be true are separated by commas. A value may be in quotes.
    ///
    /// # Errors
    /// Returns a text for another form than `FIELD==VALUE`, `FIELD!=VALUE`, `FIELD~=EXPRESSION` or `FIELD`.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        // With one sign, as users write it.
        let invalid = || {
            let text = text.replacen("==", "=", 1);
            format!("invalid filter {text:?} of the build cache")
        };
        let mut all = Vec::new();
        let mut rest = text;
        loop {
            let end = rest.find([',', '=', '!', '~']).unwrap_or(rest.len());
            let (field, behind) = rest.split_at(end);
            if !Self::FIELDS.contains(&field) && !Self::MORE_FIELDS.contains(&field) {
                return Err(invalid());
            }
            let operators = [
                ("!=", Operator::IsNot),
                ("~=", Operator::Matches),
                ("==", Operator::Is),
                ("=", Operator::Is),
            ];
            let operator = operators
                .into_iter()
                .find_map(|(sign, operator)| Some((operator, behind.strip_prefix(sign)?)));
            let (operator, value, behind) = match operator {
                None => (Operator::Is, None, behind),
                Some((operator, value)) => {
                    let (value, behind) = value_of(value).ok_or_else(invalid)?;
                    (operator, Some(value), behind)
                }
            };
            all.push(Self::new(field, operator, value)?);
            match behind.strip_prefix(',') {
                Some(behind) => rest = behind,
                None if behind.is_empty() => return Ok(all),
                None => return Err(invalid()),
            }
        }
    }

    /// Returns whether it is true for a record.
    pub fn holds(&self, record: &Record) -> bool {
        let flag = |flag: bool| flag.to_string();
        let found = match self.field.as_str() {
            "id" => record.id.clone(),
            "parent" | "parents" => record.parent.clone().unwrap_or_default(),
            "type" => record.kind.name().to_owned(),
            "description" => record.description.clone(),
            "inuse" => flag(record.in_use),
            "shared" => flag(record.shared),
            "mutable" => flag(record.kind.is_mutable()),
            "immutable" => flag(!record.kind.is_mutable()),
            _ => flag(!record.shared),
        };
        let is_flag = !matches!(self.field.as_str(), "id" | "parent" | "parents");
        let expected = match self.value.as_deref() {
            None => "true",
            // As Go writes them.
            Some("1") if is_flag => "true",
            Some("0") if is_flag => "false",
            Some(value) => value,
        };
        match self.operator {
            Operator::Is => found == expected,
            Operator::IsNot => found != expected,
            Operator::Matches => {
                let expression = self.expression.as_ref();
                expression.is_some_and(|Expression(regex)| regex.is_match(&found))
            }
        }
    }
}

/// Takes the value of a condition from the beginning of a text, and returns the rest, too.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quote @ ('"' | '\'' | '|' | '/')) = text.chars().next() else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' if quote == '"' => value.push(characters.next()?.1),
            character if character == quote => return Some((value, &text[at + 1..])),
            character => value.push(character),
        }
    }
    None
}

/// The space of the disk, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    pub total: u64,
    pub free: u64,
}

/// Returns the bytes that a policy lets the cache have; `None` without a limit.
fn budget(policy: &Policy, total: u64, disk: Disk) -> Option<u64> {
    if policy.max_used_space == 0 && policy.reserved_space == 0 && policy.min_free_space == 0 {
        return None;
    }
    let mut keep = match policy.max_used_space {
        0 => u64::MAX,
        most => most,
    };
    let missing = policy.min_free_space.saturating_sub(disk.free);
    if missing > 0 {
        keep = keep.min(total.saturating_sub(missing));
    }
    // Without another limit, what is reserved is the limit.
    if keep == u64::MAX && policy.min_free_space == 0 {
        keep = policy.reserved_space;
    }
    Some(keep.max(policy.reserved_space))
}

/// Chooses the records that a policy removes: those that were not used for the longest time first, and each before the one
/// that it stands on. `now` is in nanoseconds since the epoch.
pub fn choose(records: &[Record], policy: &Policy, now: i64, disk: Disk) -> Vec<usize> {
    let is_meant = |record: &Record| {
        let filters = &policy.filters;
        filters.is_empty()
            || filters
                .iter()
                .any(|all| all.iter().all(|condition| condition.holds(record)))
    };
    // The space is that of what the filters mean, so that caches of steps have a budget of their own.
    let counted = |record: &&Record| (policy.all || !record.shared) && is_meant(record);
    let sizes = records.iter().filter(counted).map(|one| one.size);
    let mut total = sizes.fold(0, u64::saturating_add);
    let budget = budget(policy, total, disk);
    if budget.is_some_and(|budget| total <= budget) {
        return Vec::new();
    }
    let keep = i64::try_from(policy.keep_duration.as_nanos()).unwrap_or(i64::MAX);
    let (used, in_use) = last_uses(records);
    let mut candidates: Vec<usize> = (0..records.len())
        .filter(|&index| {
            let record = &records[index];
            !in_use[index]
                && counted(&record)
                && (keep == 0 || now.saturating_sub(used[index]) > keep)
        })
        .collect();
    let depth = depths(records);
    candidates.sort_by_key(|&index| (used[index], std::cmp::Reverse(depth[index])));
    let mut chosen = Vec::new();
    for index in candidates {
        if budget.is_some_and(|budget| total <= budget) {
            break;
        }
        total = total.saturating_sub(records[index].size);
        chosen.push(index);
    }
    chosen
}

/// Returns the index of each record's parent.
fn parents(records: &[Record]) -> Vec<Option<usize>> {
    let by_id: std::collections::HashMap<&str, usize> = records
        .iter()
        .enumerate()
        .map(|(index, record)| (record.id.as_str(), index))
        .collect();
    let parent = |record: &Record| by_id.get(record.parent.as_deref()?).copied();
    records.iter().map(parent).collect()
}

/// Returns the last use of each record, or of one that stands on it, and whether one of these is in use.
fn last_uses(records: &[Record]) -> (Vec<i64>, Vec<bool>) {
    let parents = parents(records);
    let mut used: Vec<i64> = records.iter().map(|record| record.used).collect();
    let mut in_use: Vec<bool> = records.iter().map(|record| record.in_use).collect();
    for (index, record) in records.iter().enumerate() {
        let (mut at, mut steps) = (parents[index], 0);
        while let Some(parent) = at.filter(|_| steps < records.len()) {
            used[parent] = used[parent].max(record.used);
            in_use[parent] |= record.in_use;
            (at, steps) = (parents[parent], steps + 1);
        }
    }
    (used, in_use)
}

/// Returns on how many others each record stands.
fn depths(records: &[Record]) -> Vec<usize> {
    let parents = parents(records);
    let depth = |index: usize| {
        let (mut at, mut depth) = (parents[index], 0);
        while let Some(parent) = at.filter(|_| depth < records.len()) {
            (at, depth) = (parents[parent], depth + 1);
        }
        depth
    };
    (0..records.len()).map(depth).collect()
}

/// Returns the policies of an engine without settings. As in Docker, but for that directories and caches of steps have a
/// budget of their own.
pub fn default_policies(space: Policy) -> Vec<Policy> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    /// The part of the cache that is kept for two days only, in thousandths: e × π × φ percent.
    const TEMPORARY: u64 = 138;
    let most = match space.max_used_space {
        0 => space.reserved_space,
        most => most,
    };
    let temporary = [RecordKind::Local, RecordKind::CacheMount, RecordKind::Git].map(|kind| {
        vec![Condition {
            field: "type".into(),
            operator: Operator::Is,
            value: Some(kind.name().into()),
            expression: None,
        }]
    });
    vec![
        // Directories of clients, files of git repositories, and caches of steps that were not used for some time.
        Policy {
            keep_duration: 2 * DAY,
            max_used_space: most / 1000 * TEMPORARY,
            filters: temporary.into(),
            ..Policy::default()
        },
        Policy {
            keep_duration: 60 * DAY,
            ..space.clone()
        },
        space.clone(),
        Policy { all: true, ..space },
    ]
}

/// Returns the space of the default policies on a disk.
pub fn default_space(disk: Disk) -> Policy {
    const GIGABYTE: u64 = 1_000_000_000;
    Policy {
        reserved_space: (disk.total / 10).min(10 * GIGABYTE),
        max_used_space: (disk.total / 5 * 4).min(100 * GIGABYTE),
        min_free_space: disk.total / 5,
        ..Policy::default()
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    /// A chain a ← b ← c, of which c was used last, and d, which an image has.
    fn records() -> Vec<Record> {
        let record = |id: &str, parent: Option<&str>, used| Record {
            id: id.into(),
            parent: parent.map(str::to_owned),
            size: 10,
            used,
            ..Record::default()
        };
        vec![
            record("a", None, 1),
            record("b", Some("a"), 2),
            record("c", Some("b"), 9),
            Record {
                shared: true,
                ..record("d", None, 3)
            },
            Record {
                kind: RecordKind::CacheMount,
                ..record("m", None, 4)
            },
        ]
    }

    fn chosen(policy: &Policy) -> String {
        chosen_of(&records(), policy, Disk::default())
    }

    fn chosen_of(records: &[Record], policy: &Policy, disk: Disk) -> String {
        let chosen = choose(records, policy, 100, disk);
        chosen
            .into_iter()
            .map(|index| &*records[index].id)
            .collect()
    }

    #[test]
    fn what_stands_on_a_record_goes_first() {
        assert_eq!(chosen(&Policy::default()), "mcba");
        let all = Policy {
            all: true,
            ..Policy::default()
        };
        assert_eq!(chosen(&all), "dmcba");
        let mut used = records();
        used[2].in_use = true;
        assert_eq!(chosen_of(&used, &Policy::default(), Disk::default()), "m");
    }

    #[test]
    fn budgets_end_it() {
        let policy = |max, reserved, free| Policy {
            max_used_space: max,
            reserved_space: reserved,
            min_free_space: free,
            ..Policy::default()
        };
        assert_eq!(chosen(&policy(40, 0, 0)), "");
        assert_eq!(chosen(&policy(25, 0, 0)), "mc");
        assert_eq!(chosen(&policy(0, 25, 0)), "mc");
        let disk = Disk {
            total: 100,
            free: 5,
        };
        assert_eq!(chosen_of(&records(), &policy(0, 0, 20), disk), "mc");
        assert_eq!(chosen_of(&records(), &policy(0, 35, 20), disk), "m");
        assert_eq!(chosen_of(&records(), &policy(0, 0, 5), disk), "");
    }

    #[test]
    fn filters_have_a_budget_of_their_own() {
        let policy = |max| Policy {
            max_used_space: max,
            filters: vec![Condition::parse_all("type==exec.cachemount").unwrap()],
            ..Policy::default()
        };
        let mut all = records();
        // The cache is larger, what the filter means is not.
        assert_eq!(chosen(&policy(10)), "");
        assert_eq!(chosen(&policy(9)), "m");
        all.push(Record {
            id: "n".into(),
            used: 3,
            ..all[4].clone()
        });
        assert_eq!(chosen_of(&all, &policy(10), Disk::default()), "n");
    }

    #[test]
    fn the_default_policies_are_those_of_the_disk() {
        const GIGABYTE: u64 = 1_000_000_000;
        let disk = |gigabytes: u64| Disk {
            total: gigabytes * GIGABYTE,
            free: 0,
        };
        for (total, reserved, most, free) in [(50, 5, 40, 10), (1000, 10, 100, 200)] {
            let space = default_space(disk(total));
            let found = [
                space.reserved_space,
                space.max_used_space,
                space.min_free_space,
            ];
            assert_eq!(found, [reserved, most, free].map(|size| size * GIGABYTE));
        }
        let policies = default_policies(default_space(disk(1000)));
        let shown: Vec<_> = policies
            .iter()
            .map(|policy| {
                let days = policy.keep_duration.as_secs() / (24 * 60 * 60);
                let filters = policy.filters.iter().flatten();
                let filters: Vec<String> = filters.map(ToString::to_string).collect();
                let most = policy.max_used_space / GIGABYTE;
                (policy.all, days, most, filters.join(" "))
            })
            .collect();
        let temporary =
            "type==source.local type==exec.cachemount type==source.git.checkout".to_owned();
        assert_eq!(
            shown,
            [
                (false, 2, 13, temporary),
                (false, 60, 100, String::new()),
                (false, 0, 100, String::new()),
                (true, 0, 100, String::new()),
            ]
        );
        // Only a reserved space is the limit, too.
        let reserved = Policy {
            reserved_space: GIGABYTE,
            ..Policy::default()
        };
        assert_eq!(default_policies(reserved)[0].max_used_space, 138_000_000);
    }

    #[test]
    fn conditions_are_written_as_they_are_read() {
        for text in ["type==exec.cachemount", "shared", "id!=a", "id~=^a.*$"] {
            let parsed = Condition::parse_all(text).unwrap();
            assert_eq!(parsed[0].to_string(), text);
        }
        let parsed = Condition::parse_all(r#"description=="a, \"b\" \\ c""#).unwrap();
        let again = Condition::parse_all(&parsed[0].to_string()).unwrap();
        assert_eq!(again, parsed);
    }

    #[test]
    fn filters_and_ages() {
        let filter = |text: &str| Policy {
            filters: vec![Condition::parse_all(text).unwrap()],
            ..Policy::default()
        };
        assert_eq!(chosen(&filter("type==exec.cachemount")), "m");
        assert_eq!(chosen(&filter("type!=exec.cachemount,parent==a")), "b");
        assert_eq!(chosen(&filter("id=c")), "c");
        assert_eq!(chosen(&filter("type~=mount")), "m");
        assert_eq!(chosen(&filter("private")), "mcba");
        assert_eq!(chosen(&filter("shared")), "");
        assert_eq!(chosen(&filter("type~=^exec\\.c.*t$")), "m");
        assert_eq!(chosen(&filter("id~=^(a|c)$")), "ca");
        assert_eq!(chosen(&filter("type!=\"a,b\",id==\"c\"")), "c");
        assert_eq!(chosen(&filter("id=='c',private")), "c");
        assert_eq!(chosen(&filter("parents==a")), "b");
        assert_eq!(chosen(&filter("mutable")), "m");
        assert_eq!(chosen(&filter("mutable=true")), "m");
        assert_eq!(chosen(&filter("immutable")), "cba");
        assert_eq!(chosen(&filter("immutable=0")), "m");
        for wrong in [
            "colour==red",
            "id~=(",
            "id==\"c",
            "id==\"c\"d",
            "",
            "id==a,",
        ] {
            assert!(Condition::parse_all(wrong).is_err(), "{wrong}");
        }
        // Nothing below what was used lately is removed.
        let old = Policy {
            keep_duration: Duration::from_nanos(95),
            ..Policy::default()
        };
        assert_eq!(chosen(&old), "m");
    }
}
