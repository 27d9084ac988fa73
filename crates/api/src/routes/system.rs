//! Routes about the whole engine: ping, version, info, disk usage, events.

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use whelk_engine::Error;
use whelk_engine::containers::ListRequest;
use whelk_engine::events::{Event, now};
use whelk_engine::filters::Filters;
use whelk_engine::system::{RUNTIME_SPEC, VERSION};
use whelk_engine::volumes::LOCAL;

use super::{App, blocking, ok};
use crate::error::ApiResult;
use crate::extract::Params;
use crate::version::ApiVersion;
use crate::{NEWEST, OLDEST, compat, stream, wire};

pub(super) async fn ping() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
        (header::PRAGMA, "no-cache"),
    ];
    // Clients check these headers before they use a builder or a swarm.
    (
        headers,
        [("builder-version", "1"), ("swarm", "inactive")],
        "OK",
    )
        .into_response()
}

pub(super) async fn version(State(engine): App) -> Response {
    let info = engine.info();
    let api = format!("{}.{}", NEWEST.0, NEWEST.1);
    let least = format!("{}.{}", OLDEST.0, OLDEST.1);
    let arch = if info.architecture == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    // All three components are this program. Docker's CLI prints those other than Engine.
    let part =
        |name: &str, details: Value| json!({"Name": name, "Version": VERSION, "Details": details});
    let details = json!({"ApiVersion": api, "Arch": arch, "BuildTime": "", "Experimental": "false", "GitCommit": "", "GoVersion": "", "KernelVersion": info.kernel, "MinAPIVersion": least, "Os": "linux"});
    ok(&json!({
        "Platform": {"Name": "Whelk"},
        "Components": [part("Engine", details), part("whelk-oci", json!({"GitCommit": "", "RuntimeSpec": RUNTIME_SPEC})), part("whelk-init", json!({"GitCommit": ""}))],
        "Version": VERSION, "ApiVersion": api, "MinAPIVersion": least, "GitCommit": "", "GoVersion": "", "Os": "linux", "Arch": arch, "KernelVersion": info.kernel, "BuildTime": "",
    }))
}

/// Returns the disk usage of the object types in `type`, or of all types.
pub(super) async fn disk_usage(
    State(engine): App,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> ApiResult {
    let kinds: Vec<&str> = params.all("type").collect();
    if let Some(wrong) = kinds
        .iter()
        .find(|kind| !matches!(**kind, "container" | "image" | "volume" | "build-cache"))
    {
        return Err(Error::invalid(format!("unknown object type: {wrong}")).into());
    }
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let mut usage = json!({});
    let containers = engine
        .containers
        .list(&ListRequest {
            all: true,
            size: wanted("container"),
            ..ListRequest::default()
        })
        .await?;
    if wanted("image") {
        let images = engine.images.clone();
        let (total, shared) = super::blocking(move || images.layer_usage()).await?;
        let images = engine.images.list(&Filters::default())?;
        let users = super::images::users_by_image(&containers);
        let shown = images.iter().map(|listed| {
            let id = &listed.image.id;
            let users = users.get(id.as_str()).copied().unwrap_or(0);
            let mut summary =
                wire::image_summary(listed, users, Some(shared.get(id).copied().unwrap_or(0)));
            compat::downgrade_listed_image(version, &mut summary);
            summary["Containers"] = json!(users);
            summary
        });
        usage["LayersSize"] = json!(total);
        usage["Images"] = shown.collect();
    }
    if wanted("container") {
        let now = now();
        let shown = containers.iter().map(|container| {
            let mut shown = wire::listed(container, now);
            compat::downgrade_listed_container(version, &mut shown);
            shown
        });
        usage["Containers"] = shown.collect();
    }
    if wanted("volume") {
        let volumes = engine.volumes.clone();
        let shown = blocking(move || {
            let found = volumes.list(&Filters::default())?;
            // Volumes of plugins do not use this disk.
            let local = found.into_iter().filter(|record| record.driver == LOCAL);
            let shown = local.map(|record| {
                let shown = volumes.show_record(record)?;
                let mut value = wire::volume(&shown);
                let name = &shown.record.name;
                value["UsageData"] =
                    json!({"RefCount": volumes.users(name), "Size": volumes.size(name)});
                Ok(value)
            });
            shown.collect::<Result<Value, Error>>()
        });
        usage["Volumes"] = shown.await?;
    }
    if wanted("build-cache") {
        usage["BuildCache"] = json!([]);
    }
    Ok(ok(&usage))
}

pub(super) async fn info(
    State(engine): App,
    Extension(version): Extension<ApiVersion>,
) -> ApiResult {
    let about = engine.clone();
    let info = blocking(move || Ok(about.info())).await?;
    let v1 = info.cgroup_version == 1;
    let mut security = vec!["name=seccomp,profile=builtin"];
    if info.apparmor {
        security.insert(0, "name=apparmor");
    }
    if !v1 {
        security.push("name=cgroupns");
    }
    let warnings: Vec<String> = info
        .problems
        .iter()
        .map(|problem| format!("WARNING: {problem}"))
        .collect();
    let mut shown = json!({
        "ID": info.id,
        "Containers": info.running + info.paused + info.stopped,
        "ContainersRunning": info.running, "ContainersPaused": info.paused, "ContainersStopped": info.stopped,
        "Images": info.images,
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", info.backing_file_system], ["Supports d_type", "true"]],
        "Plugins": {"Volume": engine.volumes.drivers(), "Network": ["bridge", "host", "ipvlan", "macvlan", "null"], "Authorization": null, "Log": ["json-file", "local", "none"]},
        "MemoryLimit": true, "SwapLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": true, "CPUSet": true, "PidsLimit": true,
        "IPv4Forwarding": info.ipv4_forwarding, "Debug": engine.instance.debug, "NFd": info.open_files, "OomKillDisable": v1, "NGoroutines": 0,
        "SystemTime": wire::time(now()),
        "LoggingDriver": engine.instance.default_log.kind, "CgroupDriver": "cgroupfs", "CgroupVersion": info.cgroup_version.to_string(), "NEventsListener": info.event_listeners,
        "KernelVersion": info.kernel, "OperatingSystem": info.operating_system, "OSVersion": info.os_version, "OSType": "linux", "Architecture": info.architecture,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": {"docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": true, "Official": true}},
            "Mirrors": null,
        },
        "NCPU": info.cpus, "MemTotal": info.memory, "GenericResources": null, "DockerRootDir": info.root,
        "HttpProxy": "", "HttpsProxy": "", "NoProxy": "", "Name": info.name, "Labels": [], "ExperimentalBuild": false, "ServerVersion": VERSION,
        "Runtimes": {"io.containerd.runc.v2": {"path": "whelk"}, "runc": {"path": "whelk"}}, "DefaultRuntime": "runc",
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null},
        "LiveRestoreEnabled": true, "Isolation": "", "InitBinary": "whelk",
        "ContainerdCommit": {"ID": ""}, "RuncCommit": {"ID": ""}, "InitCommit": {"ID": ""},
        "FirewallBackend": {"Driver": "nftables"},
        // An empty list means that CDI devices are not supported.
        "SecurityOptions": security, "Warnings": (!warnings.is_empty()).then_some(warnings), "CDISpecDirs": [],
    });
    compat::downgrade_info(version, info.bridge_filter, &mut shown);
    Ok(ok(&shown))
}

/// Streams events as JSON lines: past events from `since` on, then live ones until `until`.
pub(super) async fn events(State(engine): App, params: Params) -> ApiResult {
    let (since, until) = (params.time("since")?, params.time("until")?);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(crate::error::ApiError::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            params.text("since"),
            params.text("until")
        )));
    }
    let filters = Filters::parse_any(params.text("filters"))?;
    let (past, mut live) = engine.events.subscribe();
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let in_time = |event: &Event| {
            since.is_none_or(|since| event.time >= since)
                && until.is_none_or(|until| event.time <= until)
        };
        let line = |event: &Event| Bytes::from(format!("{}\n", wire::event(event)));
        if since.is_some() || until.is_some() {
            for event in past
                .iter()
                .filter(|event| in_time(event) && matches(&filters, event))
            {
                if sender.send(Ok(line(event))).await.is_err() {
                    return;
                }
            }
        }
        let end = async {
            match until {
                Some(until) => {
                    tokio::time::sleep(std::time::Duration::from_nanos(
                        u64::try_from(until.saturating_sub(now())).unwrap_or(0),
                    ))
                    .await
                }
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = live.recv() => event,
                () = &mut end => return,
                () = sender.closed() => return,
            };
            match event {
                Ok(event) if matches(&filters, &event) => {
                    if sender.send(Ok(line(&event))).await.is_err() {
                        return;
                    }
                }
                // A subscriber that is too slow misses events and continues.
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        stream::from_channel(receiver),
    )
        .into_response())
}

fn matches(filters: &Filters, event: &Event) -> bool {
    let name = event.attributes.get("name").map_or("", String::as_str);
    let is = |kind: &str, value: &str| {
        event.kind == kind
            && (event.id == value
                || event.id.starts_with(value)
                || name == value.trim_start_matches('/'))
    };
    // The filter "exec_create" also matches "exec_create: sh".
    let action =
        |wanted: &str| event.action == wanted || event.action.split(':').next() == Some(wanted);
    filters.any("type", |kind| event.kind == kind)
        && filters.any("event", action)
        && filters.any("container", |value| is("container", value))
        && filters.any("image", |value| {
            let image = if event.kind == "image" {
                name
            } else {
                event.attributes.get("image").map_or("", String::as_str)
            };
            image == value
                || image.split(':').next() == Some(value)
                || (event.kind == "image" && event.id == value)
        })
        && filters.labels(&event.attributes)
        && filters.any("scope", |scope| scope == "local")
        && filters.any("network", |value| is("network", value))
        && filters.any("volume", |value| is("volume", value))
        && ["plugin", "daemon", "node", "service", "secret", "config"]
            .iter()
            .all(|kind| filters.any(kind, |_| event.kind == *kind))
}
