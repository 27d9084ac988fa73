//! Removes everything that an engine has created, and checks for leftovers.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Engine;
use super::entries;
use crate::{PATIENCE, happens, http, leftovers};

/// How long an engine may take to stop on SIGTERM.
const STOP: Duration = Duration::from_secs(30);

/// How long an engine may take to delete files. It makes pauses, which are long on a busy machine.
const DELETE: Duration = Duration::from_secs(180);

impl Engine {
    /// Removes all containers, whatever their state.
    pub fn remove_containers(&self) -> Result<(), String> {
        let request = |method: &str, path: &str| {
            http::request(&self.socket(), method, path, &[], b"")
                .map_err(|error| format!("{method} {path}: {error}"))
        };
        let answer = request("GET", "/containers/json?all=1")?.json();
        for container in answer
            .as_array()
            .ok_or_else(|| format!("the list of containers is {answer}"))?
        {
            let id = container["Id"].as_str().unwrap_or_default();
            let response = request("DELETE", &format!("/containers/{id}?force=1&v=1"))?;
            // A container with --rm may be removed concurrently.
            if !matches!(response.status, 204 | 404 | 409) {
                return Err(format!(
                    "remove container {id}: {} {}",
                    response.status,
                    response.text()
                ));
            }
        }
        let empty = || {
            request("GET", "/containers/json?all=1")
                .is_ok_and(|response| response.json().as_array().is_some_and(Vec::is_empty))
        };
        if happens(PATIENCE, empty) {
            Ok(())
        } else {
            Err("containers were not removed".into())
        }
    }

    /// Removes everything and returns a list of unexpected leftovers.
    pub(super) fn tear_down(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.served.load(Ordering::Relaxed) {
            problems.extend(self.stop().err());
            problems.extend(leftovers::end(&self.name, &self.dir));
            return problems;
        }
        let ended = self
            .daemon()
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            problems.push(format!("the engine exited unexpectedly: {status}"));
        }
        // A test may end with the engine killed.
        if ended.is_some() || self.daemon().is_none() {
            problems.extend(self.launch().err());
        }
        problems.extend(self.remove_containers().err());
        problems.extend(self.check_interfaces().err());
        for directory in [
            self.root().join("containers"),
            self.root().join("tmp"),
            self.root().join("trash"),
            self.run().join("containers"),
            self.run().join("netns"),
        ] {
            let patience = match directory.ends_with("trash") {
                true => DELETE,
                false => STOP,
            };
            if !happens(patience, || entries(&directory).is_empty()) {
                problems.push(format!(
                    "files in {}: {:?}",
                    directory.display(),
                    entries(&directory)
                ));
            }
        }
        problems.extend(self.stop().err());
        problems.extend(leftovers::end(&self.name, &self.dir));
        problems
    }

    /// Returns the default network's bridge, whose name has the prefix of all interfaces of the
    /// engine.
    pub fn bridge(&self) -> String {
        self.get("/networks/bridge")["Options"]["com.docker.network.bridge.name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Returns this engine's interfaces on the host, without the default bridge and pre-created
    /// ones.
    pub fn interfaces(&self) -> Vec<String> {
        let bridge = self.bridge();
        let prefix = bridge.strip_suffix('0').unwrap_or(&bridge);
        let all = Path::new("/sys/class/net");
        let note =
            |name: &String| fs::read_to_string(all.join(name).join("ifalias")).unwrap_or_default();
        let own = entries(all)
            .into_iter()
            .filter(|name| name.starts_with(prefix) && *name != bridge);
        own.filter(|name| !note(name).ends_with(" warm pool\n"))
            .collect()
    }

    /// Checks that no interfaces remain without containers and networks.
    fn check_interfaces(&self) -> Result<(), String> {
        let answer = http::request(&self.socket(), "POST", "/networks/prune", &[], b"")
            .map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("prune networks: {}", answer.text()));
        }
        let gone = happens(STOP, || self.interfaces().is_empty());
        if gone {
            Ok(())
        } else {
            Err(format!("interfaces: {:?}", self.interfaces()))
        }
    }

    pub(super) fn stop(&self) -> Result<(), String> {
        let Some(mut child) = self.daemon().take() else {
            return Ok(());
        };
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        if happens(STOP, || !matches!(child.try_wait(), Ok(None))) {
            return Ok(());
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(format!("the engine did not end within {STOP:?} of SIGTERM"))
    }
}
