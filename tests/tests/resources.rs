//! Limits: the values in the kernel's cgroup files, and programs that reach a limit.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use whelk_tests::{Engine, Program, escape, eventually, now_nanos, skipped};

/// A container's cgroup file as the host sees it: by controller and name on v1, by name on v2.
#[track_caller]
fn limit(
    engine: &Engine,
    container: &str,
    (controller, old_name): (&str, &str),
    new_name: &str,
) -> String {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", engine.pid(container))).unwrap();
    let unified = is_v2();
    let path = groups
        .lines()
        .filter_map(|line| {
            line.split_once(':')
                .and_then(|(_, rest)| rest.split_once(':'))
        })
        .find(|(controllers, _)| {
            if unified {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|one| one == controller)
            }
        })
        .map(|(_, path)| {
            if unified {
                format!("/sys/fs/cgroup{path}/{new_name}")
            } else {
                format!("/sys/fs/cgroup/{controller}{path}/{old_name}")
            }
        })
        .unwrap_or_else(|| panic!("no cgroup with {controller}: {groups}"));
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}"))
        .trim()
        .to_owned()
}

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[test]
fn limits_are_set_in_the_kernel() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let flags = [
            "-m",
            "64m",
            "--memory-reservation",
            "32m",
            "--cpus",
            "0.5",
            "-c",
            "512",
            "--pids-limit",
            "50",
            "--cpuset-cpus",
            "0",
        ];
        cli.up("limited", &flags, &["sleep", "600"]);
        let find = |old: (&str, &str), new: &str| limit(engine, "limited", old, new);
        assert_eq!(
            find(("memory", "memory.limit_in_bytes"), "memory.max"),
            "67108864"
        );
        assert_eq!(
            find(("memory", "memory.soft_limit_in_bytes"), "memory.low"),
            "33554432"
        );
        assert_eq!(
            find(("cpu", "cpu.cfs_quota_us"), "cpu.max"),
            if is_v2() { "50000 100000" } else { "50000" }
        );
        if !is_v2() {
            assert_eq!(find(("cpu", "cpu.shares"), ""), "512");
        }
        assert_eq!(find(("pids", "pids.max"), "pids.max"), "50");
        assert_eq!(find(("cpuset", "cpuset.cpus"), "cpuset.cpus"), "0");
        cli.up("free", &[], &["sleep", "600"]);
        assert_eq!(
            limit(engine, "free", ("pids", "pids.max"), "pids.max"),
            "max"
        );
    });
}

#[test]
fn containers_below_a_new_cgroup_parent_can_start_concurrently() {
    let engine = Engine::start();
    let parent = format!("/{}/new", engine.name());
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (engine, parent) = (&engine, &parent);
            scope.spawn(move || {
                let name = format!("first{number}");
                engine.cli(Program::Whelk).up(
                    &name,
                    &["--cgroup-parent", parent, "--cpuset-cpus", "0", "-m", "32m"],
                    &["sleep", "600"],
                );
                assert_eq!(
                    limit(
                        engine,
                        &name,
                        ("memory", "memory.limit_in_bytes"),
                        "memory.max"
                    ),
                    "33554432"
                );
                engine.cli(Program::Whelk).run(&["rm", "-f", &name]).ok();
            });
        }
    });
    // The engine does not remove a parent that the user named.
    let trees = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|tree| tree.unwrap().path());
    for tree in trees.chain(["/sys/fs/cgroup".into()]) {
        let _ = fs::remove_dir(tree.join(parent.trim_start_matches('/')));
    }
}

#[test]
fn update_changes_the_limits_of_a_running_container() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up(
            "changing",
            &["-m", "64m", "--pids-limit", "50"],
            &["sleep", "600"],
        );
        assert_eq!(
            cli.run(&[
                "update",
                "-m",
                "32m",
                "--memory-swap",
                "64m",
                "--pids-limit",
                "20",
                "--cpus",
                "0.25",
                "--memory-reservation",
                "16m",
                "--cpu-shares",
                "512",
                "--cpuset-cpus",
                "0",
                "--cpuset-mems",
                "0",
                "changing"
            ])
            .ok(),
            "changing"
        );
        let find = |old: (&str, &str), new: &str| limit(engine, "changing", old, new);
        assert_eq!(
            find(("memory", "memory.soft_limit_in_bytes"), "memory.low"),
            "16777216"
        );
        // Weights of v2 are from 1 to 10000.
        let shares = find(("cpu", "cpu.shares"), "cpu.weight");
        assert!(
            if is_v2() {
                shares != "100"
            } else {
                shares == "512"
            },
            "{shares}"
        );
        assert_eq!(find(("cpuset", "cpuset.cpus"), "cpuset.cpus"), "0");
        assert_eq!(find(("cpuset", "cpuset.mems"), "cpuset.mems"), "0");
        assert_eq!(
            limit(
                engine,
                "changing",
                ("memory", "memory.limit_in_bytes"),
                "memory.max"
            ),
            "33554432"
        );
        assert_eq!(
            limit(engine, "changing", ("pids", "pids.max"), "pids.max"),
            "20"
        );
        assert_eq!(
            limit(engine, "changing", ("cpu", "cpu.cfs_quota_us"), "cpu.max"),
            if is_v2() { "25000 100000" } else { "25000" }
        );
        // They are kept over a restart.
        cli.run(&["restart", "-t", "0", "changing"]).ok();
        assert_eq!(
            limit(engine, "changing", ("pids", "pids.max"), "pids.max"),
            "20"
        );
        assert_eq!(engine.inspect("changing")["HostConfig"]["Memory"], 32 << 20);
    });
}

#[test]
fn an_oom_kill_is_reported() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let since = now_nanos() / 1_000_000_000;
        let output = cli.run(&[
            "run",
            "--network",
            "none",
            "--name",
            "hungry",
            "-m",
            "16m",
            "--memory-swap",
            "16m",
            "busybox",
            "tail",
            "/dev/zero",
        ]);
        output.exits(137);
        let state = &engine.inspect("hungry")["State"];
        assert_eq!(
            (state["OOMKilled"].as_bool(), state["ExitCode"].as_i64()),
            (Some(true), Some(137)),
            "{state}"
        );
        let filters = escape(r#"{"event": ["oom"], "container": ["hungry"]}"#);
        assert_eq!(
            engine
                .events(&format!("since={since}&filters={filters}"))
                .until("oom"),
            ["container oom"]
        );
        // The next run of the container resets the flag.
        cli.up("modest", &["-m", "16m"], &["true"]);
        engine.await_state("modest", "exited");
        assert_eq!(engine.inspect("modest")["State"]["OOMKilled"], false);
    });
}

#[test]
fn the_pids_limit_stops_a_fork_bomb() {
    Engine::start().both(|cli| {
        let output = cli.sh(
            &["--pids-limit", "10"],
            "for i in $(seq 20); do sleep 30 & done; echo no limit",
        );
        assert!(
            output.code != 0
                && output.err().contains("can't fork")
                && !output.out().contains("no limit"),
            "{} {}",
            output.code,
            output.err()
        );
        cli.sh(
            &["--pids-limit", "-1"],
            "for i in $(seq 20); do true & done; wait; echo no limit",
        )
        .exits(0);
    });
}

#[test]
fn rejects_invalid_limits_with_dockers_errors() {
    let engine = Engine::start();
    let check = |mut host_config: serde_json::Value, text: &str| {
        host_config["NetworkMode"] = json!("none");
        let (status, answer) = engine.api(
            "POST",
            "/containers/create",
            Some(&json!({"Image": "busybox", "HostConfig": host_config})),
        );
        assert_eq!(
            (status, answer["message"].as_str()),
            (400, Some(text)),
            "{host_config}"
        );
    };
    check(
        json!({"Memory": 1 << 20}),
        "Minimum memory limit allowed is 6MB",
    );
    check(
        json!({"Memory": 64 << 20, "MemorySwap": 32 << 20}),
        "Minimum memoryswap limit should be larger than memory limit, see usage",
    );
    check(
        json!({"MemorySwap": 64 << 20}),
        "You should always set the Memory limit when using Memoryswap limit, see usage",
    );
    check(
        json!({"Memory": 64 << 20, "MemoryReservation": 128 << 20}),
        "Minimum memory limit can not be less than memory reservation limit, see usage",
    );
    check(
        json!({"MemorySwappiness": 101}),
        "Invalid value: 101, valid memory swappiness range is 0-100",
    );
    check(
        json!({"OomScoreAdj": 2000}),
        "Invalid value 2000, range for oom score adj is [-1000, 1000]",
    );
    check(
        json!({"CpusetCpus": "abc"}),
        "Invalid value abc for cpuset cpus: invalid format: abc",
    );
    check(
        json!({"NanoCpus": 1_000_000_000, "CpuPeriod": 100_000}),
        "Conflicting options: Nano CPUs and CPU Period cannot both be set",
    );
    check(
        json!({"CpuPeriod": 1}),
        "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
    );
    check(
        json!({"CpuQuota": 1}),
        "CPU cfs quota can not be less than 1ms (i.e. 1000)",
    );
    check(
        json!({"CpuShares": -1}),
        "invalid CPU shares (-1): value must be a positive integer",
    );
    check(json!({"ShmSize": -1}), "SHM size can not be less than 0");
    assert_eq!(engine.get("/containers/json?all=1"), json!([]));
}

#[test]
fn a_containers_cgroup_is_removed_with_it() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.up("grouped", &[], &["sh", "-c", "sleep 600 & sleep 600"]);
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", engine.pid("grouped"))).unwrap();
        // number:controllers:path
        let places: Vec<String> = groups
            .lines()
            .filter_map(|line| {
                line.split_once(':')
                    .and_then(|(_, rest)| rest.split_once(':'))
            })
            .filter(|(_, path)| path.contains(engine.name()))
            .map(|(controllers, path)| match controllers {
                "" if is_v2() => format!("/sys/fs/cgroup{path}"),
                "" => format!("/sys/fs/cgroup/unified{path}"),
                one => format!("/sys/fs/cgroup/{}{path}", one.trim_start_matches("name=")),
            })
            .filter(|place| Path::new(place).exists())
            .collect();
        assert!(!places.is_empty(), "{groups}");
        cli.run(&["kill", "grouped"]).ok();
        engine.await_state("grouped", "exited");
        for place in places {
            eventually(&format!("{place} to be gone"), || {
                (!Path::new(&place).exists()).then_some(())
            });
        }
    });
}

/// In cgroup v2, only leaves can contain processes.
#[test]
fn exec_enters_a_container_that_divided_its_cgroup() {
    let engine = Engine::start();
    if !is_v2() {
        return skipped!("cgroups are not one tree (v2)");
    }
    let divide = "cd /sys/fs/cgroup && mkdir inner && echo 1 >inner/cgroup.procs && echo +pids >cgroup.subtree_control && echo divided && exec sleep 60";
    let cli = engine.cli(Program::Whelk);
    cli.run(&[
        "run",
        "-d",
        "--name",
        "divided",
        "--network",
        "none",
        "--privileged",
        "busybox",
        "sh",
        "-c",
        divide,
    ])
    .ok();
    engine.await_log("divided", "divided");
    assert_eq!(
        cli.run(&["exec", "divided", "cat", "/proc/self/cgroup"])
            .ok(),
        "0::/inner"
    );
}

/// Returns a disk of the host and its device number.
fn disk() -> Option<(String, String)> {
    let mut disks = fs::read_dir("/sys/block").ok()?.flatten();
    disks.find_map(|disk| {
        let path = format!("/dev/{}", disk.file_name().to_str()?);
        let number = fs::read_to_string(disk.path().join("dev"))
            .ok()?
            .trim()
            .to_owned();
        Path::new(&path).exists().then_some((path, number))
    })
}

#[test]
fn device_throttles_are_set_in_the_kernel() {
    let Some((disk, number)) = disk() else {
        return skipped!("the machine has no disk");
    };
    Engine::start().both(|cli| {
        let (reading, writing) = (format!("{disk}:1mb"), format!("{disk}:100"));
        cli.up(
            "slow",
            &[
                "--device-read-bps",
                &reading,
                "--device-write-iops",
                &writing,
            ],
            &["sleep", "600"],
        );
        let find = |name: &str| limit(cli.engine(), "slow", ("blkio", name), "io.max");
        let (read, write) = (
            find("blkio.throttle.read_bps_device"),
            find("blkio.throttle.write_iops_device"),
        );
        if is_v2() {
            assert!(
                read.starts_with(&number)
                    && read.contains("rbps=1048576")
                    && read.contains("wiops=100"),
                "{read}"
            );
        } else {
            assert_eq!(
                (read, write),
                (format!("{number} 1048576"), format!("{number} 100"))
            );
        }
        cli.run(&["rm", "-f", "slow"]).ok();
        cli.run(&[
            "run",
            "--rm",
            "--device-read-bps",
            "/dev/nosuch:1mb",
            "busybox",
            "true",
        ])
        .refuses(127, "/dev/nosuch");
    });
}

#[test]
fn device_throttles_of_a_running_container_are_updated() {
    let Some((disk, number)) = disk() else {
        return skipped!("the machine has no disk");
    };
    let engine = Engine::start();
    engine.cli(Program::Docker).up(
        "slow",
        &["--device-read-bps", &format!("{disk}:1mb")],
        &["sleep", "600"],
    );
    let update = |body: Value| engine.api("POST", "/containers/slow/update", Some(&body));
    let find = |file: &str, key: &str| {
        let found = limit(&engine, "slow", ("blkio", file), "io.max");
        if is_v2() {
            let values = found.split(' ').find_map(|word| word.strip_prefix(key));
            values.unwrap_or("=max").replace('=', "")
        } else {
            let value = found.strip_prefix(&format!("{number} "));
            value.unwrap_or("max").to_owned()
        }
    };
    let limits = || {
        [
            find("blkio.throttle.read_bps_device", "rbps"),
            find("blkio.throttle.write_bps_device", "wbps"),
            find("blkio.throttle.read_iops_device", "riops"),
            find("blkio.throttle.write_iops_device", "wiops"),
        ]
        .join(" ")
    };
    assert_eq!(limits(), "1048576 max max max");
    let rate = |rate: u64| json!([{"Path": disk, "Rate": rate}]);
    let (status, answer) = update(json!({
        "BlkioDeviceReadBps": rate(4096), "BlkioDeviceWriteBps": rate(8192),
        "BlkioDeviceReadIOps": rate(7), "BlkioDeviceWriteIOps": rate(9),
    }));
    assert_eq!(
        (status, limits().as_str()),
        (200, "4096 8192 7 9"),
        "{answer}"
    );
    // Those that are not named stay, and an empty list removes them.
    let (status, _) = update(json!({"BlkioDeviceWriteBps": [], "BlkioDeviceReadIOps": null}));
    assert_eq!((status, limits().as_str()), (200, "4096 max 7 9"));
    // Nothing is changed if a device does not exist.
    let missing = json!([{"Path": "/dev/nosuch", "Rate": 1}]);
    let (status, answer) =
        update(json!({"BlkioDeviceReadBps": [], "BlkioDeviceReadIOps": missing}));
    let text = answer["message"].as_str().unwrap();
    assert!(
        status == 500
            && text.starts_with("Cannot update container ")
            && text.contains("/dev/nosuch"),
        "{text}"
    );
    assert_eq!(limits(), "4096 max 7 9");
    let shown = engine.inspect("slow")["HostConfig"].clone();
    assert_eq!(
        (&shown["BlkioDeviceReadBps"], &shown["BlkioDeviceWriteBps"]),
        (&rate(4096), &json!([]))
    );
    engine.docker(&["restart", "-t", "0", "slow"]).ok();
    assert_eq!(limits(), "4096 max 7 9");
}

#[test]
fn an_oom_kill_of_a_child_is_reported_while_the_container_runs() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up(
            "parent",
            &["-m", "16m", "--memory-swap", "16m"],
            &["sh", "-c", "tail /dev/zero; exec sleep 600"],
        );
        eventually("the child to be killed", || {
            engine.inspect("parent")["State"]["OOMKilled"]
                .as_bool()
                .filter(|killed| *killed)
        });
        assert_eq!(engine.state("parent"), "running");
        cli.run(&["stop", "-t", "0", "parent"]).ok();
        assert_eq!(engine.inspect("parent")["State"]["OOMKilled"], true);
        cli.run(&["create", "--name", "other", "busybox", "true"])
            .ok();
        assert_eq!(engine.inspect("other")["State"]["OOMKilled"], false);
    });
}

#[test]
fn a_cgroup_parent_does_not_lead_outside_the_root() {
    let engine = Engine::start();
    let own = format!("/{}", engine.name());
    engine.both(|cli| {
        for (number, parent) in [
            format!("../../..{own}"),
            format!("/a/../..{own}"),
            format!("{own}/.//"),
            own[1..].to_owned(),
        ]
        .iter()
        .enumerate()
        {
            let name = format!("climbs{number}");
            cli.up(&name, &["--cgroup-parent", parent], &["sleep", "600"]);
            let groups = fs::read_to_string(format!("/proc/{}/cgroup", engine.pid(&name))).unwrap();
            let id = engine.inspect(&name)["Id"].as_str().unwrap().to_owned();
            assert!(
                groups.contains(&format!(":{own}/{id}")),
                "{parent}: {groups}"
            );
            assert_eq!(
                engine.inspect(&name)["HostConfig"]["CgroupParent"],
                parent.as_str()
            );
        }
    });
}
