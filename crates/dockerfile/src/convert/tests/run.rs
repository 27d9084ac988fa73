//! RUN.

use whelk_llb::pb::{CdiDevice, LinuxResources, Mount, MountType, NetMode, Ulimit};

use super::*;

#[test]
fn processes_have_settings() {
    let text = "FROM a\nUSER u\nWORKDIR /w\nENV A=b\nRUN --network=none --security=insecure [\"x\", \"$A\"]\nRUN y\n";
    let options = Options {
        build_args: build_args(&[("HTTP_PROXY", "p"), ("no_proxy", "n")]),
        extra_hosts: vec![("h".into(), "1.2.3.4".into())],
        hostname: "host".into(),
        shm_size: 5,
        ulimits: vec![Ulimit {
            name: "nofile".into(),
            soft: 1,
            hard: 2,
        }],
        cgroup_parent: "c".into(),
        resources: Some(LinuxResources {
            memory: 7,
            ..LinuxResources::default()
        }),
        devices: vec![CdiDevice {
            name: "d".into(),
            optional: true,
        }],
        network: NetMode::Host,
        no_cache: Some(Vec::new()),
        ..options()
    };
    let done = run(text, &options);
    let exec = done.exec("x");
    let meta = exec.meta.clone().unwrap_or_default();
    assert_eq!(meta.args, ["x", "$A"]);
    assert_eq!(meta.env, ["PATH=/bin", "A=b"]);
    assert_eq!((meta.cwd.as_str(), meta.user.as_str()), ("/w", "u"));
    assert_eq!(
        (meta.hostname.as_str(), meta.cgroup_parent.as_str()),
        ("host", "c")
    );
    assert_eq!(meta.extra_hosts[0].ip, "1.2.3.4");
    assert_eq!(meta.ulimit[0].hard, 2);
    assert!(meta.remove_mount_stubs_recursive);
    let proxy = meta.proxy_env.unwrap_or_default();
    assert_eq!(
        (proxy.http_proxy.as_str(), proxy.no_proxy.as_str()),
        ("p", "n")
    );
    assert_eq!(exec.network, i32::from(NetMode::None));
    assert_eq!(exec.security, 1);
    assert_eq!(exec.cdi_devices.len(), 1);
    assert_eq!(done.exec("RUN y").network, i32::from(NetMode::Host));
    let metadata = &done.node("x").metadata;
    assert!(metadata.ignore_cache);
    assert_eq!(
        metadata.linux_resources.clone().unwrap_or_default().memory,
        7
    );
    assert!(metadata.caps.contains_key("exec.meta.network"));
    let targets: Vec<&str> = exec
        .mounts
        .iter()
        .map(|mount| mount.dest.as_str())
        .collect();
    assert_eq!(targets, ["/", "/dev/shm"]);
    assert_eq!(done.history()[5].0, "RUN /bin/sh -c y # buildkit");
}

#[test]
fn mounts_are_sorted_and_numbered() {
    let text = "FROM a AS b\nFROM c\nWORKDIR /w\nENV T=/t\n\
        RUN --mount=target=z --mount=type=bind,from=b,src=/s,target=$T,rw --mount=type=cache,target=/c,uid=1 \
        --mount=type=cache,id=k,target=/k,from=b,sharing=private --mount=type=tmpfs,target=/m,size=3 \
        --mount=type=secret,id=one --mount=type=secret,src=two,env=TWO,required --mount=type=ssh,mode=0644 x\n";
    let done = run(text, &options());
    let exec = done.exec("RUN");
    let shown: Vec<(&str, i32, i64, i64, bool, &str)> = exec
        .mounts
        .iter()
        .map(|mount| {
            let Mount {
                dest,
                mount_type,
                input,
                output,
                readonly,
                selector,
                ..
            } = mount;
            (
                dest.as_str(),
                *mount_type,
                *input,
                *output,
                *readonly,
                selector.as_str(),
            )
        })
        .collect();
    let [bind, cache, tmpfs, secret, ssh] = [
        MountType::Bind,
        MountType::Cache,
        MountType::Tmpfs,
        MountType::Secret,
        MountType::Ssh,
    ]
    .map(i32::from);
    assert_eq!(
        shown,
        [
            ("/", bind, 0, 0, false, ""),
            ("/c", cache, 1, -1, false, "/cache"),
            ("/k", cache, 2, -1, false, ""),
            ("/m", tmpfs, -1, -1, false, ""),
            ("/t", bind, 2, -1, false, "/s"),
            ("/w/z", bind, 3, -1, true, ""),
            ("/run/secrets/one", secret, -1, 0, false, ""),
            ("/run/buildkit/ssh_agent.0", ssh, -1, 0, false, ""),
        ]
    );
    let id = |index: usize| exec.mounts[index].cache_opt.clone().unwrap_or_default();
    assert_eq!((id(1).id.as_str(), id(1).sharing), ("//c", 0));
    assert_eq!((id(2).id.as_str(), id(2).sharing), ("/k", 1));
    assert_eq!(exec.secretenv[0].name, "TWO");
    assert!(!exec.secretenv[0].optional);
    let secret = exec.mounts[6].secret_opt.clone().unwrap_or_default();
    assert_eq!(
        (secret.id.as_str(), secret.mode, secret.optional),
        ("one", 0o400, true)
    );
    assert_eq!(
        exec.mounts[7].ssh_opt.clone().unwrap_or_default().mode,
        0o644
    );
    let env = exec.meta.clone().unwrap_or_default().env;
    assert!(env.contains(&"SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0".to_owned()));
    let secrets: Vec<(&str, bool)> = done
        .conversion
        .outline
        .secrets
        .iter()
        .map(|secret| (secret.name.as_str(), secret.required))
        .collect();
    assert_eq!(secrets, [("one", false), ("two", true)]);
    assert_eq!(done.conversion.outline.ssh[0].name, "default");
}

#[test]
fn documents_are_scripts() {
    let args = |text: &str| -> (Vec<String>, String) {
        let done = run(&format!("FROM a\n{text}\n"), &options());
        let args = done.exec("RUN").meta.clone().unwrap_or_default().args;
        (args, name(done.node("RUN")).to_owned())
    };
    let (found, name) = args("RUN <<EOF\none $x\ntwo\nEOF");
    assert_eq!(found, ["/bin/sh", "-c", "one $x\ntwo\n"]);
    assert_eq!(name, "[2/2] RUN <<EOF (one $x...)");
    let (found, _) = args("RUN <<-EOF\n\tone\n\tEOF");
    assert_eq!(found[2], "one\n");
    let (found, _) = args("RUN cat <<A > x\none\nA");
    assert_eq!(found[2], "cat <<A > x\none\nA");
    let (found, _) = args("RUN <<A cat <<B\n1\nA\n2\nB");
    assert_eq!(found[2], "<<A cat <<B\n1\nA\n2\nB");
    let (found, _) = args("RUN <<EOF\n#!/bin/x\ny\nEOF");
    assert_eq!(found, ["/bin/sh", "-c", "/dev/pipes/EOF"]);
    let done = run("FROM a\nRUN <<EOF\n#!/bin/x\ny\nEOF\n", &options());
    let mount = &done.exec("RUN").mounts[1];
    assert_eq!((mount.dest.as_str(), mount.readonly), ("/dev/pipes/", true));
    let text = "FROM a\nWORKDIR /w\nRUN --mount=type=secret,id=one,target=in/file x\n";
    let done = run(text, &options());
    assert_eq!(done.exec("RUN").mounts[1].dest, "/w/in/file");
    let (found, _) = args("SHELL [\"sh\", \"-x\"]\nRUN a b");
    assert_eq!(found, ["sh", "-x", "a b"]);
    let (_, name) = args("RUN --mount=type=secret,id=a,env=S echo $S");
    assert_eq!(name, "[2/2] RUN --mount=type=secret,id=a,env=S echo ****");
}
