//! The `bake` command: builds the targets of bake files, all at the same time.
//!
//! ```text
//! files, URL ─► definitions, targets (crate `bake`) ─► entitlements ─► targets' builds ─► inputs ─► together
//!                              └─► --print, --list
//! ```

mod bridge;
mod entitlements;
mod files;
mod inputs;
mod list;
mod remote;
mod run;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use tokio::runtime::Handle;
use whelk_bake::paths::is_remote;
use whelk_bake::{Definitions, Environment, File, Resolved, attestation};

use self::entitlements::Allowed;
use self::remote::{Fetched, Remote};
use crate::client::Client;
use crate::commands::build::display::{Display, Mode};
use crate::commands::build::options::one_builder;
use crate::output::{print, warn_line};
use crate::terminal::{harmless, harmless_json};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct BakeArgs {
    /// Allow build to access specified resources
    #[arg(long)]
    allow: Vec<String>,
    /// Override the configured builder instance; there is one, `default`
    #[arg(long, default_value = "", hide_default_value = true)]
    builder: String,
    /// Set method for evaluating build (`check`, `outline`, `targets`)
    #[arg(long, default_value = "build")]
    call: String,
    /// Shorthand for `--call=check`
    #[arg(long)]
    check: bool,
    /// Enable debug logging
    #[arg(short = 'D', long)]
    debug: bool,
    /// Build definition file
    #[arg(short, long)]
    file: Vec<String>,
    /// List targets or variables
    #[arg(long, default_value = "", hide_default_value = true)]
    list: String,
    /// List available targets
    #[arg(long, hide = true)]
    list_targets: bool,
    /// List defined variables
    #[arg(long, hide = true)]
    list_variables: bool,
    /// Shorthand for `--set=*.output=type=docker`. Conditional.
    #[arg(long)]
    load: bool,
    /// Write build result metadata to a file
    #[arg(long, default_value = "", hide_default_value = true)]
    metadata_file: String,
    /// Do not use cache when building the image
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    no_cache: Option<bool>,
    /// Print the options without building
    #[arg(long)]
    print: bool,
    /// Set type of progress output (`auto`, `none`, `plain`, `quiet`, `rawjson`, `tty`). Use `plain` to show container output
    #[arg(long, default_value = "auto")]
    progress: String,
    /// Shorthand for `--set=*.attest=type=provenance`
    #[arg(long, default_value = "", hide_default_value = true)]
    provenance: String,
    /// Always attempt to pull all referenced images
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pull: Option<bool>,
    /// Shorthand for `--set=*.output=type=registry`. Conditional.
    #[arg(long)]
    push: bool,
    /// Shorthand for `--set=*.attest=type=sbom`
    #[arg(long, default_value = "", hide_default_value = true)]
    sbom: String,
    /// Override target value (e.g., `targetpattern.key=value`)
    #[arg(long)]
    set: Vec<String>,
    /// Targets and groups; `default` without one. Before them may be the URL of definitions, and then that of `BAKE_CMD_CONTEXT`
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

impl BakeArgs {
    /// Whether the command needs no engine.
    pub(crate) fn is_offline(&self) -> bool {
        (self.print || !self.list().is_empty()) && self.places().url.is_none()
    }

    /// Returns what is listed; nothing if it is empty.
    fn list(&self) -> &str {
        match self.list.as_str() {
            "" if self.list_targets => "targets",
            "" if self.list_variables => "variables",
            list => list,
        }
    }

    /// Returns the URLs and targets that it names.
    fn places(&self) -> Places<'_> {
        let (url, targets) = leading_url(&self.targets);
        let (context, targets) = match url {
            Some(_) => leading_url(targets),
            None => (None, targets),
        };
        Places {
            url,
            context: context.unwrap_or("cwd://"),
            targets,
        }
    }

    /// Returns the overrides of `--set`, and those that other flags are short for.
    fn overrides(&self) -> Outcome<Vec<String>> {
        let mut all = self.set.clone();
        if self.push {
            all.push("*.push=true".into());
        }
        if self.load {
            all.push("*.load=true".into());
        }
        if let Some(call) = self.call()? {
            all.push(format!("*.call={}", call.name));
        }
        if let Some(no_cache) = self.no_cache {
            all.push(format!("*.no-cache={no_cache}"));
        }
        if let Some(pull) = self.pull {
            all.push(format!("*.pull={pull}"));
        }
        for (kind, text) in [("sbom", &self.sbom), ("provenance", &self.provenance)] {
            if !text.is_empty() {
                all.push(format!("*.attest={}", attestation(kind, text)));
            }
        }
        Ok(all)
    }

    /// Returns what is called for instead of builds.
    fn call(&self) -> Outcome<Option<Called>> {
        let text = if self.check { "check" } else { &self.call };
        Called::parse(text)
    }
}

/// What the arguments of a command name.
struct Places<'a> {
    /// That of the definitions.
    url: Option<&'a str>,
    /// `BAKE_CMD_CONTEXT`.
    context: &'a str,
    targets: &'a [String],
}

fn leading_url(words: &[String]) -> (Option<&str>, &[String]) {
    match words {
        [first, rest @ ..] if is_remote(first) => (Some(first), rest),
        _ => (None, words),
    }
}

/// A value of `--call`.
struct Called {
    name: String,
    is_json: bool,
    /// Whether warnings are no failure.
    ignores_status: bool,
}

impl Called {
    fn parse(text: &str) -> Outcome<Option<Self>> {
        let invalid = || Failure::new(format!("invalid print mode {text:?}"));
        let mut called = Self {
            name: String::new(),
            is_json: false,
            ignores_status: false,
        };
        for field in whelk_dockerfile::csv::fields(text).map_err(|_| invalid())? {
            match field.split_once('=') {
                None if called.name.is_empty() => called.name = field,
                Some(("format", "json")) => called.is_json = true,
                Some(("format", "text")) => called.is_json = false,
                Some(("ignorestatus", value)) => {
                    called.ignores_status = whelk_text::parse_bool(value).ok_or_else(|| {
                        Failure::new(format!("invalid ignorestatus print value: {value}"))
                    })?;
                }
                Some(_) => return Err(Failure::new(format!("invalid print field: {field}"))),
                None => return Err(Failure::new(format!("invalid print value: {text}"))),
            }
        }
        match called.name.as_str() {
            "" | "build" => return Ok(None),
            "check" => called.name = "lint".into(),
            "lint" | "outline" | "targets" => {}
            _ => return Err(invalid()),
        }
        Ok(Some(called))
    }
}

/// Runs `whelk bake`.
pub(crate) async fn bake(client: &Client, args: BakeArgs) -> Outcome {
    bake_inner(client, &args).await.map_err(told)
}

/// Returns the failure of the command as it is shown. Its text may be that of definitions of a server.
fn told(failure: Failure) -> Failure {
    let text = harmless(&failure.text);
    match text.contains("ERROR: ") || text.is_empty() {
        true => Failure { text, ..failure },
        false => Failure {
            text: format!("ERROR: {text}"),
            hint: false,
            ..failure
        },
    }
}

async fn bake_inner(client: &Client, args: &BakeArgs) -> Outcome {
    one_builder(client, &args.builder)?;
    for (is_given, name) in [
        (args.list_targets, "targets"),
        (args.list_variables, "variables"),
    ] {
        if is_given {
            warn_line!(
                "Flag --list-{name} has been deprecated, list-{name} is deprecated, use list={name} instead"
            );
        }
    }
    if args.print && !args.list().is_empty() {
        return Err(Failure::new("--print and --list are mutually exclusive"));
    }
    let mode = Mode::new(&args.progress, false)?;
    let places = args.places();
    let called = args.call()?;
    let overrides = args.overrides()?;
    let allowed = Arc::new(Allowed::parse(&args.allow)?);
    let environment = files::environment(places.context)?;
    let names = files::Names::new(&args.file, places.url.is_some());
    let (mut found, mut remote, mut fetched) = (Vec::new(), None, None);
    if let Some(url) = places.url {
        let display = Display::new(mode, "", args.debug || client.debug());
        let read = Remote::read(client, url, &names.remote, display).await?;
        (found, remote, fetched) = (read.files, Some(read.remote), read.fetched);
    }
    if places.url.is_none() || !names.local.is_empty() {
        // The standard input may be a pipe that nobody writes to.
        let read = tokio::task::spawn_blocking(move || files::read(names.local));
        let files = read.await;
        found.extend(files.map_err(|error| Failure::new(error.to_string()))??);
    }
    if found.is_empty() {
        return Err(Failure::new(match places.targets {
            // What was meant as the URL of one.
            [first, ..] if first.contains("://") => {
                let schemes = "https://, http://, git:// and ssh://";
                format!(
                    "couldn't find a bake definition: {first:?} is a target; definitions can be fetched by {schemes}"
                )
            }
            _ => "couldn't find a bake definition".to_owned(),
        }));
    }
    let reader = Reader {
        is_remote: remote.is_some(),
        fetched,
        allowed: Arc::clone(&allowed),
    };
    let definitions = definitions(found, &environment, reader).await?;
    for warning in &definitions.warnings {
        warn_line!("WARNING: {}", harmless(warning));
    }
    if !args.list().is_empty() {
        return list::list(&definitions, args.list());
    }
    let names = match places.targets {
        [] => vec!["default".to_owned()],
        names => names.to_vec(),
    };
    let variable = |name: &str| environment.variables.get(name).cloned();
    let resolved = definitions.resolve(&names, &overrides, variable);
    let mut resolved = resolved.map_err(failure)?;
    epoch(&mut resolved, &environment.variables);
    for target in resolved.targets.values_mut() {
        target::check(target)?;
        target::place(target, remote.as_ref())?;
    }
    if args.print {
        print(&(printed(&resolved)? + "\n"))?;
        return Ok(0);
    }
    let remote = remote.as_ref();
    allowed.check(&resolved, remote, args.progress == "rawjson")?;
    run::run(client, args, &resolved, remote, called).await
}

/// Reads files that definitions name.
struct Reader {
    is_remote: bool,
    /// Files of a server; `None` if there are none around the definitions.
    fetched: Option<Fetched>,
    allowed: Arc<Allowed>,
}

impl Reader {
    fn read(&self, handle: &Handle, path: &str) -> Result<Option<String>, String> {
        match &self.fetched {
            Some(fetched) => fetched.read(handle, path),
            None if self.is_remote => Err(format!(
                "open {path}: definitions that are one file of a server name no further files"
            )),
            None => files::named(&self.allowed, path),
        }
    }
}

/// Returns what files define. Those of Compose may name further files.
async fn definitions(
    found: Vec<File>,
    environment: &Environment,
    reader: Reader,
) -> Outcome<Definitions> {
    let (environment, handle) = (environment.clone(), Handle::current());
    let read = move || {
        let more = |path: &str| reader.read(&handle, path);
        Definitions::read(&found, &environment, &more)
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|error| Failure::new(error.to_string()))?
        .map_err(failure)
}

/// Sets the time of images, unless targets have their own.
fn epoch(resolved: &mut Resolved, variables: &BTreeMap<String, String>) {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let Some(value) = variables.get(NAME).filter(|value| !value.is_empty()) else {
        return;
    };
    for target in resolved.targets.values_mut() {
        let own = target.args.entry(NAME.into());
        own.or_insert_with(|| Some(value.clone()));
    }
}

/// Encodes targets as they are printed: as Go does, and without control characters.
fn printed(resolved: &impl serde::Serialize) -> Outcome<String> {
    let text = serde_json::to_string_pretty(resolved)
        .map_err(|error| Failure::new(format!("encode targets: {error}")))?;
    // They are in texts only.
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e");
    Ok(harmless_json(&text.replace('&', "\\u0026")))
}

/// Returns the failure of the command for an error in a file, with its lines.
fn failure(error: whelk_bake::Error) -> Failure {
    Failure {
        hint: false,
        ..Failure::new(format!("{}ERROR: {}", error.excerpt, error.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_do_not_control_the_terminal() {
        let error = whelk_bake::Error {
            text: "no \u{9b}1m".into(),
            excerpt: "x.hcl:1\n\ta = \u{1b}[2J\n".into(),
        };
        let shown = told(failure(error));
        assert_eq!(
            shown.text,
            "x.hcl:1\n\ta = \u{fffd}[2J\nERROR: no \u{fffd}1m"
        );
        let shown = told(Failure::new("target \u{1b}: no"));
        assert_eq!(
            (shown.text.as_str(), shown.hint),
            ("ERROR: target \u{fffd}: no", false)
        );
        // JSON has the same values.
        let text = "a\u{1b}\u{7f}\u{9b}<é";
        let shown = printed(&text).unwrap();
        assert_eq!(shown, r#""a\u001b\u007f\u009b\u003cé""#);
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }
}
