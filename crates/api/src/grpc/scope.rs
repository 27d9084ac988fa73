//! What a frontend can refer to: the results that it was given, and no others.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use whelk_buildkit::grpc::{Code, Result, Status};
use whelk_buildkit::pb::gateway::{self, Ref, RefMap, result};
use whelk_llb::pb::Definition;
use whelk_sys::sync::IgnorePoison as _;

use super::builds::Reference;
use super::platforms::{MAX_PLATFORMS, ids};

/// Maximum number of references, and of the bytes of their definitions.
const MAX_REFERENCES: usize = 4096;
const MAX_DEFINITIONS: usize = 64 << 20;

/// Maximum number of operations that a program in an image may define.
const MAX_OPS: usize = 200_000;

/// Maximum number of calls of such a program: some are told of in the progress of the build, which is kept.
const MAX_CALLS: usize = 100_000;

/// What one frontend can refer to.
#[derive(Debug)]
pub(super) struct Scope {
    /// The beginning of the names of its references.
    name: String,
    /// How many programs in images stand between the client and what this is for; 0 for the client itself.
    pub depth: usize,
    pub inputs: BTreeMap<String, Definition>,
    references: Mutex<References>,
    calls: AtomicUsize,
    /// The result, which the frontend returns (`LLBBridge.Return`).
    pub returned: watch::Sender<Option<Result<gateway::Result>>>,
}

#[derive(Debug, Default)]
struct References {
    known: HashMap<String, Arc<Reference>>,
    ops: usize,
    bytes: usize,
}

impl Scope {
    /// Returns the scope of a build's client.
    pub fn of_client(build: &str, inputs: BTreeMap<String, Definition>) -> Self {
        Self {
            name: build.to_owned(),
            depth: 0,
            inputs,
            references: Mutex::default(),
            calls: AtomicUsize::new(0),
            returned: watch::Sender::default(),
        }
    }

    /// Returns the scope of a program that a frontend with this scope has asked for.
    pub fn inner(&self, inputs: BTreeMap<String, Definition>) -> Self {
        Self {
            depth: self.depth + 1,
            ..Self::of_client(&format!("{}-{}", self.name, self.depth), inputs)
        }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// Returns an error if there were too many.
    pub fn count_call(&self) -> Result<()> {
        match self.calls.fetch_add(1, Ordering::Relaxed) {
            MAX_CALLS.. => Err(exceeded(format!("more than {MAX_CALLS} calls"))),
            _ => Ok(()),
        }
    }

    /// Keeps a reference, and returns its name.
    ///
    /// # Errors
    /// Returns an error if it has too many.
    pub fn add(&self, reference: Reference) -> Result<(String, Arc<Reference>)> {
        let reference = Arc::new(reference);
        let name = self.share(reference.clone())?;
        Ok((name, reference))
    }

    fn share(&self, reference: Arc<Reference>) -> Result<String> {
        let mut references = self.references.lock().ignore_poison();
        let (ops, bytes) = reference.size();
        let bytes = references.bytes.saturating_add(bytes);
        if references.known.len() >= MAX_REFERENCES || bytes > MAX_DEFINITIONS {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!(
                    "a build has at most {MAX_REFERENCES} results, with definitions of {MAX_DEFINITIONS} bytes"
                ),
            ));
        }
        let ops = references.ops.saturating_add(ops);
        if self.depth > 0 && ops > MAX_OPS {
            return Err(exceeded(format!("more than {MAX_OPS} operations")));
        }
        (references.ops, references.bytes) = (ops, bytes);
        let name = format!("{}-{}", self.name, references.known.len());
        references.known.insert(name.clone(), reference);
        Ok(name)
    }

    /// # Errors
    /// Returns an error if there is no such reference.
    pub fn reference(&self, name: &str) -> Result<Arc<Reference>> {
        let references = self.references.lock().ignore_poison();
        let found = references.known.get(name).cloned();
        found.ok_or_else(|| Status::not_found(format!("no such ref: {name}")))
    }

    /// Keeps the result. Returns whether it is the first one.
    pub fn set_returned(&self, returned: Result<gateway::Result>) -> bool {
        self.returned.send_if_modified(|known| {
            let is_first = known.is_none();
            if is_first {
                *known = Some(returned);
            }
            is_first
        })
    }

    /// Makes a result of another scope one of this.
    ///
    /// # Errors
    /// Returns an error if it refers to something that the other scope does not have.
    pub fn adopt(&self, other: &Self, result: gateway::Result) -> Result<gateway::Result> {
        let count = result.kind.as_ref().map_or(0, |kind| ids(kind).len());
        if count > MAX_PLATFORMS {
            return Err(exceeded(format!("more than {MAX_PLATFORMS} results")));
        }
        let reference = |id: &str| -> Result<Ref> {
            // A result without files.
            if id.is_empty() {
                return Ok(Ref::default());
            }
            let reference = other.reference(id)?;
            let def = Some(reference.definition.clone());
            let id = self.share(reference)?;
            Ok(Ref { id, def })
        };
        let named = |names: Vec<(&String, &str)>| -> Result<result::Kind> {
            let refs = names.into_iter();
            let refs = refs.map(|(name, id)| Ok((name.clone(), reference(id)?)));
            let refs = refs.collect::<Result<_>>()?;
            Ok(result::Kind::Refs(RefMap { refs }))
        };
        let kind = match &result.kind {
            None => None,
            Some(result::Kind::RefName(id)) => Some(result::Kind::Ref(reference(id)?)),
            Some(result::Kind::Ref(one)) => Some(result::Kind::Ref(reference(&one.id)?)),
            Some(result::Kind::RefNames(names)) => {
                let names = names.refs.iter();
                Some(named(
                    names.map(|(name, id)| (name, id.as_str())).collect(),
                )?)
            }
            Some(result::Kind::Refs(refs)) => {
                let refs = refs.refs.iter();
                Some(named(
                    refs.map(|(name, one)| (name, one.id.as_str())).collect(),
                )?)
            }
        };
        Ok(gateway::Result { kind, ..result })
    }

    pub fn clear(&self) {
        *self.references.lock().ignore_poison() = References::default();
    }
}

fn exceeded(what: String) -> Status {
    let text = format!("the frontend exceeds a limit: {what}");
    Status::new(Code::ResourceExhausted, text)
}
