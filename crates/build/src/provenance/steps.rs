//! The operations of a definition as provenance names them: `step0`, `step1`, …, each after those it depends on.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use whelk_image::descriptor::Descriptor;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{Definition, MountType};
use whelk_llb::{Digest, Graph, Node};

use super::op;

/// The order of the operations.
pub(super) struct Steps {
    /// Indexes of nodes.
    order: Vec<usize>,
    /// The number of a node.
    numbers: HashMap<usize, usize>,
    last: Digest,
}

impl Steps {
    /// Visits the inputs of each operation before itself. `last` is the digest of the operation that only refers to the result.
    pub fn of(graph: &Graph, last: &Digest) -> Self {
        let mut steps = Self {
            order: Vec::new(),
            numbers: HashMap::new(),
            last: *last,
        };
        let mut visited = vec![false; graph.nodes.len()];
        let mut path: Vec<(usize, usize)> = Vec::new();
        if let Some(result) = graph.result {
            visited[result.node] = true;
            path.push((result.node, 0));
        }
        while let Some((index, next)) = path.last_mut() {
            match graph.nodes[*index].inputs.get(*next) {
                Some(input) => {
                    *next += 1;
                    if !std::mem::replace(&mut visited[input.node], true) {
                        path.push((input.node, 0));
                    }
                }
                None => {
                    steps.numbers.insert(*index, steps.order.len());
                    steps.order.push(*index);
                    path.pop();
                }
            }
        }
        steps
    }

    fn name(&self, node: usize) -> String {
        let number = self.numbers.get(&node).copied().unwrap_or_default();
        format!("step{number}")
    }

    fn inputs(&self, edges: &[whelk_llb::Edge]) -> Vec<String> {
        let edges = edges.iter();
        edges
            .map(|edge| format!("{}:{}", self.name(edge.node), edge.output))
            .collect()
    }

    /// Returns the definition.
    pub fn config(&self, graph: &Graph) -> Value {
        let Some(result) = graph.result else {
            return Value::Null;
        };
        let mut mapping = Map::new();
        let mut definition = Vec::new();
        for index in &self.order {
            let node = &graph.nodes[*index];
            let mut step = json!({"id": self.name(*index), "op": op::op(&node.op)});
            let inputs = self.inputs(&node.inputs);
            if let (false, Value::Object(step)) = (inputs.is_empty(), &mut step) {
                step.insert("inputs".into(), inputs.into());
            }
            definition.push(step);
            mapping.insert(node.digest.to_string(), self.name(*index).into());
        }
        let name = format!("step{}", self.order.len());
        definition.push(json!({"id": name, "op": {"Op": {}}, "inputs": self.inputs(&[result])}));
        mapping.insert(self.last.to_string(), name.into());
        json!({"llbDefinition": definition, "digestMapping": mapping})
    }

    /// Returns the files that the operations come from, and the lines.
    pub fn source(&self, graph: &Graph) -> Value {
        use base64::Engine as _;
        let Some(source) = graph.source.as_ref().filter(|one| !one.infos.is_empty()) else {
            return Value::Null;
        };
        let mut locations = Map::new();
        for index in &self.order {
            let digest = graph.nodes[*index].digest.to_string();
            if let Some(known) = source.locations.get(&digest) {
                locations.insert(self.name(*index), op::locations(known));
            }
        }
        let infos = source.infos.iter().map(|info| {
            let data = base64::engine::general_purpose::STANDARD.encode(&info.data);
            let mut known =
                json!({"filename": info.filename, "language": info.language, "data": data});
            let definition = info.definition.as_ref().and_then(Self::definition);
            if let (Value::Object(known), Some(Value::Object(definition))) =
                (&mut known, definition)
            {
                known.extend(definition);
            }
            known
        });
        let infos: Vec<Value> = infos.collect();
        json!({"locations": locations, "infos": infos})
    }

    /// Returns the definition of what a file is part of, in the form of [`Self::config`]; `None` of one that is empty or invalid.
    fn definition(definition: &Definition) -> Option<Value> {
        let last = Digest::of(definition.def.last()?);
        let graph = Graph::new(definition.clone()).ok()?;
        Some(Self::of(&graph, &last).config(&graph))
    }

    /// Returns the layers that each step has: those of the result, and of the steps that it stands on, as far as each has added
    /// one.
    pub fn layers(&self, graph: &Graph, layers: &[Descriptor]) -> Value {
        let mut found = Map::new();
        let mut rest = layers;
        let mut edge = graph.result;
        while let Some(current) = edge {
            if rest.is_empty() {
                break;
            }
            let name = format!("{}:{}", self.name(current.node), current.output);
            found.insert(name, json!([rest]));
            edge = base(&graph.nodes[current.node], current.output);
            rest = &rest[..rest.len() - 1];
        }
        Value::Object(found)
    }
}

/// Returns what an operation adds one layer to for an output; `None` if it is something else.
fn base(node: &Node, output: usize) -> Option<whelk_llb::Edge> {
    let input = match &node.op.kind {
        Some(Kind::Exec(exec)) => {
            let output = i64::try_from(output).ok()?;
            let mut mounts = exec.mounts.iter();
            let mount = mounts.find(|mount| {
                mount.output == output && mount.mount_type == i32::from(MountType::Bind)
            })?;
            (!mount.readonly).then_some(mount.input)?
        }
        Some(Kind::File(file)) if file.actions.len() == 1 => file.actions[0].input,
        _ => return None,
    };
    node.inputs.get(usize::try_from(input).ok()?).copied()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_llb::pb::{ExecOp, Meta, Mount, SecretOpt, SourceOp};
    use whelk_llb::{Builder, Vertex};

    use super::*;

    #[test]
    fn each_output_of_a_process_stands_on_its_own_input() {
        let mut builder = Builder::default();
        let mut source = |name: &str| {
            let source = SourceOp {
                identifier: format!("docker-image://{name}"),
                ..SourceOp::default()
            };
            let vertex = Vertex::new(Kind::Source(source), Vec::new());
            builder.add(vertex).unwrap()
        };
        let (one, two) = (source("one"), source("two"));
        let mount = |dest: &str, input: i64, output: i64| Mount {
            dest: dest.into(),
            input,
            output,
            ..Mount::default()
        };
        let exec = ExecOp {
            meta: Some(Meta {
                args: vec!["make".into()],
                ..Meta::default()
            }),
            mounts: vec![
                // Its output is none, whatever the index says.
                Mount {
                    mount_type: MountType::Secret.into(),
                    secret_opt: Some(SecretOpt::default()),
                    ..mount("/secret", -1, 0)
                },
                mount("/two", 1, 0),
                mount("/", 0, 1),
                mount("/empty", -1, 2),
                Mount {
                    readonly: true,
                    ..mount("/read", 1, 3)
                },
            ],
            ..ExecOp::default()
        };
        let result = builder.add(Vertex::new(Kind::Exec(exec), vec![one, two]));
        let definition = builder.definition(Some(result.unwrap()), None);
        let graph = Graph::new(definition).unwrap();
        let node = &graph.nodes[graph.result.unwrap().node];
        let bases = [0, 1, 2, 3].map(|output| base(node, output));
        assert_eq!(
            bases,
            [Some(node.inputs[1]), Some(node.inputs[0]), None, None]
        );
    }
}
