//! API versions: the version prefix of a path (`/v1.44/containers/json`), and the differences
//! between versions.
//!
//! Handlers know only the newest version: `request` upgrades the requests of older clients to it,
//! and `response` downgrades responses to their version.

mod request;
mod response;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::NEWEST;
use crate::error::message;

pub(crate) use request::*;
pub(crate) use response::*;

/// The API version of a request: the newest if the path has no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion(pub(crate) u32, pub(crate) u32);

/// Removes the version prefix from the path, and adds the engine's version to every response.
pub(crate) async fn negotiate(
    State(oldest): State<(u32, u32)>,
    request: Request,
    next: Next,
) -> Response {
    let unclean = clean(request.uri());
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::OK.into_response()
    } else if let Some(clean) = unclean {
        (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, clean)]).into_response()
    } else {
        answer(oldest, request, next).await
    };
    let headers = response.headers_mut();
    let api = format!("{}.{}", NEWEST.0, NEWEST.1);
    headers.insert(
        "api-version",
        HeaderValue::from_str(&api).unwrap_or(HeaderValue::from_static("1.55")),
    );
    headers.insert("docker-experimental", HeaderValue::from_static("false"));
    headers.insert("ostype", HeaderValue::from_static("linux"));
    headers.insert(
        "server",
        HeaderValue::from_static(concat!("Whelk/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
    response
}

async fn answer(oldest: (u32, u32), mut request: Request, next: Next) -> Response {
    let (version, rest) = match split(request.uri().path(), oldest) {
        Ok(found) => found,
        Err(refusal) => return *refusal,
    };
    request.extensions_mut().insert(version);
    let path = rest.as_deref().unwrap_or(request.uri().path());
    let linked = linked(request.method(), path);
    if let Some(rest) = linked.or(rest) {
        let path = match request.uri().query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest,
        };
        match path.parse::<Uri>() {
            Ok(uri) => *request.uri_mut() = uri,
            Err(_) => return message(StatusCode::BAD_REQUEST, "invalid path"),
        }
    }
    next.run(request).await
}

/// Returns the path of a request for a container by the name of a link (`LINKER/ALIAS`), with that name as one component, as
/// the routes have it. `None` for other paths.
fn linked(method: &Method, path: &str) -> Option<String> {
    const ACTIONS: [&str; 19] = [
        "archive", "attach", "changes", "exec", "export", "json", "kill", "logs", "pause",
        "rename", "resize", "restart", "start", "stats", "stop", "top", "unpause", "update",
        "wait",
    ];
    let (linker, rest) = path.strip_prefix("/containers/")?.split_once('/')?;
    let (alias, action) = match rest.split_once('/') {
        None if method == Method::DELETE => (rest, None),
        Some((alias, action))
            if method != Method::DELETE && (ACTIONS.contains(&action) || action == "attach/ws") =>
        {
            (alias, Some(action))
        }
        _ => return None,
    };
    if linker.is_empty() || alias.is_empty() {
        return None;
    }
    let action = action.map(|action| format!("/{action}"));
    Some(format!(
        "/containers/{linker}%2F{alias}{}",
        action.unwrap_or_default()
    ))
}

/// Returns the normalized form of a path with empty or dotted components, to which clients are
/// redirected as in Docker. `None` if the path is normalized.
fn clean(uri: &Uri) -> Option<String> {
    // The URI may have no path, e.g. only an authority.
    let path = Some(uri.path()).filter(|path| path.starts_with('/'))?;
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = if path.ends_with('/') && !parts.is_empty() {
        "/"
    } else {
        ""
    };
    let clean = format!("/{}{end}", parts.join("/"));
    let query = uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    (clean != path).then(|| clean + &query)
}

/// Splits a path into its version, which must be `oldest` or later, and the rest. `None` if it has no version.
fn split(path: &str, oldest: (u32, u32)) -> Result<(ApiVersion, Option<String>), Box<Response>> {
    let newest = ApiVersion(NEWEST.0, NEWEST.1);
    let Some(rest) = path.strip_prefix("/v") else {
        return Ok((newest, None));
    };
    let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    let parsed = major
        .parse()
        .ok()
        .zip(minor.parse().ok())
        .map(|(major, minor)| ApiVersion(major, minor));
    let Some(parsed) = parsed else {
        return Ok((newest, None));
    };
    let text = |ApiVersion(major, minor): ApiVersion| format!("{major}.{minor}");
    let given = version;
    let oldest = ApiVersion(oldest.0, oldest.1);
    if parsed < oldest {
        let refusal = format!(
            "client version {} is too old. Minimum supported API version is {}, please upgrade your client to a newer version",
            given,
            text(oldest)
        );
        // Plain text: clients this old cannot parse JSON errors.
        return Err(Box::new(
            (StatusCode::BAD_REQUEST, refusal + "\n").into_response(),
        ));
    }
    if parsed > newest {
        return Err(Box::new(message(
            StatusCode::BAD_REQUEST,
            &format!(
                "client version {} is too new. Maximum supported API version is {}",
                given,
                text(newest)
            ),
        )));
    }
    Ok((parsed, Some(format!("/{rest}"))))
}

#[cfg(test)]
mod tests {
    use whelk_api_types::{
        BuildCache, ContainerInspectResponse, ContainerStatsResponse, ContainerSummary, DiskUsage,
        EventMessage, FirewallInfo, ImageIdentity, ImageInspect, ImageSummary, NetworkInspect,
        NetworkStatus, SystemDataUsageResponse, SystemInfo, UpdateConfig, Volume,
    };

    use super::*;

    #[test]
    fn splits_version_prefixes_and_normalizes_paths() {
        let check = |path: &str, version: (u32, u32), rest: Option<&str>| {
            let (found, remaining) = split(path, crate::OLDEST)
                .map_err(|_| ())
                .expect("accepted");
            assert_eq!(
                (found, remaining.as_deref()),
                (ApiVersion(version.0, version.1), rest),
                "{path}"
            );
        };
        check("/v1.44/containers/json", (1, 44), Some("/containers/json"));
        check("/_ping", NEWEST, None);
        check("/volumes", NEWEST, None);
        check("/vx/y", NEWEST, None);
        for (path, expected) in [
            ("/info", None),
            ("/info/", None),
            ("/", None),
            ("//info", Some("/info")),
            (
                "/v1.41/containers//json?all=1",
                Some("/v1.41/containers/json?all=1"),
            ),
            ("/a/./b/../c/", Some("/a/c/")),
            ("/../..", Some("/")),
        ] {
            assert_eq!(
                clean(&path.parse().expect("a path")).as_deref(),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn names_of_links_are_one_component() {
        for (method, path, expected) in [
            (Method::POST, "a/b/stop", Some("a%2Fb/stop")),
            (Method::HEAD, "a/b/archive", Some("a%2Fb/archive")),
            (Method::GET, "a/b/attach/ws", Some("a%2Fb/attach/ws")),
            (Method::GET, "a/json/json", Some("a%2Fjson/json")),
            (Method::DELETE, "a/b", Some("a%2Fb")),
            (Method::DELETE, "a", None),
            (Method::DELETE, "a/", None),
            (Method::DELETE, "a/checkpoints/start", None),
            (Method::GET, "a/json", None),
            (Method::GET, "a/attach/ws", None),
            (Method::GET, "a/b/nosuch", None),
            (Method::GET, "/b/json", None),
            (Method::GET, "a/b/c/json", None),
        ] {
            let path = format!("/containers/{path}");
            let expected = expected.map(|path| format!("/containers/{path}"));
            assert_eq!(linked(&method, &path), expected, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn rejects_versions_that_are_too_old_or_too_new() {
        let newest = format!("{}.{}", NEWEST.0, NEWEST.1);
        for (path, expected) in [
            (
                "/v1.10/info",
                "client version 1.10 is too old. Minimum supported API version is 1.24, "
                    .to_owned(),
            ),
            (
                "/v1.99/info",
                format!(
                    "client version 1.99 is too new. Maximum supported API version is {newest}"
                ),
            ),
        ] {
            let response = *split(path, crate::OLDEST).unwrap_err();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
            let body = axum::body::to_bytes(response.into_body(), 1 << 10);
            let text = String::from_utf8(body.await.unwrap().to_vec()).unwrap();
            assert!(text.contains(&expected), "{text}");
        }
    }

    /// The first and the last version for which `rule` is true.
    fn versions(rule: impl Fn(ApiVersion) -> bool) -> (u32, u32) {
        let known = crate::OLDEST.1..=crate::NEWEST.1;
        let mut found = known
            .filter(|minor| rule(ApiVersion(1, *minor)))
            .collect::<Vec<_>>();
        found.sort_unstable();
        let (first, last) = (found[0], found[found.len() - 1]);
        assert_eq!(
            found.len(),
            usize::try_from(last - first + 1).unwrap(),
            "one range: {found:?}"
        );
        (first, last)
    }

    #[test]
    #[allow(
        clippy::too_many_lines,
        reason = "one table: the versions of every parameter"
    )]
    fn parameters_and_fields_have_their_versions() {
        let newest = crate::NEWEST.1;
        let platform =
            |operation: ImageOperation| versions(|version| takes_platform(version, operation));
        for (what, found, expected) in [
            ("signal of stop", versions(stop_takes_signal), (42, newest)),
            (
                "streams of a WebSocket",
                versions(websocket_selects_streams),
                (42, newest),
            ),
            (
                "binary frames of a WebSocket",
                versions(websocket_is_binary),
                (28, newest),
            ),
            (
                "one-shot of stats",
                versions(stats_take_one_shot),
                (41, newest),
            ),
            (
                "named volumes are pruned",
                versions(prune_takes_named_volumes),
                (24, 41),
            ),
            (
                "containers of listed networks",
                versions(network_list_has_containers),
                (24, 27),
            ),
            (
                "filter of images",
                versions(image_list_takes_name),
                (24, 40),
            ),
            (
                "shared-size of images",
                versions(image_list_takes_shared_size),
                (42, newest),
            ),
            (
                "platform of import",
                platform(ImageOperation::Import),
                (32, newest),
            ),
            (
                "platform of push",
                platform(ImageOperation::Push),
                (46, newest),
            ),
            (
                "platform of load",
                platform(ImageOperation::Load),
                (48, newest),
            ),
            (
                "platform of save",
                platform(ImageOperation::Save),
                (48, newest),
            ),
            (
                "platform of history",
                platform(ImageOperation::History),
                (48, newest),
            ),
            (
                "platform of inspect",
                platform(ImageOperation::Inspect),
                (49, newest),
            ),
            (
                "platforms of remove",
                platform(ImageOperation::Remove),
                (50, newest),
            ),
            (
                "several platforms of save",
                versions(|version| takes_several_platforms(version, ImageOperation::Save)),
                (52, newest),
            ),
            (
                "manifests of images",
                versions(image_list_takes_manifests),
                (47, newest),
            ),
            (
                "manifests of an image",
                versions(image_inspect_takes_manifests),
                (48, newest),
            ),
            (
                "identity of images",
                versions(image_list_takes_identity),
                (54, newest),
            ),
            (
                "attestations of images",
                versions(images_have_attestations),
                (55, newest),
            ),
        ] {
            assert_eq!(found, expected, "{what}");
        }
    }

    /// The first and the last version in which `shown` has the field at `pointer`.
    fn field<T: serde::Serialize>(pointer: &str, shown: impl Fn(ApiVersion) -> T) -> (u32, u32) {
        versions(|version| {
            let value = serde_json::to_value(shown(version)).expect("JSON");
            value.pointer(pointer).is_some()
        })
    }

    #[test]
    #[allow(
        clippy::too_many_lines,
        reason = "one table: the versions of every field"
    )]
    fn responses_have_the_fields_of_their_version() {
        let newest = crate::NEWEST.1;
        let container = |version| {
            let mut shown = ContainerInspectResponse::default();
            downgrade_container(version, "02:00:00:00:00:01".into(), &mut shown);
            shown
        };
        let listed = |version| {
            let mut shown = ContainerSummary::default();
            shown.host_config.annotations = [("a".into(), "b".into())].into();
            downgrade_listed_container(version, &mut shown);
            shown
        };
        let image = |version| {
            let mut shown = ImageInspect {
                identity: Some(ImageIdentity::default()),
                ..ImageInspect::default()
            };
            downgrade_image(version, &mut shown);
            shown
        };
        let summary = |version| {
            let mut shown = ImageSummary::default();
            downgrade_listed_image(version, &mut shown);
            shown
        };
        let info = |version| {
            let mut shown = SystemInfo {
                firewall_backend: Some(FirewallInfo::default()),
                ..SystemInfo::default()
            };
            downgrade_info(version, (true, true), &mut shown);
            shown
        };
        let network = |version| {
            let mut shown = NetworkInspect {
                status: Some(NetworkStatus::default()),
                ..NetworkInspect::default()
            };
            downgrade_network(version, &mut shown);
            shown
        };
        let networks = |version| {
            let mut shown = NetworkInspect::default();
            downgrade_listed_network(version, &mut shown);
            shown
        };
        let event = |version| {
            let mut shown = EventMessage {
                kind: "container".into(),
                ..EventMessage::default()
            };
            shown.actor.attributes = [("image".into(), "busybox".into())].into();
            downgrade_event(version, &mut shown);
            shown
        };
        let usage = |details: bool| {
            move |version| {
                let mut shown = SystemDataUsageResponse {
                    image_usage: Some(DiskUsage::default()),
                    volume_usage: Some(DiskUsage {
                        items: vec![Volume::default()],
                        ..DiskUsage::default()
                    }),
                    build_cache_usage: Some(DiskUsage {
                        items: vec![BuildCache {
                            size: 5,
                            ..BuildCache::default()
                        }],
                        ..DiskUsage::default()
                    }),
                    ..SystemDataUsageResponse::default()
                };
                downgrade_disk_usage(version, details, &mut shown);
                shown
            }
        };
        let stats = |version| {
            let mut shown = ContainerStatsResponse {
                os_type: "linux".into(),
                ..ContainerStatsResponse::default()
            };
            downgrade_stats(version, &mut shown);
            shown
        };
        for (pointer, found, expected) in [
            ("os_type", field("/os_type", stats), (52, newest)),
            (
                "Gateway",
                field("/NetworkSettings/Gateway", container),
                (24, 51),
            ),
            (
                "Bridge",
                field("/NetworkSettings/Bridge", container),
                (24, 51),
            ),
            (
                "MacAddress",
                field("/Config/MacAddress", container),
                (24, 51),
            ),
            ("OnBuild", field("/Config/OnBuild", container), (24, 51)),
            (
                "Annotations",
                field("/HostConfig/Annotations", listed),
                (46, newest),
            ),
            ("Author", field("/Author", image), (24, 51)),
            ("Identity", field("/Identity", image), (53, newest)),
            ("VirtualSize", field("/VirtualSize", image), (24, 43)),
            ("Container", field("/Container", image), (24, 44)),
            ("Expected", field("/RuncCommit/Expected", info), (24, 48)),
            (
                "ContainerConfig",
                field("/ContainerConfig", image),
                (24, 44),
            ),
            ("Hostname", field("/Config/Hostname", image), (24, 49)),
            ("Env", field("/Config/Env", image), (24, 51)),
            ("VirtualSize", field("/VirtualSize", summary), (24, 43)),
            ("KernelMemory", field("/KernelMemory", info), (24, 41)),
            (
                "AllowNondistributableArtifactsCIDRs",
                field("/RegistryConfig/AllowNondistributableArtifactsCIDRs", info),
                (24, 46),
            ),
            (
                "FirewallBackend",
                field("/FirewallBackend", info),
                (49, newest),
            ),
            (
                "BridgeNfIp6tables",
                field("/BridgeNfIp6tables", info),
                (24, 49),
            ),
            ("Status", field("/Status", network), (52, newest)),
            ("Containers", field("/Containers", networks), (24, 51)),
            ("from", field("/from", event), (24, 51)),
            (
                "ImageUsage",
                field("/ImageUsage", usage(false)),
                (52, newest),
            ),
            ("BuilderSize", field("/BuilderSize", usage(false)), (24, 41)),
            ("Volumes", field("/Volumes/0", usage(false)), (24, newest)),
            ("Volumes", field("/Volumes/0", usage(true)), (24, 51)),
            (
                "Items",
                field("/VolumeUsage/Items/0", usage(true)),
                (52, newest),
            ),
        ] {
            assert_eq!(found, expected, "{pointer}");
        }
    }

    #[test]
    fn updates_of_some_limits_are_ignored_by_old_versions() {
        let updated = |version: ApiVersion| {
            let mut update = UpdateConfig {
                pids_limit: Some(16),
                blkio_device_read_bps: Some(Vec::new()),
                ..UpdateConfig::default()
            };
            upgrade_update(version, &mut update);
            update
        };
        let newest = crate::NEWEST.1;
        let is_taken = |version| updated(version).blkio_device_read_bps.is_some();
        assert_eq!(versions(is_taken), (55, newest));
        let is_taken = |version| updated(version).pids_limit.is_some();
        assert_eq!(versions(is_taken), (40, newest));
    }
}
