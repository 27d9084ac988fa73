//! The image commands: images, rmi, tag, history, load, save, import.

use std::io::Read;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Map, Value, json};
use whelk_text::{size, url};

use super::destination::Destination;
use super::messages::print_messages;
use super::{filters, for_each};
use crate::client::{ApiError, Body, Client, escape_name, no_body, query};
use crate::format::table::Table;
use crate::format::units::{ago, ellipsis};
use crate::output::{print_line, warn_line};
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show all images (default hides intermediate images)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// List multi-platform images as a tree
    #[arg(long)]
    tree: bool,
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

const TABLE: Table = Table {
    row: "*formatter.imageContext",
    id: "ID",
    columns: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("VirtualSize", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("Containers", "CONTAINERS"),
    ],
};

pub(crate) async fn images(client: &Client, args: ImagesArgs) -> Outcome {
    super::not_available(&[("--tree", args.tree)], "trees of images are")?;
    let mut given = args.filter.clone();
    given.extend(
        args.repository
            .as_ref()
            .map(|repository| format!("reference={repository}")),
    );
    let images = client
        .get(&format!(
            "/images/json{}",
            query(&[
                ("all", if args.all { "1" } else { "" }),
                ("filters", &filters(&given)?)
            ])
        ))
        .await?;
    let mut rows = Vec::new();
    for image in images.as_array().into_iter().flatten() {
        let id = image["Id"].as_str().unwrap_or_default();
        let created = image["Created"].as_i64().unwrap_or(0);
        let local = jiff::Timestamp::from_second(created)
            .unwrap_or_default()
            .to_zoned(jiff::tz::TimeZone::system());
        let (total, shared) = (
            image["Size"].as_u64().unwrap_or(0),
            image["SharedSize"].as_u64(),
        );
        // The engine sends -1 for values that were not requested.
        let shown = |bytes: Option<u64>| {
            bytes.map_or_else(|| "N/A".to_owned(), |bytes| size::decimal(bytes, 4))
        };
        let tags: Vec<&str> = image["RepoTags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for name in if tags.is_empty() {
            vec!["<none>:<none>"]
        } else {
            tags
        } {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
            let fields = json!({
                "Repository": repository, "Tag": tag, "Digest": "<none>",
                "ID": if args.no_trunc { id.to_owned() } else { id.trim_start_matches("sha256:").chars().take(12).collect() },
                "CreatedSince": ago(created), "CreatedAt": local.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
                "Size": size::decimal(total, 3), "VirtualSize": size::decimal(total, 4), "SharedSize": shown(shared), "UniqueSize": shown(shared.map(|shared| total.saturating_sub(shared))),
                "Containers": image["Containers"].as_u64().map_or_else(|| "N/A".to_owned(), |count| count.to_string()),
            });
            rows.push(fields.as_object().cloned().unwrap_or_default());
        }
    }
    let default = if args.digests {
        "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    } else {
        "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    };
    TABLE.print(&args.format, args.quiet, default, rows)?;
    Ok(0)
}

/// Encodes a platform (`os[/arch[/variant]]` or an architecture alone) as the API's JSON; empty for
/// an empty text.
///
/// # Errors
/// Returns an error if a part is empty or there are too many parts.
pub(super) fn platform_json(text: &str) -> Outcome<String> {
    const SYSTEMS: [&str; 5] = ["darwin", "freebsd", "linux", "macos", "windows"];
    if text.is_empty() {
        return Ok(String::new());
    }
    let host = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        _ if parts.contains(&"") => {
            return Err(Failure::new(format!(
                "{text:?} is an invalid platform specifier"
            )));
        }
        [system] if SYSTEMS.contains(&system.to_lowercase().as_str()) => (*system, host, ""),
        [architecture] => ("linux", *architecture, ""),
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        _ => {
            return Err(Failure::new(format!(
                "{text:?}: cannot parse platform specifier: invalid argument"
            )));
        }
    };
    let mut platform = json!({"architecture": architecture, "os": os});
    if !variant.is_empty() {
        platform["variant"] = json!(variant);
    }
    Ok(platform.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Do not delete untagged parents
    #[arg(long)]
    no_prune: bool,
    /// Remove only the given platform variant. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long)]
    platform: Vec<String>,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) async fn rmi(client: &Client, args: RmiArgs) -> Outcome {
    let platforms = args
        .platform
        .iter()
        .map(|platform| platform_json(platform))
        .collect::<Outcome<Vec<_>>>()?;
    let mut parameters = vec![
        ("force", if args.force { "1" } else { "" }),
        ("noprune", if args.no_prune { "1" } else { "" }),
    ];
    parameters.extend(
        platforms
            .iter()
            .map(|platform| ("platforms", platform.as_str())),
    );
    let query = query(&parameters);
    for_each(&args.images, async |name| {
        let removed = match client
            .delete(&format!("/images/{}{query}", escape_name(name)))
            .await
        {
            Err(error) if args.force && error.status == hyper::StatusCode::NOT_FOUND => {
                warn_line!("{error}");
                return Ok(());
            }
            result => result?,
        };
        for (action, name) in actions(&removed) {
            print_line!("{action}: {name}")?;
        }
        Ok(())
    })
    .await
}

/// Returns the entries of a removal response: the action and the image it applies to.
fn actions(removed: &Value) -> impl Iterator<Item = (&str, &str)> {
    let entries = removed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .flatten();
    entries.map(|(action, name)| (action.as_str(), name.as_str().unwrap_or_default()))
}

/// Prints the removals of a prune: `untagged: …` and `deleted: …`.
pub(crate) fn print_pruned(removed: &Value) -> Outcome<()> {
    for (action, name) in actions(removed) {
        print_line!("{}: {name}", action.to_lowercase())?;
    }
    Ok(())
}

/// Returns whether the engine rejected a reference's syntax, which Docker's CLI validates itself.
fn is_about_grammar(error: &ApiError) -> bool {
    error.status == hyper::StatusCode::BAD_REQUEST
        && (error.message.starts_with("invalid reference format")
            || error.message.starts_with("invalid repository name"))
}

pub(crate) async fn tag(client: &Client, source: &str, target: &str) -> Outcome {
    let malformed = |name: &str, why: &str| {
        Failure::new(format!(
            "Error parsing reference: {name:?} is not a valid repository/tag: {why}"
        ))
    };
    if source.trim().is_empty() {
        return Err(malformed(source, "invalid reference format"));
    }
    // The engine splits name and tag.
    match client
        .post(
            &format!(
                "/images/{}/tag{}",
                escape_name(source),
                query(&[("repo", target)])
            ),
            None,
        )
        .await
    {
        Err(error) if is_about_grammar(&error) => Err(malformed(target, &error.message)),
        answer => answer.map(|_| 0).map_err(Into::into),
    }
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Show history for the given platform. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

const HISTORY: Table = Table {
    row: "*image.historyContext",
    id: "ID",
    columns: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
};

pub(crate) async fn history(client: &Client, args: HistoryArgs) -> Outcome {
    let query = query(&[("platform", &platform_json(&args.platform)?)]);
    let steps = client
        .get(&format!(
            "/images/{}/history{query}",
            escape_name(&args.image)
        ))
        .await?;
    let row = |step: &Value| -> Map<String, Value> {
        let id = step["Id"].as_str().unwrap_or_default();
        let created = step["Created"].as_i64().unwrap_or(0);
        let bytes = step["Size"].as_u64().unwrap_or(0);
        let by = step["CreatedBy"]
            .as_str()
            .unwrap_or_default()
            .replace('\t', " ");
        let at = jiff::Timestamp::from_second(created)
            .unwrap_or_default()
            .to_string();
        let fields = json!({
            "ID": if args.no_trunc || id == "<missing>" { id.to_owned() } else { id.trim_start_matches("sha256:").chars().take(12).collect() },
            "CreatedSince": if args.human { ago(created) } else { at.clone() }, "CreatedAt": at,
            "CreatedBy": if args.no_trunc { by } else { ellipsis(&by, 45) },
            "Size": if args.human { size::decimal(bytes, 3) } else { bytes.to_string() },
            "Comment": step["Comment"],
        });
        fields.as_object().cloned().unwrap_or_default()
    };
    let rows = steps.as_array().into_iter().flatten().map(row).collect();
    let created = if args.human {
        "CreatedSince"
    } else {
        "CreatedAt"
    };
    let default = format!(
        "{{{{.ID}}}}\t{{{{.{created}}}}}\t{{{{.CreatedBy}}}}\t{{{{.Size}}}}\t{{{{.Comment}}}}"
    );
    HISTORY.print(&args.format, args.quiet, &default, rows)?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long)]
    input: Option<String>,
    /// Load only the given platform variant. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn load(client: &Client, args: LoadArgs) -> Outcome {
    let platform = platform_json(&args.platform)?;
    // A file gets no progress, so the engine need not send it.
    let is_quiet = args.quiet || !terminal::stdout_is_terminal();
    let body = match args.input.as_deref() {
        Some(path) if path != "-" => file_body(path)?,
        _ if terminal::stdin_is_terminal() => {
            return Err(Failure::new(
                "requested load from stdin, but stdin is empty",
            ));
        }
        _ => reader_body(std::io::stdin()),
    };
    let response = client
        .send(
            hyper::Method::POST,
            &format!(
                "/images/load{}",
                query(&[
                    ("quiet", if is_quiet { "1" } else { "0" }),
                    ("platform", &platform)
                ])
            ),
            &[("content-type", "application/x-tar")],
            body,
        )
        .await?;
    print_messages(response).await
}

pub(super) fn file_body(path: &str) -> Outcome<Body> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| {
            Failure::new(format!("{what} {path}: {}", crate::plain(&error)))
        }
    };
    let file = std::fs::File::open(path).map_err(failed("open"))?;
    if file.metadata().is_ok_and(|found| found.is_dir()) {
        return Err(failed("read")(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(reader_body(file))
}

/// Returns a request body that is read from a blocking reader on a separate thread.
pub(super) fn reader_body(mut reader: impl Read + Send + 'static) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Frame<Bytes>>>(4);
    std::thread::spawn(move || {
        const PIECE: usize = 256 << 10;
        loop {
            let mut piece = vec![0; PIECE];
            let message = match reader.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Frame::data(Bytes::from(piece)))
                }
                Err(error) => Err(error),
            };
            let failed = message.is_err();
            if sender.blocking_send(message).is_err() || failed {
                return;
            }
        }
    });
    StreamBody::new(Receiver(receiver)).boxed()
}

struct Receiver(tokio::sync::mpsc::Receiver<std::io::Result<Frame<Bytes>>>);

impl futures_core::Stream for Receiver {
    type Item = std::io::Result<Frame<Bytes>>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<String>,
    /// Save only the given platform variant. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) async fn save(client: &Client, args: SaveArgs) -> Outcome {
    let destination = Destination::new(args.output.as_deref(), "image")?;
    let platform = platform_json(&args.platform)?;
    let mut parameters: Vec<String> = args
        .images
        .iter()
        .map(|name| format!("names={}", url::escape(name)))
        .collect();
    if !platform.is_empty() {
        parameters.push(format!("platform={}", url::escape(&platform)));
    }
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/images/get?{}", parameters.join("&")),
            &[],
            no_body(),
        )
        .await?;
    destination.write_body(response).await?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Set platform if server is multi-platform capable
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// File to import, or - for STDIN
    file: String,
    /// Name of the new image
    repository: Option<String>,
}

pub(crate) async fn import(client: &Client, args: ImportArgs) -> Outcome {
    let body = match args.file.as_str() {
        "-" => reader_body(std::io::stdin()),
        url if url.starts_with("http://") || url.starts_with("https://") => {
            return Err(Failure::new(
                "import from a URL is not available in this version of whelk; download the file and import it",
            ));
        }
        path => file_body(path)?,
    };
    let query = query(&[
        ("fromSrc", "-"),
        ("repo", args.repository.as_deref().unwrap_or_default()),
        ("message", &args.message),
        ("platform", &args.platform),
        ("changes", &args.change.join("\n")),
    ]);
    match client
        .send(
            hyper::Method::POST,
            &format!("/images/create{query}"),
            &[("content-type", "application/x-tar")],
            body,
        )
        .await
    {
        Err(error) if is_about_grammar(&error) => Err(Failure::new(error.message)),
        response => print_messages(response?).await,
    }
}
