//! Volumes.

use whelk_api_types::Volume;
use whelk_engine::volumes::VolumeDetails;

pub(crate) fn volume(details: VolumeDetails) -> Volume {
    let record = details.record;
    let created_at = if details.created_at.is_empty() {
        jiff::Timestamp::from_second(record.created_at / 1_000_000_000)
            .unwrap_or_default()
            .to_string()
    } else {
        details.created_at
    };
    Volume {
        created_at,
        mountpoint: details.mountpoint.to_string_lossy().into_owned(),
        scope: details.scope.into(),
        status: details.status,
        usage_data: None,
        driver: record.driver.to_string(),
        labels: record.labels,
        name: record.name,
        options: record.options,
    }
}
