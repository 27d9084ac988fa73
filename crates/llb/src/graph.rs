//! Definitions that were checked.

use std::collections::HashMap;

use prost::Message as _;

use crate::check::check;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pb::op::Kind;
use crate::pb::{Definition, Input, Op, OpMetadata, Source, SourceOp};
use crate::{MAX_BYTES, MAX_OPS};

/// An output of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Index in [`Graph::nodes`].
    pub node: usize,
    pub output: usize,
}

/// An operation of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Digest of the bytes as they were received.
    pub digest: Digest,
    pub bytes: Vec<u8>,
    pub op: Op,
    pub inputs: Vec<Edge>,
    /// Number of outputs.
    pub outputs: usize,
    pub metadata: OpMetadata,
}

/// Operations without cycles, each after those it depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    pub nodes: Vec<Node>,
    /// `None` of an empty definition, whose result has no files.
    pub result: Option<Edge>,
    /// The lines that the operations come from.
    pub source: Option<Source>,
}

impl Graph {
    /// Decodes and checks a definition.
    ///
    /// # Errors
    /// Returns an error for bytes that are no definition, and those of [`Graph::new`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > 2 * MAX_BYTES {
            return Err(Error::definition(format!(
                "{} bytes are more than {}",
                bytes.len(),
                2 * MAX_BYTES
            )));
        }
        let definition = Definition::decode(bytes)
            .map_err(|error| Error::definition(format!("not a definition: {error}")))?;
        Self::new(definition)
    }

    /// Checks a definition.
    ///
    /// # Errors
    /// Returns an error, which names the operation, if an input is missing or out of range, an operation is not
    /// complete, there is a cycle, or the definition is too large.
    pub fn new(mut definition: Definition) -> Result<Self> {
        let count = definition.def.len();
        if count > MAX_OPS {
            return Err(Error::definition(format!(
                "{count} operations are more than {MAX_OPS}"
            )));
        }
        let size: usize = definition.def.iter().map(Vec::len).sum();
        if size > MAX_BYTES {
            return Err(Error::definition(format!(
                "operations of {size} bytes are larger than {MAX_BYTES}"
            )));
        }
        let Some(last) = definition.def.pop() else {
            return Ok(Self::default());
        };
        let mut nodes = Vec::with_capacity(definition.def.len());
        let mut known = HashMap::with_capacity(definition.def.len());
        for bytes in definition.def {
            let digest = Digest::of(&bytes);
            if known.contains_key(&digest) {
                continue;
            }
            let op = decode(&bytes, digest)?;
            let outputs = check(&op).map_err(|cause| Error::op(digest, cause))?;
            known.insert(digest, nodes.len());
            nodes.push(Node {
                digest,
                bytes,
                op,
                inputs: Vec::new(),
                outputs,
                metadata: definition
                    .metadata
                    .remove(&digest.to_string())
                    .unwrap_or_default(),
            });
        }
        for index in 0..nodes.len() {
            let node = &nodes[index];
            let inputs = node.op.inputs.iter();
            let edges = inputs.map(|input| edge(input, node.digest, &known, &nodes));
            nodes[index].inputs = edges.collect::<Result<_>>()?;
        }
        let digest = Digest::of(&last);
        let result = decode(&last, digest)?;
        let (None, [input]) = (&result.kind, result.inputs.as_slice()) else {
            return Err(Error::op(
                digest,
                "the last one should have one input, the result, and no kind",
            ));
        };
        let result = edge(input, digest, &known, &nodes)?;
        let graph = Self {
            nodes,
            result: Some(result),
            source: definition.source,
        };
        graph.sorted()
    }

    /// Puts each node after its inputs.
    fn sorted(self) -> Result<Self> {
        let count = self.nodes.len();
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); count];
        let mut waiting: Vec<usize> = Vec::with_capacity(count);
        for (index, node) in self.nodes.iter().enumerate() {
            waiting.push(node.inputs.len());
            for input in &node.inputs {
                users[input.node].push(index);
            }
        }
        let mut order: Vec<usize> = (0..count).filter(|index| waiting[*index] == 0).collect();
        let mut next = 0;
        while let Some(&index) = order.get(next) {
            next += 1;
            for &user in &users[index] {
                waiting[user] -= 1;
                if waiting[user] == 0 {
                    order.push(user);
                }
            }
        }
        if let Some(index) = waiting.iter().position(|left| *left > 0) {
            return Err(Error::op(self.nodes[index].digest, "it depends on itself"));
        }
        let mut places = vec![0; count];
        for (place, index) in order.iter().enumerate() {
            places[*index] = place;
        }
        let moved = |edge: Edge| Edge {
            node: places[edge.node],
            ..edge
        };
        let mut nodes: Vec<(usize, Node)> = places.iter().copied().zip(self.nodes).collect();
        nodes.sort_by_key(|(place, _)| *place);
        let nodes = nodes.into_iter().map(|(_, node)| Node {
            inputs: node.inputs.iter().copied().map(moved).collect(),
            ..node
        });
        Ok(Self {
            nodes: nodes.collect(),
            result: self.result.map(moved),
            source: self.source,
        })
    }

    /// Returns which nodes the result depends on.
    pub fn needed(&self) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        if let Some(result) = self.result {
            needed[result.node] = true;
        }
        for index in (0..self.nodes.len()).rev() {
            if needed[index] {
                for input in &self.nodes[index].inputs {
                    needed[input.node] = true;
                }
            }
        }
        needed
    }

    /// Changes sources. `change` gets each with the digest of its operation, and returns whether it has changed it. What depends on
    /// one that was changed has another digest then, and operations that become equal are one.
    ///
    /// # Errors
    /// Returns the first error of `change`.
    pub fn with_sources<E>(
        self,
        mut change: impl FnMut(Digest, &mut SourceOp) -> std::result::Result<bool, E>,
    ) -> std::result::Result<Self, E> {
        let mut nodes: Vec<Node> = Vec::with_capacity(self.nodes.len());
        let mut places: Vec<usize> = Vec::with_capacity(self.nodes.len());
        let mut known = HashMap::new();
        let mut source = self.source;
        for mut node in self.nodes {
            let mut is_changed = match &mut node.op.kind {
                Some(Kind::Source(op)) => change(node.digest, op)?,
                _ => false,
            };
            for (input, edge) in node.op.inputs.iter_mut().zip(&mut node.inputs) {
                edge.node = places[edge.node];
                let digest = nodes[edge.node].digest.to_string();
                is_changed |= input.digest != digest;
                input.digest = digest;
            }
            if is_changed {
                node.bytes = node.op.encode_to_vec();
                let old = std::mem::replace(&mut node.digest, Digest::of(&node.bytes));
                if let Some(source) = &mut source
                    && let Some(moved) = source.locations.remove(&old.to_string())
                {
                    let new = source.locations.entry(node.digest.to_string());
                    new.or_default().locations.extend(moved.locations);
                }
            }
            let place = *known.entry(node.digest).or_insert(nodes.len());
            match nodes.get_mut(place) {
                Some(equal) => equal.metadata.ignore_cache |= node.metadata.ignore_cache,
                None => nodes.push(node),
            }
            places.push(place);
        }
        let result = self.result.map(|edge| Edge {
            node: places[edge.node],
            ..edge
        });
        Ok(Self {
            nodes,
            result,
            source,
        })
    }

    /// Returns the definition that this graph was made of, with the bytes as they were received.
    pub fn definition(&self) -> Definition {
        let Some(result) = self.result else {
            return Definition::default();
        };
        let last = Op {
            inputs: vec![Input {
                digest: self.nodes[result.node].digest.to_string(),
                index: i64::try_from(result.output).unwrap_or(i64::MAX),
            }],
            ..Op::default()
        };
        let ops = self.nodes.iter().map(|node| node.bytes.clone());
        let metadata = self.nodes.iter();
        Definition {
            def: ops.chain([last.encode_to_vec()]).collect(),
            metadata: metadata
                .map(|node| (node.digest.to_string(), node.metadata.clone()))
                .collect(),
            source: self.source.clone(),
        }
    }
}

fn decode(bytes: &[u8], digest: Digest) -> Result<Op> {
    Op::decode(bytes).map_err(|error| Error::op(digest, format!("it cannot be decoded: {error}")))
}

fn edge(
    input: &Input,
    user: Digest,
    known: &HashMap<Digest, usize>,
    nodes: &[Node],
) -> Result<Edge> {
    let found = Digest::parse(&input.digest).and_then(|digest| known.get(&digest));
    let Some(&node) = found else {
        return Err(Error::op(user, format!("missing input {:?}", input.digest)));
    };
    let outputs = nodes[node].outputs;
    match usize::try_from(input.index) {
        Ok(output) if output < outputs => Ok(Edge { node, output }),
        _ => Err(Error::op(
            user,
            format!(
                "output {} of input {} is out of range: there are {outputs}",
                input.index, input.digest
            ),
        )),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;
    use crate::pb::{
        DiffOp, ExecOp, FileAction, FileActionRm, FileOp, InputIndex, Location, Locations, MergeOp,
        Meta, Mount, file_action,
    };

    fn op(inputs: Vec<Input>, kind: Kind) -> Op {
        Op {
            inputs,
            kind: Some(kind),
            ..Op::default()
        }
    }

    fn source(identifier: &str) -> Op {
        let identifier = identifier.to_owned();
        op(
            vec![],
            Kind::Source(SourceOp {
                identifier,
                ..SourceOp::default()
            }),
        )
    }

    fn input(op: &Op, index: i64) -> Input {
        Input {
            digest: Digest::of(&op.encode_to_vec()).to_string(),
            index,
        }
    }

    fn exec(input: i64, output: i64) -> ExecOp {
        ExecOp {
            meta: Some(Meta {
                args: vec!["x".into()],
                ..Meta::default()
            }),
            mounts: vec![Mount {
                dest: "/".into(),
                input,
                output,
                ..Mount::default()
            }],
            ..ExecOp::default()
        }
    }

    /// A definition of a source, an operation on it, and the result.
    fn definition(kind: Kind, index: i64) -> Definition {
        let base = source("docker-image://x");
        let step = op(vec![input(&base, 0)], kind);
        let last = Op {
            inputs: vec![input(&step, index)],
            ..Op::default()
        };
        Definition {
            def: [base, step, last]
                .iter()
                .map(prost::Message::encode_to_vec)
                .collect(),
            ..Definition::default()
        }
    }

    #[test]
    fn definitions_survive_both_ways() {
        let definition = definition(Kind::Exec(exec(0, 0)), 0);
        let graph = Graph::decode(&definition.encode_to_vec()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(graph.nodes.len(), 2);
        assert_eq!(graph.result, Some(Edge { node: 1, output: 0 }));
        assert_eq!(graph.definition().def, definition.def);
        assert_eq!(Graph::new(Definition::default()), Ok(Graph::default()));
        // Inputs may come later.
        let mut reversed = definition.clone();
        reversed.def.swap(0, 1);
        assert_eq!(Graph::new(reversed), Ok(graph));
    }

    #[test]
    fn bytes_as_received_count() {
        // The same fields in another order.
        let mut definition = definition(Kind::Exec(exec(0, 0)), 0);
        let bytes = definition.def[0].clone();
        let other = [bytes.as_slice(), &[0x5a, 0]].concat();
        assert_ne!(Digest::of(&other), Digest::of(&bytes));
        definition.def[0] = other;
        let error = Graph::new(definition).unwrap_err().to_string();
        assert!(error.contains("missing input"), "{error}");
    }

    fn refused(definition: Definition, expected: &str) {
        let error = Graph::new(definition).unwrap_err();
        assert!(matches!(error, Error::Op { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}: {expected}");
    }

    #[test]
    fn names_the_operation_that_is_invalid() {
        let merge = |input| {
            let inputs = vec![InputIndex { input }];
            Kind::Merge(MergeOp { inputs })
        };
        let file = |input, output, action: Option<file_action::Action>| {
            let action = FileAction {
                input,
                secondary_input: -1,
                output,
                action,
            };
            Kind::File(FileOp {
                actions: vec![action],
            })
        };
        let rm = || Some(file_action::Action::Rm(FileActionRm::default()));
        let with_exec = |change: fn(&mut ExecOp)| {
            let mut exec = exec(0, 0);
            change(&mut exec);
            Kind::Exec(exec)
        };
        for (kind, index, expected) in [
            (
                Kind::Exec(exec(1, 0)),
                0,
                "the input of a mount, 1 is out of range",
            ),
            (
                Kind::Exec(exec(-2, 0)),
                0,
                "the input of a mount, -2 is out of range",
            ),
            (Kind::Exec(exec(0, 7)), 0, "output 7 of the mount"),
            (Kind::Exec(exec(0, 0)), 1, "output 1 of input"),
            (Kind::Exec(exec(0, 0)), -1, "output -1 of input"),
            (Kind::Exec(exec(0, -1)), 0, "there are 0"),
            (with_exec(|exec| exec.meta = None), 0, "without its process"),
            (with_exec(|exec| exec.mounts.clear()), 0, "without mounts"),
            (
                with_exec(|exec| exec.mounts[0].dest = "/a".into()),
                0,
                "without a root file system",
            ),
            (
                with_exec(|exec| exec.mounts[0].mount_type = 9),
                0,
                "unknown type of mounts 9",
            ),
            (
                with_exec(|exec| exec.mounts[0].mount_type = 3),
                0,
                "cache mount",
            ),
            (
                with_exec(|exec| exec.network = 5),
                0,
                "unknown network mode 5",
            ),
            (
                with_exec(|exec| exec.security = -1),
                0,
                "unknown security mode -1",
            ),
            (merge(1), 0, "an input of the merge, 1 is out of range"),
            (Kind::Merge(MergeOp::default()), 0, "a merge of nothing"),
            (Kind::Diff(DiffOp::default()), 0, "without its sides"),
            (
                Kind::Source(SourceOp::default()),
                0,
                "without an identifier",
            ),
            (file(0, 0, None), 0, "none of the known kinds"),
            (
                file(1, 0, rm()),
                0,
                "the input of an action, 1 is out of range",
            ),
            (file(0, 3, rm()), 0, "not numbered from 0"),
            (Kind::File(FileOp::default()), 0, "without actions"),
        ] {
            refused(definition(kind, index), expected);
        }
        let mut missing = definition(Kind::Exec(exec(0, 0)), 0);
        missing.def.remove(0);
        refused(missing, "missing input");
        let mut no_kind = definition(Kind::Exec(exec(0, 0)), 0);
        no_kind.def[0] = Vec::new();
        refused(no_kind, "none of the known kinds");
        let mut no_result = definition(Kind::Exec(exec(0, 0)), 0);
        no_result.def.pop();
        refused(no_result, "the last one");
        let mut garbage = definition(Kind::Exec(exec(0, 0)), 0);
        garbage.def[0] = vec![0xff; 9];
        refused(garbage, "cannot be decoded");
    }

    #[test]
    fn content_that_is_written_to_is_not_looked_up_by_a_part() {
        let of = |content_cache, selector: &str, readonly| {
            let mut exec = exec(0, 0);
            exec.mounts[0].content_cache = content_cache;
            exec.mounts[0].selector = selector.into();
            exec.mounts[0].readonly = readonly;
            definition(Kind::Exec(exec), 0)
        };
        refused(of(3, "", false), "unknown content cache 3");
        refused(of(1, "/part", false), "invalid mount cache content");
        for definition in [
            of(1, "/./", false),
            of(1, "/part", true),
            of(2, "/part", false),
        ] {
            assert!(Graph::new(definition).is_ok());
        }
    }

    #[test]
    fn limits_the_size() {
        let many = Definition {
            def: vec![Vec::new(); MAX_OPS + 1],
            ..Definition::default()
        };
        assert!(matches!(Graph::new(many), Err(Error::Definition(_))));
        let large = Definition {
            def: vec![vec![0; MAX_BYTES], vec![0]],
            ..Definition::default()
        };
        assert!(matches!(Graph::new(large), Err(Error::Definition(_))));
        assert!(matches!(Graph::decode(&[0xff]), Err(Error::Definition(_))));
    }

    #[test]
    fn long_chains_need_no_stack() {
        let mut builder = crate::Builder::default();
        let mut output = None;
        for number in 0..50_000 {
            let directory = FileAction {
                input: if output.is_some() { 0 } else { -1 },
                secondary_input: -1,
                output: 0,
                action: Some(file_action::Action::Rm(FileActionRm {
                    path: format!("/{number}"),
                    ..FileActionRm::default()
                })),
            };
            let actions = vec![directory];
            let vertex =
                crate::Vertex::new(Kind::File(FileOp { actions }), output.into_iter().collect());
            output = Some(
                builder
                    .add(vertex)
                    .unwrap_or_else(|error| panic!("{error}")),
            );
        }
        let definition = builder.definition(output, None);
        let graph = Graph::new(definition).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(graph.nodes.len(), 50_000);
        assert!(graph.needed().iter().all(|needed| *needed));
    }

    #[test]
    fn sources_are_changed_with_all_that_depends_on_them() {
        let (one, two) = (source("a://1"), source("a://2"));
        let merge = MergeOp {
            inputs: vec![InputIndex { input: 0 }, InputIndex { input: 1 }],
        };
        let step = op(vec![input(&one, 0), input(&two, 0)], Kind::Merge(merge));
        let last = Op {
            inputs: vec![input(&step, 0)],
            ..Op::default()
        };
        let digest = |op: &Op| Digest::of(&op.encode_to_vec()).to_string();
        let location = Location {
            source_index: 0,
            ranges: Vec::new(),
        };
        let locations = Locations {
            locations: vec![location],
        };
        let locations = [&one, &two, &step].map(|op| (digest(op), locations.clone()));
        let definition = Definition {
            def: [&one, &two, &step, &last].map(Op::encode_to_vec).to_vec(),
            source: Some(Source {
                locations: locations.into(),
                infos: Vec::new(),
            }),
            ..Definition::default()
        };
        let graph = Graph::new(definition).unwrap();
        let same = graph.clone().with_sources(|_, _| Ok::<_, ()>(false));
        assert_eq!(same.as_ref(), Ok(&graph));
        let change = |_, source: &mut SourceOp| {
            source.identifier = "a://2".into();
            Ok::<_, ()>(true)
        };
        let changed = graph.clone().with_sources(change).unwrap();
        // Both are one now.
        assert_eq!(changed.nodes.len(), 2);
        assert_eq!(changed.nodes[0].digest.to_string(), digest(&two));
        assert_eq!(changed.nodes[1].inputs.len(), 2);
        assert_eq!(changed.result.map(|edge| edge.node), Some(1));
        let places = changed.source.as_ref().map(|source| &source.locations);
        let count = |digest: &Digest| places.unwrap()[&digest.to_string()].locations.len();
        assert_eq!(count(&changed.nodes[0].digest), 2);
        assert_eq!(count(&changed.nodes[1].digest), 1);
        // It is a definition like others.
        assert_eq!(Graph::new(changed.definition()), Ok(changed.clone()));
        let refused = graph.with_sources(|_, _| Err("no"));
        assert_eq!(refused.unwrap_err(), "no");
    }
}
