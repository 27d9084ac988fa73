//! Events.

use whelk_api_types::{EventActor, EventMessage};
use whelk_engine::events::Event;

pub(crate) fn event(event: &Event) -> EventMessage {
    EventMessage {
        status: None,
        id: None,
        from: None,
        kind: event.kind.into(),
        action: event.action.clone(),
        actor: EventActor {
            id: event.id.clone(),
            attributes: event.attributes.clone(),
        },
        scope: "local".into(),
        time: event.time / 1_000_000_000,
        time_nano: event.time,
    }
}
