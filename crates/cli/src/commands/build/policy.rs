//! The source policy of `EXPERIMENTAL_BUILDKIT_SOURCE_POLICY`, as buildx reads it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use whelk_buildkit::pb::policy;

use crate::{Failure, Outcome};

const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

/// Fields that are not known are errors: what a mistake leaves out of a policy would be allowed.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Policy {
    version: i64,
    rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rule {
    action: Action,
    selector: Option<Selector>,
    updates: Option<Update>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Selector {
    identifier: String,
    #[serde(alias = "matchType")]
    match_type: MatchType,
    constraints: Vec<Constraint>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Constraint {
    key: String,
    value: String,
    condition: Condition,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Update {
    identifier: String,
    attrs: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Action {
    #[default]
    Allow,
    Deny,
    Convert,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum MatchType {
    #[default]
    Wildcard,
    Exact,
    Regex,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Condition {
    #[default]
    Equal,
    NotEqual,
    Matches,
}

impl From<Rule> for policy::Rule {
    fn from(rule: Rule) -> Self {
        let action = match rule.action {
            Action::Allow => policy::PolicyAction::Allow,
            Action::Deny => policy::PolicyAction::Deny,
            Action::Convert => policy::PolicyAction::Convert,
        };
        Self {
            action: action.into(),
            selector: rule.selector.map(Selector::into),
            updates: rule.updates.map(|update| policy::Update {
                identifier: update.identifier,
                attrs: update.attrs,
            }),
        }
    }
}

impl From<Selector> for policy::Selector {
    fn from(selector: Selector) -> Self {
        let match_type = match selector.match_type {
            MatchType::Wildcard => policy::MatchType::Wildcard,
            MatchType::Exact => policy::MatchType::Exact,
            MatchType::Regex => policy::MatchType::Regex,
        };
        let constraints = selector.constraints.into_iter();
        let constraints = constraints.map(|constraint| policy::AttrConstraint {
            key: constraint.key,
            value: constraint.value,
            condition: match constraint.condition {
                Condition::Equal => policy::AttrMatch::Equal,
                Condition::NotEqual => policy::AttrMatch::Notequal,
                Condition::Matches => policy::AttrMatch::Matches,
            }
            .into(),
        });
        Self {
            identifier: selector.identifier,
            match_type: match_type.into(),
            constraints: constraints.collect(),
        }
    }
}

/// Returns the policy that the environment names a file of.
///
/// # Errors
/// Returns an error if the file cannot be read, or is no policy.
pub(crate) fn from_environment() -> Outcome<Option<policy::Policy>> {
    match std::env::var_os(VARIABLE) {
        Some(path) if !path.is_empty() => read(Path::new(&path)).map(Some),
        _ => Ok(None),
    }
}

fn read(path: &Path) -> Outcome<policy::Policy> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| {
        let error = crate::plain(&error);
        Failure::new(format!("failed to read policy file: open {shown}: {error}"))
    })?;
    parse(&text)
        .map_err(|error| Failure::new(format!("failed to parse source policy: {shown}: {error}")))
}

fn parse(text: &[u8]) -> Result<policy::Policy, String> {
    // A list would be read as the fields of a policy in their order.
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err("it is no JSON object".into());
    }
    let read: Policy = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    Ok(policy::Policy {
        version: read.version,
        rules: read.rules.into_iter().map(Rule::into).collect(),
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_buildx_does() {
        let read = parse(
            br#"{"version": 1, "rules": [
                {"action": "DENY", "selector": {"identifier": "*"}},
                {"action": "CONVERT",
                 "selector": {"identifier": "https://(.*)", "match_type": "REGEX",
                              "constraints": [{"key": "k", "value": "v", "condition": "NOTEQUAL"}]},
                 "updates": {"identifier": "https://mirror/$1", "attrs": {"http.checksum": "sha256:1"}}}
            ]}"#,
        )
        .unwrap();
        assert_eq!((read.version, read.rules.len()), (1, 2));
        assert_eq!(read.rules[0].action(), policy::PolicyAction::Deny);
        let rule = &read.rules[1];
        let selector = rule.selector.as_ref().unwrap();
        assert_eq!(selector.match_type(), policy::MatchType::Regex);
        assert_eq!(
            selector.constraints[0].condition(),
            policy::AttrMatch::Notequal
        );
        let updates = rule.updates.as_ref().unwrap();
        let checksum = updates.attrs.get("http.checksum");
        assert_eq!(checksum.map(String::as_str), Some("sha256:1"));
        for (wrong, expected) in [
            (
                "{\"version\": 1,\n \"rule\": []}",
                "unknown field `rule`, expected `version` or `rules` at line 2",
            ),
            (
                "{\"rules\": [\n{\"action\": \"FORBID\"}]}",
                "unknown variant `FORBID`, expected one of `ALLOW`, `DENY`, `CONVERT` at line 2",
            ),
            ("[]", "it is no JSON object"),
            ("", "it is no JSON object"),
        ] {
            let error = parse(wrong.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
