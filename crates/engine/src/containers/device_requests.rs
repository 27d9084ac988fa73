//! Adds the devices that a container requests by name or by what they can do (`DeviceRequests`), to
//! its OCI configuration. They are found at each start, as in Docker.

use std::path::PathBuf;

use whelk_cdi::{Injected, Registry};
use whelk_runtime::spec::{Hook, Spec};

use super::Containers;
use crate::error::{Error, Result};
use crate::instance::find_program;
use crate::model::{DeviceRequest, HostConfig};
use crate::validate;

/// The program of NVIDIA's container toolkit that adds GPUs to a container without a CDI
/// specification.
const NVIDIA_HOOK: &str = "nvidia-container-runtime-hook";

/// The kind of GPUs in NVIDIA's CDI specifications.
const NVIDIA_KIND: &str = "nvidia.com/gpu";

/// How long the hook may run, in seconds: it may load the driver.
const HOOK_TIMEOUT: u64 = 60;

/// What a driver of NVIDIA's hook can be asked for. The hook itself knows all but the first two.
const NVIDIA_CAPABILITIES: [&str; 8] = [
    "gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display",
];

impl Containers {
    /// Adds the requested devices to a container's configuration.
    pub(super) fn add_requested_devices(
        &self,
        host: &HostConfig,
        spec: &mut Spec,
    ) -> Result<Injected> {
        let mut added = Injected::default();
        let requests = host.device_requests.as_deref().unwrap_or_default();
        if requests.is_empty() {
            return Ok(added);
        }
        let registry = self.cdi();
        for request in requests {
            let injected = self.add_request(request, &registry, spec)?;
            added.groups.extend(injected.groups);
            let paths = &injected.of_user;
            added
                .of_user
                .retain(|node| paths.iter().all(|other| other.path != node.path));
            added.of_user.extend(injected.of_user);
        }
        Ok(added)
    }

    fn add_request(
        &self,
        request: &DeviceRequest,
        registry: &Registry,
        spec: &mut Spec,
    ) -> Result<Injected> {
        let ids = request.device_ids.as_deref().unwrap_or_default();
        match request.driver.as_str() {
            "cdi" => {
                if request.count != 0 {
                    return Err(Error::invalid("unexpected count in CDI device request"));
                }
                if request
                    .options
                    .as_ref()
                    .is_some_and(|options| !options.is_empty())
                {
                    return Err(Error::invalid("unexpected options in CDI device request"));
                }
                if ids.is_empty() {
                    return Ok(Injected::default());
                }
                self.inject(registry, ids, spec)
            }
            "" | "nvidia" => match selected(request) {
                Some(capabilities) => self.add_gpus(request, registry, capabilities, spec),
                None => Err(no_driver(request)),
            },
            _ => Err(no_driver(request)),
        }
    }

    /// Adds GPUs of NVIDIA: by their CDI specification, or else by the toolkit's hook.
    fn add_gpus(
        &self,
        request: &DeviceRequest,
        registry: &Registry,
        capabilities: &[String],
        spec: &mut Spec,
    ) -> Result<Injected> {
        let ids = request.device_ids.as_deref().unwrap_or_default();
        let has_spec = registry.devices().any(|name| {
            name.strip_prefix(NVIDIA_KIND)
                .is_some_and(|rest| rest.starts_with('='))
        });
        let hook = if has_spec {
            None
        } else {
            find_program(NVIDIA_HOOK)
        };
        if !has_spec && hook.is_none() {
            return Err(no_driver(request));
        }
        if request.count != 0 && !ids.is_empty() {
            return Err(Error::internal(
                "cannot set both Count and DeviceIDs on device request",
            ));
        }
        // Records of earlier versions may have any number.
        validate::check_device_count(request)?;
        let wanted = match request.count {
            _ if !ids.is_empty() => ids.to_vec(),
            i64::MIN..0 => vec!["all".to_owned()],
            count => (0..count).map(|number| number.to_string()).collect(),
        };
        match hook {
            Some(hook) => {
                add_hook(hook, &wanted, capabilities, spec);
                Ok(Injected::default())
            }
            None => {
                let names: Vec<String> = wanted
                    .iter()
                    .map(|name| format!("{NVIDIA_KIND}={name}"))
                    .collect();
                self.inject(registry, &names, spec)
            }
        }
    }

    fn inject(&self, registry: &Registry, names: &[String], spec: &mut Spec) -> Result<Injected> {
        const FAILED: &str = "CDI device injection failed";
        if self.instance.cdi_directories.is_empty() {
            return Err(Error::internal(format!(
                "{FAILED}: no CDI specification directories specified"
            )));
        }
        let injected = registry.inject(names, spec);
        injected.map_err(|error| {
            for problem in registry.errors() {
                tracing::warn!("CDI: {}: {}", problem.path.display(), problem.text);
            }
            Error::internal(format!("{FAILED}: {error}"))
        })
    }

    /// Reads the CDI specifications.
    pub(crate) fn cdi(&self) -> Registry {
        Registry::read(&self.instance.cdi_directories)
    }
}

/// Returns the first alternative of capabilities that NVIDIA's driver has.
fn selected(request: &DeviceRequest) -> Option<&[String]> {
    let has = |wanted: &String| NVIDIA_CAPABILITIES.contains(&wanted.as_str());
    let alternatives = request.capabilities.iter().flatten();
    alternatives
        .map(Vec::as_slice)
        .find(|alternative| alternative.iter().all(has))
}

fn no_driver(request: &DeviceRequest) -> Error {
    let alternatives: Vec<String> = request
        .capabilities
        .iter()
        .flatten()
        .map(|alternative| format!("[{}]", alternative.join(" ")))
        .collect();
    Error::invalid(format!(
        "could not select device driver {:?} with capabilities: [{}]",
        request.driver,
        alternatives.join(" ")
    ))
}

/// Adds NVIDIA's hook, which reads from the container's environment which GPUs it gets.
fn add_hook(path: PathBuf, wanted: &[String], capabilities: &[String], spec: &mut Spec) {
    let visible = if wanted.is_empty() {
        "void".to_owned()
    } else {
        wanted.join(",")
    };
    let of_driver: Vec<&str> = capabilities
        .iter()
        .map(String::as_str)
        .filter(|name| !matches!(*name, "gpu" | "nvidia"))
        .collect();
    if let Some(process) = &mut spec.process {
        process
            .env
            .push(format!("NVIDIA_VISIBLE_DEVICES={visible}"));
        if !of_driver.is_empty() {
            let of_driver = of_driver.join(",");
            process
                .env
                .push(format!("NVIDIA_DRIVER_CAPABILITIES={of_driver}"));
        }
    }
    let env = std::env::vars_os().filter_map(|(key, value)| {
        let (key, value) = (key.into_string().ok()?, value.into_string().ok()?);
        Some(format!("{key}={value}"))
    });
    spec.hooks.prestart.push(Hook {
        path,
        args: vec![NVIDIA_HOOK.into(), "prestart".into()],
        env: env.collect(),
        timeout: Some(HOOK_TIMEOUT),
    });
}
