//! Messages of streams.

use whelk_api_types::{
    Aux, BuildResult, ErrorDetail, ProgressDetail, PushResult, PushedPartOfIndex, StreamMessage,
};
use whelk_engine::images::{Pulled, Pushed, Renamed};
use whelk_image::archive::Loaded;
use whelk_image::progress::{State, Update};
use whelk_image::{Digest, Reference};
use whelk_text::progress;

use super::descriptor;

/// Returns the message of a report on an item.
pub(crate) fn progress(update: &Update) -> StreamMessage {
    let Update {
        id,
        state,
        current,
        total,
        source,
    } = update;
    let status = match state {
        State::LoadingLayer => "Loading layer".into(),
        State::Pulling => "Pulling fs layer".into(),
        State::Waiting => "Waiting".into(),
        State::Downloading => "Downloading".into(),
        State::Retrying { seconds: 1 } => "Retrying in 1 second".into(),
        State::Retrying { seconds } => format!("Retrying in {seconds} seconds"),
        State::Delayed { seconds } => format!("Waiting {seconds} s as the registry asked"),
        State::DownloadComplete => "Download complete".into(),
        State::Extracting => "Extracting".into(),
        State::PullComplete => "Pull complete".into(),
        State::AlreadyExists => "Already exists".into(),
        State::Preparing => "Preparing".into(),
        State::Pushing => "Pushing".into(),
        State::Pushed => "Pushed".into(),
        State::LayerExists => "Layer already exists".into(),
        State::SkippedForeign => "Skipped foreign layer".into(),
        State::Mounted => format!("Mounted from {source}"),
    };
    // Those of other states say nothing.
    let (current, total) = match state {
        State::LoadingLayer | State::Downloading | State::Pushing => (current, total),
        // Everything has been received, and most of it is unpacked.
        State::Extracting => (total, total),
        _ => (&0, &0),
    };
    let bar = progress::bar(*current, *total, progress::WIDTH);
    StreamMessage {
        status: Some(status),
        progress_detail: Some(ProgressDetail {
            current: *current,
            total: *total,
        }),
        progress: Some(bar).filter(|bar| !bar.is_empty()),
        id: Some(id.clone()),
        ..StreamMessage::default()
    }
}

/// Returns the messages about a loaded image and the names that it has taken from others.
pub(crate) fn loaded(image: &Loaded, renamed: &[Renamed]) -> Vec<StreamMessage> {
    let mut messages = Vec::new();
    let mut say = |text: String| {
        messages.push(StreamMessage {
            stream: Some(text),
            ..StreamMessage::default()
        });
    };
    if image.names.is_empty() {
        say(format!("Loaded image ID: {}\n", image.id));
    }
    for name in image.names.iter().map(|named| named.name.familiar()) {
        if let Some(renamed) = renamed.iter().find(|renamed| renamed.name == name) {
            let old = &renamed.old;
            say(format!(
                "The image {name} already exists, renaming the old one with ID {old} to empty string\n"
            ));
        }
        say(format!("Loaded image: {name}\n"));
    }
    messages
}

/// Returns the first message of a pull.
pub(crate) fn pulling(reference: &Reference) -> StreamMessage {
    let version = match &reference.digest {
        Some(_) => {
            let by_digest = Reference {
                tag: None,
                ..reference.clone()
            };
            Some(by_digest.to_string())
        }
        None => reference.tag.clone(),
    };
    StreamMessage {
        status: Some(format!("Pulling from {}", reference.path)),
        id: version,
        ..StreamMessage::default()
    }
}

/// Returns the last messages of a pull.
pub(crate) fn pulled(reference: &Reference, pulled: &Pulled) -> Vec<StreamMessage> {
    let mut messages = pulled_tag(pulled);
    messages.insert(1, pull_status(reference, pulled.is_new));
    messages
}

/// Returns the messages at the end of one tag of several: the digest, and a warning.
pub(crate) fn pulled_tag(pulled: &Pulled) -> Vec<StreamMessage> {
    let warning = pulled.warning.as_ref();
    let warning = warning.map(|warning| status(format!("WARNING: {warning}")));
    let digest = status(format!("Digest: {}", pulled.digest));
    [digest].into_iter().chain(warning).collect()
}

/// Returns the message that says whether a pull has brought anything new.
pub(crate) fn pull_status(reference: &Reference, is_new: bool) -> StreamMessage {
    let name = reference.familiar();
    status(if is_new {
        format!("Status: Downloaded newer image for {name}")
    } else {
        format!("Status: Image is up to date for {name}")
    })
}

/// Returns the first message of a push.
pub(crate) fn pushing(reference: &Reference) -> StreamMessage {
    status(format!(
        "The push refers to repository [{}]",
        reference.name()
    ))
}

/// Returns the messages about a tag that was pushed.
pub(crate) fn pushed(pushed: &Pushed) -> Vec<StreamMessage> {
    let Pushed {
        tag,
        digest,
        size,
        instead_of,
        part_of,
    } = pushed;
    let part = part_of.as_ref().map(|(index, manifest)| StreamMessage {
        progress_detail: Some(ProgressDetail::default()),
        aux: Some(Aux::PartOfIndex(Box::new(PushedPartOfIndex {
            manifest_pushed_instead_of_index: true,
            original_index: descriptor(index),
            selected_manifest: descriptor(manifest),
        }))),
        ..StreamMessage::default()
    });
    let note = instead_of.as_ref().map(|original| {
        status(format!(
            "Layers were compressed again, which gives other blobs than those of {original}"
        ))
    });
    let result = StreamMessage {
        progress_detail: Some(ProgressDetail::default()),
        aux: Some(Aux::Pushed(PushResult {
            tag: tag.clone(),
            digest: digest.to_string(),
            size: *size,
        })),
        ..StreamMessage::default()
    };
    let done = status(format!("{tag}: digest: {digest} size: {size}"));
    note.into_iter().chain(part).chain([done, result]).collect()
}

fn status(text: String) -> StreamMessage {
    StreamMessage {
        status: Some(text),
        ..StreamMessage::default()
    }
}

/// Returns a text of a build.
pub(crate) fn build_text(text: String) -> StreamMessage {
    StreamMessage {
        stream: Some(text),
        ..StreamMessage::default()
    }
}

/// Returns the message with news of a build with BuildKit, which are encoded as in its protocol.
pub(crate) fn build_trace(news: &[u8]) -> StreamMessage {
    use base64::Engine as _;
    StreamMessage {
        id: Some("moby.buildkit.trace".into()),
        aux: Some(Aux::Trace(
            base64::engine::general_purpose::STANDARD.encode(news),
        )),
        ..StreamMessage::default()
    }
}

/// Returns the last message of a build with BuildKit: the id of the image, if it has made one.
pub(crate) fn build_image(id: String, quiet: bool) -> StreamMessage {
    if quiet {
        return build_text(format!("{id}\n"));
    }
    StreamMessage {
        id: Some("moby.image.id".into()),
        aux: Some(Aux::Built(BuildResult { id })),
        ..StreamMessage::default()
    }
}

/// Returns the last message of a build that has failed.
pub(crate) fn build_failure(code: i32, message: String) -> StreamMessage {
    StreamMessage {
        error_detail: Some(ErrorDetail {
            code,
            message: message.clone(),
        }),
        error: Some(message),
        ..StreamMessage::default()
    }
}

/// Returns the last messages of a build.
pub(crate) fn built(id: &Digest, names: &[Reference], quiet: bool) -> Vec<StreamMessage> {
    const SHORT: usize = 12;
    if quiet {
        return vec![build_text(format!("{id}\n"))];
    }
    let aux = StreamMessage {
        aux: Some(Aux::Built(BuildResult { id: id.to_string() })),
        ..StreamMessage::default()
    };
    let short: String = id.hex().chars().take(SHORT).collect();
    let built = build_text(format!("Successfully built {short}\n"));
    let tagged = names.iter().map(|name| {
        let name = name.familiar();
        build_text(format!("Successfully tagged {name}\n"))
    });
    [aux, built].into_iter().chain(tagged).collect()
}

/// Returns the message of a failed build.
pub(crate) fn build_error(error: &whelk_build::Error) -> StreamMessage {
    let (code, message) = match error.root() {
        whelk_build::Error::Process { command, code, .. } => (
            *code,
            format!("The command '{command}' returned a non-zero code: {code}"),
        ),
        other => (0, other.to_string()),
    };
    build_failure(code, message)
}

/// Returns the message of an error after the response head was sent.
pub(crate) fn stream_error(error: &whelk_engine::Error) -> StreamMessage {
    let error = error.to_string();
    StreamMessage {
        error_detail: Some(ErrorDetail {
            code: 0,
            message: error.clone(),
        }),
        error: Some(error),
        ..StreamMessage::default()
    }
}

#[cfg(test)]
mod tests {
    use whelk_image::descriptor::Descriptor;

    use super::*;

    #[test]
    fn the_end_of_a_push_is_encoded_as_dockers() {
        let digest = whelk_image::Digest::of(b"manifest");
        let mut push = Pushed {
            tag: "1".into(),
            digest: digest.clone(),
            size: 7,
            instead_of: None,
            part_of: None,
        };
        let lines = |push: &Pushed| -> Vec<String> {
            let messages = pushed(push);
            messages
                .iter()
                .map(|message| serde_json::to_string(message).unwrap())
                .collect()
        };
        let expected = [
            format!(r#"{{"status":"1: digest: {digest} size: 7"}}"#),
            format!(
                r#"{{"progressDetail":{{}},"aux":{{"Tag":"1","Digest":"{digest}","Size":7}}}}"#
            ),
        ];
        assert_eq!(lines(&push), expected);
        push.instead_of = Some(whelk_image::Digest::of(b"other"));
        assert!(lines(&push)[0].contains("compressed again"));
        push.instead_of = None;
        let manifest = Descriptor::new("m", digest.clone(), 7);
        push.part_of = Some((Descriptor::new("i", digest.clone(), 9), manifest));
        let expected = format!(
            r#"{{"progressDetail":{{}},"aux":{{"manifestPushedInsteadOfIndex":true,"originalIndex":{{"mediaType":"i","digest":"{digest}","size":9}},"selectedManifest":{{"mediaType":"m","digest":"{digest}","size":7}}}}}}"#
        );
        assert_eq!(lines(&push)[0], expected);
    }

    #[test]
    fn progress_is_encoded_as_dockers() {
        let update = |current, total| Update {
            id: "0123456789ab".into(),
            state: State::LoadingLayer,
            current,
            total,
            source: String::new(),
        };
        let text = |update: &Update| serde_json::to_string(&progress(update)).unwrap();
        let bar = format!("[{}>{}]  32.77kB/65.54kB", "=".repeat(25), " ".repeat(25));
        assert_eq!(
            text(&update(32_768, 65_536)),
            format!(
                r#"{{"status":"Loading layer","progressDetail":{{"current":32768,"total":65536}},"progress":"{bar}","id":"0123456789ab"}}"#
            )
        );
        assert_eq!(
            text(&update(0, 0)),
            r#"{"status":"Loading layer","progressDetail":{},"id":"0123456789ab"}"#
        );
    }
}
