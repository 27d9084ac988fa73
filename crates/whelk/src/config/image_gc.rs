//! The key `image-gc`.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use whelk_engine::instance::ImageGc;
use whelk_text::{duration, size};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct ImageGcSettings {
    max_used_space: Option<String>,
    high_threshold: Option<u8>,
    low_threshold: Option<u8>,
    minimum_age: Option<String>,
    interval: Option<String>,
}

impl ImageGcSettings {
    pub(super) fn settings(&self) -> anyhow::Result<ImageGc> {
        let size = |text: &String| -> anyhow::Result<u64> {
            let bytes = size::parse_binary(text).map_err(|error| anyhow::anyhow!("{error}"));
            Ok(bytes.context("max-used-space")?.try_into()?)
        };
        let time = |key: &'static str, text: &Option<String>, default: Duration| {
            let Some(text) = text else { return Ok(default) };
            let time = duration::parse(text).map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
            let time = u64::try_from(time).context(key)?;
            anyhow::Ok(Duration::from_nanos(time))
        };
        let high = self.high_threshold;
        let gc = ImageGc {
            max_used: self.max_used_space.as_ref().map(size).transpose()?,
            high_threshold: high,
            low_threshold: self
                .low_threshold
                .unwrap_or(high.unwrap_or(0).saturating_sub(5)),
            minimum_age: time("minimum-age", &self.minimum_age, Duration::from_secs(120))?,
            interval: time("interval", &self.interval, Duration::from_secs(300))?,
        };
        if gc.interval < Duration::from_secs(1) {
            bail!("interval: must be at least 1s");
        }
        gc.check().map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(gc)
    }
}
