//! Source policies: which sources a build may use, and which others it uses in their place.
//!
//! A policy is a list of rules. Each source is compared with all of them, in order:
//!
//! ```text
//! ALLOW, DENY   the last one that matches decides
//! CONVERT       changes the identifier or attributes; if that makes a difference, all begins again
//! ```
//! A source is also a base image whose configuration alone is read, and the directory that the Dockerfile is in. What a policy
//! cannot decide is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex_lite::{Regex, RegexBuilder};
use whelk_llb::Graph;
use whelk_llb::pb::SourceOp;

use crate::error::{Error, Result};
use crate::request::parse_reference;

/// Maximum number of rules of a policy, and of policies.
const MAX_RULES: usize = 1000;
const MAX_POLICIES: usize = 16;

/// Maximum length of an identifier, a pattern or a value in bytes.
const MAX_TEXT: usize = 4096;

/// The sizes in bytes between which that of a compiled pattern is searched.
const MIN_COMPILED: usize = 1 << 10;
const MAX_COMPILED: usize = 1 << 20;

/// Maximum size of all policies of a build in bytes: that of the compiled patterns, and of what matching needs.
const MAX_SIZE: usize = 64 << 20;

/// How often a source may be changed.
const MAX_CHANGES: usize = 20;

/// The steps that the sources of a graph may take: for each byte of a text, one for so many bytes of a pattern's size.
const MAX_WORK: usize = 1 << 28;
const STEP: usize = 128;

/// What a rule does with a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    Convert,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Convert => "CONVERT",
        })
    }
}

/// How an identifier is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchType {
    /// `*` stands for any characters, which `${1}`, … stand for in the new identifier.
    Wildcard,
    Exact,
    /// Any part of the identifier may match, and is what is replaced.
    Regex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Equal,
    NotEqual,
    Matches,
}

/// What an attribute of a source must be. One that it does not have is empty.
#[derive(Clone, Debug)]
pub struct Constraint {
    pub key: String,
    pub value: String,
    pub condition: Condition,
}

/// What a source becomes.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// The selector's if it is empty.
    pub identifier: String,
    pub attributes: BTreeMap<String, String>,
}

/// A rule as it was sent.
#[derive(Clone, Debug)]
pub struct Rule {
    pub action: Action,
    pub identifier: String,
    pub match_type: MatchType,
    pub constraints: Vec<Constraint>,
    pub update: Option<Update>,
}

/// A compiled regular expression.
#[derive(Clone, Debug)]
struct Pattern {
    regex: Regex,
    /// The bytes that it and what matching needs take, which is as much again for each of its groups.
    size: usize,
}

/// A rule whose patterns are compiled.
#[derive(Clone, Debug)]
struct Compiled {
    rule: Rule,
    /// `None` if the identifier must be equal.
    pattern: Option<Pattern>,
    /// Of the constraints that are patterns, in order.
    values: Vec<Option<Pattern>>,
}

/// A list of rules.
#[derive(Clone, Debug)]
pub struct Policy(Vec<Compiled>);

/// All policies of a build.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<Vec<Policy>>);

fn compiled(pattern: &str) -> Result<Pattern> {
    let mut limit = MIN_COMPILED;
    loop {
        match RegexBuilder::new(pattern).size_limit(limit).build() {
            Ok(regex) => {
                let size = limit.saturating_mul(regex.captures_len() + 1);
                return Ok(Pattern { regex, size });
            }
            Err(_) if limit < MAX_COMPILED => limit *= 2,
            Err(error) => {
                return Err(Error::invalid(format!(
                    "error matching source policy: invalid regex {pattern:?}: {error}"
                )));
            }
        }
    }
}

fn check_size(size: usize) -> Result<()> {
    match size > MAX_SIZE {
        true => Err(Error::invalid(format!(
            "the patterns of source policies need more than {MAX_SIZE} bytes"
        ))),
        false => Ok(()),
    }
}

/// The scheme of the client's directories.
const LOCAL: &str = "local://";

#[allow(
    clippy::needless_pass_by_value,
    reason = "it is the argument of map_err"
)]
fn evaluating(error: Error) -> Error {
    Error::invalid(format!("error evaluating the source policy: {error}"))
}

fn wildcard(text: &str) -> Result<Pattern> {
    if text.contains("**") {
        return Err(Error::invalid(format!(
            "error matching source policy: failed to translate wildcard {text:?} to regexp: invalid wildcard: \"**\""
        )));
    }
    compiled(&format!(
        "^{}$",
        regex_lite::escape(text).replace(r"\*", "(.*)")
    ))
}

impl Compiled {
    fn new(rule: Rule) -> Result<Self> {
        let values = rule.constraints.iter().map(|one| &one.value);
        let update = rule.update.iter().map(|update| &update.identifier);
        let own = std::iter::once(&rule.identifier);
        let mut texts = values.chain(update).chain(own);
        if texts.any(|text| text.len() > MAX_TEXT) {
            return Err(Error::invalid(format!(
                "a source policy has a text of more than {MAX_TEXT} bytes"
            )));
        }
        if rule.action == Action::Convert && rule.update.is_none() {
            return Err(Error::invalid(
                "error mutating source policy: missing destination for convert rule",
            ));
        }
        let pattern = match rule.match_type {
            MatchType::Exact => None,
            MatchType::Regex => Some(compiled(&rule.identifier)?),
            MatchType::Wildcard => Some(wildcard(&rule.identifier)?),
        };
        let values = rule.constraints.iter();
        let values = values.map(|constraint| match constraint.condition {
            Condition::Matches => compiled(&constraint.value).map(Some),
            Condition::Equal | Condition::NotEqual => Ok(None),
        });
        Ok(Self {
            pattern,
            values: values.collect::<Result<_>>()?,
            rule,
        })
    }

    /// Returns the bytes that its patterns take.
    fn size(&self) -> usize {
        let patterns = self.values.iter().flatten().chain(&self.pattern);
        patterns.fold(0, |size, pattern| size.saturating_add(pattern.size))
    }

    fn matches(&self, source: &SourceOp, work: &mut Work) -> Result<bool> {
        for (constraint, pattern) in self.rule.constraints.iter().zip(&self.values) {
            let value = source.attrs.get(&constraint.key);
            let value = value.map_or("", String::as_str);
            let holds = match (constraint.condition, pattern) {
                (Condition::Matches, Some(pattern)) => {
                    work.add(pattern, value.len())?;
                    pattern.regex.is_match(value)
                }
                (Condition::NotEqual, _) => value != constraint.value,
                _ => value == constraint.value,
            };
            if !holds {
                return Ok(false);
            }
        }
        if source.identifier == self.rule.identifier {
            return Ok(true);
        }
        let Some(pattern) = &self.pattern else {
            return Ok(false);
        };
        work.add(pattern, source.identifier.len())?;
        Ok(pattern.regex.is_match(&source.identifier))
    }

    /// Changes a source that matches. Returns whether that made a difference.
    fn convert(&self, source: &mut SourceOp, work: &mut Work) -> Result<bool> {
        let Some(update) = &self.rule.update else {
            return Ok(false);
        };
        let template = match update.identifier.as_str() {
            "" => self.rule.identifier.as_str(),
            identifier => identifier,
        };
        let old = source.identifier.as_str();
        let new = match (self.rule.match_type, &self.pattern) {
            (MatchType::Regex, Some(pattern)) => {
                // Each of the matches may look at all that follows.
                work.add(pattern, old.len().saturating_mul(old.len()))?;
                pattern.regex.replace_all(old, template).into_owned()
            }
            (MatchType::Wildcard, Some(pattern)) => {
                work.add(pattern, old.len())?;
                match pattern.regex.captures(old) {
                    Some(captures) => {
                        let mut new = String::new();
                        captures.expand(template, &mut new);
                        new
                    }
                    None => old.to_owned(),
                }
            }
            _ => template.to_owned(),
        };
        if new.len() > MAX_TEXT {
            return Err(Error::invalid(format!(
                "error mutating source policy: an identifier of more than {MAX_TEXT} bytes"
            )));
        }
        let mut is_changed = false;
        if !new.is_empty() && source.identifier != new {
            source.identifier = new;
            is_changed = true;
        }
        for (key, value) in &update.attributes {
            if source.attrs.get(key).map_or("", String::as_str) != value {
                source.attrs.insert(key.clone(), value.clone());
                is_changed = true;
            }
        }
        Ok(is_changed)
    }
}

/// What was compared so far.
#[derive(Debug, Default)]
struct Work(usize);

impl Work {
    fn add(&mut self, pattern: &Pattern, length: usize) -> Result<()> {
        let more = (pattern.size / STEP).saturating_mul(length.saturating_add(1));
        self.0 = self.0.saturating_add(more);
        if self.0 > MAX_WORK {
            return Err(Error::invalid(
                "source policies: the rules take too long for so many sources",
            ));
        }
        Ok(())
    }
}

impl Policy {
    /// Checks rules.
    ///
    /// # Errors
    /// Returns an error for a pattern that is none, and if they are too many or too large.
    pub fn new(rules: Vec<Rule>) -> Result<Self> {
        if rules.len() > MAX_RULES {
            return Err(Error::invalid(format!(
                "a source policy has more than {MAX_RULES} rules"
            )));
        }
        let (mut all, mut size) = (Vec::with_capacity(rules.len()), 0_usize);
        for (index, rule) in rules.into_iter().enumerate() {
            let compiled = Compiled::new(rule);
            let compiled = compiled
                .map_err(|error| Error::invalid(format!("{error} (rule {})", index + 1)))?;
            size = size.saturating_add(compiled.size());
            check_size(size)?;
            all.push(compiled);
        }
        Ok(Self(all))
    }

    /// Applies the rules once. Returns whether the source was changed.
    fn evaluate(&self, source: &mut SourceOp, work: &mut Work) -> Result<bool> {
        let mut denied = None;
        for (number, compiled) in self.0.iter().enumerate() {
            if !compiled.matches(source, work)? {
                continue;
            }
            match compiled.rule.action {
                Action::Allow => denied = None,
                Action::Deny => denied = Some((number + 1, &compiled.rule)),
                Action::Convert => {
                    if compiled.convert(source, work)? {
                        return Ok(true);
                    }
                }
            }
        }
        let Some((number, rule)) = denied else {
            return Ok(false);
        };
        let shown = crate::provenance::without_credentials(&source.identifier);
        Err(Error::invalid(format!(
            "source {shown:?} denied by policy: source denied by policy (rule {number}: {} {:?})",
            rule.action, rule.identifier
        )))
    }
}

impl Policies {
    /// Returns these policies, and others after them.
    ///
    /// # Errors
    /// Returns an error if they are too many or too large.
    pub fn with(&self, others: impl IntoIterator<Item = Policy>) -> Result<Self> {
        let mut others = others.into_iter().peekable();
        if others.peek().is_none() {
            return Ok(self.clone());
        }
        let all = self.0.iter().cloned().chain(others);
        let all: Vec<Policy> = all.take(MAX_POLICIES + 1).collect();
        if all.len() > MAX_POLICIES {
            return Err(Error::invalid(format!(
                "more than {MAX_POLICIES} source policies"
            )));
        }
        let all = Self(Arc::new(all));
        check_size(all.size())?;
        Ok(all)
    }

    /// Returns the bytes that the patterns take.
    pub fn size(&self) -> usize {
        let rules = self.0.iter().flat_map(|policy| &policy.0);
        rules.fold(0, |size, rule| size.saturating_add(rule.size()))
    }

    /// Applies the policies to a source whose metadata is asked for.
    ///
    /// # Errors
    /// Returns an error if the source is denied, or is changed without end.
    pub fn evaluate(&self, source: &mut SourceOp) -> Result<()> {
        let changed = self.change(source, &mut Work::default());
        changed.map_err(|error| {
            Error::invalid(format!("could not resolve image due to policy: {error}"))
        })?;
        Ok(())
    }

    /// Returns the name of the client's directory that is used in place of the one with this name.
    ///
    /// # Errors
    /// Returns an error if the directory is denied, or replaced by what is none.
    pub fn directory(&self, name: &str) -> Result<String> {
        let found = self.in_place_of(name)?;
        let local = found.strip_prefix(LOCAL);
        local.map(str::to_owned).ok_or_else(|| {
            let by = crate::provenance::without_credentials(&found);
            Error::Unsupported(format!("{by} in place of the client's directory {name}"))
        })
    }

    /// Like [`Policies::directory`], of a named context: `None` if another kind of source is used in its place.
    ///
    /// # Errors
    /// Returns an error if the directory is denied.
    pub(crate) fn named_directory(&self, name: &str) -> Result<Option<String>> {
        let found = self.in_place_of(name)?;
        Ok(found.strip_prefix(LOCAL).map(str::to_owned))
    }

    /// Returns the identifier of the source that is used in place of a directory.
    fn in_place_of(&self, name: &str) -> Result<String> {
        let mut source = SourceOp {
            identifier: format!("{LOCAL}{name}"),
            ..SourceOp::default()
        };
        let changed = self.change(&mut source, &mut Work::default());
        changed.map_err(evaluating)?;
        Ok(source.identifier)
    }

    /// Applies the policies to the sources of a graph, needed or not.
    ///
    /// # Errors
    /// Returns an error, with the operation, if one is denied, or is changed without end.
    pub fn apply(&self, graph: Graph) -> Result<Graph> {
        if self.0.is_empty() {
            return Ok(graph);
        }
        let mut work = Work::default();
        graph.with_sources(|op, source| {
            let changed = self.change(source, &mut work);
            changed.map_err(|error| Error::Step {
                op,
                cause: Box::new(evaluating(error)),
            })
        })
    }

    /// Changes a source until nothing changes it further. Returns whether anything has.
    fn change(&self, source: &mut SourceOp, work: &mut Work) -> Result<bool> {
        if self.0.is_empty() {
            return Ok(false);
        }
        let mut has_changed = false;
        for _ in 0..=MAX_CHANGES {
            has_changed |= normalize(source);
            if source.identifier.len() > MAX_TEXT {
                return Err(Error::invalid(format!(
                    "source policies: a source has an identifier of more than {MAX_TEXT} bytes"
                )));
            }
            let mut is_changed = false;
            for policy in self.0.iter() {
                is_changed = policy.evaluate(source, work)?;
                if is_changed {
                    break;
                }
            }
            if !is_changed {
                return Ok(has_changed);
            }
            has_changed = true;
        }
        Err(Error::invalid(
            "too many mutations on a single source: too many operations",
        ))
    }
}

/// Gives an image the long form of its name, so that no rule is evaded by another form. Returns whether it had another one.
fn normalize(source: &mut SourceOp) -> bool {
    const IMAGE: &str = "docker-image://";
    let name = source.identifier.strip_prefix(IMAGE);
    let parsed = name.and_then(|name| Some((name, parse_reference(name).ok()?)));
    let Some((_, parsed)) = parsed.filter(|(name, parsed)| *name != parsed.full) else {
        return false;
    };
    source.identifier = format!("{IMAGE}{}", parsed.full);
    true
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_llb::pb::op::Kind;
    use whelk_llb::{Builder, Vertex};

    use super::*;

    fn rule(action: Action, identifier: &str) -> Rule {
        Rule {
            action,
            identifier: identifier.into(),
            match_type: MatchType::Wildcard,
            constraints: Vec::new(),
            update: None,
        }
    }

    fn to(match_type: MatchType, from: &str, to: &str, attributes: &[(&str, &str)]) -> Rule {
        let attributes = attributes.iter();
        Rule {
            match_type,
            update: Some(Update {
                identifier: to.into(),
                attributes: attributes
                    .map(|(key, value)| ((*key).into(), (*value).into()))
                    .collect(),
            }),
            ..rule(Action::Convert, from)
        }
    }

    fn policies(rules: Vec<Rule>) -> Policies {
        let policy = Policy::new(rules).unwrap();
        Policies::default().with([policy]).unwrap()
    }

    fn source(identifier: &str, attributes: &[(&str, &str)]) -> SourceOp {
        let attributes = attributes.iter();
        SourceOp {
            identifier: identifier.into(),
            attrs: attributes
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
        }
    }

    /// Returns the identifier that a source gets, or the error.
    fn found(policies: &Policies, identifier: &str) -> std::result::Result<String, String> {
        let mut source = source(identifier, &[("a", "xyz")]);
        let evaluated = policies.evaluate(&mut source);
        evaluated
            .map(|()| source.identifier)
            .map_err(|error| error.to_string())
    }

    const A: &str = "docker-image://docker.io/library/a:1";

    #[test]
    fn the_last_rule_that_matches_decides() {
        let (allow, deny) = (Action::Allow, Action::Deny);
        for (rules, is_allowed) in [
            (vec![], true),
            (vec![rule(deny, "docker-image://*")], false),
            (vec![rule(deny, "docker-image://b*")], true),
            (vec![rule(deny, "*"), rule(allow, A)], true),
            (vec![rule(allow, A), rule(deny, "*")], false),
            (vec![rule(deny, A)], false),
            // A wildcard is compared with the whole identifier.
            (vec![rule(deny, "docker.io/library/a:1")], true),
            (
                vec![rule(deny, "docker-image://docker.io/library/.:1")],
                true,
            ),
        ] {
            let shown = format!("{rules:?}");
            let found = found(&policies(rules), A);
            assert_eq!(found.is_ok(), is_allowed, "{shown}: {found:?}");
        }
        // Short names are those of the same images.
        let denies = policies(vec![rule(deny, A)]);
        for name in ["a:1", "docker.io/a:1", "index.docker.io/library/a:1"] {
            let found = found(&denies, &format!("docker-image://{name}"));
            assert!(found.is_err(), "{name}: {found:?}");
        }
        let denied = found(&policies(vec![rule(allow, "x"), rule(deny, "*/a:*")]), A);
        assert_eq!(
            denied.unwrap_err(),
            "could not resolve image due to policy: source \"docker-image://docker.io/library/a:1\" denied by policy: source denied by policy (rule 2: DENY \"*/a:*\")"
        );
    }

    #[test]
    fn each_policy_may_deny() {
        let allows = Policy::new(vec![rule(Action::Allow, "*")]).unwrap();
        let denies = Policy::new(vec![rule(Action::Deny, A)]).unwrap();
        for order in [[&allows, &denies], [&denies, &allows]] {
            let both = Policies::default().with(order.map(Policy::clone)).unwrap();
            assert!(found(&both, A).is_err());
        }
        let many = vec![allows; MAX_POLICIES + 1];
        assert!(Policies::default().with(many).is_err());
    }

    #[test]
    fn identifiers_are_converted() {
        let digest = format!("{A}@sha256:{}", "a".repeat(64));
        let library = "docker-image://docker.io/library/*";
        for (match_type, from, new, expected) in [
            (MatchType::Wildcard, A, &*digest, &*digest),
            (MatchType::Exact, A, &digest, &digest),
            (MatchType::Exact, "docker-image://*", &digest, A),
            (
                MatchType::Wildcard,
                library,
                "docker-image://mirror/${1}-slim$$$2",
                "docker-image://mirror/a:1-slim$",
            ),
            (
                MatchType::Regex,
                "docker\\.io/(?P<path>.*):1$",
                "mirror.example/$path:2",
                "docker-image://mirror.example/library/a:2",
            ),
            (
                MatchType::Regex,
                "library",
                "x",
                "docker-image://docker.io/x/a:1",
            ),
            (MatchType::Wildcard, A, "local://dir", "local://dir"),
            (MatchType::Wildcard, A, "", A),
        ] {
            let policies = policies(vec![to(match_type, from, new, &[])]);
            let found = found(&policies, A);
            assert_eq!(found.as_deref(), Ok(expected), "{from} to {new}");
        }
        // What it was converted to is compared with all rules again.
        let pinned = vec![
            rule(Action::Deny, "*"),
            rule(Action::Allow, "docker-image://docker.io/library/b:latest"),
            to(MatchType::Wildcard, A, "docker-image://b", &[]),
        ];
        assert_eq!(
            found(&policies(pinned), A).as_deref(),
            Ok("docker-image://docker.io/library/b:latest")
        );
        let endless = vec![to(MatchType::Wildcard, "*", "${1}x", &[])];
        let error = found(&policies(endless), A).unwrap_err();
        assert!(error.contains("too many operations"), "{error}");
    }

    #[test]
    fn attributes_are_compared_and_set() {
        let constraint = |condition, value: &str| Constraint {
            key: "a".into(),
            value: value.into(),
            condition,
        };
        for (condition, value, is_denied) in [
            (Condition::Equal, "xyz", true),
            (Condition::Equal, "x", false),
            (Condition::NotEqual, "xyz", false),
            (Condition::NotEqual, "x", true),
            (Condition::Matches, "^x", true),
            (Condition::Matches, "^y", false),
        ] {
            let deny = Rule {
                constraints: vec![constraint(condition, value)],
                ..rule(Action::Deny, "*")
            };
            let found = found(&policies(vec![deny]), A);
            assert_eq!(found.is_err(), is_denied, "{condition:?} {value}");
        }
        // One that is not there is empty.
        let without = Rule {
            constraints: vec![Constraint {
                key: "http.checksum".into(),
                ..constraint(Condition::Equal, "")
            }],
            ..rule(Action::Deny, "https://*")
        };
        let mut plain = source("https://host/x", &[]);
        let policies = policies(vec![
            without,
            to(
                MatchType::Exact,
                "https://host/x",
                "",
                &[("http.checksum", "sha256:1")],
            ),
        ]);
        policies.evaluate(&mut plain).unwrap();
        assert_eq!(
            plain,
            source("https://host/x", &[("http.checksum", "sha256:1")])
        );
        assert!(found(&policies, "https://host/y").is_err());
    }

    #[test]
    fn rules_that_cannot_be_decided_are_refused() {
        let matches = |value: &str| Rule {
            constraints: vec![Constraint {
                key: "a".into(),
                value: value.into(),
                condition: Condition::Matches,
            }],
            ..rule(Action::Deny, "x")
        };
        let regex = |text: &str| Rule {
            match_type: MatchType::Regex,
            ..rule(Action::Deny, text)
        };
        for (rule, text) in [
            (rule(Action::Deny, "a**"), "invalid wildcard"),
            (regex("("), "invalid regex"),
            (regex("((a{100}){100}){100}"), "invalid regex"),
            (matches("["), "invalid regex"),
            (
                rule(Action::Convert, "a"),
                "missing destination for convert rule",
            ),
            (rule(Action::Deny, &"x".repeat(MAX_TEXT + 1)), "more than"),
        ] {
            let usual = self::rule(Action::Allow, "x");
            let error = Policy::new(vec![usual, rule]).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
            assert!(error.ends_with(" (rule 2)"), "{error}");
        }
        let many = vec![rule(Action::Deny, "x"); MAX_RULES + 1];
        assert!(Policy::new(many).is_err());
        // Each group needs as much as the whole pattern.
        for groups in [
            regex(&"()".repeat(2000)),
            rule(Action::Deny, &"*a".repeat(2000)),
        ] {
            let error = Policy::new(vec![groups]).unwrap_err().to_string();
            assert!(error.contains("patterns of source policies"), "{error}");
        }
        let large = Policy::new(vec![regex("((a{20}){20}){10}"); 40]).unwrap();
        assert!(Policies::default().with([large.clone()]).is_ok());
        assert!(Policies::default().with(vec![large; 8]).is_err());
        let usual = vec![rule(Action::Deny, "docker-image://docker.io/library/*"); MAX_RULES];
        assert!(found(&policies(usual), "docker-image://quay.io/a/b:1").is_ok());
        let allow = policies(vec![rule(Action::Allow, "x")]);
        let error = found(&allow, &format!("https://h/{}", "x".repeat(MAX_TEXT)));
        assert!(error.is_err_and(|error| error.contains("more than 4096")));
        let slow = policies(vec![to(MatchType::Regex, ".*z{999}|", "", &[])]);
        let error = found(&slow, &format!("https://h/{}", "x".repeat(MAX_TEXT - 20)));
        assert!(error.is_err_and(|error| error.contains("take too long")));
        // Credentials are not told.
        let error = found(&policies(vec![rule(Action::Deny, "*")]), "https://u:p@h/x");
        let error = error.unwrap_err();
        assert!(!error.contains("u:p"), "{error}");
    }

    #[test]
    fn graphs_get_other_sources() {
        let mut builder = Builder::default();
        let source = Kind::Source(source(A, &[]));
        let output = builder.add(Vertex::new(source, Vec::new())).unwrap();
        let graph = Graph::new(builder.definition(Some(output), None)).unwrap();
        let op = graph.nodes[0].digest;
        let same = Policies::default().apply(graph.clone()).unwrap();
        assert_eq!(same, graph);
        let other = policies(vec![to(MatchType::Wildcard, "*a:1", "local://b", &[])]);
        let converted = other.apply(graph.clone()).unwrap();
        let Some(Kind::Source(found)) = &converted.nodes[0].op.kind else {
            panic!("no source");
        };
        assert_eq!(found.identifier, "local://b");
        assert_ne!(converted.nodes[0].digest, op);
        let denies = policies(vec![rule(Action::Deny, "*")]);
        let Err(Error::Step { op: denied, cause }) = denies.apply(graph) else {
            panic!("no error of a step");
        };
        assert_eq!(denied, op);
        assert_eq!(other.directory("context").unwrap(), "context");
        assert!(denies.directory("context").is_err());
        // In place of a named context there may be something else.
        assert!(denies.named_directory("lib").is_err());
        let image = policies(vec![to(MatchType::Exact, "local://lib", A, &[])]);
        assert_eq!(image.named_directory("lib").unwrap(), None);
        assert!(image.directory("lib").is_err());
        let named = image.named_directory("other").unwrap();
        assert_eq!(named.as_deref(), Some("other"));
        let text = "error evaluating the source policy: source ";
        assert!(cause.to_string().starts_with(text), "{cause}");
    }
}
