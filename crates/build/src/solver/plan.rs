//! What has to be executed: a pure function of a graph and what the cache has.

use whelk_llb::Graph;
use whelk_llb::key::{self, Identity, Use};
use whelk_llb::pb::Op;
use whelk_llb::pb::op::Kind;
use whelk_llb::{Digest, Node};

/// What is known of each input of an operation before anything is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    /// The key of the operation.
    pub key: Digest,
    pub identities: Vec<Identity>,
    /// Whether another build may have this key: it says nothing of the place of a client's directory.
    pub is_lasting: bool,
    /// The same of the key with the content of all inputs of which something is selected.
    pub is_lasting_by_content: bool,
}

/// What is to be done with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// The result does not need it.
    Leave,
    /// Its result is in the cache.
    Take,
    Execute,
}

/// Returns the keys of all operations. `source` returns the key of a source, which something may stand on as a whole, and `content` the digest of what an
/// operation, its second argument, selects of a source whose files are there already; `None` for other sources.
/// `finish` adds to the key of an operation what its result depends on besides.
pub(crate) fn keys<E>(
    graph: &Graph,
    mut source: impl FnMut(&Node, bool) -> Result<Digest, E>,
    mut content: impl FnMut(&Node, &Node, &[key::Selector]) -> Result<Option<Digest>, E>,
    finish: impl Fn(&Op, Digest) -> Digest,
) -> Result<Vec<Keys>, E> {
    let mut all: Vec<Keys> = Vec::with_capacity(graph.nodes.len());
    let whole = bases(graph);
    for ((node, is_needed), is_whole) in graph.nodes.iter().zip(graph.needed()).zip(whole) {
        if !is_needed {
            // Its sources were not received, and its key is not used.
            all.push(Keys {
                key: node.digest,
                identities: Vec::new(),
                is_lasting: false,
                is_lasting_by_content: false,
            });
            continue;
        }
        if let Some(Kind::Source(op)) = &node.op.kind {
            let is_lasting = is_whole || !op.identifier.starts_with("local://");
            all.push(Keys {
                key: source(node, is_whole)?,
                identities: Vec::new(),
                is_lasting,
                is_lasting_by_content: is_lasting,
            });
            continue;
        }
        let (mut is_lasting, mut is_lasting_by_content) = (true, true);
        let mut identities = Vec::with_capacity(node.inputs.len());
        for (edge, used) in node.inputs.iter().zip(key::uses(&node.op)) {
            let input = &all[edge.node];
            let known = input.key;
            identities.push(match used {
                Use::Whole => {
                    is_lasting &= input.is_lasting;
                    is_lasting_by_content &= input.is_lasting_by_content;
                    Identity::Step(known)
                }
                Use::Selected(selectors) => {
                    match content(&graph.nodes[edge.node], node, &selectors)? {
                        Some(digest) => Identity::Content(digest),
                        None => {
                            is_lasting &= input.is_lasting;
                            Identity::Selection(known)
                        }
                    }
                }
            });
        }
        all.push(Keys {
            key: finish(&node.op, key::step(&node.op, &identities)),
            identities,
            is_lasting,
            is_lasting_by_content,
        });
    }
    Ok(all)
}

/// Returns which operations others stand on.
fn bases(graph: &Graph) -> Vec<bool> {
    let mut all = vec![false; graph.nodes.len()];
    for node in &graph.nodes {
        for (edge, used) in node.inputs.iter().zip(key::uses(&node.op)) {
            all[edge.node] |= matches!(used, Use::Whole);
        }
    }
    all
}

/// Returns which operations depend on one that is to be executed again though its result may be there: what the
/// cache has for their keys is true only if that gives the same again.
pub(crate) fn doubtful(graph: &Graph) -> Vec<bool> {
    let mut all = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let is_source = matches!(node.op.kind, Some(Kind::Source(_)));
        let depends = |all: &[bool]| node.inputs.iter().any(|edge| all[edge.node]);
        all.push(!is_source && (node.metadata.ignore_cache || depends(&all)));
    }
    all
}

/// What is to be done with the operations of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub tasks: Vec<Task>,
    /// Which outputs of each operation others, or the result, need.
    pub outputs: Vec<Vec<usize>>,
}

/// Decides what is executed: the last operation is looked up first, and the inputs of one that is found are not
/// needed. `find` returns whether a result with these outputs is found.
pub(crate) fn plan(graph: &Graph, mut find: impl FnMut(usize, &[usize]) -> bool) -> Plan {
    let mut tasks = vec![Task::Leave; graph.nodes.len()];
    let mut outputs: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    if let Some(result) = graph.result {
        outputs[result.node].push(result.output);
    }
    // Inputs come before their users.
    for index in (0..graph.nodes.len()).rev() {
        if outputs[index].is_empty() {
            continue;
        }
        outputs[index].sort_unstable();
        if find(index, &outputs[index]) {
            tasks[index] = Task::Take;
            continue;
        }
        tasks[index] = Task::Execute;
        for edge in &graph.nodes[index].inputs {
            let needed = &mut outputs[edge.node];
            if !needed.contains(&edge.output) {
                needed.push(edge.output);
            }
        }
    }
    Plan { tasks, outputs }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::convert::Infallible;

    use whelk_llb::pb::{
        ExecOp, FileAction, FileActionCopy, FileOp, Meta, Mount, SourceOp, file_action,
    };
    use whelk_llb::{Builder, Output, Vertex};

    use super::*;

    fn add(builder: &mut Builder, kind: Kind, inputs: Vec<Output>) -> Output {
        builder.add(Vertex::new(kind, inputs)).unwrap()
    }

    fn source(builder: &mut Builder, identifier: &str) -> Output {
        let source = SourceOp {
            identifier: identifier.into(),
            ..SourceOp::default()
        };
        add(builder, Kind::Source(source), vec![])
    }

    fn run(builder: &mut Builder, command: &str, base: Output) -> Output {
        let exec = ExecOp {
            meta: Some(Meta {
                args: vec![command.into()],
                ..Meta::default()
            }),
            mounts: vec![Mount {
                dest: "/".into(),
                ..Mount::default()
            }],
            ..ExecOp::default()
        };
        add(builder, Kind::Exec(exec), vec![base])
    }

    fn copy(builder: &mut Builder, from: Output, base: Output) -> Output {
        let action = FileAction {
            input: 0,
            secondary_input: 1,
            output: 0,
            action: Some(file_action::Action::Copy(FileActionCopy {
                src: "/x".into(),
                dest: "/".into(),
                mode: -1,
                ..FileActionCopy::default()
            })),
        };
        let op = FileOp {
            actions: vec![action],
        };
        add(builder, Kind::File(op), vec![base, from])
    }

    /// Base, context; a stage of one RUN; a second one that copies from the context and from it, and runs.
    fn graph(first: &str, second: &str) -> Graph {
        let mut builder = Builder::default();
        let base = source(&mut builder, "docker-image://base");
        let context = source(&mut builder, "local://context");
        let stage = run(&mut builder, first, base);
        let copied = copy(&mut builder, context, base);
        let copied = copy(&mut builder, stage, copied);
        let last = run(&mut builder, second, copied);
        Graph::new(builder.definition(Some(last), None)).unwrap()
    }

    fn keys_of(graph: &Graph, content: &str) -> Vec<Keys> {
        let is_local = |node: &Node| matches!(&node.op.kind, Some(Kind::Source(source)) if source.identifier.starts_with("local:"));
        let key = |node: &Node, _: bool| Ok::<_, Infallible>(node.digest);
        let select = |node: &Node, _: &Node, _: &[key::Selector]| {
            Ok(is_local(node).then(|| Digest::of(content.as_bytes())))
        };
        keys(graph, key, select, |_, key| key).unwrap()
    }

    #[test]
    fn keys_are_known_before_anything_is_executed() {
        let key = |first, second, content| {
            let graph = graph(first, second);
            let last = graph.result.unwrap().node;
            keys_of(&graph, content)[last].key
        };
        let known = key("a", "b", "1");
        assert_eq!(key("a", "b", "1"), known);
        for (first, second, content) in [("x", "b", "1"), ("a", "x", "1"), ("a", "b", "2")] {
            assert_ne!(key(first, second, content), known);
        }
        let graph = graph("a", "b");
        let keys = keys_of(&graph, "1");
        let identities = keys.iter().flat_map(|keys| &keys.identities);
        let is_selection = |identity: &&Identity| matches!(identity, Identity::Selection(_));
        let found = identities.filter(is_selection).count();
        assert_eq!(found, 1, "only what is copied from a stage");
        let lasting = keys.iter().filter(|keys| !keys.is_lasting).count();
        assert_eq!(lasting, 1, "of the context, only what is read counts");
        // What stands on a client's directory is known by all that this has.
        let mut builder = Builder::default();
        let context = source(&mut builder, "local://context");
        let stands = run(&mut builder, "a", context);
        let base = source(&mut builder, "docker-image://base");
        let copied = copy(&mut builder, stands, base);
        let graph = Graph::new(builder.definition(Some(copied), None)).unwrap();
        let last = &keys_of(&graph, "1")[graph.result.unwrap().node];
        assert_eq!((last.is_lasting, last.is_lasting_by_content), (true, true));
    }

    #[test]
    fn what_depends_on_an_ignored_result_is_doubtful() {
        let mut graph = graph("a", "b");
        assert!(doubtful(&graph).iter().all(|doubtful| !doubtful));
        let last = graph.result.unwrap().node;
        let stage = graph
            .nodes
            .iter()
            .position(|node| matches!(node.op.kind, Some(Kind::Exec(_))));
        let stage = stage.unwrap();
        graph.nodes[stage].metadata.ignore_cache = true;
        let found = doubtful(&graph);
        let count = found.iter().filter(|doubtful| **doubtful).count();
        // The stage, the copy from it, and the last step; not the copy of the context.
        assert!(count == 3 && found[stage] && found[last], "{found:?}");
        let tasks = plan(&graph, |index, _| !found[index]).tasks;
        assert_eq!((tasks[stage], tasks[last]), (Task::Execute, Task::Execute));
    }

    #[test]
    fn the_last_step_is_looked_up_first() {
        let graph = graph("a", "b");
        let last = graph.result.unwrap().node;
        let mut asked = Vec::new();
        let tasks = plan(&graph, |index, _| {
            asked.push(index);
            index == last
        })
        .tasks;
        assert_eq!(asked, [last]);
        assert_eq!(tasks[last], Task::Take);
        assert!(tasks[..last].iter().all(|task| *task == Task::Leave));
        let tasks = plan(&graph, |_, _| false).tasks;
        assert!(tasks.iter().all(|task| *task == Task::Execute));
        // What stands on a result that is found is executed, and nothing below.
        let below = graph.nodes[last].inputs[0].node;
        let tasks = plan(&graph, |index, _| index == below).tasks;
        let executed = tasks.iter().filter(|task| **task == Task::Execute).count();
        assert_eq!((executed, tasks[below]), (1, Task::Take));
    }

    #[test]
    fn only_the_outputs_that_are_used_are_needed() {
        let mut builder = Builder::default();
        let base = source(&mut builder, "docker-image://base");
        let exec = ExecOp {
            meta: Some(Meta {
                args: vec!["a".into()],
                ..Meta::default()
            }),
            mounts: ["/", "/b", "/c"]
                .into_iter()
                .zip(0..)
                .map(|(dest, output)| Mount {
                    dest: dest.into(),
                    output,
                    ..Mount::default()
                })
                .collect(),
            ..ExecOp::default()
        };
        let made = add(&mut builder, Kind::Exec(exec), vec![base]);
        let copied = copy(&mut builder, made.at(2), made.at(1));
        let graph = Graph::new(builder.definition(Some(copied), None)).unwrap();
        let mut asked = Vec::new();
        plan(&graph, |index, outputs| {
            asked.push((graph.nodes[index].outputs, outputs.to_vec()));
            false
        });
        assert_eq!(asked, [(1, vec![0]), (3, vec![1, 2]), (1, vec![0])]);
    }
}
