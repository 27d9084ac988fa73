//! ADD and COPY.

use std::rc::Rc;

use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    ChownOpt, FileAction, FileActionCopy, FileActionMkFile, FileOp, InputIndex, MergeOp,
    ProgressGroup, SourceOp, file_action, user_opt,
};
use whelk_llb::{Digest, Output, Vertex};

use super::context::http_source;
use super::dispatch::owner;
use super::git::{self, Git};
use super::target::Target;
use super::{COMMAND, Converter, metadata, names, ranges};
use crate::error::{Error, Lines, Result};
use crate::expand::Lexer;
use crate::heredoc::Heredoc;
use crate::instruction::{Add, Copy, Files};
use crate::lint::Rule;
use crate::path;
use crate::stage::Step;

/// What ADD and COPY differ in.
struct Kinds {
    source: Option<Output>,
    /// Whether the source is the build's context, which ignore patterns apply to.
    from_context: bool,
    is_add: bool,
    parents: bool,
    keep_git_dir: Option<bool>,
    checksum: String,
    unpack: Option<bool>,
}

/// Copies of one instruction.
#[derive(Default)]
struct Actions {
    copies: Vec<(Option<Output>, FileActionCopy)>,
}

impl Converter<'_> {
    pub(super) fn add_files(&mut self, target: &mut Target, step: &Step, add: Add) -> Result<()> {
        let kinds = Kinds {
            source: self.use_context()?,
            from_context: true,
            is_add: true,
            parents: false,
            keep_git_dir: add.keep_git_dir,
            checksum: add.checksum,
            unpack: add.unpack,
        };
        let files = &add.files;
        let paths = files
            .sources
            .iter()
            .filter(|source| !source.starts_with("http://") && !source.starts_with("https://"));
        let paths: Vec<String> = paths.map(|path| path::join(&["/", path])).collect();
        self.copy(target, step, files, kinds)?;
        target.context_paths.extend(paths);
        Ok(())
    }

    pub(super) fn copy_files(
        &mut self,
        target: &mut Target,
        step: &Step,
        copy: Copy,
        sources: &[Option<usize>],
    ) -> Result<()> {
        let from = sources.first().copied().flatten();
        let source = match from {
            Some(from) if !self.targets[from].dispatched => {
                return Err(Error::new(format!(
                    "cannot copy from stage {:?}, it needs to be defined before current stage {:?}",
                    copy.from, target.name
                )));
            }
            Some(from) => self.targets[from].state.output,
            None => self.use_context()?,
        };
        let kinds = Kinds {
            source,
            from_context: from.is_none(),
            is_add: false,
            parents: copy.parents,
            keep_git_dir: None,
            checksum: String::new(),
            unpack: None,
        };
        self.copy(target, step, &copy.files, kinds)?;
        let paths = copy.files.sources.iter();
        let paths = paths.map(|source| path::join(&["/", source]));
        match from {
            Some(from) => {
                let index = self.targets[from].paths;
                self.paths[index].extend(paths);
            }
            None => target.context_paths.extend(paths),
        }
        Ok(())
    }

    fn copy(
        &mut self,
        target: &mut Target,
        step: &Step,
        files: &Files,
        kinds: Kinds,
    ) -> Result<()> {
        let written = match files.destination.as_str() {
            "" | "." => "./",
            other => other,
        };
        let mut shape = FileActionCopy {
            dest: path::absolute(&target.state.dir, written, true),
            exclude_patterns: files.exclude.clone(),
            create_dest_path: true,
            mode: -1,
            timestamp: -1,
            ..FileActionCopy::default()
        };
        set_mode(&mut shape, &files.chmod)?;
        check_checksum(files, &kinds)?;
        let env = Rc::clone(&target.state.env);
        let platform = target.platform.clone();
        // Names and the history are for others than those who may know the passwords of a server.
        let shown = |text: String| match kinds.is_add {
            true => names::without_credentials(&text),
            false => text,
        };
        let lexer = Lexer::new(self.escape, &env, &self.budget);
        let command = shown(names::command(&step.code, &lexer));
        let multi = self.options.multi_platform;
        let name = names::prefixed(target, &command, platform.as_ref(), &env, multi);
        let mut actions = Actions::default();
        for source in &files.sources {
            self.copy_source(step, source, &shape, &kinds, &name, &mut actions)?;
        }
        for document in &files.documents {
            let output = self.document(document, 0o644)?;
            actions.copies.push((
                Some(output),
                FileActionCopy {
                    src: path::absolute("/", &document.name, false),
                    ..shape.clone()
                },
            ));
        }
        let message = shown(history(files, &kinds));
        let base = target.state.output;
        // A name is looked up in what is below.
        if files.link && files.chmod.is_empty() && has_ids(&files.chown) {
            let group = |weak, name: &str| ProgressGroup {
                id: Digest::of_parts([step.code.as_bytes(), name.as_bytes()]).to_string(),
                name: name.to_owned(),
                weak,
            };
            let mut vertex = self.file_vertex(target, step, actions, None, &files.chown, &name);
            vertex.metadata.progress_group = Some(group(true, &name));
            let layer = self.add(vertex)?;
            target.step_number = target.step_number.saturating_sub(1);
            let link = format!("LINK {command}");
            let link = names::prefixed(target, &link, platform.as_ref(), &env, multi);
            target.state.output = Some(match base {
                None => layer,
                Some(base) => {
                    let inputs = vec![InputIndex { input: 0 }, InputIndex { input: 1 }];
                    let mut metadata = metadata(&link, &["mergeop"]);
                    metadata.ignore_cache = target.ignore_cache;
                    metadata.progress_group = Some(group(false, &name));
                    self.add(Vertex {
                        metadata,
                        lines: ranges(step.lines),
                        ..Vertex::new(Kind::Merge(MergeOp { inputs }), vec![base, layer])
                    })?
                }
            });
        } else {
            let vertex = self.file_vertex(target, step, actions, base, &files.chown, &name);
            target.state.output = Some(self.add(vertex)?);
        }
        target.image.add_history(message, true, self.epoch);
        Ok(())
    }

    /// Returns the operation that copies, one after the other, onto `base`.
    fn file_vertex(
        &self,
        target: &Target,
        step: &Step,
        actions: Actions,
        base: Option<Output>,
        chown: &str,
        name: &str,
    ) -> Vertex {
        let mut inputs: Vec<Output> = base.into_iter().collect();
        let mut index = |output: Option<Output>| {
            let Some(output) = output else { return -1 };
            let found = inputs.iter().position(|known| *known == output);
            position(found.unwrap_or_else(|| {
                inputs.push(output);
                inputs.len() - 1
            }))
        };
        let base_index = index(base);
        let sources: Vec<i64> = actions
            .copies
            .iter()
            .map(|(source, _)| index(*source))
            .collect();
        let owner = (!chown.is_empty()).then(|| owner(chown, base_index));
        let count = actions.copies.len();
        let input_count = inputs.len();
        let copies = actions.copies.into_iter().zip(sources).enumerate();
        let actions = copies.map(|(number, ((_, copy), secondary_input))| FileAction {
            input: match number.checked_sub(1) {
                Some(previous) => position(input_count + previous),
                None => base_index,
            },
            secondary_input,
            output: if number + 1 == count { 0 } else { -1 },
            action: Some(file_action::Action::Copy(FileActionCopy {
                owner: owner.clone(),
                ..copy
            })),
        });
        let actions = actions.collect();
        let mut metadata = metadata(name, &["file.base"]);
        metadata.ignore_cache = target.ignore_cache;
        Vertex {
            metadata,
            lines: ranges(step.lines),
            ..Vertex::new(Kind::File(FileOp { actions }), inputs)
        }
    }

    fn copy_source(
        &mut self,
        step: &Step,
        source: &str,
        shape: &FileActionCopy,
        kinds: &Kinds,
        name: &str,
        actions: &mut Actions,
    ) -> Result<()> {
        if let Some(mut git) = Git::parse(source)?.filter(|git| !git.maybe_local) {
            if !kinds.is_add {
                return Err(Error::new("source can't be a git ref for COPY"));
            }
            combine(&mut git, kinds)?;
            let (source, caps) = git.source();
            let output = self.source_vertex(source, name, &caps, ("", step.lines))?;
            let copy = FileActionCopy {
                src: "/".into(),
                ..shape.clone()
            };
            actions.copies.push((Some(output), copy));
            return Ok(());
        }
        if git::is_http(source) {
            if !kinds.is_add {
                return Err(Error::new("source can't be a URL for COPY"));
            }
            let file = git::file_name(source);
            let checksum = &kinds.checksum;
            if !checksum.is_empty() && Digest::parse(checksum).is_none() {
                return Err(Error::new("invalid checksum digest format"));
            }
            let mut caps = vec!["source.http"];
            if !checksum.is_empty() {
                caps.push("source.http.checksum");
            }
            let op = http_source(source, &file, checksum);
            let output = self.source_vertex(op, name, &caps, (&step.code, step.lines))?;
            let copy = FileActionCopy {
                src: path::absolute("/", &file, false),
                attempt_unpack_docker_compatibility: kinds.unpack.unwrap_or_default(),
                ..shape.clone()
            };
            actions.copies.push((Some(output), copy));
            return Ok(());
        }
        self.check_ignored(step, source, kinds);
        let (mut from, mut include, mut required) = (source, Vec::new(), Vec::new());
        if kinds.parents {
            let (parent, pattern) = source.split_once("/./").unwrap_or(("/", source));
            from = parent;
            let pattern = path::absolute("/", pattern, false);
            if !has_wildcards(parent) && !has_wildcards(&pattern) {
                required.push(path::join(&["/", parent, &pattern]));
            }
            include.push(pattern.trim_start_matches('/').to_owned());
        }
        let copy = FileActionCopy {
            src: path::absolute("/", from, false),
            follow_symlink: true,
            dir_copy_contents: true,
            attempt_unpack_docker_compatibility: kinds.unpack.unwrap_or(kinds.is_add),
            allow_wildcard: true,
            allow_empty_wildcard: true,
            include_patterns: include,
            required_paths: required,
            ..shape.clone()
        };
        actions.copies.push((kinds.source, copy));
        Ok(())
    }

    fn source_vertex(
        &mut self,
        source: SourceOp,
        name: &str,
        caps: &[&str],
        (code, lines): (&str, Lines),
    ) -> Result<Output> {
        let mut metadata = metadata(name, caps);
        if !code.is_empty() {
            metadata.description.insert(COMMAND.into(), code.to_owned());
        }
        self.add(Vertex {
            metadata,
            lines: ranges(lines),
            ..Vertex::new(Kind::Source(source), Vec::new())
        })
    }

    /// Adds the operation that makes a file whose content is in the Dockerfile.
    pub(super) fn document(&mut self, document: &Heredoc, mode: i32) -> Result<Output> {
        let actions = vec![FileAction {
            input: -1,
            secondary_input: -1,
            output: 0,
            action: Some(file_action::Action::Mkfile(FileActionMkFile {
                path: path::absolute("/", &document.name, false),
                mode,
                data: document.stripped().into_bytes(),
                owner: None,
                timestamp: -1,
            })),
        }];
        self.add(Vertex {
            metadata: metadata("[internal] preparing inline document", &["file.base"]),
            ..Vertex::new(Kind::File(FileOp { actions }), Vec::new())
        })
    }

    /// Warns about a source that is excluded from the context.
    fn check_ignored(&mut self, step: &Step, source: &str, kinds: &Kinds) {
        if !kinds.from_context || self.ignore.is_empty() || self.ignore.has_exceptions() {
            return;
        }
        let source = path::clean(source);
        let is_root = source == "." || source == "/";
        if is_root && !self.ignore.excludes_all() {
            return;
        }
        if self.ignore.excludes(&source) {
            let command = if kinds.is_add { "Add" } else { "Copy" };
            let detail = format!(
                "Attempting to {command} file {source:?} that is excluded by .dockerignore"
            );
            self.linter
                .warn(&step.comments, Rule::CopyIgnoredFile, step.lines, detail);
        }
    }
}

/// Returns whether an owner is no name that must be looked up.
fn has_ids(chown: &str) -> bool {
    let ChownOpt { user, group } = owner(chown, -1);
    let mut named = [user, group].into_iter().flatten();
    chown.is_empty() || named.all(|one| matches!(one.user, Some(user_opt::User::ById(_))))
}

fn position(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

fn history(files: &Files, kinds: &Kinds) -> String {
    let mut message = String::from(if kinds.is_add { "ADD" } else { "COPY" });
    if kinds.parents {
        message += " --parents";
    }
    for (flag, value) in [("chown", &files.chown), ("chmod", &files.chmod)] {
        if !value.is_empty() {
            message += &format!(" --{flag}={value}");
        }
    }
    for source in &files.sources {
        message = message + " " + source;
    }
    for document in &files.documents {
        message = message + " <<" + &document.name;
    }
    message + " " + &files.destination + " # buildkit"
}

/// Combines the flags of ADD with the parameters of a repository's URL.
fn combine(git: &mut Git, kinds: &Kinds) -> Result<()> {
    if let (Some(flag), Some(parameter)) = (kinds.keep_git_dir, git.keep_git_dir)
        && flag != parameter
    {
        return Err(Error::new("inconsistent keep-git-dir configuration"));
    }
    git.keep_git_dir = git.keep_git_dir.or(kinds.keep_git_dir);
    if !kinds.checksum.is_empty() {
        if !git.checksum.is_empty() && git.checksum != kinds.checksum {
            return Err(Error::new(format!(
                "checksum mismatch {:?} != {:?}",
                kinds.checksum, git.checksum
            )));
        }
        git.checksum.clone_from(&kinds.checksum);
    }
    Ok(())
}

fn check_checksum(files: &Files, kinds: &Kinds) -> Result<()> {
    if kinds.checksum.is_empty() {
        return Ok(());
    }
    let [source] = files.sources.as_slice() else {
        return Err(Error::new(
            "checksum can't be specified for multiple sources",
        ));
    };
    if git::is_http(source) || Git::parse(source)?.is_some() {
        Ok(())
    } else {
        Err(Error::new("checksum requires HTTP(S) or Git sources"))
    }
}

/// Sets the mode of `--chmod`: an octal number, or in chmod's symbolic form.
fn set_mode(copy: &mut FileActionCopy, written: &str) -> Result<()> {
    if written.is_empty() {
        return Ok(());
    }
    let not_octal = || {
        Error::new(format!(
            "invalid chmod parameter: '{written}'. it should be octal string and between 0 and 07777"
        ))
    };
    if written.starts_with(|first: char| first.is_ascii_digit()) {
        copy.mode = i32::from_str_radix(written, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(not_octal)?;
        return Ok(());
    }
    if !written.split(',').all(is_symbolic) {
        return Err(Error::new("invalid syntax"));
    }
    copy.mode = 0;
    copy.mode_str = written.to_owned();
    Ok(())
}

/// Returns whether a text is `[ugoa…][+-=][perms…]…`.
fn is_symbolic(clause: &str) -> bool {
    let operations = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let is_operator = |letter: char| matches!(letter, '+' | '-' | '=');
    operations.starts_with(is_operator)
        && operations.chars().all(|letter| {
            is_operator(letter)
                || matches!(letter, 'r' | 's' | 't' | 'w' | 'X' | 'x' | 'u' | 'g' | 'o')
        })
}

fn has_wildcards(path: &str) -> bool {
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' | '?' | '[' => return true,
            '\\' => drop(letters.next()),
            _ => {}
        }
    }
    false
}
