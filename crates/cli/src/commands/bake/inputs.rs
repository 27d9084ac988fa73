//! Targets that others stand on: their definitions become inputs of those.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use whelk_bake::Target;
use whelk_buildkit::grpc::{Channel, Status};
use whelk_buildkit::pb::control::SolveRequest;
use whelk_buildkit::pb::gateway::{self, Ref, result};
use whelk_llb::pb::Definition;

use super::bridge::Bridge;
use crate::{Failure, Outcome};

/// The attribute that has the configuration of an image.
const CONFIG: &str = "containerimage.config";

/// The definitions of a target's result, by platform if there are several, with the configurations of their images.
#[derive(Clone, Debug, Default)]
pub(super) struct Input(Vec<(String, Definition, Option<Vec<u8>>)>);

/// Returns the names of targets in an order in which each comes after those that it stands on. Only those that others stand on
/// are in it.
pub(super) fn order(targets: &BTreeMap<String, Target>) -> Vec<String> {
    fn add(
        name: &str,
        targets: &BTreeMap<String, Target>,
        known: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) {
        if !known.insert(name.to_owned()) {
            return;
        }
        for used in used_by(targets.get(name)) {
            add(&used, targets, known, order);
        }
        order.push(name.to_owned());
    }
    let (mut known, mut order) = (BTreeSet::new(), Vec::new());
    for target in targets.values() {
        for name in used_by(Some(target)) {
            add(&name, targets, &mut known, &mut order);
        }
    }
    order
}

/// Returns the names of the targets that a target stands on. There are no circles in them.
fn used_by(target: Option<&Target>) -> Vec<String> {
    let contexts = target
        .into_iter()
        .flat_map(|target| target.contexts.values());
    let names = contexts.filter_map(|context| context.strip_prefix("target:"));
    names.map(str::to_owned).collect()
}

/// Puts the definitions of other targets into a request.
pub(super) fn put(
    target: &Target,
    inputs: &BTreeMap<String, Input>,
    request: &mut SolveRequest,
) -> Outcome<()> {
    for (name, context) in &target.contexts {
        let Some(other) = context.strip_prefix("target:") else {
            continue;
        };
        let input = inputs.get(other);
        let input = input.ok_or_else(|| Failure::new(format!("target {other} has no result")))?;
        let attribute = format!("context:{}", name.to_lowercase());
        request.frontend_attrs.remove(&attribute);
        for (platform, definition, config) in &input.0 {
            let suffix = match platform.as_str() {
                "" => String::new(),
                platform => format!("::{platform}"),
            };
            // Not `context`, which is the build's own one.
            let key = format!("target:{other}{suffix}");
            request
                .frontend_inputs
                .insert(key.clone(), definition.clone());
            let attributes = &mut request.frontend_attrs;
            attributes.insert(format!("{attribute}{suffix}"), format!("input:{key}"));
            if let Some(config) = config {
                let metadata: BTreeMap<&str, String> = [(CONFIG, STANDARD.encode(config))].into();
                let text = serde_json::to_string(&metadata)
                    .map_err(|error| Failure::new(format!("encode metadata: {error}")))?;
                attributes.insert(format!("input-metadata:{key}"), text);
            }
        }
    }
    Ok(())
}

/// Asks the engine for a target's definition, without building it. `request` is that of its build.
pub(super) async fn definition(
    channel: &Channel,
    request: &SolveRequest,
) -> Outcome<Result<Input, Status>> {
    // A build whose Dockerfile is converted by a call of its own (`LLBBridge.Solve`). It is cancelled when the answer is there.
    let mut bridge = Bridge::open(
        channel,
        request.session.clone(),
        request.entitlements.clone(),
    )?;
    let asked = gateway::SolveRequest {
        frontend: request.frontend.clone(),
        frontend_opt: request.frontend_attrs.clone(),
        frontend_inputs: request.frontend_inputs.clone(),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    Ok(bridge.solve(&asked).await.map(input))
}

fn input(answer: gateway::SolveResponse) -> Input {
    let result = answer.result.unwrap_or_default();
    let one = |platform: String, reference: Ref| {
        let key = match platform.as_str() {
            "" => CONFIG.to_owned(),
            platform => format!("{CONFIG}/{platform}"),
        };
        let config = result.metadata.get(&key).cloned();
        Some((platform, reference.def?, config))
    };
    let all: Vec<_> = match result.kind.clone() {
        Some(result::Kind::Ref(reference)) => one(String::new(), reference).into_iter().collect(),
        Some(result::Kind::Refs(map)) => {
            let refs = map.refs.into_iter();
            refs.filter_map(|(platform, reference)| one(platform, reference))
                .collect()
        }
        _ => Vec::new(),
    };
    Input(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(contexts: &[&str]) -> Target {
        let contexts = contexts.iter().enumerate();
        Target {
            contexts: contexts
                .map(|(number, context)| (format!("C{number}"), (*context).to_owned()))
                .collect(),
            ..Target::default()
        }
    }

    #[test]
    fn targets_come_after_those_that_they_stand_on() {
        let targets = [
            ("a", target(&["target:b", "target:c"])),
            ("b", target(&["target:c"])),
            ("c", target(&[])),
            ("d", target(&["."])),
        ];
        let targets = targets
            .map(|(name, target)| (name.to_owned(), target))
            .into();
        assert_eq!(order(&targets), ["c", "b"]);
    }

    #[test]
    fn inputs_have_a_name_and_a_configuration() {
        let input = Input(vec![
            (
                "linux/amd64".into(),
                Definition::default(),
                Some(b"{}".to_vec()),
            ),
            ("linux/arm64".into(), Definition::default(), None),
        ]);
        let mut request = SolveRequest::default();
        request
            .frontend_attrs
            .insert("context:c0".into(), "target:base".into());
        let inputs = [("base".to_owned(), input)].into();
        put(&target(&["target:base"]), &inputs, &mut request).unwrap();
        let attributes = request.frontend_attrs.iter();
        let attributes: Vec<String> = attributes
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(
            attributes,
            [
                "context:c0::linux/amd64=input:target:base::linux/amd64",
                "context:c0::linux/arm64=input:target:base::linux/arm64",
                "input-metadata:target:base::linux/amd64={\"containerimage.config\":\"e30=\"}",
            ]
        );
        assert_eq!(request.frontend_inputs.len(), 2);
    }
}
