//! Updating a container's limits and restart policy, also while it runs.

use std::sync::Arc;

use whelk_shim::protocol::{Reply, Request};

use super::devices::device_number;
use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::model::{
    DeviceMapping, DeviceRequest, HostConfig, RestartPolicy, ThrottleDevice, Ulimit, WeightDevice,
};
use crate::shims::expect_done;
use crate::{spec, validate};

/// The settings to update. Zero, empty and absent fields are left unchanged, except that an empty list
/// removes the limits of all devices.
#[derive(Clone, Debug, Default)]
pub struct UpdateRequest {
    pub cpu_shares: i64,
    pub memory: i64,
    pub nano_cpus: i64,
    pub blkio_weight: u16,
    pub blkio_weight_device: Option<Vec<WeightDevice>>,
    pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
    pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
    pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
    pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpu_realtime_period: i64,
    pub cpu_realtime_runtime: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub memory_reservation: i64,
    pub memory_swap: i64,
    pub pids_limit: Option<i64>,
    pub restart_policy: Option<RestartPolicy>,
    pub fixed: FixedResources,
}

/// The resources that a client may send, but that an update cannot change.
#[derive(Clone, Debug, Default)]
pub struct FixedResources {
    pub cgroup_parent: String,
    pub devices: Option<Vec<DeviceMapping>>,
    pub device_cgroup_rules: Option<Vec<String>>,
    pub device_requests: Option<Vec<DeviceRequest>>,
    pub memory_swappiness: Option<i64>,
    pub oom_kill_disable: Option<bool>,
    pub ulimits: Option<Vec<Ulimit>>,
    pub init: Option<bool>,
    pub cpu_count: i64,
    pub cpu_percent: i64,
    pub io_maximum_iops: u64,
    pub io_maximum_bandwidth: u64,
}

impl FixedResources {
    /// Returns the first field that is not as in the container's settings.
    fn changed(&self, host: &HostConfig) -> Option<&'static str> {
        fn differs<T: PartialEq>(given: Option<&[T]>, current: Option<&[T]>) -> bool {
            let given = given.unwrap_or_default();
            !given.is_empty() && given != current.unwrap_or_default()
        }
        macro_rules! differs {
            ($field:ident) => {
                differs(self.$field.as_deref(), host.$field.as_deref())
            };
        }
        // -1 stands for the host's swappiness.
        let swappiness = self.memory_swappiness.filter(|value| *value != -1);
        let fields = [
            (
                "CgroupParent",
                !self.cgroup_parent.is_empty() && self.cgroup_parent != host.cgroup_parent,
            ),
            ("Devices", differs!(devices)),
            ("DeviceCgroupRules", differs!(device_cgroup_rules)),
            ("DeviceRequests", differs!(device_requests)),
            (
                "MemorySwappiness",
                swappiness.is_some() && swappiness != host.memory_swappiness,
            ),
            (
                "OomKillDisable",
                self.oom_kill_disable
                    .is_some_and(|disable| disable != host.oom_kill_disable.unwrap_or(false)),
            ),
            ("Ulimits", differs!(ulimits)),
            ("Init", self.init.is_some() && self.init != host.init),
            // Of Windows: no container here has them.
            ("CpuCount", self.cpu_count != 0),
            ("CpuPercent", self.cpu_percent != 0),
            ("IOMaximumIOps", self.io_maximum_iops != 0),
            ("IOMaximumBandwidth", self.io_maximum_bandwidth != 0),
        ];
        let changed = fields.into_iter().find(|(_, is_changed)| *is_changed);
        changed.map(|(name, _)| name)
    }
}

impl UpdateRequest {
    /// Applies the update to a container's settings.
    fn apply(&self, host: &mut HostConfig) {
        let set = |field: &mut i64, value: i64| {
            if value != 0 {
                *field = value;
            }
        };
        set(&mut host.cpu_shares, self.cpu_shares);
        set(&mut host.nano_cpus, self.nano_cpus);
        set(&mut host.cpu_period, self.cpu_period);
        set(&mut host.cpu_quota, self.cpu_quota);
        set(&mut host.cpu_realtime_period, self.cpu_realtime_period);
        set(&mut host.cpu_realtime_runtime, self.cpu_realtime_runtime);
        set(&mut host.memory, self.memory);
        set(&mut host.memory_swap, self.memory_swap);
        set(&mut host.memory_reservation, self.memory_reservation);
        if self.blkio_weight != 0 {
            host.blkio_weight = self.blkio_weight;
        }
        if let Some(weights) = &self.blkio_weight_device {
            host.blkio_weight_device = Some(weights.clone());
        }
        for (field, value) in [
            (&mut host.blkio_device_read_bps, &self.blkio_device_read_bps),
            (
                &mut host.blkio_device_write_bps,
                &self.blkio_device_write_bps,
            ),
            (
                &mut host.blkio_device_read_iops,
                &self.blkio_device_read_iops,
            ),
            (
                &mut host.blkio_device_write_iops,
                &self.blkio_device_write_iops,
            ),
        ] {
            if value.is_some() {
                field.clone_from(value);
            }
        }
        for (field, value) in [
            (&mut host.cpuset_cpus, &self.cpuset_cpus),
            (&mut host.cpuset_mems, &self.cpuset_mems),
        ] {
            if !value.is_empty() {
                field.clone_from(value);
            }
        }
        if let Some(limit) = self.pids_limit {
            // A negative number means no limit, which `inspect` shows as 0.
            host.pids_limit = Some(limit.max(0));
        }
        if let Some(policy) = self.restart_policy {
            host.restart_policy = policy;
        }
    }
}

impl UpdateRequest {
    /// Checks what cannot be updated; the error texts are Docker's. `NanoCpus` is an alternative to
    /// `CpuPeriod` and `CpuQuota`: whichever was set first excludes the other.
    fn check(&self, host: &HostConfig) -> Result<()> {
        let restarts = |policy| policy != RestartPolicy::No;
        if host.auto_remove && self.restart_policy.is_some_and(restarts) {
            return Err(Error::conflict(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        if let Some(field) = self.fixed.changed(host) {
            return Err(Error::conflict(format!(
                "{field} cannot be changed after the container was created"
            )));
        }
        let conflicts = [
            (
                self.nano_cpus > 0 && host.cpu_period > 0,
                "Nano CPUs",
                "CPU Period",
            ),
            (
                self.nano_cpus > 0 && host.cpu_quota > 0,
                "Nano CPUs",
                "CPU Quota",
            ),
            (
                self.cpu_period > 0 && host.nano_cpus > 0,
                "CPU Period",
                "NanoCPUs",
            ),
            (
                self.cpu_quota > 0 && host.nano_cpus > 0,
                "CPU Quota",
                "NanoCPUs",
            ),
        ];
        match conflicts.iter().find(|(found, _, _)| *found) {
            Some((_, what, other)) => Err(Error::conflict(format!(
                "Conflicting options: {what} cannot be updated as {other} has already been set"
            ))),
            None => Ok(()),
        }
    }
}

impl Containers {
    /// Updates a container, and returns warnings for the user.
    ///
    /// # Errors
    /// Returns an error if the limits are invalid, or if the kernel refuses one. The container is
    /// left unchanged then.
    pub async fn update(
        self: &Arc<Self>,
        name: &str,
        request: UpdateRequest,
    ) -> Result<Vec<String>> {
        let (containers, name) = (self.clone(), name.to_owned());
        to_its_end(async move { containers.update_now(&name, request).await }).await
    }

    async fn update_now(&self, name: &str, request: UpdateRequest) -> Result<Vec<String>> {
        let container = self.find(name)?;
        let _operation = container.lock_operation(name).await?;
        let mut record = container.record().clone();
        if record.state.status == crate::model::Status::Removing
            || record.state.status == crate::model::Status::Dead
        {
            return Err(Error::conflict(format!(
                "Cannot update container {}: container is marked for removal and cannot be \"update\"",
                container.id
            )));
        }
        request.check(&record.host).map_err(|error| match error {
            Error::Conflict(_) => {
                error.prefixed(&format!("Cannot update container {}", container.id))
            }
            error => error,
        })?;
        request.apply(&mut record.host);
        if request.memory != 0
            && request.memory_swap == 0
            && record.host.memory_swap > 0
            && record.host.memory > record.host.memory_swap
        {
            return Err(Error::conflict(format!(
                "Cannot update container {}: Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
                container.id
            )));
        }
        let given = record.host.clone();
        let mut warnings = Vec::new();
        validate::limits(&mut record.host, &self.host, &mut warnings)?;
        // The other fields keep the form in which they were given.
        record.host = HostConfig {
            blkio_weight: record.host.blkio_weight,
            blkio_weight_device: record.host.blkio_weight_device,
            pids_limit: given.pids_limit,
            memory_swap: record.host.memory_swap,
            ..given
        };
        if record.state.status.is_running() {
            self.apply_limits(&container, &record.host, request.pids_limit)
                .await?;
        }
        container.record().host = record.host;
        self.save_with_copy(&container)?;
        self.publish(&container, "update", &[]);
        Ok(warnings)
    }

    /// Applies new limits to a running container. If one is refused, the others are restored.
    async fn apply_limits(
        &self,
        container: &Container,
        new: &HostConfig,
        pids_limit: Option<i64>,
    ) -> Result<()> {
        let failure = format!("Cannot update container {}", container.id);
        let old = container.record().host.clone();
        let mut limits = spec::changed_limits(&old, new, &device_number)
            .map_err(|error| error.prefixed(&failure))?;
        if let Some(limit) = pids_limit {
            limits.pids = Some(whelk_runtime::spec::Pids { limit });
        }
        let update = Request::Update(Box::new(limits));
        let reply = match self.request_shim(container, &update).await {
            // It has ended meanwhile: the limits apply to its next run.
            Err(Error::Conflict(_)) => Reply::Done,
            reply => reply?,
        };
        let Err(error) = expect_done(reply, &failure) else {
            return Ok(());
        };
        // Limits are set one by one: those before the refused one are restored.
        let limits = spec::changed_limits(new, &old, &device_number)?;
        let update = Request::Update(Box::new(limits));
        let (reply, _) = container.workload.request(&update).await?;
        let failure = format!("{error}; restore the limits of container {}", container.id);
        expect_done(reply, &failure)?;
        Err(error)
    }
}
