//! The tree of `images --tree`: images, and below each those for its platforms.

use whelk_api_types::{ImageManifestSummary, ImageSummary, OciPlatform};
use whelk_text::size;

use crate::format::units::{ellipsis, short_id};

/// Width without a terminal, and the least width, in columns.
const WIDTH: usize = 80;
const MIN_WIDTH: usize = 20;
/// The least width of the column with the names: further columns are left out instead.
const MIN_NAMES: usize = 12;
const GAP: &str = "   ";

/// The columns after the names: heading, width, and whether they are aligned to the right.
const COLUMNS: [(&str, usize, bool); 4] = [
    ("ID", 12, false),
    ("DISK USAGE", 10, true),
    ("CONTENT SIZE", 12, true),
    ("EXTRA", 5, false),
];
const NAMES: &str = "IMAGE";

/// A line of the tree: what is in the columns.
struct Line {
    name: String,
    /// Empty for a line that has only a name.
    values: Vec<String>,
    style: Style,
}

/// How a line's name is shown on a terminal.
#[derive(Clone, Copy)]
enum Style {
    Name,
    Unnamed,
    Platform,
    /// A platform whose image the engine does not have.
    Missing,
}

impl Style {
    fn codes(self) -> &'static str {
        match self {
            Self::Name => "\x1b[34;1m",
            Self::Unnamed | Self::Missing => "\x1b[2m",
            Self::Platform => "",
        }
    }
}

/// Returns the tree of images, the newest first, for a terminal of `width` columns, or for a file.
pub(super) fn tree(images: &[ImageSummary], width: Option<usize>) -> String {
    let is_terminal = width.is_some();
    let width = width
        .filter(|width| *width > 0)
        .unwrap_or(WIDTH)
        .max(MIN_WIDTH);
    let mut images: Vec<&ImageSummary> = images.iter().collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.created));
    let groups: Vec<Vec<Line>> = images.iter().map(|image| lines(image)).collect();
    let has_children = images.iter().any(|image| children(image).next().is_some());
    let mut columns = &COLUMNS[..];
    let mut names = width;
    for (at, (_, column, _)) in COLUMNS.iter().enumerate() {
        let needed = column + GAP.len();
        if names < needed + MIN_NAMES {
            columns = &COLUMNS[..at];
            break;
        }
        names -= needed;
    }
    let widest = groups
        .iter()
        .flatten()
        .map(|line| line.name.chars().count());
    names = names.min(widest.max().unwrap_or(0).max(NAMES.len()));
    let legend = " Info ->  U In Use ";
    let mut out = format!("{legend:>width$}\n\n");
    let titles = columns.iter().map(|(title, ..)| (*title).to_owned());
    let title = Line {
        name: NAMES.into(),
        values: titles.collect(),
        style: Style::Platform,
    };
    let codes = if is_terminal { "\x1b[1m" } else { "" };
    out += &shown(&title, names, columns, codes);
    out.push('\n');
    for group in &groups {
        for line in group {
            let codes = if is_terminal { line.style.codes() } else { "" };
            out += &shown(line, names, columns, codes);
            out.push('\n');
        }
        if has_children {
            out.push('\n');
        }
    }
    out
}

/// Returns the images for the platforms of an image.
fn children(image: &ImageSummary) -> impl Iterator<Item = &ImageManifestSummary> {
    let manifests = image.manifests.iter().flatten();
    manifests.filter(|manifest| manifest.kind == "image")
}

fn lines(image: &ImageSummary) -> Vec<Line> {
    let children: Vec<&ImageManifestSummary> = children(image).collect();
    let used = |manifest: &ImageManifestSummary| {
        let data = manifest.image_data.as_ref();
        data.is_some_and(|data| !data.containers.is_empty())
    };
    let in_use = image.containers > 0 || children.iter().any(|child| used(child));
    let content = children.iter().map(|child| child.size.content).sum();
    let mut names: Vec<&String> = image.repo_tags.iter().collect();
    // The name beside the other columns is the shortest.
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let mut lines: Vec<Line> = names
        .into_iter()
        .map(|name| Line {
            name: name.clone(),
            values: Vec::new(),
            style: Style::Name,
        })
        .collect();
    if lines.is_empty() {
        lines.push(Line {
            name: "<untagged>".into(),
            values: Vec::new(),
            style: Style::Unnamed,
        });
    }
    if let Some(last) = lines.last_mut() {
        last.values = values(&image.id, image.size, content, in_use);
    }
    for (at, child) in children.iter().enumerate() {
        let branch = if at + 1 == children.len() {
            "└─ "
        } else {
            "├─ "
        };
        let platform = child.image_data.as_ref().map(|data| &data.platform);
        lines.push(Line {
            name: branch.to_owned() + &platform.map(platform_text).unwrap_or_default(),
            values: values(&child.id, child.size.total, child.size.content, used(child)),
            style: if child.available {
                Style::Platform
            } else {
                Style::Missing
            },
        });
    }
    lines
}

fn platform_text(platform: &OciPlatform) -> String {
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    // They come from a registry: no escape sequence reaches the terminal.
    let parts = parts.map(|part| part.replace(char::is_control, "\u{fffd}"));
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        "unknown".to_owned()
    } else {
        parts.join("/")
    }
}

fn values(id: &str, usage: u64, content: u64, in_use: bool) -> Vec<String> {
    let used = if in_use { "U" } else { "" };
    vec![
        short_id(id),
        size::decimal(usage, 3),
        size::decimal(content, 3),
        used.to_owned(),
    ]
}

fn shown(line: &Line, names: usize, columns: &[(&str, usize, bool)], codes: &str) -> String {
    let name = ellipsis(&line.name, names);
    let padding = names.saturating_sub(name.chars().count());
    let end = if codes.is_empty() { "" } else { "\x1b[0m" };
    if line.values.is_empty() {
        return format!("{codes}{}{end}", line.name);
    }
    let mut out = format!("{codes}{name}{end}{}", " ".repeat(padding));
    for ((_, width, is_right), value) in columns.iter().zip(&line.values) {
        out += GAP;
        out += &if *is_right {
            format!("{value:>width$}")
        } else {
            format!("{value:<width$}")
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use whelk_api_types::{ImageManifestImage, ImageManifestSize};

    use super::*;

    fn child(architecture: &str, available: bool) -> ImageManifestSummary {
        let data = ImageManifestImage {
            platform: OciPlatform {
                os: "linux".into(),
                architecture: architecture.into(),
                ..OciPlatform::default()
            },
            containers: Vec::from_iter(available.then(|| "c".to_owned())),
            ..ImageManifestImage::default()
        };
        ImageManifestSummary {
            id: format!("sha256:{architecture:0<64}"),
            available,
            size: ImageManifestSize {
                content: 1000,
                total: 2_000_000,
            },
            kind: "image".into(),
            image_data: Some(data),
            ..ImageManifestSummary::default()
        }
    }

    #[test]
    fn an_image_has_its_platforms_below_it() {
        let image = ImageSummary {
            id: format!("sha256:{:0<64}", "a"),
            repo_tags: vec!["app:1".into(), "longer/app:1".into()],
            size: 2_000_000,
            manifests: Some(vec![child("amd64", true), child("arm64", false)]),
            ..ImageSummary::default()
        };
        let shown = tree(&[image], None);
        let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "                                                              Info ->  U In Use",
                "",
                "IMAGE            ID             DISK USAGE   CONTENT SIZE   EXTRA",
                "longer/app:1",
                "app:1            a00000000000          2MB            2kB   U",
                "├─ linux/amd64   amd640000000          2MB            1kB   U",
                "└─ linux/arm64   arm640000000          2MB            1kB",
                "",
            ]
        );
        let narrow = tree(&[ImageSummary::default()], Some(20));
        assert!(narrow.contains("\x1b[2m<untagged>\x1b[0m"), "{narrow:?}");
    }

    #[test]
    fn platforms_have_no_escape_sequences() {
        let platform = OciPlatform {
            os: "linux\u{1b}[2J".into(),
            ..OciPlatform::default()
        };
        assert_eq!(platform_text(&platform), "linux\u{fffd}[2J");
    }
}
