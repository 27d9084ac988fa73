//! The `events` command.

use clap::Args;
use serde_json::Value;
use whelk_api_types::{EventMessage, read};

use crate::Outcome;
use crate::client::{Client, no_body, query, unreadable};
use crate::commands::arguments::filters;
use crate::commands::messages::Messages;
use crate::format::moment::moment;
use crate::format::template::{self, Mode, Template, typed};
use crate::output::print_line;

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
    let mut messages = Messages::of(response);
    while let Some(event) = messages.next::<Value>().await? {
        let text = match &template {
            Some(template) => template
                .execute(&typed("events.Message", event), Mode::Values)
                .map_err(|mistake| bad(mistake, 1))?,
            None => event_line(&read(event).map_err(unreadable)?),
        };
        print_line!("{text}")?;
    }
    Ok(0)
}

/// Formats an event as `TIME TYPE ACTION ID (key=value, …)`.
fn event_line(event: &EventMessage) -> String {
    let time = jiff::Timestamp::from_nanosecond(event.time_nano.into())
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::system());
    let attributes: Vec<String> = event
        .actor
        .attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let head = format!(
        "{} {} {} {}",
        time.strftime(if time.offset().is_zero() {
            "%Y-%m-%dT%H:%M:%S.%9fZ"
        } else {
            "%Y-%m-%dT%H:%M:%S.%9f%:z"
        }),
        event.kind,
        event.action,
        event.actor.id
    );
    if attributes.is_empty() {
        head
    } else {
        format!("{head} ({})", attributes.join(", "))
    }
}
