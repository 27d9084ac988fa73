//! Verifies an instance while its engine runs: store, blobs, layers, directories, mounts, interfaces,
//! rules and cgroups against each other.
//!
//! What is found must still be so at a second look, a moment later: what was in progress is done by then.
//! Operations that take longer are known to the parts, which leave out what belongs to them.

use std::sync::Arc;
use std::time::Duration;

use whelk_runtime::cgroup::Cgroup;

use crate::Engine;
use crate::error::{Error, Result};
use crate::findings::{Finding, Findings};
use crate::images::{GoesOn, InUse};
use crate::workload::WORKLOAD_PREFIX;

/// How much is verified, and what is done about problems.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckRequest {
    /// Repair what can be repaired.
    pub repair: bool,
    /// Verify also the content of layers, which reads all of it.
    pub layers: bool,
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One line.
    pub text: String,
    /// What was done about it; an error text if that failed, and `None` if nothing was.
    pub repair: Option<std::result::Result<String, String>>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub containers: usize,
    pub images: usize,
    pub layers: usize,
    pub blobs: usize,
    /// Of the content whose digest was verified.
    pub bytes: u64,
    pub volumes: usize,
    pub networks: usize,
    pub problems: usize,
}

/// Time between the two looks. A copy of a record is written after about a second.
const PAUSE: Duration = Duration::from_millis(1500);

impl Engine {
    /// Verifies the instance. `tell` gets each problem; it and `is_wanted` return whether to go on, which is
    /// asked before each repair and while content is read.
    ///
    /// # Errors
    /// Returns a conflict if a check is running, and an error if the repairs cannot be written to disk.
    pub async fn check(
        self: &Arc<Self>,
        request: CheckRequest,
        tell: impl FnMut(Problem) -> bool + Send + 'static,
        is_wanted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Checked> {
        let turn = self.checking.clone().try_lock_owned();
        let turn =
            turn.map_err(|_| Error::conflict("a check of this engine is already running"))?;
        let engine = self.clone();
        let work = move || {
            let _turn = turn;
            engine.check_now(request, tell, &(Arc::new(is_wanted) as GoesOn))
        };
        let checked = tokio::task::spawn_blocking(work).await;
        let checked = checked.map_err(|error| Error::internal(error.to_string()))?;
        if request.repair {
            self.durability.wait().await?;
        }
        Ok(checked)
    }

    fn check_now(
        &self,
        request: CheckRequest,
        mut tell: impl FnMut(Problem) -> bool,
        goes_on: &GoesOn,
    ) -> Checked {
        let mut checked = Checked {
            containers: self.containers.all().len(),
            images: self.images.count(),
            volumes: self.volumes.count(),
            networks: self.networks.count(),
            ..Checked::default()
        };
        let mut problems = 0;
        let mut report = |findings: Findings| {
            let all_told = findings.into_vec().into_iter().all(|finding| {
                problems += 1;
                goes_on() && tell(finding.report(request.repair))
            });
            all_told && goes_on()
        };
        // Once: nothing in it is in progress, and changes of records wait for it.
        let mut of_store = Findings::default();
        self.durability.0.verify(&mut of_store);
        let first = self.look().problems();
        let is_wanted = report(of_store)
            && (first.is_empty() || {
                std::thread::sleep(PAUSE);
                let mut findings = self.look();
                findings.keep(&first);
                report(findings)
            });
        if is_wanted {
            let containers = self.containers.clone();
            let in_use: InUse = Arc::new(move || containers.layers_in_use());
            let verified = self
                .images
                .verify(request.layers, &in_use, goes_on, &mut report);
            checked.layers = verified.layers;
            checked.blobs = verified.blobs;
            checked.bytes = verified.bytes;
        }
        checked.problems = problems;
        checked
    }

    /// Looks at everything but the content of images.
    fn look(&self) -> Findings {
        let mut findings = Findings::default();
        self.durability.0.check(&mut findings);
        self.containers.check(&mut findings);
        self.images.check(&mut findings);
        self.volumes.check(&mut findings);
        self.networks.check(&mut findings);
        let workloads = self.workloads.check(&mut findings);
        findings.add_failure("run directories of workloads", workloads);
        let cgroups = self.check_cgroups(&mut findings);
        findings.add_failure("cgroups", cgroups);
        findings
    }

    /// Looks for cgroups below the instance's own that the engine has made, and that belong to nothing. Others
    /// are those of an administrator, who has prepared them for containers (`--cgroup-parent`).
    fn check_cgroups(&self, findings: &mut Findings) -> Result<()> {
        let parent = self.instance.cgroup_parent();
        let mut used = self.containers.cgroups();
        used.extend(self.workloads.cgroups());
        for name in Cgroup::at(&parent)?.children()? {
            let path = format!("{parent}/{name}");
            let workload = name.strip_prefix(WORKLOAD_PREFIX).map(str::to_owned);
            let is_ours = workload.is_some() || crate::containers::is_id(&name);
            // A container's cgroup may be the parent of others.
            let below = format!("{path}/");
            let is_used = |used: &String| *used == path || used.starts_with(&below);
            if !is_ours || used.iter().any(is_used) {
                continue;
            }
            let problem = format!("cgroup {path} belongs to no container");
            let (containers, workloads) = (self.containers.clone(), self.workloads.clone());
            findings.add(problem, move || match workload {
                Some(id) => workloads.end_unknown(&id),
                None => containers.remove_cgroup(&path),
            });
        }
        Ok(())
    }
}

impl Finding {
    fn report(self, is_repaired: bool) -> Problem {
        let repair = self.repair.filter(|_| is_repaired);
        Problem {
            text: self.problem,
            repair: repair.map(|repair| repair().map_err(|error| error.to_string())),
        }
    }
}
