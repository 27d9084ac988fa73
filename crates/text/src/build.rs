//! What the program was built from, which `make release` sets. A build of the same commit has the same values.

/// The commit; empty if it is not known.
pub const COMMIT: &str = match option_env!("WHELK_COMMIT") {
    Some(commit) => commit,
    None => "",
};

/// The time of the commit (RFC 3339); empty if it is not known.
pub const TIME: &str = match option_env!("WHELK_BUILD_TIME") {
    Some(time) => time,
    None => "",
};
