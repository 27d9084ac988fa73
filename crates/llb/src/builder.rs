//! Making of definitions.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message as _;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pb::op::Kind;
use crate::pb::{
    Definition, Input, Location, Locations, Op, OpMetadata, Platform, Range, Source, SourceInfo,
    WorkerConstraints,
};
use crate::{MAX_BYTES, MAX_OPS};

/// An output of an operation that was added to a builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Output {
    vertex: usize,
    index: usize,
}

impl Output {
    /// Returns another output of the same operation.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        Self { index, ..self }
    }
}

/// An operation to be added. Its inputs are those that the kind's indexes refer to.
#[derive(Clone, Debug, PartialEq)]
pub struct Vertex {
    pub kind: Kind,
    pub inputs: Vec<Output>,
    pub platform: Option<Platform>,
    pub metadata: OpMetadata,
    /// The lines that it comes from.
    pub lines: Vec<Range>,
}

impl Vertex {
    pub fn new(kind: Kind, inputs: Vec<Output>) -> Self {
        Self {
            kind,
            inputs,
            platform: None,
            metadata: OpMetadata::default(),
            lines: Vec::new(),
        }
    }
}

/// Collects operations. Equal ones are one, with the metadata of both.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    vertices: Vec<Stored>,
    known: HashMap<Digest, usize>,
    size: usize,
}

#[derive(Clone, Debug)]
struct Stored {
    vertex: Vertex,
    /// Each entry has the lines of one use.
    lines: Vec<Vec<Range>>,
}

impl Builder {
    /// Adds an operation, and returns its first output.
    ///
    /// # Errors
    /// Returns an error if the definition would be too large.
    pub fn add(&mut self, mut vertex: Vertex) -> Result<Output> {
        let inputs = vertex.inputs.iter().map(|input| Input {
            digest: input.vertex.to_string(),
            index: index(*input),
        });
        let bytes = op(&vertex, inputs.collect()).encode_to_vec();
        let digest = Digest::of(&bytes);
        let lines = std::mem::take(&mut vertex.lines);
        let found = match self.known.get(&digest) {
            Some(&found) => {
                merge(&mut self.vertices[found].vertex.metadata, vertex.metadata);
                found
            }
            None => {
                self.size += bytes.len();
                if self.vertices.len() >= MAX_OPS || self.size > MAX_BYTES {
                    return Err(Error::definition(format!(
                        "it has more than {MAX_OPS} operations or {MAX_BYTES} bytes"
                    )));
                }
                self.known.insert(digest, self.vertices.len());
                self.vertices.push(Stored {
                    vertex,
                    lines: Vec::new(),
                });
                self.vertices.len() - 1
            }
        };
        if !lines.is_empty() {
            self.vertices[found].lines.push(lines);
        }
        Ok(Output {
            vertex: found,
            index: 0,
        })
    }

    /// Replaces an operation by another one, for what is known only when all others are.
    pub fn replace(&mut self, output: Output, vertex: Vertex) {
        if let Some(stored) = self.vertices.get_mut(output.vertex) {
            stored.vertex = vertex;
        }
    }

    /// Adds the operations of a graph, and returns its result.
    ///
    /// # Errors
    /// Returns an error if the definition would be too large.
    pub fn add_graph(&mut self, graph: &crate::Graph) -> Result<Option<Output>> {
        let mut outputs: Vec<Output> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            // A checked graph has a kind in each of its nodes.
            let Some(kind) = node.op.kind.clone() else {
                return Err(Error::op(node.digest, "it is none of the known kinds"));
            };
            let inputs = node.inputs.iter();
            outputs.push(
                self.add(Vertex {
                    kind,
                    inputs: inputs
                        .map(|edge| outputs[edge.node].at(edge.output))
                        .collect(),
                    platform: node.op.platform.clone(),
                    metadata: node.metadata.clone(),
                    lines: Vec::new(),
                })?,
            );
        }
        let result = graph.result;
        Ok(result.map(|edge| outputs[edge.node].at(edge.output)))
    }

    /// Returns what `result` depends on, with the file that the operations come from. Without a result, the
    /// definition is empty.
    pub fn definition(&self, result: Option<Output>, file: Option<SourceInfo>) -> Definition {
        let Some(result) = result else {
            return Definition::default();
        };
        let mut encoded: HashMap<usize, Digest> = HashMap::new();
        let mut seen = HashSet::new();
        let mut definition = Definition::default();
        let mut locations: BTreeMap<String, Locations> = BTreeMap::new();
        for vertex in self.order(result.vertex) {
            let stored = &self.vertices[vertex];
            let inputs = stored.vertex.inputs.iter().map(|input| Input {
                digest: encoded
                    .get(&input.vertex)
                    .map(Digest::to_string)
                    .unwrap_or_default(),
                index: index(*input),
            });
            let bytes = op(&stored.vertex, inputs.collect()).encode_to_vec();
            let digest = Digest::of(&bytes);
            encoded.insert(vertex, digest);
            let name = digest.to_string();
            let metadata = definition.metadata.entry(name.clone()).or_default();
            merge(metadata, stored.vertex.metadata.clone());
            for ranges in &stored.lines {
                let location = Location {
                    source_index: 0,
                    ranges: ranges.clone(),
                };
                locations
                    .entry(name.clone())
                    .or_default()
                    .locations
                    .push(location);
            }
            if seen.insert(digest) {
                definition.def.push(bytes);
            }
        }
        let last = Op {
            inputs: vec![Input {
                digest: encoded
                    .get(&result.vertex)
                    .map(Digest::to_string)
                    .unwrap_or_default(),
                index: index(result),
            }],
            ..Op::default()
        };
        let bytes = last.encode_to_vec();
        let caps = caps(definition.metadata.values());
        definition.metadata.insert(
            Digest::of(&bytes).to_string(),
            OpMetadata {
                caps,
                ..OpMetadata::default()
            },
        );
        definition.def.push(bytes);
        definition.source = file.map(|file| Source {
            locations,
            infos: vec![file],
        });
        definition
    }

    /// Returns what a vertex depends on, inputs first.
    fn order(&self, result: usize) -> Vec<usize> {
        let mut order = Vec::new();
        let mut visited = HashSet::new();
        // Each entry is a vertex and the number of its inputs that were visited.
        let mut path = vec![(result, 0)];
        visited.insert(result);
        while let Some((vertex, visited_inputs)) = path.last_mut() {
            match self.vertices[*vertex].vertex.inputs.get(*visited_inputs) {
                Some(input) => {
                    *visited_inputs += 1;
                    if visited.insert(input.vertex) {
                        path.push((input.vertex, 0));
                    }
                }
                None => {
                    order.push(*vertex);
                    path.pop();
                }
            }
        }
        order
    }
}

fn index(output: Output) -> i64 {
    i64::try_from(output.index).unwrap_or(i64::MAX)
}

fn op(vertex: &Vertex, inputs: Vec<Input>) -> Op {
    Op {
        inputs,
        kind: Some(vertex.kind.clone()),
        platform: vertex.platform.clone(),
        constraints: Some(WorkerConstraints::default()),
    }
}

/// Adds the second metadata to the first.
fn merge(metadata: &mut OpMetadata, other: OpMetadata) {
    metadata.ignore_cache |= other.ignore_cache;
    metadata.description.extend(other.description);
    metadata.caps.extend(other.caps);
    metadata.export_cache = other.export_cache.or(metadata.export_cache);
    metadata.progress_group = other.progress_group.or(metadata.progress_group.take());
    metadata.linux_resources = other.linux_resources.or(metadata.linux_resources.take());
}

/// Returns the capabilities that the metadata of a definition requires.
fn caps<'a>(metadata: impl Iterator<Item = &'a OpMetadata>) -> BTreeMap<String, bool> {
    let mut caps = vec!["constraints", "platform"];
    for metadata in metadata {
        if metadata.ignore_cache {
            caps.push("meta.ignorecache");
        }
        if !metadata.description.is_empty() {
            caps.push("meta.description");
        }
        if metadata.export_cache.is_some() {
            caps.push("meta.exportcache");
        }
    }
    caps.into_iter().map(|cap| (cap.to_owned(), true)).collect()
}
