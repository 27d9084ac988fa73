//! Checks definitions of low-level builds. A valid one must survive both ways.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_llb::{Builder, Graph, key};

fuzz_target!(|bytes: &[u8]| {
    let Ok(graph) = Graph::decode(bytes) else {
        return;
    };
    for node in &graph.nodes {
        assert_eq!(key::uses(&node.op).len(), node.inputs.len());
    }
    let again = Graph::new(graph.definition()).expect("check the definition of a graph");
    assert_eq!(again.nodes.len(), graph.nodes.len());
    let mut builder = Builder::default();
    let result = builder.add_graph(&graph).expect("add a graph");
    Graph::new(builder.definition(result, None)).expect("check what a builder has made");
});
