//! Operations that fail half-way leave nothing behind.

use super::{eventually, on_fake_host, request, with_volume};
use crate::filters::Filters;
use crate::model::Status;
use crate::networks::{CreateNetwork, Networks};
use crate::shims::fake::Behaviour;
use crate::volumes::{CreateVolume, FakeVolumes};
use whelk_sys::fs;

#[test]
fn a_start_that_fails_releases_what_it_has_acquired() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let container = engine.create(with_volume("one", "data")).await.unwrap();
        let not_found = whelk_runtime::Error::CommandNotFound("no such file".into());
        let refused = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: no such file";
        for (behaviour, broken, error, code) in [
            (Some(Behaviour::Refuse(not_found)), None, refused, 127),
            (
                Some(Behaviour::Vanish),
                None,
                "the shim ended early: early eof",
                128,
            ),
            (
                None,
                Some("mount"),
                "error while mounting volume '': mount is broken",
                128,
            ),
        ] {
            if let Some(behaviour) = behaviour {
                host.shims.expect(behaviour);
            }
            host.volumes.break_method(broken);
            let started = engine.containers.start("one").await;
            host.volumes.break_method(None);
            assert_eq!(started.unwrap_err().to_string(), error);
            let state = container.state();
            assert_eq!((state.status, state.exit_code), (Status::Created, code));
            assert_eq!(state.error, error);
            assert_eq!(host.volumes.list(), [("data".into(), 0)], "{error}");
            assert!(!engine.has_run_directory(&container.id), "{error}");
        }
        engine.containers.start("one").await.unwrap();
        assert_eq!(host.volumes.list(), [("data".into(), 1)]);
        assert_eq!(container.state().error, "");
    });
}

#[test]
fn a_creation_that_fails_releases_the_name_and_the_volumes() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let mut asked = with_volume("one", "data");
        asked.config.volumes = Some(["/anonymous".into()].into());
        // In the place of the directory in which the container's files would be created.
        let directory = host.instance.root.join("containers");
        fs::rename(&directory, host.scratch.path().join("moved")).unwrap();
        let error = engine.create(asked.clone()).await.unwrap_err().to_string();
        assert!(error.ends_with("no such file or directory"), "{error}");
        assert!(engine.containers.all().is_empty());
        assert_eq!(engine.volumes.users("data"), 0);
        eventually("the anonymous volume is removed", || {
            host.volumes.list() == [("data".into(), 0)]
        })
        .await;
        fs::create_dir(&directory, 0o700).unwrap();

        host.volumes.break_method(Some("create"));
        let mut other = with_volume("one", "other");
        let error = engine.create(other.clone()).await.unwrap_err().to_string();
        assert!(error.ends_with("create is broken"), "{error}");
        host.volumes.break_method(None);
        assert!(engine.volumes.find("other").is_err());

        other.host.binds = Some(vec!["data:/data".into(), "other:/data".into()]);
        assert!(engine.create(other).await.is_err());
        engine.create(asked).await.unwrap();
        assert_eq!(engine.volumes.users("data"), 1);
    });
}

#[test]
fn a_volume_whose_record_cannot_be_stored_does_not_stay_with_its_driver() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let create = |name: &str| {
            engine.volumes.create(CreateVolume {
                name: name.into(),
                driver: Some(FakeVolumes::NAME.into()),
                ..CreateVolume::default()
            })
        };
        let store = &engine.containers.store;
        store.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON volumes BEGIN SELECT RAISE(ABORT, 'refused'); END",
        );
        let error = create("data").unwrap_err().to_string();
        assert!(error.ends_with("refused"), "{error}");
        assert!(host.volumes.list().is_empty());
        assert!(engine.volumes.find("data").is_err());
        // One that the driver had before stays.
        host.volumes.add("before");
        create("before").unwrap_err();
        assert_eq!(host.volumes.list(), [("before".into(), 0)]);
        // The cause is reported, not the failure of the undo.
        host.volumes.break_method(Some("release"));
        let error = create("data").unwrap_err().to_string();
        assert!(error.ends_with("refused"), "{error}");
        host.volumes.break_method(None);
        store.execute("DROP TRIGGER refuse");
        create("data").unwrap();
    });
}

#[test]
fn a_network_that_cannot_be_created_has_no_record() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let mut asked = CreateNetwork {
            name: "web".into(),
            driver: "fake".into(),
            ..CreateNetwork::default()
        };
        asked
            .options
            .insert("fail".into(), "the fake is broken".into());
        let error = engine.networks.create(asked.clone()).unwrap_err();
        assert_eq!(error.to_string(), "the fake is broken");
        assert!(engine.networks.find("web").is_err());
        asked.options.clear();
        let made = engine.networks.create(asked).unwrap();
        assert!(Networks::fake_exists(&made.id));
        engine.kill().await;

        let engine = host.open().await;
        let listed = engine.networks.list(&Filters::default()).unwrap();
        let mut names: Vec<&str> = listed.iter().map(|network| network.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["bridge", "host", "none", "web"]);
        engine.networks.remove("web").unwrap();
        assert!(!Networks::fake_exists(&made.id));
    });
}

#[test]
fn containers_are_created_with_the_same_name_by_one_of_many_requests() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let requests = (0..16).map(|_| engine.create(request("one")));
        let outcomes = futures_util::future::join_all(requests).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        assert_eq!(engine.containers.all().len(), 1);
        let directories = fs::list(host.instance.root.join("containers")).unwrap();
        assert_eq!(directories.len(), 1);
    });
}
