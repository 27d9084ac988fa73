//! Workloads that have no record.

use std::sync::Arc;

use whelk_runtime::spec::Spec;
use whelk_runtime::user::UserRequest;
use whelk_runtime::{Overlay, Rootfs};
use whelk_shim::logs::LogConfig;
use whelk_sys::Scratch;
use whelk_sys::fs;
use whelk_text::signal;

use super::{FakeHost, eventually, on_fake_host};
use crate::error::Error;
use crate::shims::fake::Behaviour;
use crate::workload::{Bundle, WorkloadNetwork, Workloads};

fn bundle(id: &str) -> Bundle {
    Bundle {
        id: id.into(),
        spec: Spec::default(),
        cgroup_parent: String::new(),
        rootfs: Rootfs::Overlay(Overlay {
            lower: Vec::new(),
            upper: "/nonexistent".into(),
            work: "/nonexistent".into(),
            volatile: true,
        }),
        layers: Vec::new(),
        user: UserRequest::default(),
        filter: None,
        log: LogConfig::default(),
        stdin: false,
        attached: Vec::new(),
        nodes_of_user: Vec::new(),
        network: WorkloadNetwork::None,
    }
}

impl FakeHost {
    fn workloads(&self) -> Workloads {
        Workloads::new(self.instance.clone(), self.shims.pool().unwrap())
    }

    fn has_workload(&self, id: &str) -> bool {
        fs::exists(self.instance.workload_dir(id))
    }
}

#[test]
fn a_workload_is_killed_by_others_while_one_waits_for_it() {
    on_fake_host(async |host| {
        let workloads = host.workloads();
        let started = Arc::new(workloads.start(bundle("one")).await.unwrap());
        let wait = tokio::spawn({
            let started = started.clone();
            async move { started.wait().await }
        });
        started.kill(signal::TERM).await.unwrap();
        assert_eq!(wait.await.unwrap().code, 128 + signal::TERM);
        assert!(!host.has_workload("one"));
        // A signal to a workload that has ended does not reach another one with the same id.
        let next = workloads.start(bundle("one")).await.unwrap();
        started.kill(signal::KILL).await.unwrap();
        assert_eq!(started.wait().await.code, 128 + signal::TERM);
        assert!(host.has_workload("one"));
        host.shims.exit("one", 3);
        assert_eq!(next.wait().await.code, 3);
    });
}

#[test]
fn a_workload_that_nobody_waits_for_is_killed() {
    on_fake_host(async |host| {
        let workloads = host.workloads();
        drop(workloads.start(bundle("one")).await.unwrap());
        eventually("nothing is left", || !host.has_workload("one")).await;
    });
}

#[test]
fn an_id_is_a_file_name_in_use_by_one_workload() {
    on_fake_host(async |host| {
        let workloads = host.workloads();
        let started = workloads.start(bundle("one")).await.unwrap();
        let error = workloads.start(bundle("one")).await.unwrap_err();
        assert!(
            matches!(&error, Error::Conflict(text) if text == "a workload with the id one is running"),
            "{error}"
        );
        assert!(host.has_workload("one"));
        for id in ["", ".", "..", "a/b", "/a", "a/"] {
            let error = workloads.start(bundle(id)).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("invalid id of a workload: {id:?}: not a file name")
            );
        }
        started.kill(signal::KILL).await.unwrap();
        started.wait().await;
        let refused = whelk_runtime::Error::CommandNotFound("no such file".into());
        host.shims.expect(Behaviour::Refuse(refused));
        let error = workloads.start(bundle("one")).await.unwrap_err();
        assert_eq!(error.to_string(), "no such file");
        assert!(!host.has_workload("one"));
        workloads.start(bundle("one")).await.unwrap();
    });
}

#[test]
fn the_next_engine_kills_workloads_and_keeps_their_ids_until_then() {
    on_fake_host(async |host| {
        let started = host.workloads().start(bundle("one")).await.unwrap();
        let workloads = host.workloads();
        let held = host.shims.hold_signals().await;
        workloads.kill_left().unwrap();
        let error = workloads.start(bundle("one")).await.unwrap_err();
        assert!(matches!(error, Error::Conflict(_)), "{error}");
        drop(held);
        assert_eq!(started.wait().await.code, 128 + signal::KILL);
        eventually("nothing is left", || !host.has_workload("one")).await;
        let directory: Scratch = Scratch::at(host.instance.workload_dir("two")).unwrap();
        workloads.kill_left().unwrap();
        eventually("it is removed", || !fs::exists(directory.path())).await;
    });
}

#[test]
fn the_id_of_a_workload_is_in_use_until_its_processes_are_killed() {
    on_fake_host(async |host| {
        let mut instance = host.instance.clone();
        // No process of a cgroup with this path can be found.
        instance.name = "..".into();
        let workloads = Workloads::new(instance, host.shims.pool().unwrap());
        let started = workloads.start(bundle("one")).await.unwrap();
        host.shims.kill("one").await;
        // Its end is known as soon as a signal for it succeeds.
        let begin = std::time::Instant::now();
        while started.kill(signal::TERM).await.is_err() {
            assert!(begin.elapsed() < super::PATIENCE);
        }
        let wait = tokio::time::timeout(std::time::Duration::from_millis(1500), started.wait());
        assert!(wait.await.is_err(), "its processes may be left");
        let error = workloads.start(bundle("one")).await.unwrap_err();
        assert!(matches!(error, Error::Conflict(_)), "{error}");
        assert!(host.has_workload("one"));
    });
}
