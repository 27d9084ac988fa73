//! The detail with the operation that has failed, in the JSON of Protocol Buffers, and with the names of its files, which a
//! client can run a container with.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde_json::{Map, Value, json};
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::user_opt::User;
use whelk_llb::pb::{
    ChownOpt, DiffOp, ExecOp, FileAction, FileOp, InputIndex, MergeOp, Meta, Mount, Op, Platform,
    SecretOpt, SourceOp, UserOpt,
};

use super::detail;
use crate::pb::Any;

/// Maximum size of the operation in a detail: all details of an error have to fit into a header.
const MAX_OP: usize = 48 << 10;

/// What an operation has failed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The action of a file operation with this index.
    Action(usize),
    /// What was to be found in the input with this index.
    Input(usize),
}

/// An operation that has failed.
#[derive(Clone, Debug)]
pub struct Failure<'a> {
    pub op: &'a Op,
    pub description: &'a BTreeMap<String, String>,
    /// The names of the files that its mounts, or actions, have begun with; empty for none.
    pub inputs: Vec<String>,
    /// The names of the files that they have left.
    pub results: Vec<String>,
    pub subject: Option<Subject>,
}

/// Returns the detail with an operation that has failed. One that is too large is left out.
pub fn solve(failure: &Failure<'_>) -> Any {
    let mut solve = Map::new();
    let mut set = |name: &str, value: Value| drop(solve.insert(name.to_owned(), value));
    set("inputIDs", json!(failure.inputs));
    set("mountIDs", json!(failure.results));
    if failure.op.encoded_len() <= MAX_OP {
        let mut op = op(failure.op);
        leave_out(&mut op);
        set("op", op);
        set("description", json!(failure.description));
    }
    match failure.subject {
        Some(Subject::Action(index)) => set("file", json!({ "index": index.to_string() })),
        Some(Subject::Input(index)) => set("cache", json!({ "index": index.to_string() })),
        None => {}
    }
    detail("Solve", &solve)
}

/// Leaves out what is not there.
fn leave_out(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(leave_out);
        }
        Value::Array(list) => list.iter_mut().for_each(leave_out),
        _ => {}
    }
}

/// Numbers of 64 bits are texts.
fn long(number: i64) -> Value {
    Value::String(number.to_string())
}

fn op(op: &Op) -> Value {
    let inputs = op.inputs.iter();
    let inputs = inputs.map(|input| json!({ "digest": input.digest, "index": long(input.index) }));
    let mut all = Map::new();
    all.insert("inputs".into(), inputs.collect());
    let kind = match &op.kind {
        Some(Kind::Exec(exec)) => Some(("exec", process(exec))),
        Some(Kind::Source(source)) => Some(("source", self::source(source))),
        Some(Kind::File(file)) => Some(("file", self::file(file))),
        Some(Kind::Merge(merge)) => Some(("merge", self::merge(merge))),
        Some(Kind::Diff(diff)) => Some(("diff", self::diff(diff))),
        // Clients do not know the latter.
        Some(Kind::Build(_) | Kind::Passthrough(_)) | None => None,
    };
    if let Some((name, value)) = kind {
        all.insert(name.into(), value);
    }
    if let Some(platform) = &op.platform {
        all.insert("platform".into(), self::platform(platform));
    }
    if let Some(constraints) = &op.constraints {
        let filter = json!({ "filter": constraints.filter });
        all.insert("constraints".into(), filter);
    }
    Value::Object(all)
}

fn platform(platform: &Platform) -> Value {
    json!({
        "Architecture": platform.architecture,
        "OS": platform.os,
        "Variant": platform.variant,
        "OSVersion": platform.os_version,
        "OSFeatures": platform.os_features,
    })
}

fn process(exec: &ExecOp) -> Value {
    let mounts: Vec<Value> = exec.mounts.iter().map(mount).collect();
    let secrets = exec
        .secretenv
        .iter()
        .map(|secret| json!({ "ID": secret.id, "name": secret.name, "optional": secret.optional }));
    let devices = exec.cdi_devices.iter();
    let devices = devices.map(|device| json!({ "name": device.name, "optional": device.optional }));
    json!({
        "meta": exec.meta.as_ref().map(meta),
        "mounts": mounts,
        "network": exec.network,
        "security": exec.security,
        "secretenv": secrets.collect::<Vec<_>>(),
        "cdiDevices": devices.collect::<Vec<_>>(),
    })
}

fn meta(meta: &Meta) -> Value {
    let proxies = meta.proxy_env.as_ref().map(|proxies| {
        json!({
            "http_proxy": proxies.http_proxy,
            "https_proxy": proxies.https_proxy,
            "ftp_proxy": proxies.ftp_proxy,
            "no_proxy": proxies.no_proxy,
            "all_proxy": proxies.all_proxy,
        })
    });
    let hosts = meta.extra_hosts.iter();
    let hosts = hosts.map(|host| json!({ "Host": host.host, "IP": host.ip }));
    let limits = meta.ulimit.iter().map(
        |limit| json!({ "Name": limit.name, "Soft": long(limit.soft), "Hard": long(limit.hard) }),
    );
    json!({
        "args": meta.args,
        "env": meta.env,
        "cwd": meta.cwd,
        "user": meta.user,
        "proxy_env": proxies,
        "extraHosts": hosts.collect::<Vec<_>>(),
        "hostname": meta.hostname,
        "ulimit": limits.collect::<Vec<_>>(),
        "cgroupParent": meta.cgroup_parent,
        "removeMountStubsRecursive": meta.remove_mount_stubs_recursive,
        "validExitCodes": meta.valid_exit_codes,
    })
}

fn mount(mount: &Mount) -> Value {
    let tmpfs = mount.tmpfs_opt.as_ref();
    let cache = mount.cache_opt.as_ref();
    json!({
        "input": long(mount.input),
        "selector": mount.selector,
        "dest": mount.dest,
        "output": long(mount.output),
        "readonly": mount.readonly,
        "mountType": mount.mount_type,
        "TmpfsOpt": tmpfs.map(|tmpfs| json!({ "size": long(tmpfs.size) })),
        "cacheOpt": cache.map(|cache| json!({ "ID": cache.id, "sharing": cache.sharing })),
        "secretOpt": mount.secret_opt.as_ref().map(secret),
        "SSHOpt": mount.ssh_opt.as_ref().map(secret),
        "resultID": mount.result_id,
        "contentCache": mount.content_cache,
    })
}

fn secret(secret: &SecretOpt) -> Value {
    json!({
        "ID": secret.id,
        "uid": secret.uid,
        "gid": secret.gid,
        "mode": secret.mode,
        "optional": secret.optional,
    })
}

fn source(source: &SourceOp) -> Value {
    json!({ "identifier": source.identifier, "attrs": source.attrs })
}

fn input(index: &InputIndex) -> Value {
    json!({ "input": long(index.input) })
}

fn merge(merge: &MergeOp) -> Value {
    let inputs: Vec<Value> = merge.inputs.iter().map(input).collect();
    json!({ "inputs": inputs })
}

fn diff(diff: &DiffOp) -> Value {
    json!({ "lower": diff.lower.as_ref().map(input), "upper": diff.upper.as_ref().map(input) })
}

fn file(file: &FileOp) -> Value {
    let actions: Vec<Value> = file.actions.iter().map(action).collect();
    json!({ "actions": actions })
}

fn action(action: &FileAction) -> Value {
    let mut all = json!({
        "input": long(action.input),
        "secondaryInput": long(action.secondary_input),
        "output": long(action.output),
    });
    let kind = match &action.action {
        Some(Action::Copy(copy)) => {
            let value = json!({
                "src": copy.src,
                "dest": copy.dest,
                "owner": copy.owner.as_ref().map(owner),
                "mode": copy.mode,
                "followSymlink": copy.follow_symlink,
                "dirCopyContents": copy.dir_copy_contents,
                "attemptUnpackDockerCompatibility": copy.attempt_unpack_docker_compatibility,
                "createDestPath": copy.create_dest_path,
                "allowWildcard": copy.allow_wildcard,
                "allowEmptyWildcard": copy.allow_empty_wildcard,
                "timestamp": long(copy.timestamp),
                "include_patterns": copy.include_patterns,
                "exclude_patterns": copy.exclude_patterns,
                "alwaysReplaceExistingDestPaths": copy.always_replace_existing_dest_paths,
                "modeStr": copy.mode_str,
            });
            Some(("copy", value))
        }
        Some(Action::Mkfile(file)) => {
            let value = json!({
                "path": file.path,
                "mode": file.mode,
                "data": STANDARD.encode(&file.data),
                "owner": file.owner.as_ref().map(owner),
                "timestamp": long(file.timestamp),
            });
            Some(("mkfile", value))
        }
        Some(Action::Mkdir(directory)) => {
            let value = json!({
                "path": directory.path,
                "mode": directory.mode,
                "makeParents": directory.make_parents,
                "owner": directory.owner.as_ref().map(owner),
                "timestamp": long(directory.timestamp),
            });
            Some(("mkdir", value))
        }
        Some(Action::Rm(rm)) => {
            let value = json!({
                "path": rm.path,
                "allowNotFound": rm.allow_not_found,
                "allowWildcard": rm.allow_wildcard,
            });
            Some(("rm", value))
        }
        Some(Action::Symlink(link)) => {
            let value = json!({
                "oldpath": link.oldpath,
                "newpath": link.newpath,
                "owner": link.owner.as_ref().map(owner),
                "timestamp": long(link.timestamp),
            });
            Some(("symlink", value))
        }
        None => None,
    };
    if let Some((name, value)) = kind {
        all[name] = value;
    }
    all
}

fn owner(owner: &ChownOpt) -> Value {
    json!({ "user": owner.user.as_ref().map(user), "group": owner.group.as_ref().map(user) })
}

fn user(user: &UserOpt) -> Value {
    match &user.user {
        Some(User::ByName(named)) => {
            json!({ "byName": { "name": named.name, "input": long(named.input) } })
        }
        Some(User::ById(id)) => json!({ "byID": id }),
        None => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use whelk_llb::pb::{CacheOpt, FileActionMkFile, Input, WorkerConstraints};

    use super::*;

    fn detail_of(op: &Op, subject: Option<Subject>) -> Value {
        let failure = Failure {
            op,
            description: &BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            inputs: vec!["one".into(), String::new()],
            results: vec!["two".into()],
            subject,
        };
        let detail = solve(&failure);
        let url = "github.com/moby/buildkit/errdefs.Solve+json";
        assert_eq!(detail.type_url, url);
        serde_json::from_slice(&detail.value).unwrap_or_default()
    }

    #[test]
    fn operations_have_the_names_of_the_protocol() {
        let exec = ExecOp {
            meta: Some(Meta {
                args: vec!["sh".into()],
                ..Meta::default()
            }),
            mounts: vec![Mount {
                dest: "/cache".into(),
                input: -1,
                mount_type: 3,
                cache_opt: Some(CacheOpt {
                    id: "key".into(),
                    sharing: 2,
                }),
                ..Mount::default()
            }],
            network: 2,
            ..ExecOp::default()
        };
        let op = Op {
            inputs: vec![Input {
                digest: "sha256:1".into(),
                index: 3,
            }],
            kind: Some(Kind::Exec(exec)),
            constraints: Some(WorkerConstraints::default()),
            ..Op::default()
        };
        let all = detail_of(&op, None);
        assert_eq!(all["inputIDs"], json!(["one", ""]));
        assert_eq!(all["mountIDs"], json!(["two"]));
        assert_eq!(all["description"], json!({ "a": "b" }));
        let inputs = json!([{ "digest": "sha256:1", "index": "3" }]);
        assert_eq!(all["op"]["inputs"], inputs);
        let exec = &all["op"]["exec"];
        assert_eq!(exec["meta"]["args"], json!(["sh"]));
        assert_eq!(exec["network"], 2);
        let mount = &exec["mounts"][0];
        assert_eq!(
            (&mount["input"], &mount["mountType"]),
            (&json!("-1"), &json!(3))
        );
        assert_eq!(mount.get("secretOpt"), None);
        assert_eq!(mount["cacheOpt"], json!({ "ID": "key", "sharing": 2 }));
        let fields = all.as_object().map(Map::len);
        assert_eq!(fields, Some(4), "{all}");
    }

    #[test]
    fn actions_that_fail_are_told() {
        let file = |size: usize| Op {
            kind: Some(Kind::File(FileOp {
                actions: vec![FileAction {
                    action: Some(Action::Mkfile(FileActionMkFile {
                        data: vec![b'x'; size],
                        ..FileActionMkFile::default()
                    })),
                    ..FileAction::default()
                }],
            })),
            ..Op::default()
        };
        let all = detail_of(&file(3), Some(Subject::Action(7)));
        assert_eq!(all["file"], json!({ "index": "7" }));
        assert_eq!(all["op"]["file"]["actions"][0]["mkfile"]["data"], "eHh4");
        let all = detail_of(&file(MAX_OP), Some(Subject::Input(1)));
        assert_eq!(all["cache"], json!({ "index": "1" }));
        assert_eq!(all.get("op"), None);
    }
}
