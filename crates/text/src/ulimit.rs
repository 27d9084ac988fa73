//! Limits of resources (`--ulimit`).

/// The names that Docker gives to the limits that setrlimit(2) has, apart from that of the size of the address
/// space.
pub const NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
