//! The `events` command.

use clap::Args;
use http_body_util::BodyExt;
use serde_json::Value;

use crate::client::{Client, no_body, query};
use crate::commands::arguments::filters;
use crate::format::moment::moment;
use crate::format::template::{self, Mode, Template, typed};
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template: 'json' or a Go template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show all events created since timestamp
    #[arg(long, default_value = "", hide_default_value = true)]
    since: String,
    /// Stream events until this timestamp
    #[arg(long, default_value = "", hide_default_value = true)]
    until: String,
}

pub(crate) async fn events(client: &Client, args: EventsArgs) -> Outcome {
    let query = query(&[
        ("since", &moment(&args.since)?),
        ("until", &moment(&args.until)?),
        ("filters", &filters(&args.filter)?),
    ]);
    let bad =
        |error: template::Error, code| template::failure(&error, code, "Error parsing format: ");
    let template = match args.format.as_str() {
        "" => None,
        "json" => Some("{{json .}}"),
        format => Some(format),
    };
    let template = template
        .map(Template::parse)
        .transpose()
        .map_err(|mistake| bad(mistake, 64))?;
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/events{query}"),
            &[],
            no_body(),
        )
        .await?;
    let mut body = response.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame
            .map_err(|_| Failure::new("connection to the engine lost"))?
            .into_data()
        else {
            continue;
        };
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Ok(event) = serde_json::from_slice::<Value>(&line) else {
                continue;
            };
            let text = match &template {
                Some(template) => template
                    .execute(&typed("events.Message", event), Mode::Values)
                    .map_err(|mistake| bad(mistake, 1))?,
                None => event_line(&event),
            };
            print_line!("{text}")?;
        }
    }
    Ok(0)
}

/// Formats an event as `TIME TYPE ACTION ID (key=value, …)`.
fn event_line(event: &Value) -> String {
    let nanoseconds = event["timeNano"].as_i64().unwrap_or(0);
    let time = jiff::Timestamp::from_nanosecond(nanoseconds.into())
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::system());
    let mut attributes: Vec<String> = event["Actor"]["Attributes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    attributes.sort();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let head = format!(
        "{} {} {} {}",
        time.strftime(if time.offset().is_zero() {
            "%Y-%m-%dT%H:%M:%S.%9fZ"
        } else {
            "%Y-%m-%dT%H:%M:%S.%9f%:z"
        }),
        text(&event["Type"]),
        text(&event["Action"]),
        text(&event["Actor"]["ID"])
    );
    if attributes.is_empty() {
        head
    } else {
        format!("{head} ({})", attributes.join(", "))
    }
}
