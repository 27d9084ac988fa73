//! The operations of a definition as provenance names them: `step0`, `step1`, …, each after those it depends on.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use whelk_image::descriptor::Descriptor;
use whelk_llb::pb::MountType;
use whelk_llb::pb::op::Kind;
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
            json!({"filename": info.filename, "language": info.language, "data": data})
        });
        let infos: Vec<Value> = infos.collect();
        json!({"locations": locations, "infos": infos})
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
