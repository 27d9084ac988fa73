//! The build's context and named contexts.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{Definition, Platform, SourceOp};
use whelk_llb::{Builder, Output, Vertex};

use super::git::Git;
use super::image::Image;
use super::target::State;
use super::{Answer, Converter, MainContext, Options, Request, graph, metadata};
use crate::error::{Error, Result};
use crate::ignore;
use crate::path;

/// A named context.
#[derive(Clone, Debug)]
pub(super) struct NamedContext {
    /// What it stands for: `docker-image://…`, `local:…`.
    value: String,
    name: String,
    /// The name that it was found by, perhaps with a platform.
    full_name: String,
    platform: Option<Platform>,
}

/// A directory of the client.
#[derive(Clone, Debug)]
pub(super) struct LocalContext {
    local: String,
    session: String,
    shared_key: String,
    exclude: Vec<String>,
    name: String,
}

/// Returns an operation that is replaced when the paths that are needed of a directory are known.
pub(super) fn placeholder(number: usize) -> Vertex {
    Vertex::new(
        Kind::Source(SourceOp {
            identifier: format!("placeholder://{number}"),
            attrs: BTreeMap::new(),
        }),
        Vec::new(),
    )
}

/// Returns the source of a URL's file.
pub(super) fn http_source(url: &str, filename: &str, checksum: &str) -> SourceOp {
    let mut attrs = BTreeMap::from([("http.filename".to_owned(), filename.to_owned())]);
    if !checksum.is_empty() {
        attrs.insert("http.checksum".into(), checksum.into());
    }
    SourceOp {
        identifier: url.to_owned(),
        attrs,
    }
}

/// Returns paths in the form that the client follows them in; none if all is needed.
fn follow(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let relative = paths
        .iter()
        .map(|path| path::clean(path.trim_start_matches('/')));
    relative.collect()
}

impl LocalContext {
    fn vertex(&self, paths: &BTreeSet<String>) -> Vertex {
        let follow = follow(paths);
        let list = |list: &[String]| serde_json::to_string(list).unwrap_or_default();
        let lists = [
            ("local.followpaths", &follow, "source.local.followpaths"),
            (
                "local.excludepatterns",
                &self.exclude,
                "source.local.excludepatterns",
            ),
        ];
        let mut caps = vec!["source.local", "source.local.sharedkeyhint"];
        let mut attrs = BTreeMap::new();
        attrs.insert("local.sharedkeyhint".to_owned(), self.shared_key.clone());
        if !self.session.is_empty() {
            attrs.insert("local.session".into(), self.session.clone());
            caps.push("source.local.sessionid");
        }
        for (name, values, cap) in lists {
            if !values.is_empty() {
                attrs.insert(name.into(), list(values));
                caps.push(cap);
            }
        }
        let source = SourceOp {
            identifier: format!("local://{}", self.local),
            attrs,
        };
        Vertex {
            metadata: metadata(&self.name, &caps),
            ..Vertex::new(Kind::Source(source), Vec::new())
        }
    }
}

/// Returns the definition of the client's directory that has the Dockerfile.
///
/// # Errors
/// Returns an error if it would be too large.
pub fn file_definition(options: &Options, local: &str) -> Result<Definition> {
    let filename = &options.filename;
    let directory = LocalContext {
        local: local.to_owned(),
        session: options.session_of(local),
        shared_key: local.to_owned(),
        exclude: Vec::new(),
        name: format!("[internal] load build definition from {filename}"),
    };
    let paths = [
        filename.clone(),
        format!("{filename}.dockerignore"),
        filename.to_lowercase(),
    ];
    let mut builder = Builder::default();
    let vertex = directory.vertex(&BTreeSet::from(paths));
    let output = builder.add(vertex).map_err(graph)?;
    Ok(builder.definition(Some(output), None))
}

impl NamedContext {
    /// Returns the source of a URL, whose time can be asked for.
    pub fn source(&self) -> Result<Option<SourceOp>> {
        let is_web = self.value.starts_with("http://") || self.value.starts_with("https://");
        Ok(match Git::parse(&self.value)? {
            Some(git) => Some(git.source().0),
            None if is_web => Some(http_source(&self.value, "context", "")),
            None => None,
        })
    }
}

impl Converter<'_> {
    /// Returns the source of the build's context, if it is a single one.
    pub(super) fn context_source(&self) -> Option<SourceOp> {
        let MainContext::Graph(graph) = &self.options.context else {
            return None;
        };
        match graph.nodes.as_slice() {
            [node] => match &node.op.kind {
                Some(Kind::Source(source)) => Some(source.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns the build's context.
    pub(super) fn use_context(&mut self) -> Result<Option<Output>> {
        match &self.options.context {
            MainContext::Local { .. } => Ok(Some(self.context)),
            MainContext::Graph(context) => self.builder.add_graph(context).map_err(graph),
        }
    }

    /// Replaces what stands for directories by their sources with the paths that are needed.
    pub(super) fn replace_contexts(&mut self) {
        if let MainContext::Local { name, ignore } = &self.options.context {
            let paths: BTreeSet<String> = self
                .targets
                .iter()
                .flat_map(|target| target.context_paths.iter().cloned())
                .collect();
            let context = LocalContext {
                local: name.clone(),
                session: self.options.session_of(name),
                shared_key: name.clone(),
                exclude: ignore.clone(),
                name: "[internal] load build context".into(),
            };
            self.builder.replace(self.context, context.vertex(&paths));
        }
        for (output, context, paths) in &self.locals {
            self.builder
                .replace(*output, context.vertex(&self.paths[*paths]));
        }
    }

    /// Finds a named context by the name of an image or stage.
    pub(super) fn named_context(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Option<NamedContext>> {
        let reserved = ["scratch", "context"];
        if self.options.contexts.is_empty()
            || reserved.iter().any(|word| name.eq_ignore_ascii_case(word))
        {
            return Ok(None);
        }
        let reference = (self.options.parse_reference)(name)
            .map_err(|error| Error::new(format!("invalid context name {name}: {error}")))?;
        let familiar = reference.familiar.as_str();
        let name = familiar
            .strip_suffix(":latest")
            .unwrap_or(familiar)
            .to_owned();
        let platform = platform.or(self.options.platform.as_ref());
        let specifier = platform
            .unwrap_or(&self.options.build_platform)
            .normalized()
            .specifier();
        let names = [format!("{name}::{specifier}"), name.clone()];
        let found = names.into_iter().find_map(|full| {
            let value = self.options.contexts.get(&full)?;
            Some((full, value.clone()))
        });
        Ok(found.map(|(full_name, value)| NamedContext {
            value,
            name,
            full_name,
            platform: platform.cloned(),
        }))
    }

    /// Returns the state of a named context and its configuration, or `None` if something is missing for it.
    /// `paths` is the index of the paths that are read of it.
    pub(super) fn load_context(
        &mut self,
        context: &NamedContext,
        paths: usize,
    ) -> Result<Option<(State, Option<Image>)>> {
        let (value, name) = (context.value.clone(), context.full_name.clone());
        let Some((kind, rest)) = value.split_once(':') else {
            return Err(Error::new(format!(
                "invalid context specifier {value} for {name}"
            )));
        };
        let label = format!("[context {name}]");
        match kind {
            "docker-image" => {
                self.load_image(context, rest.trim_start_matches("//"), &label, paths)
            }
            "oci-layout" => self.load_layout(context, rest.trim_start_matches("//"), &label),
            "local" => self.load_local(context, rest, &label, paths),
            "input" => self.load_input(rest, &name),
            _ if matches!(kind, "git" | "http" | "https" | "ssh") || kind.starts_with("git@") => {
                let (source, caps, label) = match Git::parse(&value)? {
                    Some(git) => {
                        let (source, caps) = git.source();
                        let shown = super::git::redacted(&value);
                        (source, caps, format!("[internal] load git source {shown}"))
                    }
                    None if kind.starts_with("http") => (
                        http_source(&value, "context", ""),
                        vec!["source.http"],
                        format!("{label} {}", super::git::redacted(&value)),
                    ),
                    None => return Err(Error::new(format!("invalid git context {value}"))),
                };
                let vertex = Vertex {
                    metadata: metadata(&label, &caps),
                    ..Vertex::new(Kind::Source(source), Vec::new())
                };
                let output = Some(self.add(vertex)?);
                Ok(Some((
                    State {
                        output,
                        ..State::default()
                    },
                    None,
                )))
            }
            _ => Err(Error::new(format!(
                "unsupported context source {kind} for {name}"
            ))),
        }
    }

    fn load_image(
        &mut self,
        context: &NamedContext,
        written: &str,
        label: &str,
        paths: usize,
    ) -> Result<Option<(State, Option<Image>)>> {
        if written == "scratch" {
            return Ok(Some((State::default(), None)));
        }
        let reference = (self.options.parse_reference)(written).map_err(Error::new)?;
        let platform = self.context_platform(context);
        let request = Request::Image {
            reference: reference.full,
            platform: platform.clone(),
            name: format!("{label} load metadata for {written}"),
            layout: None,
        };
        let answer = self.ask(request)?;
        if let Some(Answer::Replaced(by)) = answer {
            // It would be asked for as an image, and replaced again, without end.
            if by.starts_with("docker-image:") {
                let text =
                    format!("ref mutated by policy to non-image: docker-image://{written} -> {by}");
                return Err(Error::new(text));
            }
            let value = match by.strip_prefix("local://") {
                Some(local) => format!("local:{local}"),
                None => by.clone(),
            };
            let replaced = NamedContext {
                value,
                ..context.clone()
            };
            return self.load_context(&replaced, paths);
        }
        let Some(Answer::Image {
            reference, config, ..
        }) = answer
        else {
            return Ok(None);
        };
        let vertex = Vertex {
            platform: Some(platform),
            metadata: metadata(&format!("{label} {written}"), &["source.image"]),
            ..Vertex::new(
                Kind::Source(SourceOp {
                    identifier: format!("docker-image://{reference}"),
                    attrs: BTreeMap::new(),
                }),
                Vec::new(),
            )
        };
        let image = parse_config(config)?;
        let output = self.add(vertex)?;
        Ok(Some((state_of(Some(output), &image), Some(image))))
    }

    fn load_layout(
        &mut self,
        context: &NamedContext,
        written: &str,
        label: &str,
    ) -> Result<Option<(State, Option<Image>)>> {
        let Some((store, digest)) = written.split_once('@') else {
            return Err(Error::new(format!(
                "oci-layout reference {written:?} has no digest"
            )));
        };
        // A tag only says how the client has found the digest.
        let store = match store.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => store,
        };
        let dummy = (self.options.parse_reference)(&context.name).map_err(|error| {
            Error::new(format!(
                "could not parse oci-layout reference {:?}: {error}",
                context.name
            ))
        })?;
        let name = dummy.full.split('@').next().unwrap_or_default();
        // A name in a layout has no tag, so the default one is left out.
        let name = name.strip_suffix(":latest").unwrap_or(name);
        let reference = format!("{name}@{digest}");
        let platform = self.context_platform(context);
        let request = Request::Image {
            reference: reference.clone(),
            platform: platform.clone(),
            name: format!("{label} load metadata for {reference}"),
            layout: Some(store.to_owned()),
        };
        let answer = self.ask(request)?;
        if let Some(Answer::Replaced(by)) = answer {
            let text =
                format!("ref mutated by policy to non-image: oci-layout://{reference} -> {by}");
            return Err(Error::new(text));
        }
        let Some(Answer::Image { config, .. }) = answer else {
            return Ok(None);
        };
        let image = parse_config(config)?;
        let attrs = BTreeMap::from([
            ("oci.session".to_owned(), self.options.session.clone()),
            ("oci.store".to_owned(), store.to_owned()),
        ]);
        let vertex = Vertex {
            platform: Some(platform),
            metadata: metadata(
                &format!("{label} OCI load from client"),
                &["source.ocilayout"],
            ),
            ..Vertex::new(
                Kind::Source(SourceOp {
                    identifier: format!("oci-layout://{reference}"),
                    attrs,
                }),
                Vec::new(),
            )
        };
        let output = self.add(vertex)?;
        Ok(Some((state_of(Some(output), &image), Some(image))))
    }

    fn load_local(
        &mut self,
        context: &NamedContext,
        local: &str,
        label: &str,
        paths: usize,
    ) -> Result<Option<(State, Option<Image>)>> {
        let session = self.options.session_of(local);
        let request = Request::Ignore {
            local: local.to_owned(),
            session: session.clone(),
            shared_key: format!("context:{}-.dockerignore", context.full_name),
            name: format!("{label} load .dockerignore"),
        };
        let Some(Answer::Ignore(text)) = self.ask(request)? else {
            return Ok(None);
        };
        let exclude = match text {
            Some(text) => {
                let file = format!(".dockerignore of the context {}", context.full_name);
                ignore::checked(&file, text)?
            }
            None => Vec::new(),
        };
        let shared = self.options.shared_keys.get(&context.full_name);
        let found = LocalContext {
            local: local.to_owned(),
            session,
            shared_key: format!(
                "context:{}-{}",
                context.full_name,
                shared.map_or("", String::as_str)
            ),
            exclude,
            name: format!("{label} load from client"),
        };
        let number = self.locals.len() + 1;
        let output = self.add(placeholder(number))?;
        self.locals.push((output, found, paths));
        let state = State {
            output: Some(output),
            ..State::default()
        };
        Ok(Some((state, None)))
    }

    fn load_input(&mut self, input: &str, name: &str) -> Result<Option<(State, Option<Image>)>> {
        let Some(found) = self.options.inputs.get(input) else {
            return Err(Error::new(format!("invalid input {input} for {name}")));
        };
        let output = self.builder.add_graph(&found.graph).map_err(graph)?;
        let Some(config) = &found.config else {
            let state = State {
                output,
                ..State::default()
            };
            return Ok(Some((state, None)));
        };
        let image = parse_config(config)?;
        Ok(Some((state_of(output, &image), Some(image))))
    }

    fn context_platform(&self, context: &NamedContext) -> Platform {
        context
            .platform
            .clone()
            .unwrap_or_else(|| self.target_platform.clone())
    }
}

pub(super) fn parse_config(config: &[u8]) -> Result<Image> {
    let mut image: Image = serde_json::from_slice(config)
        .map_err(|error| Error::new(format!("failed to parse image config: {error}")))?;
    image.created = None;
    Ok(image)
}

/// Returns the state that a configuration describes.
fn state_of(output: Option<Output>, image: &Image) -> State {
    let mut state = State {
        output,
        dir: image.config.working_dir.clone(),
        ..State::default()
    };
    for entry in &image.config.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if !name.is_empty() {
            Rc::make_mut(&mut state.env).set(name, value);
        }
    }
    if !image.os.is_empty() && !image.architecture.is_empty() {
        state.platform = Some(image.platform().normalized());
    }
    state
}
