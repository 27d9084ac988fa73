//! Keys: what a cache knows the results of operations by.
//!
//! A key is the digest of an operation, without what does not change its result, and of the identity of each
//! input. So the keys of a whole chain of steps are known before any of them is executed.
//!
//! What an operation reads of an input by a path has two identities: [`Identity::Selection`], which needs the
//! input's key only, and [`Identity::Content`], for which the input must be there. A result is found by either.

use prost::Message as _;

use crate::digest::Digest;
use crate::pb::file_action::Action;
use crate::pb::op::Kind;
use crate::pb::user_opt::User;
use crate::pb::{ChownOpt, FileAction, FileOp, Mount, MountContentCache, MountType, Op, SourceOp};

/// Changes when keys are made in another way.
const VERSION: &[u8] = b"whelk key 1";

/// What an operation reads of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// All of it: the step stands on it.
    Whole,
    /// What these select.
    Selected(Vec<Selector>),
}

/// Paths in an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub path: String,
    /// Whether the path is a pattern.
    pub wildcard: bool,
    /// Whether a symbolic link at the end of the path is followed.
    pub follow: bool,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

/// The identity of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The key of the step.
    Step(Digest),
    /// The key of the step that is read from; the selectors are part of the operation.
    Selection(Digest),
    /// Digest of the content that is selected: paths, modes, owners, links, extended attributes and bytes.
    Content(Digest),
}

/// Returns how each input of an operation is used.
pub fn uses(op: &Op) -> Vec<Use> {
    let mut uses: Vec<Option<Use>> = vec![None; op.inputs.len()];
    let mut note = |index: i64, selector: Option<Selector>| {
        let Some(known) = usize::try_from(index)
            .ok()
            .and_then(|index| uses.get_mut(index))
        else {
            return;
        };
        *known = Some(match (known.take(), selector) {
            (Some(Use::Whole), _) | (_, None) => Use::Whole,
            (Some(Use::Selected(mut all)), Some(selector)) => {
                all.push(selector);
                Use::Selected(all)
            }
            (None, Some(selector)) => Use::Selected(vec![selector]),
        });
    };
    match &op.kind {
        Some(Kind::Exec(exec)) => {
            for mount in &exec.mounts {
                note(mount.input, mount_selector(mount));
            }
        }
        Some(Kind::File(file)) => file_uses(file, &mut note),
        _ => {}
    }
    let whole = |used: Option<Use>| used.unwrap_or(Use::Whole);
    uses.into_iter().map(whole).collect()
}

/// Returns what a mount selects that is no part of a result: what is written to it is not kept. An output of a mount
/// stands on all of the input, also if it cannot be written to.
fn mount_selector(mount: &Mount) -> Option<Selector> {
    let is_read = match MountType::try_from(mount.mount_type) {
        Ok(MountType::Bind) => mount.output < 0,
        // It has no output, whatever the index says.
        Ok(MountType::Cache) => true,
        _ => false,
    };
    let is_by_content = mount.content_cache != i32::from(MountContentCache::Off);
    (is_read && is_by_content && mount.dest != "/").then(|| Selector {
        path: mount.selector.clone(),
        follow: true,
        ..Selector::default()
    })
}

fn file_uses(file: &FileOp, note: &mut impl FnMut(i64, Option<Selector>)) {
    for action in &file.actions {
        note(action.input, None);
        match &action.action {
            Some(Action::Copy(copy)) => {
                let selector = Selector {
                    path: copy.src.clone(),
                    wildcard: copy.allow_wildcard,
                    follow: copy.follow_symlink,
                    include: copy.include_patterns.clone(),
                    exclude: copy.exclude_patterns.clone(),
                };
                note(action.secondary_input, Some(selector));
                for path in &copy.required_paths {
                    let path = path.clone();
                    let required = Selector {
                        path,
                        ..Selector::default()
                    };
                    note(action.secondary_input, Some(required));
                }
            }
            _ => note(action.secondary_input, None),
        }
        for input in owner(action).into_iter().flat_map(names) {
            note(input, None);
        }
    }
}

/// Returns the owner that an action gives to files.
fn owner(action: &FileAction) -> Option<&ChownOpt> {
    match action.action.as_ref()? {
        Action::Copy(copy) => copy.owner.as_ref(),
        Action::Mkfile(file) => file.owner.as_ref(),
        Action::Mkdir(directory) => directory.owner.as_ref(),
        Action::Symlink(link) => link.owner.as_ref(),
        Action::Rm(_) => None,
    }
}

/// Returns the inputs in whose databases of users the names of an owner are looked up.
fn names(owner: &ChownOpt) -> impl Iterator<Item = i64> {
    let both = [owner.user.as_ref(), owner.group.as_ref()];
    let both = both.into_iter().flatten();
    both.filter_map(|named| match named.user.as_ref()? {
        User::ByName(named) => Some(named.input),
        User::ById(_) => None,
    })
}

/// Returns the key of an operation other than a source, with the identities of its inputs in their order.
///
/// Not part of it are the proxy variables, the addresses of extra hosts, the names of caches, constraints, and
/// what is metadata: names and limits of resources.
pub fn step(op: &Op, inputs: &[Identity]) -> Digest {
    let mut op = op.clone();
    op.constraints = None;
    let outputs: Vec<[u8; 8]> = op
        .inputs
        .iter()
        .map(|input| input.index.to_le_bytes())
        .collect();
    op.inputs.clear();
    if let Some(Kind::Exec(exec)) = &mut op.kind {
        if let Some(meta) = &mut exec.meta {
            meta.proxy_env = None;
            meta.extra_hosts.iter_mut().for_each(|host| host.ip.clear());
        }
        for cache in exec
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.cache_opt.as_mut())
        {
            cache.id.clear();
        }
    }
    let bytes = op.encode_to_vec();
    let mut parts: Vec<&[u8]> = vec![VERSION, b"step", &bytes];
    for (output, input) in outputs.iter().zip(inputs) {
        let (kind, digest): (&[u8], &Digest) = match input {
            Identity::Step(digest) => (b"step", digest),
            Identity::Selection(digest) => (b"selection", digest),
            Identity::Content(digest) => (b"content", digest),
        };
        parts.extend([&output[..], kind, digest.as_bytes()]);
    }
    Digest::of_parts(parts)
}

/// Attributes that say how a source is fetched, not what it is.
const TRANSPORT: [&str; 15] = [
    "local.session",
    "local.unique",
    "local.sharedkeyhint",
    "local.differ",
    "git.fullurl",
    "git.authheadersecret",
    "git.authtokensecret",
    "git.knownsshhosts",
    "git.mountsshsock",
    "image.resolvemode",
    "image.recordtype",
    "image.checksum",
    "oci.session",
    "oci.store",
    "http.authheadersecret",
];

/// Returns the key of a source: of its kind, of what it is (the id of an image, a commit, a checksum), and of the
/// attributes that change its files.
pub fn source(source: &SourceOp, identity: &str) -> Digest {
    let (scheme, rest) = source
        .identifier
        .split_once("://")
        .unwrap_or((&source.identifier, ""));
    let scheme = if scheme == "https" { "http" } else { scheme };
    let directory = match rest
        .split_once('#')
        .and_then(|(_, reference)| reference.split_once(':'))
    {
        Some((_, directory)) if scheme == "git" => directory,
        _ => "",
    };
    let mut parts = vec![VERSION, b"source", scheme.as_bytes(), identity.as_bytes()];
    parts.push(directory.as_bytes());
    for (name, value) in &source.attrs {
        if !TRANSPORT.contains(&name.as_str()) {
            parts.extend([name.as_bytes(), value.as_bytes()]);
        }
    }
    Digest::of_parts(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{
        CacheOpt, ExecOp, FileActionCopy, HostIp, Input, Meta, NamedUserOpt, ProxyEnv, UserOpt,
        WorkerConstraints,
    };

    fn exec() -> Op {
        let mount = |dest: &str, input, readonly| Mount {
            dest: dest.into(),
            input,
            readonly,
            selector: "/s".into(),
            ..Mount::default()
        };
        Op {
            inputs: vec![Input::default(), Input::default()],
            kind: Some(Kind::Exec(ExecOp {
                meta: Some(Meta {
                    args: vec!["x".into()],
                    extra_hosts: vec![HostIp {
                        host: "h".into(),
                        ip: "1.2.3.4".into(),
                    }],
                    ..Meta::default()
                }),
                mounts: vec![
                    mount("/", 0, false),
                    Mount {
                        output: -1,
                        ..mount("/a", 1, true)
                    },
                    Mount {
                        cache_opt: Some(CacheOpt {
                            id: "c".into(),
                            sharing: 0,
                        }),
                        mount_type: 3,
                        ..mount("/c", -1, false)
                    },
                ],
                ..ExecOp::default()
            })),
            ..Op::default()
        }
    }

    fn change(change: impl FnOnce(&mut ExecOp)) -> Op {
        let mut op = exec();
        if let Some(Kind::Exec(exec)) = &mut op.kind {
            change(exec);
        }
        op
    }

    #[test]
    fn keys_depend_on_what_changes_results() {
        let digest = Digest::of(b"base");
        let inputs = [Identity::Step(digest), Identity::Selection(digest)];
        let key = |op: &Op| step(op, &inputs);
        let base = key(&exec());
        let set_meta = |set: fn(&mut Meta)| change(|exec| exec.meta.iter_mut().for_each(set));
        for same in [
            set_meta(|meta| meta.proxy_env = Some(ProxyEnv::default())),
            set_meta(|meta| meta.extra_hosts[0].ip = "::1".into()),
            change(|exec| {
                for cache in exec
                    .mounts
                    .iter_mut()
                    .filter_map(|mount| mount.cache_opt.as_mut())
                {
                    cache.id = "other".into();
                }
            }),
            Op {
                constraints: Some(WorkerConstraints::default()),
                ..exec()
            },
        ] {
            assert_eq!(key(&same), base, "{same:?}");
        }
        for other in [
            set_meta(|meta| meta.args.push("y".into())),
            set_meta(|meta| meta.env.push("A=b".into())),
            set_meta(|meta| meta.extra_hosts[0].host = "other".into()),
            change(|exec| exec.network = 1),
            change(|exec| exec.mounts[1].selector = "/t".into()),
            Op {
                platform: Some(crate::pb::Platform::new("linux", "arm64", "")),
                ..exec()
            },
        ] {
            assert_ne!(key(&other), base, "{other:?}");
        }
        let content = [Identity::Step(digest), Identity::Content(digest)];
        assert_ne!(step(&exec(), &content), base);
    }

    #[test]
    fn mounts_whose_writes_are_not_kept_select() {
        let check = |mount_type: MountType, dest: &str, readonly, output, expected: bool| {
            let mount = Mount {
                dest: dest.into(),
                readonly,
                output,
                mount_type: mount_type.into(),
                ..Mount::default()
            };
            assert_eq!(mount_selector(&mount).is_some(), expected, "{mount:?}");
        };
        check(MountType::Bind, "/a", true, -1, true);
        check(MountType::Bind, "/a", true, 1, false);
        check(MountType::Bind, "/a", false, -1, true);
        check(MountType::Bind, "/a", false, 1, false);
        check(MountType::Bind, "/", false, 0, false);
        check(MountType::Bind, "/", true, -1, false);
        check(MountType::Cache, "/a", false, 0, true);
        check(MountType::Tmpfs, "/a", false, -1, false);
        let by_step = Mount {
            dest: "/a".into(),
            output: -1,
            content_cache: MountContentCache::Off.into(),
            ..Mount::default()
        };
        assert_eq!(mount_selector(&by_step), None);
    }

    #[test]
    fn says_what_is_read_of_inputs() {
        let selected = |path: &str| Selector {
            path: path.into(),
            follow: true,
            ..Selector::default()
        };
        assert_eq!(
            uses(&exec()),
            [Use::Whole, Use::Selected(vec![selected("/s")])]
        );
        let copy = |src: &str, secondary_input| FileAction {
            input: 0,
            secondary_input,
            output: 0,
            action: Some(Action::Copy(FileActionCopy {
                src: src.into(),
                follow_symlink: true,
                ..FileActionCopy::default()
            })),
        };
        let op = |actions| Op {
            inputs: vec![Input::default(), Input::default()],
            kind: Some(Kind::File(FileOp { actions })),
            ..Op::default()
        };
        assert_eq!(
            uses(&op(vec![copy("/a", 1), copy("/b", 1)])),
            [
                Use::Whole,
                Use::Selected(vec![selected("/a"), selected("/b")])
            ]
        );
        assert_eq!(uses(&op(vec![copy("/a", 0)])), [Use::Whole, Use::Whole]);
        // The owner's name is looked up in all of the input; what is required counts, too.
        let mut named = copy("/a", 1);
        let mut required = copy("/a", 1);
        if let Some(Action::Copy(copy)) = &mut named.action {
            let user = User::ByName(NamedUserOpt {
                name: "u".into(),
                input: 1,
            });
            let user = Some(UserOpt { user: Some(user) });
            copy.owner = Some(ChownOpt { user, group: None });
        }
        if let Some(Action::Copy(copy)) = &mut required.action {
            copy.required_paths = vec!["/b".into()];
        }
        assert_eq!(uses(&op(vec![named])), [Use::Whole, Use::Whole]);
        let without_links = Selector {
            follow: false,
            ..selected("/b")
        };
        let both = Use::Selected(vec![selected("/a"), without_links]);
        assert_eq!(uses(&op(vec![required])), [Use::Whole, both]);
    }

    #[test]
    fn sources_are_what_they_contain() {
        let op = |identifier: &str, attrs: &[(&str, &str)]| SourceOp {
            identifier: identifier.into(),
            attrs: attrs
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        };
        let image = op("docker-image://docker.io/library/a:1", &[]);
        let same = op(
            "docker-image://docker.io/library/b:2",
            &[("image.resolvemode", "local")],
        );
        assert_eq!(source(&image, "sha256:x"), source(&same, "sha256:x"));
        assert_ne!(source(&image, "sha256:x"), source(&image, "sha256:y"));
        let git = op("git://host/a.git#main:dir", &[]);
        let other = op("git://host/a.git#main", &[]);
        assert_ne!(source(&git, "c"), source(&other, "c"));
        let keeps = op("git://host/a.git#main", &[("git.keepgitdir", "true")]);
        assert_ne!(source(&keeps, "c"), source(&other, "c"));
    }
}
