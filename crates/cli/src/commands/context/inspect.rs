//! The `context inspect` command.

use clap::Args;
use serde_json::{Map, Value, json};

use super::{load, store};
use crate::commands::inspect::pretty;
use crate::context::{Context, DEFAULT, ENDPOINT, Store, TlsFiles, go_escaped};
use crate::endpoint::RootFlags;
use crate::format::template::{Mode, Template, failure, typed};
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
        return Ok(object(&context, listed(&tls), in_memory.clone(), in_memory));
    }
    let store: Store = store(flags)?;
    let context = store.read(name).map_err(Failure::new)?;
    let path = |path: std::path::PathBuf| path.display().to_string();
    Ok(object(
        &context,
        json!(store.tls_names(name)?),
        path(store.metadata_directory(name)),
        path(store.tls_directory(name)),
    ))
}

fn listed(tls: &TlsFiles) -> Value {
    let names = tls
        .iter()
        .map(|(endpoint, files)| (endpoint.clone(), json!(files.keys().collect::<Vec<_>>())));
    Value::Object(names.collect())
}

fn object(context: &Context, tls: Value, metadata_path: String, tls_path: String) -> Value {
    // In Docker's order, whatever the order in the file.
    let mut object = Map::new();
    object.insert("Name".into(), context.name().into());
    for key in ["Metadata", "Endpoints"] {
        if let Some(value) = context.0.get(key) {
            object.insert(key.into(), value.clone());
        }
    }
    if let Some(endpoint) = object
        .get_mut("Endpoints")
        .and_then(|endpoints| endpoints.get_mut(ENDPOINT))
    {
        let mut shown = Map::new();
        if !context.host().is_empty() {
            shown.insert("Host".into(), context.host().into());
        }
        shown.insert("SkipTLSVerify".into(), context.skip_verify().into());
        *endpoint = Value::Object(shown);
    }
    object.insert("TLSMaterial".into(), tls);
    let storage = json!({"MetadataPath": metadata_path, "TLSPath": tls_path});
    object.insert("Storage".into(), storage);
    Value::Object(object)
}
