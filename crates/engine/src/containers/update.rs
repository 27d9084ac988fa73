//! Changing a container's limits and restart policy, also while it runs; and its name.

use serde::Deserialize;
use whelk_shim::protocol::{Reply, Request};

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
            // Any other number stands for no limit, which is shown as 0.
            host.pids_limit = Some(limit.max(0));
        }
        if !self.restart_policy.name.is_empty() {
            host.restart_policy = self.restart_policy.clone();
        }
    }
}

impl UpdateRequest {
    /// Checks what may not change, in Docker's words. Billionths of a processor become a period and
    /// a quota, so that whichever was set first keeps the other from being set.
    fn check(&self, host: &HostConfig) -> Result<()> {
        if !self.restart_policy.name.is_empty() {
            validate::restart_policy(&self.restart_policy)?;
            if host.auto_remove && self.restart_policy.name != "no" {
                return Err(Error::conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container",
                ));
            }
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
    /// # Errors
    /// Limits that make no sense together; a limit that the kernel refuses. The container stays as
    /// it was then.
    pub async fn update(&self, name: &str, request: UpdateRequest) -> Result<Vec<String>> {
        let container = self.find(name)?;
        let _operation = container.turn(name).await?;
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
            let mut limits = spec::limits(&record.host, &start::device_number)?;
            if let Some(limit) = request.pids_limit {
                limits.pids = Some(whelk_runtime::spec::Pids { limit });
            }
            let reply = match self
                .ask(&container, &Request::Update(Box::new(limits)))
                .await
            {
                // It has ended meanwhile: the limits are those of its next run.
                Err(Error::Conflict(_)) => Reply::Done,
                reply => reply?,
            };
            if let Err(error) =
                expect_done(reply, &format!("Cannot update container {}", container.id))
            {
                // The kernel takes limits one by one: those before the one that it refused are put
                // back.
                let old = spec::limits(&container.record().host.clone(), &start::device_number)?;
                let reply = ask(
                    &self.instance,
                    &container.id,
                    &Request::Update(Box::new(old)),
                )
                .await?
                .0;
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
        let _operation = container.turn(name).await?;
        let old_name = container.name();
        if old_name == new_name {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        {
            let mut index = self
                .index
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(owner) = index.by_name.get(&new_name) {
                return Err(Error::conflict(format!(
                    "Error when allocating new name: {}",
                    name_taken(&new_name, owner)
                )));
            }
            index.by_name.insert(new_name.clone(), container.id.clone());
        }
        container.record().name.clone_from(&new_name);
        self.rename_in_networks(&container);
        let saved = self.save_with_copy(&container);
        let renamed = {
            let mut index = self
                .index
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // One that is removed at its end may be gone by now, under either of its names.
            let is_there = index.by_id.contains_key(&container.id);
            let renamed = saved.and_then(|()| {
                if is_there {
                    Ok(())
                } else {
                    Err(Error::no_such_container(name))
                }
            });
            let kept = if renamed.is_ok() {
                Some(&new_name)
            } else {
                Some(&old_name).filter(|_| is_there)
            };
            for unused in [&old_name, &new_name]
                .into_iter()
                .filter(|name| Some(*name) != kept)
            {
                if index.by_name.get(unused) == Some(&container.id) {
                    index.by_name.remove(unused);
                }
            }
            renamed
        };
        if renamed.is_err() {
            container.record().name = old_name;
            self.rename_in_networks(&container);
            return renamed;
        }
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
