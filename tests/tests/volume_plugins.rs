//! Volumes of plugins.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use whelk_tests::{Engine, Program, VolumePlugin, eventually};

#[test]
fn a_plugin_provides_volumes() {
    let engine = Engine::start();
    let plugin = VolumePlugin::start(&engine, "keeper");
    engine.both(|cli| {
        assert_eq!(cli.run(&["volume", "create", "-d", "keeper", "-o", "a=b", "--label", "x=y", "data"]).ok(), "data");
        assert_eq!(plugin.asked(), ["Create data"]);
        let shown: Value = serde_json::from_str(&cli.run(&["volume", "inspect", "data"]).ok()).unwrap();
        assert_eq!(
            shown[0],
            json!({"CreatedAt": "2024-05-06T07:08:09Z", "Driver": "keeper", "Labels": {"x": "y"}, "Mountpoint": plugin.path("data"), "Name": "data",
                "Options": {"a": "b"}, "Scope": "global", "Status": {"options": {"a": "b"}}})
        );
        assert_eq!(cli.sh(&["-v", "data:/d", "-v", "data:/e"], "echo hi >/d/file; cat /e/file").ok(), "hi");
        let asked = plugin.asked();
        // Mounted once for each target to check whether it is empty, and then once for the container.
        assert_eq!(asked.len(), 6, "{asked:?}");
        for pair in asked.chunks(2) {
            assert!(pair[0].starts_with("Mount data ") && pair[1] == pair[0].replace("Mount", "Unmount"), "{asked:?}");
        }
        assert_eq!(fs::read_to_string(plugin.path("data").join("file")).unwrap(), "hi\n");
        assert_eq!(cli.run(&["info", "-f", "{{.Plugins.Volume}}"]).ok(), "[local keeper]");
        // A running container's volume stays mounted while no engine runs.
        cli.up("user", &["-v", "data:/d:nocopy"], &["sleep", "300"]);
        let id = engine.inspect("user")["Id"].as_str().unwrap().to_owned();
        assert_eq!(plugin.asked(), [format!("Mount data {id}")]);
        engine.kill9();
        engine.restart();
        assert_eq!(engine.inspect("user")["Mounts"][0]["Driver"], "keeper");
        assert_eq!(engine.inspect("user")["Mounts"][0]["Source"], plugin.path("data").to_str().unwrap());
        cli.run(&["volume", "rm", "data"]).refuses(1, &format!("remove data: volume is in use - [{id}]"));
        engine.kill9();
        engine.restart();
        cli.run(&["rm", "-f", "user"]).ok();
        assert_eq!(plugin.asked(), [format!("Unmount data {id}")]);
        // Mounts of a killed engine for its own operations, filling and export, are released.
        let uses: [&[&str]; 2] = [&["create", "-v", "data:/d", "busybox"], &["volume", "export", "data"]];
        for args in uses {
            plugin.kill_at("Mount", engine.daemon_pid());
            let output = engine.whelk(args);
            assert!(output.code != 0 && output.err().contains("connection to the engine lost"), "{}", output.err());
            engine.kill9();
            engine.restart();
            eventually("the volume to be unmounted", || {
                let asked = plugin.questions();
                asked.iter().find_map(|line| line.strip_prefix("Mount")).filter(|what| asked.contains(&format!("Unmount{what}"))).map(drop)
            });
            plugin.asked();
        }
        // So are those of containers that ended while no engine ran, or that were killed during a start.
        cli.up("brief", &["-v", "data:/d:nocopy"], &["sleep", "300"]);
        let (brief, pid) = (engine.inspect("brief")["Id"].as_str().unwrap().to_owned(), engine.pid("brief"));
        engine.kill9();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
        engine.restart();
        engine.await_state("brief", "exited");
        assert_eq!(plugin.asked(), [format!("Mount data {brief}"), format!("Unmount data {brief}")]);
        cli.run(&["rm", "brief"]).ok();
        cli.run(&["volume", "create", "data"]).refuses(1, "driver 'keeper' already has volume 'data': volume name must be unique");
        assert_eq!(cli.run(&["volume", "rm", "data"]).ok(), "data");
        assert_eq!(plugin.asked(), ["Remove data"]);
        // A volume that a container's start creates, and one that only the plugin knows.
        cli.sh(&["--volume-driver", "keeper", "-v", "made:/d"], "echo made >/d/file").ok();
        assert_eq!(plugin.asked().first().map(String::as_str), Some("Create made"));
        plugin.answer("VolumeDriver.Create", &json!({"Name": "strange", "Opts": null}));
        fs::write(plugin.path("strange").join("file"), "from elsewhere").unwrap();
        assert_eq!(cli.run(&["volume", "ls", "-f", "driver=keeper", "--format", "{{.Name}} {{.Scope}}"]).ok(), "made global\nstrange global");
        assert_eq!(cli.sh(&["-v", "strange:/d"], "cat /d/file").ok(), "from elsewhere");
        // `prune` does not remove volumes of plugins.
        cli.run(&["volume", "prune", "-af"]).ok();
        assert!(plugin.path("made").exists());
        cli.run(&["volume", "rm", "made", "strange"]).ok();
        assert!(!plugin.path("made").exists() && !plugin.path("strange").exists());
        plugin.asked();
    });
    // The image's content comes first, as with any other volume.
    engine.import(
        "full",
        &["VOLUME /data", "CMD [\"sh\"]"],
        &whelk_tests::tar::Tar::new()
            .file("data/first", "of the image")
            .finish(),
    );
    let cli = engine.cli(Program::Whelk);
    cli.run(&[
        "create",
        "--name",
        "filled",
        "--volume-driver",
        "keeper",
        "-v",
        "new:/data",
        "full",
        "true",
    ])
    .ok();
    assert_eq!(
        fs::read_to_string(plugin.path("new").join("first")).unwrap(),
        "of the image"
    );
    let asked = plugin.asked();
    assert_eq!(
        (asked[0].as_str(), asked[2].clone()),
        ("Create new", asked[1].replace("Mount", "Unmount")),
        "{asked:?}"
    );
    cli.run(&["rm", "filled"]).ok();
    cli.run(&["volume", "rm", "new"]).ok();
}

#[test]
fn plugin_errors_are_reported() {
    let engine = Engine::start();
    let plugin = VolumePlugin::start(&engine, "moody");
    let cli = engine.cli(Program::Docker);
    cli.run(&["volume", "create", "-d", "nosuch", "v1"])
        .refuses(
            1,
            "create v1: error looking up volume plugin nosuch: plugin \"nosuch\" not found",
        );
    cli.sh(&["--volume-driver", "nosuch", "-v", "v1:/d"], "true")
        .refuses(125, "plugin \"nosuch\" not found");
    cli.sh(&["--volume-driver", "nosuch", "-v", "/d"], "true")
        .refuses(125, "plugin \"nosuch\" not found");
    cli.run(&["volume", "create", "-d", "../moody", "v1"])
        .refuses(1, "not found");
    plugin.refuse("Create", Some("out of disks"));
    cli.run(&["volume", "create", "-d", "moody", "v1"])
        .refuses(1, "create v1: out of disks");
    plugin.refuse("Create", None);
    cli.run(&["volume", "create", "-d", "moody", "v1"]).ok();
    plugin.refuse("Mount", Some("out of order"));
    cli.sh(&["-v", "v1:/d"], "true")
        .refuses(125, "error while mounting volume '': out of order");
    plugin.refuse("Mount", None);
    plugin.asked();
    plugin.refuse("List", Some("forgot"));
    assert_eq!(
        engine.get("/volumes")["Warnings"],
        json!(["list moody: forgot"])
    );
    assert_eq!(cli.run(&["volume", "ls", "-q"]).ok(), "v1");
    plugin.refuse("List", None);
    plugin.refuse("Remove", Some("cannot let go"));
    cli.run(&["volume", "rm", "v1"])
        .refuses(1, "remove v1: cannot let go");
    plugin.refuse("Unmount", Some("cannot let go"));
    cli.sh(&["-v", "v1:/d"], "true").ok();
    cli.run(&["volume", "rm", "-f", "v1"]).ok();
    // A volume that was removed without the engine can be created again.
    cli.run(&["volume", "create", "-d", "moody", "gone"]).ok();
    plugin.refuse("Remove", None);
    plugin.answer("VolumeDriver.Remove", &json!({"Name": "gone"}));
    cli.run(&["volume", "create", "-d", "moody", "gone"]).ok();
    assert!(plugin.path("gone").exists());
    cli.run(&["volume", "rm", "gone"]).ok();
    // A plugin that no longer listens, and one whose address is in a file.
    fs::write(
        engine.run().join("plugins/gone.spec"),
        "unix:///nosuch/plugin.sock",
    )
    .unwrap();
    cli.run(&["volume", "create", "-d", "gone", "v2"])
        .refuses(1, "/nosuch/plugin.sock: no such file or directory");
    fs::write(engine.run().join("plugins/bad.spec"), "ftp://x").unwrap();
    cli.run(&["volume", "create", "-d", "bad", "v2"])
        .refuses(1, "unknown address");
    let place = engine.run().join("plugins/moody.sock");
    fs::write(
        engine.run().join("plugins/again.json"),
        json!({"Addr": format!("unix://{}", Path::new(&place).display())}).to_string(),
    )
    .unwrap();
    cli.run(&["volume", "create", "-d", "again", "v3"]).ok();
    cli.run(&["volume", "rm", "-f", "v3"]).ok();
}
