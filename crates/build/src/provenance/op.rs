//! Operations as JSON, in the form in which BuildKit writes them into provenance: the names of its messages, without what
//! is not set.

use serde_json::{Map, Value};
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::user_opt::User;
use whelk_llb::pb::{
    ChownOpt, ExecOp, FileAction, Locations, Meta, Mount, Op, Platform, Position, SecretOpt,
    SourceOp, UserOpt,
};

use super::purl::without_credentials;

/// An object that is being made.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    /// Adds a member, unless its value is the default.
    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let is_set = match &value {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Number(number) => number.as_i64() != Some(0),
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(_) => true,
        };
        if is_set {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    fn end(self) -> Value {
        Value::Object(self.0)
    }
}

fn list<T>(list: &[T], element: impl FnMut(&T) -> Value) -> Value {
    Value::Array(list.iter().map(element).collect())
}

fn optional<T>(value: Option<&T>, encode: impl FnOnce(&T) -> Value) -> Value {
    value.map_or(Value::Null, encode)
}

/// Bytes are in base64.
fn bytes(bytes: &[u8]) -> Value {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .encode(bytes)
        .into()
}

/// Encodes an operation without its inputs, which are named otherwise.
pub(super) fn op(op: &Op) -> Value {
    let kind = match &op.kind {
        None => Object::default(),
        Some(Kind::Exec(op)) => Object::default().with("exec", exec(op)),
        Some(Kind::Source(op)) => Object::default().with("source", source(op)),
        Some(Kind::File(op)) => {
            let actions = list(&op.actions, action);
            Object::default().with("file", Object::default().with("actions", actions).end())
        }
        Some(Kind::Build(_)) => Object::default().with("build", Object::default().end()),
        Some(Kind::Merge(op)) => {
            let inputs = list(&op.inputs, |one| index(one.input));
            Object::default().with("merge", Object::default().with("inputs", inputs).end())
        }
        Some(Kind::Diff(op)) => {
            let side =
                |side: Option<&whelk_llb::pb::InputIndex>| optional(side, |one| index(one.input));
            let diff = Object::default()
                .with("lower", side(op.lower.as_ref()))
                .with("upper", side(op.upper.as_ref()));
            Object::default().with("diff", diff.end())
        }
        Some(Kind::Passthrough(op)) => {
            let passed = Object::default()
                .with("id", op.id.clone())
                .with("outputs", op.outputs.clone());
            Object::default().with("passthrough", passed.end())
        }
    };
    let constraints = optional(op.constraints.as_ref(), |constraints| {
        Object::default()
            .with("filter", constraints.filter.clone())
            .end()
    });
    Object::default()
        .with("Op", kind.end())
        .with("platform", optional(op.platform.as_ref(), platform))
        .with("constraints", constraints)
        .end()
}

fn index(input: i64) -> Value {
    Object::default().with("input", input).end()
}

fn platform(platform: &Platform) -> Value {
    Object::default()
        .with("Architecture", platform.architecture.clone())
        .with("OS", platform.os.clone())
        .with("Variant", platform.variant.clone())
        .with("OSVersion", platform.os_version.clone())
        .with("OSFeatures", platform.os_features.clone())
        .end()
}

/// Sessions are those of one build, and credentials are for nobody else.
fn source(op: &SourceOp) -> Value {
    let attributes = op
        .attrs
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "local.session" | "local.unique"));
    let attributes: Map<String, Value> = attributes
        .map(|(name, value)| (name.clone(), without_credentials(value).into()))
        .collect();
    let attributes = match attributes.is_empty() {
        true => Value::Null,
        false => Value::Object(attributes),
    };
    Object::default()
        .with("identifier", without_credentials(&op.identifier))
        .with("attrs", attributes)
        .end()
}

fn exec(op: &ExecOp) -> Value {
    let secrets = list(&op.secretenv, |secret| {
        Object::default()
            .with("ID", secret.id.clone())
            .with("name", secret.name.clone())
            .with("optional", secret.optional)
            .end()
    });
    let devices = list(&op.cdi_devices, |device| {
        Object::default()
            .with("name", device.name.clone())
            .with("optional", device.optional)
            .end()
    });
    Object::default()
        .with("meta", optional(op.meta.as_ref(), meta))
        .with("mounts", list(&op.mounts, mount))
        .with("network", op.network)
        .with("security", op.security)
        .with("secretenv", secrets)
        .with("cdiDevices", devices)
        .end()
}

fn meta(meta: &Meta) -> Value {
    let hosts = list(&meta.extra_hosts, |host| {
        Object::default()
            .with("Host", host.host.clone())
            .with("IP", host.ip.clone())
            .end()
    });
    let limits = list(&meta.ulimit, |limit| {
        Object::default()
            .with("Name", limit.name.clone())
            .with("Soft", limit.soft)
            .with("Hard", limit.hard)
            .end()
    });
    // The values of proxies are no part: they may have credentials.
    Object::default()
        .with("args", meta.args.clone())
        .with("env", meta.env.clone())
        .with("cwd", meta.cwd.clone())
        .with("user", meta.user.clone())
        .with("extraHosts", hosts)
        .with("hostname", meta.hostname.clone())
        .with("ulimit", limits)
        .with("cgroupParent", meta.cgroup_parent.clone())
        .with(
            "removeMountStubsRecursive",
            meta.remove_mount_stubs_recursive,
        )
        .with("validExitCodes", meta.valid_exit_codes.clone())
        .end()
}

fn mount(mount: &Mount) -> Value {
    let secret = |secret: &SecretOpt| {
        Object::default()
            .with("ID", secret.id.clone())
            .with("uid", secret.uid)
            .with("gid", secret.gid)
            .with("mode", secret.mode)
            .with("optional", secret.optional)
            .end()
    };
    let tmpfs = optional(mount.tmpfs_opt.as_ref(), |tmpfs| {
        Object::default().with("size", tmpfs.size).end()
    });
    let cache = optional(mount.cache_opt.as_ref(), |cache| {
        Object::default()
            .with("ID", cache.id.clone())
            .with("sharing", cache.sharing)
            .end()
    });
    Object::default()
        .with("input", mount.input)
        .with("selector", mount.selector.clone())
        .with("dest", mount.dest.clone())
        .with("output", mount.output)
        .with("readonly", mount.readonly)
        .with("mountType", mount.mount_type)
        .with("TmpfsOpt", tmpfs)
        .with("cacheOpt", cache)
        .with("secretOpt", optional(mount.secret_opt.as_ref(), secret))
        .with("SSHOpt", optional(mount.ssh_opt.as_ref(), secret))
        .with("resultID", mount.result_id.clone())
        .with("contentCache", mount.content_cache)
        .end()
}

fn action(action: &FileAction) -> Value {
    let kind = match &action.action {
        None => Object::default(),
        Some(Action::Copy(copy)) => {
            let encoded = Object::default()
                .with("src", copy.src.clone())
                .with("dest", copy.dest.clone())
                .with("owner", optional(copy.owner.as_ref(), owner))
                .with("mode", copy.mode)
                .with("followSymlink", copy.follow_symlink)
                .with("dirCopyContents", copy.dir_copy_contents)
                .with(
                    "attemptUnpackDockerCompatibility",
                    copy.attempt_unpack_docker_compatibility,
                )
                .with("createDestPath", copy.create_dest_path)
                .with("allowWildcard", copy.allow_wildcard)
                .with("allowEmptyWildcard", copy.allow_empty_wildcard)
                .with("timestamp", copy.timestamp)
                .with("include_patterns", copy.include_patterns.clone())
                .with("exclude_patterns", copy.exclude_patterns.clone())
                .with(
                    "alwaysReplaceExistingDestPaths",
                    copy.always_replace_existing_dest_paths,
                )
                .with("modeStr", copy.mode_str.clone());
            Object::default().with("copy", encoded.end())
        }
        Some(Action::Mkfile(file)) => {
            let encoded = Object::default()
                .with("path", file.path.clone())
                .with("mode", file.mode)
                .with("data", bytes(&file.data))
                .with("owner", optional(file.owner.as_ref(), owner))
                .with("timestamp", file.timestamp);
            Object::default().with("mkfile", encoded.end())
        }
        Some(Action::Mkdir(directory)) => {
            let encoded = Object::default()
                .with("path", directory.path.clone())
                .with("mode", directory.mode)
                .with("makeParents", directory.make_parents)
                .with("owner", optional(directory.owner.as_ref(), owner))
                .with("timestamp", directory.timestamp);
            Object::default().with("mkdir", encoded.end())
        }
        Some(Action::Rm(rm)) => {
            let encoded = Object::default()
                .with("path", rm.path.clone())
                .with("allowNotFound", rm.allow_not_found)
                .with("allowWildcard", rm.allow_wildcard);
            Object::default().with("rm", encoded.end())
        }
        Some(Action::Symlink(link)) => {
            let encoded = Object::default()
                .with("oldpath", link.oldpath.clone())
                .with("newpath", link.newpath.clone())
                .with("owner", optional(link.owner.as_ref(), owner))
                .with("timestamp", link.timestamp);
            Object::default().with("symlink", encoded.end())
        }
    };
    let mut encoded = Map::new();
    encoded.insert("input".into(), action.input.into());
    encoded.insert("secondaryInput".into(), action.secondary_input.into());
    encoded.insert("output".into(), action.output.into());
    encoded.insert("Action".into(), kind.end());
    Value::Object(encoded)
}

fn owner(owner: &ChownOpt) -> Value {
    let user = |user: &UserOpt| {
        let user = match &user.user {
            Some(User::ByName(named)) => {
                let named = Object::default()
                    .with("name", named.name.clone())
                    .with("input", named.input);
                Object::default().with("byName", named.end())
            }
            Some(User::ById(id)) => Object::default().with("byId", *id),
            None => Object::default(),
        };
        Object::default().with("User", user.end()).end()
    };
    Object::default()
        .with("user", optional(owner.user.as_ref(), user))
        .with("group", optional(owner.group.as_ref(), user))
        .end()
}

/// Encodes the lines that an operation comes from.
pub(super) fn locations(locations: &Locations) -> Value {
    let position = |position: &Position| {
        Object::default()
            .with("line", position.line)
            .with("character", position.character)
            .end()
    };
    let locations = list(&locations.locations, |location| {
        let ranges = list(&location.ranges, |range| {
            Object::default()
                .with("start", optional(range.start.as_ref(), position))
                .with("end", optional(range.end.as_ref(), position))
                .end()
        });
        Object::default()
            .with("sourceIndex", location.source_index)
            .with("ranges", ranges)
            .end()
    });
    Object::default().with("locations", locations).end()
}
