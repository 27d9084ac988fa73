//! Converts the engine's objects to the API's, in the newest version's form.

mod archive;
mod container;
mod convert;
mod event;
mod exec;
mod image;
mod message;
mod network;
mod stats;
mod system;
mod volume;

pub(crate) use archive::{change, path_stat};
pub(crate) use container::{container, container_summary, requested_mac};
pub(crate) use convert::{Convert, Parse};
pub(crate) use event::event;
pub(crate) use exec::exec;
pub(crate) use image::{descriptor, history, image, image_summary, manifests, platform, removals};
pub(crate) use message::{
    build_error, build_failure, build_image, build_text, build_trace, built, loaded, progress,
    pull_status, pulled, pulled_tag, pulling, pushed, pushing, stream_error,
};
pub(crate) use network::{network, network_status};
pub(crate) use stats::stats;
pub(crate) use system::{
    build_cache_usage, check_problem, check_result, container_usage, image_usage, info, log_usage,
    version, volume_usage,
};
pub(crate) use volume::volume;

/// Formats nanoseconds since the epoch as RFC 3339; 0 becomes Go's zero time.
pub(crate) fn time(nanoseconds: i64) -> String {
    if nanoseconds == 0 {
        "0001-01-01T00:00:00Z".into()
    } else {
        jiff::Timestamp::from_nanosecond(nanoseconds.into())
            .unwrap_or_default()
            .to_string()
    }
}

/// Converts a size to the type that the API has for sizes.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Returns `null` for an empty list, which is how Go encodes a list that nothing was added to.
pub(crate) fn null_if_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_times_as_go_does() {
        assert_eq!(time(0), "0001-01-01T00:00:00Z");
        assert_eq!(time(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
    }
}
