//! Changing a container's limits and restart policy, also while it runs; and its name.

use serde::Deserialize;
use whelk_shim::protocol::Request;

use super::create::name_taken;
use super::stop::expect_done;
use super::{Container, Containers, start};
use crate::error::{Error, Result};
use crate::model::{HostConfig, RestartPolicy};
use crate::shims::ask;
use crate::{spec, validate};

/// What may change. A field left out stays as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
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
    pub restart_policy: RestartPolicy,
}

impl UpdateRequest {
    fn apply(&self, host: &mut HostConfig) {
        let set = |field: &mut i64, value: i64| {
            if value != 0 {
                *field = value;
            }
        };
        set(&mut host.cpu_shares, self.cpu_shares);
        if self.nano_cpus != 0 {
            (host.cpu_period, host.cpu_quota) = (0, 0);
        } else if self.cpu_period != 0 || self.cpu_quota != 0 {
            host.nano_cpus = 0;
        }
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
        for (field, value) in [(&mut host.cpuset_cpus, &self.cpuset_cpus), (&mut host.cpuset_mems, &self.cpuset_mems)] {
            if !value.is_empty() {
                field.clone_from(value);
            }
        }
        if self.pids_limit.is_some() {
            host.pids_limit = self.pids_limit;
        }
        if !self.restart_policy.name.is_empty() {
            host.restart_policy = self.restart_policy.clone();
        }
    }
}

impl Containers {
    /// # Errors
    /// Limits that make no sense together; a limit that the kernel refuses. The container stays as it was then.
    pub async fn update(&self, name: &str, request: UpdateRequest) -> Result<Vec<String>> {
        let container = self.find(name)?;
        let _operation = container.operation.lock().await;
        let mut record = container.record().clone();
        if record.state.status == crate::model::Status::Removing || record.state.status == crate::model::Status::Dead {
            return Err(Error::conflict(format!(
                "Cannot update container {}: container is marked for removal and cannot be \"update\"",
                container.id
            )));
        }
        request.apply(&mut record.host);
        if request.memory != 0 && request.memory_swap == 0 && record.host.memory_swap > 0 && record.host.memory > record.host.memory_swap {
            return Err(Error::conflict(format!(
                "Cannot update container {}: Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
                container.id
            )));
        }
        let given = record.host.clone();
        let warnings = validate::settings(&mut record.config.clone(), &mut record.host, &self.host)?;
        // Only what an update may touch was checked anew; the rest keeps its exact form.
        record.host = HostConfig {
            blkio_weight: record.host.blkio_weight,
            pids_limit: request.pids_limit.map_or(record.host.pids_limit, Some),
            memory_swap: record.host.memory_swap,
            ..given
        };
        if record.state.status.is_running() {
            let mut limits = spec::limits(&record.host, &start::device_number)?;
            if let Some(limit) = request.pids_limit {
                limits.pids = Some(whelk_runtime::spec::Pids { limit });
            }
            let reply = ask(&self.instance, &container.id, &Request::Update(Box::new(limits))).await?.0;
            if let Err(error) = expect_done(reply, &format!("Cannot update container {}", container.id)) {
                // The kernel takes limits one by one: those before the one that it refused are put back.
                let old = spec::limits(&container.record().host.clone(), &start::device_number)?;
                let reply = ask(&self.instance, &container.id, &Request::Update(Box::new(old))).await?.0;
                expect_done(reply, &format!("{error}; restore the limits of container {}", container.id))?;
                return Err(error);
            }
        }
        container.record().host = record.host;
        self.save(&container)?;
        self.publish(&container, "update", &[]);
        Ok(warnings)
    }

    /// # Errors
    /// A name that is none, or that is taken.
    pub async fn rename(&self, name: &str, new_name: &str) -> Result<()> {
        let container = self.find(name)?;
        if new_name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        let new_name = validate::name(new_name)
            .map_err(|_| {
                Error::invalid(format!(
                    "Error when allocating new name: Invalid container name (/{}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
                    new_name.trim_start_matches('/')
                ))
            })?
            .to_owned();
        let _operation = container.operation.lock().await;
        let old_name = container.name();
        if old_name == new_name {
            return Err(Error::invalid("Renaming a container with the same name as its current name"));
        }
        {
            let mut index = self.index.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(owner) = index.by_name.get(&new_name) {
                return Err(Error::conflict(format!("Error when allocating new name: {}", name_taken(&new_name, owner))));
            }
            index.by_name.insert(new_name.clone(), container.id.clone());
        }
        container.record().name.clone_from(&new_name);
        self.rename_in_networks(&container);
        let saved = self.save(&container);
        let mut index = self.index.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if saved.is_err() {
            index.by_name.remove(&new_name);
            drop(index);
            container.record().name = old_name;
            self.rename_in_networks(&container);
            return saved;
        }
        index.by_name.remove(&old_name);
        drop(index);
        self.publish(&container, "rename", &[("oldName", format!("/{old_name}"))]);
        Ok(())
    }

    fn rename_in_networks(&self, container: &Container) {
        let _networking = container.networking();
        let mut renamed = container.record().clone();
        self.networks.rename(&mut renamed);
        container.record().networks = renamed.networks;
    }
}
