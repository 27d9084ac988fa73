//! `buildx imagetools inspect`.

use clap::Args;
use whelk_image::Reference;
use whelk_registry::Document;

use super::wire::{Descriptor, Index};
use super::{document, template};
use crate::commands::manifest::reference;
use crate::commands::manifest::remote::Remote;
use crate::output::{print, write_out};
use crate::terminal::one_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Format the output using the given Go template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show original, unformatted JSON manifest
    #[arg(long)]
    raw: bool,
    name: String,
}

pub(super) async fn inspect(remote: &Remote, args: &InspectArgs) -> Outcome {
    if args.raw && !args.format.is_empty() {
        return Err(Failure::new("format and raw cannot be used together"));
    }
    let name = reference(&args.name)?;
    let found = document(remote, &name).await?;
    if args.raw {
        // Without a new line, so that it has the digest.
        write_out(&found.bytes)?;
        return Ok(0);
    }
    let index = match found.is_index() {
        true => Some(Index::parse(&found.bytes)?),
        false => None,
    };
    // As buildx, for which the table is the manifest's text.
    if args.format.is_empty() || args.format.starts_with("{{.Manifest") {
        print(&table(&name, &found, index.as_ref())?)?;
    } else {
        let shown = template::shown(remote, &args.name, &name, &found, index, &args.format);
        print(&shown.await?)?;
    }
    Ok(0)
}

/// Lines of a label and a value, which may be those of a registry. The values are aligned.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn add(&mut self, label: &str, value: impl Into<String>) {
        let value: String = value.into();
        self.0.push((one_line(label), one_line(&value)));
    }

    /// Returns the lines, and begins anew.
    fn text(&mut self) -> String {
        let width = self.0.iter().map(|(label, _)| label.len()).max();
        let width = width.unwrap_or(0) + 1;
        let lines = std::mem::take(&mut self.0).into_iter();
        lines
            .map(|(label, value)| format!("{label:width$}{value}\n"))
            .collect()
    }
}

/// Returns the default output.
fn table(name: &Reference, found: &Document, index: Option<&Index>) -> Outcome<String> {
    let mut lines = Lines::default();
    lines.add("Name:", name.to_string());
    lines.add("MediaType:", &found.media_type);
    lines.add("Digest:", found.digest.to_string());
    let mut text = lines.text();
    let Some(index) = index else {
        return Ok(text);
    };
    lines.add("", "");
    lines.add("Manifests:", "");
    text += &lines.text();
    for (number, entry) in index.manifests.iter().enumerate() {
        if number > 0 {
            lines.add("", "");
        }
        text += &shown(name, entry, &mut lines)?;
    }
    Ok(text + &lines.text())
}

/// Adds an entry of an index to the lines; returns those that are complete.
fn shown(name: &Reference, entry: &Descriptor, lines: &mut Lines) -> Outcome<String> {
    let own = Reference {
        digest: Some(entry.digest()?.clone()),
        ..name.clone()
    };
    lines.add("  Name:", own.to_string());
    lines.add("  MediaType:", &entry.media_type);
    let Some(platform) = &entry.platform else {
        return Ok(String::new());
    };
    lines.add("  Platform:", platform.name());
    if !platform.os_version.is_empty() {
        lines.add("  OSVersion:", &platform.os_version);
    }
    if !platform.os_features.is_empty() {
        lines.add("  OSFeatures:", platform.os_features.join(", "));
    }
    if !entry.urls.is_empty() {
        lines.add("  URLs:", entry.urls.join(", "));
    }
    if entry.annotations.is_empty() {
        return Ok(String::new());
    }
    lines.add("  Annotations:", "");
    let text = lines.text();
    for (key, value) in &entry.annotations {
        lines.add(&format!("    {key}:"), value);
    }
    Ok(text + &lines.text())
}
