//! The engine's log on standard error.

use std::fmt;

use anyhow::Context as _;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, Formatter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload::Handle;

use crate::config::{File, LogFormat};

type Output = Formatter<format::DefaultFields, Format, fn() -> std::io::Stderr>;

/// The running log, whose level can be changed.
pub(crate) struct Log(Handle<EnvFilter, Output>);

impl Log {
    /// Begins to log.
    ///
    /// # Errors
    /// Returns an error if there is a log already.
    pub(crate) fn start(settings: &File) -> anyhow::Result<Self> {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(level(settings))
            .with_writer(std::io::stderr as fn() -> std::io::Stderr)
            .with_ansi(false)
            .event_format(Format {
                is_json: settings.log_format == LogFormat::Json,
                text: format::format().with_ansi(false),
            })
            .with_filter_reloading();
        let handle = builder.reload_handle();
        tracing::subscriber::set_global_default(builder.finish()).context("start the log")?;
        Ok(Self(handle))
    }

    /// Applies the level that is set now.
    ///
    /// # Errors
    /// Returns an error if the log has ended.
    pub(crate) fn reload(&self, settings: &File) -> anyhow::Result<()> {
        if settings.debug || settings.log_level.is_some() {
            warn_of_variable();
        }
        Ok(self.0.reload(EnvFilter::new(level(settings)))?)
    }
}

/// The environment variable with the level, or filters by module, which takes precedence.
const VARIABLE: &str = "WHELK_LOG";

fn warn_of_variable() {
    if std::env::var_os(VARIABLE).is_some() {
        tracing::warn!(
            "{VARIABLE} is set in the engine's environment: debug and log-level have no effect"
        );
    }
}

/// Returns the level of the log. As with Docker, `debug` takes precedence.
fn level(settings: &File) -> String {
    let level = settings.log_level.map_or("info", |level| level.0);
    let level = if settings.debug && level != "trace" {
        "debug"
    } else {
        level
    };
    std::env::var(VARIABLE).unwrap_or_else(|_| level.to_owned())
}

/// Formats an entry as text, or as a JSON object with Docker's names.
struct Format {
    is_json: bool,
    text: format::Format,
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.is_json {
            return self.text.format_event(context, writer, event);
        }
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = event.metadata().level().as_str().to_lowercase();
        let level = if level == "warn" { "warning" } else { &level };
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let mut entry = fields.0;
        entry.insert("level".into(), level.into());
        entry.insert("time".into(), time.into());
        writeln!(writer, "{}", Value::from(entry))
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn insert(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "message" => "msg",
            name => name,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }
}
