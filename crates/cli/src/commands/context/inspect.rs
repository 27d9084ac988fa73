//! The `context inspect` command.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{load, store};
use crate::commands::inspect::pretty;
use crate::context::{Context, ContextStore, DEFAULT, ENDPOINT, TlsFiles, go_escaped};
use crate::endpoint::RootFlags;
use crate::format::template::{Mode, Template, failure, json, typed};
use crate::output::print;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
    #[arg(value_name = "CONTEXT")]
    names: Vec<String>,
}

pub(super) fn inspect(flags: &RootFlags, args: InspectArgs) -> Outcome {
    let template = match args.format.as_str() {
        "" | "json" => None,
        format => Some(
            Template::parse(format)
                .map_err(|mistake| failure(&mistake, 64, "template parsing error: "))?,
        ),
    };
    let names = if args.names.is_empty() {
        vec![flags.context()]
    } else {
        args.names
    };
    let (mut found, mut shown, mut failures) = (Vec::new(), String::new(), Vec::new());
    for name in &names {
        match (describe(flags, name), &template) {
            (Ok(object), None) => found.push(object),
            (Ok(object), Some(template)) => {
                let object = typed("context.contextWithTLSListing", object);
                match template.execute(&object, Mode::Values) {
                    Ok(text) => shown += &(text + "\n"),
                    Err(mistake) => {
                        failures.push(failure(&mistake, 1, "template parsing error: ").text);
                    }
                }
            }
            (Err(failure), _) => failures.push(failure.text),
        }
    }
    print(&match args.format.as_str() {
        "" => go_escaped(&pretty(&Value::Array(found))) + "\n",
        "json" => go_escaped(&Value::Array(found).to_string()) + "\n",
        _ if shown.is_empty() => "\n".into(),
        _ => shown,
    })?;
    if failures.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(failures.join("\n")))
    }
}

/// Returns a context as `inspect` shows it: without the content of its PEM files.
fn describe(flags: &RootFlags, name: &str) -> Outcome<Value> {
    if name == DEFAULT {
        let (context, tls) = load(flags, name)?;
        let in_memory = "<IN MEMORY>".to_owned();
        return object(&context, listed(&tls), in_memory.clone(), in_memory);
    }
    let store: ContextStore = store(flags)?;
    let context = store.read(name).map_err(Failure::new)?;
    let path = |path: std::path::PathBuf| path.display().to_string();
    object(
        &context,
        store.tls_names(name)?,
        path(store.metadata_directory(name)),
        path(store.tls_directory(name)),
    )
}

/// The names of the PEM files by endpoint.
type TlsNames = BTreeMap<String, Vec<String>>;

/// A context in Docker's order, whatever the order in the file.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown<'c> {
    name: &'c str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'c Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Value>,
    #[serde(rename = "TLSMaterial")]
    tls_material: TlsNames,
    storage: Storage,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Storage {
    metadata_path: String,
    #[serde(rename = "TLSPath")]
    tls_path: String,
}

fn listed(tls: &TlsFiles) -> TlsNames {
    let names = tls
        .iter()
        .map(|(endpoint, files)| (endpoint.clone(), files.keys().cloned().collect()));
    names.collect()
}

fn object(
    context: &Context,
    tls_material: TlsNames,
    metadata_path: String,
    tls_path: String,
) -> Outcome<Value> {
    let mut endpoints = context.0.get("Endpoints").cloned();
    if let Some(endpoint) = endpoints
        .as_mut()
        .and_then(|endpoints| endpoints.get_mut(ENDPOINT))
    {
        let mut shown = Map::new();
        if !context.host().is_empty() {
            shown.insert("Host".into(), context.host().into());
        }
        shown.insert("SkipTLSVerify".into(), context.skip_verify().into());
        *endpoint = Value::Object(shown);
    }
    json(&Shown {
        name: context.name(),
        metadata: context.0.get("Metadata"),
        endpoints,
        tls_material,
        storage: Storage {
            metadata_path,
            tls_path,
        },
    })
}
