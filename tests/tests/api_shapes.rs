//! Fields of the Engine API's requests and responses: empty and absent ones, and differences between
//! versions.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use serde_json::{Value, json};
use whelk_tests::{Engine, Program, tar};

fn import(engine: &Engine, name: &str, changes: &[&str]) {
    engine.import(name, changes, &tar::Tar::new().dir("bin").finish());
}

#[test]
fn unset_fields_of_a_container_come_from_its_image_or_stay_empty() {
    let engine = Engine::start();
    import(&engine, "bare", &[]);
    import(
        &engine,
        "full",
        &[
            r#"ENTRYPOINT ["e"]"#,
            r#"CMD ["c"]"#,
            "ENV A=1",
            "WORKDIR /w",
            "VOLUME /v",
        ],
    );
    let made = |image: &str, mut body: Value| {
        body["Image"] = json!(image);
        body["HostConfig"] = json!({"NetworkMode": "none"});
        let (status, answer) = engine.api("POST", "/containers/create", Some(&body));
        if status != 201 {
            return Err(answer["message"].as_str().unwrap_or_default().to_owned());
        }
        Ok(engine.inspect(answer["Id"].as_str().unwrap()))
    };
    let command = |image: &str, body: Value| {
        made(image, body).map(|shown| {
            json!([
                shown["Config"]["Entrypoint"],
                shown["Config"]["Cmd"],
                shown["Path"],
                shown["Args"]
            ])
        })
    };
    for (image, body, expected) in [
        ("bare", json!({"Cmd": ["x"]}), json!([null, ["x"], "x", []])),
        (
            "bare",
            json!({"Entrypoint": ["z"], "Cmd": []}),
            json!([["z"], [], "z", []]),
        ),
        (
            "bare",
            json!({"Entrypoint": [], "Cmd": ["q"]}),
            json!([[], ["q"], "q", []]),
        ),
        (
            "bare",
            json!({"Entrypoint": [""], "Cmd": ["k"]}),
            json!([null, ["k"], "k", []]),
        ),
        ("full", json!({}), json!([["e"], ["c"], "e", ["c"]])),
        (
            "full",
            json!({"Cmd": []}),
            json!([["e"], ["c"], "e", ["c"]]),
        ),
        (
            "full",
            json!({"Entrypoint": [], "Cmd": []}),
            json!([[], ["c"], "c", []]),
        ),
        (
            "full",
            json!({"Entrypoint": []}),
            json!([[], ["c"], "c", []]),
        ),
        (
            "full",
            json!({"Entrypoint": ["z"]}),
            json!([["z"], null, "z", []]),
        ),
        (
            "full",
            json!({"Cmd": "one two"}),
            json!([["e"], ["one two"], "e", ["one two"]]),
        ),
    ] {
        assert_eq!(command(image, body.clone()), Ok(expected), "{image} {body}");
    }
    for body in [
        json!({"Entrypoint": [], "Cmd": []}),
        json!({"Cmd": []}),
        json!({"Entrypoint": [""]}),
    ] {
        assert_eq!(command("bare", body), Err("no command specified".into()));
    }
    let empty = json!({
        "Cmd": ["x"], "Env": [], "Volumes": {}, "Labels": {}, "ExposedPorts": {}, "WorkingDir": "", "Shell": [], "OnBuild": null,
    });
    let fields = |image: &str| {
        let shown = made(image, empty.clone()).unwrap();
        [
            "Env",
            "Volumes",
            "Labels",
            "ExposedPorts",
            "WorkingDir",
            "Shell",
            "OnBuild",
        ]
        .map(|field| {
            shown["Config"]
                .get(field)
                .map_or_else(|| "absent".into(), Value::to_string)
        })
        .join(" ")
    };
    assert_eq!(fields("bare"), r#"null null {} absent "" absent absent"#);
    assert_eq!(
        fields("full"),
        r#"["A=1"] {"/v":{}} {} absent "/w" absent absent"#
    );
    // Lists and maps of the host's part are what was sent.
    let bindings = |host: Value| {
        let body = json!({"Image": "busybox", "HostConfig": host});
        let shown = engine.inspect(&engine.create("", &body));
        let host = &shown["HostConfig"];
        json!([host["PortBindings"], host["Binds"], host["CapAdd"]])
    };
    assert_eq!(bindings(json!({})), json!([null, null, null]));
    assert_eq!(
        bindings(json!({"PortBindings": {}, "Binds": [], "CapAdd": []})),
        json!([{}, [], []])
    );
    assert_eq!(
        bindings(json!({"CapAdd": "NET_ADMIN"})),
        json!([null, null, ["NET_ADMIN"]])
    );
}

#[test]
fn an_image_has_all_fields_that_clients_read() {
    let engine = Engine::start();
    import(&engine, "bare", &[]);
    assert_eq!(engine.get("/images/bare/json")["Config"], json!({}));
    let config = engine.get("/v1.51/images/bare/json")["Config"].clone();
    let expected = json!({
        "User": "", "Env": null, "Cmd": null, "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null,
    });
    assert_eq!(config, expected);
    for minor in [44, 49] {
        let config = engine.get(&format!("/v1.{minor}/images/bare/json"))["Config"].clone();
        for field in ["Hostname", "Domainname", "Image"] {
            assert_eq!(config[field], "", "1.{minor} {field}");
        }
        for field in [
            "AttachStdin",
            "AttachStdout",
            "AttachStderr",
            "Tty",
            "OpenStdin",
            "StdinOnce",
        ] {
            assert_eq!(config[field], false, "1.{minor} {field}");
        }
    }
    let listed = |version: &str| engine.get(&format!("{version}/images/json"))[0].clone();
    assert_eq!(
        (
            listed("")["Containers"].as_i64(),
            listed("/v1.50")["Containers"].as_i64()
        ),
        (Some(0), Some(-1))
    );
    assert_eq!(
        (
            listed("/v1.43").get("VirtualSize").is_some(),
            listed("/v1.44").get("VirtualSize").is_some()
        ),
        (true, false)
    );
}

#[test]
fn inspect_shows_the_paths_of_a_running_container() {
    let engine = Engine::start();
    let network = |mode: &str| {
        let name = mode.replace(':', "-");
        engine.create(&name, &json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": mode}}));
        let before = engine.inspect(&name);
        assert_eq!(before["NetworkSettings"]["SandboxID"], "", "{mode}");
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{name}/start"), None)
                .0,
            204,
            "{mode}"
        );
        let shown = engine.inspect(&name);
        // A path that tools can read.
        let merged = shown["GraphDriver"]["Data"]["MergedDir"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            std::path::Path::new(&merged).join("bin/busybox").exists(),
            "{merged}"
        );
        shown["NetworkSettings"].clone()
    };
    for mode in ["host", "none", "bridge"] {
        let shown = network(mode);
        let id = shown["Networks"][mode]["EndpointID"].as_str().unwrap();
        assert_eq!(
            (id.len(), shown["SandboxID"].as_str().unwrap().len()),
            (64, 64),
            "{mode}: {shown}"
        );
        assert!(!shown["SandboxKey"].as_str().unwrap().is_empty(), "{mode}");
        let members = engine.get(&format!("/networks/{mode}"))["Containers"].clone();
        let member = members
            .as_object()
            .unwrap()
            .values()
            .find(|member| member["Name"] == mode)
            .unwrap();
        assert_eq!(member["EndpointID"], id, "{mode}");
    }
    for mode in ["host", "none"] {
        engine.docker(&["kill", mode]).ok();
        engine.await_state(mode, "exited");
        assert_eq!(
            engine.inspect(mode)["NetworkSettings"]["Networks"][mode]["EndpointID"],
            "",
            "{mode}"
        );
        assert_eq!(
            engine.get(&format!("/networks/{mode}"))["Containers"],
            json!({}),
            "{mode}"
        );
    }
}

#[test]
fn mac_addresses_and_dns_names_are_in_the_fields_that_clients_read() {
    let engine = Engine::start();
    engine.docker(&["network", "create", "net"]).ok();
    let endpoint = json!({"MacAddress": "02:42:ac:11:00:78", "Aliases": ["alias"]});
    let body = json!({
        "Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "net", "Annotations": {"x": "y"}},
        "NetworkingConfig": {"EndpointsConfig": {"net": endpoint}},
    });
    let id = engine.create("named", &body);
    let short = &id[..12];
    let inspected = |version: &str| engine.get(&format!("{version}/containers/named/json"));
    assert_eq!(
        inspected("/v1.51")["Config"]["MacAddress"],
        "02:42:ac:11:00:78"
    );
    assert_eq!(inspected("")["Config"].get("MacAddress"), None);
    assert_eq!(
        inspected("")["NetworkSettings"]["Networks"]["net"]["Aliases"],
        json!(["alias"])
    );
    assert_eq!(
        inspected("/v1.44")["NetworkSettings"]["Networks"]["net"]["Aliases"],
        json!(["alias", short]),
        "as it was before 1.45"
    );
    let listed = |version: &str| engine.get(&format!("{version}/containers/json?all=1"))[0].clone();
    let network = listed("")["NetworkSettings"]["Networks"]["net"].clone();
    assert_eq!(
        (&network["Aliases"], &network["DNSNames"]),
        (&Value::Null, &Value::Null),
        "lists do not have them"
    );
    assert_eq!(
        listed("/v1.46")["HostConfig"],
        json!({"NetworkMode": "net", "Annotations": {"x": "y"}})
    );
    assert_eq!(
        listed("/v1.45")["HostConfig"],
        json!({"NetworkMode": "net"})
    );
    // Before 1.44, a container had one MAC address.
    let create = |version: &str, body: &Value| {
        engine.api("POST", &format!("{version}/containers/create"), Some(body))
    };
    let warnings = |version: &str| {
        let body = json!({"Image": "busybox", "MacAddress": "02:42:ac:11:00:01"});
        create(version, &body).1["Warnings"].clone()
    };
    let deprecated = "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.";
    assert_eq!(
        (warnings("/v1.43"), warnings("/v1.44")),
        (json!([]), json!([deprecated]))
    );
    let (status, answer) = create(
        "/v1.52",
        &json!({"Image": "busybox", "MacAddress": "02:42:ac:11:00:01"}),
    );
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            400,
            Some(
                "container-wide MAC address no longer supported; use endpoint-specific MAC address instead"
            )
        )
    );
    // Endpoints had no MAC address of their own before 1.44.
    let connected = |version: &str| {
        let body =
            json!({"Container": "named", "EndpointConfig": {"MacAddress": "02:42:ac:11:00:79"}});
        let path = format!("{version}/networks/bridge/connect");
        assert_eq!(engine.api("POST", &path, Some(&body)).0, 200);
        let shown = inspected("")["NetworkSettings"]["Networks"]["bridge"]["MacAddress"].clone();
        let path = "/networks/bridge/disconnect";
        assert_eq!(engine.api("POST", path, Some(&body)).0, 200);
        shown
    };
    assert_eq!(connected("/v1.43"), "");
    assert_eq!(connected("/v1.44"), "02:42:ac:11:00:79");
}

#[test]
fn containers_and_networks_have_the_fields_of_1_52() {
    let engine = Engine::start();
    let body = json!({
        "Image": "busybox", "Cmd": ["sleep", "600"], "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {"PortBindings": {"80/tcp": []}},
    });
    let unbound = "Following container port(s) have an empty list of port-bindings: 80/tcp. Such bindings will be discarded in a future version.";
    for (version, name, expected) in [
        ("/v1.51", "old", json!([])),
        ("/v1.52", "web", json!([unbound])),
    ] {
        let path = format!("{version}/containers/create?name={name}");
        let (status, answer) = engine.api("POST", &path, Some(&body));
        assert_eq!((status, &answer["Warnings"]), (201, &expected));
    }
    assert_eq!(engine.api("POST", "/containers/web/start", None).0, 204);
    let settings = |version: &str| {
        engine.get(&format!("{version}/containers/web/json"))["NetworkSettings"].clone()
    };
    let (old, new) = (settings("/v1.51"), settings("/v1.52"));
    let endpoint = &new["Networks"]["bridge"];
    for field in [
        "IPAddress",
        "Gateway",
        "MacAddress",
        "EndpointID",
        "IPPrefixLen",
    ] {
        assert_eq!(old[field], endpoint[field], "{field}");
        assert_eq!(new.get(field), None, "{field}");
    }
    assert_eq!(
        (old["Bridge"].as_str(), new.get("Bridge")),
        (Some(""), None)
    );
    let network = |version: &str| engine.get(&format!("{version}/networks/bridge"));
    assert_eq!(network("/v1.51").get("Status"), None);
    let shown = network("/v1.52");
    let subnet = shown["IPAM"]["Config"][0]["Subnet"].as_str().unwrap();
    let bits: u32 = subnet.rsplit('/').next().unwrap().parse().unwrap();
    // The network and broadcast addresses, the gateway, and the container.
    assert_eq!(
        shown["Status"]["IPAM"]["Subnets"][subnet],
        json!({"IPsInUse": 4, "DynamicIPsAvailable": 2_u64.pow(32 - bits) - 4}),
        "{shown}"
    );
    let listed =
        |version: &str| engine.get(&format!("{version}/networks"))[0]["Containers"].clone();
    assert_eq!(
        (listed("/v1.51"), listed("/v1.52")),
        (json!({}), Value::Null)
    );
    let update = |version: &str| {
        let body = json!({"BlkioDeviceReadBps": []});
        let path = format!("{version}/containers/web/update");
        assert_eq!(engine.api("POST", &path, Some(&body)).0, 200);
        engine.inspect("web")["HostConfig"]["BlkioDeviceReadBps"].clone()
    };
    assert_eq!(
        (update("/v1.54"), update("/v1.55")),
        (Value::Null, json!([]))
    );
}

#[test]
fn disk_usage_has_totals_since_1_52() {
    let engine = Engine::start();
    let id = engine.create("idle", &json!({"Image": "busybox"}));
    let fields = |path: &str| {
        let usage = engine.get(path);
        let fields = usage.as_object().unwrap();
        fields.keys().cloned().collect::<Vec<_>>().join(" ")
    };
    let old = "LayersSize Images Containers Volumes BuildCache";
    let new = "ImageUsage ContainerUsage VolumeUsage BuildCacheUsage";
    assert_eq!(fields("/v1.51/system/df?verbose=1"), old);
    assert_eq!(fields("/v1.52/system/df"), format!("{new} {old}"));
    assert_eq!(fields("/v1.55/system/df?verbose=1"), new);
    assert_eq!(
        fields("/v1.55/system/df?verbose=1&type=container"),
        "ContainerUsage"
    );
    let usage = engine.get("/system/df?verbose=1");
    let image = &usage["ImageUsage"];
    assert_eq!(
        (&image["ActiveCount"], &image["TotalCount"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(image["TotalSize"], engine.get("/system/df")["LayersSize"]);
    assert_eq!(image["Items"][0]["Containers"], 1);
    let containers = &usage["ContainerUsage"];
    assert_eq!(
        (&containers["TotalCount"], containers.get("ActiveCount")),
        (&json!(1), None)
    );
    assert_eq!(containers["Items"][0]["Id"], id);
    assert_eq!(usage["BuildCacheUsage"], json!({}));
}

#[test]
fn events_have_the_media_type_that_the_client_accepts() {
    let engine = Engine::start();
    engine.docker(&["volume", "create", "made"]).ok();
    let created = engine.events("since=1").next_event().unwrap();
    let until = created["time"].as_i64().unwrap() + 1;
    let events = |version: &str, accept: &str| {
        let path = format!("{version}/events?since=1&until={until}");
        let headers = [("Accept", accept)];
        let headers = if accept.is_empty() { &[] } else { &headers[..] };
        let response = engine.http("GET", &path, headers, b"");
        let kind = response.header("content-type").unwrap().to_owned();
        (kind, response.text())
    };
    for (version, accept, kind, separated) in [
        ("/v1.51", "", "application/json", false),
        ("/v1.52", "", "application/jsonl", false),
        ("/v1.52", "*/*", "application/jsonl", false),
        (
            "/v1.51",
            "application/x-ndjson",
            "application/x-ndjson",
            false,
        ),
        (
            "/v1.55",
            "text/plain, application/json-seq;q=1",
            "application/json-seq",
            true,
        ),
    ] {
        let (found, text) = events(version, accept);
        assert_eq!(found, kind, "{version} {accept}");
        let line = text.lines().next().unwrap();
        assert_eq!(line.starts_with('\u{1e}'), separated, "{text:?}");
        let event: Value = serde_json::from_str(line.trim_start_matches('\u{1e}')).unwrap();
        assert_eq!(event["Actor"], created["Actor"], "{event}");
    }
}

#[test]
fn settings_of_later_versions_are_rejected_or_ignored() {
    let engine = Engine::start();
    engine.docker(&["network", "create", "net"]).ok();
    let create = |version: &str, body: &Value| {
        engine.api("POST", &format!("{version}/containers/create"), Some(body))
    };
    let two = json!({
        "Image": "busybox", "HostConfig": {"NetworkMode": "net"}, "NetworkingConfig": {"EndpointsConfig": {"net": {}, "bridge": {}}},
    });
    let mount = |mount: Value| json!({"Image": "busybox", "HostConfig": {"NetworkMode": "none", "Mounts": [mount]}});
    for (before, since, body, text) in [
        (
            "/v1.43",
            "/v1.44",
            two,
            "Container cannot be created with multiple network endpoints: bridge, net",
        ),
        (
            "/v1.44",
            "/v1.45",
            mount(
                json!({"Type": "volume", "Source": "vol", "Target": "/v", "VolumeOptions": {"Subpath": "x"}}),
            ),
            "VolumeOptions.Subpath needs API v1.45 or newer",
        ),
        (
            "/v1.47",
            "/v1.48",
            mount(json!({"Type": "image", "Source": "busybox", "Target": "/v"})),
            "Mount type \"Image\" needs API v1.48 or newer",
        ),
    ] {
        let (status, answer) = create(before, &body);
        assert_eq!((status, answer["message"].as_str()), (400, Some(text)));
        let (status, answer) = create(since, &body);
        assert_eq!(status, 201, "{answer}");
    }
    let kinds = |version: &str, name: &str| {
        let body = json!({"Name": name, "EnableIPv4": false, "EnableIPv6": true});
        let (status, answer) =
            engine.api("POST", &format!("{version}/networks/create"), Some(&body));
        assert_eq!(status, 201, "{answer}");
        let shown = engine.get(&format!("/networks/{name}"));
        (shown["EnableIPv4"].clone(), shown["EnableIPv6"].clone())
    };
    assert_eq!(
        kinds("/v1.47", "old"),
        (json!(true), json!(true)),
        "every network had IPv4 before 1.48"
    );
    assert_eq!(kinds("/v1.48", "new"), (json!(false), json!(true)));
}

#[test]
fn info_and_version_have_the_fields_that_clients_print() {
    let engine = Engine::start();
    let info = engine.get("/info");
    assert_eq!(
        (&info["Debug"], &info["FirewallBackend"]),
        (&json!(false), &json!({"Driver": "nftables"}))
    );
    assert_eq!(info["IndexServerAddress"], "https://index.docker.io/v1/");
    assert_eq!(
        info["RegistryConfig"]["IndexConfigs"]["docker.io"]["Official"],
        true
    );
    assert_eq!(
        (
            info.get("BridgeNfIptables"),
            info["CDISpecDirs"].as_array().map(Vec::len)
        ),
        (None, Some(2))
    );
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
        .unwrap()
        .trim()
        == "1";
    assert_eq!(info["IPv4Forwarding"], forwarding);
    let old = engine.get("/v1.48/info");
    assert!(
        old["BridgeNfIptables"].is_boolean()
            && old["BridgeNfIp6tables"].is_boolean()
            && old.get("FirewallBackend").is_none()
    );
    let version = engine.get("/version");
    let names: Vec<&str> = version["Components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["Name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["Engine", "whelk-oci", "whelk-init"]);
    let mut shown = None;
    for program in [Program::Docker, Program::Whelk] {
        let text = engine.cli(program).run(&["version"]).ok();
        assert!(
            text.contains("whelk-oci:\n  Version:"),
            "{program:?}: {text}"
        );
        let text = engine.cli(program).run(&["info"]).ok();
        // The clients differ. Docker's prints the runtimes in random order, and the backend of the
        // firewall only in later versions.
        let (_, about) = text.split_once("\nServer:\n").unwrap();
        let mut about: Vec<String> = about.trim().lines().map(str::to_owned).collect();
        about.retain(|line| !line.contains("Runtimes:") && !line.contains("Firewall Backend:"));
        assert_eq!(*shown.get_or_insert_with(|| about.clone()), about);
        let memory = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Total Memory: "))
            .unwrap();
        assert!(
            memory.ends_with("GiB") || memory.ends_with("MiB"),
            "{program:?}: {memory}"
        );
    }
}
