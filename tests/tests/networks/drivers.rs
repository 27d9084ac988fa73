//! The drivers macvlan and ipvlan.

use whelk_tests::serving::{SERVES, inside, up};
use whelk_tests::{Engine, FreeSubnet, Program, skipped};

#[test]
fn macvlan_networks_attach_and_detach_containers() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    // Any interface with a carrier will do as the parent; the default bridge has one with its first
    // member.
    up(cli, "two", &[], "sleep 300");
    let parent = format!("parent={}", engine.bridge());
    let subnets: [_; 5] = std::array::from_fn(|_| FreeSubnet::new());
    let [flat, lost, moded, first, second] = &subnets;
    cli.run(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        &flat.v4(),
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
        &lost.v4(),
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
        &lost.v4(),
        "-o",
        &parent,
        "-o",
        "macvlan_mode=x",
        "lost",
    ];
    cli.run(&wrong)
        .refuses(1, "requested macvlan mode 'x' is not valid");
    // Only the mode "bridge" connects containers of one parent.
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
        // The mode "passthru" allows one container for a parent.
        let parent = if mode == "passthru" { &whole } else { &parent };
        cli.run(&[
            "network",
            "create",
            "-d",
            "macvlan",
            "--subnet",
            &moded.v4(),
            "-o",
            &option,
            "-o",
            parent,
            "moded",
        ])
        .ok();
        let (own, other) = (moded.v4_host(2), moded.v4_host(3));
        let reach = format!(
            "ip addr show eth0 | grep -cF {own}/; ping -c1 -w1 {other} >/dev/null && echo reached || echo apart"
        );
        let mut names = vec!["m1"];
        up(
            cli,
            "m1",
            &["--network", "moded", "--ip", &own],
            "sleep 300",
        );
        if mode == "passthru" {
            let second = ["run", "--rm", "--network", "moded", "busybox", "true"];
            cli.run(&second).refuses(125, "invalid argument");
        } else {
            up(
                cli,
                "m2",
                &["--network", "moded", "--ip", &other],
                "sleep 300",
            );
            names.push("m2");
        }
        assert_eq!(inside(cli, "m1", &reach), "1\napart", "{mode}");
        cli.run(&[&["rm", "-f"][..], &names].concat()).ok();
        cli.run(&["network", "rm", "moded"]).ok();
    }
    // A sub-interface that was created for networks is deleted with the last of them.
    let (vlan, option) = (
        format!("{}.7", engine.bridge()),
        format!("parent={}.7", engine.bridge()),
    );
    let there = || std::path::Path::new("/sys/class/net").join(&vlan).exists();
    for (name, subnet) in [("first", first.v4()), ("second", second.v4())] {
        let made = cli.run(&[
            "network", "create", "-d", "macvlan", "--subnet", &subnet, "-o", &option, name,
        ]);
        if made.code != 0 {
            // Kernels without VLAN support refuse.
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
fn ipvlan_networks_attach_containers() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "carrier", &[], "sleep 300");
    let parent = format!("parent={}", engine.bridge());
    let subnets = [FreeSubnet::new(), FreeSubnet::new()];
    for (mode, subnet) in ["l2", "l3"].into_iter().zip(&subnets) {
        let option = format!("ipvlan_mode={mode}");
        cli.run(&[
            "network",
            "create",
            "-d",
            "ipvlan",
            "--subnet",
            &subnet.v4(),
            "-o",
            &parent,
            "-o",
            &option,
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
            assert!(inside(cli, "second", "ping -c1 -w30 first").contains("1 packets received"));
            let way = if mode == "l3" {
                "default dev eth0"
            } else {
                &format!("default via {}", subnet.v4_host(1))
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
        &subnets[0].v4(),
        "-o",
        &parent,
        "-o",
        "ipvlan_mode=l7",
        "x",
    ];
    cli.run(&wrong)
        .refuses(1, "requested ipvlan mode 'l7' is not valid");
}
