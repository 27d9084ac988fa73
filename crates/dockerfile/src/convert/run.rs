//! RUN.

use std::rc::Rc;

use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    self, CacheOpt, CacheSharing, CdiDevice, ExecOp, FileAction, FileActionMkDir, FileOp, HostIp,
    Meta, MountType, NetMode, SecretEnv, SecretOpt, SecurityMode, TmpfsOpt, file_action, user_opt,
};
use whelk_llb::{Output, Vertex};

use super::target::{SecretInfo, Target};
use super::{COMMAND, Converter, metadata, names, ranges};
use crate::error::{Error, Result};
use crate::expand::{Environment, Lexer};
use crate::heredoc;
use crate::instruction::{Arg, Command, Mount, MountKind, Network, Run, Sharing};
use crate::path;
use crate::stage::Step;

/// Where a script of a heredoc is mounted.
const PIPES: &str = "/dev/pipes/";

/// A mount with its source, before its index is known.
struct Prepared {
    source: Option<Output>,
    mount: pb::Mount,
    caps: &'static [&'static str],
}

/// The mounts of a RUN.
#[derive(Default)]
struct Mounts {
    bind: Vec<Prepared>,
    secrets: Vec<pb::Mount>,
    secret_env: Vec<SecretEnv>,
    ssh: Vec<pb::Mount>,
}

fn prepared(target: &str, source: Option<Output>) -> Prepared {
    Prepared {
        source,
        mount: pb::Mount {
            dest: target.to_owned(),
            output: -1,
            ..pb::Mount::default()
        },
        caps: &[],
    }
}

impl Converter<'_> {
    pub(super) fn exec(
        &mut self,
        target: &mut Target,
        step: &Step,
        run: Run,
        sources: &[Option<usize>],
    ) -> Result<()> {
        let mut mounts = Mounts::default();
        let (args, shown) = self.process(target, step, &run, &mut mounts)?;
        if args.is_empty() {
            let text = "failed to marshal LLB definition: arguments are required";
            return Err(Error::new(text));
        }
        for (mount, source) in run.mounts.iter().zip(sources) {
            self.mount(target, step, mount, *source, &mut mounts)?;
        }
        if self.options.shm_size > 0 {
            let mut shm = prepared("/dev/shm", None);
            shm.mount.mount_type = MountType::Tmpfs.into();
            shm.mount.tmpfs_opt = Some(TmpfsOpt {
                size: self.options.shm_size,
            });
            mounts.bind.push(shm);
        }
        let env = Rc::clone(&target.state.env);
        let name = self.run_name(target, &run, &shown, &env)?;
        let mut caps = vec!["exec.meta.base", "exec.meta.setsdefaultpath"];
        let mut meta = self.meta(target, args.clone(), &mut caps);
        for (number, ssh) in mounts.ssh.iter_mut().enumerate() {
            if ssh.dest.is_empty() {
                ssh.dest = format!("/run/buildkit/ssh_agent.{number}");
            }
            if number == 0 && env.get("SSH_AUTH_SOCK").is_none() {
                meta.env.push(format!("SSH_AUTH_SOCK={}", ssh.dest));
            }
        }
        let network = match run.network {
            Network::Default => self.options.network,
            Network::None => NetMode::None,
            Network::Host => NetMode::Host,
        };
        if network != NetMode::Unset {
            caps.push("exec.meta.network");
        }
        if run.insecure {
            caps.push("exec.meta.security");
        }
        let devices = run.devices.iter().map(|device| CdiDevice {
            name: device.name.clone(),
            optional: !device.required,
        });
        let cdi_devices: Vec<CdiDevice> = self
            .options
            .devices
            .iter()
            .cloned()
            .chain(devices)
            .collect();
        if !cdi_devices.is_empty() {
            caps.push("exec.meta.cdi");
        }
        let mut exec = ExecOp {
            meta: Some(meta),
            network: network.into(),
            security: if run.insecure {
                SecurityMode::Insecure.into()
            } else {
                SecurityMode::Sandbox.into()
            },
            secretenv: std::mem::take(&mut mounts.secret_env),
            cdi_devices,
            ..ExecOp::default()
        };
        let inputs = place_mounts(&mut exec, target.state.output, mounts, &mut caps);
        let mut metadata = metadata(&name, &caps);
        metadata.ignore_cache = target.ignore_cache;
        metadata.linux_resources.clone_from(&self.options.resources);
        if metadata.linux_resources.is_some() {
            metadata
                .caps
                .insert("exec.meta.linux.resources".into(), true);
        }
        metadata
            .description
            .insert(COMMAND.into(), step.code.clone());
        let platform = target
            .state
            .platform
            .as_ref()
            .unwrap_or(&self.target_platform);
        let vertex = Vertex {
            kind: Kind::Exec(exec),
            inputs,
            platform: Some(platform.clone()),
            metadata,
            lines: ranges(step.lines),
        };
        target.state.output = Some(self.add(vertex)?);
        let message = history(&args, &target.build_args, &env);
        target.image.add_history(message, true, self.epoch);
        Ok(())
    }

    /// Returns the arguments of the process, and the command as it is shown.
    fn process(
        &mut self,
        target: &Target,
        step: &Step,
        run: &Run,
        mounts: &mut Mounts,
    ) -> Result<(Vec<String>, String)> {
        let mut shown = step.code.clone();
        let line = match &run.command {
            Command::Exec(args) => return Ok((args.clone(), shown)),
            Command::Shell(line) => line.clone().unwrap_or_default(),
        };
        let Some(first) = run.documents.first() else {
            return Ok((target.image.with_shell(Some(&line)), shown));
        };
        if heredoc::parse(&line).ok().flatten().is_none() {
            // The shell reads the documents itself.
            let mut script = line;
            for document in &run.documents {
                script = script + "\n" + &document.content + &document.name;
            }
            return Ok((target.image.with_shell(Some(&script)), shown));
        }
        shown += &format!(" ({})", names::summary(&first.content));
        let content = first.stripped();
        if target.image.os == "windows" || !content.starts_with("#!") {
            return Ok((target.image.with_shell(Some(&content)), shown));
        }
        let mut mount = prepared(PIPES, Some(self.document(first, 0o755)?));
        mount.mount.readonly = true;
        mount.mount.selector = "/".into();
        mount.caps = &["exec.mount.bind", "exec.mount.selector"];
        mounts.bind.push(mount);
        let program = path::join(&[PIPES, &first.name]);
        Ok((target.image.with_shell(Some(&program)), shown))
    }

    fn run_name(
        &self,
        target: &mut Target,
        run: &Run,
        shown: &str,
        env: &Environment,
    ) -> Result<String> {
        let mut masked = None;
        for name in run.mounts.iter().filter_map(|mount| mount.env.as_ref()) {
            masked
                .get_or_insert_with(|| env.clone())
                .set(name.clone(), "****");
        }
        let mut lexer = Lexer::new(self.escape, masked.as_ref().unwrap_or(env), &self.budget);
        lexer.keep.quotes = true;
        lexer.keep.unset = true;
        let name = names::command(shown, &lexer);
        let platform = target.state.platform.clone();
        let multi = self.options.multi_platform;
        Ok(names::prefixed(
            target,
            &name,
            platform.as_ref(),
            env,
            multi,
        ))
    }

    fn meta(&self, target: &Target, args: Vec<String>, caps: &mut Vec<&'static str>) -> Meta {
        let options = self.options;
        if !options.ulimits.is_empty() {
            caps.push("exec.meta.ulimit");
        }
        if self.proxy.is_some() {
            caps.push("exec.meta.proxyenv");
        }
        let hosts = options.extra_hosts.iter().map(|(host, ip)| HostIp {
            host: host.clone(),
            ip: ip.clone(),
        });
        Meta {
            args,
            env: target.state.env.entries(),
            cwd: match target.state.dir.as_str() {
                "" => "/".into(),
                directory => directory.into(),
            },
            user: target.state.user.clone(),
            proxy_env: self.proxy.clone(),
            extra_hosts: hosts.collect(),
            hostname: target.state.hostname.clone(),
            ulimit: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: Vec::new(),
        }
    }

    fn mount(
        &mut self,
        target: &mut Target,
        step: &Step,
        mount: &Mount,
        source: Option<usize>,
        mounts: &mut Mounts,
    ) -> Result<()> {
        match mount.kind {
            MountKind::Secret => return secret(target, step, mount, mounts),
            MountKind::Ssh => return ssh(target, step, mount, mounts),
            MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => {}
        }
        let mut output = match (mount.kind, source) {
            (_, Some(source)) if !self.targets[source].dispatched => {
                return Err(Error::new(format!(
                    "cannot mount from stage {:?} to {:?}, stage needs to be defined before current command",
                    mount.from, mount.target
                )));
            }
            (MountKind::Tmpfs, _) | (MountKind::Cache, None) => None,
            (_, Some(source)) => self.targets[source].state.output,
            (_, None) => self.use_context()?,
        };
        let destination = if mount.target.starts_with('/') {
            mount.target.clone()
        } else {
            path::join(&["/", &target.state.dir, &mount.target])
        };
        if destination == "/" {
            return Err(Error::new(format!("invalid mount target {destination:?}")));
        }
        let selector = path::join(&["/", &mount.source]);
        let mut found = prepared(&destination, None);
        found.mount.readonly = mount.read_only;
        let owned = mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some();
        if selector != "/" {
            found.mount.selector.clone_from(&selector);
        } else if owned {
            output = Some(self.cache_directory(output, mount)?);
            found.mount.selector = "/cache".into();
        }
        match mount.kind {
            MountKind::Tmpfs => {
                found.mount.mount_type = MountType::Tmpfs.into();
                found.mount.tmpfs_opt = Some(TmpfsOpt { size: mount.size });
                found.mount.selector.clear();
                found.caps = if mount.size > 0 {
                    &["exec.mount.tmpfs", "exec.mount.tmpfs.size"]
                } else {
                    &["exec.mount.tmpfs"]
                };
            }
            MountKind::Cache => {
                let id = match mount.id.as_str() {
                    "" => path::clean(&mount.target),
                    id => id.to_owned(),
                };
                found.mount.mount_type = MountType::Cache.into();
                found.mount.cache_opt = Some(CacheOpt {
                    id: format!("{}/{id}", self.options.cache_namespace),
                    sharing: match mount.sharing {
                        None | Some(Sharing::Shared) => CacheSharing::Shared,
                        Some(Sharing::Private) => CacheSharing::Private,
                        Some(Sharing::Locked) => CacheSharing::Locked,
                    }
                    .into(),
                });
                found.caps = &["exec.mount.cache", "exec.mount.cache.sharing"];
            }
            _ => found.caps = &["exec.mount.bind"],
        }
        found.source = output;
        mounts.bind.push(found);
        match (mount.kind, source) {
            (_, Some(source)) => {
                let paths = self.targets[source].paths;
                self.paths[paths].insert(selector);
            }
            (MountKind::Bind, None) => drop(target.context_paths.insert(selector)),
            (_, None) => {}
        }
        Ok(())
    }

    /// Adds the operation that makes the first state of a cache with an owner and a mode.
    fn cache_directory(&mut self, base: Option<Output>, mount: &Mount) -> Result<Output> {
        let id = |id: Option<u32>| pb::UserOpt {
            user: Some(user_opt::User::ById(id.unwrap_or_default())),
        };
        let mode = mount.mode.map_or(0o755, |mode| mode & 0o777);
        let actions = vec![FileAction {
            input: if base.is_some() { 0 } else { -1 },
            secondary_input: -1,
            output: 0,
            action: Some(file_action::Action::Mkdir(FileActionMkDir {
                path: "/cache".into(),
                mode: i32::try_from(mode).unwrap_or_default(),
                make_parents: false,
                owner: Some(pb::ChownOpt {
                    user: Some(id(mount.uid)),
                    group: Some(id(mount.gid)),
                }),
                timestamp: -1,
            })),
        }];
        self.add(Vertex {
            metadata: metadata("[internal] setting cache mount permissions", &["file.base"]),
            ..Vertex::new(Kind::File(FileOp { actions }), base.into_iter().collect())
        })
    }
}

/// Sorts the mounts by their targets, with the root first, and numbers inputs and outputs. Returns the inputs.
fn place_mounts(
    exec: &mut ExecOp,
    root: Option<Output>,
    mounts: Mounts,
    caps: &mut Vec<&'static str>,
) -> Vec<Output> {
    let mut all = mounts.bind;
    let mut first = prepared("/", root);
    first.mount.output = 0;
    if root.is_some() {
        caps.push("exec.mount.bind");
    }
    all.push(first);
    all.sort_by(|one, other| one.mount.dest.cmp(&other.mount.dest));
    let mut inputs: Vec<Output> = Vec::new();
    for Prepared {
        source,
        mut mount,
        caps: needed,
    } in all
    {
        let known = source.map(|source| {
            let found = inputs.iter().position(|input| *input == source);
            found.unwrap_or_else(|| {
                inputs.push(source);
                inputs.len() - 1
            })
        });
        mount.input = known.map_or(-1, |index| i64::try_from(index).unwrap_or(i64::MAX));
        caps.extend(needed);
        if !mount.selector.is_empty() {
            caps.push("exec.mount.selector");
        }
        exec.mounts.push(mount);
    }
    if !mounts.secrets.is_empty() || !exec.secretenv.is_empty() {
        caps.push("exec.mount.secret");
    }
    if !exec.secretenv.is_empty() {
        caps.push("exec.secretenv");
    }
    if !mounts.ssh.is_empty() {
        caps.push("exec.mount.ssh");
    }
    exec.mounts.extend(mounts.secrets);
    exec.mounts.extend(mounts.ssh);
    inputs
}

fn secret_options(mount: &Mount, id: &str, default_mode: u32) -> SecretOpt {
    SecretOpt {
        id: id.to_owned(),
        uid: mount.uid.unwrap_or_default(),
        gid: mount.gid.unwrap_or_default(),
        mode: mount.mode.unwrap_or(default_mode),
        optional: !mount.required,
    }
}

fn secret(target: &mut Target, step: &Step, mount: &Mount, mounts: &mut Mounts) -> Result<()> {
    let id = [&mount.source, &mount.id]
        .into_iter()
        .find(|id| !id.is_empty())
        .map_or_else(|| path::base(&mount.target), String::as_str);
    let info = SecretInfo {
        required: mount.required,
        lines: step.lines,
    };
    target.uses.secrets.entry(id.to_owned()).or_insert(info);
    if let Some(name) = &mount.env {
        mounts.secret_env.push(SecretEnv {
            id: id.to_owned(),
            name: name.clone(),
            optional: !mount.required,
        });
    }
    let dest = match (mount.target.as_str(), &mount.env) {
        ("", Some(_)) => return Ok(()),
        ("", None) => format!("/run/secrets/{}", path::base(id)),
        (written, _) => path::absolute(&target.state.dir, written, false),
    };
    mounts.secrets.push(pb::Mount {
        input: -1,
        dest,
        mount_type: MountType::Secret.into(),
        secret_opt: Some(secret_options(mount, id, 0o400)),
        ..pb::Mount::default()
    });
    Ok(())
}

fn ssh(target: &mut Target, step: &Step, mount: &Mount, mounts: &mut Mounts) -> Result<()> {
    if !mount.source.is_empty() {
        return Err(Error::new("ssh does not support source"));
    }
    let id = match mount.id.as_str() {
        "" => "default",
        id => id,
    };
    let info = SecretInfo {
        required: mount.required,
        lines: step.lines,
    };
    target.uses.ssh.entry(id.to_owned()).or_insert(info);
    mounts.ssh.push(pb::Mount {
        input: -1,
        dest: mount.target.clone(),
        mount_type: MountType::Ssh.into(),
        ssh_opt: Some(secret_options(mount, &mount.id, 0o600)),
        ..pb::Mount::default()
    });
    Ok(())
}

/// Returns what the history has of a RUN: the build arguments, if there are any, and the process.
fn history(args: &[String], build_args: &[Arg], env: &Environment) -> String {
    let mut shown: Vec<(&str, String)> = Vec::new();
    for arg in build_args {
        let value = env
            .get(&arg.key)
            .or(arg.value.as_deref())
            .unwrap_or_default();
        let entry = format!("{}={value}", arg.key);
        match shown.iter_mut().find(|(key, _)| *key == arg.key) {
            Some((_, known)) => *known = entry,
            None => shown.push((&arg.key, entry)),
        }
    }
    let count = (!shown.is_empty()).then(|| format!("|{}", shown.len()));
    let words: Vec<String> = count
        .into_iter()
        .chain(shown.into_iter().map(|(_, entry)| entry))
        .chain(args.iter().cloned())
        .collect();
    format!("RUN {} # buildkit", words.join(" "))
}
