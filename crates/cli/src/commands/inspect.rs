//! The `inspect` command, for objects of all types.

use clap::Args;
use serde_json::Value;

use crate::client::{Client, escape_name, query};
use crate::commands::image::platform::platform_json;
use crate::format::template::{Mode, Template, Typed, failure, typed};
use crate::output::print;
use crate::{Failure, Outcome};

/// The arguments that all `inspect` commands have.
#[derive(Debug, Args)]
pub(crate) struct ObjectArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    objects: ObjectArgs,
    /// Display total file sizes if the type is container
    #[arg(short, long)]
    size: bool,
    /// Only inspect objects of the given type
    #[arg(long = "type")]
    kind: Option<String>,
}

/// The objects to inspect and how to print them.
#[derive(Debug, Default)]
pub(crate) struct Inspection {
    pub format: String,
    pub names: Vec<String>,
    /// The name of one of `KINDS`; `None` for the first kind that has such an object.
    pub kind: Option<String>,
    pub size: bool,
    pub platform: Option<String>,
}

impl ObjectArgs {
    /// Returns the inspection of objects of one kind.
    pub(crate) fn of(self, kind: &str) -> Inspection {
        Inspection {
            format: self.format,
            names: self.names,
            kind: Some(kind.to_owned()),
            ..Inspection::default()
        }
    }
}

impl From<InspectArgs> for Inspection {
    fn from(args: InspectArgs) -> Self {
        Self {
            kind: args.kind,
            size: args.size,
            ..args.objects.of("")
        }
    }
}

pub(crate) async fn inspect(client: &Client, what: impl Into<Inspection>) -> Outcome {
    let what = what.into();
    let kind = what.kind.as_deref();
    if let Some(kind) = kind.filter(|kind| !KINDS.iter().any(|known| known.name == *kind)) {
        return Err(Failure::new(unknown(kind)));
    }
    let template = match what.format.as_str() {
        "" | "json" => None,
        format => Some(
            Template::parse(format)
                .map_err(|mistake| failure(&mistake, 64, "template parsing error: "))?,
        ),
    };
    let (mut found, mut shown, mut failures) = (Vec::new(), String::new(), Vec::new());
    for name in &what.names {
        match (inspect_one(client, name, &what).await, &template) {
            (Ok(object), None) => found.push(object.json),
            (Ok(object), Some(template)) => match show(template, object) {
                Ok(text) => shown += &(text + "\n"),
                Err(failure) => failures.push(failure.text),
            },
            (Err(failure), _) => failures.push(failure.text),
        }
    }
    print(&match what.format.as_str() {
        "" => pretty(&Value::Array(found)) + "\n",
        "json" => Value::Array(found).to_string() + "\n",
        _ if shown.is_empty() => "\n".into(),
        _ => shown,
    })?;
    if failures.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(failures.join("\n")))
    }
}

/// Returns the error text for a kind of object that cannot be inspected.
fn unknown(kind: &str) -> String {
    const ALL: &str = r#""config", "container", "image", "network", "node", "plugin", "secret", "service", "task", "volume""#;
    match kind {
        "" => format!("type is empty: must be one of {ALL}"),
        "config" | "node" | "plugin" | "secret" | "service" | "task" => {
            format!("--type {kind}: {kind}s are not available in this version of whelk")
        }
        _ => format!("unknown type: {kind:?}: must be one of {ALL}"),
    }
}

/// Executes a template on an object with its type in Docker's client or, if that fails, on its JSON
/// as received.
fn show(template: &Template, object: Typed) -> Outcome<String> {
    let typed = template.execute(&object, Mode::Values);
    typed.or_else(|_| {
        template
            .execute(&Typed::any(object.json), Mode::Raw)
            .map_err(|mistake| failure(&mistake, 1, "template parsing error: "))
    })
}

/// A kind of object that can be inspected.
struct InspectKind {
    name: &'static str,
    /// The API path, with `{}` for the object's name.
    path: &'static str,
    /// The Go type in Docker's client.
    ty: &'static str,
}

/// All kinds, in the order in which names are looked up.
const KINDS: &[InspectKind] = &[
    InspectKind {
        name: "container",
        path: "/containers/{}/json",
        ty: "container.InspectResponse",
    },
    InspectKind {
        name: "image",
        path: "/images/{}/json",
        ty: "image.InspectResponse",
    },
    InspectKind {
        name: "network",
        path: "/networks/{}",
        ty: "network.Inspect",
    },
    InspectKind {
        name: "volume",
        path: "/volumes/{}",
        ty: "volume.Volume",
    },
];

async fn inspect_one(client: &Client, name: &str, what: &Inspection) -> Outcome<Typed> {
    let wanted = what.kind.as_deref();
    for kind in KINDS
        .iter()
        .filter(|kind| wanted.is_none_or(|wanted| wanted == kind.name))
    {
        let size = if what.size && kind.name == "container" {
            "1"
        } else {
            ""
        };
        if kind.name == "image" && name.is_empty() {
            return Err(Failure::new("Error: No such image: "));
        }
        let platform = platform_json(what.platform.as_deref().unwrap_or_default())?;
        let query = query(&[("size", size), ("platform", &platform)]);
        match client
            .get(&(kind.path.replace("{}", &escape_name(name)) + &query))
            .await
        {
            Err(error) if error.status == hyper::StatusCode::NOT_FOUND && wanted.is_none() => {}
            result => return Ok(typed(kind.ty, result?)),
        }
    }
    Err(Failure::new(format!("Error: No such object: {name}")))
}

/// Formats JSON with an indentation of four spaces, as Docker does.
pub(crate) fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8(out).unwrap_or_default()
}
