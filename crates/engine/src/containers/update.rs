//! Updating a container's limits and restart policy, also while it runs.

use std::sync::Arc;

use whelk_shim::protocol::{Reply, Request};

use super::devices::device_number;
use super::{Containers, to_its_end};
use crate::error::{Error, Result};
use crate::model::{HostConfig, RestartPolicy};
use crate::shims::expect_done;
use crate::{spec, validate};

/// The settings to update. Zero, empty and absent fields are left unchanged.
#[derive(Clone, Debug, Default)]
pub struct UpdateRequest {
    pub cpu_shares: i64,
    pub memory: i64,
    pub nano_cpus: i64,
    pub blkio_weight: u16,
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
            pids_limit: given.pids_limit,
            memory_swap: record.host.memory_swap,
            ..given
        };
        if record.state.status.is_running() {
            let mut limits = spec::limits(&record.host, &device_number)?;
            if let Some(limit) = request.pids_limit {
                limits.pids = Some(whelk_runtime::spec::Pids { limit });
            }
            let reply = match self
                .request_shim(&container, &Request::Update(Box::new(limits)))
                .await
            {
                // It has ended meanwhile: the limits apply to its next run.
                Err(Error::Conflict(_)) => Reply::Done,
                reply => reply?,
            };
            if let Err(error) =
                expect_done(reply, &format!("Cannot update container {}", container.id))
            {
                // Limits are set one by one: those before the refused one are restored.
                let old = spec::limits(&container.record().host.clone(), &device_number)?;
                let request = Request::Update(Box::new(old));
                let (reply, _) = container.workload.request(&request).await?;
                expect_done(
                    reply,
                    &format!("{error}; restore the limits of container {}", container.id),
                )?;
                return Err(error);
            }
        }
        container.record().host = record.host;
        self.save_with_copy(&container)?;
        self.publish(&container, "update", &[]);
        Ok(warnings)
    }
}
