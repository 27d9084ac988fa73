//! Restart policies, and what the next engine does with the containers of one that was killed.

use super::{eventually, on_fake_host, request, restarting, with_volume};
use crate::model::{RestartPolicy, Status};
use crate::shims::fake::Behaviour;

#[test]
fn on_failure_restarts_a_limited_number_of_times() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let policy = RestartPolicy::OnFailure { most: 2 };
        let container = engine.run(restarting("one", policy)).await;
        for restarts in 0..=2 {
            eventually("it runs", || {
                let state = container.state();
                (state.status, state.restart_count) == (Status::Running, restarts)
            })
            .await;
            host.shims.exit(&container.id, 1);
        }
        engine.until(&container, Status::Exited).await;
        assert_eq!(container.state().restart_count, 2);
        // A start by a user begins to count anew, and success ends it.
        engine.containers.start("one").await.unwrap();
        assert_eq!(container.state().restart_count, 0);
        host.shims.exit(&container.id, 0);
        engine.until(&container, Status::Exited).await;
    });
}

#[test]
fn a_stopped_container_is_not_restarted() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.run(restarting("one", RestartPolicy::Always)).await;
        host.shims.exit(&container.id, 0);
        eventually("it was restarted", || {
            let state = container.state();
            (state.status, state.restart_count) == (Status::Running, 1)
        })
        .await;
        engine.containers.stop("one", None, None).await.unwrap();
        assert_eq!(container.status(), Status::Exited);
        engine.containers.start("one").await.unwrap();
        // Each short run doubles the delay, until it is long enough to be seen.
        for restarts in 1..=3 {
            host.shims.exit(&container.id, 0);
            eventually("it was restarted", || {
                let state = container.state();
                (state.status, state.restart_count) == (Status::Running, restarts)
            })
            .await;
        }
        // This machine may be too busy to see it once.
        for restarts in 4.. {
            host.shims.exit(&container.id, 0);
            eventually("it is restarted", || {
                let state = container.state();
                state.status == Status::Restarting
                    || (state.status, state.restart_count) == (Status::Running, restarts)
            })
            .await;
            if container.status() == Status::Restarting {
                break;
            }
        }
        engine.containers.kill("one", "").await.unwrap();
        assert_eq!(container.status(), Status::Exited);
    });
}

#[test]
fn a_restart_that_is_refused_ends_the_policy() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.run(restarting("one", RestartPolicy::Always)).await;
        let error = whelk_runtime::Error::CommandNotFound("exec program: no such file".into());
        host.shims.expect(Behaviour::Refuse(error));
        host.shims.exit(&container.id, 0);
        engine.until(&container, Status::Exited).await;
        let state = container.state();
        assert_eq!(state.exit_code, 127);
        assert!(
            state.error.ends_with("exec program: no such file"),
            "{}",
            state.error
        );
    });
}

#[test]
fn a_restart_by_a_user_keeps_an_ephemeral_container() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let mut request = request("one");
        request.host.auto_remove = true;
        let container = engine.run(request).await;
        engine.containers.restart("one", None, None).await.unwrap();
        assert_eq!(container.status(), Status::Running);
        assert_eq!(engine.containers.find("one").unwrap().id, container.id);
        let actions = engine.actions(&container.id);
        assert_eq!(actions.last().map(String::as_str), Some("restart"));
    });
}

#[test]
fn the_next_engine_takes_over_what_runs() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let runs = engine.run(with_volume("runs", "data")).await.id.clone();
        let paused = engine.run(request("paused")).await.id.clone();
        engine.containers.pause("paused").await.unwrap();
        let ended = engine.run(request("ended")).await.id.clone();
        engine.kill().await;
        host.shims.exit(&ended, 5);
        let run_dir = host.instance.run_dir(&ended);
        eventually("the exit is recorded", || {
            whelk_sys::fs::exists(run_dir.join("exit.json"))
        })
        .await;

        let engine = host.open().await;
        let find = |id: &str| engine.containers.find(id).unwrap();
        assert_eq!(find(&runs).status(), Status::Running);
        assert_eq!(engine.volumes.running("data"), [runs.as_str()]);
        assert_eq!(find(&paused).status(), Status::Paused);
        engine.until(&find(&ended), Status::Exited).await;
        assert_eq!(find(&ended).state().exit_code, 5);
        host.shims.exit(&runs, 6);
        engine.until(&find(&runs), Status::Exited).await;
        assert_eq!(find(&runs).state().exit_code, 6);
        eventually("the volume is unmounted", || {
            host.volumes.list() == [("data".into(), 0)]
        })
        .await;
    });
}

#[test]
fn the_next_engine_starts_what_its_policy_says() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        for (name, policy) in [
            ("always", RestartPolicy::Always),
            ("unless-stopped", RestartPolicy::UnlessStopped),
            ("stopped", RestartPolicy::UnlessStopped),
            ("on-failure", RestartPolicy::OnFailure { most: 0 }),
            ("no", RestartPolicy::No),
        ] {
            engine.run(restarting(name, policy)).await;
        }
        for name in ["always", "stopped"] {
            engine.containers.stop(name, None, None).await.unwrap();
        }
        let ids: Vec<String> = ["unless-stopped", "on-failure", "no"]
            .map(|name| engine.containers.find(name).unwrap().id.clone())
            .into();
        engine.kill().await;
        // As at a shutdown of the host.
        for id in &ids {
            host.shims.exit(id, 0);
        }
        for id in &ids {
            let record = host.instance.run_dir(id).join("exit.json");
            eventually("the exit is recorded", || whelk_sys::fs::exists(&record)).await;
        }

        let engine = host.open().await;
        for (name, status) in [
            ("always", Status::Running),
            ("unless-stopped", Status::Running),
            ("stopped", Status::Exited),
            ("on-failure", Status::Exited),
            ("no", Status::Exited),
        ] {
            engine
                .until(&engine.containers.find(name).unwrap(), status)
                .await;
        }
    });
}
