//! Source policies as clients and frontends send them.

use whelk_build::Request;
use whelk_build::policy::{
    Action, Condition, Constraint, MatchType, Policies, Policy, Rule, Update,
};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::policy;

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid(error.to_string())
}

/// Returns these policies, and those of a request after them.
///
/// # Errors
/// Returns an error for a rule that says nothing, or what is not known.
pub(super) fn with(known: &Policies, sent: &[policy::Policy]) -> Result<Policies> {
    let parsed: Vec<Policy> = sent.iter().map(parse).collect::<Result<_>>()?;
    known.with(parsed).map_err(invalid)
}

/// Returns a request with the policies of a call.
///
/// # Errors
/// As [`with`].
pub(super) fn of_call(request: &Request, sent: &[policy::Policy]) -> Result<Request> {
    Ok(Request {
        policies: with(&request.policies, sent)?,
        ..request.clone()
    })
}

fn parse(sent: &policy::Policy) -> Result<Policy> {
    if sent.version > 1 {
        let text = format!("version {} of source policies", sent.version);
        return Err(Status::unsupported(text));
    }
    let rules = sent.rules.iter().enumerate();
    let rules = rules.map(|(index, sent)| {
        rule(sent).map_err(|status| invalid(format!("{} (rule {})", status.message, index + 1)))
    });
    Policy::new(rules.collect::<Result<_>>()?).map_err(invalid)
}

fn rule(sent: &policy::Rule) -> Result<Rule> {
    let nil = || Status::invalid("invalid nil selector in policy");
    let selector = sent.selector.as_ref().ok_or_else(nil)?;
    let identifier = selector.identifier.clone();
    let unknown = |what: &str, number: i32| {
        let text = format!("source policy: rule {identifier}: unknown {what} {number}");
        Status::invalid(text)
    };
    let action = match policy::PolicyAction::try_from(sent.action) {
        Ok(policy::PolicyAction::Allow) => Action::Allow,
        Ok(policy::PolicyAction::Deny) => Action::Deny,
        Ok(policy::PolicyAction::Convert) => Action::Convert,
        Err(_) => return Err(unknown("type", sent.action)),
    };
    let match_type = match policy::MatchType::try_from(selector.match_type) {
        Ok(policy::MatchType::Wildcard) => MatchType::Wildcard,
        Ok(policy::MatchType::Exact) => MatchType::Exact,
        Ok(policy::MatchType::Regex) => MatchType::Regex,
        Err(_) => return Err(unknown("match type", selector.match_type)),
    };
    let constraints = selector.constraints.iter().map(|constraint| {
        let condition = match policy::AttrMatch::try_from(constraint.condition) {
            Ok(policy::AttrMatch::Equal) => Condition::Equal,
            Ok(policy::AttrMatch::Notequal) => Condition::NotEqual,
            Ok(policy::AttrMatch::Matches) => Condition::Matches,
            Err(_) => return Err(unknown("attr condition", constraint.condition)),
        };
        Ok(Constraint {
            key: constraint.key.clone(),
            value: constraint.value.clone(),
            condition,
        })
    });
    let constraints = constraints.collect::<Result<_>>()?;
    let update = sent.updates.as_ref().map(|update| Update {
        identifier: update.identifier.clone(),
        attributes: update.attrs.clone(),
    });
    Ok(Rule {
        action,
        match_type,
        constraints,
        update,
        identifier,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_say_nothing_are_refused() {
        let selector = |match_type: i32, condition: i32| policy::Selector {
            identifier: "x".into(),
            match_type,
            constraints: vec![policy::AttrConstraint {
                condition,
                ..policy::AttrConstraint::default()
            }],
        };
        let rule = |action: i32, selector: Option<policy::Selector>| policy::Rule {
            action,
            selector,
            updates: None,
        };
        for (version, rule, expected) in [
            (1, rule(0, Some(selector(0, 0))), ""),
            (0, rule(1, Some(selector(2, 2))), ""),
            (0, rule(1, None), "invalid nil selector in policy (rule 1)"),
            (0, rule(9000, Some(selector(0, 0))), "unknown type 9000"),
            (0, rule(0, Some(selector(3, 0))), "unknown match type 3"),
            (0, rule(0, Some(selector(0, 3))), "unknown attr condition 3"),
            (
                0,
                rule(2, Some(selector(0, 0))),
                "missing destination for convert rule",
            ),
            (2, rule(0, Some(selector(0, 0))), "version 2"),
        ] {
            let rules = vec![rule];
            let sent = policy::Policy { version, rules };
            let error = with(&Policies::default(), &[sent]).err();
            let error = error.map_or_else(String::new, |status| status.message);
            assert!(error.contains(expected), "{error}");
            assert_eq!(error.is_empty(), expected.is_empty(), "{error}");
        }
    }
}
