//! Listing containers: a filtered snapshot of their records.

use std::net::IpAddr;

use regex_lite::Regex;
use whelk_network::port::Protocol;
use whelk_sys::{copy, fs};

use super::{Containers, MountPoint};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::model::{ContainerRecord, ContainerState, Status};
use crate::mounts::Source;

/// The options of a list request.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Include stopped containers.
    pub all: bool,
    /// Maximum number of containers, the newest, in any state.
    pub limit: Option<usize>,
    /// Compute the sizes of the containers' files.
    pub size: bool,
    pub filters: Filters,
}

/// A container as lists show it.
#[derive(Clone, Debug)]
pub struct ContainerSummary {
    pub record: ContainerRecord,
    pub mounts: Vec<MountPoint>,
    /// The image's name as given at creation, or the image's id if that name refers to another
    /// image now.
    pub image: String,
    /// The names that links to it give it: `/LINKER/ALIAS`.
    pub link_names: Vec<String>,
    /// The size of the writable layer, and of all layers, in bytes.
    pub size: Option<(u64, u64)>,
}

/// The filters of a list request.
pub const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "expose",
    "exited",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

impl Containers {
    /// Lists containers, the newest first.
    ///
    /// # Errors
    /// Returns an error if a filter value is invalid.
    pub async fn list(&self, request: &ListRequest) -> Result<Vec<ContainerSummary>> {
        let mut records: Vec<ContainerRecord> = self
            .all()
            .iter()
            .map(|container| container.record().clone())
            .collect();
        records.sort_by(|a, b| {
            b.created_at
                .cmp(&a.created_at)
                .then_with(|| a.id.cmp(&b.id))
        });
        let mut link_names = self.link_names(records.iter());
        let matcher = Matcher::new(self, request)?;
        records.retain(|record| matcher.matches(record));
        if let Some(limit) = request.limit {
            records.truncate(limit);
        }
        let mut listed = Vec::with_capacity(records.len());
        for record in records {
            let size = if request.size {
                Some(self.sizes(&record).await)
            } else {
                None
            };
            let link_names = link_names.remove(&record.id).unwrap_or_default();
            let name = &record.config.image;
            let is_same = self
                .images
                .find(name)
                .is_ok_and(|image| image.id.as_str() == record.image);
            let image = if is_same {
                name.clone()
            } else {
                record.image.clone()
            };
            listed.push(ContainerSummary {
                mounts: self.mount_points(&record),
                image,
                record,
                link_names,
                size,
            });
        }
        Ok(listed)
    }

    /// Returns the size of a container's writable layer, and of all its layers, in bytes.
    pub(super) async fn sizes(&self, record: &ContainerRecord) -> (u64, u64) {
        let writable = self.writable_size(&record.id).await;
        let image = record
            .image
            .parse()
            .ok()
            .and_then(|id| self.images.get(&id).ok())
            .map_or(0, |image| image.size);
        (writable, writable + image)
    }

    /// Returns the size of a container's writable layer in bytes: that of its files, each of which counts
    /// once. What cannot be read counts as 0.
    pub(super) async fn writable_size(&self, id: &str) -> u64 {
        let upper = self.instance.container_dir(id).join("upper");
        let size = move || copy::disk_usage(fs::open(&upper).ok()?).ok();
        let size = tokio::task::spawn_blocking(size).await;
        size.ok().flatten().unwrap_or(0)
    }
}

/// A port of a container as lists show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedPort {
    pub protocol: Protocol,
    pub private: u16,
    /// The host address it is published at.
    pub address: Option<IpAddr>,
    /// The host port it is published at; `None` if it is not published, or if clients reach the
    /// container by its own address.
    pub public: Option<u16>,
}

impl ContainerRecord {
    /// Returns whether the container runs and has its own network namespace, so that its ports are
    /// listed.
    pub fn has_ports(&self) -> bool {
        self.state.status.is_running() && self.host.network_mode.has_own_networks()
    }

    /// Returns the exposed and published ports of a running container.
    pub fn listed_ports(&self) -> Vec<ListedPort> {
        let exposed = self
            .config
            .exposed_ports
            .iter()
            .filter(|_| self.has_ports());
        let unpublished = exposed.filter(|port| {
            !self
                .ports
                .iter()
                .any(|one| (one.to.port(), one.protocol) == (port.number, port.protocol))
        });
        let mut listed: Vec<ListedPort> = unpublished
            .map(|port| ListedPort {
                protocol: port.protocol,
                private: port.number,
                address: None,
                public: None,
            })
            .collect();
        listed.extend(self.ports.iter().map(|one| ListedPort {
            protocol: one.protocol,
            private: one.to.port(),
            address: Some(one.host.ip()),
            public: Some(one.host.port()).filter(|_| !one.is_direct()),
        }));
        listed
    }
}

/// A value of a port filter: `80`, `80/udp` or `8000-8100/tcp`.
struct PortRange {
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl PortRange {
    fn has(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }
}

/// Parses the values of a port filter.
///
/// # Errors
/// Returns an error if a value is not a port or a range.
fn ports(filters: &Filters, key: &str) -> Result<Option<Vec<PortRange>>> {
    let parse = |value: &String| {
        if value.contains(':') {
            return Err(Error::invalid(format!(
                "filter for '{key}' should not contain ':': {value}"
            )));
        }
        let wrong = |why: String| {
            Error::invalid(format!("error while looking up for {key} {value}: {why}"))
        };
        let (range, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
        if range.is_empty() {
            return Err(wrong("Empty string specified for ports.".into()));
        }
        let protocol =
            Protocol::parse(protocol).ok_or_else(|| wrong(format!("invalid proto: {protocol}")))?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let why = if digits {
                "value out of range"
            } else {
                "invalid syntax"
            };
            text.parse::<u16>()
                .map_err(|_| wrong(format!("strconv.ParseUint: parsing {text:?}: {why}")))
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return Err(wrong(format!(
                "Invalid range specified for the Port: {range}"
            )));
        }
        Ok(PortRange {
            protocol,
            first,
            last,
        })
    };
    filters
        .get(key)
        .map(|values| values.iter().map(parse).collect())
        .transpose()
}

/// The parsed filters of a list request.
struct Matcher<'a> {
    request: &'a ListRequest,
    only_running: bool,
    before: Option<i64>,
    since: Option<i64>,
    exited: Vec<i32>,
    /// The ids of the images that `ancestor` names, and of those built on them.
    ancestors: Option<Vec<String>>,
    /// Regular expressions for names, matched with and without the leading slash.
    names: Option<Vec<Regex>>,
    /// The `publish` and `expose` filters: a container matches if one of its published, or exposed,
    /// ports is in one of the ranges.
    published: Option<Vec<PortRange>>,
    exposed: Option<Vec<PortRange>>,
}

impl<'a> Matcher<'a> {
    fn new(containers: &Containers, request: &'a ListRequest) -> Result<Self> {
        let filters = &request.filters;
        let time_of = |key: &str| -> Result<Option<i64>> {
            let Some(names) = filters.get(key) else {
                return Ok(None);
            };
            names
                .iter()
                .map(|name| {
                    containers
                        .find(name)
                        .map(|container| container.record().created_at)
                })
                .next()
                .transpose()
        };
        let exited = filters
            .get("exited")
            .into_iter()
            .flatten()
            .map(|code| {
                code.parse()
                    .map_err(|_| Error::invalid(format!("invalid filter 'exited={code}': strconv.Atoi: parsing {code:?}: invalid syntax")))
            })
            .collect::<Result<Vec<i32>>>()?;
        const STATUSES: [&str; 7] = [
            "created",
            "running",
            "paused",
            "restarting",
            "removing",
            "exited",
            "dead",
        ];
        if let Some(wrong) = filters
            .get("status")
            .into_iter()
            .flatten()
            .find(|status| !STATUSES.contains(&status.as_str()))
        {
            return Err(Error::invalid(format!(
                "invalid filter 'status={wrong}': invalid value for state ({wrong}): must be one of {}",
                STATUSES.join(", ")
            )));
        }
        const HEALTH: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];
        if let Some(wrong) = filters
            .get("health")
            .into_iter()
            .flatten()
            .find(|health| !HEALTH.contains(&health.as_str()))
        {
            return Err(Error::invalid(format!(
                "invalid filter 'health={wrong}': invalid value for health ({wrong}): must be one of {}",
                HEALTH.join(", ")
            )));
        }
        filters.flag("is-task")?;
        let ancestors = filters.get("ancestor").map(|names| {
            names
                .iter()
                .flat_map(|name| containers.images.built_on(name))
                .collect()
        });
        // `status` implies `all`; with the other filters only running containers are listed by
        // default.
        let wide = request.all || request.limit.is_some() || filters.get("status").is_some();
        Ok(Self {
            request,
            only_running: !wide,
            before: time_of("before")?,
            since: time_of("since")?,
            exited,
            ancestors,
            // An invalid expression matches nothing.
            names: filters.get("name").map(|names| {
                names
                    .iter()
                    .filter_map(|name| Regex::new(name).ok())
                    .collect()
            }),
            published: ports(filters, "publish")?,
            exposed: ports(filters, "expose")?,
        })
    }

    /// Returns whether one of the container's ports matches the filter `expose` or `publish`.
    fn has_port(&self, record: &ContainerRecord) -> bool {
        if self.published.is_none() && self.exposed.is_none() {
            return true;
        }
        let among = |ranges: &Option<Vec<PortRange>>, protocol: Protocol, port: u16| {
            ranges
                .iter()
                .flatten()
                .any(|range| range.has(protocol, port))
        };
        record.listed_ports().iter().any(|port| {
            among(&self.exposed, port.protocol, port.private)
                || port
                    .public
                    .is_some_and(|public| among(&self.published, port.protocol, public))
        })
    }

    fn matches(&self, record: &ContainerRecord) -> bool {
        let filters = &self.request.filters;
        let state = &record.state;
        self.is_in_scope(state.status)
            && filters.any("id", |id| record.id.starts_with(id))
            && self.has_name(record)
            && filters.any("status", |status| state.status.as_str() == status)
            && self.has_exit_code(state)
            && filters.labels(&record.config.labels)
            && self.is_created_in_range(record)
            && self.has_ancestor(record)
            && filters.any("network", |network| is_in_network(record, network))
            && filters.any("health", |health| state.health_text() == health)
            && self.has_port(record)
            && filters.any("volume", |volume| mounts_volume(record, volume))
            // No container is a task of Swarm.
            && !matches!(filters.flag("is-task"), Ok(Some(true)))
    }

    /// Stopped containers are listed only if the request asks for them.
    fn is_in_scope(&self, status: Status) -> bool {
        !self.only_running || status.is_running() || status == Status::Restarting
    }

    fn has_name(&self, record: &ContainerRecord) -> bool {
        self.names.as_ref().is_none_or(|names| {
            names.iter().any(|pattern| {
                pattern.is_match(&record.name) || pattern.is_match(&format!("/{}", record.name))
            })
        })
    }

    fn has_exit_code(&self, state: &ContainerState) -> bool {
        self.exited.is_empty()
            || state.status == Status::Exited && self.exited.contains(&state.exit_code)
    }

    fn is_created_in_range(&self, record: &ContainerRecord) -> bool {
        self.before.is_none_or(|time| record.created_at < time)
            && self.since.is_none_or(|time| record.created_at > time)
    }

    fn has_ancestor(&self, record: &ContainerRecord) -> bool {
        self.ancestors
            .as_ref()
            .is_none_or(|images| images.contains(&record.image))
    }
}

/// Returns whether the container has an endpoint in a network, given by name or a prefix of its id.
fn is_in_network(record: &ContainerRecord, network: &str) -> bool {
    record.networks.iter().any(|(name, endpoint)| {
        name == network || !network.is_empty() && endpoint.network_id.starts_with(network)
    })
}

/// Returns whether the container has a mount with this volume name, bind source or target.
fn mounts_volume(record: &ContainerRecord, volume: &str) -> bool {
    record.mounts.iter().any(|plan| {
        let has_source = match &plan.source {
            Source::Bind { path, .. } => path == volume,
            Source::Volume(used) => used.name == volume,
            Source::Image(_) | Source::Tmpfs => false,
        };
        has_source || plan.target == volume
    })
}
