//! The drivers macvlan and ipvlan.

use whelk_tests::serving::{SERVES, inside, up};
use whelk_tests::{Engine, Program, skipped};

#[test]
fn macvlan_networks_connect_their_members_and_let_go_of_them() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    // Any interface with a carrier will do as the parent; the default bridge has one with its first
    // member.
    up(cli, "two", &[], "sleep 300");
    let parent = format!("parent={}", engine.bridge());
    cli.run(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "10.213.20.0/24",
        "-o",
        &parent,
        "flat",
    ])
    .ok();
    up(cli, "one", &["--network", "flat"], SERVES);
    cli.run(&["network", "connect", "flat", "two"]).ok();
    assert_eq!(
        inside(
            cli,
            "two",
            "until wget -qO- http://one/ 2>/dev/null; do sleep 0.1; done"
        ),
        "one"
    );
    cli.run(&["network", "disconnect", "flat", "two"]).ok();
    assert_eq!(
        inside(cli, "two", "ls /sys/class/net | tr '\\n' ' '"),
        "eth0 lo ".trim_end()
    );
    cli.run(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "10.213.21.0/24",
        "-o",
        "parent=nosuch0",
        "lost",
    ])
    .refuses(1, "nosuch0");
    let wrong = [
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "10.213.21.0/24",
        "-o",
        &parent,
        "-o",
        "macvlan_mode=x",
        "lost",
    ];
    cli.run(&wrong)
        .refuses(1, "requested macvlan mode 'x' is not valid");
    // Every mode is the kernel's own; only "bridge" lets members talk.
    let whole = format!("{}p", engine.bridge());
    cli.run(&[
        "network",
        "create",
        "--ipv6=false",
        "-o",
        &format!("com.docker.network.bridge.name={whole}"),
        "carrier",
    ])
    .ok();
    let whole = format!("parent={whole}");
    for mode in ["private", "vepa", "passthru"] {
        let option = format!("macvlan_mode={mode}");
        // Passing through takes the whole parent.
        let parent = if mode == "passthru" { &whole } else { &parent };
        cli.run(&[
            "network",
            "create",
            "-d",
            "macvlan",
            "--subnet",
            "10.213.24.0/24",
            "-o",
            &option,
            "-o",
            parent,
            "moded",
        ])
        .ok();
        let reach = "ip addr show eth0 | grep -c 10.213.24; ping -c1 -w1 10.213.24.3 >/dev/null && echo reached || echo apart";
        let mut names = vec!["m1"];
        up(
            cli,
            "m1",
            &["--network", "moded", "--ip", "10.213.24.2"],
            "sleep 300",
        );
        if mode == "passthru" {
            let second = ["run", "--rm", "--network", "moded", "busybox", "true"];
            cli.run(&second).refuses(125, "invalid argument");
        } else {
            up(
                cli,
                "m2",
                &["--network", "moded", "--ip", "10.213.24.3"],
                "sleep 300",
            );
            names.push("m2");
        }
        assert_eq!(inside(cli, "m1", reach), "1\napart", "{mode}");
        cli.run(&[&["rm", "-f"][..], &names].concat()).ok();
        cli.run(&["network", "rm", "moded"]).ok();
    }
    // A sub-interface that was made for networks goes with the last of them.
    let (vlan, option) = (
        format!("{}.7", engine.bridge()),
        format!("parent={}.7", engine.bridge()),
    );
    let there = || std::path::Path::new("/sys/class/net").join(&vlan).exists();
    for (name, subnet) in [("first", "10.213.22.0/24"), ("second", "10.213.23.0/24")] {
        let made = cli.run(&[
            "network", "create", "-d", "macvlan", "--subnet", subnet, "-o", &option, name,
        ]);
        if made.code != 0 {
            // Not every kernel has such interfaces.
            made.refuses(1, "operation not supported");
            return skipped!("the kernel has no VLAN interfaces");
        }
    }
    cli.run(&["network", "rm", "first"]).ok();
    assert!(there());
    cli.run(&["network", "rm", "second"]).ok();
    assert!(!there());
}

#[test]
fn ipvlan_networks_connect_where_the_kernel_can() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "carrier", &[], "sleep 300");
    let parent = format!("parent={}", engine.bridge());
    for (mode, subnet) in [("l2", "10.213.24.0/24"), ("l3", "10.213.25.0/24")] {
        let option = format!("ipvlan_mode={mode}");
        cli.run(&[
            "network", "create", "-d", "ipvlan", "--subnet", subnet, "-o", &parent, "-o", &option,
            mode,
        ])
        .ok();
        let first = cli.run(&[
            "run",
            "-d",
            "--name",
            "first",
            "--network",
            mode,
            "busybox",
            "sleep",
            "300",
        ]);
        if first.code != 0 {
            first.refuses(125, "this kernel has no ipvlan interfaces");
            skipped!("the kernel has no ipvlan interfaces");
        } else {
            up(cli, "second", &["--network", mode], "sleep 300");
            assert!(inside(cli, "second", "ping -c1 -w2 first").contains("1 packets received"));
            let way = if mode == "l3" {
                "default dev eth0"
            } else {
                "default via 10.213.24.1"
            };
            assert!(inside(cli, "second", "ip route").contains(way));
            cli.run(&["rm", "-f", "second"]).ok();
        }
        cli.run(&["rm", "-f", "first"]).ok();
        let fixed = [
            "run",
            "--rm",
            "--network",
            mode,
            "--mac-address",
            "02:aa:bb:cc:dd:ee",
            "busybox",
            "true",
        ];
        cli.run(&fixed).refuses(
            125,
            "interfaces of ipvlan networks have their parent's MAC address",
        );
        cli.run(&["network", "rm", mode]).ok();
    }
    let wrong = [
        "network",
        "create",
        "-d",
        "ipvlan",
        "--subnet",
        "10.213.24.0/24",
        "-o",
        &parent,
        "-o",
        "ipvlan_mode=l7",
        "x",
    ];
    cli.run(&wrong)
        .refuses(1, "requested ipvlan mode 'l7' is not valid");
}
