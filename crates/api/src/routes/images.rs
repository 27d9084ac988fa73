//! Routes of `/images/…`. Image names contain slashes, so the operation is the last component of
//! the path.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use whelk_api_types::{ImagePruneResponse, ImageSummary, StreamMessage};
use whelk_engine::images::{FILTERS, Images, PullRequest, PushRequest};
use whelk_engine::usage::Usage;
use whelk_engine::{Durability, Error};
use whelk_image::archive::Import;
use whelk_image::progress::State as Progressing;
use whelk_image::{Platform, Progress, Reference};
use whelk_registry::Credentials;
use whelk_trust::{Policy, PolicyFile};

use super::{Service, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::Params;
use crate::version::{self, ApiVersion, ImageOperation};
use crate::{stream, wire};

/// Maximum size of a signature policy in bytes.
const MAX_POLICY: usize = 1 << 20;

pub(super) async fn list(
    State(images): Service<Images>,
    State(usage): Service<Usage>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> ApiResult {
    let mut filters = params.filters(FILTERS)?;
    if version::image_list_takes_name(version) && !params.text("filter").is_empty() {
        let reference = [("reference", [params.text("filter")])];
        let text = serde_json::to_string(&HashMap::from(reference)).unwrap_or_default();
        filters = whelk_engine::filters::Filters::parse(&text, FILTERS)?;
    }
    let with_identity = version::image_list_takes_identity(version) && params.flag("identity");
    if with_identity && !params.flag("manifests") {
        return Err(ApiError::invalid(
            "conflicting options: identity requires manifests=1",
        ));
    }
    let users = usage.containers_by_image();
    let shared = if version::image_list_takes_shared_size(version) && params.flag("shared-size") {
        let images = images.clone();
        Some(super::blocking(move || images.layer_usage()).await?.1)
    } else {
        None
    };
    let manifests = version::image_list_takes_manifests(version) && params.flag("manifests");
    let listed = super::blocking(move || images.list(&filters, manifests)).await?;
    let summaries: Vec<ImageSummary> = listed
        .iter()
        .map(|listed| {
            let id = &listed.image.id;
            let shared = shared
                .as_ref()
                .map(|shared| shared.get(id).copied().unwrap_or(0));
            let mut summary = wire::image_summary(listed, &users, shared, with_identity);
            version::downgrade_listed_image(version, &mut summary);
            summary
        })
        .collect();
    Ok(ok(&summaries))
}

/// Returns the platforms in a request's JSON parameters; none in API versions without the parameter.
fn platforms(
    params: &Params,
    name: &str,
    version: ApiVersion,
    operation: ImageOperation,
) -> ApiResult<Vec<Platform>> {
    if !version::takes_platform(version, operation) {
        return Ok(Vec::new());
    }
    let given: Vec<&str> = params.all(name).filter(|text| !text.is_empty()).collect();
    if params.all(name).count() > 1 && !version::takes_several_platforms(version, operation) {
        return Err(ApiError::invalid(
            "multiple platform parameters not supported",
        ));
    }
    given.into_iter().map(parse_platform).collect()
}

/// Returns the platform in a request's JSON parameter.
fn platform(
    params: &Params,
    name: &str,
    version: ApiVersion,
    operation: ImageOperation,
) -> ApiResult<Option<Platform>> {
    Ok(platforms(params, name, version, operation)?.pop())
}

fn parse_platform(text: &str) -> ApiResult<Platform> {
    let platform: Platform = serde_json::from_str(text)
        .map_err(|error| ApiError::invalid(format!("failed to parse platform: {error}")))?;
    match (platform.os.as_str(), platform.architecture.as_str()) {
        ("", "") if !platform.variant.is_empty() => Err(ApiError::invalid(
            "optional platform fields provided, but OS and Architecture are missing",
        )),
        ("", _) | (_, "") => Err(ApiError::invalid(
            "both OS and Architecture must be provided",
        )),
        _ => Ok(platform),
    }
}

pub(super) async fn load(
    State(images): Service<Images>,
    State(durability): State<Durability>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
    body: Body,
) -> ApiResult {
    let platforms = platforms(&params, "platform", version, ImageOperation::Load)?;
    let reader = stream::reader(stream::begin().await?, body);
    let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(PROGRESS_LINES);
    let progress = if params.flag_or("quiet", true) {
        Progress::none()
    } else {
        let sender = sender.clone();
        // A slow client misses reports instead of delaying the load.
        Progress::to(move |update| {
            let line = stream_line(&wire::progress(&update));
            let _ = sender.try_send(Ok(Bytes::from(line)));
        })
    };
    tokio::spawn(async move {
        let work = move || images.load(reader, &platforms, &progress);
        let mut loaded = super::blocking(work).await;
        // Images must be on disk before they are reported as loaded.
        if let Err(error) = durability.wait().await {
            loaded = Err(error);
        }
        // The response head may have been sent already, so errors are reported in the stream, as
        // Docker does.
        let messages = match loaded {
            Err(error) => vec![wire::stream_error(&error)],
            Ok(loaded) => loaded
                .iter()
                .flat_map(|(image, renamed)| wire::loaded(image, renamed))
                .collect(),
        };
        let lines: String = messages.iter().map(stream_line).collect();
        let _ = sender.send(Ok(Bytes::from(lines))).await;
    });
    // The head is sent with the first message, when the archive has been read: some clients stop
    // sending when the response begins.
    let first = futures_util::stream::iter(receiver.recv().await);
    let body = Body::from_stream(first.chain(stream::pieces(receiver)));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Maximum number of progress messages queued for a client.
const PROGRESS_LINES: usize = 64;

/// Additional room in a client's queue for changes of the states of layers: enough for those of the
/// largest image, since none may be lost.
const STATE_LINES: usize = 4096;

/// Encodes a message of a stream as a line.
pub(super) fn stream_line(message: &StreamMessage) -> String {
    serde_json::to_string(message).unwrap_or_default() + "\r\n"
}

async fn archive(images: Arc<Images>, names: &[String], platforms: &[Platform]) -> ApiResult {
    let saved = images.to_save(names, platforms)?;
    let body = stream::written(stream::begin().await?, move |output| {
        images.save(&saved, output)
    });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

pub(super) async fn get_many(
    State(images): Service<Images>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> ApiResult {
    let platforms = platforms(&params, "platform", version, ImageOperation::Save)?;
    let names: Vec<String> = params
        .all("names")
        .flat_map(|names| names.split(',').map(str::to_owned))
        .collect();
    archive(images, &names, &platforms).await
}

/// Pulls an image (`fromImage`), or creates one from an archive (`fromSrc`).
pub(super) async fn create(
    State(images): Service<Images>,
    State(durability): State<Durability>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let platform = match params.text("platform") {
        text if version::takes_platform(version, ImageOperation::Import) && !text.is_empty() => {
            Some(text.parse::<Platform>().map_err(Error::from)?)
        }
        _ => None,
    };
    let image = params.text("fromImage");
    if !image.is_empty() {
        let request = PullRequest {
            reference: to_pull(image, params.text("tag"))?,
            platform,
            credentials: credentials(&headers),
            policy: None,
        };
        return pull(images, durability, request).await;
    }
    if params.text("fromSrc") != "-" {
        return Err(Error::Unsupported(
            "import from a URL: not available in this version of whelk; download the archive and import it".into(),
        )
        .into());
    }
    let name = new_tag(&params)?;
    let changes: Vec<String> = params.all("changes").map(str::to_owned).collect();
    let comment = if params.text("message").is_empty() {
        "Imported from -".to_owned()
    } else {
        params.text("message").to_owned()
    };
    let reader = stream::reader(stream::begin().await?, body);
    let import = Import {
        comment,
        platform,
        name,
        ..Import::default()
    };
    let id = super::blocking(move || images.import(reader, import, &changes)).await?;
    let imported = stream_line(&StreamMessage {
        status: Some(id.to_string()),
        ..StreamMessage::default()
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], imported).into_response())
}

/// Pulls an image if it meets the signature policy in the body. Not in Docker's API: its engine would
/// pull the image without looking at a policy, and here it answers 404.
pub(super) async fn create_verified(
    State(images): Service<Images>,
    State(durability): State<Durability>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let platform = match params.text("platform") {
        "" => None,
        text => Some(text.parse::<Platform>().map_err(Error::from)?),
    };
    let reference = to_pull(params.text("fromImage"), params.text("tag"))?;
    let json = axum::body::to_bytes(body, MAX_POLICY)
        .await
        .map_err(|error| ApiError::invalid(format!("signature policy: {error}")))?;
    let policy = PolicyFile::parse(&json)
        .and_then(Policy::try_from)
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    let request = PullRequest {
        reference,
        platform,
        credentials: credentials(&headers),
        policy: Some(policy),
    };
    pull(images, durability, request).await
}

/// Returns the reference to pull. `tag` may be a digest.
fn to_pull(image: &str, tag: &str) -> ApiResult<Reference> {
    let mut reference: Reference = image.parse().map_err(Error::from)?;
    if tag.contains(':') {
        reference.tag = None;
        reference.digest = Some(tag.parse().map_err(Error::from)?);
    } else if !tag.is_empty() {
        whelk_image::reference::check_tag(tag).map_err(Error::from)?;
        reference.tag = Some(tag.to_owned());
    }
    Ok(reference)
}

/// Returns the credentials in a request. As in Docker, a malformed header counts as none.
pub(super) fn credentials(headers: &HeaderMap) -> Credentials {
    let value = headers
        .get("x-registry-auth")
        .and_then(|value| value.to_str().ok());
    let decoded = value.map(Credentials::from_header);
    match decoded {
        Some(Ok(credentials)) => credentials,
        Some(Err(error)) => {
            tracing::warn!("header X-Registry-Auth ignored: {error}");
            Credentials::Anonymous
        }
        None => Credentials::Anonymous,
    }
}

/// Pulls an image and streams the progress. Ends when the client leaves.
async fn pull(images: Arc<Images>, durability: Durability, request: PullRequest) -> ApiResult {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(PROGRESS_LINES + STATE_LINES);
    let (begin, begun) = oneshot::channel::<()>();
    let reports = sender.clone();
    let progress = Progress::to(move |update| {
        // A slow client misses positions instead of delaying the pull.
        if update.state == Progressing::Downloading && reports.capacity() < STATE_LINES {
            return;
        }
        let line = stream_line(&wire::progress(&update));
        let _ = reports.try_send(Ok(Bytes::from(line)));
    });
    let name = request.reference.clone();
    let is_all = name.tag.is_none() && name.digest.is_none();
    let references = if is_all {
        images.tags_to_pull(&request).await?
    } else {
        vec![name.clone()]
    };
    let task = tokio::spawn(async move {
        let mut begin = Some(begin);
        let mut is_new = false;
        for reference in references {
            let request = PullRequest {
                reference,
                ..request.clone()
            };
            let (first, begin) = (sender.clone(), begin.take());
            let hello = stream_line(&wire::pulling(&request.reference));
            let work = images.pull(&request, &progress, move || {
                let _ = first.try_send(Ok(Bytes::from(hello)));
                let _ = begin.map(|begin| begin.send(()));
            });
            let mut pulled = tokio::select! {
                pulled = work => pulled,
                () = sender.closed() => return Ok(()),
            };
            if pulled.is_ok()
                && let Err(error) = durability.wait().await
            {
                pulled = Err(error);
            }
            let messages = match &pulled {
                Ok(pulled) if is_all => wire::pulled_tag(pulled),
                Ok(pulled) => wire::pulled(&request.reference, pulled),
                Err(error) => vec![wire::stream_error(error)],
            };
            let lines: String = messages.iter().map(stream_line).collect();
            let _ = sender.send(Ok(Bytes::from(lines))).await;
            is_new |= pulled?.is_new;
        }
        if is_all {
            let line = stream_line(&wire::pull_status(&name, is_new));
            let _ = sender.send(Ok(Bytes::from(line))).await;
        }
        Ok::<(), Error>(())
    });
    // Until the transfer begins, an error is the response; afterwards it is in the stream.
    if begun.await.is_err() {
        let outcome = task
            .await
            .map_err(|error| Error::internal(error.to_string()))?;
        outcome?;
    }
    let body = Body::from_stream(stream::pieces(receiver));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Returns the reference given by `repo` and `tag`; `None` if `repo` is empty.
pub(super) fn new_tag(params: &Params) -> ApiResult<Option<Reference>> {
    let (repository, tag) = (params.text("repo"), params.text("tag"));
    if repository.is_empty() {
        return Ok(None);
    }
    let mut reference: Reference = repository.parse().map_err(Error::from)?;
    if reference.digest.is_some() {
        return Err(ApiError::invalid("cannot import digest reference"));
    }
    if !tag.is_empty() {
        whelk_image::reference::check_tag(tag).map_err(Error::from)?;
        reference.tag = Some(tag.to_owned());
    }
    Ok(Some(reference.into_tag().map_err(Error::from)?))
}

pub(super) async fn prune(State(usage): Service<Usage>, params: Params) -> ApiResult {
    let filters = params.filters(&["dangling", "label", "label!", "until"])?;
    let all = filters.flag("dangling")? == Some(false);
    let (removed, reclaimed) = super::blocking(move || usage.prune_images(all, &filters)).await?;
    Ok(ok(&ImagePruneResponse {
        images_deleted: wire::null_if_empty(wire::removals(&removed)),
        space_reclaimed: reclaimed,
    }))
}

pub(super) async fn get_by_name(
    State(images): Service<Images>,
    State(usage): Service<Usage>,
    Extension(version): Extension<ApiVersion>,
    Path(rest): Path<String>,
    params: Params,
) -> ApiResult {
    match rest.rsplit_once('/') {
        Some((name, "json")) => {
            let platform = platform(&params, "platform", version, ImageOperation::Inspect)?;
            let manifests =
                version::image_inspect_takes_manifests(version) && params.flag("manifests");
            if platform.is_some() && manifests {
                return Err(ApiError::invalid(
                    "conflicting options: manifests and platform options cannot both be set",
                ));
            }
            let image = images.find_for(name, platform.as_ref())?;
            let mut shown = wire::image(&image, images.names_of(&image.id));
            if manifests {
                let users = usage.containers_by_image();
                let listed = super::blocking(move || Ok(images.manifests(&image))).await?;
                shown.manifests = Some(wire::manifests(&listed, &users, false));
            }
            version::downgrade_image(version, &mut shown);
            Ok(ok(&shown))
        }
        Some((name, "history")) => {
            let platform = platform(&params, "platform", version, ImageOperation::History)?;
            let image = images.find_for(name, platform.as_ref())?;
            let sizes = image
                .config
                .rootfs
                .diff_ids
                .iter()
                .map(|layer| images.store().snapshots.size(layer))
                .collect::<Result<Vec<_>, _>>()
                .map_err(Error::from)?;
            Ok(ok(&wire::history(
                &image,
                images.names_of(&image.id),
                &sizes,
            )))
        }
        Some((name, "attestations")) if version::images_have_attestations(version) => {
            images.find(name)?;
            Err(Error::unsupported("attestations of images").into())
        }
        Some((name, "get")) => {
            let platforms = platforms(&params, "platform", version, ImageOperation::Save)?;
            archive(images, &[name.to_owned()], &platforms).await
        }
        _ => Ok(not_found()),
    }
}

pub(super) async fn post_by_name(
    State(images): Service<Images>,
    State(durability): State<Durability>,
    Extension(version): Extension<ApiVersion>,
    Path(rest): Path<String>,
    params: Params,
    headers: HeaderMap,
    _body: Bytes,
) -> ApiResult {
    match rest.rsplit_once('/') {
        Some((name, "tag")) => {
            let tag =
                new_tag(&params)?.ok_or_else(|| ApiError::invalid("invalid reference format"))?;
            images.tag(name, &tag)?;
            Ok(StatusCode::CREATED.into_response())
        }
        Some((name, "push")) => {
            let request = PushRequest {
                reference: to_push(name, params.text("tag"))?,
                platform: platform(&params, "platform", version, ImageOperation::Push)?,
                credentials: credentials(&headers),
                is_whole: false,
                untagged: None,
            };
            Ok(push(images, durability, request))
        }
        _ => Ok(not_found()),
    }
}

/// Returns the reference to push. Without a tag it selects all tags.
fn to_push(name: &str, tag: &str) -> ApiResult<Reference> {
    let mut reference: Reference = name.parse().map_err(Error::from)?;
    if tag.contains(':') {
        reference.digest = Some(tag.parse().map_err(Error::from)?);
    } else if !tag.is_empty() {
        whelk_image::reference::check_tag(tag).map_err(Error::from)?;
        reference.tag = Some(tag.to_owned());
    }
    Ok(reference)
}

/// Pushes an image and streams the progress, and errors. Ends when the client leaves.
fn push(images: Arc<Images>, durability: Durability, request: PushRequest) -> Response {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(PROGRESS_LINES + STATE_LINES);
    let reports = sender.clone();
    let progress = Progress::to(move |update| {
        // A slow client misses positions instead of delaying the push.
        if update.state == Progressing::Pushing && reports.capacity() < STATE_LINES {
            return;
        }
        let line = stream_line(&wire::progress(&update));
        let _ = reports.try_send(Ok(Bytes::from(line)));
    });
    tokio::spawn(async move {
        let hello = stream_line(&wire::pushing(&request.reference));
        let _ = sender.send(Ok(Bytes::from(hello))).await;
        let results = sender.clone();
        let work = images.push(&request, &progress, move |pushed| {
            let lines: String = wire::pushed(pushed).iter().map(stream_line).collect();
            let _ = results.try_send(Ok(Bytes::from(lines)));
        });
        let mut outcome = tokio::select! {
            outcome = work => outcome,
            () = sender.closed() => return,
        };
        if outcome.is_ok() {
            outcome = durability.wait().await;
        }
        if let Err(error) = outcome {
            let line = stream_line(&wire::stream_error(&error));
            let _ = sender.send(Ok(Bytes::from(line))).await;
        }
    });
    let body = Body::from_stream(stream::pieces(receiver));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

pub(super) async fn delete(
    State(usage): Service<Usage>,
    Extension(version): Extension<ApiVersion>,
    Path(name): Path<String>,
    params: Params,
) -> ApiResult {
    let force = params.flag("force");
    let platforms = platforms(&params, "platforms", version, ImageOperation::Remove)?;
    let remove = move || usage.remove_image(&name, force, &platforms);
    let removed = super::blocking(remove).await?;
    Ok(ok(&wire::removals(&removed)))
}

fn not_found() -> Response {
    crate::error::message(StatusCode::NOT_FOUND, "page not found")
}
