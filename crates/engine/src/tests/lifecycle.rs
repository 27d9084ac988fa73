//! The life of a container from its creation to its removal.

use std::task::{Context, Waker};

use whelk_text::signal;

use super::{eventually, on_fake_host, request, with_volume};
use crate::containers::{ExecConfig, ExecStart, RemoveRequest, WaitCondition};
use crate::error::Error;
use crate::model::Status;

#[test]
fn a_container_is_created_runs_ends_and_is_removed() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.create(request("one")).await.unwrap();
        assert_eq!(container.status(), Status::Created);
        engine.containers.start("one").await.unwrap();
        assert_eq!(container.status(), Status::Running);
        let again = engine.containers.start("one").await.unwrap_err();
        assert!(matches!(again, Error::NotModified(_)), "{again}");
        let wait = engine.containers.wait("one", WaitCondition::NotRunning);
        host.shims.exit(&container.id, 7);
        assert_eq!(wait.unwrap().await.exit_code, 7);
        assert_eq!(container.status(), Status::Exited);
        let state = container.state();
        assert_eq!((state.exit_code, state.pid), (7, 0));
        assert!(state.finished_at >= state.started_at);
        let remove = engine.containers.remove("one", RemoveRequest::default());
        remove.await.unwrap();
        let error = engine.containers.find("one").unwrap_err();
        assert_eq!(error.to_string(), "No such container: one");
        assert_eq!(
            engine.actions(&container.id),
            ["create", "start", "die", "destroy"]
        );
        assert!(!engine.has_run_directory(&container.id));
    });
}

#[test]
fn a_stop_sends_the_stop_signal_and_then_sigkill() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let polite = engine.run(request("polite")).await;
        engine.containers.stop("polite", None, None).await.unwrap();
        assert_eq!(polite.state().exit_code, 128 + signal::TERM);
        assert_eq!(
            engine.actions(&polite.id),
            ["create", "start", "kill", "die", "stop"]
        );
        let again = engine.containers.stop("polite", None, None).await;
        assert!(matches!(again, Err(Error::NotModified(_))), "{again:?}");
        host.shims.ignore(signal::TERM);
        let stubborn = engine.run(request("stubborn")).await;
        engine
            .containers
            .stop("stubborn", None, Some(0))
            .await
            .unwrap();
        assert_eq!(stubborn.state().exit_code, 128 + signal::KILL);
        assert_eq!(
            engine.actions(&stubborn.id),
            ["create", "start", "kill", "kill", "die", "stop"]
        );
    });
}

#[test]
fn a_paused_container_is_resumed_by_a_stop() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.run(request("one")).await;
        engine.containers.pause("one").await.unwrap();
        assert_eq!(container.status(), Status::Paused);
        let start = engine.containers.start("one").await.unwrap_err();
        assert_eq!(
            start.to_string(),
            "cannot start a paused container, try unpause instead"
        );
        engine.containers.stop("one", None, None).await.unwrap();
        assert_eq!(container.state().exit_code, 128 + signal::TERM);
        let actions = engine.actions(&container.id);
        assert!(actions.contains(&"unpause".into()), "{actions:?}");
    });
}

#[test]
fn only_force_removes_a_running_container() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.run(with_volume("one", "data")).await;
        assert_eq!(host.volumes.list(), [("data".into(), 1)]);
        let refused = engine.containers.remove("one", RemoveRequest::default());
        assert_eq!(
            refused.await.unwrap_err().to_string(),
            "cannot remove container \"one\": container is running: stop the container before removing or force remove"
        );
        assert_eq!(container.status(), Status::Running);
        let force = RemoveRequest {
            force: true,
            volumes: true,
        };
        engine.containers.remove("one", force).await.unwrap();
        // A volume with a name is kept.
        assert_eq!(host.volumes.list(), [("data".into(), 0)]);
        assert_eq!(engine.volumes.users("data"), 0);
    });
}

#[test]
fn an_ephemeral_container_is_removed_with_its_anonymous_volumes() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let mut request = with_volume("one", "named");
        request.config.volumes = Some(["/anonymous".into()].into());
        request.host.auto_remove = true;
        let container = engine.run(request).await;
        assert_eq!(host.volumes.list().len(), 2);
        let removed = engine.containers.wait("one", WaitCondition::Removed);
        host.shims.exit(&container.id, 3);
        assert_eq!(removed.unwrap().await.exit_code, 3);
        eventually("the anonymous volume is removed", || {
            host.volumes.list() == [("named".into(), 0)]
        })
        .await;
        // A client may begin to wait after the removal.
        let wait = engine
            .containers
            .wait(&container.id, WaitCondition::NotRunning);
        assert_eq!(wait.unwrap().await.exit_code, 3);
    });
}

#[test]
fn a_container_whose_shim_was_killed_has_exited_by_sigkill() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.run(with_volume("one", "data")).await;
        host.shims.kill(&container.id).await;
        engine.until(&container, Status::Exited).await;
        let state = container.state();
        assert_eq!(
            (state.exit_code, state.error.as_str()),
            (137, "the container's shim was killed")
        );
        eventually("the volume is unmounted", || {
            host.volumes.list() == [("data".into(), 0)]
        })
        .await;
        engine.containers.start("one").await.unwrap();
        assert_eq!(container.status(), Status::Running);
        assert_eq!(container.state().error, "");
    });
}

/// Begins an operation for a client that disconnects at once.
fn begin_and_leave<T>(operation: impl Future<Output = T>) {
    let mut context = Context::from_waker(Waker::noop());
    drop(std::pin::pin!(operation).poll(&mut context));
}

#[test]
fn an_operation_is_carried_out_though_its_client_has_left() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.create(request("one")).await.unwrap();
        let containers = &engine.containers;
        begin_and_leave(containers.start("one"));
        engine.until(&container, Status::Running).await;
        // It waits for an operation that holds the container's lock.
        let operation = container.lock_operation("one").await.unwrap();
        begin_and_leave(containers.rename("one", "two"));
        drop(operation);
        eventually("the container is renamed", || container.name() == "two").await;
        let config = ExecConfig {
            cmd: Some(vec!["program".into()]),
            ..ExecConfig::default()
        };
        let id = containers.exec_create("two", config).await.unwrap();
        let exec = containers.exec_claim(&id).unwrap();
        begin_and_leave(containers.exec_start(&exec, ExecStart::default()));
        eventually("the exec is started", || exec.state().pid != 0).await;
        // The signal of a kill resumes a paused container.
        host.shims.ignore(signal::TERM);
        containers.pause("two").await.unwrap();
        begin_and_leave(containers.kill("two", "TERM"));
        engine.until(&container, Status::Running).await;
        begin_and_leave(containers.stop("two", None, Some(0)));
        let has_stopped = || engine.actions(&container.id).contains(&"stop".to_owned());
        eventually("the container is stopped", has_stopped).await;
        assert_eq!(container.state().exit_code, 128 + signal::KILL);
    });
}
